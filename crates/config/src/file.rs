//! What the config file says. Every key is optional; a key that banger does not know is
//! refused with the nearest one that it knows, because a typo must not go unnoticed.

use std::io;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_proto::api::EngineKind;
use banger_proto::name::ArtifactName;
use banger_proto::size::ByteSize;
use banger_proto::url::WebUrl;
use serde::{Deserialize, Serialize};

/// The image that `vm run` boots if nothing else is said.
pub const DEFAULT_IMAGE: &str = "debian-bookworm";

/// The config file, with defaults for what it leaves out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// What the daemon logs: `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: LogLevel,
    /// Which engine new VMs get.
    pub vmm: Vmm,
    /// The Firecracker program; if absent the one in `PATH`, or the one that banger installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firecracker_bin: Option<PathBuf>,
    /// Where `banger engine install firecracker` gets the release from, such as a mirror of
    /// one's own; Firecracker's releases on GitHub if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firecracker_url: Option<String>,
    /// The QEMU program; looked for in `PATH` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qemu_bin: Option<PathBuf>,
    /// The private ssh key for VMs; made in the config directory if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_key_path: Option<PathBuf>,
    /// The image that `vm run` boots if nothing else is said.
    pub default_image_name: ArtifactName,
    /// The Debian mirror for images and kernels where the host's own apt configuration names
    /// none, such as `http://ftp.debian.org/debian`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debian_mirror: Option<String>,
    /// Ubuntu's mirror, for hosts whose own apt configuration names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ubuntu_mirror: Option<String>,
    /// Where there may be a newer catalog of images and kernels than the one that is built in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog_url: Option<WebUrl>,
    /// The minisign key that the catalog is signed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog_key: Option<CatalogKey>,
    /// A VM that nobody uses for so long, and that does nothing, is stopped; never if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_stop_stale_after: Option<Period>,
    /// How often whoever watches VMs, such as `vm stats --watch`, looks at what they use.
    pub stats_poll_interval: Period,
    /// The network of the VMs.
    pub cidr: Cidr,
    /// What a new VM gets if nothing else is said.
    pub vm_defaults: VmDefaults,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log_level: LogLevel::Info,
            vmm: Vmm::Auto,
            firecracker_bin: None,
            firecracker_url: None,
            qemu_bin: None,
            ssh_key_path: None,
            default_image_name: DEFAULT_IMAGE.parse().expect("the constant is a name"),
            debian_mirror: None,
            ubuntu_mirror: None,
            catalog_url: None,
            catalog_key: None,
            auto_stop_stale_after: None,
            stats_poll_interval: Period::from_secs(2),
            cidr: Cidr::DEFAULT,
            vm_defaults: VmDefaults::default(),
        }
    }
}

/// The table `[vm_defaults]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmDefaults {
    /// Number of virtual CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// Memory; a number is MiB.
    #[serde(skip_serializing_if = "Option::is_none", with = "size_in_mib")]
    pub memory: Option<ByteSize>,
    /// Size of the work disk; a number is MiB.
    #[serde(skip_serializing_if = "Option::is_none", with = "size_in_mib")]
    pub disk_size: Option<ByteSize>,
    /// Size of the system disk; a number is MiB.
    #[serde(skip_serializing_if = "Option::is_none", with = "size_in_mib")]
    pub system_size: Option<ByteSize>,
}

const KEYS: &[&str] = &[
    "log_level",
    "vmm",
    "firecracker_bin",
    "firecracker_url",
    "qemu_bin",
    "ssh_key_path",
    "default_image_name",
    "debian_mirror",
    "ubuntu_mirror",
    "catalog_url",
    "catalog_key",
    "auto_stop_stale_after",
    "stats_poll_interval",
    "cidr",
    "vm_defaults",
];
const VM_DEFAULTS_KEYS: &[&str] = &["vcpu", "memory", "disk_size", "system_size"];

/// What the daemon logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Someone asked and did not get it.
    Error,
    /// Odd but fine.
    Warn,
    /// Rare and meaningful.
    Info,
    /// For whoever works on banger.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word in the config file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Which engine new VMs get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vmm {
    /// The best one that works on this host.
    Auto,
    /// QEMU.
    Qemu,
    /// Firecracker.
    Firecracker,
    /// No VM at all, for tests; needs `BANGER_TEST_FAKE=1` in the daemon's environment.
    Fake,
}

