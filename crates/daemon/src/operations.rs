//! Work that goes on after the request that began it: how far it is, who follows it, and how
//! it is called off.
//!
//! Operations live in memory: after the daemon's death nobody waits for them any more, and
//! the reconciler has cleaned up after them. A follower who comes late sees every stage from
//! the beginning; of each progress only the latest state is kept, so a slow follower costs
//! nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use banger_proto::api::{
    Happened, Operation, OperationEvent, OperationKind, OperationState, Progress, StageTime,
};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::{OperationId, RequestId, VmId};
use banger_proto::name::VmName;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::events::Events;
use crate::store::keys::IdempotencyKey;

/// How many ended operations are remembered.
const REMEMBERED: usize = 256;
/// How many bytes of what its commands print an operation remembers, the newest.
const OUTPUT_KEPT: usize = 256 << 10;

/// All operations. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Operations {
    node: Arc<str>,
    events: Events,
    registry: Arc<Mutex<Registry>>,
}

#[derive(Debug, Default)]
struct Registry {
    entries: HashMap<OperationId, Arc<Entry>>,
    keys: HashMap<String, (OperationId, String)>,
    ended: VecDeque<OperationId>,
    tally: Tally,
}

/// How many operations of each kind this daemon has begun and ended.
#[derive(Clone, Debug)]
pub struct Tally(Vec<(OperationKind, TallyRow)>);

/// The numbers of one kind.
#[derive(Clone, Debug)]
pub struct TallyRow {
    /// The kind's word in the API.
    pub kind: String,
    /// Those that have begun.
    pub begun: u64,
    /// Those that did what was asked.
    pub succeeded: u64,
    /// Those that did not.
    pub failed: u64,
    /// Those that were called off.
    pub cancelled: u64,
}

impl Default for Tally {
    fn default() -> Self {
        // From the beginning on, so that whoever counts sees the first of a kind as a change.
        Self(
            OperationKind::ALL
                .map(|kind| (kind, TallyRow::new(kind)))
                .into(),
        )
    }
}

impl Tally {
    /// The numbers of every kind.
    pub fn rows(&self) -> impl Iterator<Item = &TallyRow> {
        self.0.iter().map(|(_, row)| row)
    }

    fn row(&mut self, kind: OperationKind) -> &mut TallyRow {
        let found = self.0.iter_mut().find(|(known, _)| *known == kind);
        &mut found.expect("every kind has its row").1
    }
}

impl TallyRow {
    fn new(kind: OperationKind) -> Self {
        Self {
            kind: kind.as_str().to_owned(),
            begun: 0,
            succeeded: 0,
            failed: 0,
            cancelled: 0,
        }
    }
}

#[derive(Debug)]
struct Entry {
    record: Mutex<Record>,
    /// Where its begin and its end are told.
    told: Events,
    /// The number of the newest event; followers wait on it.
    newest: watch::Sender<u64>,
    cancel: CancellationToken,
    began: Instant,
    key: Option<String>,
}

#[derive(Debug)]
struct Record {
    operation: Operation,
    events: Vec<(u64, OperationEvent)>,
    request_id: Option<RequestId>,
}

/// What an operation is about.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What it does.
    pub kind: OperationKind,
    /// The VM it is about.
    pub vm: Option<(VmId, VmName)>,
    /// The request that began it.
    pub request_id: Option<RequestId>,
    /// Why it is done, where nobody asked.
    pub reason: Option<String>,
}

/// Whether a request begins something new.
#[derive(Debug)]
pub enum Begun {
    /// It does.
    New(Work),
    /// It repeats an earlier one.
    Repeated(Box<Operation>),
}

/// The key was used for another request.
#[derive(Debug, thiserror::Error)]
#[error("the idempotency key was used for another request")]
pub struct KeyReused;

/// Why an operation is not called off.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CancelError {
    /// There is none of this id.
    #[error("there is no such operation")]
    Unknown,
    /// It is of a kind that is done whole.
    #[error(
        "what changes a VM or removes something is done whole and cannot be called off: this goes on \
         to its end"
    )]
    GoesOn,
}

impl Operations {
    /// No operations yet; `node` names this host in each.
    pub fn new(node: &str, events: Events) -> Self {
        Self {
            node: node.into(),
            events,
            registry: Arc::default(),
        }
    }

