//! Runs the daemon: one for each state directory, from the lock to the last open request.
//!
//! ```text
//! lock ─> log ─> host ─> reconcile ─> bind ─> ready line ─> serve ─> SIGTERM, SIGINT, stop ─> end
//! ```
//!
//! VMs are not ended with it: the next daemon takes them over.

pub mod log;
pub mod socket;

use std::future::Future;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use banger_config::{Config, Paths};
use banger_proto::error::{ApiError, ErrorKind};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::socket::SocketError;
use crate::api::{Api, Peer};
use crate::fleet::Fleet;
use crate::host::{Host, Surroundings};
use crate::names;
use crate::reconcile::Reconciler;
use crate::superseded;

/// Names the level of the log in place of the config.
pub const LOG_LEVEL_VARIABLE: &str = "BANGER_LOG_LEVEL";
/// Threads of the runtime. One copies a stream while the other answers requests.
const WORKERS: usize = 2;
/// How long starts that were called off may take to clean up when the daemon ends.
const QUIESCE_LIMIT: Duration = Duration::from_secs(20);
/// How long open requests may take when the daemon ends.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Serves until a signal or a client ends it. Writes the ready line to standard output.
///
/// # Errors
/// Why it could not serve; nothing was written then.
pub fn run() -> Result<(), ApiError> {
    let paths =
        Paths::from_env().map_err(|error| could_not_start(ErrorKind::Invalid).caused_by(&error))?;
    let lock = socket::claim(&paths).map_err(socket_failure)?;
    let config = Config::load(&paths.config_file())
        .map_err(|error| could_not_start(ErrorKind::Invalid).caused_by(&error))?;
    let level =
        std::env::var(LOG_LEVEL_VARIABLE).unwrap_or_else(|_| config.log_level.as_str().to_owned());
    log::init(&paths.daemon_log(), &level).map_err(|error| {
        let mut api = could_not_start(ErrorKind::Failed).caused_by(&error);
        api.hint = error.hint();
        api
    })?;
    raise_limits();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(|error| could_not_start(ErrorKind::Failed).caused_by(&error))?;
    let served = runtime.block_on(async {
        let signals =
            end_signals().map_err(|error| could_not_start(ErrorKind::Failed).caused_by(&error))?;
        serve(
            paths,
            config,
            Surroundings::from_env(),
            write_ready_line,
            signals,
        )
        .await
    });
    // What blocks at this moment, such as an image being built, is given up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(lock);
    served
}

/// Allows this process as many open files as the system lets it have: each VM takes several.
fn raise_limits() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, ?limit, "could not raise the limit of open files");
    }
}

/// Puts the daemon of these paths together and serves until `told` resolves or a client ends
/// it. `ready` is called when the socket is served. The caller holds the lock.
///
/// # Errors
/// Why it could not serve.
pub async fn serve(
    paths: Paths,
    config: Config,
    surroundings: Surroundings,
    ready: impl FnOnce(&Paths) + Send,
    told: impl Future<Output = ()>,
) -> Result<(), ApiError> {
    let made = {
        let paths = paths.clone();
        crate::blocking(move || Host::new(paths, config, surroundings)).await
    };
    let host = made.map_err(|error| {
        let mut api = could_not_start(ErrorKind::Failed).caused_by(&error);
        api.hint = error.hint();
        api
    })?;
    tracing::info!(version = banger_proto::VERSION, state = %paths.state.display(), "starts");
    let fleet = Arc::new(Fleet::new(Arc::new(host)));
    let mut reconciler = Reconciler::new(Arc::clone(&fleet));
    reconciler.first_pass().await.map_err(|error| {
        let mut api = could_not_start(ErrorKind::Failed).caused_by(&error);
        api.hint = error.hint();
        api
    })?;
    let listener = socket::bind(&paths.socket()).map_err(socket_failure)?;
    ready(&paths);
    let agreeing = tokio::spawn(reconciler.keep_agreeing());
    let clock = tokio::spawn(watch_clock(Arc::clone(&fleet)));
    let logs = tokio::spawn(watch_logs(Arc::clone(&fleet)));
    let superseded = tokio::spawn(superseded::watch(Arc::clone(&fleet)));
    let names = tokio::spawn(names::keep(Arc::clone(&fleet)));
    serve_until_told(listener, &fleet, told).await;
    agreeing.abort();
    clock.abort();
    logs.abort();
    superseded.abort();
    names.abort();
    tracing::info!("ends; VMs that run go on");
    let pulls = &fleet.host().pulls;
    let quiet = async { tokio::join!(fleet.quiesce(), pulls.end()) };
    if tokio::time::timeout(QUIESCE_LIMIT, quiet).await.is_err() {
        tracing::warn!("some work did not end in time; the next daemon cleans up");
    }
    socket::remove(&paths.socket());
    Ok(())
}

/// Has owners know when the host's clock jumps. Without that they go by their timers.
async fn watch_clock(fleet: Arc<Fleet>) {
    let host = fleet.host();
    let watch = async {
        if let Err(error) = host.clock.watch().await {
            tracing::warn!(%error, "the host's clock cannot be watched");
        }
    };
    tokio::join!(watch, host.faults.play_jumps(&host.clock));
}

/// Keeps the logs of engines bounded.
async fn watch_logs(fleet: Arc<Fleet>) {
    fleet.host().logs.watch().await;
}

async fn serve_until_told(
    listener: UnixListener,
    fleet: &Arc<Fleet>,
    told: impl Future<Output = ()>,
) {
    let stop = CancellationToken::new();
    let app = Api::new(Arc::clone(fleet), stop.clone()).router();
    let service = app.into_make_service_with_connect_info::<Peer>();
    let draining = stop.clone();
    let server = axum::serve(listener, service)
        .with_graceful_shutdown(async move { draining.cancelled().await });
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        () = told => stop.cancel(),
        () = stop.cancelled() => {}
        // It only ends when it is told to.
        _ = &mut server => return,
    }
    // Followers of events and logs would hold it open for ever.
    let _ = tokio::time::timeout(DRAIN_LIMIT, server).await;
}

/// Resolves at the first signal that asks the daemon to end.
fn end_signals() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A terminal that closes is no reason to end.
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => {}
            }
        }
    })
}

fn write_ready_line(paths: &Paths) {
    #[derive(Serialize)]
    struct Ready<'a> {
        ready: bool,
        socket: &'a str,
    }
    let socket = paths.socket();
    let ready = Ready {
        ready: true,
        socket: &socket.to_string_lossy(),
    };
    let mut line = serde_json::to_vec(&ready).expect("it has only string keys");
    line.push(b'\n');
    // Whoever started the daemon may not want to know.
    let mut out = io::stdout();
    let _ = out.write_all(&line).and_then(|()| out.flush());
}

fn could_not_start(kind: ErrorKind) -> ApiError {
    ApiError::new(kind, "could not start the daemon")
}

fn socket_failure(error: SocketError) -> ApiError {
    match &error {
        // The CLI goes by these words: it connects to the other one.
        SocketError::AlreadyRunning { .. } => ApiError::new(ErrorKind::Conflict, error.to_string()),
        SocketError::File(file) => {
            let mut api = could_not_start(ErrorKind::Failed).caused_by(&error);
            api.hint = file.hint();
            api
        }
        SocketError::Bind { .. } => could_not_start(ErrorKind::Failed).caused_by(&error),
    }
}
