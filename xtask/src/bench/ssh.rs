//! The peer of `vm exec`: the ordinary ssh client with a connection that stays open.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::home::Home;
use crate::process;

/// A connection that stays open until this value goes.
pub struct Connection {
    options: Vec<String>,
    host: String,
}

impl Connection {
    /// Opens one to a VM, through banger as any ssh goes.
    pub fn open(home: &Home, vm: &str) -> Result<Self> {
        let mut ask = Command::new("curl");
        ask.args(["--silent", "--show-error", "--fail", "--unix-socket"]);
        ask.arg(home.path().join("run/bangerd.sock"));
        ask.arg(format!("http://banger/v1/vms/{vm}/ssh-target"));
        let target: serde_json::Value = serde_json::from_str(&process::quiet_output(&mut ask)?)?;
        let field = |name: &str| {
            let value = target[name].as_str();
            value.with_context(|| format!("the ssh target has no {name}"))
        };
        let proxy = home.program("banger");
        let control: PathBuf = home.path().join("control");
        let options = vec![
            format!(
                "ProxyCommand=env BANGER_HOME={} {} ssh-proxy {vm}",
                home.path().display(),
                proxy.display()
            ),
            format!("IdentityFile={}", field("identity_file")?),
            format!("UserKnownHostsFile={}", field("known_hosts_file")?),
            format!("HostKeyAlias={}", field("name")?),
            format!("User={}", field("user")?),
            format!("ControlPath={}", control.display()),
            "ControlPersist=yes".to_owned(),
            "ControlMaster=auto".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "BatchMode=yes".to_owned(),
        ];
        let connection = Self {
            options,
            host: vm.to_owned(),
        };
        // The one that goes on in the background holds standard error open.
        process::run_detached(&mut connection.command(&["true"]))?;
        Ok(connection)
    }

    /// ssh with this guest command.
    pub fn command(&self, command: &[&str]) -> Command {
        let mut ssh = self.ssh();
        ssh.arg(&self.host).args(command);
        ssh
    }

    fn ssh(&self) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none"]);
        for option in &self.options {
            ssh.args(["-o", option]);
        }
        ssh
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Err(error) = process::run_detached(self.ssh().args(["-O", "exit", &self.host])) {
            eprintln!("warning: {error:#}");
        }
    }
}
