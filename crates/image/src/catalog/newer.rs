//! A newer catalog than the one that is built in, from where the config says.
//!
//! ```text
//! cache/catalogs/<serial>/{catalog.toml, catalog.toml.minisig}
//! ```
//!
//! It counts only with a signature by the key of the config, when it comes and each time it is
//! read again; and only if it is newer than what was there, so that nobody can bring an old one
//! back. Who cannot reach it goes on with the newest one that is here. It is asked for when
//! somebody wants something of the catalog, and never when a VM starts.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use banger_proto::error::ErrorKind;
use banger_proto::url::WebUrl;
use minisign_verify::{PublicKey, Signature};

use super::Catalog;
use super::schema::{CatalogError, LONGEST};
use crate::attempt::chain;
use crate::download::{DownloadError, Downloads};
use crate::draft::{self, Draft};
use crate::flight::{FlightError, Flights};
use crate::progress::Reporter;

/// Longest time that anybody waits for it.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest signature, with its comments.
const LONGEST_SIGNATURE: u64 = 4096;
/// What the name of a signature ends with.
const SIGNATURE: &str = ".minisig";
const CATALOG_FILE: &str = "catalog.toml";
const SIGNATURE_FILE: &str = "catalog.toml.minisig";

/// Where newer catalogs are, and who signs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogOrigin {
    /// The catalog; its signature stands beside it, with `.minisig` behind the name.
    pub url: WebUrl,
    /// The signer's minisign key: the second line of their `minisign.pub`.
    pub key: String,
}

/// A catalog came that nobody may use.
#[derive(Debug, thiserror::Error)]
#[error("the catalog `{url}` is refused: {why}")]
pub struct CatalogRefused {
    url: WebUrl,
    why: &'static str,
}

impl CatalogRefused {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Precondition
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(
            "ask whoever keeps the catalog, or mend `catalog_url` and `catalog_key` in the config; \
             without them the catalog that is built in is used"
                .to_owned(),
        )
    }
}

/// Why a catalog that came is of no use, though it is signed as it should be.
#[derive(Debug, thiserror::Error)]
enum Useless {
    #[error("it makes no sense to this banger: {0}")]
    Malformed(#[source] CatalogError),
    #[error("its serial is {found}, which is lower than the {have} of the one that is here")]
    Older { found: u64, have: u64 },
    #[error("it has the serial {0} of the one that is here, and says something else")]
    Another(u64),
    #[error("it could not be kept: {0}")]
    Keep(#[source] io::Error),
}

/// The catalog that counts, and where newer ones come from.
pub(crate) struct Catalogs {
    origin: Option<CatalogOrigin>,
    /// Where those that came are kept.
    directory: PathBuf,
    current: RwLock<Known>,
    /// Held while another one becomes the one that counts.
    admitting: Mutex<()>,
    /// Those who ask at the same time ask once.
    asking: Flights<(), Option<String>, CatalogRefused>,
}

/// The catalog that counts.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) catalog: Arc<Catalog>,
    /// Where it came from; `None` if it is built in.
    pub(crate) url: Option<WebUrl>,
}

/// A catalog and its signature, as they came.
struct Signed {
    text: String,
    signature: String,
}

impl Catalogs {
    /// The newest catalog that is here. Blocks for reading it.
    pub(crate) fn open(origin: Option<CatalogOrigin>, directory: PathBuf) -> Self {
        Self {
            current: RwLock::new(newest(origin.as_ref(), &directory)),
            origin,
            directory,
            admitting: Mutex::default(),
            asking: Flights::new(),
        }
    }

    /// The catalog that counts.
    pub(crate) fn current(&self) -> Known {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// Looks for a newer one where the config says, for ten seconds at most. Returns why that
    /// went wrong, where the one that is here has to do.
    ///
    /// # Errors
    /// What came is not signed by whom it should be.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        downloads: &Path,
    ) -> Result<Option<String>, Arc<CatalogRefused>> {
        let Some(origin) = self.origin.clone() else {
            return Ok(None);
        };
        let (catalogs, downloads) = (Arc::clone(self), downloads.to_owned());
        let start = |_, cancel: tokio_util::sync::CancellationToken| async move {
            let asked = catalogs.ask_alone(origin, downloads);
            cancel.run_until_cancelled(asked).await.unwrap_or(Ok(None))
        };
        match self.asking.join(&(), &Reporter::silent(), start).await {
            Ok(warning) => Ok(warning),
            Err(FlightError::Failed(error)) => Err(error),
            Err(FlightError::Lost) => Ok(None),
        }
    }

    async fn ask_alone(
        self: Arc<Self>,
        origin: CatalogOrigin,
        downloads: PathBuf,
    ) -> Result<Option<String>, CatalogRefused> {
        let came = match tokio::time::timeout(LIMIT, fetch(&origin, downloads)).await {
            Ok(Ok(came)) => came?,
            Ok(Err(error)) => return Ok(Some(self.of_no_use(&origin.url, &chain(&error)))),
            Err(_) => {
                let why = format!("no answer for {} seconds", LIMIT.as_secs());
                return Ok(Some(self.of_no_use(&origin.url, &why)));
            }
        };
        let catalogs = Arc::clone(&self);
        let url = origin.url.clone();
        let admit = move || catalogs.admit(&url, &came);
        match tokio::task::spawn_blocking(admit).await {
            Ok(Err(useless)) => Ok(Some(self.of_no_use(&origin.url, &useless.to_string()))),
            // Or the runtime ends.
            Ok(Ok(())) | Err(_) => Ok(None),
        }
    }

