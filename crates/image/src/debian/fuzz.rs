//! What Debian's archives hold, for [`crate::fuzz`].

use std::cmp::Ordering;
use std::io::{self, Read as _};

use super::keyring::Keyring;
use super::policy::Policy;
use super::release::Release;
use super::{archive, control, deb, sources};

/// Reads bytes as each of the things that come from an archive.
pub(crate) fn read(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let now = jiff::Timestamp::UNIX_EPOCH;
    assert!(
        Keyring::debian().verify(&text, now).is_err(),
        "nobody else has the keys"
    );
    let policy = Policy {
        check_date: true,
        check_valid_until: true,
    };
    if let Ok(release) = Release::of_signed(&text, "bookworm", policy, now) {
        let _ = release.file("main/binary-amd64/Packages.xz");
    }
    let paragraphs = control::paragraphs(&text);
    for paragraph in &paragraphs {
        if let Some(package) = archive::parse_package(paragraph) {
            assert!(!package.filename.starts_with('/'));
            assert!(!package.filename.split('/').any(|part| part == ".."));
        }
    }
    let _ = sources::parse_list(&text);
    let _ = sources::parse_deb822(&text);
    let mut versions = text.split_whitespace();
    if let (Some(one), Some(other)) = (versions.next(), versions.next()) {
        let order = control::compare_versions(one, other);
        assert_eq!(control::compare_versions(other, one), order.reverse());
        assert_eq!(control::compare_versions(one, one), Ordering::Equal);
    }
    let _ = deb::with_data_of(bytes, |stream| {
        io::copy(&mut stream.take(1 << 20), &mut io::sink())
    });
}
