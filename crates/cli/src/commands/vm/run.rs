//! `banger vm run`

use banger_client::Client;
use banger_proto::api::{Image, VmState};
use banger_proto::error::{ApiError, ErrorKind};
use clap::Args;

use super::create::{VmArgs, create, vm_of};
use super::exec::request;
use crate::args::{ExecArgs, Quiet};
use crate::failure::Outcome;
use crate::progress::{Display, Verbosity};
use crate::session::Session;
use crate::settings::Settings;
use crate::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  banger vm run                                   a shell in a fresh VM, which is kept
  banger vm run --name devbox --memory 8G         the same, with a name and more memory
  banger vm run --rm -- uname -a                  one command, and nothing left behind
  banger vm run --rm --timeout 10m -- make test   at most ten minutes, else status 124
  banger vm run --rm -- sha256sum < disk.img      input and output are passed as they are
  banger vm run --image alpine:3.20               an image of a registry, got on its first use

The VM stays when the command ends, unless --rm is given; then it is deleted however banger
ends. In a shell, Ctrl-C goes to the guest. Otherwise the first Ctrl-C goes to the guest's
command, and a second one gives it up.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    #[command(flatten)]
    vm: VmArgs,
    /// Delete the VM at the end, also after Ctrl-C or if banger is killed
    #[arg(long)]
    rm: bool,
    /// Run what the image's maker wants run, with CMD as its arguments if there is one
    #[arg(long, requires = "image")]
    entrypoint: bool,
    #[command(flatten)]
    quiet: Quiet,
    #[command(flatten)]
    exec: ExecArgs,
}

impl Run {
    pub(crate) async fn run(mut self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let mut request = request(&self.exec);
        let client = signals.or(settings.connect()).await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        self.vm.get_image(&client, &display, &mut signals).await?;
        if let Some(image) = self.vm.image().filter(|_| self.entrypoint) {
            let images = signals.or(client.images()).await?;
            let image = images.into_iter().rfind(|known| known.name == image);
            request.command = whole_command(image.as_ref(), request.command)?;
        }
        // Held to the end of this process, whatever that is: the daemon deletes the VM then.
        let lease = match self.rm {
            true => Some(signals.or(client.lease()).await?),
            false => None,
        };
        let id = lease.as_ref().map(|lease| lease.id().clone());
        let operation =
            create(&client, &self.vm.request(false, id), &display, &mut signals).await?;
        let vm = vm_of(&operation);
        let session = Session {
            vm: &vm,
            request,
            limit: self.exec.timeout,
        };
        let outcome = session.run(&client, &mut signals).await;
        if !self.rm {
            remind(&client, &vm, &display).await;
        }
        outcome
    }
}

/// The image's entrypoint with its own arguments, or with `arguments` if there are any.
fn whole_command(image: Option<&Image>, arguments: Vec<String>) -> Result<Vec<String>, ApiError> {
    let (entrypoint, default) = match image {
        Some(image) => (image.entrypoint.clone(), image.cmd.clone()),
        None => Default::default(),
    };
    let arguments = match arguments.is_empty() {
        true => default,
        false => arguments,
    };
    let command = [entrypoint, arguments].concat();
    match command.is_empty() {
        false => Ok(command),
        true => Err(ApiError::new(
            ErrorKind::Invalid,
            "the image does not say what it runs: it has neither an entrypoint nor a command",
        )
        .with_hint("say what to run behind `--`")),
    }
}

/// Says how to come back to a VM that is kept.
async fn remind(client: &Client, vm: &str, display: &Display) {
    // Without an answer it was deleted meanwhile, or the daemon is gone and the outcome says so.
    if let Ok(kept) = client.vm(vm).await {
        display.note(&reminder(kept.name.as_str(), kept.state));
    }
}

fn reminder(vm: &str, state: VmState) -> String {
    let (fact, way_back) = match state {
        VmState::Running => ("goes on running".to_owned(), ("stop:     ", "stop")),
        state => (format!("is kept ({state})"), ("start:    ", "start")),
    };
    format!(
        "VM `{vm}` {fact}\n  come back: banger vm exec {vm}\n  {} banger vm {} {vm}\n  delete:    banger vm delete {vm}",
        way_back.0, way_back.1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entrypoint_takes_the_arguments_in_place_of_its_own() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let image = |entrypoint: &[&str], cmd: &[&str]| Image {
            id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            name: "app".parse().unwrap(),
            digest: String::new(),
            source: String::new(),
            distro: String::new(),
            arch: String::new(),
            created_at: String::new(),
            size: banger_proto::size::ByteSize::from_mib(1),
            kernel: "k".parse().unwrap(),
            reference: None,
            env: [].into(),
            user: None,
            workdir: None,
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            labels: [].into(),
            managed: true,
            rootfs: None,
            problem: None,
        };
        let server = image(&["server", "-v"], &["--port", "80"]);
        for (image, arguments, expected) in [
            (&server, &[][..], &["server", "-v", "--port", "80"][..]),
            (&server, &["--help"], &["server", "-v", "--help"]),
            (&image(&[], &["sh"]), &[], &["sh"]),
            (&image(&[], &[]), &["ls"], &["ls"]),
        ] {
            let command = whole_command(Some(image), words(arguments)).unwrap();
            assert_eq!(command, expected);
        }
        assert!(whole_command(Some(&image(&[], &[])), Vec::new()).is_err());
        assert!(whole_command(None, Vec::new()).is_err());
    }

    #[test]
    fn a_kept_vm_says_how_to_come_back_stop_and_delete() {
        insta::assert_snapshot!(reminder("calm-otter", VmState::Running), @r"
        VM `calm-otter` goes on running
          come back: banger vm exec calm-otter
          stop:      banger vm stop calm-otter
          delete:    banger vm delete calm-otter
        ");
        insta::assert_snapshot!(reminder("calm-otter", VmState::Stopped), @r"
        VM `calm-otter` is kept (stopped)
          come back: banger vm exec calm-otter
          start:     banger vm start calm-otter
          delete:    banger vm delete calm-otter
        ");
    }
}
