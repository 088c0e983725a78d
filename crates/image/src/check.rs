//! What the host must have for images and kernels to be made, checked the same way by doctor
//! and by the code that needs it.

use std::path::Path;

use banger_proto::doctor::Check;

use crate::catalog::Catalogs;
use crate::debian::keyring::Keyring;
use crate::debian::mirror::{Family, Mirror};
use crate::disk;
use crate::image::ImageError;
use crate::store::StoreConfig;
use crate::tool::{DEPMOD, MKE2FS, MMDEBSTRAP, NEWUIDMAP, Tool};

/// What to do when the guest agent is missing.
pub(crate) const AGENT_FIX: &str =
    "install banger with `make install`, which puts the agent beside it";
/// User ids that a Debian system takes.
const USER_IDS: u64 = 65536;
/// Free space below which a first VM start fails.
const LEAST_ROOM: u64 = 4 << 30;
/// Free space below which it works, but not for long.
const GOOD_ROOM: u64 = 10 << 30;

/// All checks of this crate, in the order in which a first VM start needs them. Blocks for a
/// few file operations.
pub fn checks(config: &StoreConfig) -> Vec<Check> {
    vec![
        agent(&config.agent),
        room(&config.state_dir),
        catalog(config),
        mirror(config),
        ubuntu(config),
        keyring(),
        tool("image.depmod", "depmod, for the kernel's modules", DEPMOD),
        tool(
            "image.mmdebstrap",
            "mmdebstrap, which builds Debian images",
            MMDEBSTRAP,
        ),
        user_ids(),
        tool("image.mke2fs", "mke2fs, which formats disks", MKE2FS),
    ]
}

pub(crate) fn agent(path: &Path) -> Check {
    let (id, title) = ("image.agent", "the guest agent");
    match path.is_file() {
        true => Check::pass(id, title, path.display().to_string()),
        false => Check::fail(
            id,
            title,
            format!("there is no file `{}`", path.display()),
            AGENT_FIX,
        ),
    }
}

fn room(state: &Path) -> Check {
    let (id, title) = ("image.room", "room for images and disks");
    // The directory may not have been made yet.
    let nearest = state
        .ancestors()
        .find(|directory| directory.exists())
        .unwrap_or(state);
    let fix = "free some space, or move banger's state with BANGER_HOME";
    match disk::free_space(nearest) {
        Ok(free) => {
            let detail = format!("{} MiB are free at {}", free >> 20, state.display());
            match free {
                free if free < LEAST_ROOM => Check::fail(id, title, detail, fix),
                free if free < GOOD_ROOM => Check::warn(id, title, detail, fix),
                _ => Check::pass(id, title, detail),
            }
        }
        Err(error) => Check::warn(
            id,
            title,
            format!("cannot tell how much is free: {error}"),
            fix,
        ),
    }
}

fn mirror(config: &StoreConfig) -> Check {
    let mirror = Mirror::debian(config.debian_mirror.as_deref(), Path::new("/"));
    let detail = format!("{}, from {}", mirror.uri(), mirror.chosen_by);
    Check::pass("image.mirror", "the Debian mirror", detail)
}

fn ubuntu(config: &StoreConfig) -> Check {
    let (id, title) = ("image.ubuntu", "the Ubuntu mirror");
    let configured = config.ubuntu_mirror.as_deref();
    match Mirror::choose(Family::Ubuntu, configured, Path::new("/")) {
        Some(mirror) => {
            let detail = format!("{}, from {}", mirror.uri(), mirror.chosen_by);
            Check::pass(id, title, detail)
        }
        None => Check::pass(
            id,
            title,
            "none is known: `ubuntu-24.04` comes from a registry",
        ),
    }
}

