//! What is run in a builder: the words of each package manager and init. Pure.

use std::collections::BTreeMap;
use std::io;

use banger_proto::api::BuildScript;

/// Where scripts are put in the guest; an image has nothing of it.
pub(super) const SCRIPTS: &str = "/var/tmp/banger-build";

/// One command.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Step {
    pub(super) command: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    /// How it is called in messages, if not by its words.
    pub(super) name: Option<String>,
    /// Not announced.
    pub(super) quiet: bool,
}

impl Step {
    fn of(words: &[&str]) -> Self {
        Self {
            command: words.iter().map(|&word| word.to_owned()).collect(),
            ..Self::default()
        }
    }

    pub(super) fn quiet(words: &[&str]) -> Self {
        Self {
            quiet: true,
            ..Self::of(words)
        }
    }

    fn and(mut self, words: &[String]) -> Self {
        self.command.extend_from_slice(words);
        self
    }

    fn with(mut self, key: &str, value: &str) -> Self {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }

    /// How it is called in messages.
    pub(super) fn shown(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.command.join(" "))
    }
}

/// How a distribution installs packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    Apt,
    Apk,
    Dnf,
    Xbps,
}

impl Manager {
    /// In the order in which they are looked for.
    pub(super) const ALL: [Self; 4] = [Self::Apt, Self::Apk, Self::Dnf, Self::Xbps];

    /// Its program.
    fn program(self) -> &'static str {
        match self {
            Self::Apt => "apt-get",
            Self::Apk => "apk",
            Self::Dnf => "dnf",
            Self::Xbps => "xbps-install",
        }
    }

    /// All programs, in words.
    pub(super) fn names() -> String {
        Self::ALL.map(Self::program).join(", ")
    }

    /// What succeeds where it is.
    pub(super) fn probe(self) -> [&'static str; 2] {
        [self.program(), "--version"]
    }

    /// The package that holds Docker.
    fn docker(self) -> &'static str {
        match self {
            Self::Apt => "docker.io",
            Self::Apk | Self::Xbps => "docker",
            Self::Dnf => "moby-engine",
        }
    }

    /// The commands that install `packages`.
    pub(super) fn install(self, packages: &[String], docker: bool) -> Vec<Step> {
        let mut packages = packages.to_vec();
        if docker {
            packages.push(self.docker().to_owned());
        }
        match self {
            Self::Apt => {
                let apt = |words: &[&str]| {
                    Step::of(&[&["apt-get", "--quiet"], words].concat())
                        .with("DEBIAN_FRONTEND", "noninteractive")
                };
                vec![
                    apt(&["update"]),
                    apt(&["install", "--yes", "--no-install-recommends", "--"]).and(&packages),
                    apt(&["clean"]),
                ]
            }
            Self::Apk => vec![Step::of(&["apk", "add", "--no-cache"]).and(&packages)],
            Self::Dnf => vec![
                Step::of(&["dnf", "install", "--assumeyes"]).and(&packages),
                Step::of(&["dnf", "clean", "all"]),
            ],
            Self::Xbps => vec![
                Step::of(&["xbps-install", "--sync", "--yes", "--update", "xbps"]),
                Step::of(&["xbps-install", "--sync", "--yes"]).and(&packages),
            ],
        }
    }
}

/// The commands by which `init` starts Docker at each boot. Where there is no init, nobody does.
pub(super) fn enable_docker(init: &str) -> Vec<Step> {
    match init {
        "systemd" => vec![Step::of(&["systemctl", "enable", "docker.service"])],
        "openrc" => vec![Step::of(&["rc-update", "add", "docker", "default"])],
        "runit" => vec![Step::of(&[
            "ln",
            "-sfn",
            "/etc/sv/docker",
            "/etc/runit/runsvdir/default/docker",
        ])],
        "sysvinit" => vec![Step::of(&["update-rc.d", "docker", "defaults"])],
        _ => Vec::new(),
    }
}

/// The file of a script in the guest: numbered, as two may have one name.
fn file_of(number: usize) -> String {
    format!("{number:02}")
}

/// The command that runs a script. A file without `#!` is one for `/bin/sh`.
pub(super) fn script(number: usize, script: &BuildScript) -> Step {
    let path = format!("{SCRIPTS}/{}", file_of(number));
    let command = match script.text.starts_with("#!") {
        true => vec![path],
        false => vec!["/bin/sh".to_owned(), path],
    };
    Step {
        command,
        name: Some(script.name.clone()),
        ..Step::default()
    }
}

/// The scripts as a tar archive.
pub(super) fn archive(scripts: &[BuildScript]) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (number, script) in scripts.iter().enumerate() {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o700);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(script.text.len() as u64);
        builder.append_data(&mut header, file_of(number), script.text.as_bytes())?;
    }
    builder.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn what_each_package_manager_is_told() {
        let packages = ["jq".to_owned(), "make".to_owned()];
        let mut told = String::new();
        for manager in Manager::ALL {
            for step in manager.install(&packages, true) {
                writeln!(told, "{}", step.shown()).unwrap();
            }
        }
        for init in ["systemd", "openrc", "runit", "sysvinit", "banger"] {
            let steps: Vec<String> = enable_docker(init).iter().map(Step::shown).collect();
            writeln!(told, "{init}: {}", steps.join("; ")).unwrap();
        }
        insta::assert_snapshot!(told);
    }

    #[test]
    fn a_script_is_run_by_what_its_first_line_says() {
        let with = |text: &str| BuildScript {
            name: "setup".to_owned(),
            text: text.to_owned(),
        };
        let path = format!("{SCRIPTS}/03");
        let named = script(3, &with("#!/bin/bash\n"));
        assert_eq!(named.command, std::slice::from_ref(&path));
        let plain = script(3, &with("true\n"));
        assert_eq!(plain.command, ["/bin/sh".to_owned(), path]);
        assert_eq!(plain.shown(), "setup");
    }
}
