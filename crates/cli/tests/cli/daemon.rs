//! A daemon that keeps to the API's table and to nothing else: VMs are rows, and what clients
//! do is told to the test.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_proto::agent::Stats;
use banger_proto::api::{
    CreateVm, DaemonStatus, Engine, EngineKind, Event, Happened, HostUsage, Image, InstalledEngine,
    Operation, OperationEvent, OperationKind, OperationState, ProgramOrigin, Progress,
    ProgressUnit, StageTime, Version, Vm, VmHealth, VmState, VmStats,
};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::{ImageId, LeaseId, OperationId, VmId};
use banger_proto::size::ByteSize;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::guest;

/// How long a test waits for anything.
pub const LIMIT: Duration = Duration::from_secs(20);

/// What a client did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Asked for a VM.
    Created(Box<CreateVmSummary>),
    /// Called an operation off.
    CalledOff,
    /// Began to hold a lease.
    LeaseTaken,
    /// Let its lease go, in whatever way.
    LeaseEnded,
    /// An exec stream ended so.
    ExecEnded(String),
    /// Asked to delete this VM.
    Deleted(String),
    /// Asked for something else of a VM: `POST calm-otter/kill {"signal":15}`.
    Asked(String),
}

/// What matters of a create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVmSummary {
    pub name: Option<String>,
    pub leased: bool,
}

pub struct Daemon {
    home: tempfile::TempDir,
    deeds: Receiver<Deed>,
    state: Arc<State>,
    _runtime: Runtime,
}

struct State {
    deeds: Sender<Deed>,
    vms: Mutex<Vec<Vm>>,
    operations: Mutex<HashMap<String, Arc<Begun>>>,
    /// All events so far.
    events: watch::Sender<Vec<Event>>,
    /// How often stats were asked for; the counters grow with it.
    looks: AtomicU64,
    /// Holds the file systems of the guests.
    guests: PathBuf,
}

/// An operation that has begun.
struct Begun {
    operation: Operation,
    course: Course,
    /// Turns true when it is called off.
    called_off: watch::Sender<bool>,
}

/// How an operation goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    Well,
    /// It ends only when it is called off.
    Slow,
    Fails,
}

impl State {
    fn begin(&self, kind: OperationKind, vm: &Vm, course: Course) -> Response<Body> {
        let operation = operation(kind, vm);
        let answer = json(202, &operation);
        let begun = Begun {
            operation,
            course,
            called_off: watch::channel(false).0,
        };
        let id = begun.operation.id.to_string();
        self.operations.lock().unwrap().insert(id, Arc::new(begun));
        answer
    }

    fn begun(&self, id: &str) -> Arc<Begun> {
        Arc::clone(&self.operations.lock().unwrap()[id])
    }
}