impl Vmm {
    /// The engine that is asked for; `None` leaves the choice to the host.
    pub fn engine(self) -> Option<EngineKind> {
        match self {
            Self::Auto => None,
            Self::Qemu => Some(EngineKind::Qemu),
            Self::Firecracker => Some(EngineKind::Firecracker),
            Self::Fake => Some(EngineKind::Fake),
        }
    }
}

/// A length of time in whole seconds, from one second to a year: `90s`, `30m`, `12h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period(u64);

const UNITS: [(char, u64); 4] = [('d', 86400), ('h', 3600), ('m', 60), ('s', 1)];
const PERIOD_MAX_S: u64 = 366 * 86400;

impl Period {
    /// So many seconds; at least one.
    const fn from_secs(seconds: u64) -> Self {
        Self(seconds)
    }

    /// As a duration.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a time: write for example 90s, 30m, 12h or 7d");
        let unit = text.chars().next_back().ok_or_else(wrong)?;
        let (_, seconds) = UNITS
            .into_iter()
            .find(|(letter, _)| *letter == unit)
            .ok_or_else(wrong)?;
        let number = &text[..text.len() - 1];
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = number.parse().map_err(|_| wrong())?;
        match number.checked_mul(seconds) {
            Some(seconds @ 1..=PERIOD_MAX_S) => Ok(Self(seconds)),
            _ => Err(format!("`{text}` must be from one second to a year")),
        }
    }
}

impl From<Period> for String {
    fn from(Period(seconds): Period) -> String {
        let (letter, unit) = UNITS
            .into_iter()
            .find(|(_, unit)| seconds % unit == 0)
            .expect("every number is a multiple of one second");
        format!("{}{letter}", seconds / unit)
    }
}

/// A public key of minisign, as the second line of a `minisign.pub` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CatalogKey(String);

impl CatalogKey {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CatalogKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match minisign_verify::PublicKey::from_base64(&text) {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err(format!(
                "`{text}` is no key of minisign: write the second line of the signer's minisign.pub"
            )),
        }
    }
}

impl From<CatalogKey> for String {
    fn from(CatalogKey(text): CatalogKey) -> String {
        text
    }
}

/// An IPv4 network. Its first host address is the bridge's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// `172.16.0.0/24`.
    pub const DEFAULT: Self = Self {
        network: Ipv4Addr::new(172, 16, 0, 0),
        prefix: 24,
    };

    /// The address of the bridge: the first of the network's hosts.
    pub fn bridge(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    /// Number of leading bits that all of the network's addresses share, 16 to 29.
    pub fn prefix(self) -> u8 {
        self.prefix
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (network, prefix) = text
            .split_once('/')
            .ok_or_else(|| format!("`{text}` is not a network: write for example 172.16.0.0/24"))?;
        let network: Ipv4Addr = network
            .parse()
            .map_err(|_| format!("`{network}` is not an IPv4 address"))?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|prefix| (16..=29).contains(prefix))
            .ok_or_else(|| format!("the prefix length in `{text}` must be 16 to 29"))?;
        if network.to_bits().trailing_zeros() < 32 - u32::from(prefix) {
            return Err(format!("`{text}` has bits set behind its prefix"));
        }
        if !network.is_private() {
            return Err(format!(
                "`{text}` is not a private network: use one of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16"
            ));
        }
        Ok(Self { network, prefix })
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        format!("{}/{}", cidr.network, cidr.prefix)
    }
}

/// Why the config file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is there but cannot be read.
    #[error("could not read the config file `{}`", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not TOML, or a value is of the wrong kind.
    #[error("{}:{line}: {message}", .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// It has a key that banger does not know.
    #[error(
        "{}:{line}: unknown key `{key}`{}",
        .path.display(),
        .nearest.as_ref().map(|near| format!(": did you mean `{near}`?")).unwrap_or_default()
    )]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, with its table in front.
        key: String,
        /// The most similar key that there is.
        nearest: Option<String>,
    },
}

