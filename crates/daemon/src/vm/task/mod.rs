//! The one task that owns a VM. Everybody else holds a [`Handle`]: a mailbox for requests
//! and a watch of the status.
//!
//! The task decides by [`super::lifecycle`] and never waits for anything slow itself: starts,
//! stops and deletes run as jobs beside it, so that a stop or a delete is heard at any time.

mod caller;
mod jobs;
mod orders;
mod owner;
mod usage;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use banger_engine::Machine;
use banger_proto::api::{Operation, OperationKind, SetVm};
use banger_proto::id::{RequestId, VmId};
use banger_proto::name::VmName;
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument as _;

use self::caller::RELINK_LIMIT;
use self::owner::Owner;
use self::usage::Usage;
use super::change::{self, ChangeError};
use super::lifecycle::{Phase, Refusal, Request};
use crate::guest::Guest;
use crate::host::Host;
use crate::operations::Work;
use crate::store::{StoreError, VmRow};

pub use self::caller::Caller;
pub use self::usage::Use;

/// Requests that may wait in the mailbox.
const MAILBOX: usize = 32;

/// A VM as it is at the moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its row.
    pub row: VmRow,
    /// The engine's process, while there is one.
    pub pid: Option<u32>,
    /// The machine, while there is one: to be looked at. Orders are its owner's.
    pub machine: Option<Arc<dyn Machine>>,
    /// The link to the agent, while there is one.
    pub guest: Option<Guest>,
    /// What is wrong since its last start, although it runs or ran.
    pub warnings: Vec<String>,
    /// The VM has no row any more.
    pub gone: bool,
}

/// Reaches the task that owns a VM. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    mailbox: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    usage: Arc<Usage>,
}

/// What is asked of a VM's task, with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Boot it.
    Start,
    /// Shut it down.
    Stop,
    /// Shut it down and boot it again.
    Restart,
    /// End it at once, by this signal to the engine's process.
    Kill(Signal),
    /// Hold its CPUs.
    Pause,
    /// Let its CPUs go on.
    Resume,
    /// Change what it is.
    Set(Box<SetVm>),
    /// Remove all of it.
    Delete(Delete),
}

/// How a delete goes on where something of the VM cannot be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delete {
    /// It fails, and what becomes of the rest is for the user to say.
    Once,
    /// It fails, and banger tries again every minute until nothing is left, also in later
    /// daemons.
    UntilGone,
}

/// On whose behalf something is asked of a VM.
#[derive(Clone, Debug, Default)]
pub(super) struct Behalf {
    /// The client's request.
    pub(super) request_id: Option<RequestId>,
    /// Why banger asks, where nobody else does.
    pub(super) reason: Option<String>,
}

impl Behalf {
    /// Nobody's: banger itself has a reason.
    pub(super) fn own(reason: impl Into<String>) -> Self {
        Self {
            request_id: None,
            reason: Some(reason.into()),
        }
    }
}

impl Ask {
    /// What the table of phases is asked.
    pub fn request(&self) -> Request {
        match self {
            Self::Start => Request::Start,
            Self::Stop => Request::Stop,
            Self::Restart => Request::Restart,
            Self::Kill(_) => Request::Kill,
            Self::Pause => Request::Pause,
            Self::Resume => Request::Resume,
            Self::Set(_) => Request::Set,
            Self::Delete(_) => Request::Delete,
        }
    }

    fn operation(&self) -> OperationKind {
        match self {
            Self::Start => OperationKind::StartVm,
            Self::Stop => OperationKind::StopVm,
            Self::Restart => OperationKind::RestartVm,
            Self::Kill(_) => OperationKind::KillVm,
            Self::Pause => OperationKind::PauseVm,
            Self::Resume => OperationKind::ResumeVm,
            Self::Set(_) => OperationKind::SetVm,
            Self::Delete(_) => OperationKind::DeleteVm,
        }
    }
}

/// Why a VM does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Its phase does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It cannot become what was asked for.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// It was deleted meanwhile.
    #[error("it was deleted meanwhile")]
    Gone,
    /// Its new phase could not be written down.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The link to the agent is broken and was not mended in time.
    #[error("the link to its agent is down")]
    LinkDown,
}

#[derive(Debug)]
enum Command {
    Ask {
        ask: Ask,
        behalf: Behalf,
        reply: oneshot::Sender<Result<Operation, RequestError>>,
    },
    Tidy,
    Adopt(Arc<dyn Machine>),
    Lost,
    Quiesce(oneshot::Sender<()>),
}

impl Command {
    /// Whether nobody waits for its answer any more.
    fn is_given_up(&self) -> bool {
        matches!(self, Self::Ask { reply, .. } if reply.is_closed())
    }
}

/// How a VM comes to its task.
#[derive(Debug)]
pub enum Origin {
    /// It is being created: this work is the create.
    Create {
        /// The operation.
        work: Work,
        /// Whether it is to be started as well.
        then_start: bool,
    },
    /// It runs, found by a restarted daemon.
    Adopted(Arc<dyn Machine>),
    /// It is at rest.
    AtRest,
}

impl Handle {
    /// Starts the task that owns the VM of `row`.
    pub fn spawn(host: Arc<Host>, row: VmRow, origin: Origin) -> Self {
        let (mailbox, commands) = mpsc::channel(MAILBOX);
        let span = tracing::info_span!("vm", vm = %row.id.short(), name = %row.name);
        let status = watch::Sender::new(Status {
            row,
            pid: match &origin {
                Origin::Adopted(machine) => Some(machine.handle().process.pid),
                Origin::Create { .. } | Origin::AtRest => None,
            },
            machine: None,
            guest: None,
            warnings: Vec::new(),
            gone: false,
        });
        let handle = Self {
            mailbox,
            status: status.subscribe(),
            usage: Arc::default(),
        };
        let owner = Owner::new(host, status, Arc::clone(&handle.usage));
        tokio::spawn(owner.run(commands, origin).instrument(span));
        handle
    }

