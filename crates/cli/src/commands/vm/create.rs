//! `banger vm create`

use std::time::{Duration, Instant};

use banger_client::Client;
use banger_proto::api::{CreateVm, Operation};
use banger_proto::id::{LeaseId, RequestId};
use banger_proto::name::{ArtifactName, VmName};
use banger_proto::size::ByteSize;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::args::{EngineArg, Json, Quiet, label, size, vcpu};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::follow::{self, CalledOff};
use crate::output::{print, print_json};
use crate::progress::{Detail, Display, Verbosity};
use crate::render::time::took;
use crate::settings::Settings;
use crate::signals::Signals;
use crate::source::{self, ImageName};

const EXAMPLES: &str = "\
Examples:
  banger vm create
  banger vm create --name devbox --vcpu 4 --memory 8G --disk-size 50G
  banger vm create --no-start --image debian-trixie --json
  banger vm create --ttl 8h --label team=a
  banger vm create --no-wait

With --no-wait the operation's id and the VM's name are printed at once; `banger operation
follow` and `banger vm wait` wait for it later.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Create {
    #[command(flatten)]
    vm: VmArgs,
    /// Make the VM and do not start it
    #[arg(long)]
    no_start: bool,
    /// Do not wait until the VM is ready
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

/// What a new VM shall be.
#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    /// The VM's name: a DNS label [default: two words, such as calm-otter]
    #[arg(long, help_heading = "VM options")]
    name: Option<VmName>,
    /// The image to boot, or NAME:TAG of a registry; got first if it is not here [default: default_image_name of the config]
    #[arg(long, help_heading = "VM options", add = ArgValueCandidates::new(complete::all_images))]
    image: Option<ImageName>,
    /// Number of virtual CPUs [default: a quarter of the host's, 1 to 4]
    #[arg(long, value_name = "N", value_parser = vcpu, allow_hyphen_values = true, help_heading = "VM options")]
    vcpu: Option<u32>,
    /// Memory, such as 512M or 4G [default: an eighth of the host's, 512M to 8G]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true, help_heading = "VM options")]
    memory: Option<ByteSize>,
    /// Size of the work disk, which is /root [default: 8G]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true, help_heading = "VM options")]
    disk_size: Option<ByteSize>,
    /// Size of the system disk, which keeps changes to the image [default: 8G]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true, help_heading = "VM options")]
    system_size: Option<ByteSize>,
    /// Let the VM reach the outside (the default)
    #[arg(long, overrides_with = "no_nat", help_heading = "VM options")]
    nat: bool,
    /// Keep the VM from reaching the outside
    #[arg(long, overrides_with = "nat", help_heading = "VM options")]
    no_nat: bool,
    /// The engine to run it with [default: vmm of the config, or the best that works here]
    #[arg(long, value_enum, help_heading = "VM options")]
    engine: Option<EngineArg>,
    /// Mark the VM; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label, help_heading = "VM options")]
    label: Vec<(String, String)>,
    /// Delete the VM after this time (such as 30m, 8h, 7d), whatever it does then
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse_with_unit, help_heading = "VM options")]
    ttl: Option<Duration>,
}

impl VmArgs {
    /// Gets the image if it is one of a registry, and remembers what it is called here.
    pub(super) async fn get_image(
        &mut self,
        client: &Client,
        display: &Display,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        if let Some(image) = &self.image {
            let name = source::at_hand(client, image, display, signals).await?;
            self.image = Some(ImageName::Ours(name));
        }
        Ok(())
    }

    /// The image's name, once it is known.
    pub(super) fn image(&self) -> Option<ArtifactName> {
        self.image.as_ref().map(|image| match image {
            ImageName::Ours(name) => name.clone(),
            ImageName::Reference(reference) => reference.suggested_name(),
        })
    }

    /// What to ask of the daemon.
    pub(super) fn request(self, no_start: bool, lease: Option<LeaseId>) -> CreateVm {
        CreateVm {
            image: self.image(),
            name: self.name,
            vcpu: self.vcpu,
            memory: self.memory,
            disk_size: self.disk_size,
            system_size: self.system_size,
            engine: self.engine.map(Into::into),
            nat: match (self.nat, self.no_nat) {
                (false, false) => None,
                (nat, _) => Some(nat),
            },
            labels: self.label.into_iter().collect(),
            ttl_s: self.ttl.map(crate::duration::whole_seconds),
            no_start,
            lease,
        }
    }
}

