//! Images of other makers: from a registry or an archive to a VM that runs a command.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]
#![expect(
    clippy::unwrap_used,
    reason = "what makes the registry and its images is a part of the tests"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use banger_e2e::{Home, Invocation, skip};

/// `ann:secret`, as `docker login` writes it.
const LOGIN: &str = r#""auth": "YW5uOnNlY3JldA==""#;
const BUSYBOX: &str = "/bin/busybox";

/// A registry on the loopback with TLS and a password, which ends with its value.
struct Registry {
    process: Child,
    /// `localhost:PORT`.
    host: String,
    directory: tempfile::TempDir,
}

impl Registry {
    /// `None`, after saying why, if this host lacks something.
    fn start() -> Option<Self> {
        let tools = ["docker-registry", "htpasswd", "openssl", "skopeo", "umoci"];
        for tool in tools {
            if !["/usr/bin", "/bin"]
                .iter()
                .any(|bin| Path::new(bin).join(tool).exists())
            {
                skip(&format!("{tool} is not installed"));
                return None;
            }
        }
        if !Path::new(BUSYBOX).exists() {
            skip("busybox-static is not installed");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let passwords = run("htpasswd", &["-Bbn", "ann", "secret"]);
        std::fs::write(path("passwords"), passwords).unwrap();
        run(
            "openssl",
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
                // It is the server's own: a CA's would not be taken for one.
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-keyout",
                &path("key.pem"),
                "-out",
                &path("ca.crt"),
            ],
        );
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             auth: {{htpasswd: {{realm: test, path: {}}}}}\n\
             http: {{addr: 127.0.0.1:0, tls: {{certificate: {}, key: {}}}}}\n",
            path("storage"),
            path("passwords"),
            path("ca.crt"),
            path("key.pem")
        );
        std::fs::write(path("registry.yml"), config).unwrap();
        let mut process = Command::new("docker-registry")
            .args(["serve", &path("registry.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        let port: String = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the registry ended");
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                break rest.chars().take_while(char::is_ascii_digit).collect();
            }
        };
        // Whatever else it says is of no interest, and must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Self {
            process,
            host: format!("localhost:{port}"),
            directory,
        })
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// Puts an image of an image layout there.
    fn push(&self, layout: &str, name: &str) {
        run(
            "skopeo",
            &[
                "copy",
                "--quiet",
                "--dest-creds=ann:secret",
                &format!("--dest-cert-dir={}", self.directory.path().display()),
                &format!("oci:{layout}"),
                &format!("docker://{}/{name}", self.host),
            ],
        );
    }

    /// `banger` in `home`, which trusts the registry's certificate.
    fn banger<'a>(&self, home: &Home, arguments: impl IntoIterator<Item = &'a str>) -> Invocation {
        home.banger(arguments)
            .env("SSL_CERT_FILE", self.certificate())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
    output.stdout
}

/// An image of busybox and its shell, without any init; returns its layout and tag.
fn busybox(directory: &Path) -> String {
    let layout = directory.join("busybox").display().to_string();
    let image = format!("{layout}:1");
    let links = directory.join("links");
    std::fs::create_dir(&links).unwrap();
    for applet in ["sh", "echo", "id", "pwd", "cat", "uname"] {
        std::os::unix::fs::symlink("busybox", links.join(applet)).unwrap();
    }
    run(
        "cp",
        &[BUSYBOX, &links.join("busybox").display().to_string()],
    );
    run("umoci", &["init", "--layout", &layout]);
    run("umoci", &["new", "--image", &image]);
    let insert = [
        "insert",
        "--image",
        &image,
        &links.display().to_string(),
        "/bin",
    ];
    run("umoci", &insert);
    run(
        "umoci",
        &[
            "config",
            "--image",
            &image,
            "--config.env",
            "GREETING=hello",
            "--config.env",
            "PATH=/bin",
            "--config.workingdir",
            "/bin",
            "--config.entrypoint",
            "/bin/echo",
            "--config.cmd",
            "from the image",
            "--config.label",
            "org.example.kind=test",
        ],
    );
    image
}

