//! `banger ssh-config`: `ssh NAME.vm` for every program that reads ssh's config.
//!
//! What is banger's own stands in a file of banger's own. Of the user's files only
//! `~/.ssh/config` is touched: it gets the lines that include that one.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use banger_proto::error::{ApiError, ErrorKind};
use clap::Args;

use crate::failure::{Failure, Outcome};
use crate::output::print;
use crate::settings::Settings;
use crate::ssh_config::{Part, inclusion, with_inclusion, without_inclusion};

const EXAMPLES: &str = "\
Examples:
  banger ssh-config
  banger ssh-config --install
  banger ssh-config --uninstall

Afterwards `ssh NAME.vm`, scp, sftp, rsync and editors reach VMs by name, without a network and
with their host keys pinned.";

/// Says in banger's part that `~/.ssh/config` was made for it.
const MADE: &str = "# ~/.ssh/config was made for this";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SshConfig {
    /// Have ~/.ssh/config include it, at its top
    #[arg(long, conflicts_with = "uninstall")]
    install: bool,
    /// Take it away again
    #[arg(long)]
    uninstall: bool,
}

impl SshConfig {
    pub(crate) fn run(self, settings: &Settings) -> Outcome {
        let part = settings.paths.ssh_config();
        if self.uninstall {
            let users = UsersFile::find()?;
            let was_there = uninstall(&users, &part)?;
            settings.ui.note(&match was_there {
                true => format!("`{}` no longer names banger's VMs", users.shown.display()),
                false => "it was not installed".to_owned(),
            });
            return Ok(0);
        }
        let text = text(settings)?;
        if !self.install {
            print(&text)?;
            return Ok(0);
        }
        let users = UsersFile::find()?;
        let is_new = install(&users, &part, &text)?;
        settings.ui.note(&match is_new {
            true => format!(
                "`ssh NAME.vm` reaches your VMs now: `{}` includes `{}`",
                users.shown.display(),
                part.display()
            ),
            false => "`ssh NAME.vm` reaches your VMs already".to_owned(),
        });
        Ok(0)
    }
}

/// Banger's part.
fn text(settings: &Settings) -> Result<String, Failure> {
    let config = settings.config()?;
    let program = std::env::current_exe()
        .map_err(|error| Failure::system("could not find banger's own program", &error))?;
    let home: Option<OsString> = std::env::var_os("BANGER_HOME").filter(|home| !home.is_empty());
    let identity = config.ssh_key_path;
    let part = Part {
        program: &program,
        home: home.as_deref(),
        identity: &identity.unwrap_or_else(|| settings.paths.ssh_key()),
        known_hosts: &settings.paths.ssh_known_hosts(),
    };
    Ok(part.render()?)
}

/// The user's own config of ssh.
struct UsersFile {
    /// As the user knows it.
    shown: PathBuf,
    /// The file itself, where that is a link to one.
    path: PathBuf,
    /// What it holds; `None` if it is not there.
    content: Option<Vec<u8>>,
}

impl UsersFile {
    fn find() -> Result<Self, Failure> {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        let home = home.ok_or_else(|| {
            ApiError::new(ErrorKind::Precondition, "HOME is not set")
                .with_hint("set it to your home directory, in which ssh looks for `.ssh/config`")
        })?;
        let shown = Path::new(&home).join(".ssh/config");
        let path = fs::canonicalize(&shown).unwrap_or_else(|_| shown.clone());
        let content = match fs::read(&path) {
            Ok(content) => Some(content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(could_not("read", &shown, &error)),
        };
        Ok(Self {
            shown,
            path,
            content,
        })
    }

    /// Replaces what it holds, at once or not at all.
    fn write(&self, content: &[u8]) -> Result<(), Failure> {
        let failed = |error: io::Error| could_not("write", &self.shown, &error);
        // ssh wants both to be the user's alone.
        let mode = fs::metadata(&self.path).map_or(0o600, |file| file.permissions().mode());
        replace(&self.path, content, mode).map_err(failed)
    }

    fn remove(&self) -> Result<(), Failure> {
        let failed = |error| could_not("remove", &self.shown, &error);
        fs::remove_file(&self.path).map_err(failed)
    }
}

/// Says whether it was not there before.
fn install(users: &UsersFile, part: &Path, text: &str) -> Result<bool, Failure> {
    let was_made =
        users.content.is_none() || fs::read_to_string(part).is_ok_and(|text| is_made(&text));
    let text = match was_made {
        true => format!("{MADE}\n{text}"),
        false => text.to_owned(),
    };
    replace(part, text.as_bytes(), 0o600).map_err(|error| could_not("write", part, &error))?;
    let content = users.content.as_deref().unwrap_or_default();
    match with_inclusion(content, &inclusion(part)?) {
        None => Ok(false),
        Some(content) => users.write(&content).map(|()| true),
    }
}

/// Says whether it was there before.
fn uninstall(users: &UsersFile, part: &Path) -> Result<bool, Failure> {
    let was_made = fs::read_to_string(part).is_ok_and(|text| is_made(&text));
    let content = users.content.as_deref().unwrap_or_default();
    let without = without_inclusion(content, &inclusion(part)?);
    match &without {
        None => {}
        Some(rest) if rest.is_empty() && was_made => users.remove()?,
        Some(rest) => users.write(rest)?,
    }
    match fs::remove_file(part) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(without.is_some()),
        Err(error) => Err(could_not("remove", part, &error)),
    }
}

fn is_made(text: &str) -> bool {
    text.starts_with(MADE)
}

/// Writes a file by renaming a finished one into its place; directories that are missing are
/// made for the user alone.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let mut draft = tempfile::Builder::new()
        .prefix(".banger-")
        .permissions(Permissions::from_mode(mode & 0o7777))
        .tempfile_in(directory)?;
    draft.write_all(content)?;
    draft.as_file().sync_all()?;
    draft.persist(path)?;
    Ok(())
}

fn could_not(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::system(format!("could not {what} `{}`", path.display()), error)
}
