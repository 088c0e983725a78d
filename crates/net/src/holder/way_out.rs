//! The way out of the namespace: pasta and the guests' resolver, from the host's side.
//!
//! A thread of its own stays in the host's network namespace, and what it starts does too.
//! pasta enters the holder's namespace for its own end of the tap that it makes there, and
//! makes the host's sockets on the host's side.
//!
//! ```text
//!             open()             default route appears
//!   Closed ───────────> Opening ───────────────────────> Open
//!                         ^  │                            │
//!              a delay,   │  │ pasta ends                 │ pasta ends
//!   open(), a new default │  v                            │
//!     route of the host   Failed <────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::error::Error;
use std::fs;
use std::future::{Future, pending};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use banger_process::ProcessFailure;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::RouteType;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::HolderError;
use super::log::Log;
use super::resolver;
use crate::host;
use crate::protocol::Failure;

/// Name of pasta's interface in the namespace.
const INTERFACE: &str = "outside";
/// How long pasta may take to set up its interface. It takes about 10 ms.
const OPENING_MAX: Duration = Duration::from_secs(5);
/// First and longest delay before a pasta that ended is started again.
const DELAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// After so many starts in vain nobody tries before there is a reason to.
const STARTS_MAX: u32 = 8;
/// A pasta that lived so long did not start in vain.
const SOUND: Duration = Duration::from_secs(60);
/// Lines of pasta's last words that are kept for an error.
const LAST_WORDS: usize = 5;

/// How the way out stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Opening,
    Open,
    Failed(Failure),
}

/// A handle on the way out; clones share it.
#[derive(Clone, Debug)]
pub(super) struct WayOut {
    state: watch::Sender<State>,
    wanted: mpsc::Sender<()>,
    resolver: mpsc::Sender<resolver::Sockets>,
}

/// Starts the thread on the host's side. Call it before entering the network namespace.
pub(super) fn start(log: Log) -> Result<WayOut, HolderError> {
    let (state, _) = watch::channel(State::Closed);
    let (wanted, wishes) = mpsc::channel(1);
    let (resolver, sockets) = mpsc::channel(1);
    let minder = Minder {
        state: state.clone(),
        wishes,
        log,
    };
    let failed = |source| HolderError::Furnish {
        step: "start the thread on the host's side".to_owned(),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    std::thread::Builder::new()
        .name("outside".to_owned())
        .spawn(move || {
            runtime.spawn(resolve(sockets, minder.log.clone()));
            runtime.block_on(minder.mind());
        })
        .map_err(failed)?;
    Ok(WayOut {
        state,
        wanted,
        resolver,
    })
}

impl WayOut {
    /// Begins to open the way out.
    pub(super) fn wish(&self) {
        // One that waits to be heard already is as good as another one.
        let _ = self.wanted.try_send(());
    }

    /// Sees to it that there is a way out, or says why there is none.
    pub(super) async fn open(&self) -> Result<(), Failure> {
        let mut state = self.state.subscribe();
        match *state.borrow_and_update() {
            State::Open => return Ok(()),
            State::Opening => {}
            State::Closed | State::Failed(_) => self.wish(),
        }
        let settled = async {
            while state.changed().await.is_ok() {
                match &*state.borrow_and_update() {
                    State::Open => return Ok(()),
                    State::Failed(failure) => return Err(failure.clone()),
                    State::Closed | State::Opening => {}
                }
            }
            Err(Failure::new("the thread on the host's side has ended"))
        };
        match timeout(OPENING_MAX, settled).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(format!(
                "pasta did not set up its interface within {} s",
                OPENING_MAX.as_secs()
            ))),
        }
    }

    /// Answers DNS on the gateway, in the namespace of the calling thread.
    pub(super) fn resolve(&self, gateway: Ipv4Addr) -> io::Result<()> {
        let sockets = resolver::Sockets::bind(gateway)?;
        let sent = self.resolver.try_send(sockets);
        sent.map_err(|_| io::ErrorKind::AddrInUse.into())
    }

    /// Watches the namespace of the calling thread for pasta's default route.
    pub(super) fn watch_namespace(&self) -> io::Result<impl Future<Output = ()> + use<>> {
        let mut routes = Routes::watch()?;
        let state = self.state.clone();
        Ok(async move {
            while routes.next_default().await.is_some() {
                state.send_if_modified(|state| {
                    let opened = *state == State::Opening;
                    if opened {
                        *state = State::Open;
                    }
                    opened
                });
            }
        })
    }
}

async fn resolve(mut sockets: mpsc::Receiver<resolver::Sockets>, log: Log) {
    while let Some(sockets) = sockets.recv().await {
        if let Err(error) = resolver::serve(sockets).await {
            let failure = Failure::from(&error as &dyn Error);
            log.warn("guests have no resolver", Some(&failure));
        }
    }
}

struct Minder {
    state: watch::Sender<State>,
    wishes: mpsc::Receiver<()>,
    log: Log,
}

impl Minder {
    async fn mind(mut self) {
        // Without them a way out that failed comes back when a VM wishes for it.
        let mut routes = Routes::watch().ok();
        let mut restarts = Restarts::default();
        let mut wish = self.wishes.recv().await;
        while wish.is_some() {
            let begun = Instant::now();
            self.state.send_replace(State::Opening);
            let failure = self.run_pasta().await;
            self.log.warn("there is no way out", Some(&failure));
            self.state.send_replace(State::Failed(failure));
            let delay = restarts.delay(begun.elapsed());
            wish = tokio::select! {
                () = elapse(delay) => Some(()),
                () = new_default(&mut routes) => {
                    restarts = Restarts::default();
                    Some(())
                }
                wish = self.wishes.recv() => wish,
            };
        }
    }

