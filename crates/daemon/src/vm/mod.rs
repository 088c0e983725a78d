//! One VM: what it may do when ([`lifecycle`]), what all of it is called ([`plan`]), how its
//! parts come and go ([`stage`], [`start`], [`take_down`]), what it may become ([`bounds`],
//! [`change`]), how its logs stay bounded ([`bounded_logs`]), what is told of its disks
//! (`disk_warning`), and the one task that owns it ([`task`]).

pub mod bounded_logs;
pub mod bounds;
pub mod change;
mod disk_warning;
pub mod handles;
pub mod identity;
pub mod lifecycle;
pub mod machine_end;
pub mod plan;
pub mod record;
pub mod stage;
pub mod start;
pub mod take_down;
pub mod task;
