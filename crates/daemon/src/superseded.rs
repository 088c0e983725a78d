//! Images that a newer one of the same name has taken the place of, as a pull of a tag that has
//! moved does: they go as soon as no VM boots them any more.

use std::collections::HashSet;
use std::sync::Arc;

use banger_image::{ChangeError, Manifest};
use banger_proto::api::{Happened, OperationState};
use banger_proto::name::VmName;

use crate::fleet::Fleet;

/// Removes them now, and whenever something has happened after which one may go. Never ends.
pub async fn watch(fleet: Arc<Fleet>) {
    let mut events = fleet.host().events.follow_new();
    sweep(&fleet).await;
    while let Some(event) = events.next().await {
        let may_go = match event.what {
            Happened::VmDeleted { .. } | Happened::Missed => true,
            // A pull brings a newer one; a start that failed may have wanted an older one.
            Happened::Operation { state, .. } => state != OperationState::Running,
            _ => false,
        };
        if may_go {
            sweep(&fleet).await;
        }
    }
}

async fn sweep(fleet: &Arc<Fleet>) {
    let fleet = Arc::clone(fleet);
    crate::blocking(move || remove_unused(&fleet)).await;
}

/// Whatever keeps one here now, there is another look when that has ended.
fn remove_unused(fleet: &Fleet) {
    let store = &fleet.host().images;
    let superseded = match store.superseded() {
        Ok(superseded) => superseded,
        Err(error) => {
            tracing::warn!(%error, "could not look for superseded images");
            return;
        }
    };
    for image in superseded {
        match store.delete_image(&image, |image| users(fleet, image)) {
            Ok(()) => tracing::info!(image = %image.name, id = %image.id, "superseded and removed"),
            Err(ChangeError::InUse { .. } | ChangeError::Going) => {}
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                image = %image.name,
                id = %image.id,
                "could not remove a superseded image"
            ),
        }
    }
}

/// The VMs that boot it, or may be about to: whoever looks for its name from now on finds the
/// newer one, but a start that is on its way has looked already.
fn users(fleet: &Fleet, image: &Manifest) -> Vec<VmName> {
    let handles = fleet.handles();
    let names: HashSet<VmName> = handles
        .iter()
        .filter_map(|vm| {
            vm.look(|status| {
                let row = &status.row;
                let uses = match &row.image_id {
                    Some(id) => *id == image.id,
                    None => row.image == image.name && !row.phase.is_at_rest(),
                };
                uses.then(|| row.name.clone())
            })
        })
        .collect();
    names.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::{home, host};
    use crate::store::NewVm;
    use crate::store::vms::HeldSlots;
    use crate::store::vms::tests::row;
    use crate::vm::lifecycle::Phase;
    use crate::vm::start::tests::put_image;
    use crate::vm::task::{Ask, Delete, Origin};
    use banger_proto::id::ImageId;

    #[tokio::test]
    async fn an_image_that_is_superseded_goes_with_its_last_vm() {
        let home = home();
        let fleet = Arc::new(Fleet::new(host(home.path())));
        let mut row = row("x");
        let name = row.image.clone();
        let ids: Vec<ImageId> = (0..3).map(|_| ImageId::new()).collect();
        for (number, id) in ids.iter().enumerate() {
            let created_at = format!("2026-01-0{}T00:00:00Z", number + 1);
            put_image(&home.path().join("state"), id, &name, &created_at);
        }
        row.phase = Phase::Stopped;
        row.image_id = Some(ids[0].clone());
        let new = NewVm {
            name: None,
            key: None,
            row,
        };
        let database = &fleet.host().database;
        let inserted = database.insert_vm(new, 1000, HeldSlots::default()).await;
        let vm = fleet.bring_in(inserted.unwrap(), Origin::AtRest);
        let left = || {
            let images = fleet.host().images.images().unwrap();
            images.into_iter().map(|image| image.id).collect::<Vec<_>>()
        };
        let watching = tokio::spawn(watch(Arc::clone(&fleet)));
        let settled = async |wanted: &[ImageId]| {
            while left() != wanted {
                tokio::task::yield_now().await;
            }
        };
        settled(&[ids[0].clone(), ids[2].clone()]).await;
        vm.ask(Ask::Delete(Delete::Once), None).await.unwrap();
        settled(&[ids[2].clone()]).await;
        watching.abort();
    }
}