#[test]
fn an_image_of_a_private_registry_boots_without_an_init() {
    let Some(home) = Home::with_vms() else { return };
    let Some(registry) = Registry::start() else {
        return;
    };
    registry.push(&busybox(registry.directory.path()), "team/busybox:1");
    let reference = format!("{}/team/busybox:1", registry.host);

    // Nobody in particular may not have it, is told what to do, and no VM is made.
    let refused = registry.banger(&home, ["vm", "run", "--image", &reference, "--", "true"]);
    refused
        .run()
        .exited_with(125)
        .says(&format!("docker login {}", registry.host));
    let vms = home.banger(["vm", "list", "--json"]).run().json();
    assert_eq!(vms, serde_json::json!([]));

    let docker = home.path().join("home/.docker");
    std::fs::create_dir_all(&docker).unwrap();
    let login = format!("{{\"auths\": {{\"{}\": {{{LOGIN}}}}}}}", registry.host);
    std::fs::write(docker.join("config.json"), login).unwrap();
    home.hand_over();
    let script = "echo $GREETING; pwd; id -u; uname";
    let ran = registry
        .banger(
            &home,
            ["vm", "create", "--name", "box", "--image", &reference],
        )
        .run();
    ran.exited_with(0);
    let ran = home
        .banger(["vm", "exec", "box", "--", "sh", "-c", script])
        .run();
    assert_eq!(ran.text(), "hello\n/bin\n0\nLinux");
    let ssh = home
        .banger(["vm", "ssh", "box", "--", "echo over ssh"])
        .run();
    assert_eq!(ssh.text(), "over ssh");
    home.banger(["vm", "delete", "box"]).run().exited_with(0);

    // Here by now: nobody is asked for it.
    drop(registry);
    let entrypoint = ["vm", "run", "--rm", "--image", &reference, "--entrypoint"];
    assert_eq!(home.banger(entrypoint).run().text(), "from the image");
    let images = home.banger(["image", "list", "--json"]).run().json();
    let image = images
        .as_array()
        .unwrap()
        .iter()
        .find(|image| image["reference"] == reference);
    let image = image.expect("it is in the list");
    assert_eq!(image["labels"]["org.example.kind"], "test");
    assert!(image["digest"].as_str().unwrap().starts_with("sha256:"));
    home.wait_for_no_vm();
}

#[test]
fn an_image_of_one_static_binary_runs_from_an_archive_on_standard_input() {
    let Some(home) = Home::with_vms() else { return };
    let Some(registry) = Registry::start() else {
        return;
    };
    let directory = registry.directory.path();
    let layout = directory.join("scratch").display().to_string();
    let image = format!("{layout}:1");
    // Busybox is whatever it is called.
    run("umoci", &["init", "--layout", &layout]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["insert", "--image", &image, BUSYBOX, "/echo"]);
    run(
        "umoci",
        &["config", "--image", &image, "--config.entrypoint", "/echo"],
    );
    let archive = directory.join("scratch.tar").display().to_string();
    let to = format!("docker-archive:{archive}:example/scratch:1");
    run("skopeo", &["copy", "--quiet", &format!("oci:{image}"), &to]);
    let bytes = std::fs::read(&archive).unwrap();
    home.banger(["image", "pull", "-", "--name", "scratch"])
        .stdin(bytes)
        .run()
        .exited_with(0);
    let run = [
        "vm",
        "run",
        "--rm",
        "--image",
        "scratch",
        "--entrypoint",
        "--",
        "it",
        "runs",
    ];
    assert_eq!(home.banger(run).run().text(), "it runs");
    // There is no shell to give.
    home.banger(["vm", "run", "--rm", "--image", "scratch"])
        .run()
        .says("sh");
    home.wait_for_no_vm();
}
