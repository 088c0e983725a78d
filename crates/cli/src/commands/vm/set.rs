//! `banger vm set`

use std::collections::BTreeMap;
use std::time::Duration;

use banger_proto::api::SetVm;
use banger_proto::size::ByteSize;
use clap::{ArgGroup, Args};

use super::each::{Each, Words};
use crate::args::{label, label_key, size, vcpu};
use crate::failure::Outcome;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm set calm-otter --disk-size 50G
  banger vm set calm-otter --vcpu 4 --memory 8G        it must be stopped for these
  banger vm set calm-otter devbox --label team=a --unlabel draft
  banger vm set calm-otter --ttl 8h --no-nat

Disks grow and never shrink; a running guest gets the room at once. CPUs and memory can be
changed while the VM is down. Either everything that is named is changed, or nothing;
but one disk that has grown stays grown, with the rest changed, when the other one cannot.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct Set {
    /// Number of virtual CPUs; the VM must be down
    #[arg(long, value_name = "N", value_parser = vcpu, group = "change", allow_hyphen_values = true)]
    vcpu: Option<u32>,
    /// Memory, such as 4G; the VM must be down
    #[arg(long, value_name = "SIZE", value_parser = size, group = "change", allow_hyphen_values = true)]
    memory: Option<ByteSize>,
    /// Grow the work disk, which is /root, to this size
    #[arg(long, value_name = "SIZE", value_parser = size, group = "change", allow_hyphen_values = true)]
    disk_size: Option<ByteSize>,
    /// Grow the system disk, which keeps changes to the image, to this size
    #[arg(long, value_name = "SIZE", value_parser = size, group = "change", allow_hyphen_values = true)]
    system_size: Option<ByteSize>,
    /// Let the VM reach the outside
    #[arg(long, overrides_with = "no_nat", group = "change")]
    nat: bool,
    /// Keep the VM from reaching the outside
    #[arg(long, overrides_with = "nat", group = "change")]
    no_nat: bool,
    /// Set a label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label, group = "change")]
    label: Vec<(String, String)>,
    /// Take a label away; may be given several times
    #[arg(long, value_name = "KEY", value_parser = label_key, group = "change")]
    unlabel: Vec<String>,
    /// Delete the VM after this time from now (such as 30m, 8h, 7d), whatever it does then
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse_with_unit, conflicts_with = "no_ttl", group = "change")]
    ttl: Option<Duration>,
    /// Keep the VM until it is deleted
    #[arg(long, group = "change")]
    no_ttl: bool,
    #[command(flatten)]
    each: Each,
}

impl Set {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let words = Words {
            going_on: "changing",
            done: "changed",
        };
        let change = self.change();
        self.each
            .run(settings, words, async |client, vm| {
                client.set_vm(vm, &change).await
            })
            .await
    }

    /// What to ask of the daemon.
    fn change(&self) -> SetVm {
        let mut labels: BTreeMap<String, Option<String>> = BTreeMap::new();
        labels.extend(self.unlabel.iter().map(|key| (key.clone(), None)));
        let set = self.label.iter().cloned();
        labels.extend(set.map(|(key, value)| (key, Some(value))));
        SetVm {
            name: None,
            vcpu: self.vcpu,
            memory: self.memory,
            disk_size: self.disk_size,
            system_size: self.system_size,
            nat: match (self.nat, self.no_nat) {
                (false, false) => None,
                (nat, _) => Some(nat),
            },
            labels,
            ttl_s: match self.no_ttl {
                true => Some(0),
                false => self.ttl.map(crate::duration::whole_seconds),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Parsed {
        #[command(flatten)]
        set: Set,
    }

    fn change(words: &[&str]) -> Result<SetVm, clap::Error> {
        let words = ["x", "calm-otter"].into_iter().chain(words.iter().copied());
        Ok(Parsed::try_parse_from(words)?.set.change())
    }

    #[test]
    fn what_is_typed_is_asked_for() {
        let words = "--vcpu 3 --memory 1.5G --disk-size 20G --system-size 4096 --no-nat \
                     --label a=b=c --label d= --unlabel e --ttl 1.5h";
        let words: Vec<&str> = words.split_whitespace().collect();
        insta::assert_json_snapshot!(change(&words).unwrap(), @r#"
        {
          "vcpu": 3,
          "memory": 1610612736,
          "disk_size": 21474836480,
          "system_size": 4294967296,
          "nat": false,
          "labels": {
            "a": "b=c",
            "d": "",
            "e": null
          },
          "ttl_s": 5400
        }
        "#);
    }

    #[test]
    fn no_ttl_keeps_a_vm_and_nothing_at_all_is_refused() {
        assert_eq!(change(&["--no-ttl"]).unwrap().ttl_s, Some(0));
        assert!(change(&[]).is_err());
        assert!(change(&["--ttl", "1h", "--no-ttl"]).is_err());
    }

    #[test]
    fn a_short_ttl_is_not_taken_for_none() {
        assert_eq!(change(&["--ttl", "0.2s"]).unwrap().ttl_s, Some(1));
    }
}