impl Daemon {
    /// Serves the socket of a new home, with the running VMs `calm-otter` and `devbox`.
    pub fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let run = home.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (sender, deeds) = channel();
        let state = Arc::new(State {
            deeds: sender,
            vms: Mutex::new(vec![vm("calm-otter"), vm("devbox")]),
            operations: Mutex::default(),
            events: watch::Sender::default(),
            looks: AtomicU64::new(0),
            guests: home.path().join("guests"),
        });
        let served = Arc::clone(&state);
        let entered = runtime.enter();
        let listener = UnixListener::bind(run.join("bangerd.sock")).unwrap();
        drop(entered);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&served);
                let service = service_fn(move |request| answer(request, Arc::clone(&state)));
                tokio::spawn(
                    http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades(),
                );
            }
        });
        Self {
            home,
            deeds,
            state,
            _runtime: runtime,
        }
    }

    /// Puts a VM into a state, and tells it as an event.
    pub fn enter(&self, name: &str, state: VmState) {
        let vm = {
            let mut vms = self.state.vms.lock().unwrap();
            let vm = vms.iter_mut().find(|vm| vm.name.as_str() == name).unwrap();
            vm.state = state;
            vm.failure = (state == VmState::Failed)
                .then(|| ApiError::new(ErrorKind::Failed, "the engine died"));
            vm.clone()
        };
        self.tell(Happened::VmState {
            vm: vm.id,
            vm_name: vm.name,
            state,
            reason: None,
            failure: vm.failure,
        });
    }

    /// Takes a VM away, and tells it as an event.
    pub fn forget(&self, name: &str) {
        let mut vms = self.state.vms.lock().unwrap();
        let at = vms.iter().position(|vm| vm.name.as_str() == name).unwrap();
        let vm = vms.remove(at);
        drop(vms);
        self.tell(Happened::VmDeleted {
            vm: vm.id,
            vm_name: vm.name,
            reason: None,
        });
    }

    /// Tells an event.
    pub fn tell(&self, what: Happened) {
        self.state.events.send_modify(|events| {
            events.push(Event {
                id: format!("7-{}", events.len() + 1),
                at: "2026-01-01T00:00:00Z".into(),
                node: "here".into(),
                what,
            });
        });
    }

    /// Waits until a client follows the events.
    pub fn wait_for_follower(&self) {
        assert_eq!(self.deed(), Deed::Asked("GET events".into()));
    }

    /// Changes the row of a VM.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vm)) {
        let mut vms = self.state.vms.lock().unwrap();
        change(vms.iter_mut().find(|vm| vm.name.as_str() == name).unwrap());
    }

    /// The root directory of a guest, on this host.
    pub fn guest(&self, name: &str) -> PathBuf {
        let root = self.state.guests.join(name);
        std::fs::create_dir_all(&root).unwrap();
        root
    }

    /// Ends it; what is left is its home.
    pub fn stop(self) -> tempfile::TempDir {
        self.home
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn log(&self) -> PathBuf {
        self.home().join("state/logs/bangerd.log")
    }

    /// The next thing that a client did.
    pub fn deed(&self) -> Deed {
        self.deeds.recv_timeout(LIMIT).unwrap()
    }

    /// Whether no client has done anything since the last one.
    pub fn nothing_was_done(&self) -> bool {
        self.deeds.try_recv().is_err()
    }
}

pub fn vm(name: &str) -> Vm {
    Vm {
        id: VmId::new(),
        name: name.parse().unwrap(),
        node: "here".into(),
        state: VmState::Running,
        failure: None,
        warnings: Vec::new(),
        reason: None,
        guest: None,
        image: "debian-bookworm-slim".parse().unwrap(),
        image_id: None,
        kernel: Some("generic-6.12".parse().unwrap()),
        vcpu: 1,
        memory: ByteSize::from_mib(512),
        disk_size: ByteSize::from_gib(8),
        system_size: ByteSize::from_gib(8),
        engine: EngineKind::Fake,
        engine_reason: "a test".into(),
        nat: true,
        ip: None,
        loopback: None,
        labels: [].into(),
        ephemeral: false,
        created_at: "2026-01-01T00:00:00Z".into(),
        started_at: None,
        expires_at: None,
        last_used_at: None,
        pid: None,
        stages: Vec::new(),
    }
}

fn qemu() -> Engine {
    Engine {
        name: EngineKind::Qemu,
        node: "here".into(),
        usable: true,
        reason: "VMs run in software: the CPU shows neither vmx nor svm".into(),
        hint: None,
        version: Some("7.2".into()),
        path: Some("/usr/bin/qemu-system-x86_64".into()),
        origin: Some(ProgramOrigin::Path),
        chosen: Some("not Firecracker: the CPU shows neither vmx nor svm".into()),
        installed: None,
        release: None,
    }
}

fn firecracker() -> Engine {
    Engine {
        name: EngineKind::Firecracker,
        usable: false,
        reason: "it needs KVM: the CPU shows neither vmx nor svm".into(),
        version: Some("1.16.1".into()),
        path: Some("/state/engines/firecracker/current/firecracker".into()),
        origin: Some(ProgramOrigin::Installed),
        chosen: None,
        installed: Some(InstalledEngine {
            version: "1.16.1".into(),
            path: "/state/engines/firecracker/current/firecracker".into(),
            jailer: None,
            sha256: "12".repeat(32),
            source: "a program that was given".into(),
            installed_at: "2026-01-01T00:00:00Z".into(),
        }),
        ..qemu()
    }
}