    /// Begins an operation.
    pub fn begin(&self, subject: Subject) -> Work {
        self.begin_entry(&mut self.registry(), subject, None)
    }

    /// Begins an operation, unless one was begun under the same key.
    ///
    /// # Errors
    /// The key was used for another request.
    pub fn begin_once(&self, subject: Subject, key: IdempotencyKey) -> Result<Begun, KeyReused> {
        let mut registry = self.registry();
        if let Some((id, fingerprint)) = registry.keys.get(&key.key) {
            if *fingerprint != key.fingerprint {
                return Err(KeyReused);
            }
            if let Some(entry) = registry.entries.get(id) {
                return Ok(Begun::Repeated(Box::new(entry.record().operation.clone())));
            }
        }
        let work = self.begin_entry(&mut registry, subject, Some(key.key.clone()));
        registry.keys.insert(key.key, (work.id(), key.fingerprint));
        Ok(Begun::New(work))
    }

    /// The operation that was begun under a key, if it is remembered.
    pub fn under_key(&self, key: &str) -> Option<Operation> {
        let id = self.registry().keys.get(key).map(|(id, _)| id.clone())?;
        self.get(&id)
    }

    /// Forgets the key of an operation: a repeated request begins another one.
    pub fn forget_key(&self, key: &str, operation: &OperationId) {
        self.registry().forget_key(key, operation);
    }

    /// The operation as it is now.
    pub fn get(&self, id: &OperationId) -> Option<Operation> {
        let entry = self.registry().entries.get(id).cloned()?;
        let operation = entry.record().operation.clone();
        Some(operation)
    }

    /// All operations that are remembered, the oldest first.
    pub fn list(&self) -> Vec<Operation> {
        let entries: Vec<_> = self.registry().entries.values().cloned().collect();
        let mut operations: Vec<Operation> = entries
            .iter()
            .map(|entry| entry.record().operation.clone())
            .collect();
        operations.sort_by(|a, b| (&a.created_at, &a.id).cmp(&(&b.created_at, &b.id)));
        operations
    }

    /// How many go on.
    pub fn running(&self) -> usize {
        let registry = self.registry();
        registry.entries.len() - registry.ended.len()
    }

    /// How many have begun and ended so far.
    pub fn tally(&self) -> Tally {
        self.registry().tally.clone()
    }

    /// Calls an operation off. One that has ended stays as it is.
    ///
    /// # Errors
    /// There is no such operation, or it is of a kind that goes on to its end.
    pub fn cancel(&self, id: &OperationId) -> Result<Operation, CancelError> {
        let entry = self.registry().entries.get(id).cloned();
        let entry = entry.ok_or(CancelError::Unknown)?;
        let operation = entry.record().operation.clone();
        match operation.kind {
            OperationKind::CreateVm
            | OperationKind::StartVm
            | OperationKind::PullImage
            | OperationKind::PullKernel
            | OperationKind::PromoteImage
            | OperationKind::CommitVm
            | OperationKind::BuildImage
            | OperationKind::InstallEngine => {
                entry.cancel.cancel();
                Ok(operation)
            }
            // Half of one of these is of no use to anyone.
            OperationKind::StopVm
            | OperationKind::RestartVm
            | OperationKind::KillVm
            | OperationKind::PauseVm
            | OperationKind::ResumeVm
            | OperationKind::SetVm
            | OperationKind::DeleteVm
            | OperationKind::UninstallEngine => Err(CancelError::GoesOn),
        }
    }

    /// Follows an operation from its beginning.
    pub fn follow(&self, id: &OperationId) -> Option<Follower> {
        let entry = self.registry().entries.get(id).cloned()?;
        Some(Follower {
            newest: entry.newest.subscribe(),
            entry,
            seen: 0,
            pending: VecDeque::new(),
            ended: false,
        })
    }

