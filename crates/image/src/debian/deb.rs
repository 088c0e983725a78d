//! A `.deb`: an `ar` archive that holds a compressed tar archive.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// Why a package cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DebError {
    /// It could not be read.
    #[error("could not read the package")]
    Read(#[source] io::Error),
    /// It holds no `data.tar` in a compression that is known.
    #[error("the package has no data.tar that can be read")]
    NoData,
}

/// Calls `take` with the tar stream of the package's files.
pub(crate) fn with_data<T>(
    path: &Path,
    take: impl FnOnce(&mut dyn Read) -> T,
) -> Result<T, DebError> {
    let file = File::open(path).map_err(DebError::Read)?;
    with_data_of(BufReader::new(file), take)
}

pub(super) fn with_data_of<T>(
    package: impl Read,
    take: impl FnOnce(&mut dyn Read) -> T,
) -> Result<T, DebError> {
    let mut archive = ar::Archive::new(package);
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(DebError::Read)?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        let Some(compression) = name.trim_end_matches('/').strip_prefix("data.tar") else {
            continue;
        };
        let mut stream = decompress(compression, member)
            .ok_or(DebError::NoData)?
            .map_err(DebError::Read)?;
        return Ok(take(&mut *stream));
    }
    Err(DebError::NoData)
}

/// The content of a file that is compressed as its extension says; `None` if it is unknown.
pub(crate) fn decompress<'a>(
    extension: &str,
    stream: impl Read + 'a,
) -> Option<io::Result<Box<dyn Read + 'a>>> {
    Some(Ok(match extension {
        ".xz" => Box::new(liblzma::read::XzDecoder::new(stream)),
        ".gz" => Box::new(flate2::read::GzDecoder::new(stream)),
        ".zst" => match zstd::stream::read::Decoder::new(stream) {
            Ok(decoder) => Box::new(decoder),
            Err(error) => return Some(Err(error)),
        },
        "" => Box::new(stream),
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn package(member: &str, data: &[u8]) -> Vec<u8> {
        let mut builder = ar::Builder::new(Vec::new());
        for (name, data) in [
            ("debian-binary", &b"2.0\n"[..]),
            ("control.tar", b""),
            (member, data),
        ] {
            let header = ar::Header::new(name.as_bytes().to_vec(), data.len() as u64);
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn every_compression_of_debian_is_read() {
        let gz = {
            let mut encoder =
                flate2::read::GzEncoder::new(&b"hello"[..], flate2::Compression::fast());
            let mut bytes = Vec::new();
            encoder.read_to_end(&mut bytes).unwrap();
            bytes
        };
        let zst = zstd::encode_all(&b"hello"[..], 1).unwrap();
        let xz = {
            let mut encoder = liblzma::read::XzEncoder::new(&b"hello"[..], 1);
            let mut bytes = Vec::new();
            encoder.read_to_end(&mut bytes).unwrap();
            bytes
        };
        for (member, data) in [
            ("data.tar", b"hello".to_vec()),
            ("data.tar.gz", gz),
            ("data.tar.zst", zst),
            ("data.tar.xz", xz),
        ] {
            let text = with_data_of(&package(member, &data)[..], |stream| {
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                text
            });
            assert_eq!(text.unwrap(), "hello", "{member}");
        }
    }

    #[test]
    fn a_package_without_data_is_refused() {
        for member in ["data.tar.rar", "other"] {
            let outcome = with_data_of(&package(member, b"x")[..], |_| ());
            assert!(matches!(outcome, Err(DebError::NoData)), "{member}");
        }
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), magic: bool) {
            if magic {
                bytes.splice(0..0, *b"!<arch>\n");
            }
            let _ = with_data_of(&bytes[..], |stream| io::copy(stream, &mut io::sink()));
        }
    }
}
