//! `banger-vsock-agent`: see the library.

use std::path::Path;
use std::process::ExitCode;

use banger_agent::boot::Start;

const USAGE: &str = "usage: banger-vsock-agent serve --unix PATH | --version";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        // Any process can do this, the first one of a PID namespace too.
        ["serve", "--unix", path] => serve(Path::new(path)),
        // Whatever the kernel has made of its command line's words.
        _ if rustix::process::getpid().is_init() => return boot(),
        ["guest"] => guest(&Start::First),
        ["guest-again", how] => guest(&Start::Again(how.to_owned())),
        ["keep"] => keep(),
        ["sftp"] => sftp(),
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
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

/// The kernel has started this program as the initramfs' `/init`.
fn boot() -> ExitCode {
    let error = banger_agent::boot::run();
    banger_agent::boot::say(&with_causes(&error));
    banger_agent::power::power_off(None);
    // Only if even that is not possible: the kernel panics, and the machine ends by that.
    ExitCode::FAILURE
}

/// Init has started this program, to keep the agent beside the image's init.
fn keep() -> Result<(), BoxedError> {
    match banger_agent::boot::keep()? {}
}

fn guest(start: &Start) -> Result<(), BoxedError> {
    let system = banger_agent::guest::settle(c"banger-agent");
    // An init may have covered the file's directory. The host reads the log's newest part over
    // the link all the same.
    if banger_agent::log::to_file(Path::new(banger_agent::guest::LOG_PATH)).is_err() {
        banger_agent::log::to_stderr();
    }
    Ok(runtime()?.block_on(banger_agent::guest::run(start, system))?)
}

fn sftp() -> Result<(), BoxedError> {
    Ok(runtime()?.block_on(banger_agent::sftp::serve_stdio())?)
}

/// The error and its causes on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
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
