//! A real registry (Debian's `docker-registry`) on the loopback, with TLS and a password.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use banger_proto::api::RegistryAuth;

use crate::tool::Tool;

const fn tool(name: &'static str, package: &'static str) -> Tool {
    Tool { name, package }
}
const DOCKER_REGISTRY: Tool = tool("docker-registry", "docker-registry");
const SKOPEO: Tool = tool("skopeo", "skopeo");
const HTPASSWD: Tool = tool("htpasswd", "apache2-utils");
const OPENSSL: Tool = tool("openssl", "openssl");

/// A running one, which ends with its value.
pub(super) struct Registry {
    process: Child,
    /// Its host and port.
    pub(super) address: String,
    directory: tempfile::TempDir,
}

impl Registry {
    /// Starts one that this process trusts; `None`, with a word, where that cannot be.
    pub(super) fn start() -> Option<Self> {
        for tool in [DOCKER_REGISTRY, SKOPEO, HTPASSWD, OPENSSL] {
            if let Err(error) = tool.find() {
                eprintln!("skipped: {error}");
                return None;
            }
        }
        if std::env::var_os("NEXTEST").is_none() {
            eprintln!("skipped: only nextest gives a test an environment of its own");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let passwords = run(HTPASSWD, ["-Bbn", "ann", "secret"]);
        std::fs::write(path("passwords"), passwords).unwrap();
        make_certificate(directory.path());
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             auth: {{htpasswd: {{realm: test, path: {}}}}}\n\
             http: {{addr: 127.0.0.1:0, tls: {{certificate: {}, key: {}}}}}\n",
            path("storage").display(),
            path("passwords").display(),
            path("ca.crt").display(),
            path("key.pem").display()
        );
        std::fs::write(path("registry.yml"), config).unwrap();
        // SAFETY: this process is this test's alone, and no other thread of it is running but the
        // one that waits for it.
        unsafe { std::env::set_var("SSL_CERT_FILE", path("ca.crt")) };
        let mut process = banger_process::command(DOCKER_REGISTRY.find().unwrap())
            .arg("serve")
            .arg(path("registry.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        let port: String = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                break rest.chars().take_while(char::is_ascii_digit).collect();
            }
        };
        // Whatever else it says is of no interest, and must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Self {
            process,
            address: format!("localhost:{port}"),
            directory,
        })
    }

    /// Puts the image `latest` of an image layout there, and returns its reference.
    pub(super) fn push(&self, layout: &Path) -> String {
        let reference = format!("{}/team/app:1", self.address);
        run(
            SKOPEO,
            [
                "copy".to_owned(),
                "--quiet".to_owned(),
                // It would compress what is not, and its manifest be another.
                "--preserve-digests".to_owned(),
                "--dest-creds=ann:secret".to_owned(),
                format!("--dest-cert-dir={}", self.directory.path().display()),
                format!("oci:{}:latest", layout.display()),
                format!("docker://{reference}"),
            ],
        );
        reference
    }

    /// What lets one in.
    pub(super) fn auth(&self) -> RegistryAuth {
        RegistryAuth::Password {
            username: "ann".to_owned(),
            password: "secret".to_owned(),
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `ca.crt` and `key.pem` in `directory`.
fn make_certificate(directory: &Path) {
    let mut arguments: Vec<&OsStr> = [
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
    ]
    .iter()
    .map(OsStr::new)
    .collect();
    let (key, certificate) = (directory.join("key.pem"), directory.join("ca.crt"));
    arguments.extend([OsStr::new("-keyout"), key.as_os_str()]);
    arguments.extend([OsStr::new("-out"), certificate.as_os_str()]);
    run(OPENSSL, arguments);
}

/// Runs a program to its good end, and returns what it printed.
pub(super) fn run<S: AsRef<OsStr>>(tool: Tool, arguments: impl IntoIterator<Item = S>) -> Vec<u8> {
    let mut command = banger_process::command(tool.find().unwrap());
    let output = command.args(arguments).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {words}");
    output.stdout
}
