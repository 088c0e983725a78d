//! The one task that owns a VM. Everybody else holds a [`Handle`]: a mailbox for requests
//! and a watch of the status.
//!
//! The task decides by [`super::lifecycle`] and never waits for anything slow itself: starts,
//! stops and deletes run as jobs beside it, so that a stop or a delete is heard at any time.

use std::sync::Arc;
use std::time::Duration;

use banger_engine::{Exit, Machine};
use banger_proto::agent::Shutdown;
use banger_proto::api::{Operation, OperationKind, StageTime};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::{RequestId, VmId};
use banger_proto::name::VmName;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{self, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::lifecycle::{self, Event, Next, Phase, Refusal, Request, Verdict};
use super::machine_end;
use super::plan::Layout;
use super::start::{self, Artifacts, Disks, Start, StartError, Started};
use super::take_down::{Extent, LeftOver, take_down};
use crate::guest::{self, Guest};
use crate::host::Host;
use crate::operations::{Subject, Work};
use crate::store::{StoreError, VmRow};

/// How long a guest may take to shut down before its power is cut, with hardware
/// virtualisation.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(15);
/// What the guest itself is told, so that it ends in order before its power is cut.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// How long a request waits for a link that is being made anew.
const RELINK_LIMIT: Duration = Duration::from_secs(15);
/// The first and the longest pause between attempts at a new link.
const RELINK_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Requests that may wait in the mailbox.
const MAILBOX: usize = 32;

/// A VM as it is at the moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its row.
    pub row: VmRow,
    /// The engine's process, while there is one.
    pub pid: Option<u32>,
    /// The link to the agent, while there is one.
    pub guest: Option<Guest>,
    /// The VM has no row any more.
    pub gone: bool,
}

/// Reaches the task that owns a VM. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    mailbox: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
}

/// Why a VM does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Its phase does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
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
    Request {
        request: Request,
        request_id: Option<RequestId>,
        reply: oneshot::Sender<Result<Operation, RequestError>>,
    },
    Tidy,
    Quiesce(oneshot::Sender<()>),
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
            guest: None,
            gone: false,
        });
        let handle = Self {
            mailbox,
            status: status.subscribe(),
        };
        let owner = Owner {
            host,
            status,
            job: None,
            next: None,
            machine: None,
            epoch: 0,
            background: JoinSet::new(),
            quiesce: Vec::new(),
        };
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

    /// Asks the VM to start, stop or go. The answer comes at once; the operation goes on.
    ///
    /// # Errors
    /// The VM's phase does not allow it.
    pub async fn request(
        &self,
        request: Request,
        request_id: Option<RequestId>,
    ) -> Result<Operation, RequestError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Request {
            request,
            request_id,
            reply,
        };
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
        let mut status = self.status.clone();
        let settled = status.wait_for(|status| {
            let judged = lifecycle::judge(status.row.phase, Request::Attach);
            status.gone || judged != Verdict::Allow || status.guest.is_some()
        });
        let status = match tokio::time::timeout(RELINK_LIMIT, settled).await {
            Ok(Ok(status)) => status,
            Ok(Err(_)) => return Err(RequestError::Gone),
            Err(_) => return Err(RequestError::LinkDown),
        };
        if status.gone {
            return Err(RequestError::Gone);
        }
        match lifecycle::judge(status.row.phase, Request::Attach) {
            Verdict::Refuse(refusal) => Err(refusal.into()),
            _ => status.guest.clone().ok_or(RequestError::LinkDown),
        }
    }

    /// Has a VM at rest release what is left of it on the host.
    pub async fn tidy(&self) {
        // A task that is gone has nothing to tidy.
        let _ = self.mailbox.send(Command::Tidy).await;
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

    /// Resolves when the VM has no row any more.
    pub async fn gone(&self) {
        // The task ends only when the VM is gone or the daemon ends.
        let _ = self.status.clone().wait_for(|status| status.gone).await;
    }
}

