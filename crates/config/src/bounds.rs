//! The least and the most that a VM may have. The daemon holds every request to them, and
//! `banger config check` the defaults in the config file.

use banger_proto::size::ByteSize;

/// The least memory in which a guest boots.
pub const MEMORY_MIN: ByteSize = ByteSize::from_mib(128);
/// The smallest disk that is worth having.
pub const DISK_MIN: ByteSize = ByteSize::from_mib(64);
/// What ext4 with blocks of 4 KiB can hold without its 64-bit feature.
pub const DISK_MAX: ByteSize = ByteSize::from_gib(16 << 10);
