//! What commands share that look at several VMs: at all at once, and at those that run unless
//! others are named.

use banger_client::{Client, ClientError};
use banger_proto::api::VmState;
use futures_util::future::join_all;

use crate::failure::Failure;
use crate::near;
use crate::settings::Settings;

/// The VMs that run.
pub(super) async fn running(client: &Client) -> Result<Vec<String>, Failure> {
    let vms = client.vms().await?.into_iter();
    let running = vms.filter(|vm| vm.state == VmState::Running);
    Ok(running.map(|vm| vm.id.to_string()).collect())
}

/// What `look` finds of each, and whether there was something of all: why not is told.
pub(super) async fn at_each<T>(
    settings: &Settings,
    client: &Client,
    vms: &[String],
    look: impl AsyncFn(&str) -> Result<T, ClientError>,
) -> (Vec<T>, bool) {
    let looks = vms.iter().map(async |vm| match look(vm).await {
        Ok(seen) => Ok(seen),
        Err(error) => Err(near::explained(client, vm, error).await),
    });
    let (mut found, mut all) = (Vec::new(), true);
    for seen in join_all(looks).await {
        match seen {
            Ok(seen) => found.push(seen),
            Err(error) => {
                all = false;
                settings.ui.error(&error);
            }
        }
    }
    (found, all)
}
