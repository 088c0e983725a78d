//! The holder at work: it furnishes the namespace and answers requests.
//!
//! One loop owns the devices; connections hand it their requests. That no tap is added while
//! the holder decides to end follows from there being one loop: it stops listening before it
//! says that the last tap has gone, and whoever gets no answer asks the next holder.

use std::error::Error;
use std::fs;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use banger_process::ProcessFailure;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::link::{LinkError, Links};
use super::log::Log;
use super::way_out::WayOut;
use super::{HolderError, Place, tell};
use crate::channel::{Channel, Listener};
use crate::plan::{Instance, Subnet};
use crate::protocol::{Answer, Failure, Hello, Request, Started, VERSION, decode, encode};
use crate::rules::{self, Reach};

/// How long a holder without taps waits for a first request.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Between attempts to accept, so that a lack of descriptors does not become a busy loop.
const BREATH: Duration = Duration::from_millis(100);
/// How long a client may take over its side of an exchange.
const CLIENT_MAX: Duration = Duration::from_secs(10);
/// How long nft may take. It takes some milliseconds.
const NFT_MAX: Duration = Duration::from_secs(10);

/// Runs the holder in its namespaces until it shall end; returns the reason.
pub(super) fn serve(
    place: &Place,
    instance: Instance,
    subnet: Subnet,
    way_out: WayOut,
    log: &Log,
) -> Result<&'static str, HolderError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(furnish("start the holder's runtime"))?;
    runtime.block_on(async {
        let (connection, netlink, _) =
            rtnetlink::new_connection().map_err(furnish("speak netlink"))?;
        tokio::spawn(connection);
        let opened = way_out.watch_namespace();
        tokio::spawn(opened.map_err(furnish("watch the namespace's routes"))?);
        if place.open {
            way_out.wish();
        }
        let (links, ()) = tokio::try_join!(
            Links::furnish(netlink, instance, subnet),
            load_rules(instance, subnet),
        )?;
        way_out
            .resolve(subnet.gateway)
            .map_err(furnish("answer DNS on the gateway"))?;
        let terminated = signal(SignalKind::terminate()).map_err(furnish("catch signals"))?;
        let pid = pid_on_host().map_err(furnish("find out the holder's process id"))?;
        let socket = Socket::publish(place).map_err(furnish("listen for the daemon"))?;
        tell(&Started::Ready).map_err(HolderError::Orphan)?;
        log.info(&format!(
            "the holder {} is ready as process {pid}",
            banger_proto::VERSION
        ));
        let holder = Holder {
            links,
            way_out,
            pid,
            log: log.clone(),
        };
        holder.run(socket, terminated).await
    })
}

fn furnish(step: &str) -> impl FnOnce(io::Error) -> HolderError {
    let step = step.to_owned();
    move |source| HolderError::Furnish { step, source }
}

async fn load_rules(instance: Instance, subnet: Subnet) -> Result<(), HolderError> {
    let failed = || furnish("run nft");
    let program = banger_process::find("nft")
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is not installed"))
        .map_err(failed())?;
    let mut nft = Command::from(banger_process::command(program))
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed())?;
    let mut input = nft.stdin.take().expect("standard input is piped");
    let load = async {
        input
            .write_all(rules::render(instance, subnet).as_bytes())
            .await?;
        drop(input);
        nft.wait_with_output().await
    };
    let loaded = timeout(NFT_MAX, load).await;
    let output = loaded
        .map_err(io::Error::from)
        .flatten()
        .map_err(failed())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(HolderError::Rules(ProcessFailure::new(
            "nft",
            output.status,
            &output.stderr,
        ))),
    }
}

