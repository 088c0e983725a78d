//! How the guest, or the agent alone, goes down.

use std::sync::Arc;

use banger_proto::agent::Shutdown;
use tracing::info;

use crate::agent::{Agent, Place};

/// What the agent needs to power a guest off.
#[derive(Debug)]
pub struct Power {}

/// Begins to go down; the answer to the request is sent meanwhile.
pub fn shut_down(agent: Arc<Agent>, shutdown: Shutdown) {
    info!(grace_ms = shutdown.grace_ms, "going down");
    match &agent.place {
        Place::Process => agent.stop(),
        Place::Guest(_) => {}
    }
}
