//! Engines as a table, and one in full.

use banger_proto::api::{Engine, ProgramOrigin};
use jiff::Timestamp;

use crate::render::style::Style;
use crate::render::table::Table;
use crate::render::time::moment;

/// The table of `engine list`.
pub(crate) fn engine_table(engines: &[Engine]) -> String {
    let mut table = Table::new(["NAME", "USABLE", "VERSION", "FOUND", "PATH", "WHY"]);
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    for engine in engines {
        table.row([
            engine.name.to_string(),
            yes_or_no(engine.usable).to_owned(),
            or_none(&engine.version),
            engine.origin.map_or("-", found).to_owned(),
            or_none(&engine.path),
            engine.reason.clone(),
        ]);
    }
    table.render()
}

/// Which engine new VMs get, and why.
pub(crate) fn choice(engines: &[Engine]) -> Option<String> {
    let mut chosen = engines.iter().filter_map(|engine| {
        let because = engine.chosen.as_ref()?;
        Some(format!("new VMs get {}: {because}", engine.name))
    });
    chosen.next()
}

/// Everything about one engine, one fact a line.
pub(crate) fn engine_text(engine: &Engine, now: Timestamp, style: Style) -> String {
    let usable = match engine.usable {
        true => style.green("yes"),
        false => style.red("no"),
    };
    let mut facts: Vec<(&str, String)> = vec![
        ("name", engine.name.to_string()),
        ("node", engine.node.clone()),
        ("usable", format!("{usable} ({})", engine.reason)),
    ];
    let new_vms = match &engine.chosen {
        Some(because) => format!("get it ({because})"),
        None => "get another, unless `--engine` says so".to_owned(),
    };
    facts.push(("new VMs", new_vms));
    facts.extend(engine.version.iter().map(|it| ("version", it.clone())));
    if let Some(path) = &engine.path {
        let origin = engine.origin.map(|origin| format!(" ({})", found(origin)));
        facts.push(("program", format!("{path}{}", origin.unwrap_or_default())));
    }
    if let Some(installed) = &engine.installed {
        facts.extend([
            ("installed", installed.version.clone()),
            ("  when", moment(&installed.installed_at, now)),
            ("  from", installed.source.clone()),
            ("  sha256", installed.sha256.clone()),
        ]);
        let jailer = installed.jailer.as_ref();
        facts.extend(jailer.map(|jailer| ("  jailer", jailer.clone())));
    }
    if let Some(release) = &engine.release {
        facts.extend([
            ("release", release.version.clone()),
            ("  from", release.url.clone()),
            ("  sha256", release.sha256.clone()),
        ]);
    }
    facts.extend(engine.hint.iter().map(|hint| ("hint", hint.clone())));
    facts
        .iter()
        .map(|(name, value)| format!("{name:10} {value}\n"))
        .collect()
}

/// That what was installed is what the user says it is, if nothing else says so.
pub(crate) fn unverified(engine: &Engine) -> Option<String> {
    let installed = engine.installed.as_ref()?;
    let release = engine.release.as_ref();
    let known = release.is_some_and(|release| release.sha256 == installed.sha256);
    (!known).then(|| {
        format!(
            "it is believed because you named it: its SHA-256 is {}",
            installed.sha256
        )
    })
}

/// Why what was installed is not what VMs run on.
pub(crate) fn unused(engine: &Engine) -> Option<String> {
    match engine.origin {
        Some(ProgramOrigin::Config) => {
            let path = engine.path.as_deref().unwrap_or_default();
            Some(format!(
                "it is not used: `firecracker_bin` in the config names {path}"
            ))
        }
        Some(ProgramOrigin::Path) => {
            let path = engine.path.as_deref().unwrap_or_default();
            Some(format!("it is not used: PATH has {path}, which goes first"))
        }
        _ if !engine.usable => Some(format!("it cannot be used here: {}", engine.reason)),
        _ if engine.chosen.is_none() => {
            Some("`vmm` in the config chooses another for new VMs".to_owned())
        }
        _ => None,
    }
}

