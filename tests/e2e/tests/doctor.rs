//! `banger doctor` and the other commands that tell how things stand.

use banger_e2e::Home;

#[test]
fn doctor_checks_everything_and_passes_where_vms_run() {
    let Some(home) = Home::new() else { return };
    let report = home.banger(["doctor", "--json"]).run().json();
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 8, "{checks:#?}");
    for check in checks {
        assert_ne!(check["status"], "fail", "{check:#}");
        // What is not well says what to do.
        if check["status"] == "warn" {
            assert!(check["fix"].is_string(), "{check:#}");
        }
    }
    let words = home.banger(["doctor"]).run().text();
    for check in checks {
        let title = check["title"].as_str().unwrap();
        assert!(words.contains(title), "no `{title}` in {words}");
    }
    assert_eq!(home.daemon(), None, "doctor needs no daemon");
}

#[test]
fn doctor_fails_with_the_fix_where_a_tool_is_missing() {
    let Some(home) = Home::new() else { return };
    let nothing = home.path().join("nothing");
    std::fs::create_dir(&nothing).unwrap();
    let output = home
        .banger(["doctor", "--json"])
        .env("PATH", &nothing)
        .run();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let failed: Vec<_> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["status"] == "fail")
        .collect();
    let fixes: String = failed
        .iter()
        .filter_map(|check| check["fix"].as_str())
        .collect();
    for package in ["passt", "mmdebstrap"] {
        assert!(fixes.contains(package), "no {package} in {failed:#?}");
    }
    assert!(
        failed.iter().all(|check| check["fix"].is_string()),
        "{failed:#?}"
    );
}

#[test]
fn the_daemon_is_started_shown_and_stopped_by_command() {
    let Some(home) = Home::new() else { return };
    assert_ne!(
        home.banger(["daemon", "status"]).run().status.code(),
        Some(0)
    );
    assert_eq!(home.daemon(), None, "status starts nothing");
    home.banger(["daemon", "start"]).run().exited_with(0);
    let status = home.banger(["daemon", "status", "--json"]).run().json();
    let daemon = home.daemon().expect("it runs").as_raw_nonzero().get();
    assert_eq!(status["pid"], daemon);
    let socket = home.banger(["daemon", "socket"]).run().text();
    assert_eq!(socket, home.paths().socket().display().to_string());
    home.banger(["daemon", "restart"]).run().exited_with(0);
    let status = home.banger(["daemon", "status", "--json"]).run().json();
    assert_ne!(status["pid"], daemon);
    assert!(!home.banger(["daemon", "logs"]).run().text().is_empty());
    home.banger(["daemon", "stop"]).run().exited_with(0);
    assert_eq!(home.daemon(), None);
}

#[test]
fn version_config_and_completions_need_no_daemon() {
    let Some(home) = Home::new() else { return };
    let version = home.banger(["version", "--json"]).run().json();
    assert_eq!(version["banger"], banger_proto::VERSION);
    let path = home.banger(["config", "path"]).run().text();
    assert_eq!(path, home.paths().config_file().display().to_string());
    home.banger(["config", "check"]).run().exited_with(0);
    let shown = home.banger(["config", "show"]).run().text();
    assert!(shown.contains("default_image_name"), "{shown}");
    for shell in ["bash", "zsh", "fish"] {
        let script = home.banger(["completion", shell]).run().text();
        assert!(script.contains("banger"), "{shell}");
    }
    assert_eq!(home.daemon(), None);
}