fn catalog(config: &StoreConfig) -> Check {
    let (id, title) = ("image.catalog", "the catalog of images");
    let catalogs = Catalogs::open(config.catalog.clone(), config.catalogs());
    let current = catalogs.current();
    let serial = current.catalog.serial;
    match (&config.catalog, current.url) {
        (None, _) => Check::pass(id, title, format!("built in, serial {serial}")),
        (Some(_), Some(url)) => Check::pass(id, title, format!("serial {serial}, from {url}")),
        (Some(origin), None) if catalogs.old().is_empty() => Check::pass(
            id,
            title,
            format!(
                "built in, serial {serial}; nothing newer has come from {}",
                origin.url
            ),
        ),
        (Some(origin), None) => Check::warn(
            id,
            title,
            format!(
                "built in, serial {serial}: what came from {} is not newer, or not signed with \
                 `catalog_key`",
                origin.url
            ),
            "ask for it again: banger image list --available",
        ),
    }
}

fn keyring() -> Check {
    let detail = match Keyring::host_has_it() {
        true => "the host's debian-archive-keyring, and banger's own copy",
        false => "banger's own copy",
    };
    Check::pass("image.keyring", "the Debian archive's keys", detail)
}

fn tool(id: &str, title: &str, tool: Tool) -> Check {
    match tool.find() {
        Ok(path) => Check::pass(id, title, path.display().to_string()),
        Err(error) => Check::fail(id, title, error.to_string(), tool.fix()),
    }
}

fn user_ids() -> Check {
    let (id, title) = ("image.user-ids", "user ids to build images with");
    match require_user_ids() {
        Ok(()) if rustix::process::geteuid().is_root() => Check::pass(id, title, "root needs none"),
        Ok(()) => Check::pass(
            id,
            title,
            "/etc/subuid, /etc/subgid and newuidmap are as they should be",
        ),
        Err(error) => Check::fail(
            id,
            title,
            error.to_string(),
            error.hint().unwrap_or_default(),
        ),
    }
}

/// Fails unless this user is root or may map enough user ids for a Debian system.
pub(crate) fn require_user_ids() -> Result<(), ImageError> {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return Ok(());
    }
    NEWUIDMAP.find()?;
    let name = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(user.as_raw()))
        .ok()
        .flatten()
        .map_or_else(|| user.as_raw().to_string(), |user| user.name);
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if !grants(&text, &name, user.as_raw()) {
            return Err(ImageError::UserIds {
                problem: format!(
                    "{file} grants `{name}` no {USER_IDS} ids, which building an image needs"
                ),
                fix: format!(
                    "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name} \
                     (with a range that nobody else has)"
                ),
            });
        }
    }
    Ok(())
}

/// Whether a line `user:first:count` grants the user enough (`subuid(5)`).
fn grants(text: &str, name: &str, id: u32) -> bool {
    text.lines().any(|line| {
        let mut fields = line.trim().split(':');
        let user = fields.next().unwrap_or_default();
        let count = fields.nth(1).and_then(|count| count.parse::<u64>().ok());
        (user == name || user == id.to_string()) && count.is_some_and(|count| count >= USER_IDS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_are_granted_by_name_or_number_and_only_if_enough() {
        assert!(grants("other:1:65536\nann:100000:65536\n", "ann", 1000));
        assert!(grants("1000:100000:70000", "ann", 1000));
        for text in ["", "ann:100000:1000", "anna:1:65536", "ann:1", "ann:1:x"] {
            assert!(!grants(text, "ann", 1000), "{text}");
        }
    }

    #[test]
    fn every_check_that_does_not_pass_says_what_to_do() {
        let config = StoreConfig {
            state_dir: "/nonexistent/state".into(),
            cache_dir: "/nonexistent/cache".into(),
            agent: "/nonexistent/agent".into(),
            debian_mirror: None,
            ubuntu_mirror: None,
            catalog: None,
        };
        let checks = checks(&config);
        assert!(
            checks
                .iter()
                .any(|check| check.id == "image.agent" && check.fix.is_some())
        );
        for check in checks {
            assert_eq!(
                check.fix.is_some(),
                check.status != banger_proto::doctor::CheckStatus::Pass,
                "{check:?}"
            );
        }
    }
}