    /// Runs pasta until it ends, and tells why it did.
    async fn run_pasta(&self) -> Failure {
        let routes = host::routes().unwrap_or_default();
        if host::way_out(&routes).is_none() {
            // Some versions of pasta end then, others run and lead nowhere.
            return Failure::new(host::NO_WAY_OUT);
        }
        match self.spawn_and_wait().await {
            Ok(failure) => Failure::from(&failure as &dyn Error),
            Err(error) => Failure::because("could not run pasta", Failure::new(error.to_string())),
        }
    }

    async fn spawn_and_wait(&self) -> io::Result<ProcessFailure> {
        let program = banger_process::find("pasta")
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is not installed"))?;
        let mut pasta = Command::from(banger_process::command(program))
            .args(arguments(&namespace()?))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let words = pasta.stderr.take().expect("standard error is piped");
        let mut words = BufReader::new(words).lines();
        let mut last = VecDeque::new();
        while let Ok(Some(line)) = words.next_line().await {
            // Without a system log pasta says this of each line that it says here as well.
            if line.trim().is_empty() || line.contains("bytes to syslog") {
                continue;
            }
            self.log.info(&format!("pasta: {line}"));
            last.push_back(line);
            if last.len() > LAST_WORDS {
                last.pop_front();
            }
        }
        let status = pasta.wait().await?;
        Ok(ProcessFailure {
            command: "pasta".to_owned(),
            status: banger_process::status(status),
            stderr: last.into(),
        })
    }
}

async fn elapse(delay: Option<Duration>) {
    match delay {
        Some(delay) => sleep(delay).await,
        None => pending().await,
    }
}

async fn new_default(routes: &mut Option<Routes>) {
    let new = match routes {
        Some(routes) => routes.next_default().await,
        None => None,
    };
    if new.is_none() {
        pending().await
    }
}

/// The holder's network namespace as a path for pasta. This form, which names a process of
/// /proc and no thread, is one that distributions' AppArmor profiles of pasta allow.
fn namespace() -> io::Result<PathBuf> {
    let pid = fs::read_link("/proc/self")?;
    Ok(Path::new("/proc").join(pid).join("ns/net"))
}

/// pasta(1), of the version of March 2023 as of later ones.
fn arguments(namespace: &Path) -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<std::ffi::OsString> = vec![
        "--foreground".into(),
        "--quiet".into(),
        // It is root in the user namespace that it shares with the holder, and shall stay.
        "--runas".into(),
        "0".into(),
        "--netns-only".into(),
        "--netns".into(),
        namespace.into(),
        "--config-net".into(),
        "--ns-ifname".into(),
        INTERFACE.into(),
        "--ipv4-only".into(),
        // Nothing of the host's loopback for guests, and nothing the other way.
        "--no-map-gw".into(),
    ];
    for ports in ["--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"] {
        arguments.extend([ports.into(), "none".into()]);
    }
    arguments
}

/// How often and how soon pasta is started again.
#[derive(Debug, Default)]
struct Restarts {
    in_vain: u32,
}

impl Restarts {
    /// The delay after a run of length `lived`; `None`: no more.
    fn delay(&mut self, lived: Duration) -> Option<Duration> {
        if lived >= SOUND {
            self.in_vain = 0;
        }
        let (first, longest) = DELAY;
        let delay = first.saturating_mul(4u32.saturating_pow(self.in_vain));
        self.in_vain += 1;
        (self.in_vain < STARTS_MAX).then_some(delay.min(longest))
    }
}

/// The default routes that come up in one network namespace.
struct Routes {
    defaults: BoxStream<'static, ()>,
    connection: tokio::task::JoinHandle<()>,
}

impl Routes {
    /// Watches the namespace of the calling thread.
    fn watch() -> io::Result<Self> {
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Ipv4Route])?;
        let defaults = messages.filter_map(async |(message, _)| match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                let default = route.header.destination_prefix_length == 0;
                (default && route.header.kind == RouteType::Unicast).then_some(())
            }
            _ => None,
        });
        Ok(Self {
            defaults: defaults.boxed(),
            connection: tokio::spawn(connection),
        })
    }

    /// Waits for the next new default route. Cancel-safe.
    async fn next_default(&mut self) -> Option<()> {
        self.defaults.next().await
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pasta_is_started_again_ever_later_and_not_for_ever() {
        let mut restarts = Restarts::default();
        let delays: Vec<_> = std::iter::from_fn(|| restarts.delay(Duration::ZERO)).collect();
        assert_eq!(delays.len(), 7);
        assert!(delays.is_sorted());
        assert_eq!((delays[0], delays[6]), DELAY);
    }

    #[test]
    fn a_pasta_that_lived_is_started_again_at_once() {
        let mut restarts = Restarts::default();
        while restarts.delay(Duration::ZERO).is_some() {}
        assert_eq!(restarts.delay(SOUND), Some(DELAY.0));
    }

    #[test]
    fn pastas_command_line_opens_nothing_of_the_host() {
        let words = arguments(Path::new("/proc/4711/ns/net"));
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        insta::assert_snapshot!(words.join(" "));
    }
}
