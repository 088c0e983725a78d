//! A client of registries (OCI distribution specification 1.1), as far as pulling needs it.
//!
//! Secrets go to the registry that they are for and to the server of tokens that this registry
//! names, over TLS. Only for registries on the loopback, and those that the user calls insecure,
//! plain HTTP is used, and only where TLS is not spoken. A redirection to another host takes no
//! secret along, and a server of tokens may not redirect at all.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use banger_proto::api::RegistryAuth;
use banger_proto::reference::{Digest, ImageReference};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::document::{ACCEPTED, LARGEST};
use crate::download::{self, DownloadError, Origin, Patience};

/// Most redirections that are followed.
const MOST_REDIRECTS: usize = 5;
/// Attempts to get a document.
const ATTEMPTS: u32 = 4;
/// Longest message of a server that is shown.
const LONGEST_MESSAGE: usize = 300;

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// The client could not be set up.
    #[error(transparent)]
    Client(DownloadError),
    /// Nobody answers.
    #[error("could not reach the registry {host}")]
    Connect {
        /// Its host.
        host: String,
        /// Why not.
        #[source]
        source: reqwest::Error,
    },
    /// A transfer broke off.
    #[error("could not read {url}")]
    Transfer {
        /// From where.
        url: String,
        /// Why not.
        #[source]
        source: reqwest::Error,
    },
    /// The registry refuses.
    #[error("the registry answers {status}{}", said(message))]
    Status {
        /// What it said.
        status: StatusCode,
        /// And in words.
        message: String,
    },
    /// There is no such image, or nobody may know.
    #[error(
        "the registry {host} has no `{repository}` with `{target}`{}",
        said(message)
    )]
    NotFound {
        /// Its host.
        host: String,
        /// The repository.
        repository: String,
        /// Tag or digest.
        target: String,
        /// What it said.
        message: String,
    },
    /// It wants to know who asks, or says no to who asked.
    #[error(
        "the registry {host} refuses access to `{repository}`{}",
        said(message)
    )]
    Denied {
        /// Its host.
        host: String,
        /// The repository.
        repository: String,
        /// Whether it was told who asks.
        with_secret: bool,
        /// What it said.
        message: String,
    },
    /// It asks for a kind of proof that we cannot give.
    #[error("the registry {host} asks for a kind of authentication that banger does not know")]
    Challenge {
        /// Its host.
        host: String,
    },
    /// A secret would go over the network in the clear.
    #[error("the registry {host} wants a password at `{realm}`, which is not encrypted")]
    PlainRealm {
        /// Its host.
        host: String,
        /// Where tokens are given out.
        realm: String,
    },
    /// The server of tokens does not give one.
    #[error("could not get a token from {realm}")]
    Token {
        /// Where tokens are given out.
        realm: String,
        /// Why not.
        #[source]
        source: Box<RegistryError>,
    },
    /// The answer makes no sense.
    #[error("{url} sends no token")]
    NoToken {
        /// From where.
        url: String,
    },
    /// A document is too large.
    #[error("what {url} sends is larger than {} MiB", LARGEST >> 20)]
    TooLong {
        /// From where.
        url: String,
    },
    /// A document did not come in time.
    #[error("{url} took longer than {time:?}")]
    Slow {
        /// From where.
        url: String,
        /// The time that it was given.
        time: Duration,
    },
}

fn said(message: &str) -> String {
    match message {
        "" => String::new(),
        message => format!(": {message}"),
    }
}

impl RegistryError {
    fn is_passing(&self) -> bool {
        match self {
            Self::Transfer { .. } | Self::Connect { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                    )
            }
            _ => false,
        }
    }
}

/// A document as it came.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    /// What the server says it is.
    pub(crate) media_type: String,
}

/// One repository of a registry.
pub(crate) struct Registry {
    client: Client,
    /// Asks for tokens, and follows no redirection: that would take the body, and the secret in
    /// it, along.
    token_client: Client,
    /// `https://host/`
    base: Url,
    host: String,
    repository: String,
    auth: Option<RegistryAuth>,
    /// What goes with each request, once the registry has asked for it.
    permit: Mutex<Option<HeaderValue>>,
    /// Whether the user takes its being listened to.
    insecure: bool,
    patience: Patience,
}

