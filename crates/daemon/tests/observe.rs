//! What can be seen of a daemon and its VMs: usage, health, events, metrics, logs, files.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use banger_proto::api::{Event, Happened, Operation, OperationKind, VmHealth, VmState, VmStats};
use banger_proto::error::{ApiError, ErrorKind};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use support::{Daemon, Home, soon, succeeded};
use tokio::net::UnixStream;

/// One request as any HTTP client sends it.
async fn send(
    daemon: &Daemon,
    method: &str,
    path: &str,
    headers: &[(&'static str, &str)],
    body: Bytes,
) -> Response<Incoming> {
    let stream = UnixStream::connect(daemon.client.socket()).await.unwrap();
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "banger")
        .body(Full::new(body))
        .unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    soon(requests.send_request(request)).await.unwrap()
}

/// What came back.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    fn error(&self) -> ApiError {
        assert!(!self.status.is_success(), "{}", self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

async fn ask(
    daemon: &Daemon,
    method: &str,
    path: &str,
    headers: &[(&'static str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let response = send(daemon, method, path, headers, body.into()).await;
    let (head, body) = response.into_parts();
    Answer {
        status: head.status,
        headers: head.headers,
        body: soon(body.collect()).await.unwrap().to_bytes(),
    }
}

async fn get(daemon: &Daemon, path: &str) -> Answer {
    ask(daemon, "GET", path, &[], "").await
}

#[tokio::test]
async fn what_a_vm_uses_is_told_by_its_host_and_its_guest() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    daemon.run("b").await;
    succeeded(&daemon.stop_vm("b").await);

    let first: VmStats = get(&daemon, "/v1/vms/a/stats").await.json();
    assert_eq!(first.state, VmState::Running);
    let host = first.host.expect("its engine runs");
    assert_eq!(Some(host.pid), daemon.client.vm("a").await.unwrap().pid);
    assert!(host.memory.bytes() > 0);
    let guest = first.guest.expect("its agent answers");
    assert!(guest.memory_total.unwrap().bytes() > 0 && guest.uptime_us > 0);
    assert!(first.disk_used.bytes() > 0);

    assert_eq!(daemon.exec("a", &["true"]).await.code(), 0);
    let second: VmStats = get(&daemon, "/v1/vms/a/stats").await.json();
    assert!(second.at_us > first.at_us);
    assert!(second.host.unwrap().cpu_us >= host.cpu_us);

    let stopped: VmStats = get(&daemon, "/v1/vms/b/stats").await.json();
    assert_eq!((stopped.host, stopped.guest), (None, None));
    insta::assert_snapshot!(
        stopped.guest_error.unwrap(),
        @"could not ask the guest of VM `b`: it is stopped"
    );
    let running: Vec<VmStats> = get(&daemon, "/v1/stats").await.json();
    assert_eq!(running.len(), 1);
    assert_eq!(running[0].vm_name.as_str(), "a");
}

#[tokio::test]
async fn health_says_whether_the_agent_answers() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let health: VmHealth = get(&daemon, "/v1/vms/a/health").await.json();
    assert!(
        health.healthy && health.round_trip_ms.unwrap() > 0.0,
        "{health:?}"
    );
    assert_eq!(health.agent.unwrap().version, banger_proto::VERSION);

    succeeded(&daemon.stop_vm("a").await);
    let health: VmHealth = get(&daemon, "/v1/vms/a/health").await.json();
    assert!(!health.healthy);
    assert_eq!(health.error.unwrap().kind, ErrorKind::Conflict);
    assert_eq!(get(&daemon, "/v1/vms/none/health").await.status, 404);
}

#[tokio::test]
async fn a_guest_that_hangs_holds_nobody_up_for_long() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("stuck").await;
    daemon.run("well").await;
    let pid = daemon.client.vm("stuck").await.unwrap().pid.unwrap();
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();

    let begin = Instant::now();
    let (stats, health, metrics) = tokio::join!(
        get(&daemon, "/v1/stats"),
        get(&daemon, "/v1/vms/stuck/health"),
        get(&daemon, "/metrics"),
    );
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
    let stats: BTreeMap<String, VmStats> = stats
        .json::<Vec<VmStats>>()
        .into_iter()
        .map(|vm| (vm.vm_name.to_string(), vm))
        .collect();
    assert!(stats["well"].guest.is_some());
    assert!(stats["stuck"].host.is_some() && stats["stuck"].guest.is_none());
    insta::assert_snapshot!(
        stats["stuck"].guest_error.as_ref().unwrap(),
        @"could not ask the guest of VM `stuck`: the agent gave no answer within 5 s"
    );
    let health: VmHealth = health.json();
    assert!(!health.healthy);
    assert_eq!(health.error.unwrap().kind, ErrorKind::Timeout);
    let metrics = metrics.text();
    for (vm, up) in [("stuck", 0), ("well", 1)] {
        let sample = metrics
            .lines()
            .find(|line| line.starts_with(&format!("banger_vm_up{{vm=\"{vm}\"")));
        assert!(sample.unwrap().ends_with(&format!(" {up}")), "{sample:?}");
    }

    kill_process(pid, Signal::CONT).unwrap();
    let health: VmHealth = get(&daemon, "/v1/vms/stuck/health").await.json();
    assert!(health.healthy, "{health:?}");
}

#[tokio::test]
async fn operations_are_listed_the_oldest_first() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    succeeded(&daemon.stop_vm("a").await);
    let operations: Vec<Operation> = get(&daemon, "/v1/operations").await.json();
    let kinds: Vec<_> = operations.iter().map(|operation| operation.kind).collect();
    assert_eq!(kinds, [OperationKind::CreateVm, OperationKind::StopVm]);
}

