//! The task itself: what is asked of a VM, what happens to it, and what it does about both.

mod change;
mod ledger;
mod timers;
mod told;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;

use banger_engine::{Activity, DiskError, Exit, ExitCause, Machine};
use banger_proto::api::{Operation, OperationKind};
use banger_proto::error::{ApiError, ErrorKind};
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch as last};
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::timers::Timers;
use super::jobs::{self, NotStarted};
use super::orders::{self, Carried, Settled};
use super::usage::{Look, Usage};
use super::{Ask, Behalf, Command, Delete, Origin, RequestError, Status};
use crate::guest::Guest;
use crate::host::Host;
use crate::operations::{Subject, Work};
use crate::store::{StoreError, VmRow};
use crate::vm::lifecycle::{self, Event, Next, Phase, Request, Verdict};
use crate::vm::machine_end;
use crate::vm::start::{Artifacts, Disks, Start, Started};
use crate::vm::take_down::{Extent, LeftOver, Tried};

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

/// What a job does.
#[derive(Clone, Copy, Debug)]
enum Todo {
    Start,
    Stop,
    Kill(Signal),
    Pause,
    Resume,
    Delete,
}

impl Todo {
    /// The work of a phase that `ask` begins.
    fn of(phase: Phase, ask: &Ask) -> Self {
        match (phase, ask) {
            (_, Ask::Kill(signal)) => Self::Kill(*signal),
            (Phase::Starting, _) => Self::Start,
            (Phase::Pausing, _) => Self::Pause,
            (Phase::Resuming, _) => Self::Resume,
            (Phase::Deleting, _) => Self::Delete,
            // A restart is a stop that leads to another phase.
            _ => Self::Stop,
        }
    }

    /// Whether it ends whatever the VM does, so that nothing else needs to be done well first.
    fn ends(self) -> bool {
        matches!(self, Self::Stop | Self::Kill(_) | Self::Delete)
    }
}

/// What is to be done next, as soon as the present job has ended.
#[derive(Debug)]
struct Queued {
    todo: Todo,
    works: Vec<Work>,
}

/// What comes of the work beside the owner.
#[derive(Debug)]
enum Happening {
    Prepared(Result<Artifacts, Box<NotStarted>>),
    Started(Result<Box<Started>, Box<NotStarted>>),
    Settled(Settled),
    Changed(Box<Carried>),
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
    DisksFailed {
        epoch: u64,
        errors: Vec<DiskError>,
    },
    Looked {
        epoch: u64,
        look: Look,
    },
    /// Nothing that the owner must know of.
    Nothing,
}

/// What the task knows.
pub(super) struct Owner {
    host: Arc<Host>,
    status: last::Sender<Status>,
    usage: Arc<Usage>,
    /// Changes when the host's clock jumps.
    jumps: last::Receiver<u64>,
    job: Option<Job>,
    next: Option<Queued>,
    /// Changes that wait for their turn.
    deferred: VecDeque<Command>,
    machine: Option<Arc<dyn Machine>>,
    /// Counts machines, so that news of an earlier one is told from news of this one.
    epoch: u64,
    /// How many of the machine's failures with disks were told.
    disk_errors: usize,
    /// The epoch whose link is being made anew.
    relinking: Option<u64>,
    /// Whether a signal or an order may hold the guest's CPUs.
    may_be_held: bool,
    /// How the machine ended while a job was at it.
    ended: Option<Exit>,
    timers: Timers,
    background: JoinSet<Happening>,
    quiesce: Vec<oneshot::Sender<()>>,
}

impl Owner {
    /// The owner of the VM that `status` shows; nothing goes on yet.
    pub(super) fn new(host: Arc<Host>, status: last::Sender<Status>, usage: Arc<Usage>) -> Self {
        Self {
            jumps: host.clock.jumps(),
            host,
            status,
            usage,
            job: None,
            next: None,
            deferred: VecDeque::new(),
            machine: None,
            epoch: 0,
            disk_errors: 0,
            relinking: None,
            may_be_held: false,
            ended: None,
            timers: Timers::default(),
            background: JoinSet::new(),
            quiesce: Vec::new(),
        }
    }

