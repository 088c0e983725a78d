//! What Firecracker is told of a machine: its argument vector, and the requests to its API
//! (`firecracker.yaml`, its published API description) that configure and start it. Pure.
//!
//! A config file would save the requests, but not say why it is refused: an API that is asked
//! meanwhile takes the process down before it tells.

use std::ffi::OsString;
use std::os::fd::RawFd;

use banger_proto::agent::DiskRole;
use banger_proto::size::ByteSize;
use serde_json::{Value, json};

use super::api::Request;
use crate::Access;

/// Name of the API's socket, in the machine's directory, as the following.
pub(crate) const API: &str = "api";
/// Name of the socket behind which the guest's vsock is.
pub(crate) const LINK: &str = "link";

/// Name of the pipe into which the log goes.
pub(crate) const LOG: &str = "log";
/// Name of the pipe into which goes what is counted.
pub(crate) const METRICS: &str = "metrics";

/// The guest's address on its vsock. Each machine has a vsock of its own.
const GUEST_CID: u32 = 3;

/// What the API calls the network card.
const NIC: &str = "net";

/// A machine with everything that is opened for it. Numbers are descriptors of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub name: String,
    pub vcpu: u32,
    pub memory: ByteSize,
    pub kernel: RawFd,
    pub initrd: RawFd,
    pub cmdline: String,
    pub disks: Vec<PlanDisk>,
    pub nic: Option<PlanNic>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlanDisk {
    pub role: DiskRole,
    pub access: Access,
    pub fd: RawFd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlanNic {
    pub mac: String,
    pub tap: String,
}

/// The argument vector.
pub(super) fn argv(plan: &Plan) -> Vec<OsString> {
    let words = [
        "--id".to_owned(),
        plan.name.clone(),
        "--api-sock".to_owned(),
        API.to_owned(),
        "--log-path".to_owned(),
        LOG.to_owned(),
        "--level".to_owned(),
        "Info".to_owned(),
    ];
    words.into_iter().map(OsString::from).collect()
}

/// The requests that make the machine, the last of which starts it.
pub(super) fn requests(plan: &Plan) -> Vec<Request> {
    let put = |name, path: &str, body| Request {
        name,
        method: "PUT",
        path: path.to_owned(),
        body: Some(body),
    };
    let mut requests = vec![
        put("metrics", "/metrics", json!({ "metrics_path": METRICS })),
        put("machine-config", "/machine-config", machine(plan)),
        put("boot-source", "/boot-source", boot(plan)),
    ];
    requests.extend(plan.disks.iter().map(|disk| {
        let path = format!("/drives/{}", disk.role.as_str());
        put("drives", &path, drive(disk))
    }));
    requests.extend(plan.nic.iter().map(|nic| {
        let path = format!("/network-interfaces/{NIC}");
        put("network-interfaces", &path, interface(nic))
    }));
    let vsock = json!({ "guest_cid": GUEST_CID, "uds_path": LINK });
    requests.push(put("vsock", "/vsock", vsock));
    requests.push(put("entropy", "/entropy", json!({})));
    let start = json!({ "action_type": "InstanceStart" });
    requests.push(put("start", "/actions", start));
    requests
}

fn machine(plan: &Plan) -> Value {
    json!({
        "vcpu_count": plan.vcpu,
        "mem_size_mib": plan.memory.mib(),
        "smt": false,
    })
}

fn boot(plan: &Plan) -> Value {
    json!({
        "kernel_image_path": path_of(plan.kernel),
        "initrd_path": path_of(plan.initrd),
        "boot_args": plan.cmdline,
    })
}

fn drive(disk: &PlanDisk) -> Value {
    json!({
        "drive_id": disk.role.as_str(),
        "path_on_host": path_of(disk.fd),
        // The root is the initial file system's to find: nothing is added to the command line.
        "is_root_device": false,
        "is_read_only": disk.access == Access::ReadOnly,
        // By default a guest's flush is not passed on, and a host that loses its power loses
        // what the guest believes to be written.
        "cache_type": match disk.access {
            Access::ReadOnly => "Unsafe",
            Access::ReadWrite => "Writeback",
        },
    })
}

fn interface(nic: &PlanNic) -> Value {
    json!({
        "iface_id": NIC,
        "host_dev_name": nic.tap,
        "guest_mac": nic.mac,
    })
}

/// The request by which a disk's file is looked at again: its path is set, to the same one.
pub(super) fn same_drive(role: DiskRole, path: &str) -> Request {
    Request {
        name: "grow",
        method: "PATCH",
        path: format!("/drives/{}", role.as_str()),
        body: Some(json!({ "drive_id": role.as_str(), "path_on_host": path })),
    }
}

/// How the process opens what it has inherited.
pub(super) fn path_of(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firecracker::api::{ACTIVITY, Order};

    fn plan() -> Plan {
        Plan {
            name: "banger-1f2e-7".to_owned(),
            vcpu: 2,
            memory: ByteSize::from_mib(1536),
            kernel: 10,
            initrd: 11,
            cmdline: "console=ttyS0 quiet banger.disks=base,system".to_owned(),
            disks: vec![
                PlanDisk {
                    role: DiskRole::Base,
                    access: Access::ReadOnly,
                    fd: 12,
                },
                PlanDisk {
                    role: DiskRole::System,
                    access: Access::ReadWrite,
                    fd: 13,
                },
            ],
            nic: Some(PlanNic {
                mac: "02:1f:2e:00:00:07".to_owned(),
                tap: "bgr-1f2e-7".to_owned(),
            }),
        }
    }

    /// One request a line.
    fn shown(plan: &Plan) -> String {
        let lines = requests(plan).into_iter().map(|request| {
            let body = request.body.unwrap_or_default();
            format!("{} {} {body}\n", request.method, request.path)
        });
        lines.collect()
    }

    #[test]
    fn the_requests_that_make_a_machine() {
        insta::assert_snapshot!(shown(&plan()));
    }

    #[test]
    fn the_argument_vector_names_the_machine_and_what_is_inherited() {
        let words: Vec<String> = argv(&plan())
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        insta::assert_snapshot!(
            words.join(" "),
            @"--id banger-1f2e-7 --api-sock api --log-path log --level Info"
        );
    }

    /// What a field of the API is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        Text,
        Integer,
        Flag,
        One(&'static [&'static str]),
    }
    use Kind::{Flag, Integer, One, Text};

    /// Facts of the published API description (`firecracker.yaml` of 1.10 to 1.16): the
    /// definitions that are used here, their required fields, and the type of each field that
    /// all of these versions have.
    type Definition = (
        &'static str,
        &'static [&'static str],
        &'static [(&'static str, Kind)],
    );
    const DEFINITIONS: &[Definition] = &[
        (
            "BootSource",
            &["kernel_image_path"],
            &[
                ("kernel_image_path", Text),
                ("initrd_path", Text),
                ("boot_args", Text),
            ],
        ),
        (
            "MachineConfiguration",
            &["mem_size_mib", "vcpu_count"],
            &[
                ("mem_size_mib", Integer),
                ("vcpu_count", Integer),
                ("smt", Flag),
                ("track_dirty_pages", Flag),
            ],
        ),
        (
            "Drive",
            &["drive_id", "is_root_device"],
            &[
                ("drive_id", Text),
                ("is_root_device", Flag),
                ("is_read_only", Flag),
                ("path_on_host", Text),
                ("cache_type", One(&["Unsafe", "Writeback"])),
                ("io_engine", One(&["Sync", "Async"])),
            ],
        ),
        (
            "PartialDrive",
            &["drive_id"],
            &[("drive_id", Text), ("path_on_host", Text)],
        ),
        (
            "NetworkInterface",
            &["host_dev_name", "iface_id"],
            &[
                ("host_dev_name", Text),
                ("iface_id", Text),
                ("guest_mac", Text),
            ],
        ),
        (
            "Vsock",
            &["guest_cid", "uds_path"],
            &[("guest_cid", Integer), ("uds_path", Text)],
        ),
        ("EntropyDevice", &[], &[]),
        ("Metrics", &["metrics_path"], &[("metrics_path", Text)]),
        ("Vm", &["state"], &[("state", One(&["Paused", "Resumed"]))]),
        (
            "InstanceActionInfo",
            &["action_type"],
            &[(
                "action_type",
                One(&["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]),
            )],
        ),
    ];

    /// Whether the API takes `body` as `definition`, and what is wrong if not.
    fn check(definition: &str, body: &Value) -> Result<(), String> {
        let (_, required, fields) = DEFINITIONS
            .iter()
            .find(|(name, ..)| *name == definition)
            .unwrap();
        let body = body.as_object().ok_or("it is no object")?;
        for name in *required {
            if !body.contains_key(*name) {
                return Err(format!("{definition} lacks {name}"));
            }
        }
        for (name, value) in body {
            let (_, kind) = fields
                .iter()
                .find(|(known, _)| known == name)
                .ok_or(format!("{definition} has no {name}"))?;
            let fits = match kind {
                Text => value.is_string(),
                Integer => value.is_u64(),
                Flag => value.is_boolean(),
                One(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            };
            if !fits {
                return Err(format!("{definition}.{name} cannot be {value}"));
            }
        }
        Ok(())
    }

    #[test]
    fn every_body_is_what_the_published_description_says() {
        let mut all = requests(&plan());
        all.push(same_drive(DiskRole::Work, "/proc/self/fd/9"));
        let orders = [
            Order::PAUSE,
            Order::RESUME,
            Order::CTRL_ALT_DEL,
            Order::FLUSH_METRICS,
        ];
        all.extend(orders.map(Request::from));
        let mut checked = Vec::new();
        for request in all {
            let (collection, id) = match request.path[1..].split_once('/') {
                Some((collection, id)) => (collection, Some(id)),
                None => (&request.path[1..], None),
            };
            let (definition, id_field) = match (request.method, collection) {
                ("PUT", "machine-config") => ("MachineConfiguration", None),
                ("PUT", "boot-source") => ("BootSource", None),
                ("PUT", "drives") => ("Drive", Some("drive_id")),
                ("PATCH", "drives") => ("PartialDrive", Some("drive_id")),
                ("PUT", "network-interfaces") => ("NetworkInterface", Some("iface_id")),
                ("PUT", "vsock") => ("Vsock", None),
                ("PUT", "metrics") => ("Metrics", None),
                ("PUT", "entropy") => ("EntropyDevice", None),
                ("PUT", "actions") => ("InstanceActionInfo", None),
                ("PATCH", "vm") => ("Vm", None),
                other => panic!("there is no request {other:?}"),
            };
            let body = request.body.unwrap();
            assert_eq!(check(definition, &body), Ok(()));
            // The object that a path names is the one that the body describes.
            assert_eq!(id_field.map(|field| body[field].as_str().unwrap()), id);
            checked.push(definition);
        }
        checked.sort_unstable();
        checked.dedup();
        assert_eq!(checked.len(), DEFINITIONS.len());
        // InstanceInfo.state is one of `Not started`, `Running` and `Paused`.
        assert_eq!(ACTIVITY.map(|(word, _)| word), ["Running", "Paused"]);
    }

    #[test]
    fn the_check_finds_what_the_api_would_refuse() {
        for (definition, body) in [
            ("Vsock", json!({ "guest_cid": 3 })),
            ("Vsock", json!({ "guest_cid": "3", "uds_path": "v" })),
            ("Vm", json!({ "state": "Running" })),
            (
                "Drive",
                json!({ "drive_id": "a", "is_root_device": false, "id": 1 }),
            ),
        ] {
            assert!(check(definition, &body).is_err(), "{body}");
        }
    }

    #[test]
    fn a_machine_without_disks_and_network_is_whole() {
        let bare = Plan {
            disks: Vec::new(),
            nic: None,
            ..plan()
        };
        let shown = shown(&bare);
        assert!(!shown.contains("drives") && !shown.contains("network-interfaces"));
        assert!(shown.contains("/vsock") && shown.contains("InstanceStart"));
    }
}
