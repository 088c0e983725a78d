//! Everything that a VM needs of this host, checked by the crates that need it. Works without
//! a running daemon and changes nothing.

use std::fmt::Display;
use std::path::Path;

use banger_config::defaults::{self, HostResources, Resolved};
use banger_config::{Config, Paths, instance};
use banger_engine::Places;
use banger_proto::doctor::{Check, CheckStatus, Report};
use banger_proto::id::InstanceId;

use crate::engines::Choice;
use crate::host;
use crate::store::{StoreError, schema};

/// Makes every check. Blocks for some hundred milliseconds: tools are asked for their versions.
pub fn report() -> Report {
    Report {
        version: banger_proto::VERSION.to_owned(),
        checks: checks(),
    }
}

/// A report as text, one check a line.
pub fn render(report: &Report) -> String {
    report
        .checks
        .iter()
        .map(|check| {
            let verdict = match check.status {
                CheckStatus::Pass => "pass",
                CheckStatus::Warn => "warn",
                CheckStatus::Fail => "FAIL",
            };
            let fix = check.fix.as_ref().map(|fix| format!("      fix: {fix}\n"));
            format!(
                "{verdict}  {}: {}\n{}",
                check.title,
                check.detail,
                fix.unwrap_or_default()
            )
        })
        .collect()
}

fn checks() -> Vec<Check> {
    let paths = match Paths::from_env() {
        Ok(paths) => paths,
        Err(error) => {
            return vec![Check::fail(
                "paths",
                "directories",
                error.to_string(),
                "set HOME, or BANGER_HOME to a short absolute path",
            )];
        }
    };
    let mut checks = vec![Check::pass(
        "paths.socket",
        "the daemon's socket",
        paths.socket().display().to_string(),
    )];
    checks.extend(
        [
            ("paths.config", "config directory", &paths.config),
            ("paths.state", "state directory", &paths.state),
            ("paths.cache", "cache directory", &paths.cache),
            ("paths.runtime", "runtime directory", &paths.runtime),
        ]
        .map(|(id, title, path)| writable(id, title, path)),
    );
    let config_file = paths.config_file();
    let config = match Config::load(&config_file) {
        Ok(config) => {
            let detail = match config_file.exists() {
                true => config_file.display().to_string(),
                false => format!(
                    "none at {}: everything has its default",
                    config_file.display()
                ),
            };
            checks.push(Check::pass("config", "config file", detail));
            config
        }
        Err(error) => {
            let fix = format!("mend {}, or remove it", config_file.display());
            checks.push(Check::fail("config", "config file", error.to_string(), fix));
            Config::default()
        }
    };
    checks.push(database(&paths));
    let survey = banger_engine::survey(&Places {
        qemu: config.qemu_bin.clone(),
        firecracker: config.firecracker_bin.clone(),
        installed_firecracker: Some(paths.installed_firecracker()),
    });
    checks.extend(banger_engine::checks(&survey));
    let (engine, because) = Choice::of(config.vmm, &survey);
    checks.push(Check::pass(
        "engine.choice",
        "engine of a new VM",
        format!("{engine} ({because})"),
    ));
    checks.extend(banger_image::checks(&host::store_config(
        &paths,
        &config,
        host::agent(),
    )));
    // Without one yet any will do: the checks ask what the host allows.
    let instance = instance::read(&paths.instance()).ok().flatten();
    let instance = instance.unwrap_or_else(InstanceId::new);
    match host::network_config(&paths, &instance, &config) {
        Ok(network) => checks.extend(banger_net::checks(&network)),
        Err(error) => checks.push(Check::fail(
            "net.config",
            "network",
            error.to_string(),
            "reinstall banger",
        )),
    }
    checks.extend(default_sizes(&config));
    checks
}

