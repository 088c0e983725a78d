//! The one place in this crate where processes are started, found and ended. How they are
//! started at all is `banger_process`'s concern.
//!
//! A machine's process outlives the daemon: it has a session of its own, so that no
//! terminal's signal reaches it; it inherits exactly the descriptors that it is given; and
//! it carries a [`crate::Mark`] in its environment, by which a later daemon finds it.

mod cgroup;
mod detached;
mod first;
mod identity;
mod jail;
mod look;
mod marked;
mod running;
mod space;

pub use banger_process::ProcessFailure;
pub use cgroup::{cgroup_path, cgroups, remove_cgroup};
pub use look::{Look, Presence};
pub use marked::{Marked, marked};
pub use running::{Ended, Process, ProcessId};

pub(crate) use cgroup::{Allowance, Cgroup};
pub(crate) use detached::Detached;
pub(crate) use identity::Identity;
pub(crate) use jail::{Jail, is_static, make_root};
pub(crate) use space::{Space, give_tap, name_of_tap};
