//! Takes over a machine that runs already, without the engine's binary.

use std::sync::Arc;

use banger_proto::api::EngineKind;

use crate::process::marked;
use crate::{AdoptError, Machine, MachineHandle, Place, fake, qemu};

/// Finds the running machine of `place`, which an engine of this kind launched: by what
/// `handle` remembers of it, or by its mark where there is no (true) handle. `None`: it does
/// not run. The engine need not be installed any more.
///
/// # Errors
/// Whether it runs cannot be told, or this build has no driver for it.
pub async fn adopt(
    kind: EngineKind,
    place: &Place,
    handle: Option<&MachineHandle>,
) -> Result<Option<Arc<dyn Machine>>, AdoptError> {
    if kind == EngineKind::Firecracker {
        return Err(AdoptError::NotBuilt(kind));
    }
    let Some(process) = marked::find(place, handle).map_err(AdoptError::Processes)? else {
        return Ok(None);
    };
    let place = place.clone();
    match kind {
        EngineKind::Qemu => Ok(Some(qemu::adopted(place, process).await)),
        EngineKind::Fake => Ok(Some(fake::adopted(place, process))),
        EngineKind::Firecracker => Err(AdoptError::NotBuilt(kind)),
    }
}