/// Events as they come.
struct Follower {
    body: Incoming,
    text: String,
}

impl Follower {
    async fn begin(daemon: &Daemon, headers: &[(&'static str, &str)]) -> Self {
        let path = "/v1/events?follow=true";
        let response = send(daemon, "GET", path, headers, Bytes::new()).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body(),
            text: String::new(),
        }
    }

    async fn next(&mut self) -> Event {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_owned();
                self.text = rest.to_owned();
                if let Some(event) = parse(&event) {
                    return event;
                }
                continue;
            }
            let piece = soon(self.body.frame()).await.unwrap().unwrap();
            let piece = piece.into_data().unwrap();
            self.text += std::str::from_utf8(&piece).unwrap();
        }
    }
}

/// An event, whose id is also the stream's; `None` for a comment.
fn parse(text: &str) -> Option<Event> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let event: Event = serde_json::from_str(field("data: ")?).unwrap();
    assert_eq!(field("id: "), Some(event.id.as_str()));
    Some(event)
}

#[tokio::test]
async fn events_are_followed_and_resumed() {
    let home = Home::new();
    let daemon = home.start().await;
    let mut follower = Follower::begin(&daemon, &[]).await;
    daemon.run("a").await;
    let begun = follower.next().await;
    assert!(
        matches!(begun.what, Happened::Operation { .. }),
        "{begun:?}"
    );
    let created = follower.next().await;
    assert!(
        matches!(&created.what, Happened::VmCreated { vm_name, .. } if vm_name.as_str() == "a"),
        "{created:?}"
    );
    let running = loop {
        let event = follower.next().await;
        if let Happened::VmState { state, .. } = event.what
            && state == VmState::Running
        {
            break event;
        }
    };
    // Who comes back sees what was missed, and only that.
    drop(follower);
    succeeded(&daemon.delete_vm("a").await);
    let mut follower = Follower::begin(&daemon, &[("last-event-id", &running.id)]).await;
    let mut number = running
        .id
        .rsplit_once('-')
        .unwrap()
        .1
        .parse::<u64>()
        .unwrap();
    loop {
        let event = follower.next().await;
        number += 1;
        assert!(event.id.ends_with(&format!("-{number}")), "{event:?}");
        if matches!(event.what, Happened::VmDeleted { .. }) {
            break;
        }
    }
    // Without following, the stream ends.
    let all = get(&daemon, "/v1/events").await.text();
    assert!(all.split("\n\n").filter_map(parse).count() > 5, "{all}");
    let lost = [("last-event-id", "of-another-daemon")];
    let mut follower = Follower::begin(&daemon, &lost).await;
    assert_eq!(follower.next().await.what, Happened::Missed);
}

/// Whether a page keeps to the text format: every sample is of a family that was announced
/// right before, none comes twice, and every value is a number.
fn check_exposition(page: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families = BTreeSet::new();
    let mut family = String::new();
    assert!(page.ends_with('\n'));
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split_once(' ').unwrap().0.to_owned();
            assert!(families.insert(family.clone()), "{family} comes twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            assert!(["gauge", "counter"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert_eq!(name.split('{').next(), Some(family.as_str()), "{line}");
            let value: f64 = value.parse().unwrap();
            assert!(samples.insert(name.to_owned(), value).is_none(), "{line}");
        }
    }
    samples
}

#[tokio::test]
async fn metrics_keep_to_the_format_and_tell_the_truth() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    daemon.run("b").await;
    succeeded(&daemon.stop_vm("b").await);
    let answer = get(&daemon, "/metrics").await;
    assert_eq!(
        answer.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let samples = check_exposition(&answer.text());
    assert_eq!(samples["banger_vms{state=\"running\"}"], 1.0);
    assert_eq!(samples["banger_vms{state=\"stopped\"}"], 1.0);
    assert_eq!(
        samples["banger_operations_begun_total{kind=\"create_vm\"}"],
        2.0
    );
    assert_eq!(
        samples["banger_operations_ended_total{kind=\"stop_vm\",result=\"succeeded\"}"],
        1.0
    );
    let id = daemon.client.vm("a").await.unwrap().id;
    let stage = format!("banger_vm_start_stage_seconds{{vm=\"a\",id=\"{id}\",stage=\"agent\"}}");
    assert!(samples[&stage] > 0.0);
    let memory = format!("banger_vm_resident_memory_bytes{{vm=\"a\",id=\"{id}\"}}");
    assert!(samples[&memory] > 0.0);
    assert!(samples["process_resident_memory_bytes"] > 0.0);
}

