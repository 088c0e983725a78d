//! A guest's ports are reached at the VM's own address of the host, while they listen.

use std::time::{Duration, Instant};

use banger_e2e::{Home, Invocation, Running};
use serde_json::Value;

/// Says that it listens, and answers every request over HTTP. What the small image has of languages
/// is Perl, and of its modules this one is loaded soonest.
const WEB_SERVER: &str = r#"
use Socket;
$| = 1;
# Who asks may have gone before the answer.
$SIG{PIPE} = "IGNORE";
socket(my $server, PF_INET, SOCK_STREAM, 0) or die $!;
setsockopt($server, SOL_SOCKET, SO_REUSEADDR, 1) or die $!;
bind($server, sockaddr_in($ARGV[1], inet_aton($ARGV[0]))) or die $!;
listen($server, 5) or die $!;
print "listens\n";
while (accept(my $client, $server)) {
    while (defined(my $line = <$client>)) { last if $line =~ /^\r?\n$/ }
    print $client "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n";
    close $client;
}
"#;

/// How long what follows from something by itself may take where software does the processor's
/// work.
const SOON: Duration = Duration::from_secs(60);

fn serve(home: &Home, vm: &str, address: &str, port: u16) -> Running {
    let port = port.to_string();
    let words = [
        "vm", "exec", vm, "--", "perl", "-e", WEB_SERVER, address, &port,
    ];
    let mut server = home.banger(words).start();
    server.expect_stdout("listens");
    server
}

/// Waits until a port of a VM is shown with what `wanted` finds in it.
#[track_caller]
fn shown<T>(home: &Home, vm: &str, port: u16, wanted: impl Fn(&Value) -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        let ports = home.banger(["vm", "ports", vm, "--json"]).run().json();
        let ports_of_it = ports.as_array().expect("a list").iter();
        let mut found = ports_of_it.filter(|found| found["port"] == port);
        if let Some(value) = found.find_map(&wanted) {
            return value;
        }
        assert!(Instant::now() < deadline, "not there: {ports:#}");
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Fetches a page, with one attempt.
fn fetch(home: &Home, url: &str) -> Option<String> {
    let mut curl = home.command("curl");
    curl.args(["--silent", "--max-time", "20", "--noproxy", "*", url]);
    let output = Invocation::new(curl).run();
    (output.status.code() == Some(0)).then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks again and again; each question starts a program, and so takes a while.
#[track_caller]
fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
    }
}

#[test]
fn a_guests_web_server_is_reached_while_it_listens() {
    let Some(home) = Home::with_vms() else { return };
    let vm = home
        .banger(["vm", "create", "--name", "box", "--json"])
        .run()
        .json();
    let loopback = text(&vm["loopback"]).expect("it has an address");
    assert!(loopback.starts_with("127.77."), "{loopback}");

    // On the guest's own loopback alone.
    let server = serve(&home, "box", "127.0.0.1", 8080);
    let url = shown(&home, "box", 8080, |port| text(&port["url"]));
    assert_eq!(url, format!("http://{loopback}:8080/"));
    assert_eq!(fetch(&home, &url).as_deref(), Some("hello\n"));
    let process = shown(&home, "box", 8080, |port| text(&port["process"]["name"]));
    assert_eq!(process, "perl");

    // What is below 1024 is there as well, if not at the same port.
    let privileged = serve(&home, "box", "0.0.0.0", 80);
    let url = shown(&home, "box", 80, |port| text(&port["url"]));
    assert_eq!(fetch(&home, &url).as_deref(), Some("hello\n"));
    if !home.is_roots() {
        assert_eq!(url, format!("http://{loopback}:10080/"));
        home.banger(["vm", "ports", "box"])
            .run()
            .exited_with(0)
            .says("only root may open port 80 here");
    }
    drop(privileged);

    // The next daemon forwards it again.
    home.kill_daemon();
    let url = format!("http://{loopback}:8080/");
    until("the port is closed", || fetch(&home, &url).is_none());
    home.banger(["vm", "list"]).run().exited_with(0);
    drop(server);
    // The command went with its daemon, and its port with it; another one takes its place.
    let _server = serve(&home, "box", "0.0.0.0", 8080);
    until("the port is open again", || fetch(&home, &url).is_some());

    home.banger(["vm", "stop", "box"]).run().exited_with(0);
    until("the port is closed", || fetch(&home, &url).is_none());
    home.banger(["vm", "delete", "box"]).run().exited_with(0);
    home.assert_no_vm_left();
}
