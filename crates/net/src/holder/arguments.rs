//! The holder's command line: how the daemon writes it and the holder reads it.

use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;

use banger_proto::id::{InstanceId, InvalidId};

use super::Place;

const INSTANCE: &str = "--instance";
const BRIDGE: &str = "--bridge";
const RUNTIME_DIR: &str = "--runtime-dir";
const LOG_DIR: &str = "--log-dir";
const OPEN: &str = "--open";
const PROBE: &str = "--probe";

/// What a holder is started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// To see whether the namespaces can be had, and end.
    Probe,
    /// To hold a network.
    Hold(Place),
}

impl Arguments {
    /// The arguments as a command line has them.
    pub(crate) fn render(&self) -> Vec<OsString> {
        match self {
            Self::Probe => vec![PROBE.into()],
            Self::Hold(place) => {
                let (address, prefix) = place.bridge;
                let bridge = format!("{address}/{prefix}");
                let mut words: Vec<OsString> = vec![
                    INSTANCE.into(),
                    place.instance.as_str().into(),
                    BRIDGE.into(),
                    bridge.into(),
                    RUNTIME_DIR.into(),
                    place.runtime_dir.clone().into(),
                    LOG_DIR.into(),
                    place.log_dir.clone().into(),
                ];
                words.extend(place.open.then(|| OPEN.into()));
                words
            }
        }
    }

    /// The arguments that a command line has, or what is wrong with it.
    pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut words = words.into_iter();
        let (mut instance, mut bridge, mut runtime_dir, mut log_dir) = (None, None, None, None);
        let mut open = false;
        while let Some(option) = words.next() {
            if option == PROBE {
                return Ok(Self::Probe);
            }
            if option == OPEN {
                open = true;
                continue;
            }
            let value = words.next();
            let value = value.ok_or_else(|| format!("{} has no value", option.display()))?;
            match option.to_str() {
                Some(INSTANCE) => instance = Some(id(text(&value)?)?),
                Some(BRIDGE) => bridge = Some(address(text(&value)?)?),
                Some(RUNTIME_DIR) => runtime_dir = Some(value.into()),
                Some(LOG_DIR) => log_dir = Some(value.into()),
                _ => return Err(format!("{} is not an option of it", option.display())),
            }
        }
        let missing = |option| format!("{option} is missing");
        Ok(Self::Hold(Place {
            instance: instance.ok_or_else(|| missing(INSTANCE))?,
            bridge: bridge.ok_or_else(|| missing(BRIDGE))?,
            runtime_dir: runtime_dir.ok_or_else(|| missing(RUNTIME_DIR))?,
            log_dir: log_dir.ok_or_else(|| missing(LOG_DIR))?,
            open,
        }))
    }
}

fn text(value: &OsStr) -> Result<&str, String> {
    value
        .to_str()
        .ok_or_else(|| format!("{} is not text", value.display()))
}

fn id(text: &str) -> Result<InstanceId, String> {
    text.parse().map_err(|error: InvalidId| error.to_string())
}

fn address(text: &str) -> Result<(Ipv4Addr, u8), String> {
    let parts = text.split_once('/');
    let parsed = parts.and_then(|(ip, prefix)| Some((ip.parse().ok()?, prefix.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text} is not an address with a prefix"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_the_daemon_writes_the_holder_reads(
            instance in "[0-9a-f]{32}",
            address in any::<[u8; 4]>(),
            prefix in any::<u8>(),
            runtime_dir in "/\\PC{0,30}",
            log_dir in "/\\PC{0,30}",
            open in any::<bool>(),
        ) {
            let place = Place {
                instance: instance.parse().unwrap(),
                bridge: (address.into(), prefix),
                runtime_dir: runtime_dir.into(),
                log_dir: log_dir.into(),
                open,
            };
            let arguments = Arguments::Hold(place);
            prop_assert_eq!(Arguments::parse(arguments.render()), Ok(arguments));
        }

        #[test]
        fn no_command_line_panics(words in proptest::collection::vec("\\PC{0,20}", 0..9)) {
            let _ = Arguments::parse(words.into_iter().map(OsString::from));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let parse =
            |words: &[&str]| Arguments::parse(words.iter().map(OsString::from)).unwrap_err();
        let complaints = [
            parse(&[]),
            parse(&["--instance"]),
            parse(&["--color", "red"]),
            parse(&["--bridge", "172.16.0.1"]),
        ];
        insta::assert_snapshot!(complaints.join("\n"));
    }
}
