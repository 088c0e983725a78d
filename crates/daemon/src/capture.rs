//! How an image is made of a VM that is at rest.
//!
//! ```text
//! VM at rest ── its disks are cloned ──> copy: its guest runs nothing but the agent
//!                                          └── its system, as a tar stream ──> image
//! ```
//!
//! The copy is a VM like any other, and hangs on a lease of the capture's own: whatever happens to
//! the capture or to the daemon, it is deleted as the VM of a client that has gone. The VM itself
//! is only read, and may start again as soon as the clones are made.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use banger_image::{Capture, Reporter, Taken};
use banger_proto::api::EngineKind;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::{LeaseId, RequestId, VmId};
use banger_proto::name::ArtifactName;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio_util::io::{StreamReader, SyncIoBridge};
use tokio_util::sync::CancellationToken;

use crate::fleet::Fleet;
use crate::operations::StageReporter;
use crate::vm::plan::Layout;
use crate::vm::task::Handle;

/// Which VMs are copies, and where the originals' disks are. In memory only: no copy outlives its
/// daemon. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Captures(Arc<Mutex<HashMap<VmId, Layout>>>);

impl Captures {
    /// The VM `copy` is made of the one whose things are at `original`.
    pub fn add(&self, copy: VmId, original: Layout) {
        self.copies().insert(copy, original);
    }

    /// Where the things of the VM are that `vm` is a copy of.
    pub fn source(&self, vm: &VmId) -> Option<Layout> {
        self.copies().get(vm).cloned()
    }

    /// A copy has gone.
    pub fn remove(&self, copy: &VmId) {
        self.copies().remove(copy);
    }

    fn copies(&self) -> MutexGuard<'_, HashMap<VmId, Layout>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// Work that someone waits for, and that may be called off.
#[derive(Clone, Debug)]
pub struct Errand {
    /// Where its stages are told.
    pub report: StageReporter,
    /// Cancelled when it is called off.
    pub cancel: CancellationToken,
    /// The request that began it.
    pub request_id: Option<RequestId>,
}

impl Errand {
    /// Does `work` unless it is called off; `what` is called off then.
    ///
    /// # Errors
    /// Those of the work, or that it was called off.
    pub async fn unless_called_off<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        tokio::select! {
            result = work => result,
            () = self.cancel.cancelled() => Err(called_off(what)),
        }
    }
}

/// That something was called off.
pub fn called_off(what: &str) -> ApiError {
    ApiError::new(ErrorKind::Cancelled, format!("{what} was called off"))
}

/// How long a VM of banger's own may take to go before the work ends without it.
const GONE_LIMIT: Duration = Duration::from_secs(60);

/// A lease of the daemon's own, and what hangs on it.
#[derive(Debug)]
pub struct Borrowed {
    fleet: Arc<Fleet>,
    lease: LeaseId,
}

impl Borrowed {
    /// A new lease.
    pub fn new(fleet: &Arc<Fleet>) -> Self {
        Self {
            fleet: Arc::clone(fleet),
            lease: fleet.host().leases.grant(),
        }
    }

    /// What VMs hang on.
    pub fn lease(&self) -> LeaseId {
        self.lease.clone()
    }

    /// Has the VM deleted; returns when it is gone, or when that takes long: the reconciler goes
    /// on with it then.
    pub async fn give_back(self, vm: &Handle) {
        self.fleet.end_lease(&self.lease).await;
        if tokio::time::timeout(GONE_LIMIT, vm.gone()).await.is_err() {
            tracing::warn!(vm = %vm.name(), "a VM of banger's own is not gone yet");
        }
        self.fleet.host().captures.remove(&vm.id());
    }
}

impl Drop for Borrowed {
    /// What was not given back, as the work failed or panicked before, goes all the same.
    fn drop(&mut self) {
        if !self.fleet.host().leases.is_held(&self.lease) {
            return;
        }
        let (fleet, lease) = (Arc::clone(&self.fleet), self.lease.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { fleet.end_lease(&lease).await });
        }
    }
}

