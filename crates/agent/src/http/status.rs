//! Requests about the guest as a whole: health, identity, going down.

use std::fs;
use std::sync::Arc;

use banger_proto::agent::{Clock, Configure, Grow, Health, Shutdown};
use banger_proto::hello::PROTOCOL_VERSION;
use hyper::StatusCode;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::{Answer, Failure, empty, json};
use crate::agent::{Agent, Place, Settings};
use crate::grow::{self, GrowError};
use crate::report::uptime_us;
use crate::ssh::Keys;

pub(super) fn health(agent: &Agent) -> Answer {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let health = Health {
        version: banger_proto::VERSION.to_owned(),
        protocol: PROTOCOL_VERSION,
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        boot_id: boot_id.trim().to_owned(),
        uptime_us: uptime_us(),
        init: agent.boot.init.clone(),
        boot: agent.boot.steps.clone(),
        warnings: agent.boot.warnings.clone(),
    };
    Ok(json(StatusCode::OK, &health))
}

pub(super) fn configure(agent: &Agent, configure: Configure) -> Answer {
    let keys = Keys::parse(&configure.ssh_host_key, &configure.authorized_keys)
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    if let Place::Guest(_) = agent.place {
        // The command line has told init the same; only a VM made from another one's memory
        // has a new name and time here. A failure must not keep the daemon out.
        if !configure.hostname.is_empty()
            && let Err(error) = crate::identity::set_hostname(&configure.hostname)
        {
            warn!(%error, "could not set the hostname");
        }
        if let Some(unix_ns) = configure.clock_unix_ns
            && let Err(error) = crate::identity::set_clock(unix_ns)
        {
            warn!(%error, "could not set the clock");
        }
    }
    agent.configure(Settings { configure, keys });
    Ok(empty(StatusCode::NO_CONTENT))
}

/// The clock of an ordinary process is the host's, which is right.
pub(super) fn clock(agent: &Agent, clock: Clock) -> Answer {
    if let Place::Guest(_) = agent.place {
        crate::identity::set_clock(clock.unix_ns)
            .map_err(|error| Failure::internal(format!("could not set the clock: {error}")))?;
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Waits for the kernel and for the disk, beside the other requests.
pub(super) async fn grow(agent: &Arc<Agent>, grow: Grow) -> Answer {
    let agent = agent.clone();
    let grown = spawn_blocking(move || grow::live(&agent, grow)).await;
    match grown {
        Ok(Ok(())) => Ok(empty(StatusCode::NO_CONTENT)),
        Ok(Err(error @ (GrowError::Shared { .. } | GrowError::Absent { .. }))) => {
            Err(Failure::bad_request(error.to_string()))
        }
        Ok(Err(error)) => Err(Failure::internal(error.to_string())),
        Err(error) => Err(Failure::internal(error.to_string())),
    }
}

pub(super) fn shutdown(agent: &Arc<Agent>, shutdown: Shutdown) -> Answer {
    crate::power::shut_down(agent.clone(), shutdown);
    Ok(empty(StatusCode::ACCEPTED))
}