    /// The VM as it is at the moment.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Looks at the status without copying it.
    pub fn look<T>(&self, f: impl FnOnce(&Status) -> T) -> T {
        f(&self.status.borrow())
    }

    /// Its id.
    pub fn id(&self) -> VmId {
        self.look(|status| status.row.id.clone())
    }

    /// Its name.
    pub fn name(&self) -> VmName {
        self.look(|status| status.row.name.clone())
    }

    /// Someone uses the VM at this moment.
    pub fn touch(&self) {
        self.usage.touch();
    }

    /// Someone uses the VM, over a stream, until the result is dropped.
    pub fn hold(&self) -> Use {
        self.usage.hold()
    }

    /// How many streams to the VM are open.
    pub fn streams(&self) -> usize {
        self.usage.open()
    }

    /// Returns when nobody holds the VM: no stream to it is open, and no client whose end is its
    /// own has it. Cancel-safe.
    pub async fn unheld(&self) {
        self.usage.unused().await;
        let mut status = self.status.clone();
        let unheld = status
            .wait_for(|status| status.row.lease.is_none() || status.row.phase == Phase::Deleting);
        // One whose owner has ended is held by nobody.
        let _ = unheld.await;
    }

    /// When someone last used the VM while this daemon ran, RFC 3339.
    pub fn last_used_at(&self) -> Option<String> {
        self.usage.last_at().map(|at| at.to_string())
    }

    /// Asks something of the VM. The answer comes at once; the operation goes on. Only a change
    /// waits for its turn, while a change before it is carried out; one that is given up while it
    /// waits is not made.
    ///
    /// # Errors
    /// The VM's phase does not allow it, or it cannot become what was asked for.
    pub async fn ask(
        &self,
        ask: Ask,
        request_id: Option<RequestId>,
    ) -> Result<Operation, RequestError> {
        self.touch();
        let behalf = Behalf {
            request_id,
            reason: None,
        };
        self.ask_on_behalf(ask, behalf).await
    }

    /// Asks something that nobody else has asked for, for a reason that is told.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ask_because(&self, ask: Ask, reason: &str) -> Result<Operation, RequestError> {
        self.ask_on_behalf(ask, Behalf::own(reason)).await
    }

    async fn ask_on_behalf(&self, ask: Ask, behalf: Behalf) -> Result<Operation, RequestError> {
        if let Ask::Set(change) = &ask
            && self.look(|status| change::needs_guest(change, &status.row))
        {
            // Whether it is refused without one is for the owner to say.
            let _ = self.caller().link_settled().await;
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::Ask { ask, behalf, reply };
        self.mailbox
            .send(command)
            .await
            .map_err(|_| RequestError::Gone)?;
        answer.await.map_err(|_| RequestError::Gone)?
    }

    /// The link to the running guest; waits a bounded time for one that is being mended.
    ///
    /// # Errors
    /// The VM does not run, or its link is not mended in time.
    pub async fn guest(&self) -> Result<Guest, RequestError> {
        self.caller().guest().await
    }

    /// For who brings connections to the VM.
    pub fn caller(&self) -> Caller {
        Caller {
            status: self.status.clone(),
            usage: Arc::clone(&self.usage),
        }
    }

    /// Has a VM at rest release what is left of it on the host.
    pub async fn tidy(&self) {
        // A task that is gone has nothing to tidy.
        let _ = self.mailbox.send(Command::Tidy).await;
    }

    /// Gives a VM the machine that was found of it, if it has none.
    pub async fn adopt(&self, machine: Arc<dyn Machine>) {
        // A task that is gone has no use for it.
        let _ = self.mailbox.send(Command::Adopt(machine)).await;
    }

    /// Tells a VM that runs, as far as it knows, and holds no machine, that none was found.
    pub async fn lost(&self) {
        // A task that is gone knows.
        let _ = self.mailbox.send(Command::Lost).await;
    }

    /// Calls off a start that goes on, and waits for a stop; returns when the VM has no work any
    /// more.
    pub async fn quiesce(&self) {
        let (reply, done) = oneshot::channel();
        if self.mailbox.send(Command::Quiesce(reply)).await.is_ok() {
            // Dropped with the task, which has no work any more either.
            let _ = done.await;
        }
    }

    /// Returns when the VM runs and can be reached, or has not come to that.
    ///
    /// # Errors
    /// It was not to be, as its row says.
    pub async fn up(&self) -> Result<Guest, RequestError> {
        let mut status = self.status.clone();
        let settled = |status: &Status| status.gone || !status.row.phase.is_busy();
        // The task ends only when the VM is gone or the daemon ends.
        let _ = status
            .wait_for(settled)
            .await
            .map_err(|_| RequestError::Gone)?;
        self.guest().await
    }

    /// Resolves when the VM is seen not to be at rest.
    pub async fn awake(&self) {
        let awake = |status: &Status| !status.row.phase.is_at_rest() || status.pid.is_some();
        if self.status.clone().wait_for(awake).await.is_err() {
            // The task has ended: nothing wakes the VM any more.
            std::future::pending().await
        }
    }

    /// Resolves when the VM is at rest or gone.
    pub async fn at_rest(&self) {
        let resting = |status: &Status| status.gone || status.row.phase.is_at_rest();
        let _ = self.status.clone().wait_for(resting).await;
    }

    /// Resolves when the VM has no row any more.
    pub async fn gone(&self) {
        // The task ends only when the VM is gone or the daemon ends.
        let _ = self.status.clone().wait_for(|status| status.gone).await;
    }
}