/// Work beside the owner.
#[derive(Debug)]
struct Job {
    /// The operation, and those that joined it.
    works: Vec<Work>,
    /// Calls the job off, or makes it hurry where it must still be done.
    hurry: CancellationToken,
    /// The task that does it.
    task: task::Id,
}

/// What is to be done next, as soon as the present job has ended.
#[derive(Debug)]
struct Queued {
    phase: Phase,
    works: Vec<Work>,
}

/// What comes of the work beside the owner.
#[derive(Debug)]
enum Happening {
    Prepared(Result<Artifacts, Box<NotStarted>>),
    Started(Result<Box<Started>, Box<NotStarted>>),
    TakenDown {
        result: Result<(), LeftOver>,
        broken: Option<ApiError>,
    },
    MachineEnded {
        epoch: u64,
        exit: Exit,
    },
    LinkLost {
        epoch: u64,
    },
    LinkUp {
        epoch: u64,
        guest: Guest,
    },
}

#[derive(Debug)]
struct NotStarted {
    error: ApiError,
    left_over: Option<LeftOver>,
}

struct Owner {
    host: Arc<Host>,
    status: watch::Sender<Status>,
    job: Option<Job>,
    next: Option<Queued>,
    machine: Option<Arc<dyn Machine>>,
    /// Counts machines, so that news of an earlier one is told from news of this one.
    epoch: u64,
    background: JoinSet<Happening>,
    quiesce: Vec<oneshot::Sender<()>>,
}