impl Config {
    /// Reads the config file; a missing one is an empty one.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, has an unknown key, or a value makes no sense.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads the text of a config file; `path` is for messages.
    ///
    /// # Errors
    /// As [`Config::load`], but for reading.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        refuse_unknown_keys(path, text)?;
        let config: Self = toml::from_str(text).map_err(|error| value_error(path, text, &error))?;
        let problem = match (&config.catalog_url, &config.catalog_key) {
            (Some(url), _) if !url.is_private() => {
                ("catalog_url", "`catalog_url` begins with `https://`")
            }
            (Some(_), None) => (
                "catalog_url",
                "`catalog_url` needs `catalog_key`, the minisign key that the catalog is signed with",
            ),
            (None, Some(_)) => (
                "catalog_key",
                "`catalog_key` is of no use without `catalog_url`",
            ),
            _ => return Ok(config),
        };
        let (key, message) = problem;
        Err(ConfigError::Value {
            path: path.to_owned(),
            line: line_of(text, span_of(text, key)),
            message: message.to_owned(),
        })
    }
}

/// Where a key of the top stands.
fn span_of(text: &str, key: &str) -> Option<Range<usize>> {
    let table = toml::de::DeTable::parse(text).ok()?;
    let keys = table.get_ref().keys();
    let found = keys.into_iter().find(|known| known.get_ref() == key)?;
    Some(found.span())
}

fn refuse_unknown_keys(path: &Path, text: &str) -> Result<(), ConfigError> {
    let table = toml::de::DeTable::parse(text).map_err(|error| value_error(path, text, &error))?;
    let unknown = |table: &toml::de::DeTable<'_>, known: &[&str], prefix: &str| {
        let key = table
            .keys()
            .find(|key| !known.contains(&key.get_ref().as_ref()))?;
        let name = key.get_ref().as_ref();
        Some(ConfigError::UnknownKey {
            path: path.to_owned(),
            line: line_of(text, Some(key.span())),
            key: format!("{prefix}{name}"),
            nearest: nearest(name, known),
        })
    };
    let table = table.get_ref();
    if let Some(error) = unknown(table, KEYS, "") {
        return Err(error);
    }
    match table
        .get("vm_defaults")
        .and_then(|value| value.get_ref().as_table())
    {
        Some(inner) => unknown(inner, VM_DEFAULTS_KEYS, "vm_defaults.").map_or(Ok(()), Err),
        None => Ok(()),
    }
}

fn nearest(key: &str, known: &[&str]) -> Option<String> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(key, candidate), *candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_owned())
}

fn value_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    ConfigError::Value {
        path: path.to_owned(),
        line: line_of(text, error.span()),
        message: in_plain_words(error.message()),
    }
}

/// What the TOML and serde libraries say, without the words of their trade.
fn in_plain_words(message: &str) -> String {
    if message == "wanted string or table" {
        return "a text in quotes is expected".to_owned();
    }
    if message.starts_with("a number of ") {
        return format!("{message} is expected");
    }
    let rest = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "));
    let Some(rest) = rest else {
        return message.to_owned();
    };
    let Some((found, wanted)) = rest.split_once(", expected ") else {
        return message.to_owned();
    };
    // `string "lots"`, `integer `5``, `boolean `true``, `map`, `sequence`
    let (kind, value) = found.split_once(' ').unwrap_or((found, ""));
    let kind = match kind {
        "string" => "a text",
        "integer" => "a number",
        "floating" => "a number with a fraction",
        "boolean" => "a yes or no",
        "map" => "a table",
        "sequence" => "a list",
        other => other,
    };
    let value = value.trim_start_matches("point ").trim_matches(['`', '"']);
    let wanted = match wanted {
        "u32" | "u64" | "usize" => "a whole number, not below 0,",
        "a string" | "path string" | "string or map" | "a borrowed string" => "a text in quotes",
        "a boolean" => "true or false",
        "struct VmDefaults" | "a map" => "a table",
        other => other.strip_prefix("struct ").map_or(other, |_| "a table"),
    };
    match value.is_empty() {
        true => format!("this is {kind}, where {wanted} is expected"),
        false => format!("`{value}` is {kind}, where {wanted} is expected"),
    }
}

/// The line, from 1, in which a span of the text begins.
pub(crate) fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let start = span.map_or(0, |span| span.start.min(text.len()));
    1 + text.as_bytes()[..start]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
}

