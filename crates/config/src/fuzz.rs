//! The body of the fuzz target `config` in `fuzz/`, which the test below feeds with less.

use std::path::Path;

use banger_proto::size::ByteSize;

use crate::Config;
use crate::defaults::{HostResources, resolve};
use crate::judge::judge;

/// Any bytes as a config file: it is understood, judged, and written the same way again, or
/// refused with words.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let path = Path::new("config.toml");
    let config = match Config::parse(path, text) {
        Ok(config) => config,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let host = HostResources {
        cpus: 4,
        memory: ByteSize::from_mib(8 << 10),
    };
    for error in judge(path, text, &config, host) {
        assert!(!error.to_string().is_empty());
    }
    let _ = resolve(&config.vm_defaults, host);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_comes_is_understood_or_refused(
            key in "[a-z_]{1,20}",
            value in "[0-9a-zA-Z\"\\[\\]., /~-]{0,40}",
        ) {
            config(format!("{key} = {value}\n").as_bytes());
            config(format!("[vm_defaults]\n{key} = {value}\n").as_bytes());
            config(format!("log_level = \"info\"\ncidr = {value}\n").as_bytes());
        }
    }
}
