//! All VMs of this daemon: finds one by name, id or the beginning of an id, and brings new
//! ones into being.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};

use banger_image::ImageError;
use banger_proto::api::{
    self, CreateVm, EngineKind, Happened, Operation, OperationKind, OperationState,
};
use banger_proto::doctor::Check;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::{LeaseId, RequestId, VmId};
use banger_proto::name::VmName;

use crate::host::Host;
use crate::operations::{Begun, KeyReused, Subject, Work};
use crate::store::keys::IdempotencyKey;
use crate::store::vms::{HeldSlots, SlotHold};
use crate::store::{InsertError, NewVm, StoreError, VmRow};
use crate::vm::bounds;
use crate::vm::lifecycle::{Phase, Request};
use crate::vm::task::{Ask, Delete, Handle, Origin, RequestError, Status};

/// Shortest beginning of an id that names a VM: the name of a VM that is gone must not name
/// another one by chance.
const ID_PREFIX_MIN: usize = 4;
/// Why a VM of `vm run --rm` is deleted.
pub const LEASE_ENDED: &str = "the client that it was for has gone";

/// All VMs.
#[derive(Debug)]
pub struct Fleet {
    host: Arc<Host>,
    slots: u16,
    held: HeldSlots,
    vms: Mutex<BTreeMap<VmId, Handle>>,
}

impl Fleet {
    /// A fleet without VMs; [`crate::reconcile`] brings in those that have a row.
    pub fn new(host: Arc<Host>) -> Self {
        let slots = banger_net::plan::last_slot(&host.network_config)
            .expect("the network was made of this config");
        Self {
            host,
            slots,
            held: HeldSlots::default(),
            vms: Mutex::default(),
        }
    }

    /// What the daemon is made of.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Number of slots that the network has.
    pub fn slots(&self) -> u16 {
        self.slots
    }

    /// Brings in a VM that has a row.
    pub fn bring_in(&self, row: VmRow, origin: Origin) -> Handle {
        let id = row.id.clone();
        let handle = Handle::spawn(Arc::clone(&self.host), row, origin);
        self.host
            .reach
            .serve(handle.caller(), self.loopback(&handle));
        let mut vms = self.vms();
        vms.retain(|_, known| !known.look(|status| status.gone));
        vms.insert(id, handle.clone());
        handle
    }

    /// Every VM, the oldest first.
    pub fn handles(&self) -> Vec<Handle> {
        let mut handles: Vec<Handle> = self.vms().values().cloned().collect();
        handles.retain(|handle| !handle.look(|status| status.gone));
        handles.sort_by_cached_key(|handle| handle.look(|status| status.row.created_at.clone()));
        handles
    }

