//! Claims about SSH, with the ordinary `ssh` and `sftp` as clients.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use banger_proto::agent::Configure;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::client::{Client, LIMIT};
use crate::process::TestAgent;

/// A port on loopback whose connections end at the agent's SSH server.
struct Ssh {
    agent: TestAgent,
    port: u16,
}

impl Ssh {
    /// `None` where there is no ssh to test with.
    async fn start() -> Option<Self> {
        for program in ["ssh", "sftp", "ssh-keygen"] {
            if Command::new(program)
                .arg("-?")
                .stderr(Stdio::null())
                .output()
                .await
                .is_err()
            {
                eprintln!("skipped: there is no `{program}`");
                return None;
            }
        }
        let agent = TestAgent::start().await;
        let mut client = agent.connect().await;
        let directory = agent.directory.path();
        for name in ["host", "user", "stranger"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(directory.join(name))
                .status()
                .await;
            assert!(made.unwrap().success());
        }
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
        client
            .configure(&Configure {
                ssh_host_key: read("host"),
                authorized_keys: vec![read("user.pub")],
                ..Configure::default()
            })
            .await;
        let host = read("host.pub");
        fs::write(directory.join("known_hosts"), format!("vm {host}")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(proxy(client.clone(), stream));
            }
        });
        Some(Self { agent, port })
    }

    fn command(&self, program: &str, key: &str) -> Command {
        let directory = self.agent.directory.path();
        let mut command = Command::new(program);
        command.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
        ]);
        command.args(["-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlias=vm"]);
        command.arg("-o").arg(format!(
            "UserKnownHostsFile={}",
            directory.join("known_hosts").display()
        ));
        command.arg("-o").arg(format!("Port={}", self.port));
        command
            .arg("-i")
            .arg(directory.join(key))
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command("ssh", "user");
        command.args(["-o", "User=root"]).args(arguments);
        finish(command, input).await
    }
}

async fn finish(mut command: Command, input: &[u8]) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feed = tokio::spawn(async move {
        // The command need not read all of it.
        let _ = stdin.write_all(&input).await;
    });
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    feed.abort();
    output.expect("ssh goes on").unwrap()
}