fn operation(kind: OperationKind, vm: &Vm) -> Operation {
    Operation {
        id: OperationId::new(),
        kind,
        state: OperationState::Running,
        node: "here".into(),
        vm: Some(vm.id.clone()),
        vm_name: Some(vm.name.clone()),
        reason: None,
        error: None,
        created_at: "2026-01-01T00:00:00Z".into(),
        stages: Vec::new(),
        warnings: Vec::new(),
    }
}

type Body = BoxBody<Bytes, Infallible>;

fn whole(status: u16, text: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(text.into()).boxed();
    Response::builder().status(status).body(body).unwrap()
}

fn json(status: u16, value: &impl serde::Serialize) -> Response<Body> {
    whole(status, serde_json::to_vec(value).unwrap())
}

fn failed(error: &ApiError) -> Response<Body> {
    json(error.kind.http_status(), error)
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Body>, Infallible> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
    Ok(match (&method, &parts[..]) {
        (&Method::GET, ["version"]) => json(
            200,
            &Version {
                version: banger_proto::VERSION.into(),
                api: 1,
            },
        ),
        (&Method::GET, ["daemon"]) => json(
            200,
            &DaemonStatus {
                version: banger_proto::VERSION.into(),
                pid: std::process::id(),
                node: "here".into(),
                started_at: "2026-01-01T00:00:00Z".into(),
                socket: "/run/bangerd.sock".into(),
                state_dir: "/state".into(),
                vms: 2,
                running: 2,
                operations: 0,
                streams: 0,
                warnings: Vec::new(),
            },
        ),
        (&Method::GET, ["engines"]) => json(200, &[firecracker(), qemu()]),
        (&Method::GET, ["engines", "firecracker"]) => json(200, &firecracker()),
        (&Method::POST | &Method::PUT | &Method::DELETE, ["engines", "firecracker", "install"]) => {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body = String::from_utf8_lossy(&body);
            let asked = format!("{method} firecracker/install?{query} {body}");
            let _ = state.deeds.send(Deed::Asked(asked));
            state.begin(OperationKind::InstallEngine, &vm("none"), Course::Well)
        }
        (&Method::GET, ["events"]) => daemon_events(&request, &state),
        (&Method::GET, ["stats"]) => {
            let vms = state.vms.lock().unwrap();
            let running = vms.iter().filter(|vm| vm.state == VmState::Running);
            let stats: Vec<VmStats> = running.map(|vm| stats(vm, &state)).collect();
            json(200, &stats)
        }
        (&Method::GET, ["operations"]) => {
            let operations = state.operations.lock().unwrap();
            let operations: Vec<&Operation> =
                operations.values().map(|begun| &begun.operation).collect();
            json(200, &operations)
        }
        (&Method::GET, ["operations", id]) => json(200, &state.begun(id).operation),
        (&Method::POST, ["leases"]) => lease(request, state),
        (&Method::GET, ["vms"]) => json(200, &*state.vms.lock().unwrap()),
        (&Method::POST, ["vms"]) => create(request, &state).await,
        (&Method::GET, ["images"]) => json(200, &[image()]),
        (_, ["operations", id]) if method == Method::DELETE => {
            let _ = state.deeds.send(Deed::CalledOff);
            state.begun(id).called_off.send_replace(true);
            whole(202, format!("{{\"id\":\"{id}\"}}"))
        }
        (_, ["operations", id, "events"]) => events(state.begun(id)),
        (_, ["vms", name, rest @ ..]) => {
            let found = {
                let vms = state.vms.lock().unwrap();
                vms.iter()
                    .find(|vm| vm.name.as_str() == *name || vm.id.as_str() == *name)
                    .cloned()
            };
            match found {
                None => failed(&ApiError::new(
                    ErrorKind::NotFound,
                    format!("no VM `{name}`"),
                )),
                Some(vm) => of_vm(request, rest, &vm, state).await,
            }
        }
        _ => failed(&ApiError::new(
            ErrorKind::NotFound,
            format!("no {method} {path}"),
        )),
    })
}