    fn begin_entry(&self, registry: &mut Registry, subject: Subject, key: Option<String>) -> Work {
        let id = OperationId::new();
        let (vm, vm_name) = subject.vm.unzip();
        let entry = Arc::new(Entry {
            told: self.events.clone(),
            record: Mutex::new(Record {
                operation: Operation {
                    id: id.clone(),
                    kind: subject.kind,
                    state: OperationState::Running,
                    node: self.node.to_string(),
                    vm,
                    vm_name,
                    reason: subject.reason,
                    error: None,
                    created_at: crate::now(),
                    stages: Vec::new(),
                    warnings: Vec::new(),
                },
                events: Vec::new(),
                request_id: subject.request_id,
            }),
            newest: watch::Sender::new(0),
            cancel: CancellationToken::new(),
            began: Instant::now(),
            key,
        });
        registry.tally.row(subject.kind).begun += 1;
        registry.entries.insert(id.clone(), Arc::clone(&entry));
        let record = entry.record();
        tracing::info!(
            operation = %id,
            kind = subject.kind.as_str(),
            request_id = record.request_id.as_ref().map(tracing::field::display),
            vm = record.operation.vm_name.as_ref().map(tracing::field::display),
            reason = record.operation.reason,
            "an operation begins"
        );
        entry.tell(&record.operation);
        drop(record);
        Work {
            entry,
            registry: Arc::clone(&self.registry),
            open: true,
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().expect("no holder of this lock panics")
    }
}

impl Registry {
    /// Forgets the key of an operation, unless a later one has it now.
    fn forget_key(&mut self, key: &str, operation: &OperationId) {
        if self.keys.get(key).is_some_and(|(id, _)| id == operation) {
            self.keys.remove(key);
        }
    }
}

impl Entry {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no holder of this lock panics")
    }

    /// Tells whoever watches the daemon. A create is told of from the moment on at which its VM
    /// is there: until then it may not come about.
    fn tell(&self, operation: &Operation) {
        if operation.kind == OperationKind::CreateVm && operation.vm.is_none() {
            return;
        }
        self.told.tell(Happened::Operation {
            operation: operation.id.clone(),
            kind: operation.kind,
            state: operation.state,
            vm: operation.vm.clone(),
            vm_name: operation.vm_name.clone(),
            reason: operation.reason.clone(),
            error: operation.error.clone(),
        });
    }

    /// Adds an event; `replaces` says which earlier ones it makes superfluous.
    fn add(
        &self,
        record: &mut Record,
        event: OperationEvent,
        replaces: impl Fn(&OperationEvent) -> bool,
    ) {
        record.events.retain(|(_, earlier)| !replaces(earlier));
        self.newest.send_modify(|newest| {
            *newest += 1;
            record.events.push((*newest, event));
        });
    }
}

/// The doer's end of an operation. One that is dropped without having ended has failed.
#[derive(Debug)]
pub struct Work {
    entry: Arc<Entry>,
    registry: Arc<Mutex<Registry>>,
    open: bool,
}

impl Work {
    /// The operation's id.
    pub fn id(&self) -> OperationId {
        self.entry.record().operation.id.clone()
    }

    /// What it does.
    pub fn kind(&self) -> OperationKind {
        self.entry.record().operation.kind
    }

    /// The operation as it is now.
    pub fn operation(&self) -> Operation {
        self.entry.record().operation.clone()
    }

    /// The request that began it.
    pub fn request_id(&self) -> Option<RequestId> {
        self.entry.record().request_id.clone()
    }

    /// Says which VM it is about, once that is known.
    pub fn set_vm(&self, id: VmId, name: VmName) {
        let mut record = self.entry.record();
        record.operation.vm = Some(id);
        record.operation.vm_name = Some(name);
        self.entry.tell(&record.operation);
    }

    /// Cancelled when someone calls the operation off.
    pub fn cancelled(&self) -> CancellationToken {
        self.entry.cancel.clone()
    }

    /// Where the stages of this operation are told.
    pub fn reporter(&self) -> StageReporter {
        StageReporter {
            entry: Arc::clone(&self.entry),
        }
    }

    /// Ends the operation.
    pub fn end(mut self, result: Result<(), ApiError>) {
        self.close(result);
    }

    /// Ends an operation that did not come about, and forgets its key: a repeated request
    /// begins anew.
    pub fn withdraw(mut self, error: ApiError) {
        if let Some(key) = &self.entry.key {
            let mut registry = self.registry.lock().expect("no holder of this lock panics");
            registry.forget_key(key, &self.id());
        }
        self.close(Err(error));
    }

