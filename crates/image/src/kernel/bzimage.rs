//! The kernel proper inside a bzImage: `vmlinux`, an ELF file.
//!
//! The setup header says where the compressed payload is (`Documentation/arch/x86/boot.rst`,
//! "payload_offset", protocol 2.08); its first bytes say how it is compressed.

use std::io::{self, Read};

const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// No kernel is larger; a decompression bomb would be.
const LARGEST: u64 = 512 << 20;

/// Why no `vmlinux` could be extracted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BzImageError {
    /// It is no bzImage, or one from before 2007.
    #[error("it is not a bzImage with a payload")]
    NotABzImage,
    /// The payload lies outside of the file.
    #[error("its payload lies outside of the file")]
    Truncated,
    /// The payload's first bytes are of no compression that is known.
    #[error("its payload is compressed in an unknown way (it begins with {0:02x?})")]
    UnknownCompression([u8; 4]),
    /// The payload is damaged.
    #[error("its payload cannot be decompressed")]
    Decompress(#[source] io::Error),
    /// What came out is not a kernel.
    #[error("its payload is not an ELF file")]
    NotElf,
}

/// Extracts `vmlinux`.
pub(crate) fn extract(image: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let payload = payload(image)?;
    let vmlinux = decompress(payload)?;
    match vmlinux.starts_with(b"\x7fELF") {
        true => Ok(vmlinux),
        false => Err(BzImageError::NotElf),
    }
}

fn payload(image: &[u8]) -> Result<&[u8], BzImageError> {
    let is_bzimage = image.get(BOOT_FLAG..BOOT_FLAG + 2) == Some(&[0x55, 0xaa])
        && image.get(HEADER_MAGIC..HEADER_MAGIC + 4) == Some(b"HdrS")
        && read32(image, VERSION).is_some_and(|version| version & 0xffff >= 0x0208);
    if !is_bzimage {
        return Err(BzImageError::NotABzImage);
    }
    let (Some(offset), Some(length)) =
        (read32(image, PAYLOAD_OFFSET), read32(image, PAYLOAD_LENGTH))
    else {
        return Err(BzImageError::Truncated);
    };
    // 0 means 4, for old boot loaders' sake.
    let sectors = match image[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * SECTOR + offset as usize;
    image
        .get(start..)
        .and_then(|rest| rest.get(..length as usize))
        .filter(|payload| payload.len() >= 8)
        .ok_or(BzImageError::Truncated)
}

/// The build appends the decompressed length, 4 bytes, to most formats; decoders of formats
/// that know their end ignore it, for the others it is cut off.
fn decompress(payload: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let mut vmlinux = Vec::new();
    let magic = [payload[0], payload[1], payload[2], payload[3]];
    let result = match magic {
        [0x28, 0xb5, 0x2f, 0xfd] => zstd::stream::read::Decoder::new(payload).and_then(|decoder| {
            decoder
                .single_frame()
                .take(LARGEST)
                .read_to_end(&mut vmlinux)
        }),
        [0x1f, 0x8b, ..] => flate2::read::GzDecoder::new(payload)
            .take(LARGEST)
            .read_to_end(&mut vmlinux),
        [0xfd, b'7', b'z', b'X'] => liblzma::read::XzDecoder::new(payload)
            .take(LARGEST)
            .read_to_end(&mut vmlinux),
        [0x02, 0x21, 0x4c, 0x18] => return decompress_lz4(&payload[..payload.len() - 4]),
        _ => return Err(BzImageError::UnknownCompression(magic)),
    };
    result.map(|_| vmlinux).map_err(BzImageError::Decompress)
}

/// The legacy frame of `lz4 -l`: a magic number, then blocks of up to 8 MiB, each with its
/// compressed length before it (`lz4_Frame_format.md`, "Legacy frame").
fn decompress_lz4(payload: &[u8]) -> Result<Vec<u8>, BzImageError> {
    const BLOCK: usize = 8 << 20;
    let damaged = |text: &str| {
        BzImageError::Decompress(io::Error::new(io::ErrorKind::InvalidData, text.to_owned()))
    };
    let mut vmlinux = Vec::new();
    let mut rest = &payload[4..];
    while let Some((length, blocks)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = blocks
            .get(..length)
            .ok_or_else(|| damaged("a block ends early"))?;
        let plain = lz4_flex::block::decompress(block, BLOCK)
            .map_err(|error| damaged(&error.to_string()))?;
        vmlinux.extend_from_slice(&plain);
        if vmlinux.len() as u64 > LARGEST {
            return Err(damaged("it is too large for a kernel"));
        }
        rest = &blocks[length..];
    }
    Ok(vmlinux)
}

fn read32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A bzImage with two sectors of setup and that payload.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR];
        image[SETUP_SECTORS] = 1;
        image[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20fu16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&512u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(b"what follows the payload");
        image
    }

    fn kernel() -> Vec<u8> {
        let mut kernel = b"\x7fELF".to_vec();
        kernel.extend((0..100_000u32).flat_map(|n| (n % 251).to_le_bytes()));
        kernel
    }

    fn with_length(mut compressed: Vec<u8>) -> Vec<u8> {
        compressed.extend(u32::try_from(kernel().len()).unwrap().to_le_bytes());
        compressed
    }

    fn encoded(mut encoder: impl Read) -> Vec<u8> {
        let mut bytes = Vec::new();
        encoder.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn lz4() -> Vec<u8> {
        let block = lz4_flex::block::compress(&kernel());
        let mut bytes = vec![0x02, 0x21, 0x4c, 0x18];
        bytes.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
        bytes.extend(block);
        bytes
    }

    #[test]
    fn every_compression_is_extracted() {
        let kernel = kernel();
        for (name, payload) in [
            (
                "zstd",
                with_length(zstd::encode_all(&kernel[..], 3).unwrap()),
            ),
            (
                "gzip",
                encoded(flate2::read::GzEncoder::new(
                    &kernel[..],
                    flate2::Compression::fast(),
                )),
            ),
            (
                "xz",
                with_length(encoded(liblzma::read::XzEncoder::new(&kernel[..], 1))),
            ),
            ("lz4", with_length(lz4())),
        ] {
            assert_eq!(extract(&image(&payload)).unwrap(), kernel, "{name}");
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(matches!(extract(b"MZ"), Err(BzImageError::NotABzImage)));
        assert!(matches!(
            extract(&image(b"12345678")),
            Err(BzImageError::UnknownCompression(_))
        ));
        let text = zstd::encode_all(&b"hello"[..], 3).unwrap();
        assert!(matches!(extract(&image(&text)), Err(BzImageError::NotElf)));
        let whole = image(&with_length(lz4()));
        assert!(matches!(
            extract(&whole[..whole.len() - 100]),
            Err(BzImageError::Truncated)
        ));
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..200), magic in 0usize..5) {
            let magics: [&[u8]; 5] = [b"", &[0x28, 0xb5, 0x2f, 0xfd], &[0x1f, 0x8b], b"\xfd7zXZ\0", &[2, 0x21, 0x4c, 0x18]];
            let payload = [magics[magic], &payload].concat();
            let _ = extract(&payload);
            let _ = extract(&image(&payload));
        }
    }
}
