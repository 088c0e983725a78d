//! The task itself: what is asked of a VM, what happens to it, and what it does about both.

use std::sync::Arc;

use banger_engine::{Exit, Machine};
use banger_proto::api::{Happened, Operation, OperationKind, StageTime, VmState};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{self, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::jobs::{self, NotStarted};
use super::{Command, Origin, RequestError, Status};
use crate::guest::Guest;
use crate::host::Host;
use crate::operations::{Subject, Work};
use crate::store::{StoreError, VmRow};
use crate::vm::lifecycle::{self, Event, Next, Phase, Request, Verdict};
use crate::vm::machine_end;
use crate::vm::plan::Layout;
use crate::vm::start::{Artifacts, Disks, Start, Started};
use crate::vm::take_down::{Extent, LeftOver};

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

/// What the task knows.
pub(super) struct Owner {
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
    /// The owner of the VM that `status` shows; nothing goes on yet.
    pub(super) fn new(host: Arc<Host>, status: watch::Sender<Status>) -> Self {
        Self {
            host,
            status,
            job: None,
            next: None,
            machine: None,
            epoch: 0,
            background: JoinSet::new(),
            quiesce: Vec::new(),
        }
    }

    /// Owns the VM until it is gone or the daemon ends.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, origin: Origin) {
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
                true => Happening::Started(jobs::boot(start, Extent::Everything).await),
                false => Happening::Prepared(jobs::prepare(start).await),
            }
        });
    }

    fn run_start(&mut self, works: Vec<Work>) {
        let work = works.first().expect("a start is an operation");
        // A VM that was only created has its disks already.
        let start = self.start_of(work, Disks::Existing);
        let hurry = start.cancel.clone();
        self.run_job(works, hurry, async move {
            Happening::Started(jobs::boot_again(start).await)
        });
    }

    fn start_of(&self, work: &Work, disks: Disks) -> Start {
        Start {
            host: Arc::clone(&self.host),
            row: self.row(),
            disks,
            report: work.reporter(),
            cancel: work.cancelled(),
        }
    }

    fn run_stop(&mut self, works: Vec<Work>) {
        let (host, row, machine) = (Arc::clone(&self.host), self.row(), self.machine.clone());
        let guest = self.status.borrow().guest.clone();
        let hurry = CancellationToken::new();
        let told = hurry.clone();
        self.run_job(works, hurry, async move {
            if let Some(machine) = machine {
                let shut_down = jobs::shut_down(&host, &row, &*machine, guest);
                told.run_until_cancelled(shut_down).await;
            }
            let result = jobs::release(&host, &row, Extent::Running).await;
            let broken = None;
            Happening::TakenDown { result, broken }
        });
    }

    /// Goes on with a stop that the daemon before this one began.
    fn resume_stop(&mut self) {
        let Some(machine) = self.machine.clone() else {
            return;
        };
        let (host, row) = (Arc::clone(&self.host), self.row());
        let hurry = CancellationToken::new();
        let told = hurry.clone();
        self.run_job(Vec::new(), hurry, async move {
            let shut_down = jobs::resume_shut_down(&host, &row, &*machine);
            told.run_until_cancelled(shut_down).await;
            let result = jobs::release(&host, &row, Extent::Running).await;
            let broken = None;
            Happening::TakenDown { result, broken }
        });
    }

    fn run_take_down(&mut self, extent: Extent, works: Vec<Work>, broken: Option<ApiError>) {
        let (host, row) = (Arc::clone(&self.host), self.row());
        self.run_job(works, CancellationToken::new(), async move {
            let result = jobs::release(&host, &row, extent).await;
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
        if self.job.as_ref().is_none_or(|job| job.task != error.id()) {
            tracing::error!(%error, "a watcher of this VM broke down");
            return;
        }
        tracing::error!(%error, "a job of this VM broke down");
        let name = self.row().name;
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
                let name = self.row().name;
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
            Next::Gone => {
                if let Err(error) = self.vanish().await {
                    end_all(works, Err(error));
                    return;
                }
            }
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
        let name = self.row().name;
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
            // Somebody here ends it, or could not: then it is gone only now.
            if self.phase().is_at_rest() {
                self.let_go();
            }
            return;
        };
        let row = self.row();
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
        let (epoch, host, row) = (self.epoch, Arc::clone(&self.host), self.row());
        let relinked = async move {
            match jobs::relink(&host, &row, &*machine).await {
                Some(guest) => Happening::LinkUp { epoch, guest },
                // That the machine has ended is told by whoever watches it.
                None => Happening::LinkLost { epoch: 0 },
            }
        };
        self.background.spawn(relinked.in_current_span());
    }

    fn row(&self) -> VmRow {
        self.status.borrow().row.clone()
    }

    fn phase(&self) -> Phase {
        self.status.borrow().row.phase
    }

    fn overtaken(&self, by: Phase) -> ApiError {
        let name = self.row().name;
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
        let mut row = self.row();
        row.phase = phase;
        row.failure = None;
        match self.host.database.update_vm(row.clone()).await {
            Err(error) if phase == Phase::Starting => return Err(error),
            Err(error) => {
                tracing::error!(%error, phase = phase.as_str(), "could not write the phase down");
            }
            Ok(()) => {}
        }
        let was = self.phase().state();
        self.status.send_modify(|status| status.row = row);
        self.tell_state(was);
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
        let was = self.phase().state();
        self.status.send_modify(|status| {
            status.row.phase = phase;
            status.row.failure = failure;
            if let Some(stages) = stages.filter(|stages| !stages.is_empty()) {
                status.row.stages = stages;
            }
        });
        self.tell_state(was);
        let row = self.row();
        let written = self.host.database.update_vm(row).await;
        written.inspect_err(|error| {
            tracing::error!(%error, phase = phase.as_str(), "could not write the phase down");
        })
    }

    /// Tells whoever watches the daemon that the VM is in another state than it was.
    fn tell_state(&self, was: VmState) {
        let row = self.row();
        if row.phase.state() != was {
            self.host.events.tell(Happened::VmState {
                vm: row.id,
                vm_name: row.name,
                state: row.phase.state(),
                failure: row.failure,
            });
        }
    }

    /// Frees the row and with it the slot; nothing else is left.
    async fn vanish(&mut self) -> Result<(), ApiError> {
        let VmRow { id, name, .. } = self.row();
        match self.host.database.remove_vm(id.clone()).await {
            Ok(()) => {
                tracing::info!("gone");
                self.host.events.tell(Happened::VmDeleted {
                    vm: id,
                    vm_name: name,
                });
                self.status.send_modify(|status| status.gone = true);
                Ok(())
            }
            Err(error) => {
                let message = format!("could not delete VM `{name}`");
                let failure = ApiError::new(ErrorKind::Failed, message).caused_by(&error);
                let _ = self.enter(Phase::Failed, None, Some(failure.clone())).await;
                Err(failure)
            }
        }
    }
}

fn end_all(works: Vec<Work>, result: Result<(), ApiError>) {
    for work in works {
        work.end(result.clone());
    }
}