    fn close(&mut self, result: Result<(), ApiError>) {
        self.open = false;
        let state = match &result {
            Ok(()) => OperationState::Succeeded,
            Err(error) if error.kind == ErrorKind::Cancelled => OperationState::Cancelled,
            Err(_) => OperationState::Failed,
        };
        // Whoever hears of the end finds it counted.
        self.count(state);
        let mut record = self.entry.record();
        record.operation.state = state;
        record.operation.error = result.err().map(|mut error| {
            if error.request_id.is_none() {
                error.request_id.clone_from(&record.request_id);
            }
            error
        });
        let done = OperationEvent::Done(Box::new(record.operation.clone()));
        tracing::info!(
            operation = %record.operation.id,
            kind = record.operation.kind.as_str(),
            request_id = record.request_id.as_ref().map(tracing::field::display),
            vm = record.operation.vm_name.as_ref().map(tracing::field::display),
            state = state.as_str(),
            error = record.operation.error.as_ref().map(tracing::field::display),
            "an operation ended"
        );
        self.entry.tell(&record.operation);
        self.entry.add(&mut record, done, |_| false);
    }

    /// Counts its end, and forgets the oldest that have ended.
    fn count(&self, state: OperationState) {
        let (id, kind) = {
            let record = self.entry.record();
            (record.operation.id.clone(), record.operation.kind)
        };
        let mut registry = self.registry.lock().expect("no holder of this lock panics");
        let row = registry.tally.row(kind);
        match state {
            OperationState::Failed => row.failed += 1,
            OperationState::Cancelled => row.cancelled += 1,
            OperationState::Succeeded | OperationState::Running => row.succeeded += 1,
        }
        registry.ended.push_back(id);
        while registry.ended.len() > REMEMBERED
            && let Some(oldest) = registry.ended.pop_front()
        {
            let entry = registry.entries.remove(&oldest);
            if let Some(key) = entry.as_ref().and_then(|entry| entry.key.as_ref()) {
                registry.forget_key(key, &oldest);
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.open {
            self.close(Err(ApiError::new(
                ErrorKind::Failed,
                "the work was given up because of a fault in banger",
            )
            .with_hint("see `banger daemon logs`")));
        }
    }
}

/// Where a stage tells that it begins, goes on and ends. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StageReporter {
    entry: Arc<Entry>,
}

impl StageReporter {
    /// A stage begins. It ends when the returned mark is told so; a mark that is dropped
    /// before belongs to a stage that failed.
    pub fn stage(&self, name: &'static str) -> StageMark {
        let begin = self.entry.began.elapsed();
        let event = OperationEvent::Stage {
            stage: name.to_owned(),
        };
        self.entry.add(&mut self.entry.record(), event, |_| false);
        StageMark {
            entry: Arc::clone(&self.entry),
            name,
            begin_ms: begin.as_secs_f64() * 1e3,
            failed: true,
        }
    }

    /// A long step inside a stage has come further.
    pub fn progress(&self, progress: Progress) {
        let what = progress.what.clone();
        let same = |event: &OperationEvent| matches!(event, OperationEvent::Progress(earlier) if earlier.what == what);
        self.entry.add(
            &mut self.entry.record(),
            OperationEvent::Progress(progress),
            same,
        );
    }

    /// Something is odd, and the operation goes on: it is told when it has ended.
    pub fn warn(&self, text: String) {
        self.entry.record().operation.warnings.push(text);
    }

    /// A command in a guest has printed something. Of much only the newest is remembered.
    pub fn output(&self, text: String) {
        let mut record = self.entry.record();
        let mut room = OUTPUT_KEPT.saturating_sub(text.len());
        let mut is_old = |event: &OperationEvent| match event {
            OperationEvent::Output { text } => match room.checked_sub(text.len()) {
                Some(left) => {
                    room = left;
                    false
                }
                None => {
                    room = 0;
                    true
                }
            },
            _ => false,
        };
        let old = record
            .events
            .iter()
            .rev()
            .filter(|(_, event)| is_old(event));
        let old: Vec<u64> = old.map(|(number, _)| *number).collect();
        record.events.retain(|(number, _)| !old.contains(number));
        self.entry
            .add(&mut record, OperationEvent::Output { text }, |_| false);
    }

