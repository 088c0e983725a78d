//! What every request and answer has in common: an id, a log entry, and one shape of errors.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use banger_proto::agent::REQUEST_ID_HEADER;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;

/// Longest request body.
const BODY_MAX: usize = 1 << 20;

/// An error on its way out. [`identify`] writes its body, with the request's id.
#[derive(Debug)]
pub struct Failure(pub ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.http_status());
        let mut response = status
            .expect("every kind has a valid status")
            .into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}

/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.0).expect("API objects have only string keys");
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let malformed = |cause: String| {
            let mut error = ApiError::new(ErrorKind::Invalid, "could not read the request's body");
            error.causes.push(cause);
            Failure(error)
        };
        let body = axum::body::to_bytes(request.into_body(), BODY_MAX)
            .await
            .map_err(|error| malformed(error.to_string()))?;
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|error| malformed(error.to_string()))
    }
}

/// Gives each request its id, the client's if it sent one, and each error its body.
pub async fn identify(mut request: Request, next: Next) -> Response {
    let sent = request.headers().get(REQUEST_ID_HEADER);
    let id = sent
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .unwrap_or_else(RequestId::new);
    request.extensions_mut().insert(id.clone());
    let span = tracing::info_span!(
        "request",
        id = %id,
        method = %request.method(),
        path = request.uri().path(),
    );
    let begin = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    span.in_scope(|| {
        let took_ms = begin.elapsed().as_secs_f64() * 1e3;
        tracing::debug!(status = response.status().as_u16(), took_ms, "answered");
    });
    if let Some(mut error) = response.extensions_mut().remove::<ApiError>() {
        error.request_id.get_or_insert_with(|| id.clone());
        span.in_scope(|| tracing::debug!(%error, "refused"));
        let status = response.status();
        response = (status, Json(error)).into_response();
    }
    let value = HeaderValue::from_str(id.as_str()).expect("hex digits are a header value");
    response
        .headers_mut()
        .insert(HeaderName::from_static(REQUEST_ID_HEADER), value);
    response
}

pub async fn no_such_path(uri: Uri) -> Failure {
    ApiError::new(ErrorKind::NotFound, format!("there is no `{}`", uri.path())).into()
}

pub async fn no_such_method(method: Method, uri: Uri) -> Failure {
    ApiError::new(
        ErrorKind::Invalid,
        format!("`{}` does not take {method}", uri.path()),
    )
    .into()
}

/// An answer to what goes on from now.
pub fn accepted(value: impl Serialize) -> Response {
    (StatusCode::ACCEPTED, Json(value)).into_response()
}

/// An answer whose body comes piece by piece.
pub fn text(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}
