//! How banger's programs on the host start other programs: the only crate that makes a
//! [`Command`], which `clippy.toml` sees to. What is started here is given nothing to read,
//! is found where administration tools are too, and, should it fail, is told of in the same
//! three things: the command, how it ended, and the last that it said.
//!
//! What is particular to one kind of process, such as an engine's rights, stays with it.

mod detach;
mod failure;
mod find;
mod run;

use std::ffi::OsStr;
use std::process::{Command, Stdio};

pub use detach::detach;
pub use failure::{ProcessFailure, last_lines, status};
pub use find::{find, search_path};
pub use run::{RunError, run};

/// A command that runs `program`, with nothing to read. What a shell would make of a name
/// with a space or a `;` in it is nobody's concern: there is none.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that the others are sent to"
)]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}
