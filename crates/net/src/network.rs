//! The network as the daemon sees it: taps by slot, and a holder that comes and goes with
//! them.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use banger_proto::doctor::Check;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::channel::{Channel, SOCKET_PATH_MAX, register};
use crate::config::{InvalidConfig, NetworkConfig};
use crate::plan::{Plan, PlanError, Subnet};
use crate::protocol::{Answer, Failure, Hello, Request, decode, encode};
use crate::rules::Reach;
use crate::start::{self, StartError};
use crate::{check, host, plan};

/// How long an answer of the holder may take. Its own waits are shorter.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long a holder may take to be gone after its last answer.
const GONE_MAX: Duration = Duration::from_secs(5);
/// How many holders may end under an attach before it gives up.
const HOLDERS_MAX: usize = 4;
/// Range of MTUs that guests get: the least of IPv6 (RFC 8200, section 5), and Ethernet's.
const MTU: (u32, u32) = (1280, 1500);

/// A handle on the network of one instance; clones share it.
#[derive(Clone, Debug)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: NetworkConfig,
    /// Held while a holder is started, so that two attaches start one.
    starting: Mutex<()>,
}

/// A VM's connection to the network.
#[derive(Debug)]
pub struct Attachment {
    /// Names and addresses, as [`crate::plan::plan`] gives them.
    pub plan: Plan,
    /// The tap device, opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, close-on-exec and
    /// non-blocking. The engine needs it and no rights. The device stays when it is closed.
    pub tap: OwnedFd,
    /// Why the guest has no way out for the moment though it may have one, if so: the host
    /// has none itself.
    pub no_way_out: Option<String>,
}

