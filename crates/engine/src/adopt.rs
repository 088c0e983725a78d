//! Takes over a machine that runs already, without the engine's binary.

use std::sync::Arc;

use banger_proto::api::EngineKind;

use crate::process::{Look, Presence, Process};
use crate::{AdoptError, Machine, MachineHandle, Place, fake, firecracker, qemu};

/// Takes over the machine of `place`, which an engine of this kind launched, as `look` shows
/// it: by what `handle` remembers of it, or by its mark where there is no (true) handle.
/// `None`: it does not run. The engine need not be installed any more.
///
/// # Errors
/// Whether it runs cannot be told, or its agent could not reach this process.
pub async fn adopt(
    kind: EngineKind,
    place: &Place,
    handle: Option<&MachineHandle>,
    look: &Look,
) -> Result<Option<Arc<dyn Machine>>, AdoptError> {
    let process = match look.presence(place, handle) {
        Presence::Absent => return Ok(None),
        Presence::Unknown { pid } => return Err(AdoptError::Unknown { pid }),
        Presence::Runs(process) => process,
    };
    let Some(process) = Process::open(&process).map_err(AdoptError::Processes)? else {
        return Ok(None);
    };
    let place = place.clone();
    match kind {
        EngineKind::Qemu => Ok(Some(qemu::adopted(place, process).await)),
        EngineKind::Fake => Ok(Some(fake::adopted(place, process))),
        EngineKind::Firecracker => firecracker::adopted(place, process)
            .map(Some)
            .map_err(AdoptError::Knock),
    }
}