    /// Stages that have ended so far, also those that have failed.
    pub fn stages(&self) -> Vec<StageTime> {
        self.entry.record().operation.stages.clone()
    }
}

/// A stage that goes on.
#[derive(Debug)]
pub struct StageMark {
    entry: Arc<Entry>,
    name: &'static str,
    begin_ms: f64,
    failed: bool,
}

impl StageMark {
    /// The stage has done its work.
    pub fn done(mut self) {
        self.failed = false;
    }
}

impl Drop for StageMark {
    fn drop(&mut self) {
        let time = StageTime {
            stage: self.name.to_owned(),
            begin_ms: self.begin_ms,
            took_ms: self.entry.began.elapsed().as_secs_f64() * 1e3 - self.begin_ms,
            failed: self.failed,
        };
        let mut record = self.entry.record();
        record.operation.stages.push(time.clone());
        self.entry
            .add(&mut record, OperationEvent::StageDone(time), |_| false);
    }
}

/// Sees the events of one operation, from the first to the last.
#[derive(Debug)]
pub struct Follower {
    entry: Arc<Entry>,
    newest: watch::Receiver<u64>,
    seen: u64,
    pending: VecDeque<OperationEvent>,
    ended: bool,
}

impl Follower {
    /// The next event; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<OperationEvent> {
        while self.pending.is_empty() && !self.ended {
            // The sender lives in the entry, which this follower holds.
            self.newest
                .wait_for(|newest| *newest > self.seen)
                .await
                .ok()?;
            let record = self.entry.record();
            let unseen = record
                .events
                .iter()
                .filter(|(number, _)| *number > self.seen);
            self.pending.extend(unseen.map(|(_, event)| event.clone()));
            self.seen = record
                .events
                .last()
                .map_or(self.seen, |(number, _)| *number);
            self.ended = record.operation.state != OperationState::Running;
        }
        self.pending.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::api::ProgressUnit;

    fn operations() -> Operations {
        Operations::new("here", Events::new("here"))
    }

    fn create() -> Subject {
        Subject {
            kind: OperationKind::CreateVm,
            vm: None,
            request_id: None,
            reason: None,
        }
    }

    fn progress(what: &str, done: u64) -> Progress {
        Progress {
            what: what.to_owned(),
            done,
            total: Some(10),
            unit: ProgressUnit::Items,
        }
    }

    async fn all(mut follower: Follower) -> Vec<String> {
        let mut words = Vec::new();
        while let Some(event) = follower.next().await {
            words.push(match event {
                OperationEvent::Stage { stage } => format!("begin {stage}"),
                OperationEvent::StageDone(time) => format!("end {}", time.stage),
                OperationEvent::Progress(progress) => {
                    format!("{} {}", progress.what, progress.done)
                }
                OperationEvent::Output { text } => format!("{} bytes", text.len()),
                OperationEvent::Done(operation) => format!("{:?}", operation.state),
            });
        }
        words
    }

    #[tokio::test]
    async fn of_much_output_the_newest_is_remembered_and_the_stages_stay() {
        let operations = operations();
        let work = operations.begin(create());
        let reporter = work.reporter();
        reporter.stage("packages").done();
        for _ in 0..20 {
            reporter.output("x".repeat(OUTPUT_KEPT / 8));
        }
        reporter.output("last".to_owned());
        let id = work.id();
        work.end(Ok(()));
        let words = all(operations.follow(&id).unwrap()).await;
        let kept = words.iter().filter(|word| word.ends_with("bytes")).count();
        assert_eq!(kept, 8, "{words:?}");
        assert_eq!(words[..2], ["begin packages", "end packages"]);
        assert_eq!(words[words.len() - 2..], ["4 bytes", "Succeeded"]);
    }

    #[tokio::test]
    async fn early_and_late_followers_see_every_stage() {
        let operations = operations();
        let work = operations.begin(create());
        let early = tokio::spawn(all(operations.follow(&work.id()).unwrap()));
        tokio::task::yield_now().await;
        let reporter = work.reporter();
        let image = reporter.stage("image");
        reporter.progress(progress("a", 1));
        reporter.progress(progress("b", 1));
        reporter.progress(progress("a", 9));
        image.done();
        reporter.stage("disks").done();
        let id = work.id();
        work.end(Ok(()));
        let expected = [
            "begin image",
            "b 1",
            "a 9",
            "end image",
            "begin disks",
            "end disks",
            "Succeeded",
        ];
        assert_eq!(all(operations.follow(&id).unwrap()).await, expected);
        let early = early.await.unwrap();
        let stages = |words: &[String]| -> Vec<String> {
            words
                .iter()
                .filter(|word| !word.starts_with(['a', 'b']) || word.starts_with("begin"))
                .cloned()
                .collect()
        };
        assert_eq!(stages(&early), stages(&expected.map(str::to_owned)));
        assert_eq!(operations.get(&id).unwrap().stages.len(), 2);
    }

