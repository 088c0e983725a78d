//! What registries and archives send, for [`crate::fuzz`].

use std::fs::File;

use tokio_util::sync::CancellationToken;

use super::archive::Files;
use super::challenge;
use super::document::{Config, Document};
use super::merge::Merge;
use crate::ext4::Writer;

/// Lays tar streams over each other into `disk`, up to the first that is refused.
pub(crate) fn merge<'a>(layers: impl Iterator<Item = &'a [u8]>, disk: File, limit: u64) -> Writer {
    let mut merge = Merge::new(Writer::new(disk, [7; 16]), limit);
    for layer in layers {
        if merge.lay(layer).is_err() {
            break;
        }
    }
    merge.into_parts().0
}

/// Reads bytes as each of the documents, of each type that somebody may say they have.
pub(crate) fn documents(bytes: &[u8]) {
    let (said, json) = match bytes.iter().position(|byte| *byte == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (&b""[..], bytes),
    };
    let said = String::from_utf8_lossy(said);
    let _ = challenge::read([&*said].into_iter());
    for said in [&*said, "", "application/vnd.oci.image.index.v1+json"] {
        match Document::read(json, said) {
            Ok(Document::Index(index)) => drop(index.choose().map(|chosen| chosen.size)),
            Ok(Document::Manifest(manifest)) => {
                let _ = Config::read(json, manifest.layers.len());
            }
            Err(_) => {}
        }
    }
    if let Ok(config) = Config::read(json, 0) {
        for key in config.config.environment().keys() {
            assert!(!key.is_empty() && !key.contains('='));
        }
    }
}

/// Looks for the image in an archive. What is decompressed goes into a temporary file.
pub(crate) fn archive(file: File) {
    let scratch = std::env::temp_dir();
    if let Ok(files) = Files::open(file, &scratch, &CancellationToken::new()) {
        let _ = files.image("fuzz");
    }
}
