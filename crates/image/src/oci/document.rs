//! The documents of a registry: index, manifest and config (OCI image specification 1.1, and
//! Docker's image manifest version 2, schema 2, which is the same in other words).

use std::collections::BTreeMap;

use banger_proto::reference::Digest;
use serde::{Deserialize, Deserializer};

/// Largest document, as of the distribution specification's advice.
pub(super) const LARGEST: u64 = 4 << 20;
/// Most layers of an image. Docker makes at most 127.
const MOST_LAYERS: usize = 1000;

/// What a client asks for.
pub(super) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Why a document is no image's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    /// It is not what it should be.
    #[error("its {what} is malformed")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It is of another kind.
    #[error("its {what} is of the type `{found}`, which is not one of an image")]
    MediaType {
        /// Which part.
        what: &'static str,
        /// What it says it is.
        found: String,
    },
    /// Nothing for this host.
    #[error("it is not made for {wanted}: there is {}", list(found))]
    Platform {
        /// What this host needs.
        wanted: String,
        /// What there is.
        found: Vec<String>,
    },
    /// The layers of the config are not those of the manifest.
    #[error("its manifest has {manifest} layers, and its config {config}")]
    LayerCount {
        /// How many the manifest has.
        manifest: usize,
        /// How many the config has.
        config: usize,
    },
    /// More layers than any tool makes.
    #[error("it has {0} layers, which is more than {MOST_LAYERS}")]
    TooManyLayers(usize),
}

fn list(found: &[String]) -> String {
    match found {
        [] => "nothing in it".to_owned(),
        found => found.join(", "),
    }
}

/// What refers to a content.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

/// The machine that an image is made for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
}

impl Platform {
    /// This host's, in the words of registries, which are those of Go.
    fn of_host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: String::new(),
        }
    }

    fn runs_on(&self, host: &Self) -> bool {
        self.os == host.os && self.architecture == host.architecture
    }

    fn shown(&self) -> String {
        match self.variant.as_str() {
            "" => format!("{}/{}", self.os, self.architecture),
            variant => format!("{}/{}/{variant}", self.os, self.architecture),
        }
    }
}

/// A document that a reference leads to.
#[derive(Debug)]
pub(crate) enum Document {
    /// It leads to another one.
    Index(Index),
    /// An image.
    Manifest(Manifest),
}

/// One image for each of several platforms.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    #[serde(default, deserialize_with = "null_as_default")]
    manifests: Vec<Descriptor>,
}

/// An image: its config and layers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a document. `said` is the type that the server or the descriptor says it has.
    pub(crate) fn read(bytes: &[u8], said: &str) -> Result<Self, DocumentError> {
        let malformed = |source| DocumentError::Malformed {
            what: "manifest",
            source,
        };
        let kind: Kind = serde_json::from_slice(bytes).map_err(malformed)?;
        let said = said.split(';').next().unwrap_or_default().trim();
        // What it says of itself counts, and what was said of it if it says nothing.
        let media_type = match kind.media_type.as_str() {
            "" => said,
            own => own,
        };
        let is_index = match media_type {
            _ if kind.schema_version != 2 => {
                return Err(DocumentError::MediaType {
                    what: "manifest",
                    found: match media_type {
                        "" => format!("schema {}", kind.schema_version),
                        media_type => media_type.to_owned(),
                    },
                });
            }
            index if INDEXES.contains(&index) => true,
            manifest if MANIFESTS.contains(&manifest) => false,
            "" | "application/json" | "application/octet-stream" | "text/plain" => {
                kind.manifests.is_some()
            }
            other => {
                return Err(DocumentError::MediaType {
                    what: "manifest",
                    found: other.to_owned(),
                });
            }
        };
        match is_index {
            true => serde_json::from_slice(bytes)
                .map(Self::Index)
                .map_err(malformed),
            false => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(malformed)?;
                manifest.check()?;
                Ok(Self::Manifest(manifest))
            }
        }
    }
}

impl Index {
    /// What it has for this host.
    pub(crate) fn choose(&self) -> Result<&Descriptor, DocumentError> {
        let host = Platform::of_host();
        let fitting = self.manifests.iter().find(|descriptor| {
            let platform = descriptor.platform.as_ref();
            platform.is_some_and(|platform| platform.runs_on(&host))
        });
        // An index of one entry, as local tools write it, need not say what it is for: the
        // config says it too.
        let only = match self.manifests.as_slice() {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        };
        fitting.or(only).ok_or_else(|| DocumentError::Platform {
            wanted: host.shown(),
            found: self
                .manifests
                .iter()
                .filter_map(|descriptor| descriptor.platform.as_ref())
                // Attestations are listed as of no platform.
                .filter(|platform| platform.os != "unknown")
                .map(Platform::shown)
                .collect(),
        })
    }
}

impl Manifest {
    fn check(&self) -> Result<(), DocumentError> {
        let require = |what, found: &str, known: &[&str]| match known.contains(&found) {
            true => Ok(()),
            false => Err(DocumentError::MediaType {
                what,
                found: found.to_owned(),
            }),
        };
        require("config", &self.config.media_type, &CONFIGS)?;
        if self.layers.len() > MOST_LAYERS {
            return Err(DocumentError::TooManyLayers(self.layers.len()));
        }
        for layer in &self.layers {
            require("layer", &layer.media_type, &LAYERS)?;
        }
        Ok(())
    }
}