impl Owner {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, origin: Origin) {
        match origin {
            Origin::Create { work, then_start } => self.begin_create(work, then_start),
            Origin::Adopted(machine) => {
                self.hold(machine);
                match self.phase() {
                    Phase::Stopping => self.resume_stop(),
                    _ => self.relink(),
                }
            }
            Origin::AtRest => {}
        }
        while !self.status.borrow().gone {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    // The fleet is gone: the daemon ends, and the VM stays as it is.
                    None => return,
                },
                Some(joined) = self.background.join_next_with_id() => match joined {
                    Ok((_, happening)) => self.learn(happening).await,
                    Err(error) => self.broke_down(&error).await,
                },
            }
            if self.job.is_none() {
                for reply in self.quiesce.drain(..) {
                    // Whoever waits may have given up.
                    let _ = reply.send(());
                }
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Request {
                request,
                request_id,
                reply,
            } => {
                let answer = self.decide(request, request_id).await;
                // The asker may have gone; what was begun goes on.
                let _ = reply.send(answer);
            }
            Command::Tidy => {
                if self.phase().is_at_rest() && self.job.is_none() {
                    self.run_take_down(Extent::Running, Vec::new(), None);
                }
            }
            Command::Quiesce(reply) => {
                // A stop is left to its end: hurried, it would cut the guest's power.
                if matches!(self.phase(), Phase::Creating | Phase::Starting) {
                    self.hurry();
                }
                self.quiesce.push(reply);
            }
        }
    }

    async fn decide(
        &mut self,
        request: Request,
        request_id: Option<RequestId>,
    ) -> Result<Operation, RequestError> {
        let verdict = lifecycle::judge(self.phase(), request);
        tracing::debug!(?request, phase = self.phase().as_str(), ?verdict, "asked");
        let phase = match verdict {
            Verdict::Refuse(refusal) => return Err(refusal.into()),
            Verdict::Begin(phase) | Verdict::Interrupt(phase) => phase,
            Verdict::Join | Verdict::Allow => return Ok(self.join(request, request_id)),
            Verdict::CallOff => {
                let operation = self.join(request, request_id);
                self.hurry();
                return Ok(operation);
            }
        };
        self.begin_phase(phase).await?;
        let work = self.begin(request, request_id);
        let operation = work.operation();
        match self.job {
            // Only a busy VM is interrupted; a tidying one is waited for.
            Some(_) => {
                self.hurry();
                if let Some(overtaken) = self.next.replace(Queued {
                    phase,
                    works: vec![work],
                }) {
                    end_all(overtaken.works, Err(self.overtaken(phase)));
                }
            }
            None => self.run_phase(phase, vec![work]),
        }
        Ok(operation)
    }

    fn begin(&self, request: Request, request_id: Option<RequestId>) -> Work {
        let row = &self.status.borrow().row;
        self.host.operations.begin(Subject {
            kind: match request {
                Request::Start | Request::Attach => OperationKind::StartVm,
                Request::Stop => OperationKind::StopVm,
                Request::Delete => OperationKind::DeleteVm,
            },
            vm: Some((row.id.clone(), row.name.clone())),
            request_id,
        })
    }

    /// An operation that ends with what goes on already.
    fn join(&mut self, request: Request, request_id: Option<RequestId>) -> Operation {
        let work = self.begin(request, request_id);
        let operation = work.operation();
        match (&mut self.next, &mut self.job) {
            (Some(queued), _) => queued.works.push(work),
            (None, Some(job)) => job.works.push(work),
            (None, None) => work.end(Ok(())),
        }
        operation
    }

    fn hurry(&self) {
        if let Some(job) = &self.job {
            job.hurry.cancel();
        }
    }

    fn run_phase(&mut self, phase: Phase, works: Vec<Work>) {
        match phase {
            Phase::Starting => self.run_start(works),
            Phase::Stopping => self.run_stop(works),
            Phase::Deleting => self.run_take_down(Extent::Everything, works, None),
            other => unreachable!("no job begins the phase {other:?}"),
        }
    }

    fn begin_create(&mut self, work: Work, then_start: bool) {
        let start = self.start_of(&work, Disks::New);
        let hurry = start.cancel.clone();
        self.run_job(vec![work], hurry, async move {
            match then_start {
                true => Happening::Started(start_or_release(start, Extent::Everything).await),
                false => Happening::Prepared(prepare_or_release(start).await),
            }
        });
    }

    fn run_start(&mut self, works: Vec<Work>) {
        let work = works.first().expect("a start is an operation");
        // A VM that was only created has its disks already.
        let start = self.start_of(work, Disks::Existing);
        let hurry = start.cancel.clone();
        self.run_job(works, hurry, async move {
            // What an earlier failure left over would be in the way.
            let layout = layout(&start);
            match take_down(&start.host, &layout, start.row.engine, Extent::Running).await {
                Ok(()) => Happening::Started(start_or_release(start, Extent::Running).await),
                Err(left_over) => {
                    let error = left_over.to_api("start", &start.row.name);
                    let left_over = Some(left_over);
                    Happening::Started(Err(Box::new(NotStarted { error, left_over })))
                }
            }
        });
    }

    fn start_of(&self, work: &Work, disks: Disks) -> Start {
        Start {
            host: Arc::clone(&self.host),
            row: self.status.borrow().row.clone(),
            disks,
            report: work.reporter(),
            cancel: work.cancelled(),
        }
    }

    fn run_stop(&mut self, works: Vec<Work>) {
        let (host, row) = (Arc::clone(&self.host), self.status.borrow().row.clone());
        let guest = self.status.borrow().guest.clone();
        let machine = self.machine.clone();
        let hurry = CancellationToken::new();
        let told = hurry.clone();
        self.run_job(works, hurry, async move {
            if let Some(machine) = machine {
                let patience = host.engines.patience(row.engine);
                tokio::select! {
                    () = shut_down(&*machine, guest.as_ref(), patience) => {}
                    () = told.cancelled() => {}
                }
            }
            stopped(&host, &row).await
        });
    }

    /// Goes on with a stop that the daemon before this one began.
    fn resume_stop(&mut self) {
        let Some(machine) = self.machine.clone() else {
            return;
        };
        let (host, row) = (Arc::clone(&self.host), self.status.borrow().row.clone());
        let hurry = CancellationToken::new();
        let told = hurry.clone();
        self.run_job(Vec::new(), hurry, async move {
            let patience = host.engines.patience(row.engine);
            let orderly = async {
                // The agent that shuts down already answers no more: then its machine ends.
                let guest = guest::connect(&*machine, SHUTDOWN_GRACE * patience).await;
                let guest = guest.inspect_err(|error| tracing::debug!(%error, "no link"));
                shut_down(&*machine, guest.ok().as_ref(), patience).await;
            };
            tokio::select! {
                () = orderly => {}
                () = told.cancelled() => {}
            }
            stopped(&host, &row).await
        });
    }

    fn run_take_down(&mut self, extent: Extent, works: Vec<Work>, broken: Option<ApiError>) {
        let (host, row) = (Arc::clone(&self.host), self.status.borrow().row.clone());
        self.run_job(works, CancellationToken::new(), async move {
            let layout = Layout::of(&host.paths, &row.id, row.slot);
            let result = take_down(&host, &layout, row.engine, extent).await;
            Happening::TakenDown { result, broken }
        });
    }

    fn run_job(
        &mut self,
        works: Vec<Work>,
        hurry: CancellationToken,
        job: impl Future<Output = Happening> + Send + 'static,
    ) {
        let task = self.background.spawn(job.in_current_span()).id();
        self.job = Some(Job { works, hurry, task });
    }

    async fn learn(&mut self, happening: Happening) {
        match happening {
            Happening::Prepared(Ok(artifacts)) => {
                self.remember(&artifacts);
                self.job_ended(Event::Prepared, None).await;
            }
            Happening::Started(Ok(started)) => self.started(*started).await,
            Happening::Prepared(Err(failed)) | Happening::Started(Err(failed)) => {
                let NotStarted { error, left_over } = *failed;
                let event = match left_over {
                    None => Event::StartFailed,
                    Some(_) => Event::StuckReleasing,
                };
                self.job_ended(event, Some(error)).await;
            }
            Happening::TakenDown { result, broken } => self.taken_down(result, broken).await,
            Happening::MachineEnded { epoch, exit } if epoch == self.epoch => {
                self.machine_ended(exit).await;
            }
            Happening::LinkLost { epoch } if epoch == self.epoch => {
                self.status.send_modify(|status| status.guest = None);
                // In any other phase the link goes with the machine.
                if self.phase() == Phase::Running {
                    tracing::warn!("the link to the agent is broken");
                    self.relink();
                }
            }
            Happening::LinkUp { epoch, guest } if epoch == self.epoch => self.linked(guest),
            // News of a machine that is no more.
            Happening::MachineEnded { .. }
            | Happening::LinkLost { .. }
            | Happening::LinkUp { .. } => {}
        }
    }

    /// A task beside the owner panicked: the job, or one that only watches.
    async fn broke_down(&mut self, error: &JoinError) {
        if !self.job.as_ref().is_some_and(|job| job.task == error.id()) {
            tracing::error!(%error, "a watcher of this VM broke down");
            return;
        }
        tracing::error!(%error, "a job of this VM broke down");
        let name = self.status.borrow().row.name.clone();
        let error = ApiError::new(ErrorKind::Failed, format!("VM `{name}` failed"))
            .with_hint("this is a fault in banger: see `banger daemon logs`");
        self.job_ended(Event::StuckReleasing, Some(error)).await;
    }

    async fn started(&mut self, started: Started) {
        self.remember(&started.artifacts);
        if self.next.is_none() {
            self.hold(started.machine);
            self.linked(started.guest);
            self.status
                .send_modify(|status| status.row.started_at = Some(crate::now()));
        }
        self.job_ended(Event::Ready, None).await;
    }

    async fn taken_down(&mut self, result: Result<(), LeftOver>, broken: Option<ApiError>) {
        let (event, error) = match (result, broken) {
            (Ok(()), None) => (Event::TakenDown, None),
            (Ok(()), Some(broken)) => (Event::TakenDownBroken, Some(broken)),
            (Err(left_over), broken) => {
                let verb = match self.phase() {
                    Phase::Deleting => "delete",
                    _ => "stop",
                };
                let name = self.status.borrow().row.name.clone();
                let error = match broken {
                    None => left_over.to_api(verb, &name),
                    Some(mut broken) => {
                        left_over.explain(&mut broken);
                        broken
                    }
                };
                (Event::StuckReleasing, Some(error))
            }
        };
        if event != Event::StuckReleasing {
            self.let_go();
        }
        self.job_ended(event, error).await;
    }

    /// The job has ended: enters the phase that `event` leads to, ends the operations, and
    /// begins what was queued meanwhile.
    async fn job_ended(&mut self, event: Event, error: Option<ApiError>) {
        let works = self.job.take().map(|job| job.works).unwrap_or_default();
        if let Some(Queued {
            phase,
            works: queued,
        }) = self.next.take()
        {
            // Another request has overtaken this one. What it came to is the other's to clean up.
            let result = match event {
                Event::TakenDown | Event::TakenDownBroken => Ok(()),
                _ => Err(error.unwrap_or_else(|| self.overtaken(phase))),
            };
            end_all(works, result);
            self.run_phase(phase, queued);
            return;
        }
        let stages = works.first().map(|work| work.reporter().stages());
        let was = self.phase();
        match lifecycle::after(was, event) {
            Next::Phase(phase) => {
                let entered = self.enter(phase, stages, error.clone()).await;
                if was == Phase::Creating
                    && let Err(store) = entered
                {
                    // Its row still says that it is being created: the next daemon would
                    // remove it, with the user's data in it.
                    self.give_up_create(works, &store).await;
                    return;
                }
            }
            Next::Gone => self.vanish().await,
            Next::Ignore => {}
        }
        // A stop that called a create off has what it wanted when the VM is gone.
        for (number, work) in works.into_iter().enumerate() {
            let wanted = number > 0 && event == Event::StartFailed;
            let result = match (&error, event) {
                (Some(error), Event::StartFailed | Event::StuckReleasing) if !wanted => {
                    Err(error.clone())
                }
                _ => Ok(()),
            };
            work.end(result);
        }
    }

    async fn give_up_create(&mut self, works: Vec<Work>, store: &StoreError) {
        let name = self.status.borrow().row.name.clone();
        let mut error = ApiError::new(ErrorKind::Failed, format!("could not create VM `{name}`"))
            .caused_by(store);
        error.hint = store.hint();
        end_all(works, Err(error));
        if self.begin_phase(Phase::Deleting).await.is_ok() {
            self.run_phase(Phase::Deleting, Vec::new());
        }
    }

    async fn machine_ended(&mut self, exit: Exit) {
        let Next::Phase(phase) = lifecycle::after(self.phase(), Event::MachineEnded) else {
            return;
        };
        let row = self.status.borrow().row.clone();
        let console = Layout::of(&self.host.paths, &row.id, row.slot)
            .place
            .console_log();
        let name = row.name.clone();
        let cause = exit.cause.to_string();
        let broken = crate::blocking(move || machine_end::failure(&name, &exit, &console)).await;
        match &broken {
            None => tracing::info!(cause, "the machine ended"),
            Some(_) => tracing::warn!(cause, "the machine ended"),
        }
        self.status.send_modify(|status| status.guest = None);
        let _ = self.enter(phase, None, None).await;
        self.run_take_down(Extent::Running, Vec::new(), broken);
    }

    fn hold(&mut self, machine: Arc<dyn Machine>) {
        self.epoch += 1;
        let epoch = self.epoch;
        let pid = machine.handle().process.pid;
        self.status.send_modify(|status| status.pid = Some(pid));
        let watched = Arc::clone(&machine);
        self.machine = Some(machine);
        self.background.spawn(async move {
            let exit = watched.exited().await;
            Happening::MachineEnded { epoch, exit }
        });
    }

    fn let_go(&mut self) {
        self.epoch += 1;
        self.machine = None;
        self.status.send_modify(|status| {
            status.pid = None;
            status.guest = None;
        });
    }

    fn linked(&mut self, guest: Guest) {
        let epoch = self.epoch;
        let watched = guest.clone();
        self.status.send_modify(|status| status.guest = Some(guest));
        self.background.spawn(async move {
            watched.closed().await;
            Happening::LinkLost { epoch }
        });
    }

    /// Makes the link anew, however long that takes: while the machine lives there is hope,
    /// and when it ends, so does this.
    fn relink(&mut self) {
        let Some(machine) = self.machine.clone() else {
            return;
        };
        let (epoch, host) = (self.epoch, Arc::clone(&self.host));
        let row = self.status.borrow().row.clone();
        let attempts = async move {
            let artifacts = Artifacts::of_existing(&host, &row);
            let limit = RELINK_LIMIT * host.engines.patience(row.engine);
            let (mut pause, longest) = RELINK_PAUSE;
            loop {
                let attempt = async {
                    let guest = guest::connect(&*machine, limit).await?;
                    start::configure(&host, &row, &artifacts, &guest).await?;
                    Ok::<_, super::stage::StageError>(guest)
                };
                match attempt.await {
                    Ok(guest) => {
                        tracing::info!("linked to the agent again");
                        return Happening::LinkUp { epoch, guest };
                    }
                    Err(error) => tracing::debug!(%error, "no link yet"),
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = longest.min(pause * 2),
                    _ = machine.exited() => return Happening::LinkLost { epoch: 0 },
                }
            }
        };
        self.background.spawn(attempts.in_current_span());
    }

    fn phase(&self) -> Phase {
        self.status.borrow().row.phase
    }

    fn overtaken(&self, by: Phase) -> ApiError {
        let name = self.status.borrow().row.name.clone();
        let why = match by {
            Phase::Deleting => "it is being deleted",
            _ => "it is being stopped",
        };
        let mut error = ApiError::new(
            ErrorKind::Cancelled,
            format!("the start of VM `{name}` was called off"),
        );
        error.causes.push(why.to_owned());
        error
    }

    fn remember(&self, artifacts: &Artifacts) {
        self.status.send_modify(|status| {
            status.row.image_id.clone_from(&artifacts.image_id);
            status.row.kernel.clone_from(&artifacts.kernel);
        });
    }

    /// Enters a phase that somebody asked for. A start that cannot be written down does not
    /// begin; a stop or a delete does, because it may be what mends a full disk.
    async fn begin_phase(&self, phase: Phase) -> Result<(), StoreError> {
        let mut row = self.status.borrow().row.clone();
        row.phase = phase;
        row.failure = None;
        match self.host.database.update_vm(row.clone()).await {
            Err(error) if phase == Phase::Starting => return Err(error),
            Err(error) => {
                tracing::error!(%error, phase = phase.as_str(), "could not write the phase down");
            }
            Ok(()) => {}
        }
        self.status.send_modify(|status| status.row = row);
        Ok(())
    }

    /// Enters a phase that something led to. What is true goes on even if it cannot be written
    /// down; after a restart the reconciler makes the row true.
    ///
    /// # Errors
    /// It could not be written down.
    async fn enter(
        &self,
        phase: Phase,
        stages: Option<Vec<StageTime>>,
        failure: Option<ApiError>,
    ) -> Result<(), StoreError> {
        self.status.send_modify(|status| {
            status.row.phase = phase;
            status.row.failure = failure;
            if let Some(stages) = stages.filter(|stages| !stages.is_empty()) {
                status.row.stages = stages;
            }
        });
        let row = self.status.borrow().row.clone();
        let written = self.host.database.update_vm(row).await;
        written.inspect_err(|error| {
            tracing::error!(%error, phase = phase.as_str(), "could not write the phase down");
        })
    }

    async fn vanish(&mut self) {
        let id = self.status.borrow().row.id.clone();
        match self.host.database.remove_vm(id).await {
            Ok(()) => {
                tracing::info!("gone");
                self.status.send_modify(|status| status.gone = true);
            }
            Err(error) => {
                let name = self.status.borrow().row.name.clone();
                let failure =
                    ApiError::new(ErrorKind::Failed, format!("could not delete VM `{name}`"))
                        .caused_by(&error);
                let _ = self.enter(Phase::Failed, None, Some(failure)).await;
            }
        }
    }
}