impl Create {
    pub(crate) async fn run(mut self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        self.vm.get_image(&client, &display, &mut signals).await?;
        let request = self.vm.request(self.no_start, None);
        if self.no_wait {
            let (operation, called_off) = begin(&client, &request, &mut signals).await?;
            if let Some(called_off) = called_off {
                let progress = display.operation(&title(&operation), Detail::Stages);
                follow::called_off(&client, &operation, progress, &mut signals, called_off).await?;
            }
            match self.json.json {
                true => print_json(&operation)?,
                false => print(&format!("{} {}\n", operation.id, vm_of(&operation)))?,
            }
            return Ok(0);
        }
        let operation = create(&client, &request, &display, &mut signals).await?;
        let name = vm_of(&operation);
        if self.json.json {
            print_json(&client.vm(&name).await?)?;
        } else {
            print(&format!("{name}\n"))?;
        }
        Ok(0)
    }
}

/// Makes a VM; a signal calls that off.
pub(super) async fn create(
    client: &Client,
    request: &CreateVm,
    display: &Display,
    signals: &mut Signals,
) -> Result<Operation, Failure> {
    let began = Instant::now();
    let (operation, called_off) = begin(client, request, signals).await?;
    let progress = display.operation(&title(&operation), Detail::Stages);
    let operation = match called_off {
        None => follow::or_call_off(client, &operation, progress, signals).await?,
        Some(signal) => follow::called_off(client, &operation, progress, signals, signal).await?,
    };
    let name = vm_of(&operation);
    let state = if request.no_start { "created" } else { "ready" };
    display.note(&format!(
        "VM `{name}` is {state} after {}",
        took(began.elapsed())
    ));
    Ok(operation)
}

fn title(operation: &Operation) -> String {
    format!("creating VM `{}`", vm_of(operation))
}

/// Asks for the VM. A signal that comes before the answer is given back with it: what it calls
/// off must have begun to be known. A second one ends the waiting.
async fn begin(
    client: &Client,
    request: &CreateVm,
    signals: &mut Signals,
) -> Result<(Operation, Option<CalledOff>), Failure> {
    let key = RequestId::new();
    let mut asking = std::pin::pin!(client.create_vm(request, Some(key.as_str())));
    let mut called_off = None;
    let result = loop {
        tokio::select! {
            result = &mut asking => break result,
            signal = signals.next() => match called_off {
                None => called_off = Some(CalledOff::by(signal)),
                Some(_) => return Err(Failure::silent(signal.status())),
            },
        }
    };
    Ok((result?, called_off))
}

/// What to call the VM that an operation is about.
pub(super) fn vm_of(operation: &Operation) -> String {
    match (&operation.vm_name, &operation.vm) {
        (Some(name), _) => name.to_string(),
        (None, Some(id)) => id.to_string(),
        (None, None) => "?".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Parsed {
        #[command(flatten)]
        vm: VmArgs,
    }

    fn request(words: &[&str]) -> CreateVm {
        let words = std::iter::once(&"x").chain(words);
        Parsed::try_parse_from(words)
            .unwrap()
            .vm
            .request(false, None)
    }

    #[test]
    fn what_is_left_out_is_left_to_the_daemon() {
        assert_eq!(request(&[]), CreateVm::default());
    }

    #[test]
    fn what_is_typed_is_asked_for() {
        let request = request(&[
            "--name",
            "devbox",
            "--vcpu",
            "3",
            "--memory",
            "1.5G",
            "--disk-size",
            "20G",
            "--system-size",
            "4096",
            "--no-nat",
            "--engine",
            "qemu",
            "--label",
            "a=b=c",
            "--ttl",
            "1.5h",
        ]);
        insta::assert_json_snapshot!(request);
    }

    #[test]
    fn the_last_of_nat_and_no_nat_counts() {
        assert_eq!(request(&["--no-nat", "--nat"]).nat, Some(true));
        assert_eq!(request(&["--nat", "--no-nat"]).nat, Some(false));
    }
}