/// This process' id outside of its PID namespace, whose /proc is still mounted here.
fn pid_on_host() -> io::Result<i32> {
    let pid = fs::read_link("/proc/self")?;
    let pid = pid.to_str().and_then(|pid| pid.parse().ok());
    pid.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The socket, under its name while this exists.
struct Socket {
    listener: Listener,
    path: PathBuf,
}

impl Socket {
    /// Listens, and only then shows the socket under its name. What is there under that
    /// name is of a holder that was killed, as this one has the lock.
    fn publish(place: &Place) -> io::Result<Self> {
        let path = place.runtime_dir.join(crate::config::SOCKET);
        let hidden = path.with_extension("new");
        remove(&hidden)?;
        let listener = Listener::bind(&hidden)?;
        fs::rename(&hidden, &path)?;
        Ok(Self { listener, path })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // At worst the name stays, and nobody answers to it.
        let _ = remove(&self.path);
    }
}

fn remove(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A request, and the connection that waits for the answer.
type Errand = (Request, Channel);

/// Whether the holder goes on.
enum Next {
    Stay,
    End(&'static str),
}

struct Holder {
    links: Links,
    way_out: WayOut,
    pid: i32,
    log: Log,
}

impl Holder {
    async fn run(
        self,
        socket: Socket,
        mut terminated: Signal,
    ) -> Result<&'static str, HolderError> {
        let (errands, mut inbox) = mpsc::channel(16);
        // Whether the last look found no taps.
        let mut vacant = true;
        loop {
            let idle = async {
                match vacant {
                    true => sleep(IDLE_MAX).await,
                    false => pending().await,
                }
            };
            tokio::select! {
                accepted = socket.listener.accept() => match accepted {
                    Ok(channel) => self.receive(channel, errands.clone()),
                    Err(error) => {
                        self.warn("could not accept a connection", &error);
                        sleep(BREATH).await;
                    }
                },
                errand = inbox.recv() => {
                    let (request, channel) = errand.expect("this loop keeps a sender");
                    let (reply, next) = self.handle(request).await;
                    if let Next::End(reason) = next {
                        // Whoever comes now shall not find this holder any more.
                        drop(socket);
                        reply.send(channel).await;
                        return Ok(reason);
                    }
                    vacant = false;
                    tokio::spawn(reply.send(channel));
                }
                _ = terminated.recv() => return Ok("it was told to terminate"),
                () = idle => return Ok("nobody came"),
            }
        }
    }

    /// Greets a client and hears its request out, beside the loop.
    fn receive(&self, channel: Channel, errands: mpsc::Sender<Errand>) {
        let hello = Hello {
            protocol: VERSION,
            version: banger_proto::VERSION.to_owned(),
            pid: self.pid,
        };
        let log = self.log.clone();
        tokio::spawn(async move {
            match timeout(CLIENT_MAX, hear(&channel, &hello)).await {
                Ok(Ok(Some(request))) => {
                    // The loop is there as long as the process is.
                    let _ = errands.send((request, channel)).await;
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    let failure = Failure::from(&error as &dyn Error);
                    log.warn("a client said nothing sensible", Some(&failure));
                    let refusal = Reply::from(Answer::Refused(failure));
                    refusal.send(channel).await;
                }
                Err(_) => log.warn("a client said nothing", None),
            }
        });
    }

    async fn handle(&self, request: Request) -> (Reply, Next) {
        match request {
            Request::Attach { slot, reach, mtu } => self.attach(slot, reach, mtu).await,
            Request::Detach { slot } => self.detach(slot).await,
            Request::List => match self.links.slots().await {
                Ok(slots) => (Answer::Slots(slots).into(), Next::Stay),
                Err(error) => (Reply::refused(&error), Next::Stay),
            },
            Request::SetReach { slot, reach } => {
                let reply = match self.links.set_reach(slot, reach).await {
                    Ok(true) => Reply {
                        way_out: (reach == Reach::Outside).then(|| self.way_out.clone()),
                        ..Answer::Done.into()
                    },
                    Ok(false) => Answer::Absent.into(),
                    Err(error) => Reply::refused(&error),
                };
                (reply, Next::Stay)
            }
            Request::ShutDown => {
                self.clear().await;
                let reply = Answer::Detached { last: true }.into();
                (reply, Next::End("it was told to shut down"))
            }
        }
    }

    async fn attach(&self, slot: u16, reach: Reach, mtu: u16) -> (Reply, Next) {
        match self.links.attach(slot, reach, mtu).await {
            Ok(tap) => {
                let reply = Reply {
                    answer: Answer::Attached { no_way_out: None },
                    tap: Some(tap),
                    way_out: (reach == Reach::Outside).then(|| self.way_out.clone()),
                };
                (reply, Next::Stay)
            }
            Err(error) => {
                self.log.warn(
                    "could not attach a VM",
                    Some(&Failure::from(&error as &dyn Error)),
                );
                (Reply::refused(&error), self.end_if_vacant().await)
            }
        }
    }

    async fn detach(&self, slot: u16) -> (Reply, Next) {
        if let Err(error) = self.links.detach(slot).await {
            return (Reply::refused(&error), Next::Stay);
        }
        let next = self.end_if_vacant().await;
        let last = matches!(next, Next::End(_));
        (Answer::Detached { last }.into(), next)
    }

    async fn end_if_vacant(&self) -> Next {
        match self.links.slots().await {
            Ok(slots) if slots.is_empty() => Next::End("the last tap is gone"),
            Ok(_) => Next::Stay,
            Err(error) => {
                self.warn("could not see whether there are taps", &error);
                Next::Stay
            }
        }
    }

    /// Deletes the taps: an engine that has one open would keep the namespace.
    async fn clear(&self) {
        let slots = self.links.slots().await.unwrap_or_default();
        for slot in slots {
            if let Err(error) = self.links.detach(slot).await {
                self.warn("could not delete a tap at the end", &error);
            }
        }
    }

    fn warn(&self, message: &str, error: &(dyn Error + 'static)) {
        self.log.warn(message, Some(&Failure::from(error)));
    }
}

/// Why a client was not understood.
#[derive(Debug, thiserror::Error)]
enum HearError {
    #[error("the connection failed")]
    Connection(#[from] io::Error),
    #[error("the connection is user {0}'s, and not the holder's own user's")]
    Stranger(u32),
    #[error("the network's holder, of banger {version}, does not know the request")]
    Unknown {
        version: &'static str,
        #[source]
        source: serde_json::Error,
    },
}

async fn hear(channel: &Channel, hello: &Hello) -> Result<Option<Request>, HearError> {
    // The holder's own user is root in the holder's user namespace, and nobody else is.
    match channel.peer_uid()? {
        0 => {}
        stranger => return Err(HearError::Stranger(stranger)),
    }
    channel.send(&encode(hello), None).await?;
    let Some((message, _)) = channel.receive().await? else {
        return Ok(None);
    };
    let request = decode(&message).map_err(|source| HearError::Unknown {
        version: banger_proto::VERSION,
        source,
    })?;
    Ok(Some(request))
}

/// What a client gets, once the way out that it may wait for is open or failed.
struct Reply {
    answer: Answer,
    tap: Option<OwnedFd>,
    way_out: Option<WayOut>,
}

impl Reply {
    fn refused(error: &LinkError) -> Self {
        Answer::Refused(Failure::from(error as &dyn Error)).into()
    }

    /// Sends it. A client that has gone does without.
    async fn send(mut self, channel: Channel) {
        if let Some(way_out) = self.way_out
            && let Err(failure) = way_out.open().await
            && let Answer::Attached { no_way_out } = &mut self.answer
        {
            *no_way_out = Some(failure);
        }
        let answer = encode(&self.answer);
        let tap = self.tap.as_ref().map(AsFd::as_fd);
        let _ = timeout(CLIENT_MAX, channel.send(&answer, tap)).await;
        // Before the connection: its end tells that the tap is closed here.
        drop(self.tap);
        drop(channel);
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self {
            answer,
            tap: None,
            way_out: None,
        }
    }
}