fn layout(start: &Start) -> Layout {
    Layout::of(&start.host.paths, &start.row.id, start.row.slot)
}

fn end_all(works: Vec<Work>, result: Result<(), ApiError>) {
    for work in works {
        work.end(result.clone());
    }
}

async fn start_or_release(start: Start, extent: Extent) -> Result<Box<Started>, Box<NotStarted>> {
    match start.boot().await {
        Ok(started) if !start.cancel.is_cancelled() => Ok(Box::new(started)),
        // Called off in its last moment.
        Ok(_) => Err(release(&start, extent, None).await),
        Err(error) => Err(release(&start, extent, Some(error)).await),
    }
}

async fn prepare_or_release(start: Start) -> Result<Artifacts, Box<NotStarted>> {
    match start.prepare().await {
        Ok(artifacts) => Ok(artifacts),
        Err(error) => Err(release(&start, Extent::Everything, Some(error)).await),
    }
}

async fn release(start: &Start, extent: Extent, error: Option<StartError>) -> Box<NotStarted> {
    let mut api = describe(start, error).await;
    let released = take_down(&start.host, &layout(start), start.row.engine, extent).await;
    if let Err(left_over) = &released {
        left_over.explain(&mut api);
    }
    Box::new(NotStarted {
        error: api,
        left_over: released.err(),
    })
}