/// Why a VM could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The slot has no place on the network.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The host lacks something; the check is one of [`crate::checks`].
    #[error("{}", .0.detail)]
    Host(Box<Check>),
    /// There was no holder and none could be started.
    #[error("could not start the network's holder")]
    Start(#[from] StartError),
    /// The holder could not be asked, or refused.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// pasta does not work though the host has a way out.
    #[error("could not open the way out of the network")]
    WayOut(#[source] Failure),
    /// One holder after the other ended.
    #[error("the network's holder ended each time it was started; see net.log")]
    Unstable,
}

/// Why the holder could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Its socket refuses.
    #[error("could not connect to the network's holder")]
    Connect(#[source] io::Error),
    /// The connection failed.
    #[error("could not talk to the network's holder")]
    Talk(#[source] io::Error),
    /// It says something that this version of banger does not understand.
    #[error("the network's holder does not speak banger's protocol")]
    Protocol(#[source] serde_json::Error),
    /// It answered a question that was not asked.
    #[error("the network's holder gave an answer to another question")]
    Answer,
    /// It did not answer, or not end, in time.
    #[error("the network's holder did not {what} within {seconds} s")]
    Timeout {
        /// What it shall have done.
        what: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// It would not or could not.
    #[error("the network's holder refused")]
    Refused(#[source] Failure),
    /// There is no tap of this slot.
    #[error("the VM in slot {0} is not on the network")]
    NotAttached(u16),
}

impl AttachError {
    /// What the user can do about it, in doctor's words.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Host(check) => check.fix.clone(),
            Self::Start(_) | Self::WayOut(_) => {
                Some("`banger doctor` checks what the network needs".to_owned())
            }
            _ => None,
        }
    }
}

/// What became of a request.
enum Outcome {
    /// There is no holder, or it went before it answered.
    NoHolder,
    Answered {
        answer: Answer,
        tap: Option<OwnedFd>,
        holder: i32,
    },
}

impl Network {
    /// A handle on the network; starts nothing.
    pub fn new(config: NetworkConfig) -> Result<Self, InvalidConfig> {
        Subnet::new(config.bridge)?;
        if config.holder.is_empty() {
            return Err(InvalidConfig::Holder);
        }
        let socket = config.socket();
        // The holder binds a name of the same length.
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(InvalidConfig::SocketPath(socket));
        }
        let starting = Mutex::new(());
        Ok(Self {
            shared: Arc::new(Shared { config, starting }),
        })
    }

    /// The MTU of the host's way out, between 1280 and 1500: what guests' NICs shall have.
    /// 1500 if the host has no way out.
    pub fn mtu(&self) -> u16 {
        let routes = host::routes().unwrap_or_default();
        let mtu = host::way_out(&routes).and_then(|route| host::mtu(&route.interface));
        let (least, most) = MTU;
        let mtu = mtu.unwrap_or(most).clamp(least, most);
        u16::try_from(mtu).expect("it is at most 1500")
    }

    /// Gives the VM in `slot` a tap on the network, and the way out if `nat`. Starts the
    /// holder when there is none. When it fails nothing of it is left. A slot that has a
    /// tap which no engine uses gets that one.
    ///
    /// Not cancel-safe: a dropped attach may leave a tap, which [`Self::detach`] removes.
    pub async fn attach(&self, slot: u16, nat: bool) -> Result<Attachment, AttachError> {
        let mtu = self.mtu();
        let plan = plan::plan(&self.shared.config, slot, mtu)?;
        let reach = reach(nat);
        let request = Request::Attach { slot, reach, mtu };
        for _ in 0..HOLDERS_MAX {
            let Outcome::Answered { answer, tap, .. } = self.ask(&request).await? else {
                self.start(nat).await?;
                continue;
            };
            let (no_way_out, tap) = match (answer, tap) {
                (Answer::Attached { no_way_out }, Some(tap)) => (no_way_out, tap),
                (Answer::Refused(failure), _) => return Err(ControlError::Refused(failure).into()),
                _ => return Err(ControlError::Answer.into()),
            };
            let Some(failure) = no_way_out else {
                return Ok(Attachment {
                    plan,
                    tap,
                    no_way_out: None,
                });
            };
            let routes = host::routes().unwrap_or_default();
            if host::way_out(&routes).is_none() {
                return Ok(Attachment {
                    plan,
                    tap,
                    no_way_out: Some(host::NO_WAY_OUT.to_owned()),
                });
            }
            drop(tap);
            if let Err(error) = self.detach(slot).await {
                tracing::warn!(slot, %error, "could not undo a failed attach");
            }
            return Err(match check::pasta_missing() {
                None => AttachError::WayOut(failure),
                Some(check) => AttachError::Host(Box::new(check)),
            });
        }
        Err(AttachError::Unstable)
    }

    /// Takes the tap of `slot` away. Succeeds when there is nothing to take. With the last
    /// tap go the holder, its namespace and `pasta`: they are gone when this returns.
    pub async fn detach(&self, slot: u16) -> Result<(), ControlError> {
        self.take_down(&Request::Detach { slot }).await
    }

    /// The slots that have a tap. Starts no holder.
    pub async fn attached(&self) -> Result<BTreeSet<u16>, ControlError> {
        match self.ask(&Request::List).await? {
            Outcome::NoHolder => Ok(BTreeSet::new()),
            Outcome::Answered { answer, .. } => match answer {
                Answer::Slots(slots) => Ok(slots),
                Answer::Refused(failure) => Err(ControlError::Refused(failure)),
                _ => Err(ControlError::Answer),
            },
        }
    }

    /// Opens or closes the way out for the VM in `slot`.
    pub async fn set_nat(&self, slot: u16, nat: bool) -> Result<(), ControlError> {
        let reach = reach(nat);
        match self.ask(&Request::SetReach { slot, reach }).await? {
            Outcome::NoHolder => Err(ControlError::NotAttached(slot)),
            Outcome::Answered { answer, .. } => match answer {
                Answer::Done => Ok(()),
                Answer::Absent => Err(ControlError::NotAttached(slot)),
                Answer::Refused(failure) => Err(ControlError::Refused(failure)),
                _ => Err(ControlError::Answer),
            },
        }
    }

    /// Ends the holder with all that is in its namespace. Succeeds when there is none.
    pub async fn shut_down(&self) -> Result<(), ControlError> {
        self.take_down(&Request::ShutDown).await
    }

    async fn take_down(&self, request: &Request) -> Result<(), ControlError> {
        match self.ask(request).await? {
            Outcome::NoHolder => {
                start::sweep(&self.shared.config);
                Ok(())
            }
            Outcome::Answered { answer, holder, .. } => match answer {
                Answer::Detached { last: false } => Ok(()),
                Answer::Detached { last: true } => wait_until_gone(holder).await,
                Answer::Refused(failure) => Err(ControlError::Refused(failure)),
                _ => Err(ControlError::Answer),
            },
        }
    }

    async fn start(&self, nat: bool) -> Result<(), AttachError> {
        let config = &self.shared.config;
        let _starting = self.shared.starting.lock().await;
        if Channel::connect(&config.socket()).is_ok() {
            // Somebody else has started one while this one waited.
            return Ok(());
        }
        if let Some(check) = check::missing(nat) {
            return Err(AttachError::Host(Box::new(check)));
        }
        Ok(start::start(config, nat).await?)
    }

    async fn ask(&self, request: &Request) -> Result<Outcome, ControlError> {
        let asked = timeout(ANSWER_MAX, self.converse(request)).await;
        asked.map_err(|_| ControlError::Timeout {
            what: "answer",
            seconds: ANSWER_MAX.as_secs(),
        })?
    }

    async fn converse(&self, request: &Request) -> Result<Outcome, ControlError> {
        let channel = match Channel::connect(&self.shared.config.socket()) {
            Ok(channel) => channel,
            Err(error) if is_nobody(&error) => return Ok(Outcome::NoHolder),
            Err(error) => return Err(ControlError::Connect(error)),
        };
        let Some((hello, _)) = talk(channel.receive().await)?.flatten() else {
            return Ok(Outcome::NoHolder);
        };
        let hello: Hello = decode(&hello).map_err(ControlError::Protocol)?;
        tracing::debug!(
            holder = hello.pid,
            version = hello.version,
            ?request,
            "asking the holder"
        );
        if talk(channel.send(&encode(request), None).await)?.is_none() {
            return Ok(Outcome::NoHolder);
        }
        let Some((answer, tap)) = talk(channel.receive().await)?.flatten() else {
            return Ok(Outcome::NoHolder);
        };
        if tap.is_some() {
            // The holder hangs up when it has closed its own descriptor of the tap. From then
            // on this one alone uses the device: an engine can open it once this one is closed.
            let _ = channel.receive().await;
        }
        Ok(Outcome::Answered {
            answer: decode(&answer).map_err(ControlError::Protocol)?,
            tap,
            holder: hello.pid,
        })
    }
}

fn reach(nat: bool) -> Reach {
    match nat {
        true => Reach::Outside,
        false => Reach::Gateway,
    }
}

/// Whether a connection was refused because nobody listens.
fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// `None` for a connection that ended because the other end is gone.
fn talk<T>(result: io::Result<T>) -> Result<Option<T>, ControlError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ok(None),
            _ => Err(ControlError::Talk(error)),
        },
    }
}