    /// Says that the catalog that is here has to do.
    fn of_no_use(&self, url: &WebUrl, why: &str) -> String {
        let serial = self.current().catalog.serial;
        let told = format!(
            "the catalog `{url}` is not used: {why}; the one that is here has serial {serial}"
        );
        tracing::warn!("{told}");
        told
    }

    /// Makes a catalog whose signature is good the one that counts, if it is newer.
    fn admit(&self, url: &WebUrl, signed: &Signed) -> Result<(), Useless> {
        let catalog = Catalog::parse(&signed.text).map_err(Useless::Malformed)?;
        let _alone = self
            .admitting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let current = self.current();
        let (found, have) = (catalog.serial, current.catalog.serial);
        if found < have {
            return Err(Useless::Older { found, have });
        }
        if found == have {
            return match catalog == *current.catalog {
                true => Ok(()),
                false => Err(Useless::Another(found)),
            };
        }
        self.keep(found, signed).map_err(Useless::Keep)?;
        let known = Known {
            catalog: Arc::new(catalog),
            url: Some(url.clone()),
        };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(())
    }

    fn keep(&self, serial: u64, signed: &Signed) -> io::Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let draft = Draft::new(&self.directory)?;
        for (name, content) in [
            (CATALOG_FILE, &signed.text),
            (SIGNATURE_FILE, &signed.signature),
        ] {
            let mut file = File::create_new(draft.path().join(name))?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
        }
        let place = self.directory.join(serial.to_string());
        if place.exists() {
            // It was not good enough to be the one that counts.
            draft::remove(&place);
        }
        draft.publish(&place)?;
        for old in self.others(Some(serial)) {
            draft::remove(&old);
        }
        Ok(())
    }

    /// The directories of catalogs that do not count, and so will never be used again.
    pub(crate) fn old(&self) -> Vec<PathBuf> {
        let current = self.current();
        self.others(current.url.map(|_| current.catalog.serial))
    }

    fn others(&self, serial: Option<u64>) -> Vec<PathBuf> {
        let kept = kept(&self.directory).into_iter();
        let others = kept.filter(|(kept, _)| Some(*kept) != serial);
        others.map(|(_, path)| path).collect()
    }
}

impl CatalogOrigin {
    /// Refuses a text that the key's owner has not signed.
    fn verify(&self, signed: &Signed) -> Result<(), CatalogRefused> {
        let refused = |why| CatalogRefused {
            url: self.url.clone(),
            why,
        };
        let key = PublicKey::from_base64(&self.key)
            .map_err(|_| refused("`catalog_key` is no key of minisign"))?;
        let signature = Signature::decode(&signed.signature)
            .map_err(|_| refused("what should be its signature is none of minisign"))?;
        key.verify(signed.text.as_bytes(), &signature, false)
            .map_err(|_| {
                refused("it is not signed with `catalog_key`, or was changed after it was signed")
            })
    }
}

/// The newest of the catalogs that are here and good.
fn newest(origin: Option<&CatalogOrigin>, directory: &Path) -> Known {
    let built_in = Known {
        catalog: Catalog::built_in(),
        url: None,
    };
    let Some(origin) = origin else {
        return built_in;
    };
    for (serial, path) in kept(directory) {
        if serial < built_in.catalog.serial {
            break;
        }
        match read(&path, serial, origin) {
            Ok(known) => return known,
            Err(why) => tracing::warn!(path = %path.display(), why, "a kept catalog is not used"),
        }
    }
    built_in
}

/// What is kept, the newest first.
fn kept(directory: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut kept: Vec<(u64, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect();
    kept.sort();
    kept.reverse();
    kept
}

/// Reads a catalog that was kept. What lies in a cache is not believed.
fn read(path: &Path, serial: u64, origin: &CatalogOrigin) -> Result<Known, String> {
    let content = |name: &str, limit| {
        let mut text = String::new();
        let file = File::open(path.join(name)).map_err(|error| error.to_string())?;
        let read = file.take(limit + 1).read_to_string(&mut text);
        read.map_err(|error| error.to_string()).map(|_| text)
    };
    let signed = Signed {
        text: content(CATALOG_FILE, LONGEST)?,
        signature: content(SIGNATURE_FILE, LONGEST_SIGNATURE)?,
    };
    let verified = origin.verify(&signed);
    verified.map_err(|error| error.to_string())?;
    let catalog = Catalog::parse(&signed.text).map_err(|error| error.to_string())?;
    if catalog.serial != serial {
        return Err(format!("it has the serial {}", catalog.serial));
    }
    Ok(Known {
        catalog: Arc::new(catalog),
        url: Some(origin.url.clone()),
    })
}

/// Fetches what is at the origin, and refuses what its owner has not signed.
async fn fetch(
    origin: &CatalogOrigin,
    downloads: PathBuf,
) -> Result<Result<Signed, CatalogRefused>, DownloadError> {
    let downloads = Downloads::new(downloads)?;
    let beside = origin.url.with_suffix(SIGNATURE);
    let once = async || {
        let signed = Signed {
            signature: downloads.text(&beside, LONGEST_SIGNATURE).await?,
            text: downloads.text(origin.url.as_str(), LONGEST).await?,
        };
        Ok(origin.verify(&signed).map(|()| signed))
    };
    match once().await? {
        Ok(signed) => Ok(Ok(signed)),
        // The two may have been changed between the two requests.
        Err(_) => once().await,
    }
}

#[cfg(test)]
mod tests;