/// In the config file, as on the command line, a bare number is MiB.
mod size_in_mib {
    use banger_proto::size::ByteSize;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a number of MiB or a text such as \"8G\"")]
    enum Repr {
        Mib(u64),
        Text(String),
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ByteSize>, D::Error> {
        let text = match Repr::deserialize(from)? {
            Repr::Mib(mib) => mib.to_string(),
            Repr::Text(text) => text,
        };
        text.parse().map(Some).map_err(D::Error::custom)
    }

    pub fn serialize<S: Serializer>(size: &Option<ByteSize>, to: S) -> Result<S::Ok, S::Error> {
        size.map(|size| size.to_string()).serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("config.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse(""), Ok(Config::default()));
        assert_eq!(
            Config::load(Path::new("/nonexistent/config.toml")).unwrap(),
            Config::default()
        );
    }

    #[test]
    fn every_key_is_known() {
        let config = parse(
            "log_level = 'debug'\nvmm = 'qemu'\nfirecracker_bin = '/f'\nfirecracker_url = 'http://m/f.tgz'\nqemu_bin = '/q'\nssh_key_path = '/k'\n\
             default_image_name = 'a'\ndebian_mirror = 'http://m/debian'\nubuntu_mirror = 'http://m/ubuntu'\n\
             catalog_url = 'https://m/c.toml'\ncatalog_key = 'RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3'\n\
             auto_stop_stale_after = '90m'\nstats_poll_interval = '5s'\ncidr = '10.1.0.0/16'\n\
             [vm_defaults]\nvcpu = 2\nmemory = '1G'\ndisk_size = 2048\nsystem_size = '4GiB'\n",
        )
        .unwrap();
        assert_eq!(config.vm_defaults.disk_size, Some(ByteSize::from_gib(2)));
        assert_eq!(config.cidr.bridge(), Ipv4Addr::new(10, 1, 0, 1));
        let stale = config.auto_stop_stale_after.map(Period::duration);
        assert_eq!(stale, Some(Duration::from_secs(5400)));
    }

    #[test]
    fn what_is_shown_parses_back() {
        let config =
            parse("vmm = 'qemu'\nauto_stop_stale_after = '90m'\n[vm_defaults]\nmemory = 1536\n")
                .unwrap();
        assert_eq!(parse(&toml::to_string(&config).unwrap()), Ok(config));
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let messages: Vec<_> = [
            "\nvm = 'qemu'",
            "log_levle = 'info'",
            "something_else_entirely = 1",
            "[vm_defaults]\nmemmory = 1",
            "[vm_defaults]\nmemory = 'lots'",
            "vmm = 'xen'",
            "cidr = '8.8.8.0/24'",
            "cidr = '10.0.0.1/24'",
            "log_level = ",
            "[vm_defaults]\nvcpu = 'two'",
            "[vm_defaults]\nvcpu = -1",
            "qemu_bin = 5",
            "vm_defaults = 3",
            "debian_mirror = true",
            "[vm_defaults]\nvcpu = 1.5",
            "vmm = 5",
            "[vm_defaults]\nmemory = true",
            "auto_stop_stale_after = '30'",
            "auto_stop_stale_after = '1.5h'",
            "auto_stop_stale_after = '0s'",
            "stats_poll_interval = '367d'",
            "stats_poll_interval = 'ä'",
            "\ncatalog_url = 'http://example.org/c.toml'",
            "catalog_url = 'example.org'",
            "vmm = 'qemu'\ncatalog_url = 'https://example.org/c.toml'",
            "catalog_key = 'RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3'",
            "catalog_url = 'https://example.org/c.toml'\ncatalog_key = 'RWQ'",
        ]
        .iter()
        .map(|text| parse(text).unwrap_err())
        .collect();
        insta::assert_debug_snapshot!(messages);
    }

    proptest! {
        #[test]
        fn a_period_is_shown_as_it_is_written(seconds in 1..=PERIOD_MAX_S) {
            let period = Period::from_secs(seconds);
            prop_assert_eq!(Period::try_from(String::from(period)), Ok(period));
        }

        #[test]
        fn no_text_is_a_period_that_panics(text in "\\PC{0,8}") {
            let _ = Period::try_from(text);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,80}") {
            let _ = parse(&text);
        }
    }
}