    /// The VM of this name or id, or the only one whose id begins so, with at least 4 digits.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(&self, selector: &str) -> Result<Handle, ApiError> {
        let handles = self.handles();
        let exact = |handle: &&Handle| {
            handle.look(|status| {
                status.row.name.as_str() == selector || status.row.id.as_str() == selector
            })
        };
        if let Some(handle) = handles.iter().find(exact) {
            return Ok(handle.clone());
        }
        let mut begins = handles.iter().filter(|handle| {
            selector.len() >= ID_PREFIX_MIN
                && handle.look(|status| status.row.id.as_str().starts_with(selector))
        });
        match (begins.next(), begins.next()) {
            (Some(handle), None) => Ok(handle.clone()),
            (None, _) => Err(ApiError::new(
                ErrorKind::NotFound,
                format!("there is no VM `{selector}`"),
            )
            .with_hint(match begins_like_an_id(selector) {
                true => format!("see `banger vm list`; {}", named_by()),
                false => "see `banger vm list`".to_owned(),
            })),
            (Some(_), Some(_)) => Err(ApiError::new(
                ErrorKind::Conflict,
                format!("more than one VM's id begins with `{selector}`"),
            )
            .with_hint("write more of the id, or the VM's name")),
        }
    }

    /// Asks something of a VM.
    ///
    /// # Errors
    /// There is no such VM, its phase does not allow it, it cannot become what was asked for, or
    /// the host lacks what a start needs.
    pub async fn ask(
        &self,
        selector: &str,
        ask: Ask,
        request_id: Option<RequestId>,
    ) -> Result<Operation, ApiError> {
        let handle = self.find(selector)?;
        let request = ask.request();
        let (row, name) = handle.look(|status| (status.row.clone(), status.row.name.clone()));
        if matches!(ask, Ask::Start | Ask::Restart)
            && row.phase.is_at_rest()
            && let Some(missing) = self.missing_of_host(row.engine, row.nat).await
        {
            let message = format!("could not {} VM `{name}`", request.verb());
            let mut error = ApiError::new(ErrorKind::Precondition, message);
            error.causes.push(missing.detail);
            error.hint = missing.fix;
            return Err(error);
        }
        handle
            .ask(ask, request_id)
            .await
            .map_err(|error| refused(&handle, request, &error))
    }

    /// Begins to create a VM. When this returns, its row is written and its name is fixed.
    ///
    /// # Errors
    /// The request makes no sense, the name is taken, or there is no room or engine for it.
    pub async fn create(
        &self,
        request: CreateVm,
        key: Option<String>,
        request_id: Option<RequestId>,
    ) -> Result<Operation, ApiError> {
        let subject = Subject {
            kind: OperationKind::CreateVm,
            vm: None,
            request_id,
            reason: None,
        };
        let operations = &self.host.operations;
        let key = key.map(|key| IdempotencyKey {
            key,
            fingerprint: serde_json::to_string(&request).expect("its keys are strings"),
        });
        let work = match key.clone() {
            None => operations.begin(subject),
            Some(key) => {
                if let Some(operation) = operations.under_key(&key.key)
                    && self.is_over(&operation)
                {
                    operations.forget_key(&key.key, &operation.id);
                }
                match operations.begin_once(subject, key).map_err(key_reused)? {
                    Begun::New(work) => work,
                    Begun::Repeated(operation) => return Ok(*operation),
                }
            }
        };
        match self.created_before(key.as_ref()).await {
            Ok(None) => {}
            Ok(Some(vm)) => return Ok(self.already_created(&vm, work)),
            Err(error) => {
                work.withdraw(error.clone());
                return Err(error);
            }
        }
        let then_start = !request.no_start;
        match self.admit(request, key).await {
            Ok(row) => Ok(self.bring_forth(row, work, then_start).await),
            Err(error) => {
                work.withdraw(error.clone());
                Err(error)
            }
        }
    }

    /// Whether an operation has brought forth a VM that is there no more: a key goes with its VM.
    fn is_over(&self, create: &Operation) -> bool {
        let vm = create.vm.as_ref();
        let vm = vm.and_then(|vm| self.vms().get(vm).cloned());
        create.state == OperationState::Succeeded && vm.as_ref().is_none_or(is_going)
    }

    /// The VM that a create under this key has brought forth, which this daemon does not remember
    /// or an earlier one did.
    async fn created_before(
        &self,
        key: Option<&IdempotencyKey>,
    ) -> Result<Option<Handle>, ApiError> {
        let Some(key) = key else {
            return Ok(None);
        };
        let used = self.host.database.used(key.key.clone()).await;
        let used = used.map_err(|error| {
            let mut api =
                ApiError::new(ErrorKind::Failed, "could not create the VM").caused_by(&error);
            api.hint = error.hint();
            api
        })?;
        match used {
            Some(used) if used.fingerprint != key.fingerprint => Err(key_reused(KeyReused)),
            Some(used) => {
                let vm = self.vms().get(&used.vm).cloned();
                Ok(vm.filter(|vm| !is_going(vm)))
            }
            None => Ok(None),
        }
    }

    /// Ends a create that repeats the one of which `vm` came.
    fn already_created(&self, vm: &Handle, work: Work) -> Operation {
        let row = vm.status().row;
        work.set_vm(row.id, row.name);
        // One whose create was cut short, and what it had made could not be removed.
        let never_was = row.phase == Phase::Failed && row.started_at.is_none();
        let id = work.id();
        work.end(match row.failure.filter(|_| never_was) {
            Some(failure) => Err(failure),
            None => Ok(()),
        });
        let ended = self.host.operations.get(&id);
        ended.expect("it has just ended, and the newest are remembered")
    }

    /// Why there cannot be such an image, known before a VM is made for it.
    async fn unknown_image(&self, row: &VmRow) -> Option<ImageError> {
        if row.engine == EngineKind::Fake {
            return None;
        }
        let (images, name) = (self.host.images.clone(), row.image.clone());
        crate::blocking(move || images.require_known(&name))
            .await
            .err()
    }

    /// What a start would fail for, known before minutes are spent on an image.
    async fn missing_of_host(&self, engine: EngineKind, nat: bool) -> Option<Check> {
        if engine == EngineKind::Fake {
            return None;
        }
        let images = self.host.images.clone();
        crate::blocking(move || images.missing().or_else(|| banger_net::missing(nat))).await
    }

    /// Begins to create a VM that is a copy of `source`, whose guest runs nothing of its own. It
    /// goes with `lease`.
    ///
    /// # Errors
    /// There is no room or engine for it.
    pub async fn copy(
        &self,
        source: &Handle,
        lease: LeaseId,
        request_id: Option<RequestId>,
    ) -> Result<Handle, ApiError> {
        let original = source.status().row;
        let purpose = ("banger.copy-of".to_owned(), original.name.to_string());
        let request = CreateVm {
            image: Some(original.image.clone()),
            vcpu: Some(original.vcpu),
            memory: Some(original.memory),
            disk_size: Some(original.disk_size),
            system_size: Some(original.system_size),
            engine: Some(original.engine),
            nat: Some(false),
            labels: [purpose].into(),
            lease: Some(lease),
            ..CreateVm::default()
        };
        let mut row = self.admit(request, None).await?;
        row.image_id.clone_from(&original.image_id);
        row.kernel.clone_from(&original.kernel);
        let layout = self.host.layout(&original.id, original.slot);
        self.host.captures.add(row.id.clone(), layout);
        let work = self.host.operations.begin(Subject {
            kind: OperationKind::CreateVm,
            vm: None,
            request_id,
            reason: Some(format!("an image is made of VM `{}`", original.name)),
        });
        let id = row.id.clone();
        self.bring_forth(row, work, true).await;
        self.find(id.as_str())
    }

    async fn admit(
        &self,
        request: CreateVm,
        key: Option<IdempotencyKey>,
    ) -> Result<VmRow, ApiError> {
        let asked_name = request.name.clone();
        let name_in_words = match &asked_name {
            Some(name) => format!("VM `{name}`"),
            None => "the VM".to_owned(),
        };
        let could_not = |kind| ApiError::new(kind, format!("could not create {name_in_words}"));
        let starts = !request.no_start;
        let choice = self.host.engines.choose(request.engine).await;
        let mut row = self.row_of(request, choice.kind).map_err(|problem| {
            let mut error = could_not(ErrorKind::Invalid);
            error.causes.push(problem);
            error
        })?;
        if let Some(unknown) = self.unknown_image(&row).await {
            let mut error = could_not(unknown.kind()).caused_by(&unknown);
            error.hint = unknown.hint();
            return Err(error);
        }
        let engine = self.host.engines.get(row.engine).await.map_err(|error| {
            let mut api = could_not(ErrorKind::Precondition).caused_by(&error);
            api.hint = error.hint();
            api
        })?;
        row.engine_reason = match choice.because {
            Some(because) => format!("{}; {because}", engine.reason()),
            None => engine.reason(),
        };
        if starts && let Some(missing) = self.missing_of_host(row.engine, row.nat).await {
            let mut error = could_not(ErrorKind::Precondition);
            error.causes.push(missing.detail);
            error.hint = missing.fix;
            return Err(error);
        }
        if let Some(lease) = &row.lease {
            let bound = self.host.leases.bind(lease, row.id.clone());
            bound.map_err(|ended| could_not(ErrorKind::Conflict).caused_by(&ended))?;
        }
        let new = NewVm {
            name: asked_name,
            key,
            row,
        };
        let inserted = self
            .host
            .database
            .insert_vm(new, self.slots, self.held.clone())
            .await;
        inserted.map_err(|error| match &error {
            InsertError::NameTaken(name) => could_not(ErrorKind::Conflict)
                .caused_by(&error)
                .with_hint(format!(
                    "choose another name, or `banger vm delete {name}` first"
                )),
            InsertError::NoFreeSlot(_) => could_not(ErrorKind::Conflict)
                .caused_by(&error)
                .with_hint("delete a VM, or choose a larger `cidr` in the config file"),
            InsertError::Store(store) => {
                let mut api = could_not(ErrorKind::Failed).caused_by(store);
                api.hint = store.hint();
                api
            }
        })
    }

    async fn bring_forth(&self, row: VmRow, work: Work, then_start: bool) -> Operation {
        work.set_vm(row.id.clone(), row.name.clone());
        let operation = work.operation();
        self.host.events.tell(Happened::VmCreated {
            vm: row.id.clone(),
            vm_name: row.name.clone(),
        });
        let lease = row.lease.clone();
        let handle = self.bring_in(row, Origin::Create { work, then_start });
        // The lease may have ended before the VM was there to be told.
        if lease.is_some_and(|lease| !self.host.leases.is_held(&lease)) {
            delete_leased(&handle).await;
        }
        operation
    }

    /// The row of a VM to be, or what is wrong with the request.
    fn row_of(&self, request: CreateVm, engine: EngineKind) -> Result<VmRow, String> {
        let defaults = &self.host.defaults;
        let now = jiff::Timestamp::now();
        let ttl = request.ttl_s.map(|ttl_s| bounds::expiry(now, ttl_s));
        let row = VmRow {
            id: VmId::new(),
            name: "unnamed".parse().expect("it is a DNS label"),
            slot: 0,
            phase: Phase::Creating,
            failure: None,
            reason: None,
            image: request
                .image
                .unwrap_or_else(|| self.host.config.default_image_name.clone()),
            image_id: None,
            kernel: None,
            vcpu: request.vcpu.unwrap_or(defaults.vcpu.value),
            memory: request.memory.unwrap_or(defaults.memory.value),
            disk_size: request.disk_size.unwrap_or(defaults.disk_size.value),
            system_size: request.system_size.unwrap_or(defaults.system_size.value),
            engine,
            engine_reason: String::new(),
            nat: request.nat.unwrap_or(true),
            labels: request.labels,
            lease: request.lease,
            created_at: now.to_string(),
            started_at: None,
            expires_at: ttl.transpose()?,
            stages: Vec::new(),
        };
        bounds::check(&row, self.host.resources)?;
        Ok(row)
    }

    /// Ends a lease: every VM that hangs on it is deleted.
    pub async fn end_lease(&self, lease: &LeaseId) {
        for vm in self.host.leases.end(lease) {
            let handle = self.vms().get(&vm).cloned();
            if let Some(handle) = handle {
                delete_leased(&handle).await;
            }
        }
    }

    /// Keeps a slot that no VM has from being given away; `None` if a VM has it.
    ///
    /// # Errors
    /// The database fails.
    pub async fn hold_slot(&self, slot: u16) -> Result<Option<SlotHold>, StoreError> {
        self.host.database.hold_slot(slot, self.held.clone()).await
    }

    /// Calls off what is starting, and waits until no VM has work going on. VMs that run stay.
    pub async fn quiesce(&self) {
        let handles = self.handles();
        futures_util::future::join_all(handles.iter().map(Handle::quiesce)).await;
    }

    /// The host's own address for a VM.
    pub fn loopback(&self, vm: &Handle) -> Ipv4Addr {
        let slot = vm.look(|status| status.row.slot);
        banger_net::plan::loopback(&self.host.instance, slot)
    }

    /// A VM as the API shows it.
    pub fn describe(&self, vm: &Handle) -> api::Vm {
        let status = vm.status();
        let row = &status.row;
        let ip = banger_net::plan::address(&self.host.network_config, row.slot);
        api::Vm {
            id: row.id.clone(),
            name: row.name.clone(),
            node: self.host.node.clone(),
            state: row.phase.state(),
            failure: row.failure.clone(),
            warnings: warnings(&status),
            reason: row.reason.clone(),
            image: row.image.clone(),
            image_id: row.image_id.clone(),
            kernel: row.kernel.clone(),
            vcpu: row.vcpu,
            memory: row.memory,
            disk_size: row.disk_size,
            system_size: row.system_size,
            engine: row.engine,
            engine_reason: row.engine_reason.clone(),
            nat: row.nat,
            ip: ip
                .ok()
                .filter(|_| row.engine != EngineKind::Fake)
                .map(|ip| ip.to_string()),
            loopback: Some(self.loopback(vm)),
            labels: row.labels.clone(),
            ephemeral: row.lease.is_some(),
            created_at: row.created_at.clone(),
            started_at: row.started_at.clone(),
            expires_at: row.expires_at.clone(),
            last_used_at: vm.last_used_at(),
            pid: status.pid,
            guest: None,
            stages: row.stages.clone(),
        }
    }

    fn vms(&self) -> MutexGuard<'_, BTreeMap<VmId, Handle>> {
        self.vms.lock().expect("no holder of this lock panics")
    }
}