    /// Owns the VM until it is gone or the daemon ends.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, origin: Origin) {
        self.take_up(origin).await;
        while !self.status.borrow().gone {
            let timer = self.next_timer();
            tokio::select! {
                () = timers::until(timer) => self.on_time().await,
                Ok(()) = self.jumps.changed() => self.clock_jumped(),
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
            self.catch_up().await;
        }
    }

    async fn take_up(&mut self, origin: Origin) {
        match origin {
            Origin::Create { work, then_start } => self.begin_create(work, then_start),
            Origin::Adopted(machine) => {
                self.hold(machine);
                match self.phase() {
                    Phase::Stopping => self.resume_stop(),
                    Phase::Restarting => {
                        // Nobody waits for its start any more.
                        let _ = self.enter(Phase::Stopping, None, None).await;
                        self.resume_stop();
                    }
                    Phase::Pausing | Phase::Resuming => self.run_look(),
                    Phase::Paused => {
                        self.may_be_held = true;
                        self.run_catch_up();
                    }
                    _ => {
                        self.relink();
                        self.run_catch_up();
                    }
                }
            }
            Origin::AtRest => {
                // Its machine was not adopted: there is nothing to pause or to resume.
                if matches!(self.phase(), Phase::Pausing | Phase::Resuming) {
                    let _ = self.enter(Phase::Running, None, None).await;
                }
            }
        }
    }

    /// Sees to what had to wait for the job that went on.
    async fn catch_up(&mut self) {
        if self.job.is_none()
            && let Some(exit) = self.ended.take()
        {
            self.machine_ended(exit).await;
        }
        while !self.must_wait()
            && let Some(command) = self.deferred.pop_front()
        {
            // Whoever gave up waiting was told that nothing came of it.
            if !command.is_given_up() {
                self.obey(command).await;
            }
        }
        if self.job.is_none() {
            for reply in self.quiesce.drain(..) {
                // Whoever waits may have given up.
                let _ = reply.send(());
            }
        }
    }

