//! `banger config`

use std::path::Path;

use banger_config::Config as ConfigFile;
use banger_config::defaults::{HostResources, ResolvedDefaults, resolve};
use banger_config::file::VmDefaults;
use banger_config::judge::judge;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::exit;
use clap::{Args, Subcommand};

use crate::args::Json;
use crate::failure::{Failure, Outcome};
use crate::output::{print, print_json};
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger config show
  banger config check";

#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Config {
    /// Print the config that is in force, defaults included
    Show(Show),
    /// Print the path of the config file
    Path,
    /// Check the config file, also whether this host can give what it says; nothing is printed
    /// if it is right
    Check,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    json: Json,
}

impl Config {
    pub(crate) fn run(self, settings: &Settings) -> Outcome {
        let path = settings.paths.config_file();
        match self {
            Self::Show(show) => show.run(&path, settings)?,
            Self::Path => print(&format!("{}\n", path.display()))?,
            Self::Check => return check(&path, settings),
        }
        Ok(0)
    }
}

/// Says everything that is wrong with the file, for this host too.
fn check(path: &Path, settings: &Settings) -> Outcome {
    let config = settings.config()?;
    // A file that is missing, or went away meanwhile, says nothing wrong.
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let problems = judge(path, &text, &config, HostResources::read());
    for problem in &problems {
        let error = ApiError::new(ErrorKind::Invalid, problem.to_string());
        settings.ui.error(&error);
    }
    match problems.is_empty() {
        true => Ok(0),
        false => Ok(exit::FAILURE),
    }
}

impl Show {
    fn run(self, path: &Path, settings: &Settings) -> Result<(), Failure> {
        let config = settings.config()?;
        let defaults = resolve(&config.vm_defaults, HostResources::read());
        match self.json.json {
            true => print_json(&with_defaults(config, &defaults)),
            false => print(&config_text(path, config, &defaults)),
        }
    }
}

fn with_defaults(config: ConfigFile, defaults: &ResolvedDefaults) -> ConfigFile {
    ConfigFile {
        vm_defaults: VmDefaults {
            vcpu: Some(defaults.vcpu.value),
            memory: Some(defaults.memory.value),
            disk_size: Some(defaults.disk_size.value),
            system_size: Some(defaults.system_size.value),
        },
        ..config
    }
}

/// The config as a file that says all of it, and where each VM default comes from.
fn config_text(path: &Path, config: ConfigFile, defaults: &ResolvedDefaults) -> String {
    let there = match path.exists() {
        true => "",
        false => " (not there)",
    };
    let top = ConfigFile {
        vm_defaults: VmDefaults::default(),
        ..config
    };
    let top = toml::to_string(&top).expect("the config has only plain values");
    let top = top.replace("\n[vm_defaults]\n", "");
    format!(
        "# {}{there}\n{}\n\n[vm_defaults]\nvcpu = {} # {}\nmemory = \"{}\" # {}\ndisk_size = \"{}\" # {}\nsystem_size = \"{}\" # {}\n",
        path.display(),
        top.trim_end(),
        defaults.vcpu.value,
        defaults.vcpu.origin,
        defaults.memory.value,
        defaults.memory.origin,
        defaults.disk_size.value,
        defaults.disk_size.origin,
        defaults.system_size.value,
        defaults.system_size.origin,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::size::ByteSize;

    #[test]
    fn what_is_shown_is_a_config_file_that_says_the_same() {
        let path = Path::new("/home/u/.config/banger/config.toml");
        let config =
            ConfigFile::parse(path, "vmm = \"qemu\"\n[vm_defaults]\nmemory = \"3G\"\n").unwrap();
        let host = HostResources {
            cpus: 8,
            memory: ByteSize::from_gib(32),
        };
        let defaults = resolve(&config.vm_defaults, host);
        let text = config_text(path, config.clone(), &defaults);
        insta::assert_snapshot!(text);
        let again = ConfigFile::parse(path, &text).unwrap();
        assert_eq!(again, with_defaults(config, &defaults));
    }
}