/// What is wrong with a VM although it runs.
fn warnings(status: &Status) -> Vec<String> {
    let mut warnings = status.warnings.clone();
    if status.row.phase == Phase::Running && status.guest.is_none() {
        warnings.push("its agent does not answer: the link to it is being made anew".to_owned());
    }
    warnings
}

/// How a VM is named.
fn named_by() -> String {
    format!(
        "a VM is named by its name, its id, or at least the first {ID_PREFIX_MIN} digits of its id"
    )
}

/// Whether somebody may have meant the beginning of an id, and it is too short to be one.
fn begins_like_an_id(selector: &str) -> bool {
    selector.len() < ID_PREFIX_MIN && selector.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether there is no VM to come back to, or soon none.
fn is_going(vm: &Handle) -> bool {
    vm.look(|status| status.gone || status.row.phase == Phase::Deleting)
}

fn key_reused(reused: KeyReused) -> ApiError {
    ApiError::new(ErrorKind::Conflict, "could not create the VM").caused_by(&reused)
}

/// The error of a request that a VM refused.
pub fn refused(handle: &Handle, request: Request, error: &RequestError) -> ApiError {
    in_words(&handle.name(), request, error)
}

fn in_words(name: &VmName, request: Request, error: &RequestError) -> ApiError {
    let kind = match error {
        RequestError::Refused(_) => ErrorKind::Conflict,
        RequestError::Change(change) => change.kind(),
        RequestError::Gone => ErrorKind::NotFound,
        RequestError::Store(_) => ErrorKind::Failed,
        RequestError::LinkDown => ErrorKind::Unavailable,
    };
    let message = format!("could not {} VM `{name}`", request.verb());
    let mut api = ApiError::new(kind, message).caused_by(error);
    api.hint = match error {
        RequestError::Refused(refusal) => Some(refusal.hint(request, name)),
        RequestError::Change(change) => change.hint(name),
        RequestError::LinkDown => Some(format!(
            "`banger vm health {name}` asks again; `banger vm stop {name}` ends it in any case"
        )),
        RequestError::Store(store) => store.hint(),
        RequestError::Gone => Some("`banger vm list` lists those that there are".to_owned()),
    };
    api
}

async fn delete_leased(handle: &Handle) {
    let delete = Ask::Delete(Delete::Once);
    match handle.ask_because(delete, LEASE_ENDED).await {
        // A VM that is being deleted or is gone already is what was wanted.
        Ok(_) | Err(RequestError::Gone | RequestError::Refused(_)) => {}
        Err(error) => tracing::error!(vm = %handle.name(), %error, "could not delete"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::change::ChangeError;
    use crate::vm::lifecycle::{Verdict, judge};
    use std::fmt::Write as _;

    fn told(request: Request, error: &RequestError) -> String {
        let name = "a".parse().unwrap();
        let error = in_words(&name, request, error);
        let hint = error.hint.as_deref().unwrap_or("-");
        format!("{error} ({:?})\n    hint: {hint}\n", error.kind)
    }

    #[test]
    fn every_refusal_says_why_and_what_to_do() {
        let mut table = String::new();
        for request in Request::ALL {
            for phase in Phase::ALL {
                if let Verdict::Refuse(refusal) = judge(phase, request) {
                    let told = told(request, &refusal.into());
                    write!(table, "{:<10} {told}", phase.as_str()).unwrap();
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn what_stands_in_the_way_of_a_request_is_told() {
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        let full = rusqlite::Error::SqliteFailure(full, None);
        let full = StoreError::query("update a VM")(full);
        let errors = [
            told(Request::Attach, &RequestError::LinkDown),
            told(Request::Stop, &RequestError::Gone),
            told(Request::Start, &full.into()),
            told(
                Request::Set,
                &ChangeError::NameTaken("b".parse().unwrap()).into(),
            ),
        ];
        insta::assert_snapshot!(errors.join(""));
    }
}
