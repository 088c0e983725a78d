//! Which request does what: the table of [`banger_proto::agent`].

mod body;
mod exec;
mod log;
mod status;
mod streams;

use std::convert::Infallible;
use std::sync::Arc;

use banger_proto::agent::{AgentError, REQUEST_ID_HEADER};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{Instrument, info, info_span, warn};

pub use body::Body;

use crate::agent::Agent;
use crate::ports;

/// Longest JSON body that is read.
const JSON_LIMIT: usize = 4 * 1024 * 1024;

/// A request that failed.
#[derive(Debug)]
pub struct Failure {
    /// The HTTP status.
    pub status: StatusCode,
    /// What failed and why.
    pub message: String,
}

impl Failure {
    /// The request cannot be understood or carried out as it is.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
        }
    }

    /// The request is fine but could not be carried out.
    pub fn internal(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            message: message.into(),
        }
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            message: message.into(),
        }
    }
}

/// What a handler gives back.
pub type Answer = Result<Response<Body>, Failure>;

/// Answers one request, within a span that carries its id.
pub async fn answer(
    agent: Arc<Agent>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let id = request.headers().get(REQUEST_ID_HEADER);
    let id = id.and_then(|id| id.to_str().ok()).unwrap_or("-").to_owned();
    let span = info_span!("request", id, method = %request.method(), path = request.uri().path());
    let answer = async {
        let answer = route(&agent, request).await;
        match &answer {
            Ok(response) => info!(status = response.status().as_u16(), "answered"),
            Err(failure) => {
                warn!(
                    status = failure.status.as_u16(),
                    error = failure.message,
                    "refused"
                );
            }
        }
        answer
    };
    Ok(answer.instrument(span).await.unwrap_or_else(|failure| {
        let error = AgentError {
            message: failure.message,
        };
        json(failure.status, &error)
    }))
}

async fn route(agent: &Arc<Agent>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    match (path.as_str(), &method) {
        ("/healthz", &Method::GET) => status::health(agent),
        ("/v1/configure", &Method::POST) => status::configure(agent, read_json(request).await?),
        ("/v1/exec", &Method::POST) => exec::exec(agent, request).await,
        ("/v1/ssh", &Method::POST) => streams::ssh(agent, request),
        ("/v1/tcp", &Method::POST) => streams::tcp(request).await,
        ("/v1/udp", &Method::POST) => streams::udp(request).await,
        ("/v1/ports", &Method::GET) => Ok(json(StatusCode::OK, &ports::list(agent).await)),
        ("/v1/ports/watch", &Method::GET) => {
            Ok(Response::new(Body::Bytes(ports::watch(agent.clone()))))
        }
        ("/v1/files", &Method::GET) => streams::get_files(&request),
        ("/v1/system", &Method::GET) => streams::get_system(),
        ("/v1/files", &Method::PUT) => streams::put_files(request).await,
        ("/v1/clock", &Method::POST) => status::clock(agent, read_json(request).await?),
        ("/v1/stats", &Method::GET) => Ok(json(StatusCode::OK, &crate::stats::read())),
        ("/v1/log", &Method::GET) => log::log(),
        ("/v1/grow", &Method::POST) => status::grow(agent, read_json(request).await?).await,
        ("/v1/shutdown", &Method::POST) => status::shutdown(agent, read_json(request).await?),
        _ => Err(Failure::not_found(format!(
            "no such request: {method} {path}"
        ))),
    }
}

async fn read_json<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Failure> {
    let body = Limited::new(request.into_body(), JSON_LIMIT)
        .collect()
        .await;
    let body =
        body.map_err(|error| Failure::bad_request(format!("could not read the body: {error}")))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Failure::bad_request(format!("could not understand the body: {error}")))
}

/// The value of a parameter of the request's query.
fn query(request: &Request<Incoming>, name: &str) -> Result<String, Failure> {
    let pairs = request.uri().query().unwrap_or_default().split('&');
    let value = pairs
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name);
    value
        .and_then(|(_, value)| percent_decoded(value))
        .ok_or_else(|| {
            Failure::bad_request(format!("the parameter `{name}` is missing or malformed"))
        })
}

/// RFC 3986, section 2.1.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let bytes = serde_json::to_vec(value).expect("protocol types have only string keys");
    let mut response = Response::new(Body::full(bytes));
    *response.status_mut() = status;
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::full(Vec::new()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_and_broken_ones_refused() {
        assert_eq!(
            percent_decoded("/a%20b/%C3%A4+").as_deref(),
            Some("/a b/ä+")
        );
        assert_eq!(percent_decoded("%2"), None);
        assert_eq!(percent_decoded("%zz"), None);
        assert_eq!(percent_decoded("%ff"), None);
    }
}