/// What an image says of itself.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) config: Execution,
    #[serde(default, deserialize_with = "null_as_default")]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "null_as_default")]
    diff_ids: Vec<Digest>,
}

/// How its maker wants it run.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Execution {
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) user: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) env: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) cmd: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) working_dir: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) labels: BTreeMap<String, String>,
}

impl Config {
    /// Reads the config of an image with `layers` layers, and checks that it is for this host.
    pub(crate) fn read(bytes: &[u8], layers: usize) -> Result<Self, DocumentError> {
        let config: Self =
            serde_json::from_slice(bytes).map_err(|source| DocumentError::Malformed {
                what: "config",
                source,
            })?;
        let own = Platform {
            architecture: config.architecture.clone(),
            os: config.os.clone(),
            variant: config.variant.clone(),
        };
        let host = Platform::of_host();
        if !own.runs_on(&host) {
            return Err(DocumentError::Platform {
                wanted: host.shown(),
                found: vec![own.shown()],
            });
        }
        match config.rootfs.diff_ids.len() {
            count if count == layers => Ok(config),
            count => Err(DocumentError::LayerCount {
                manifest: layers,
                config: count,
            }),
        }
    }

    /// The digests of the layers' tar streams, lowest first.
    pub(crate) fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }
}

impl Execution {
    /// The environment; what is no `KEY=value` is left out.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        self.env
            .iter()
            .filter_map(|variable| variable.split_once('='))
            .filter(|(key, _)| !key.is_empty())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }
}

/// Go writes an empty list or map as `null`.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn descriptor(media_type: &str) -> Value {
        json!({
            "mediaType": media_type,
            "digest": format!("sha256:{}", "0".repeat(64)),
            "size": 7,
        })
    }

    fn read(value: &Value, said: &str) -> Result<Document, DocumentError> {
        Document::read(value.to_string().as_bytes(), said)
    }

    #[test]
    fn an_index_leads_to_the_image_for_this_host() {
        let of = |architecture: &str| {
            let mut one = descriptor(MANIFESTS[0]);
            one["platform"] = json!({"os": "linux", "architecture": architecture});
            one["size"] = json!(architecture.len());
            one
        };
        let own = Platform::of_host().architecture;
        let index = json!({"schemaVersion": 2, "manifests": [of("s390x-long"), of(&own)]});
        let Document::Index(index) = read(&index, INDEXES[0]).unwrap() else {
            panic!("it is an index")
        };
        assert_eq!(index.choose().unwrap().size, own.len() as u64);
        let other = json!({"schemaVersion": 2, "manifests": [of("s390x")]});
        let Document::Index(other) = read(&other, "").unwrap() else {
            panic!("it is an index")
        };
        let error = other.choose().unwrap_err().to_string();
        assert!(error.contains("there is linux/s390x"), "{error}");
    }

    #[test]
    fn what_is_no_image_is_refused_by_its_type() {
        let image = |config: &str, layer: &str| {
            json!({
                "schemaVersion": 2,
                "mediaType": MANIFESTS[0],
                "config": descriptor(config),
                "layers": [descriptor(layer)],
            })
        };
        assert!(read(&image(CONFIGS[0], LAYERS[1]), "").is_ok());
        let chart = image("application/vnd.cncf.helm.config.v1+json", LAYERS[0]);
        let foreign = image(
            CONFIGS[0],
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        );
        let old = json!({"schemaVersion": 1, "fsLayers": []});
        let errors: Vec<_> = [chart, foreign, old]
            .iter()
            .map(|value| read(value, "text/html").unwrap_err().to_string())
            .collect();
        insta::assert_snapshot!(errors.join("\n"), @r"
        its config is of the type `application/vnd.cncf.helm.config.v1+json`, which is not one of an image
        its layer is of the type `application/vnd.docker.image.rootfs.foreign.diff.tar.gzip`, which is not one of an image
        its manifest is of the type `text/html`, which is not one of an image
        ");
    }

    #[test]
    fn a_config_is_read_with_the_nulls_that_go_writes() {
        let host = Platform::of_host();
        let config = json!({
            "architecture": host.architecture,
            "os": "linux",
            "config": {
                "User": "1000:1000",
                "Env": ["PATH=/bin", "EMPTY=", "rubbish", "=x"],
                "Entrypoint": null,
                "Cmd": ["sh"],
                "WorkingDir": "/srv",
                "Labels": null,
            },
            "rootfs": {"type": "layers", "diff_ids": null},
        });
        let config = Config::read(config.to_string().as_bytes(), 0).unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(
            config.config.environment(),
            BTreeMap::from([
                ("EMPTY".to_owned(), String::new()),
                ("PATH".to_owned(), "/bin".to_owned())
            ])
        );
        let error = Config::read(br#"{"architecture":"mips","os":"linux"}"#, 0).unwrap_err();
        assert!(
            error.to_string().ends_with("there is linux/mips"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(text in "\\PC{0,200}", said in "\\PC{0,40}") {
            let _ = Document::read(text.as_bytes(), &said);
            let _ = Config::read(text.as_bytes(), 1);
        }
    }
}