impl Registry {
    /// Finds out how the registry of `reference` is reached.
    pub(crate) async fn connect(
        reference: &ImageReference,
        insecure: bool,
        auth: Option<RegistryAuth>,
        patience: Patience,
    ) -> Result<Self, RegistryError> {
        let plain = insecure || reference.is_on_loopback();
        let client = download::client(redirects(plain), patience).map_err(RegistryError::Client)?;
        let token_client =
            download::client(Policy::none(), patience).map_err(RegistryError::Client)?;
        let host = reference.registry().to_owned();
        let address = match host.as_str() {
            // What Docker's registry calls itself is not where it is.
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let base = reach(&client, address, plain, patience)
            .await
            .map_err(|source| RegistryError::Connect {
                host: host.clone(),
                source: source.without_url(),
            })?;
        Ok(Self {
            client,
            token_client,
            base,
            host,
            repository: reference.repository().to_owned(),
            auth,
            permit: Mutex::new(None),
            insecure,
            patience,
        })
    }

    /// How long it is waited for.
    pub(crate) fn patience(&self) -> Patience {
        self.patience
    }

    /// Where the blob `digest` is.
    pub(crate) fn blob_url(&self, digest: &Digest) -> String {
        self.url("blobs", digest.as_str())
    }

    /// The manifest or index that `target`, a tag or a digest, names.
    pub(crate) async fn manifest(&self, target: &str) -> Result<Fetched, RegistryError> {
        let url = self.url("manifests", target);
        self.document(&url, target, Some(ACCEPTED)).await
    }

    /// A small blob, such as a config.
    pub(crate) async fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        let url = self.blob_url(digest);
        let fetched = self.document(&url, digest.as_str(), None).await?;
        Ok(fetched.bytes)
    }

    fn url(&self, kind: &str, target: &str) -> String {
        format!("{}v2/{}/{kind}/{target}", self.base, self.repository)
    }

