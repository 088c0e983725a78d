//! Completes what is being typed in a shell: the script that `banger completion` prints runs
//! banger again with [`VARIABLE`] set, which answers and does nothing else.

use std::ffi::OsStr;
use std::process::ExitCode;
use std::time::Duration;

use banger_client::{Client, ClientError};
use banger_config::Paths;
use banger_proto::exit;
use clap::CommandFactory;
use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter};
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Zsh};
use tokio::time::timeout;

use crate::args::Cli;
use crate::commands::completion::Shell;

/// The environment variable by which a shell asks.
const VARIABLE: &str = "BANGER_COMPLETE";
/// How long the daemon has to name its things, while somebody waits with a key pressed.
const LIMIT: Duration = Duration::from_millis(500);

/// Answers a shell if one asks; `None` if this is an ordinary run.
pub(crate) fn answer_shell() -> Option<ExitCode> {
    std::env::var_os(VARIABLE)?;
    let answered = CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .try_complete(std::env::args_os(), None);
    match answered {
        Ok(false) => None,
        Ok(true) => Some(ExitCode::SUCCESS),
        Err(_) => Some(ExitCode::from(exit::FAILURE)),
    }
}

/// The script that makes a shell ask.
pub(crate) fn script(shell: Shell) -> Vec<u8> {
    let completer: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    completer
        .write_registration(VARIABLE, "banger", "banger", "banger", &mut script)
        .expect("writing into memory does not fail");
    script
}

/// The names of the VMs that the daemon knows, if it runs.
pub(crate) fn vm_names() -> Vec<CompletionCandidate> {
    let vms = ask(async |client| client.vms().await);
    let vms = vms.into_iter().flatten();
    vms.map(|vm| CompletionCandidate::new(vm.name.as_str()).help(Some(vm.state.as_str().into())))
        .collect()
}

/// Ends of a copy: paths of this host, and VMs with the colon behind which their paths stand.
pub(crate) fn places(typed: &OsStr) -> Vec<CompletionCandidate> {
    let mut places = PathCompleter::any().complete(typed);
    let typed = typed.to_string_lossy();
    let vms = vm_names().into_iter().filter_map(|vm| {
        let name = format!("{}:", vm.get_value().to_string_lossy());
        let fits = name.starts_with(&*typed);
        fits.then(|| CompletionCandidate::new(name).help(vm.get_help().cloned()))
    });
    places.extend(vms);
    places
}

/// The names of the images that are here, if the daemon runs.
pub(crate) fn image_names() -> Vec<CompletionCandidate> {
    let images = ask(async |client| client.images().await);
    let images = images.into_iter().flatten();
    images
        .map(|image| CompletionCandidate::new(image.name.as_str()))
        .collect()
}

/// The names of the catalog's images, if the daemon runs.
pub(crate) fn catalog_images() -> Vec<CompletionCandidate> {
    let catalog = ask(async |client| client.catalog(false).await);
    let images = catalog.into_iter().flat_map(|catalog| catalog.images);
    images
        .map(|image| CompletionCandidate::new(image.name.as_str()).help(Some(image.about.into())))
        .collect()
}

/// The names of the images that are here, and of those of the catalog.
pub(crate) fn all_images() -> Vec<CompletionCandidate> {
    let mut names = image_names();
    let more = catalog_images().into_iter();
    let is_new =
        |name: &CompletionCandidate| names.iter().all(|it| it.get_value() != name.get_value());
    let more: Vec<_> = more.filter(is_new).collect();
    names.extend(more);
    names
}

/// The names of the catalog's kernels, if the daemon runs.
pub(crate) fn catalog_kernels() -> Vec<CompletionCandidate> {
    let catalog = ask(async |client| client.catalog(false).await);
    let kernels = catalog.into_iter().flat_map(|catalog| catalog.kernels);
    kernels
        .map(|kernel| {
            CompletionCandidate::new(kernel.name.as_str()).help(Some(kernel.about.into()))
        })
        .collect()
}

/// The names of the kernels that are here, if the daemon runs.
pub(crate) fn kernel_names() -> Vec<CompletionCandidate> {
    let kernels = ask(async |client| client.kernels().await);
    let kernels = kernels.into_iter().flatten();
    kernels
        .map(|kernel| {
            CompletionCandidate::new(kernel.name.as_str()).help(Some(kernel.release.into()))
        })
        .collect()
}

/// The ids of the operations that the daemon remembers, if it runs.
pub(crate) fn operation_ids() -> Vec<CompletionCandidate> {
    let operations = ask(async |client| client.operations().await);
    let operations = operations.into_iter().flatten();
    operations
        .map(|operation| {
            let help = crate::render::operation::title(&operation);
            CompletionCandidate::new(operation.id.short()).help(Some(help.into()))
        })
        .collect()
}

/// Asks the daemon if one runs, and never starts one.
fn ask<T>(question: impl AsyncFn(Client) -> Result<T, ClientError>) -> Option<T> {
    let socket = Paths::from_env().ok()?.socket();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let answer = async { question(Client::connect(socket).await?).await };
    runtime
        .block_on(async { timeout(LIMIT, answer).await })
        .ok()?
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_asks_banger() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell)).unwrap();
            assert!(script.contains(VARIABLE), "{shell:?}");
        }
    }
}
