//! `banger`: one-command development sandboxes on microVMs.

use std::process::ExitCode;

fn main() -> ExitCode {
    banger_cli::main()
}
