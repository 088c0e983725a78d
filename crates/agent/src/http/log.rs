//! `GET /v1/log`: the agent's own log, for whoever looks from the host.

use hyper::Response;

use super::{Answer, Body};
use crate::log;

pub(super) fn log() -> Answer {
    Ok(Response::new(Body::full(log::recent())))
}
