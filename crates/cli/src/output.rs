//! All data that commands print, on standard output. A reader that has gone ends the command
//! quietly, as it ends other programs.

use std::io::{self, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Prints text as it is; whoever made it ended its lines.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(text.as_bytes())
}

/// Prints an object as the API has it.
pub(crate) fn print_json(value: &(impl Serialize + ?Sized)) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(value).expect("API objects have only string keys");
    text.push(b'\n');
    write(&text)
}

/// Prints an object as the API has it, in a line of its own.
pub(crate) fn print_json_line(value: &(impl Serialize + ?Sized)) -> Result<(), Failure> {
    let mut text = serde_json::to_vec(value).expect("API objects have only string keys");
    text.push(b'\n');
    write(&text)
}

/// Prints bytes at once.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::output(&error))
}