fn found(origin: ProgramOrigin) -> &'static str {
    match origin {
        ProgramOrigin::Config => "config",
        ProgramOrigin::Path => "PATH",
        ProgramOrigin::Installed => "installed",
    }
}

fn yes_or_no(yes: bool) -> &'static str {
    match yes {
        true => "yes",
        false => "no",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::api::{EngineKind, EngineRelease, InstalledEngine};

    fn qemu() -> Engine {
        Engine {
            name: EngineKind::Qemu,
            node: "workstation".into(),
            usable: true,
            reason: "VMs run in software: the CPU shows neither vmx nor svm".into(),
            hint: Some("switch on virtualisation".into()),
            version: Some("7.2".into()),
            path: Some("/usr/bin/qemu-system-x86_64".into()),
            origin: Some(ProgramOrigin::Path),
            chosen: Some("not Firecracker: the CPU shows neither vmx nor svm".into()),
            installed: None,
            release: None,
        }
    }

    fn firecracker() -> Engine {
        let program = "/home/u/.local/state/banger/engines/firecracker/current/firecracker";
        Engine {
            name: EngineKind::Firecracker,
            usable: false,
            reason: "it needs KVM: the CPU shows neither vmx nor svm".into(),
            version: Some("1.16.1".into()),
            path: Some(program.into()),
            origin: Some(ProgramOrigin::Installed),
            chosen: None,
            installed: Some(InstalledEngine {
                version: "1.16.1".into(),
                path: program.into(),
                jailer: Some(program.replace("current/firecracker", "current/jailer")),
                sha256: "38".repeat(32),
                source: "https://example.com/firecracker.tgz".into(),
                installed_at: "2026-03-02T11:55:00Z".into(),
            }),
            release: Some(EngineRelease {
                version: "1.16.1".into(),
                url: "https://example.com/firecracker.tgz".into(),
                sha256: "38".repeat(32),
            }),
            ..qemu()
        }
    }

    #[test]
    fn engines_line_up_and_the_choice_has_its_reason() {
        let missing = Engine {
            version: None,
            path: None,
            origin: None,
            reason: "there is no firecracker in PATH, and banger has installed none".into(),
            ..firecracker()
        };
        insta::assert_snapshot!(format!(
            "{}{}",
            engine_table(&[missing, qemu()]),
            choice(&[qemu()]).unwrap()
        ));
        assert_eq!(choice(&[firecracker()]), None);
    }

    #[test]
    fn an_engine_tells_everything() {
        let now = "2026-03-02T12:00:00Z".parse().unwrap();
        insta::assert_snapshot!(format!(
            "{}\n{}",
            engine_text(&firecracker(), now, Style::Plain),
            engine_text(&qemu(), now, Style::Plain)
        ));
    }

    #[test]
    fn what_is_installed_and_not_used_says_why() {
        let usable = Engine {
            usable: true,
            chosen: Some("KVM is usable".into()),
            ..firecracker()
        };
        let by = |origin| Engine {
            origin: Some(origin),
            path: Some("/usr/bin/firecracker".into()),
            ..usable.clone()
        };
        let not_chosen = Engine {
            chosen: None,
            ..usable.clone()
        };
        assert_eq!(unused(&usable), None);
        let said: Vec<String> = [
            by(ProgramOrigin::Config),
            by(ProgramOrigin::Path),
            firecracker(),
            not_chosen,
        ]
        .iter()
        .filter_map(unused)
        .collect();
        insta::assert_snapshot!(said.join("\n"));
        assert_eq!(unverified(&usable), None);
        let other = Engine {
            release: None,
            ..usable
        };
        assert!(unverified(&other).is_some_and(|note| note.ends_with(&"38".repeat(32))));
    }
}
