//! How other programs are run: shown before they start, and their failure named.

use std::fmt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` with this terminal and waits for it.
///
/// # Errors
/// It cannot be started, or its status is not 0.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = Shown(command).to_string();
    eprintln!("$ {shown}");
    let status = command
        .status()
        .with_context(|| format!("could not start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// Runs `command` and returns what it wrote to standard output.
///
/// # Errors
/// It cannot be started, its status is not 0, or its output is not text.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = Shown(command).to_string();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of `{shown}` is no text"))
}

/// Runs `command` without showing it, and returns its standard output. What it says on
/// standard error is in the error, should it fail.
///
/// # Errors
/// As [`output`].
pub fn quiet_output(command: &mut Command) -> Result<String> {
    let shown = Shown(command).to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not start `{shown}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed: {}\n{said}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of `{shown}` is no text"))
}

/// Runs `command` without showing it.
///
/// # Errors
/// As [`run`].
pub fn run_quietly(command: &mut Command) -> Result<()> {
    quiet_output(command).map(drop)
}

/// Runs `command`, which may leave something in the background, with nothing to read and
/// nowhere to write.
///
/// # Errors
/// As [`run`].
pub fn run_detached(command: &mut Command) -> Result<()> {
    let shown = Shown(command).to_string();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("could not start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// A command as a person would read it: arguments, without the environment.
struct Shown<'a>(&'a Command);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = std::path::Path::new(self.0.get_program());
        let name = program.file_name().unwrap_or(program.as_os_str());
        write!(f, "{}", name.to_string_lossy())?;
        for argument in self.0.get_args() {
            write!(f, " {}", argument.to_string_lossy())?;
        }
        Ok(())
    }
}