    async fn document(
        &self,
        url: &str,
        target: &str,
        accept: Option<&str>,
    ) -> Result<Fetched, RegistryError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let once = self.document_once(url, target, accept);
            let outcome = tokio::time::timeout(self.patience.document, once)
                .await
                .unwrap_or_else(|_| {
                    Err(RegistryError::Slow {
                        url: url.to_owned(),
                        time: self.patience.document,
                    })
                });
            match outcome {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        attempt,
                        "a registry's answer failed, asking again"
                    );
                    tokio::time::sleep(self.patience.backoff * 2u32.pow(attempt - 1)).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn document_once(
        &self,
        url: &str,
        target: &str,
        accept: Option<&str>,
    ) -> Result<Fetched, RegistryError> {
        let response = self
            .ask(url, |request| match accept {
                Some(accept) => request.header(ACCEPT, accept),
                None => request,
            })
            .await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(RegistryError::NotFound {
                host: self.host.clone(),
                repository: self.repository.clone(),
                target: target.to_owned(),
                message: message(response).await,
            });
        }
        let response = self.require_success(response).await?;
        let media_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let bytes = body(response, url).await?;
        Ok(Fetched { bytes, media_type })
    }

    /// Sends a request with what lets us in, and once more if the registry asks for that first.
    async fn ask(
        &self,
        url: &str,
        finish: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let send = async |permit: Option<HeaderValue>| {
            let mut request = finish(self.client.get(url));
            if let Some(permit) = permit {
                request = request.header(AUTHORIZATION, permit);
            }
            request
                .send()
                .await
                .map_err(|source| RegistryError::Transfer {
                    url: url.to_owned(),
                    source: source.without_url(),
                })
        };
        let permit = self.permit();
        let response = send(permit).await?;
        // Another host than the registry has no business with its secrets.
        let is_ours = response.url().origin() == self.base.origin();
        if response.status() != StatusCode::UNAUTHORIZED || !is_ours {
            return Ok(response);
        }
        let Some(permit) = self.meet_challenge(&response).await? else {
            return Ok(response);
        };
        *self
            .permit
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(permit.clone());
        send(Some(permit)).await
    }

    fn permit(&self) -> Option<HeaderValue> {
        self.permit
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// What the registry wants to see; `None` if we have nothing to show.
    async fn meet_challenge(
        &self,
        response: &Response,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenge::read(headers.iter().filter_map(|value| value.to_str().ok()));
        match (challenge, &self.auth) {
            (Some(Challenge::Basic), Some(RegistryAuth::Password { username, password })) => {
                Ok(self.basic(username, password))
            }
            (Some(Challenge::Basic), _) => Ok(None),
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                auth,
            ) => {
                let token = self
                    .token(&realm, service.as_deref(), scope.as_deref(), auth.as_ref())
                    .await;
                match token {
                    Ok(token) => Ok(secret(&format!("Bearer {token}"))),
                    Err(
                        error @ (RegistryError::Denied { .. } | RegistryError::PlainRealm { .. }),
                    ) => Err(error),
                    Err(error) => Err(RegistryError::Token {
                        realm,
                        source: Box::new(error),
                    }),
                }
            }
            (None, _) => Err(RegistryError::Challenge {
                host: self.host.clone(),
            }),
        }
    }

    fn basic(&self, username: &str, password: &str) -> Option<HeaderValue> {
        let request = self.client.get(self.base.clone());
        let request = request.basic_auth(username, Some(password)).build().ok()?;
        request.headers().get(AUTHORIZATION).cloned()
    }

    /// A token of the server at `realm`, as of the distribution project's "Token Authentication"
    /// and, for an identity token, "OAuth2 Token Authentication".
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        auth: Option<&RegistryAuth>,
    ) -> Result<String, RegistryError> {
        let own_scope = format!("repository:{}:pull", self.repository);
        let scope = scope.unwrap_or(&own_scope);
        let plain_realm = || RegistryError::PlainRealm {
            host: self.host.clone(),
            realm: realm.to_owned(),
        };
        let mut url = Url::parse(realm).map_err(|_| RegistryError::Challenge {
            host: self.host.clone(),
        })?;
        if url.scheme() != "https" && !self.may_be_plain(&url) {
            return Err(plain_realm());
        }
        let mut pairs = vec![("scope", scope)];
        pairs.extend(service.map(|service| ("service", service)));
        let request = match auth {
            Some(RegistryAuth::IdentityToken { token }) => {
                pairs.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "banger"),
                    ("refresh_token", token),
                ]);
                let form = Url::parse_with_params("http://form/", pairs)
                    .ok()
                    .and_then(|form| form.query().map(str::to_owned))
                    .unwrap_or_default();
                let request = self.token_client.post(url);
                request
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form)
            }
            Some(RegistryAuth::Password { username, password }) => {
                url.query_pairs_mut()
                    .extend_pairs(pairs)
                    .append_pair("account", username);
                self.token_client
                    .get(url)
                    .basic_auth(username, Some(password))
            }
            None => {
                url.query_pairs_mut().extend_pairs(pairs);
                self.token_client.get(url)
            }
        };
        let response = request
            .send()
            .await
            .map_err(|source| RegistryError::Transfer {
                url: realm.to_owned(),
                source: source.without_url(),
            })?;
        let response = self.require_success(response).await?;
        let answer: Token =
            serde_json::from_slice(&body(response, realm).await?).map_err(|_| {
                RegistryError::NoToken {
                    url: realm.to_owned(),
                }
            })?;
        answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| RegistryError::NoToken {
                url: realm.to_owned(),
            })
    }

    /// Whether tokens may be asked for at `realm` in the clear: on this host, or of an insecure
    /// registry's own. What kind of registry names the realm says nothing of where it is.
    fn may_be_plain(&self, realm: &Url) -> bool {
        realm.scheme() == "http"
            && (is_on_loopback(realm) || self.insecure && realm.host() == self.base.host())
    }

    async fn require_success(&self, response: Response) -> Result<Response, RegistryError> {
        let status = response.status();
        match status {
            status if status.is_success() => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(RegistryError::Denied {
                host: self.host.clone(),
                repository: self.repository.clone(),
                with_secret: self.auth.is_some(),
                message: message(response).await,
            }),
            status => Err(RegistryError::Status {
                status,
                message: message(response).await,
            }),
        }
    }
}