async fn of_vm(
    request: Request<Incoming>,
    rest: &[&str],
    vm: &Vm,
    state: Arc<State>,
) -> Response<Body> {
    match (request.method(), rest) {
        (&Method::GET, []) if request.uri().query() == Some("guest=true") => {
            let guest = health(vm).agent;
            json(
                200,
                &Vm {
                    guest,
                    ..vm.clone()
                },
            )
        }
        (&Method::GET, []) => json(200, vm),
        (&Method::DELETE, []) => {
            let _ = state.deeds.send(Deed::Deleted(vm.name.to_string()));
            state.begin(OperationKind::DeleteVm, vm, Course::Well)
        }
        (&Method::PATCH, []) => order(request, OperationKind::SetVm, vm, &state).await,
        (&Method::POST, ["start"]) => order(request, OperationKind::StartVm, vm, &state).await,
        (&Method::POST, ["stop"]) => state.begin(OperationKind::StopVm, vm, Course::Well),
        (&Method::POST, ["restart"]) => order(request, OperationKind::RestartVm, vm, &state).await,
        (&Method::POST, ["kill"]) => order(request, OperationKind::KillVm, vm, &state).await,
        (&Method::POST, ["pause"]) => order(request, OperationKind::PauseVm, vm, &state).await,
        (&Method::POST, ["resume"]) => order(request, OperationKind::ResumeVm, vm, &state).await,
        (&Method::GET, ["stats"]) => json(200, &stats(vm, &state)),
        (&Method::GET, ["health"]) => json(200, &health(vm)),
        (&Method::GET, ["files"]) => files(&guest_path(&request, vm, &state)),
        (&Method::PUT, ["files"]) => {
            let directory = guest_path(&request, vm, &state);
            let Ok(body) = request.into_body().collect().await else {
                return whole(400, "cut short");
            };
            let mut archive = tar::Archive::new(std::io::Cursor::new(body.to_bytes()));
            archive.set_preserve_permissions(true);
            match archive.unpack(directory) {
                Ok(()) => whole(204, ""),
                Err(error) => failed(&ApiError::new(ErrorKind::Failed, error.to_string())),
            }
        }
        (&Method::GET, ["logs"]) => whole(200, format!("{}\n", request.uri())),
        (&Method::POST, ["exec"]) => upgraded(request, move |stream| async move {
            let end = guest::serve(stream).await;
            let _ = state.deeds.send(Deed::ExecEnded(end));
        }),
        (&Method::POST, ["ssh"]) => upgraded(request, |stream| async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        }),
        (method, rest) => failed(&ApiError::new(
            ErrorKind::NotFound,
            format!("no {method} {rest:?}"),
        )),
    }
}

/// Tells the test, and begins an operation. The VM `devbox` refuses to be changed.
async fn order(
    request: Request<Incoming>,
    kind: OperationKind,
    vm: &Vm,
    state: &State,
) -> Response<Body> {
    let path = request
        .uri()
        .path()
        .trim_start_matches("/v1/vms/")
        .to_owned();
    let asked = format!("{} {path}", request.method());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked = format!("{asked} {}", String::from_utf8_lossy(&body));
    let _ = state.deeds.send(Deed::Asked(asked.trim().to_owned()));
    if kind == OperationKind::SetVm && vm.name.as_str() == "devbox" {
        return failed(&ApiError {
            causes: vec!["it runs, and its CPUs can be changed only while it is down".into()],
            ..ApiError::new(ErrorKind::Conflict, "could not change VM `devbox`")
                .with_hint("`banger vm stop devbox` first")
        });
    }
    state.begin(kind, vm, Course::Well)
}

fn stats(vm: &Vm, state: &State) -> VmStats {
    let look = state.looks.fetch_add(1, Ordering::Relaxed);
    VmStats {
        vm: vm.id.clone(),
        vm_name: vm.name.clone(),
        node: vm.node.clone(),
        state: vm.state,
        at_us: look * 1_000_000,
        host: Some(HostUsage {
            pid: 7,
            cpu_us: look * 250_000,
            memory: ByteSize::from_mib(300),
        }),
        guest: Some(Stats {
            memory_total: Some(ByteSize::from_mib(512)),
            memory_available: Some(ByteSize::from_mib(384)),
            ..Stats::default()
        }),
        guest_error: None,
        disk_used: ByteSize::from_mib(90),
    }
}