#[tokio::test]
async fn a_request_has_one_id_in_the_logs_of_daemon_and_agent() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let id = "00000000000000000000000000c0ffee";
    let headers = [("x-request-id", id)];
    let answer = ask(&daemon, "GET", "/v1/vms/a/stats", &headers, "").await;
    assert_eq!(answer.headers["x-request-id"], id);
    let log = get(&daemon, "/v1/vms/a/logs?log=agent").await.text();
    let line = log.lines().find(|line| line.contains(id));
    assert!(line.unwrap_or(&log).contains("/v1/stats"), "{log}");
    // The tail is the last lines alone.
    let tail = get(&daemon, "/v1/vms/a/logs?log=agent&tail=1").await.text();
    assert_eq!(tail.lines().count(), 1, "{tail}");

    let stop = ask(&daemon, "POST", "/v1/vms/a/stop", &headers, "").await;
    let operation: Operation = serde_json::from_slice(&stop.body).unwrap();
    succeeded(&daemon.end(&operation.id).await);
    let log = fs::read_to_string(home.paths().daemon_log()).unwrap();
    let of_operation = log.lines().filter(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["operation"] == operation.id.as_str() && line["request_id"] == id
    });
    assert_eq!(of_operation.count(), 2, "its begin and its end: {log}");
    let answered = log
        .lines()
        .any(|line| line.contains(id) && line.contains("\"answered\""));
    assert!(answered, "{log}");
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn files_go_into_a_guest_and_out_of_it() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    // The fake guest's files are the host's.
    let target = home.path().join("in the guest");
    let encoded = target.display().to_string().replace(' ', "%20");
    let files = format!("/v1/vms/a/files?path={encoded}");
    let large = vec![b'x'; 3_000_000];
    let sent = archive(&[("dir/large", &large), ("small", b"small")]);
    assert_eq!(ask(&daemon, "PUT", &files, &[], sent).await.status, 204);
    assert_eq!(fs::read(target.join("dir/large")).unwrap(), large);

    let back = get(&daemon, &format!("{files}/dir")).await;
    assert_eq!(back.headers["content-type"], "application/x-tar");
    assert_eq!(back.headers["x-banger-file-kind"], "directory");
    let mut back = tar::Archive::new(&back.body[..]);
    let names: Vec<String> = back
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["dir", "dir/large"]);
}

#[tokio::test]
async fn files_that_cannot_be_had_or_put_are_told_in_the_guests_words() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let dir = home.path().display().to_string();
    fs::write(Path::new(&dir).join("file"), "x").unwrap();
    let at = |path: &str| format!("/v1/vms/a/files?path={dir}/{path}");
    let words = |answer: &Answer| answer.error().to_string().replace(&dir, "[dir]");

    let missing = get(&daemon, &at("none")).await;
    assert_eq!(missing.status, 404);
    insta::assert_snapshot!(words(&missing), @"could not read `[dir]/none` in VM `a`: the agent refused: could not read [dir]/none: No such file or directory (os error 2)");
    let in_the_way = ask(&daemon, "PUT", &at("file"), &[], archive(&[("x", b"")])).await;
    assert_eq!(in_the_way.status, 409);
    insta::assert_snapshot!(words(&in_the_way), @"could not write `[dir]/file` in VM `a`: the agent refused: could not make the directory [dir]/file: File exists (os error 17)");
    let escape = archive(&[("../evil", b"x")]);
    let refused = ask(&daemon, "PUT", &at("target"), &[], escape).await;
    assert_eq!(refused.status, 400);
    assert!(!Path::new(&dir).join("evil").exists());
    // A refusal in the middle of a long archive is read, too.
    let long = archive(&[("../evil", b"x"), ("long", &vec![0; 20_000_000])]);
    let refused = ask(&daemon, "PUT", &at("target"), &[], long).await;
    assert_eq!(refused.error().kind, ErrorKind::Invalid);
    let no_path = get(&daemon, "/v1/vms/a/files").await;
    assert_eq!(no_path.error().kind, ErrorKind::Invalid);
    let cut = archive(&[("whole", &[1; 5000])])[..3000].to_vec();
    let cut = ask(&daemon, "PUT", &at("target"), &[], cut).await;
    assert_eq!(cut.status, 400);
}
