//! `banger vm ssh`: the user's own ssh client, told how to reach the VM and which host key to
//! expect. Nothing in the user's ssh files is touched.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use banger_proto::api::{SshTarget, Vm, VmState};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::VmId;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::near;
use crate::settings::Settings;
use crate::ssh_words::{config_word, proxy_word, unusable};

const EXAMPLES: &str = "\
Examples:
  banger vm ssh calm-otter
  banger vm ssh calm-otter -- uptime
  banger vm ssh calm-otter -- -L 8080:localhost:80";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Ssh {
    /// The VM: its name, its id, or the first 4 or more digits of its id
    #[arg(value_parser = crate::args::vm_selector, add = ArgValueCandidates::new(complete::vm_names))]
    vm: String,
    /// Options for ssh, and a command for the guest
    #[arg(last = true)]
    args: Vec<OsString>,
}

impl Ssh {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let vm = match client.vm(&self.vm).await {
            Ok(vm) => vm,
            Err(error) => return Err(near::explain(&client, &self.vm, error).await),
        };
        if vm.state != VmState::Running {
            return Err(not_running(&vm).into());
        }
        let target = client.ssh_target(vm.id.as_str()).await?;
        let own = std::env::current_exe()
            .map_err(|error| Failure::system("could not find banger's own program", &error))?;
        let mut ssh = banger_process::command("ssh");
        ssh.args(ssh_options(&own, &vm.id, &target)?)
            .args(self.args)
            .stdin(Stdio::inherit());
        // ssh takes this process's place: terminal, signals and exit status are its own.
        Err(no_ssh(&ssh.exec()))
    }
}

/// Said here, because ssh would show it among complaints of its own.
fn not_running(vm: &Vm) -> ApiError {
    let message = format!("VM `{}` is {}, so ssh cannot reach it", vm.name, vm.state);
    ApiError::new(ErrorKind::Conflict, message)
        .with_hint(format!("start it first: `banger vm start {}`", vm.name))
}

fn no_ssh(error: &std::io::Error) -> Failure {
    ApiError::new(ErrorKind::Precondition, "could not run `ssh`")
        .caused_by(error)
        .with_hint("install it (on Debian and Ubuntu: `sudo apt-get install openssh-client`), or use `banger vm exec`")
        .into()
}

/// ssh's arguments up to and with the host (ssh(1), ssh_config(5)).
fn ssh_options(own: &Path, vm: &VmId, target: &SshTarget) -> Result<Vec<String>, ApiError> {
    let own = own
        .to_str()
        .ok_or_else(|| unusable(&own.to_string_lossy()))?;
    let proxy = format!("ProxyCommand={} ssh-proxy {vm}", proxy_word(own));
    let known_hosts = format!(
        "UserKnownHostsFile={}",
        config_word(&target.known_hosts_file)?
    );
    let identity = format!("IdentityFile={}", config_word(&target.identity_file)?);
    let alias = format!("HostKeyAlias={}", target.name);
    let mut options = Vec::new();
    for option in [
        proxy.as_str(),
        &known_hosts,
        "GlobalKnownHostsFile=/dev/null",
        &alias,
        "StrictHostKeyChecking=yes",
        &identity,
        "IdentitiesOnly=yes",
        // A shared connection might still lead to an older VM of this name.
        "ControlPath=none",
    ] {
        options.extend(["-o".to_owned(), option.to_owned()]);
    }
    options.extend([
        "-l".to_owned(),
        target.user.clone(),
        format!("{}.vm", target.name),
    ]);
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> SshTarget {
        SshTarget {
            name: "calm-otter".parse().unwrap(),
            user: "root".into(),
            identity_file: "/home/u/.config/banger/ssh/id_ed25519".into(),
            known_hosts_file: "/home/u/100% mine/known_hosts".into(),
        }
    }

    #[test]
    fn the_host_key_is_pinned_and_paths_are_quoted() {
        let id = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let options = ssh_options(Path::new("/opt/it's/banger"), &id, &target()).unwrap();
        insta::assert_snapshot!(options.join("\n"));
    }

    #[test]
    fn what_ssh_cannot_quote_is_refused() {
        let mut target = target();
        target.identity_file = "/a\"b".into();
        let id = VmId::new();
        assert!(ssh_options(Path::new("/bin/banger"), &id, &target).is_err());
    }
}
