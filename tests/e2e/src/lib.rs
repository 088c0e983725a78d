//! What the whole-product tests share: a banger of their own ([`Home`]), commands with a
//! limit ([`Invocation`]), a terminal ([`Terminal`]), and the proof that nothing is left
//! ([`inventory`]).
//!
//! `cargo xtask test` gives these variables; without the first two a test is skipped.
//!
//! - `BANGER_TEST_BIN`: the directory with `banger`, `bangerd` and `banger-vsock-agent`
//! - `BANGER_TEST_ARTIFACTS`: the directory with `images/` and `kernels/`
//! - `BANGER_TEST_ENGINE`: `qemu` (default), `firecracker` or `fake`
//! - `BANGER_TEST_PATIENCE`: a factor for every limit, where all takes longer
//! - `BANGER_TEST_USER`: run banger as this user; needs root
//! - `BANGER_TEST_KEEP`: keep the homes of failed tests

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]
#![expect(
    clippy::missing_panics_doc,
    reason = "in a test harness a panic is how a test fails"
)]

mod archive;
mod files;
mod guard;
mod home;
pub mod inventory;
mod invocation;
mod terminal;
mod user;

pub use archive::{TAG, archive, busybox, has_busybox, system};
pub use files::{wait_for_words, wait_in};
pub use home::{Home, IMAGE};
pub use invocation::{Invocation, Output, Running, exits_within, pid_exits_within};
pub use terminal::Terminal;
pub use user::User;

/// Says why a test does not run; `cargo xtask test` counts these lines.
pub fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}
