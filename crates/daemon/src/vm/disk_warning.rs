//! What to tell of a disk that the host could not read or write.

use banger_engine::DiskError;
use banger_proto::size::ByteSize;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// One warning of a VM: which disk, when, why, and what may be the reason of that.
pub fn words(error: &DiskError, free: Option<ByteSize>, zone: &TimeZone) -> String {
    let DiskError {
        disk,
        access,
        reason,
        at,
    } = error;
    let at = match Timestamp::try_from(*at) {
        Ok(at) => format!(" at {}", at.to_zoned(zone.clone()).strftime("%H:%M:%S")),
        // A clock that far off tells nothing.
        Err(_) => String::new(),
    };
    let free = match free {
        Some(free) => format!("; free space on the host: {free}"),
        None => String::new(),
    };
    let disk = disk.as_str();
    format!("its {disk} disk could not be {access}{at}: {reason}{free}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_engine::DiskAccess;
    use banger_proto::agent::DiskRole;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_warning_says_which_disk_when_and_why() {
        let error = DiskError {
            disk: DiskRole::System,
            access: DiskAccess::Write,
            reason: "No space left on device".to_owned(),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_772_452_801),
        };
        let free = Some(ByteSize::from_bytes(12 << 10));
        insta::assert_snapshot!(words(&error, free, &TimeZone::UTC), @"its system disk could not be written at 12:00:01: No space left on device; free space on the host: 12K");
        let unreadable = DiskError {
            disk: DiskRole::Base,
            access: DiskAccess::Read,
            reason: "Input/output error".to_owned(),
            ..error
        };
        insta::assert_snapshot!(words(&unreadable, None, &TimeZone::UTC), @"its base disk could not be read at 12:00:01: Input/output error");
    }
}
