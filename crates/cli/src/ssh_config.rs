//! The text of ssh's config: banger's own part of it, and the lines by which a user's own file
//! includes that. Pure: no I/O.

use std::ffi::OsStr;
use std::path::Path;

use banger_proto::error::ApiError;

use crate::ssh_words::{config_word, proxy_word, unusable};

/// Stands before the line that includes banger's part.
const COMMENT: &str =
    "# `ssh NAME.vm` for banger's VMs; `banger ssh-config --uninstall` takes it away";

/// What banger's part is made of.
#[derive(Clone, Debug)]
pub(crate) struct Part<'a> {
    /// The `banger` program.
    pub(crate) program: &'a Path,
    /// The `BANGER_HOME` that it needs, if it is a banger of its own.
    pub(crate) home: Option<&'a OsStr>,
    /// The private key for VMs.
    pub(crate) identity: &'a Path,
    /// The host keys of the VMs.
    pub(crate) known_hosts: &'a Path,
}

impl Part<'_> {
    /// The part itself (ssh_config(5)).
    ///
    /// # Errors
    /// ssh cannot be given one of the paths.
    pub(crate) fn render(&self) -> Result<String, ApiError> {
        let text = |path: &OsStr| {
            let text = path.to_str().filter(|text| !text.contains('\n'));
            let text = text.ok_or_else(|| unusable(&path.to_string_lossy()));
            text.map(str::to_owned)
        };
        let program = proxy_word(&text(self.program.as_os_str())?);
        let home = match self.home {
            None => String::new(),
            Some(home) => format!("env BANGER_HOME={} ", proxy_word(&text(home)?)),
        };
        let identity = config_word(&text(self.identity.as_os_str())?)?;
        let known_hosts = config_word(&text(self.known_hosts.as_os_str())?)?;
        Ok(format!(
            "\
Host *.vm
    User root
    ProxyCommand {home}{program} ssh-proxy %h
    IdentityFile {identity}
    IdentitiesOnly yes
    UserKnownHostsFile {known_hosts}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"
        ))
    }
}

/// The lines at the top of a user's file that include banger's part.
///
/// # Errors
/// ssh cannot be given the path.
pub(crate) fn inclusion(part: &Path) -> Result<String, ApiError> {
    let shown = part.to_string_lossy();
    let text = part.to_str().ok_or_else(|| unusable(&shown))?;
    // In it `*` and `?` are wildcards, and there is no way around that.
    if text.contains(['*', '?', '[']) {
        return Err(unusable(text));
    }
    Ok(format!("{COMMENT}\nInclude {}\n\n", config_word(text)?))
}

/// A user's file with banger's lines at its top, where they are in force for every host. `None`:
/// it has them.
pub(crate) fn with_inclusion(file: &[u8], inclusion: &str) -> Option<Vec<u8>> {
    if file.starts_with(inclusion.as_bytes()) {
        return None;
    }
    let file = without_inclusion(file, inclusion).unwrap_or_else(|| file.to_vec());
    Some([inclusion.as_bytes(), &file].concat())
}

/// A user's file without banger's lines, and with all others as they were. `None`: it has none of
/// them.
pub(crate) fn without_inclusion(file: &[u8], inclusion: &str) -> Option<Vec<u8>> {
    if let Some(rest) = file.strip_prefix(inclusion.as_bytes()) {
        return Some(rest.to_vec());
    }
    // Somebody has moved them, or taken the empty line away.
    let ours: Vec<&[u8]> = inclusion.lines().map(str::as_bytes).collect();
    let is_ours = |line: &&[u8]| {
        let line = line.trim_ascii();
        !line.is_empty() && ours.contains(&line)
    };
    let lines = file.split_inclusive(|byte| *byte == b'\n');
    let kept: Vec<&[u8]> = lines.filter(|line| !is_ours(line)).collect();
    let kept = kept.concat();
    (kept.len() != file.len()).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ours() -> String {
        inclusion(Path::new("/home/u/.config/banger/ssh/config")).unwrap()
    }

    #[test]
    fn the_part_quotes_what_it_names() {
        let part = Part {
            program: Path::new("/opt/it's 100%/banger"),
            home: Some(OsStr::new("/tmp/a b")),
            identity: Path::new("/home/u/100% mine/id_ed25519"),
            known_hosts: Path::new("/home/u/.local/state/banger/ssh_known_hosts"),
        };
        insta::assert_snapshot!(part.render().unwrap());
        let usual = Part { home: None, ..part };
        assert!(usual.render().unwrap().contains("ProxyCommand '/opt/"));
        for strange in ["/a\"b", "/a\\b", "/a\nb"] {
            let strange = Part {
                identity: Path::new(strange),
                ..usual.clone()
            };
            assert!(strange.render().is_err());
        }
        assert!(inclusion(Path::new("/a*b")).is_err());
    }

    #[test]
    fn the_lines_come_to_the_top_and_go_without_a_trace() {
        for file in [
            "",
            "Host *\n    User me\n",
            "# no newline at the end",
            "\n\nHost a\r\n",
            "\u{fffd}\n",
        ] {
            let with = with_inclusion(file.as_bytes(), &ours()).unwrap();
            assert!(with.starts_with(ours().as_bytes()));
            assert_eq!(with_inclusion(&with, &ours()), None);
            let without = without_inclusion(&with, &ours()).unwrap();
            assert_eq!(without, file.as_bytes());
            assert_eq!(without_inclusion(&without, &ours()), None);
        }
    }

    #[test]
    fn lines_that_were_moved_are_found() {
        let moved = format!("Host *\n    User me\n{}", ours().trim_end());
        let with = with_inclusion(moved.as_bytes(), &ours()).unwrap();
        assert_eq!(with, format!("{}Host *\n    User me\n", ours()).as_bytes());
        let without = without_inclusion(moved.as_bytes(), &ours()).unwrap();
        assert_eq!(without, b"Host *\n    User me\n");
    }

    proptest! {
        #[test]
        fn no_other_line_is_touched(file in proptest::collection::vec(any::<u8>(), 0..200)) {
            let with = with_inclusion(&file, &ours()).unwrap();
            prop_assert_eq!(without_inclusion(&with, &ours()).unwrap(), file);
        }
    }
}
