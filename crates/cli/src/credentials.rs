//! Who this user is to a registry: what `docker login` or `podman login` has kept.
//!
//! It is read here, by the user's own process, and travels with one request. The daemon reads no
//! such file and keeps nothing of it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use banger_proto::api::RegistryAuth;
use banger_proto::error::{ApiError, ErrorKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

/// How long a helper may take: it may ask somebody.
const HELPER_LIMIT: Duration = Duration::from_secs(60);
/// What Docker calls its own registry.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Why it cannot be told who this user is.
#[derive(Debug, thiserror::Error)]
enum CredentialError {
    #[error("could not read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is not what `docker login` writes", path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the entry of {registry} in `{}` is not what `docker login` writes", path.display())]
    Entry { registry: String, path: PathBuf },
    #[error("could not run `{helper}`")]
    Start {
        helper: String,
        #[source]
        source: io::Error,
    },
    #[error("`{helper}` took longer than {} seconds", HELPER_LIMIT.as_secs())]
    Slow { helper: String },
    #[error("`{helper}` failed ({status})")]
    Failed { helper: String, status: String },
    #[error("`{helper}` did not answer as a helper should")]
    Answer { helper: String },
}

/// `config.json` of Docker, `auth.json` of Podman.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
}

/// What a helper answers (`docker-credential-helpers`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Who this user is to `registry`; `None` for nobody in particular.
///
/// # Errors
/// A file cannot be read, or a helper fails.
pub(crate) async fn of(registry: &str) -> Result<Option<RegistryAuth>, ApiError> {
    for path in files() {
        match in_file(path, registry).await {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(error) => {
                let message = format!("could not tell who you are to {registry}");
                return Err(ApiError::new(ErrorKind::Precondition, message)
                    .caused_by(&error)
                    .with_hint(format!("log in again: `docker login {registry}`")));
            }
        }
    }
    Ok(None)
}

/// Where secrets may be, in the order in which they are looked for.
fn files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = variable("HOME");
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
    let podman = variable("XDG_RUNTIME_DIR").map(|run| run.join("containers/auth.json"));
    [
        variable("REGISTRY_AUTH_FILE"),
        docker.map(|directory| directory.join("config.json")),
        podman,
        home.map(|home| home.join(".config/containers/auth.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn in_file(path: PathBuf, registry: &str) -> Result<Option<RegistryAuth>, CredentialError> {
    let text = match tokio::fs::read(&path).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CredentialError::Read { path, source }),
    };
    let file: File = match serde_json::from_slice(&text) {
        Ok(file) => file,
        Err(source) => return Err(CredentialError::Malformed { path, source }),
    };
    let keys = keys(registry);
    let helper = keys
        .iter()
        .find_map(|key| file.cred_helpers.get(key))
        .or(file.creds_store.as_ref());
    if let Some(helper) = helper {
        for key in &keys {
            if let Some(found) = ask(helper, key).await? {
                return Ok(Some(found));
            }
        }
    }
    let entry = keys.iter().find_map(|key| file.auths.get(key));
    match entry {
        Some(entry) => of_entry(entry).map_err(|()| CredentialError::Entry {
            registry: registry.to_owned(),
            path,
        }),
        None => Ok(None),
    }
}

/// What an entry of the registry may be called.
fn keys(registry: &str) -> Vec<String> {
    let mut keys = vec![registry.to_owned(), format!("https://{registry}")];
    if registry == "docker.io" {
        keys.insert(0, DOCKER_KEY.to_owned());
    }
    keys
}

fn of_entry(entry: &Entry) -> Result<Option<RegistryAuth>, ()> {
    if let Some(token) = entry
        .identitytoken
        .as_ref()
        .filter(|token| !token.is_empty())
    {
        return Ok(Some(RegistryAuth::IdentityToken {
            token: token.clone(),
        }));
    }
    // With a helper, the entry is there and empty.
    let Some(auth) = entry.auth.as_ref().filter(|auth| !auth.is_empty()) else {
        return Ok(None);
    };
    let decoded = STANDARD.decode(auth.trim()).map_err(drop)?;
    let text = String::from_utf8(decoded).map_err(drop)?;
    let (username, password) = text.split_once(':').ok_or(())?;
    Ok(Some(RegistryAuth::Password {
        username: username.to_owned(),
        password: password.trim_end_matches('\0').to_owned(),
    }))
}

/// Asks a helper; `None` if it knows of nothing.
async fn ask(helper: &str, key: &str) -> Result<Option<RegistryAuth>, CredentialError> {
    let helper = format!("docker-credential-{helper}");
    let start = |source| CredentialError::Start {
        helper: helper.clone(),
        source,
    };
    if helper.contains('/') {
        return Err(start(io::ErrorKind::InvalidInput.into()));
    }
    let mut process = Command::from(banger_process::command(&helper))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let mut input = process.stdin.take().expect("it was asked for");
    // One that does not read what it is asked says so by its status.
    let _ = input.write_all(key.as_bytes()).await;
    drop(input);
    let output = timeout(HELPER_LIMIT, process.wait_with_output())
        .await
        .map_err(|_| CredentialError::Slow {
            helper: helper.clone(),
        })?
        .map_err(start)?;
    if !output.status.success() {
        // The only way that the protocol has to say so.
        let words = String::from_utf8_lossy(&output.stdout);
        return match words.contains("credentials not found") {
            true => Ok(None),
            false => Err(CredentialError::Failed {
                helper,
                status: output.status.to_string(),
            }),
        };
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| CredentialError::Answer { helper })?;
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => RegistryAuth::IdentityToken {
            token: answer.secret,
        },
        _ => RegistryAuth::Password {
            username: answer.username,
            password: answer.secret,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str, password: &str) -> Option<RegistryAuth> {
        Some(RegistryAuth::Password {
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }

    async fn found(text: &str, registry: &str) -> Result<Option<RegistryAuth>, CredentialError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        in_file(path, registry).await
    }

    #[tokio::test]
    async fn what_docker_login_wrote_is_found_by_the_registry() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "YW5uOnNlOmNyZXQ="},
            "ghcr.io": {"auth": "Ym9iOng="},
            "quay.io": {"identitytoken": "abc", "auth": ""},
            "empty.io": {}
        }, "HttpHeaders": {}}"#;
        assert_eq!(
            found(text, "docker.io").await.unwrap(),
            password("ann", "se:cret")
        );
        assert_eq!(found(text, "ghcr.io").await.unwrap(), password("bob", "x"));
        assert_eq!(
            found(text, "quay.io").await.unwrap(),
            Some(RegistryAuth::IdentityToken {
                token: "abc".to_owned()
            })
        );
        for registry in ["empty.io", "other.io", "evil-ghcr.io", "ghcr.io.evil.com"] {
            assert_eq!(found(text, registry).await.unwrap(), None, "{registry}");
        }
    }

    #[tokio::test]
    async fn no_error_shows_a_secret() {
        for text in [
            r#"{"auths": {"a.io": {"auth": "c2VjcmV0LXdvcmQ="}}}"#,
            r#"{"auths": {"a.io": {"auth": "secret-word"}}}"#,
            r#"{"auths": {"a.io": {"auth": ["secret-word"]}}}"#,
            r#"{"credHelpers": {"a.io": "no-such-helper"}}"#,
            r#"{"credsStore": "../../bin/sh"}"#,
        ] {
            let error = found(text, "a.io").await.unwrap_err();
            let words = format!("{error:?} {error}");
            assert!(!words.contains("secret-word"), "{words}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let auth = password("ann", "secret-word");
        assert!(!format!("{auth:?}").contains("secret-word"));
    }
}
