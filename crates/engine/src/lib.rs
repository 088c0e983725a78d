//! The drivers of the processes that run VMs. An [`Engine`] launches [`Machine`]s;
//! [`adopt`] and [`release`] need no engine, so that they work when it is not to be had. What is
//! particular to one engine stays in its module.
//!
//! - [`Firecracker`]: where KVM is usable ([`probe`]) and the program is there;
//! - [`Qemu`]: `qemu-system-x86_64`, with KVM where it is usable ([`probe`]) and software
//!   emulation elsewhere;
//! - [`Fake`]: no VM at all, the guest agent as an ordinary process, for tests.
//!
//! All that a machine has on the host is named by its [`Place`], so that [`release`]
//! needs no memory of the launch.

mod adopt;
mod birth;
mod checks;
mod counters;
mod fake;
mod files;
mod firecracker;
mod machine;
mod place;
mod qemu;
mod reactor;
mod release;
mod signs;
mod socket;
mod spec;
mod survey;
mod tail;

pub mod probe;
pub mod process;

pub use adopt::adopt;
pub use checks::checks;
pub use counters::Counters;
pub use fake::Fake;
pub use firecracker::{Firecracker, FirecrackerMissing, FirecrackerUnusable};
pub use machine::{
    Activity, AdoptError, AgentStream, ControlError, Engine, Exit, ExitCause, LaunchError, Machine,
    MachineHandle, ReleaseError,
};
pub use place::{InvalidMark, Mark, Place};
pub use qemu::{Qemu, QemuMissing};
pub use release::{release, release_seen};
pub use signs::{DiskAccess, DiskError, Signs};
pub use spec::{Access, Disk, MachineSpec, Nic};
pub use survey::{Places, Program, Survey, firecracker_version, survey};
pub use tail::tail;