/// The error of a start, as the user gets it.
async fn describe(start: &Start, error: Option<StartError>) -> ApiError {
    let name = &start.row.name;
    let verb = match start.disks {
        Disks::New => "create",
        Disks::Existing => "start",
    };
    let Some(error) = error.filter(|_| !start.cancel.is_cancelled()) else {
        return ApiError::new(
            ErrorKind::Cancelled,
            format!("{verb} of VM `{name}` was called off"),
        );
    };
    let message = format!("could not {verb} VM `{name}`");
    let mut api = ApiError::new(error.error.kind(), message).caused_by(&error);
    api.hint = error.error.hint();
    if matches!(
        error.stage,
        super::stage::Stage::Engine | super::stage::Stage::Agent
    ) {
        let console = layout(start).place.console_log();
        let words = crate::blocking(move || machine_end::last_words(&console)).await;
        api.causes.extend(words);
    }
    api
}

/// Releases what is left of a machine that was shut down.
async fn stopped(host: &Host, row: &VmRow) -> Happening {
    let layout = Layout::of(&host.paths, &row.id, row.slot);
    let result = take_down(host, &layout, row.engine, Extent::Running).await;
    Happening::TakenDown {
        result,
        broken: None,
    }
}

/// Asks the guest to go down and waits for its machine to end, both within limits.
async fn shut_down(machine: &dyn Machine, guest: Option<&Guest>, patience: u32) {
    let orderly = async {
        let asked = match guest {
            Some(guest) => {
                let grace = SHUTDOWN_GRACE * patience;
                let grace_ms = u64::try_from(grace.as_millis()).expect("some seconds fit");
                guest
                    .shutdown(Shutdown { grace_ms })
                    .await
                    .map_err(|error| error.to_string())
            }
            // Without a link the power button is all there is.
            None => machine
                .power_button()
                .await
                .map_err(|error| error.to_string()),
        };
        match asked {
            Ok(()) => drop(machine.exited().await),
            Err(error) => tracing::warn!(error, "the guest takes no orders: its power is cut"),
        }
    };
    if tokio::time::timeout(SHUTDOWN_LIMIT * patience, orderly)
        .await
        .is_err()
    {
        tracing::warn!("the guest did not shut down in time: its power is cut");
    }
}