#[async_trait]
impl Origin for Registry {
    async fn get(&self, url: &str, from: u64) -> Result<Response, DownloadError> {
        let asked = self.ask(url, |request| download::ranged(request, from));
        // With the way by a server of tokens. What the answer brings has a pace of its own.
        let asked = tokio::time::timeout(self.patience.document, asked).await;
        let response = asked
            .unwrap_or_else(|_| {
                Err(RegistryError::Slow {
                    url: url.to_owned(),
                    time: self.patience.document,
                })
            })
            .map_err(|error| match error {
                RegistryError::Transfer { url, source } => DownloadError::Transfer { url, source },
                error => DownloadError::Access(Box::new(error)),
            })?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let refusal = self.require_success(response).await;
                let error = refusal.expect_err("these are no successes");
                Err(DownloadError::Access(Box::new(error)))
            }
            _ => download::accept(response, url, from),
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Follows a few redirections, and none from TLS to plain HTTP unless that will do.
fn redirects(plain: bool) -> Policy {
    Policy::custom(move |attempt| {
        let from_tls = attempt
            .previous()
            .last()
            .is_some_and(|url| url.scheme() == "https");
        if attempt.previous().len() > MOST_REDIRECTS {
            attempt.error("too many redirections")
        } else if from_tls && attempt.url().scheme() != "https" && !plain {
            attempt.error("it leads from an encrypted address to one that is not")
        } else {
            attempt.follow()
        }
    })
}

/// The registry's address: with TLS, or where that is not spoken and `plain` will do, without.
async fn reach(
    client: &Client,
    host: &str,
    plain: bool,
    patience: Patience,
) -> Result<Url, reqwest::Error> {
    let address = |scheme: &str| client.get(format!("{scheme}://{host}/v2/"));
    let base = |mut url: Url| {
        url.set_path("/");
        url
    };
    let mut attempt = 0;
    loop {
        attempt += 1;
        let request = address("https").build()?;
        let url = request.url().clone();
        let error = match client.execute(request).await {
            Ok(_) => return Ok(base(url)),
            Err(error) => error,
        };
        if plain {
            let request = address("http").build()?;
            let url = request.url().clone();
            // A server of TLS answers a plain request with 400.
            if let Ok(response) = client.execute(request).await
                && response.status() != StatusCode::BAD_REQUEST
            {
                return Ok(base(url));
            }
        }
        if attempt >= ATTEMPTS || !(error.is_connect() || error.is_timeout()) {
            return Err(error);
        }
        tokio::time::sleep(patience.backoff * 2u32.pow(attempt - 1)).await;
    }
}

fn is_on_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// A small body.
async fn body(mut response: Response, url: &str) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    loop {
        let chunk = response.chunk().await;
        let chunk = chunk.map_err(|source| RegistryError::Transfer {
            url: url.to_owned(),
            source: source.without_url(),
        })?;
        let Some(chunk) = chunk else { return Ok(bytes) };
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > LARGEST {
            return Err(RegistryError::TooLong {
                url: url.to_owned(),
            });
        }
    }
}

/// What a registry says when it refuses: `{"errors":[{"code":…,"message":…}]}`.
async fn message(response: Response) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Problem>,
    }
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(bytes) = body(response, "").await else {
        return String::new();
    };
    let Ok(errors) = serde_json::from_slice::<Errors>(&bytes) else {
        return String::new();
    };
    let said: Vec<_> = errors
        .errors
        .iter()
        .map(|problem| match problem.message.as_str() {
            "" => problem.code.clone(),
            message => message.to_owned(),
        })
        .collect();
    said.join("; ")
        .chars()
        .filter(|letter| !letter.is_control())
        .take(LONGEST_MESSAGE)
        .collect()
}

/// A header that is not shown in logs.
fn secret(value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(value).ok()?;
    header.set_sensitive(true);
    Some(header)
}
