//! How fast banger is: each number beside its peer or limit, measured in the same run on the
//! same machine, because machines differ and are noisy.
//!
//! Nothing in here fails because a machine is slow.

pub mod agent;
pub mod bare;
pub mod bare_firecracker;
pub mod create;
pub mod daemon;
pub mod exec;
pub mod home;
pub mod link;
pub mod oci;
pub mod report;
pub mod rows;
pub mod run;
pub mod ssh;
pub mod timing;
