//! Which disk the host could not read or write, and why.
//!
//! Firecracker tells the guest, and goes on. What failed and why stands in its log, and of which
//! disk in its metrics: one line of the one has a count in the other.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use banger_proto::agent::DiskRole;
use tokio::sync::watch;

use crate::{Counters, DiskAccess, DiskError, Signs};

/// For how long after a look at the metrics there is no other one: a guest can have its requests
/// fail without end.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// What a line of the log begins with that tells of a failed request, behind the time and the
/// thread. What was to be done follows.
const FAILED: &str = "] Failed to execute ";
/// The disks whose metrics are looked at.
const DISKS: [DiskRole; 4] = [
    DiskRole::Base,
    DiskRole::System,
    DiskRole::Modules,
    DiskRole::Work,
];

/// A request that the host's system has failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Failure {
    access: DiskAccess,
    reason: String,
}

/// What a line of the log tells of a failed request, such as `… [banger-1f2e-7:fc_vcpu 0] Failed
/// to execute Out virtio block request: FileEngine(Sync(Transfer(IOError(Os { code: 28, kind:
/// StorageFull, message: "No space left on device" }))))`. Only what the system has said counts:
/// a guest can ask for what is not there.
pub(super) fn failure(line: &str) -> Option<Failure> {
    let (_, rest) = line.split_once(FAILED)?;
    let (request, rest) = rest.split_once(" virtio block request: ")?;
    let (_, rest) = rest.split_once("Os {")?;
    let (_, rest) = rest.split_once("message: \"")?;
    let (reason, _) = rest.split_once('"')?;
    let access = match request {
        "In" => DiskAccess::Read,
        "Out" | "Flush" => DiskAccess::Write,
        _ => return None,
    };
    Some(Failure {
        access,
        reason: reason.to_owned(),
    })
}

/// How many requests have failed of each disk, as far as that is known.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    /// The disks of which more have failed, as `counters` say.
    fn grown(&mut self, counters: &Counters) -> Vec<DiskRole> {
        let mut grown = Vec::new();
        for disk in DISKS {
            let group = format!("block_{}", disk.as_str());
            let failed = counters
                .iter()
                .find(|(of, name, _)| (*of, *name) == (&group, "invalid_reqs_count"))
                .map_or(0, |(_, _, count)| count);
            if self.0.insert(disk.as_str(), failed).unwrap_or(0) < failed {
                grown.push(disk);
            }
        }
        grown
    }

    /// Adds what has failed to the signs of a machine: of each disk of which more requests have
    /// failed. Who it is of two that fail at once, each in its own way, nothing tells.
    pub(super) fn tell(
        &mut self,
        failures: &[Failure],
        counters: &Counters,
        signs: &watch::Sender<Signs>,
    ) {
        for disk in self.grown(counters) {
            for Failure { access, reason } in failures {
                let error = DiskError {
                    disk,
                    access: *access,
                    reason: reason.clone(),
                    at: SystemTime::now(),
                };
                signs.send_if_modified(|signs| signs.add(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> String {
        format!("2026-11-27T18:00:00.123456789 [banger-1f2e-7:fc_vcpu 0] {words}")
    }

    #[test]
    fn a_failed_request_is_told_by_the_log() {
        let failed = |request: &str, error: &str| {
            let words = format!("Failed to execute {request} virtio block request: {error}");
            failure(&line(&words))
        };
        let full = "Os { code: 28, kind: StorageFull, message: \"No space left on device\" }";
        let told = |access, reason: &str| {
            Some(Failure {
                access,
                reason: reason.to_owned(),
            })
        };
        assert_eq!(
            failed(
                "Out",
                &format!("FileEngine(Sync(Transfer(IOError({full}))))")
            ),
            told(DiskAccess::Write, "No space left on device")
        );
        assert_eq!(
            failed("Flush", &format!("FileEngine(Sync(SyncAll({full})))")),
            told(DiskAccess::Write, "No space left on device")
        );
        let broken = "Os { code: 5, kind: Uncategorized, message: \"Input/output error\" }";
        assert_eq!(
            failed("In", &format!("FileEngine(Sync(Seek({broken})))")),
            told(DiskAccess::Read, "Input/output error")
        );
        // What a guest does wrong is no failure of the host's.
        for error in [
            "PartialTransfer { completed: 0, expected: 512 }",
            "FileEngine(Sync(Transfer(InvalidGuestAddress(GuestAddress(1)))))",
        ] {
            assert_eq!(failed("Out", error), None);
        }
        assert_eq!(failed("GetDeviceID", full), None);
        assert_eq!(failure(&line("Running Firecracker v1.16.1")), None);
    }

    #[test]
    fn a_failure_is_of_the_disk_that_counts_one_more() {
        let signs = watch::Sender::new(Signs::default());
        let mut counters = Counters::default();
        let mut tally = Tally::default();
        let full = [Failure {
            access: DiskAccess::Write,
            reason: "No space left on device".to_owned(),
        }];
        tally.tell(&full, &counters, &signs);
        assert_eq!(signs.borrow().disk_errors, []);
        for disk in ["work", "work", "system"] {
            counters.add(&format!("block_{disk}"), "invalid_reqs_count", 2);
            counters.add("block_base", "invalid_reqs_count", 0);
            tally.tell(&full, &counters, &signs);
        }
        let told: Vec<_> = signs
            .borrow()
            .disk_errors
            .iter()
            .map(|error| error.disk)
            .collect();
        assert_eq!(told, [DiskRole::Work, DiskRole::System]);
    }
}