/// The VM `devbox` has an agent that does not answer.
fn health(vm: &Vm) -> VmHealth {
    let mute = vm.name.as_str() == "devbox" || vm.state != VmState::Running;
    VmHealth {
        vm: vm.id.clone(),
        vm_name: vm.name.clone(),
        state: vm.state,
        healthy: !mute,
        round_trip_ms: (!mute).then_some(0.5),
        agent: None,
        error: mute.then(|| ApiError::new(ErrorKind::Timeout, "the agent does not answer")),
    }
}

/// What `path=` of a request names, as text, so that a slash at its end stays.
fn guest_path(request: &Request<Incoming>, vm: &Vm, state: &State) -> String {
    let query = request.uri().query().unwrap();
    let encoded = query.strip_prefix("path=").unwrap().as_bytes();
    let mut path = Vec::new();
    let mut at = 0;
    while at < encoded.len() {
        if encoded[at] == b'%' {
            let digits = std::str::from_utf8(&encoded[at + 1..at + 3]).unwrap();
            path.push(u8::from_str_radix(digits, 16).unwrap());
            at += 3;
        } else {
            path.push(encoded[at]);
            at += 1;
        }
    }
    let root = state.guests.join(vm.name.as_str());
    format!("{}{}", root.display(), String::from_utf8(path).unwrap())
}

fn files(path: &str) -> Response<Body> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return failed(&ApiError::new(
            ErrorKind::NotFound,
            "there is no such file in the VM",
        ));
    };
    let name = Path::new(path).file_name().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    match metadata.is_dir() {
        true => builder.append_dir_all(name, path).unwrap(),
        false => builder.append_path_with_name(path, name).unwrap(),
    }
    whole(200, builder.into_inner().unwrap())
}

/// Events behind the one that the client has seen last; with `follow`, those to come too, up to
/// a `missed`.
fn daemon_events(request: &Request<Incoming>, state: &State) -> Response<Body> {
    let seen = request.headers().get("last-event-id").map_or(0, |id| {
        let id = id.to_str().unwrap();
        id.rsplit('-').next().unwrap().parse().unwrap()
    });
    let lines = |events: &[Event]| -> String {
        let line = |event: &Event| {
            let data = serde_json::to_string(event).unwrap();
            format!("id: {}\ndata: {data}\n\n", event.id)
        };
        events.iter().map(line).collect()
    };
    if request.uri().query() != Some("follow=true") {
        return whole(200, lines(&state.events.borrow()[seen..]));
    }
    let _ = state.deeds.send(Deed::Asked("GET events".into()));
    let newest = state.events.subscribe();
    let frames = futures_util::stream::unfold(Some((newest, seen)), move |place| async move {
        let (mut newest, seen) = place?;
        let (text, next) = {
            let events = newest.wait_for(|events| events.len() > seen).await.ok()?;
            let next = match events.last().map(|event| &event.what) {
                // Stands for a daemon that ends.
                Some(Happened::Missed) => None,
                _ => Some(events.len()),
            };
            (lines(&events[seen..]), next)
        };
        let place = next.map(|seen| (newest, seen));
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), place))
    });
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(StreamBody::new(frames).boxed())
        .unwrap()
}

fn upgraded<F>(
    mut request: Request<Incoming>,
    serve: impl FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
) -> Response<Body>
where
    F: Future<Output = ()> + Send,
{
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgrade.await {
            serve(TokioIo::new(stream)).await;
        }
    });
    Response::builder()
        .status(101)
        .header("connection", "upgrade")
        .header("upgrade", "banger-stream")
        .body(Full::default().boxed())
        .unwrap()
}