async fn proxy(mut client: Client, stream: TcpStream) {
    let (input, response) = client.stream("/v1/ssh").await;
    assert_eq!(response.status(), hyper::StatusCode::OK);
    let mut body = response.into_body();
    let (mut read, mut write) = stream.into_split();
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            if input
                .send(Bytes::copy_from_slice(&buffer[..count]))
                .await
                .is_err()
            {
                return;
            }
        }
    });
    while let Some(Ok(frame)) = body.frame().await {
        if write.write_all(&frame.into_data().unwrap()).await.is_err() {
            return;
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_has_streams_a_status_and_an_environment() {
    let Some(ssh) = Ssh::start().await else {
        return;
    };
    let output = ssh
        .run(
            &[
                "-o",
                "SetEnv=LC_TEST=yes",
                "vm",
                "cat; echo $LC_TEST >&2; exit 7",
            ],
            b"in",
        )
        .await;
    assert_eq!(text(&output.stdout), "in");
    assert_eq!(text(&output.stderr), "yes\n");
    assert_eq!(output.status.code(), Some(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_goes_both_ways_at_once() {
    let Some(ssh) = Ssh::start().await else {
        return;
    };
    let input = vec![b'x'; 12_000_000];
    let output = ssh.run(&["vm", "cat"], &input).await;
    assert_eq!(output.stdout.len(), input.len(), "{}", text(&output.stderr));
    // Four bytes out for each that goes in.
    let output = ssh
        .run(&["vm", "od -v -An -tx1"], &input[..4_000_000])
        .await;
    assert!(
        output.stdout.len() > 12_000_000,
        "{} bytes",
        output.stdout.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_one() {
    let Some(ssh) = Ssh::start().await else {
        return;
    };
    let output = ssh
        .run(&["-tt", "vm", "tty; stty size >&2; exit 3"], b"")
        .await;
    assert!(text(&output.stdout).starts_with("/dev/pts/"), "{output:?}");
    assert_eq!(output.status.code(), Some(3));
    let output = ssh.run(&["-tt", "vm"], b"echo $0; exit 5\n").await;
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_authorized_keys_of_known_users_log_in() {
    let Some(ssh) = Ssh::start().await else {
        return;
    };
    let mut stranger = ssh.command("ssh", "stranger");
    stranger.args(["-o", "User=root", "vm", "true"]);
    let output = finish(stranger, b"").await;
    assert_eq!(output.status.code(), Some(255));
    assert!(
        text(&output.stderr).contains("Permission denied (publickey)"),
        "{output:?}"
    );
    if rustix::process::geteuid().is_root() {
        let mut nobody = ssh.command("ssh", "user");
        nobody.args(["-o", "User=no-such-user", "vm", "true"]);
        assert_eq!(finish(nobody, b"").await.status.code(), Some(255));
        let mut daemon = ssh.command("ssh", "user");
        daemon.args(["-o", "User=games", "vm", "id", "-un"]);
        // Its shell is nologin, which says so.
        assert_eq!(finish(daemon, b"").await.status.code(), Some(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sftp_puts_gets_and_changes_files() {
    let Some(ssh) = Ssh::start().await else {
        return;
    };
    let directory = ssh.agent.directory.path();
    let here = directory.join("here");
    let there = directory.join("there");
    fs::create_dir(&here).unwrap();
    fs::create_dir(&there).unwrap();
    let bytes: Vec<u8> = (0..3_000_000u32)
        .map(|number| (number % 251) as u8)
        .collect();
    fs::write(here.join("big"), &bytes).unwrap();
    fs::set_permissions(here.join("big"), PermissionsExt::from_mode(0o751)).unwrap();
    let path = |directory: &Path, name: &str| directory.join(name).display().to_string();
    let batch = [
        format!("put -p {} {}", path(&here, "big"), path(&there, "big")),
        format!("get -p {} {}", path(&there, "big"), path(&here, "back")),
        format!("mkdir {}", path(&there, "sub")),
        format!(
            "rename {} {}",
            path(&there, "big"),
            path(&there, "sub/moved")
        ),
        format!("ln -s {} {}", "moved", path(&there, "sub/link")),
        format!(
            "ln {} {}",
            path(&there, "sub/moved"),
            path(&there, "sub/hard")
        ),
        format!("chmod 600 {}", path(&there, "sub/moved")),
        format!("ls -la {}", path(&there, "sub")),
        format!("rm {}", path(&there, "sub/hard")),
        format!("-rm {}", path(&there, "nothing")),
        String::new(),
    ];
    let mut sftp = ssh.command("sftp", "user");
    sftp.args(["-o", "User=root", "-b", "-", "vm"]);
    let output = finish(sftp, batch.join("\n").as_bytes()).await;
    assert!(
        output.status.success(),
        "{}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    assert!(fs::read(here.join("back")).unwrap() == bytes);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&here.join("back")), 0o751);
    assert_eq!(mode(&there.join("sub/moved")), 0o600);
    assert_eq!(
        fs::read_link(there.join("sub/link")).unwrap(),
        Path::new("moved")
    );
    assert!(!there.join("sub/hard").exists() && !there.join("big").exists());
    assert!(
        text(&output.stdout).contains("link"),
        "{}",
        text(&output.stdout)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_of_the_guest_are_forwarded() {
    let Some(ssh) = Ssh::start().await else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"hello from the port").await.unwrap();
        }
    });
    let output = ssh
        .run(&["-W", &format!("localhost:{port}"), "vm"], b"")
        .await;
    assert_eq!(
        text(&output.stdout),
        "hello from the port",
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_hangs_its_command_up() {
    let Some(ssh) = Ssh::start().await else {
        return;
    };
    let fifo = ssh.agent.directory.path().join("fifo");
    let script = format!(
        "mkfifo {fifo}; trap 'echo bye > {fifo}; exit' HUP; echo ready; while :; do sleep 0.1; done",
        fifo = fifo.display()
    );
    let mut command = ssh.command("ssh", "user");
    command
        .args(["-o", "User=root", "vm", &script])
        .stdout(Stdio::piped())
        .stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut ready = [0; 6];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .await
        .unwrap();
    child.kill().await.unwrap();
    let bye = tokio::time::timeout(LIMIT, tokio::fs::read_to_string(fifo)).await;
    assert_eq!(bye.expect("no hang-up came").unwrap(), "bye\n");
}

/// A server that greets, and a port that nobody has.
async fn greeter() -> (u16, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"hello from the client").await.unwrap();
        }
    });
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (port, free.local_addr().unwrap().port())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_of_the_client_are_forwarded_to_the_guest() {
    let Some(ssh) = Ssh::start().await else {
        return;
    };
    let (port, free) = greeter().await;
    let read = |port: &str| {
        format!(
            "python3 -c \"import socket; print(socket.create_connection(('127.0.0.1', {port})).makefile().read())\""
        )
    };
    let forward = format!("{free}:127.0.0.1:{port}");
    let script = read(&free.to_string());
    let output = ssh
        .run(
            &[
                "-o",
                "ExitOnForwardFailure=yes",
                "-R",
                &forward,
                "vm",
                &script,
            ],
            b"",
        )
        .await;
    assert_eq!(
        text(&output.stdout).trim_end(),
        "hello from the client",
        "{}",
        text(&output.stderr)
    );
    // It ends with the connection, of whose end the agent hears a moment after the client.
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", free)).await.is_ok() {
        assert!(std::time::Instant::now() < limit, "it listens on");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }

    // What is taken is refused, and any port is one that is free.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = format!(
        "127.0.0.1:{}:127.0.0.1:{port}",
        taken.local_addr().unwrap().port()
    );
    let output = ssh
        .run(
            &["-o", "ExitOnForwardFailure=yes", "-R", &taken, "vm", "true"],
            b"",
        )
        .await;
    assert_eq!(output.status.code(), Some(255), "{output:?}");
    let any = format!("127.0.0.1:0:127.0.0.1:{port}");
    let output = ssh.run(&["-R", &any, "vm", "true"], b"").await;
    assert!(
        text(&output.stderr).contains("Allocated port"),
        "{output:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_the_guest_are_reached_by_their_paths() {
    let Some(ssh) = Ssh::start().await else {
        return;
    };
    let directory = ssh.agent.directory.path();
    let listener = tokio::net::UnixListener::bind(directory.join("service")).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"hello from the socket").await.unwrap();
        }
    });
    let (here, there) = (directory.join("here"), directory.join("service"));
    let forward = format!("{}:{}", here.display(), there.display());
    let mut command = ssh.command("ssh", "user");
    command.args(["-o", "User=root", "-N", "-L", &forward, "vm"]);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    let said = tokio::time::timeout(LIMIT, async {
        let mut stream = loop {
            match tokio::net::UnixStream::connect(&here).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        };
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        said
    });
    assert_eq!(said.await.unwrap(), "hello from the socket");
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_authentication_agent_serves_the_guest() {
    let Some(ssh) = Ssh::start().await else {
        return;
    };
    let directory = ssh.agent.directory.path();
    let socket = directory.join("keys");
    let mut keys = Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    while !socket.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let mut add = Command::new("ssh-add");
    add.arg("-q").arg(directory.join("stranger"));
    add.env("SSH_AUTH_SOCK", &socket);
    assert!(add.status().await.unwrap().success());
    let mut command = ssh.command("ssh", "user");
    command.args([
        "-o",
        "User=root",
        "-A",
        "vm",
        "ssh-add -L; echo $SSH_AUTH_SOCK",
    ]);
    command.env("SSH_AUTH_SOCK", &socket);
    let output = finish(command, b"").await;
    let said = text(&output.stdout);
    let key = fs::read_to_string(directory.join("stranger.pub")).unwrap();
    let key = key.split_whitespace().nth(1).unwrap();
    assert!(said.contains(key), "{output:?}");
    // It ends with the connection.
    let path = said.lines().last().unwrap();
    assert!(path.starts_with("/tmp/ssh-"), "{path}");
    let gone = async {
        while Path::new(path).exists() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone)
        .await
        .expect("the socket stays");
    keys.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_channels_share_a_connection() {
    let Some(ssh) = Ssh::start().await else {
        return;
    };
    let control = ssh.agent.directory.path().join("control");
    let shared = format!("ControlPath={}", control.display());
    let mut master = ssh.command("ssh", "user");
    master.args(["-o", "User=root", "-o", &shared, "-M", "-N", "vm"]);
    let mut master = master.stdin(Stdio::null()).spawn().unwrap();
    while !control.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let input = vec![b'x'; 300_000];
    let sessions = (0..12).map(|number| {
        let (shared, input, ssh) = (&shared, &input, &ssh);
        async move {
            let script = format!("cat; exit {number}");
            let output = ssh.run(&["-o", shared, "vm", &script], input).await;
            assert_eq!(output.status.code(), Some(number), "{output:?}");
            assert_eq!(output.stdout.len(), input.len());
        }
    });
    futures_util::future::join_all(sessions).await;
    master.kill().await.unwrap();
}