/// Makes the image `name` of `vm`. `message` says what could not be done.
///
/// # Errors
/// The VM is not at rest or was never started, the copy does not come up, or the store refuses.
pub async fn capture(
    fleet: &Arc<Fleet>,
    vm: &Handle,
    name: ArtifactName,
    taken: Taken,
    source: String,
    errand: &Errand,
    message: &str,
) -> Result<(), ApiError> {
    let status = vm.status();
    let before = status.row;
    require_system(before.engine, message)?;
    let at_rest = before.phase.is_at_rest() && status.pid.is_none();
    admit(at_rest, message, before.name.as_str())?;
    let Some(base) = before.image_id.clone() else {
        let error = ApiError::new(ErrorKind::Conflict, message);
        return Err(
            because(error, "it was never started, and is no more than its image").with_hint(
                format!("use the image: `banger vm create --image {}`", before.image),
            ),
        );
    };
    let capture = Capture {
        base,
        name,
        taken,
        source,
    };
    let mark = errand.report.stage("copy");
    let borrowed = Borrowed::new(fleet);
    let copy = fleet
        .copy(vm, borrowed.lease(), errand.request_id.clone())
        .await
        .map_err(|error| within(message, error))?;
    let made = async {
        let guest = errand.unless_called_off(message, async {
            // Started while its disks are being cloned, they are none of any one moment.
            tokio::select! {
                guest = copy.up() => {
                    guest.map_err(|error| not_up(fleet, message, &copy, &error))
                }
                () = vm.awake() => {
                    let error = ApiError::new(ErrorKind::Conflict, message);
                    Err(because(error, "it was started meanwhile")
                        .with_hint(format!("stop it first: `banger vm stop {}`", before.name)))
                }
            }
        });
        let guest = guest.await?;
        mark.done();
        let mark = errand.report.stage("image");
        let system = guest
            .read_system()
            .await
            .map_err(|error| ApiError::new(ErrorKind::Failed, message).caused_by(&error))?;
        store(fleet, capture, system, errand, message).await?;
        mark.done();
        Ok(())
    };
    let made = made.await;
    borrowed.give_back(&copy).await;
    made
}

/// Refuses to make an image by a VM of `engine` if there is no system in it.
///
/// # Errors
/// There is none: with the engine `fake` all happens on the host itself.
pub fn require_system(engine: EngineKind, message: &str) -> Result<(), ApiError> {
    match engine {
        EngineKind::Qemu | EngineKind::Firecracker => Ok(()),
        EngineKind::Fake => {
            let error = ApiError::new(ErrorKind::Precondition, message);
            let error = because(
                error,
                "VMs of the engine `fake` have no system of their own",
            );
            Err(error.with_hint("use another engine: `vmm` in the config, or `--engine`"))
        }
    }
}

/// Refuses a VM that does not hold still.
fn admit(at_rest: bool, message: &str, name: &str) -> Result<(), ApiError> {
    match at_rest {
        true => Ok(()),
        false => {
            let error = ApiError::new(ErrorKind::Conflict, message);
            Err(because(error, "it is not stopped")
                .with_hint(format!("stop it first: `banger vm stop {name}`")))
        }
    }
}

/// Turns the stream into an image, on a thread that may block.
async fn store(
    fleet: &Fleet,
    capture: Capture,
    system: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
    errand: &Errand,
    message: &str,
) -> Result<(), ApiError> {
    let store = fleet.host().images.clone();
    let report = errand.report.clone();
    let progress = Reporter::new(move |progress| report.progress(progress));
    let (called_off, cancel) = (errand.cancel.clone(), errand.cancel.clone());
    // Cut short, it is no archive, and nothing comes of it.
    let system = system.take_until(async move { called_off.cancelled().await });
    let reader = SyncIoBridge::new(StreamReader::new(Box::pin(system)));
    let make = move || store.capture(capture, reader, &progress, &cancel).map(drop);
    let made = crate::blocking(make).await;
    match made {
        Err(_) if errand.cancel.is_cancelled() => Err(self::called_off(message)),
        made => made.map_err(|error| {
            let mut api = ApiError::new(error.kind(), message).caused_by(&error);
            api.hint = error.hint();
            api
        }),
    }
}

/// Why a VM of banger's own did not come up.
pub fn not_up(
    fleet: &Fleet,
    message: &str,
    vm: &Handle,
    error: &crate::vm::task::RequestError,
) -> ApiError {
    let id = vm.id();
    let operations = fleet.host().operations.list();
    let create = operations
        .into_iter()
        .rfind(|operation| operation.vm.as_ref() == Some(&id));
    match create.and_then(|operation| operation.error) {
        Some(why) => within(message, why),
        None => ApiError::new(ErrorKind::Failed, message).caused_by(error),
    }
}

/// An error of a step, as the error of the whole.
pub fn within(message: &str, error: ApiError) -> ApiError {
    let mut whole = ApiError::new(error.kind, message);
    whole.causes.push(error.message);
    whole.causes.extend(error.causes);
    whole.hint = error.hint;
    whole
}

/// An error with its cause.
fn because(mut error: ApiError, cause: &str) -> ApiError {
    error.causes.push(cause.to_owned());
    error
}