fn lease(request: Request<Incoming>, state: Arc<State>) -> Response<Body> {
    upgraded(request, |mut stream| async move {
        let _ = state.deeds.send(Deed::LeaseTaken);
        let grant = format!("{{\"lease\":\"{}\"}}\n", LeaseId::new());
        stream.write_all(grant.as_bytes()).await.unwrap();
        while stream.read(&mut [0; 64]).await.unwrap_or(0) > 0 {}
        let _ = state.deeds.send(Deed::LeaseEnded);
    })
}

/// The VM named `slow` never gets ready, and `broken` fails.
async fn create(request: Request<Incoming>, state: &State) -> Response<Body> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let create: CreateVm = serde_json::from_slice(&body).unwrap();
    let summary = CreateVmSummary {
        name: create.name.as_ref().map(ToString::to_string),
        leased: create.lease.is_some(),
    };
    let _ = state.deeds.send(Deed::Created(Box::new(summary)));
    let name = create
        .name
        .map_or_else(|| "new-vm".to_owned(), |name| name.to_string());
    let vm = vm(&name);
    let course = match name.as_str() {
        "slow" => Course::Slow,
        "broken" => Course::Fails,
        _ => Course::Well,
    };
    let answer = state.begin(OperationKind::CreateVm, &vm, course);
    if course == Course::Well {
        state.vms.lock().unwrap().push(vm);
    }
    answer
}

fn events(begun: Arc<Begun>) -> Response<Body> {
    let (mut sender, body) = tokio::io::duplex(4096);
    tokio::spawn(async move {
        let mut done = begun.operation.clone();
        done.state = OperationState::Succeeded;
        send(
            &mut sender,
            &OperationEvent::Stage {
                stage: "disks".into(),
            },
        )
        .await;
        send(
            &mut sender,
            &OperationEvent::Progress(Progress {
                what: "download kernel".into(),
                done: 1 << 20,
                total: Some(2 << 20),
                unit: ProgressUnit::Bytes,
            }),
        )
        .await;
        send(
            &mut sender,
            &OperationEvent::StageDone(StageTime {
                stage: "disks".into(),
                begin_ms: 0.0,
                took_ms: 12.0,
                failed: false,
            }),
        )
        .await;
        if begun.course == Course::Slow {
            let mut called_off = begun.called_off.subscribe();
            let _ = called_off.wait_for(|called_off| *called_off).await;
            done.state = OperationState::Cancelled;
            done.error = Some(ApiError::new(ErrorKind::Cancelled, "it was called off"));
        }
        if begun.course == Course::Fails {
            done.state = OperationState::Failed;
            done.error = Some(ApiError {
                causes: vec!["the disk is full".into()],
                ..ApiError::new(
                    ErrorKind::Failed,
                    "could not start VM `broken`: stage disks",
                )
            });
        }
        send(&mut sender, &OperationEvent::Done(Box::new(done))).await;
    });
    let frames = futures_util::stream::unfold(body, |mut body| async move {
        let mut buffer = vec![0; 4096];
        let length = body.read(&mut buffer).await.unwrap_or(0);
        buffer.truncate(length);
        (length > 0).then(|| (Ok::<_, Infallible>(Frame::data(Bytes::from(buffer))), body))
    });
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(StreamBody::new(frames).boxed())
        .unwrap()
}

async fn send(sender: &mut tokio::io::DuplexStream, event: &OperationEvent) {
    let text = format!("data: {}\n\n", serde_json::to_string(event).unwrap());
    // The client may have gone.
    let _ = sender.write_all(text.as_bytes()).await;
}

fn image() -> Image {
    Image {
        id: ImageId::new(),
        name: "debian-bookworm-slim".parse().unwrap(),
        digest: "sha256:00".into(),
        source: "recipe".into(),
        distro: "debian 12".into(),
        arch: "x86_64".into(),
        created_at: "2026-01-01T00:00:00Z".into(),
        size: ByteSize::from_mib(261),
        kernel: "generic-6.12".parse().unwrap(),
        reference: None,
        env: [].into(),
        user: None,
        workdir: None,
        entrypoint: Vec::new(),
        cmd: Vec::new(),
        labels: [].into(),
        managed: true,
        rootfs: None,
        problem: None,
    }
}
