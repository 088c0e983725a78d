//! The commands of `cargo xtask`.

pub mod bench;
pub mod build;
pub mod crash;
pub mod fuzz;
pub mod install;
pub mod lab;
pub mod lint;
pub mod quickstart;
pub mod smoke;
pub mod test;

use anyhow::Result;

/// Refuses what is left of the command line, for commands that take nothing more.
pub fn no_more(mut arguments: lexopt::Parser) -> Result<()> {
    match arguments.next()? {
        None => Ok(()),
        Some(argument) => Err(argument.unexpected().into()),
    }
}