/// Waits until the process is gone, and with it all of its PID namespace.
async fn wait_until_gone(holder: i32) -> Result<(), ControlError> {
    let Some(pid) = rustix::process::Pid::from_raw(holder) else {
        return Ok(());
    };
    let flags = rustix::process::PidfdFlags::empty();
    let process = match rustix::process::pidfd_open(pid, flags) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(ControlError::Talk(error.into())),
    };
    let process = register(process).map_err(ControlError::Talk)?;
    match timeout(GONE_MAX, process.readable()).await {
        Ok(ended) => ended.map(drop).map_err(ControlError::Talk),
        Err(_) => Err(ControlError::Timeout {
            what: "end",
            seconds: GONE_MAX.as_secs(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::id::InstanceId;

    fn config() -> NetworkConfig {
        NetworkConfig {
            instance: InstanceId::new(),
            bridge: (std::net::Ipv4Addr::new(172, 16, 0, 1), 24),
            runtime_dir: "/run".into(),
            log_dir: "/log".into(),
            holder: vec!["bangerd".into(), "net-holder".into()],
        }
    }

    #[test]
    fn a_socket_that_the_kernel_cannot_name_is_refused_at_once() {
        let with_runtime_dir = |length: usize| NetworkConfig {
            runtime_dir: format!("/{}", "r".repeat(length - 1)).into(),
            ..config()
        };
        let longest = SOCKET_PATH_MAX - "/net.sock".len();
        assert!(Network::new(with_runtime_dir(longest)).is_ok());
        let refused = Network::new(with_runtime_dir(longest + 1)).unwrap_err();
        assert!(matches!(refused, InvalidConfig::SocketPath(_)), "{refused}");
    }

    #[test]
    fn a_network_without_a_holder_is_refused_at_once() {
        let holder = Vec::new();
        let refused = Network::new(NetworkConfig { holder, ..config() }).unwrap_err();
        assert_eq!(refused, InvalidConfig::Holder);
    }

    #[test]
    fn what_the_host_lacks_is_told_with_the_fix() {
        let check = Check::fail("net.tun", "tap devices", "it is closed", "open it");
        let error = AttachError::Host(Box::new(check));
        assert_eq!(error.to_string(), "it is closed");
        assert_eq!(error.hint().as_deref(), Some("open it"));
    }
}
