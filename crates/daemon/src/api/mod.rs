//! The HTTP API of [`banger_proto::api`]. Handlers validate, ask the fleet, look and stream;
//! none of them changes anything of a VM's, and what they change in the store of images is whole or
//! not there, so that a dropped connection cannot leave half a change.

mod artifacts;
mod build;
mod daemon;
mod engines;
mod events;
mod exchange;
mod files;
mod logs;
mod metrics;
mod operations;
mod peer;
mod ports;
mod shelf;
mod stats;
mod stream;
mod vms;

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::routing::{delete, get, post};
use tokio_util::sync::CancellationToken;

use crate::fleet::Fleet;

pub use peer::Peer;

/// What handlers reach.
#[derive(Clone, Debug)]
pub struct Api {
    /// The VMs.
    pub fleet: Arc<Fleet>,
    /// Ends the daemon.
    pub stop: CancellationToken,
    /// When the daemon started.
    pub started: jiff::Timestamp,
}

/// Every word that stands where the name of an image may stand, in `/v1/images/{image}`.
const IMAGE_VERBS: [&str; 6] = ["archive", "build", "import", "prune", "pull", "register"];

impl Api {
    /// The API of `fleet`; `stop` is cancelled when a client asks the daemon to end.
    pub fn new(fleet: Arc<Fleet>, stop: CancellationToken) -> Self {
        Self {
            fleet,
            stop,
            started: jiff::Timestamp::now(),
        }
    }

    /// Every route.
    pub fn router(self) -> Router {
        Self::images_called_as_verbs()
            .route("/v1/version", get(daemon::version))
            .route("/v1/daemon", get(daemon::status))
            .route("/v1/daemon/stop", post(daemon::stop))
            .route("/v1/events", get(events::events))
            .route("/v1/leases", post(stream::lease))
            .route("/v1/vms", get(vms::list).post(vms::create))
            .route(
                "/v1/vms/{vm}",
                get(vms::show).patch(vms::set).delete(vms::delete),
            )
            .route("/v1/vms/{vm}/start", post(vms::start))
            .route("/v1/vms/{vm}/stop", post(vms::stop))
            .route("/v1/vms/{vm}/restart", post(vms::restart))
            .route("/v1/vms/{vm}/kill", post(vms::kill))
            .route("/v1/vms/{vm}/pause", post(vms::pause))
            .route("/v1/vms/{vm}/resume", post(vms::resume))
            .route("/v1/vms/{vm}/exec", post(stream::exec))
            .route("/v1/vms/{vm}/commit", post(build::commit))
            .route("/v1/vms/{vm}/ssh", post(stream::ssh))
            .route("/v1/vms/{vm}/ssh-target", get(vms::ssh_target))
            .route("/v1/vms/{vm}/logs", get(logs::logs))
            .route("/v1/vms/{vm}/stats", get(stats::of_vm))
            .route("/v1/vms/{vm}/health", get(stats::health))
            .route("/v1/vms/{vm}/ports", get(ports::of_vm))
            .route("/v1/vms/{vm}/files", get(files::read).put(files::write))
            .route("/v1/stats", get(stats::of_running))
            .route("/v1/images", get(artifacts::images))
            .route("/v1/images/pull", post(artifacts::pull_reference))
            .route("/v1/images/archive", post(artifacts::take_archive))
            .route("/v1/bundles/image", post(artifacts::pull_bundle))
            .route("/v1/images/{image}/pull", post(artifacts::pull))
            .route("/v1/images/build", post(build::build))
            .route("/v1/images/register", post(shelf::register))
            .route("/v1/images/import", post(shelf::import))
            .route("/v1/images/prune", post(shelf::prune))
            .route("/v1/images/{image}", delete(shelf::delete))
            .route("/v1/images/{image}/export", get(shelf::export))
            .route("/v1/images/{image}/promote", post(shelf::promote))
            .route("/v1/images/{image}/rename", post(shelf::rename))
            .route("/v1/kernels", get(artifacts::kernels))
            .route("/v1/catalog", get(artifacts::catalog))
            .route("/v1/cache/prune", post(shelf::prune_cache))
            .route("/v1/engines", get(engines::list))
            .route("/v1/engines/{engine}", get(engines::show))
            .route(
                "/v1/engines/{engine}/install",
                post(engines::install)
                    .put(engines::install_from)
                    .delete(engines::uninstall),
            )
            .route("/v1/bundles/kernel", post(artifacts::pull_kernel_bundle))
            .route("/v1/kernels/{name}/pull", post(artifacts::pull_kernel))
            .route("/v1/kernels/{name}", delete(shelf::delete_kernel))
            .route("/v1/kernels/{name}/import", post(shelf::import_kernel))
            .route("/v1/operations", get(operations::list))
            .route("/v1/operations/{id}", get(operations::show))
            .route("/v1/operations/{id}", delete(operations::cancel))
            .route("/v1/operations/{id}/events", get(operations::events))
            .route("/metrics", get(metrics::metrics))
            .fallback(exchange::no_such_path)
            .method_not_allowed_fallback(exchange::no_such_method)
            .layer(axum::middleware::from_fn(peer::admit))
            .layer(axum::middleware::from_fn(exchange::identify))
            .with_state(self)
    }

    /// What can be done to images whose names stand in other paths as words of their own.
    fn images_called_as_verbs() -> Router<Self> {
        let mut router = Router::new();
        for verb in IMAGE_VERBS {
            let named = move |api| shelf::delete(api, Path(verb.to_owned()));
            router = router.route(&format!("/v1/images/{verb}"), delete(named));
        }
        router
    }
}