    #[tokio::test]
    async fn work_that_is_dropped_has_failed() {
        let operations = operations();
        let work = operations.begin(create());
        let id = work.id();
        drop(work);
        let operation = operations.get(&id).unwrap();
        assert_eq!(operation.state, OperationState::Failed);
        assert!(operation.error.is_some());
        assert_eq!(all(operations.follow(&id).unwrap()).await, ["Failed"]);
    }

    #[tokio::test]
    async fn what_was_called_off_has_not_failed_and_a_stage_that_is_dropped_has() {
        let operations = operations();
        let work = operations.begin(create());
        let id = work.id();
        let reporter = work.reporter();
        reporter.stage("image").done();
        drop(reporter.stage("engine"));
        work.end(Err(ApiError::new(ErrorKind::Cancelled, "called off")));
        let operation = operations.get(&id).unwrap();
        assert_eq!(operation.state, OperationState::Cancelled);
        let stages = operation.stages.iter();
        let stages: Vec<_> = stages
            .map(|time| (time.stage.as_str(), time.failed))
            .collect();
        assert_eq!(stages, [("image", false), ("engine", true)]);
        let tally = operations.tally();
        let row = tally.rows().find(|row| row.kind == "create_vm").unwrap();
        assert_eq!((row.succeeded, row.failed, row.cancelled), (0, 0, 1));
    }

    #[tokio::test]
    async fn a_repeated_request_finds_the_first_operation() {
        let operations = operations();
        let key = |fingerprint: &str| IdempotencyKey {
            key: "k".to_owned(),
            fingerprint: fingerprint.to_owned(),
        };
        let Ok(Begun::New(first)) = operations.begin_once(create(), key("a")) else {
            panic!("the first is new");
        };
        let Ok(Begun::Repeated(second)) = operations.begin_once(create(), key("a")) else {
            panic!("the second repeats the first");
        };
        assert_eq!(second.id, first.id());
        assert!(operations.begin_once(create(), key("b")).is_err());
        first.withdraw(ApiError::new(ErrorKind::Conflict, "no"));
        assert!(matches!(
            operations.begin_once(create(), key("b")),
            Ok(Begun::New(_))
        ));
    }

    #[tokio::test]
    async fn a_withdrawn_operation_takes_no_later_ones_key_with_it() {
        let operations = operations();
        let key = || IdempotencyKey {
            key: "k".to_owned(),
            fingerprint: "a".to_owned(),
        };
        let Ok(Begun::New(first)) = operations.begin_once(create(), key()) else {
            panic!("the first is new");
        };
        let first_id = first.id();
        first.withdraw(ApiError::new(ErrorKind::Conflict, "no"));
        let Ok(Begun::New(retry)) = operations.begin_once(create(), key()) else {
            panic!("the first was withdrawn");
        };
        for _ in 0..REMEMBERED {
            operations.begin(create()).end(Ok(()));
        }
        assert!(operations.get(&first_id).is_none());
        let Ok(Begun::Repeated(repeated)) = operations.begin_once(create(), key()) else {
            panic!("the retry is still known");
        };
        assert_eq!(repeated.id, retry.id());
    }

    #[tokio::test]
    async fn ended_operations_are_forgotten_in_the_end_and_running_ones_are_not() {
        let operations = operations();
        let running = operations.begin(create());
        let first = operations.begin(create());
        let first_id = first.id();
        first.end(Ok(()));
        for _ in 0..REMEMBERED {
            operations.begin(create()).end(Ok(()));
        }
        assert!(operations.get(&first_id).is_none());
        assert!(operations.get(&running.id()).is_some());
    }

    #[tokio::test]
    async fn calling_off_reaches_the_doer() {
        let operations = operations();
        let work = operations.begin(create());
        operations.cancel(&work.id()).unwrap();
        work.cancelled().cancelled().await;
        let unknown = operations.cancel(&OperationId::new()).unwrap_err();
        assert_eq!(unknown, CancelError::Unknown);
        let delete = operations.begin(Subject {
            kind: OperationKind::DeleteVm,
            ..create()
        });
        let refused = operations.cancel(&delete.id()).unwrap_err();
        assert_eq!(refused, CancelError::GoesOn);
        assert!(!delete.cancelled().is_cancelled());
    }
}