    /// Whether a change must wait for its turn. In a phase that refuses it it need not.
    fn must_wait(&self) -> bool {
        let allowed = lifecycle::judge(self.phase(), Request::Set) == Verdict::Allow;
        self.job.is_some() && allowed
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Ask {
                ask: Ask::Set(_), ..
            } if self.must_wait() => self.deferred.push_back(command),
            Command::Ask { ask, behalf, reply } => {
                let answer = self.decide(ask, behalf).await;
                // The asker may have gone; what was begun goes on.
                let _ = reply.send(answer);
            }
            Command::Tidy => {
                if self.phase().is_at_rest() && self.job.is_none() {
                    self.run_take_down(Extent::Running, Vec::new(), None);
                }
            }
            Command::Adopt(machine) => self.adopt(machine).await,
            Command::Lost => self.lost().await,
            Command::Quiesce(reply) => {
                self.write_again().await;
                // A stop is left to its end: hurried, it would cut the guest's power.
                if matches!(self.phase(), Phase::Creating | Phase::Starting) {
                    self.hurry();
                }
                self.quiesce.push(reply);
            }
        }
    }

    /// Takes over a machine that could not be taken over when the daemon started.
    async fn adopt(&mut self, machine: Arc<dyn Machine>) {
        let phase = self.phase();
        let wants = matches!(phase, Phase::Running | Phase::Paused);
        if !wants || self.job.is_some() || self.machine.is_some() {
            return;
        }
        tracing::info!("taken over");
        let _ = self.enter(phase, None, None).await;
        self.take_up(Origin::Adopted(machine)).await;
    }

    /// No machine of this VM is on the host any more, and nobody has told. The end of one that is
    /// held is told by itself, and surely.
    async fn lost(&mut self) {
        let ran = matches!(self.phase(), Phase::Running | Phase::Paused);
        if !ran || self.job.is_some() || self.machine.is_some() {
            return;
        }
        let exit = Exit {
            cause: ExitCause::Unseen,
            engine_log: Vec::new(),
        };
        self.machine_ended(exit).await;
    }

    async fn decide(&mut self, ask: Ask, behalf: Behalf) -> Result<Operation, RequestError> {
        let verdict = lifecycle::judge(self.phase(), ask.request());
        tracing::debug!(?ask, phase = self.phase().as_str(), ?verdict, "asked");
        if ask == Ask::Delete(Delete::UntilGone) {
            self.insist().await;
        }
        let phase = match verdict {
            Verdict::Refuse(refusal) => return Err(refusal.into()),
            Verdict::Begin(phase) | Verdict::Interrupt(phase) => phase,
            Verdict::Redirect(phase) => return self.redirect(phase, &ask, behalf).await,
            Verdict::Allow => match ask {
                Ask::Set(change) => return self.change(&change, behalf).await,
                ask => return Ok(self.join(&ask, behalf)),
            },
            Verdict::Join => return Ok(self.join(&ask, behalf)),
            Verdict::Hurry => {
                let operation = self.join(&ask, behalf);
                self.hurry();
                return Ok(operation);
            }
        };
        self.begin_phase(phase, behalf.reason.clone()).await?;
        let work = self.begin(&ask, behalf);
        let operation = work.operation();
        let todo = Todo::of(phase, &ask);
        if self.job.is_none() {
            self.run_todo(todo, vec![work]);
            return Ok(operation);
        }
        // A job of a VM that is not busy tidies or changes it, and is waited for by what does not
        // end the VM.
        if todo.ends() || matches!(verdict, Verdict::Interrupt(_)) {
            self.hurry();
        }
        let queued = Queued {
            todo,
            works: vec![work],
        };
        if let Some(overtaken) = self.next.replace(queued) {
            self.end_overtaken(overtaken.works, None, None);
        }
        Ok(operation)
    }

    /// Lets the work that goes on lead to `phase`. Whoever waited for where it led is told.
    async fn redirect(
        &mut self,
        phase: Phase,
        ask: &Ask,
        behalf: Behalf,
    ) -> Result<Operation, RequestError> {
        self.begin_phase(phase, behalf.reason.clone()).await?;
        let work = self.begin(ask, behalf);
        let operation = work.operation();
        let works = match (&mut self.next, &mut self.job) {
            (Some(queued), _) => &mut queued.works,
            (None, Some(job)) => &mut job.works,
            (None, None) => {
                self.run_todo(Todo::of(phase, ask), vec![work]);
                return Ok(operation);
            }
        };
        let overtaken = std::mem::replace(works, vec![work]);
        self.end_overtaken(overtaken, None, None);
        Ok(operation)
    }

    fn begin(&self, ask: &Ask, behalf: Behalf) -> Work {
        let row = &self.status.borrow().row;
        self.host.operations.begin(Subject {
            kind: ask.operation(),
            vm: Some((row.id.clone(), row.name.clone())),
            request_id: behalf.request_id,
            reason: behalf.reason,
        })
    }

    /// An operation that ends with what goes on already.
    fn join(&mut self, ask: &Ask, behalf: Behalf) -> Operation {
        let work = self.begin(ask, behalf);
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

    fn run_todo(&mut self, todo: Todo, works: Vec<Work>) {
        match todo {
            Todo::Start => self.run_start(works),
            Todo::Stop => self.run_stop(works),
            Todo::Kill(signal) => self.run_kill(signal, works),
            Todo::Pause => self.run_pause(works),
            Todo::Resume => self.run_resume(works),
            Todo::Delete => self.run_take_down(Extent::Everything, works, None),
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
        if !self.quiesce.is_empty() {
            // The daemon ends: what waited for its turn is called off like what has begun.
            self.hurry();
        }
    }

    fn start_of(&self, work: &Work, disks: Disks) -> Start {
        Start {
            host: Arc::clone(&self.host),
            row: self.row(),
            disks,
            report: work.reporter(),
            request_id: work.request_id(),
            cancel: work.cancelled(),
        }
    }

    /// The link to the guest for what these operations do: the agent's log names the request
    /// that began them.
    fn guest_for(&self, works: &[Work]) -> Option<Guest> {
        let id = works.first().and_then(Work::request_id);
        let guest = self.status.borrow().guest.clone();
        guest.map(|guest| guest.for_work_of(id.as_ref()))
    }

    fn run_stop(&mut self, works: Vec<Work>) {
        let (host, row, machine) = (Arc::clone(&self.host), self.row(), self.machine.clone());
        let guest = self.guest_for(&works);
        let request = works.first().and_then(Work::request_id);
        let held = self.may_be_held;
        let linking = self.relinking.map(|_| self.status.subscribe());
        let mark = match (self.phase(), works.first()) {
            // What a restart does before its start is told like a stage of it.
            (Phase::Restarting, Some(work)) => Some(work.reporter().stage("stop")),
            _ => None,
        };
        let hurry = CancellationToken::new();
        let told = hurry.clone();
        self.run_job(works, hurry, async move {
            if let Some(machine) = machine {
                let shut_down = async {
                    if held {
                        // A guest that is held cannot shut down.
                        orders::resume(&host, &row, Some(&*machine), guest.as_ref(), &told).await;
                    }
                    match (guest, linking) {
                        (None, _) if held => jobs::resume_shut_down(&host, &row, &*machine).await,
                        (None, Some(status)) => {
                            let guest = jobs::soon_linked(&*machine, status).await;
                            let guest = guest.map(|guest| guest.for_work_of(request.as_ref()));
                            jobs::shut_down(&host, &row, &*machine, guest).await;
                        }
                        (guest, _) => jobs::shut_down(&host, &row, &*machine, guest).await,
                    }
                };
                told.run_until_cancelled(shut_down).await;
            }
            let result = jobs::release(&host, &row, Extent::Running).await;
            if let (Ok(()), Some(mark)) = (&result, mark) {
                mark.done();
            }
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
            let shut_down = async {
                // It may have been paused when the stop began.
                orders::resume(&host, &row, Some(&*machine), None, &told).await;
                jobs::resume_shut_down(&host, &row, &*machine).await;
            };
            told.run_until_cancelled(shut_down).await;
            let result = jobs::release(&host, &row, Extent::Running).await;
            let broken = None;
            Happening::TakenDown { result, broken }
        });
    }

    fn run_kill(&mut self, signal: Signal, works: Vec<Work>) {
        let (host, row, machine) = (Arc::clone(&self.host), self.row(), self.machine.clone());
        let hurry = CancellationToken::new();
        let told = hurry.clone();
        self.run_job(works, hurry, async move {
            if let Some(machine) = machine {
                told.run_until_cancelled(orders::end(&*machine, signal))
                    .await;
            }
            let result = jobs::release(&host, &row, Extent::Running).await;
            let broken = None;
            Happening::TakenDown { result, broken }
        });
    }

    fn run_pause(&mut self, works: Vec<Work>) {
        let (row, machine) = (self.row(), self.machine.clone());
        self.may_be_held = true;
        self.run_job(works, CancellationToken::new(), async move {
            Happening::Settled(orders::pause(&row, machine.as_deref()).await)
        });
    }

    fn run_resume(&mut self, works: Vec<Work>) {
        let (host, row, machine) = (Arc::clone(&self.host), self.row(), self.machine.clone());
        let guest = self.guest_for(&works);
        let hurry = CancellationToken::new();
        let told = hurry.clone();
        self.run_job(works, hurry, async move {
            let machine = machine.as_deref();
            Happening::Settled(orders::resume(&host, &row, machine, guest.as_ref(), &told).await)
        });
    }

    /// Finds out what became of a pause or a resume in which the daemon before this one ended.
    fn run_look(&mut self) {
        let Some(machine) = self.machine.clone() else {
            return;
        };
        self.may_be_held = true;
        self.run_job(Vec::new(), CancellationToken::new(), async move {
            Happening::Settled(orders::look(&*machine).await)
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
            Happening::Settled(settled) => self.settled(settled).await,
            Happening::Changed(carried) => self.changed(*carried).await,
            Happening::TakenDown { result, broken } => self.taken_down(result, broken).await,
            Happening::MachineEnded { epoch, exit } if epoch == self.epoch => {
                self.machine_ended(exit).await;
            }
            Happening::LinkLost { epoch } if epoch == self.epoch => self.link_lost(),
            Happening::LinkUp { epoch, guest } if epoch == self.epoch => self.linked(guest),
            Happening::DisksFailed { epoch, errors } if epoch == self.epoch => {
                self.disks_failed(&errors).await;
            }
            Happening::Looked { epoch, look } if epoch == self.epoch => self.looked(look).await,
            // News of a machine that is no more.
            Happening::MachineEnded { .. }
            | Happening::LinkLost { .. }
            | Happening::LinkUp { .. }
            | Happening::DisksFailed { .. }
            | Happening::Looked { .. }
            | Happening::Nothing => {}
        }
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

    async fn settled(&mut self, settled: Settled) {
        let event = match settled.activity {
            Activity::Paused => Event::Held,
            Activity::Running => Event::GoesOn,
        };
        self.may_be_held = settled.activity == Activity::Paused;
        self.job_ended(event, settled.error).await;
        // A link that broke while the guest was held could not be mended then.
        if self.phase() == Phase::Running && self.status.borrow().guest.is_none() {
            self.relink();
        }
    }

    async fn taken_down(&mut self, result: Result<(), LeftOver>, broken: Option<ApiError>) {
        let (event, error) = match (result, broken) {
            (Ok(()), None) => (Event::TakenDown, None),
            (Ok(()), Some(broken)) => (Event::TakenDownBroken, Some(broken)),
            (Err(left_over), broken) => {
                let (verb, tried) = match self.phase() {
                    Phase::Deleting if self.is_expired() => ("delete", Tried::DeleteUntilGone),
                    Phase::Deleting => ("delete", Tried::Delete),
                    Phase::Restarting => ("restart", Tried::Stop),
                    _ => ("stop", Tried::Stop),
                };
                let name = self.row().name;
                let error = match broken {
                    None => left_over.to_api(verb, tried, &name),
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
        let stages = works.first().map(|work| work.reporter().stages());
        if let Some(Queued {
            todo,
            works: queued,
        }) = self.next.take()
        {
            // Another request has overtaken this one. What it came to is the other's to clean up.
            self.remember_stages(stages);
            self.end_overtaken(works, Some(event), error);
            self.run_todo(todo, queued);
            return;
        }
        let was = self.phase();
        let mut gone = false;
        match lifecycle::after(was, event) {
            Next::Phase(Phase::Starting) => return self.start_again(works).await,
            Next::Phase(phase) => {
                let failure = error.clone().filter(|_| phase == Phase::Failed);
                let entered = self.enter(phase, stages, failure).await;
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
                gone = true;
            }
            Next::Ignore => {}
        }
        for work in works {
            // A stop that called a start off has what it wanted when nothing of that is left.
            let wanted = is_wanted(work.kind(), event);
            let result = match &error {
                // They promise a VM whose disks stay; nothing is left of one that never was.
                _ if gone && wanted => Err(told::never_was(&self.row().name)),
                Some(error) if !wanted => Err(error.clone()),
                _ => Ok(()),
            };
            work.end(result);
        }
    }

    /// The second half of a restart.
    async fn start_again(&mut self, works: Vec<Work>) {
        let begun = match self.quiesce.is_empty() {
            true => self.begin_phase(Phase::Starting, None).await,
            false => {
                let mut error = told::called_off(OperationKind::RestartVm, &self.row().name);
                error.causes.push("the daemon ends".to_owned());
                let _ = self.enter(Phase::Stopped, None, None).await;
                return end_all(works, Err(error));
            }
        };
        match begun {
            Ok(()) => self.run_start(works),
            Err(store) => {
                let error = told::not_written("restart", &self.row().name, &store);
                let _ = self.enter(Phase::Stopped, None, None).await;
                end_all(works, Err(error));
            }
        }
    }

    async fn give_up_create(&mut self, works: Vec<Work>, store: &StoreError) {
        let error = told::not_written("create", &self.row().name, store);
        end_all(works, Err(error));
        if self.begin_phase(Phase::Deleting, None).await.is_ok() {
            self.run_todo(Todo::Delete, Vec::new());
        }
    }

    async fn machine_ended(&mut self, exit: Exit) {
        let Next::Phase(phase) = lifecycle::after(self.phase(), Event::MachineEnded) else {
            match self.phase() {
                // What is being ordered of it comes to its end first.
                Phase::Pausing | Phase::Resuming => self.ended = Some(exit),
                // Somebody here could not end it: then it is gone only now.
                phase if phase.is_at_rest() => self.let_go(),
                // Somebody here ends it.
                _ => {}
            }
            return;
        };
        if self.job.is_some() {
            self.hurry();
            self.ended = Some(exit);
            return;
        }
        let row = self.row();
        let console = self.host.layout(&row.id, row.slot).place.console_log();
        let name = row.name.clone();
        let cause = exit.cause.to_string();
        let broken = crate::blocking(move || machine_end::failure(&name, &exit, &console)).await;
        match &broken {
            None => tracing::info!(cause, "the machine ended"),
            Some(_) => tracing::warn!(cause, "the machine ended"),
        }
        self.status.send_modify(|status| {
            status.guest = None;
            status.row.reason = broken.is_none().then_some(cause);
        });
        let _ = self.enter(phase, None, None).await;
        self.run_take_down(Extent::Running, Vec::new(), broken);
    }

    fn row(&self) -> VmRow {
        self.status.borrow().row.clone()
    }

    fn phase(&self) -> Phase {
        self.status.borrow().row.phase
    }

    /// Ends operations that another request has overtaken. `event` is what they came to, if they
    /// came to anything.
    fn end_overtaken(&self, works: Vec<Work>, event: Option<Event>, error: Option<ApiError>) {
        for work in works {
            let kind = work.kind();
            let wanted = event.is_some_and(|event| {
                let as_asked = error.is_none() && is_asked(kind, event);
                as_asked || is_wanted(kind, event)
            });
            let result = match (wanted, &error) {
                (true, _) => Ok(()),
                (false, Some(error)) => {
                    let mut error = error.clone();
                    if error.kind == ErrorKind::Cancelled {
                        let row = self.row();
                        told::add_why(&mut error, row.phase, row.reason);
                    }
                    Err(error)
                }
                (false, None) => Err(self.overtaken(kind)),
            };
            work.end(result);
        }
    }

    /// The error of an operation that was overtaken by what the VM does now.
    fn overtaken(&self, kind: OperationKind) -> ApiError {
        let row = self.row();
        told::overtaken(kind, &row.name, row.phase, row.reason)
    }
}

/// Whether whoever asked for an operation of this kind has what was wanted after `event`,
/// whatever failed on the way there.
fn is_wanted(kind: OperationKind, event: Event) -> bool {
    let ends = matches!(kind, OperationKind::StopVm | OperationKind::KillVm);
    ends && matches!(
        event,
        Event::StartFailed | Event::TakenDown | Event::TakenDownBroken
    )
}

/// Whether `event` is what an operation of this kind leads to.
fn is_asked(kind: OperationKind, event: Event) -> bool {
    match kind {
        OperationKind::PauseVm => event == Event::Held,
        OperationKind::ResumeVm => event == Event::GoesOn,
        OperationKind::SetVm => event == Event::Changed,
        _ => false,
    }
}

fn end_all(works: Vec<Work>, result: Result<(), ApiError>) {
    for work in works {
        work.end(result.clone());
    }
}