/// Whether the database can be used, and whether damaged ones are kept.
fn database(paths: &Paths) -> Check {
    const ID: &str = "state.database";
    const TITLE: &str = "database";
    let path = paths.database();
    match schema::open_to_read(&path) {
        // The next daemon brings it up to date.
        Ok(_) | Err(StoreError::Older { .. }) => {}
        Err(error) => {
            let fix = error.hint();
            let fix = fix.unwrap_or_else(|| format!("see {}", path.display()));
            return Check::fail(ID, TITLE, error.to_string(), fix);
        }
    }
    let kept = schema::damaged_ones(&path);
    let Some(newest) = kept.last() else {
        return Check::pass(ID, TITLE, path.display().to_string());
    };
    let detail = format!(
        "it was damaged, and is kept as {}; VMs were brought back as their own directories \
         describe them",
        newest.display()
    );
    let fix = format!(
        "see whether `banger vm list` shows all your VMs, then: rm {}.damaged-*",
        path.display()
    );
    Check::warn(ID, TITLE, detail, fix)
}

/// Whether banger may write to a directory, or make it.
fn writable(id: &str, title: &str, path: &Path) -> Check {
    let nearest = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    match rustix::fs::access(nearest, access) {
        Ok(()) if nearest.is_dir() => Check::pass(id, title, path.display().to_string()),
        Ok(()) => Check::fail(
            id,
            title,
            format!("{} is not a directory", nearest.display()),
            format!("move {} away", nearest.display()),
        ),
        Err(error) => Check::fail(
            id,
            title,
            format!("{}: {}", nearest.display(), std::io::Error::from(error)),
            format!(
                "make {} writable for you, or set BANGER_HOME",
                nearest.display()
            ),
        ),
    }
}

fn default_sizes(config: &Config) -> Vec<Check> {
    fn show<T: Display>(id: &str, title: &str, resolved: Resolved<T>) -> Check {
        Check::pass(
            id,
            title,
            format!("{} ({})", resolved.value, resolved.origin),
        )
    }
    let defaults = defaults::resolve(&config.vm_defaults, HostResources::read());
    vec![
        show("defaults.vcpu", "CPUs of a new VM", defaults.vcpu),
        show("defaults.memory", "memory of a new VM", defaults.memory),
        show(
            "defaults.disk_size",
            "work disk of a new VM",
            defaults.disk_size,
        ),
        show(
            "defaults.system_size",
            "system disk of a new VM",
            defaults.system_size,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_checked_by_its_nearest_ancestor() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        assert_eq!(writable("x", "y", &deep).status, CheckStatus::Pass);
        assert!(!deep.exists(), "doctor changes nothing");
        let file = dir.path().join("a");
        std::fs::write(&file, "").unwrap();
        let check = writable("x", "y", &deep);
        assert_eq!(check.status, CheckStatus::Fail);
        assert!(check.fix.is_some());
    }

    #[test]
    fn a_database_that_no_daemon_can_use_fails_with_what_to_do() {
        let home = tempfile::tempdir().unwrap();
        let paths = Paths {
            config: home.path().join("config"),
            state: home.path().to_owned(),
            cache: home.path().join("cache"),
            runtime: home.path().join("run"),
        };
        assert_eq!(database(&paths).status, CheckStatus::Pass);
        let opened = schema::open(&paths.database()).unwrap();
        assert_eq!(database(&paths).status, CheckStatus::Pass);
        let newer = opened.connection.pragma_update(None, "user_version", 99);
        newer.unwrap();
        let check = database(&paths);
        assert_eq!(check.status, CheckStatus::Fail);
        assert!(check.detail.contains("schema 99"), "{check:?}");
        assert!(check.fix.is_some());
    }

    #[test]
    fn a_report_as_text_shows_the_fix() {
        let report = Report {
            version: "1".to_owned(),
            checks: vec![
                Check::pass("a", "tool", "found"),
                Check::fail("b", "device", "missing", "buy one"),
            ],
        };
        insta::assert_snapshot!(render(&report), @r"
        pass  tool: found
        FAIL  device: missing
              fix: buy one
        ");
    }
}
