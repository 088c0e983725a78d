//! `banger-vsock-agent`: see the library.

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: banger-vsock-agent serve --unix PATH | --version";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["serve", "--unix", path] => serve(Path::new(path)),
        ["--version"] => {
            println!("banger-vsock-agent {}", banger_proto::VERSION);
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(banger_proto::exit::USAGE);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  caused by: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

type BoxedError = Box<dyn std::error::Error>;

fn serve(path: &Path) -> Result<(), BoxedError> {
    banger_agent::log::to_stderr();
    Ok(runtime()?.block_on(banger_agent::serve::serve_unix(path))?)
}

/// One thread: a guest's agent waits nearly always, and must be small.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
