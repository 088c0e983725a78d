//! A layer on its way from its compressed file into the file system.
//!
//! One thread decompresses and hashes, another takes the tar stream apart and writes. Between
//! them are a few pieces, so that memory does not grow with the layer.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use banger_proto::reference::Digest;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::merge::{Merge, MergeError};
use super::wanted::Wanted;

/// Bytes that the threads hand to each other at a time, and how often before one waits.
const PIECE: usize = 256 << 10;
const PIECES: usize = 8;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The first bytes of a frame that zstd skips are `5?2a4d18`.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// Why a layer could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    /// Its file could not be read or decompressed.
    #[error("could not decompress it")]
    Unpack(#[source] io::Error),
    /// It is far larger than it looked.
    #[error("it has more than {} MiB when decompressed", limit >> 20)]
    Expands {
        /// What is left for it.
        limit: u64,
    },
    /// It is not what the config says.
    #[error("it has the hash {found} when decompressed, and the image's config says {wanted}")]
    DiffId {
        /// What it has.
        found: Digest,
        /// What it should have.
        wanted: Digest,
    },
    /// It cannot be laid over the others.
    #[error(transparent)]
    Merge(#[from] MergeError),
}

/// Lays the layer whose file is `compressed` into `merge`. At most `limit` bytes may come out of
/// it; returns how many did. Ends when it is called off, however much comes out of little.
pub(crate) fn lay(
    compressed: impl Read + Send,
    wanted: &Digest,
    limit: u64,
    merge: &mut Merge,
    cancel: &CancellationToken,
) -> Result<u64, LayerError> {
    let (pieces, stream) = sync_channel(PIECES);
    let (unpacked, laid) = std::thread::scope(|scope| {
        let unpacking = scope.spawn(move || unpack(compressed, limit, &pieces, cancel));
        let mut stream = Stream {
            pieces: stream,
            piece: Vec::new(),
            at: 0,
        };
        let laid = merge.lay(&mut stream);
        // Whoever still unpacks need not go on.
        drop(stream);
        let unpacked = unpacking
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (unpacked, laid)
    });
    let (hash, length) = match (unpacked, laid) {
        // If both failed, the stream ended because of it.
        (Err(error), _) => return Err(error),
        (_, Err(error)) => return Err(error.into()),
        (Ok(unpacked), Ok(())) => unpacked,
    };
    let found = Digest::of(hash);
    match found == *wanted {
        true => Ok(length),
        false => Err(LayerError::DiffId {
            found,
            wanted: wanted.clone(),
        }),
    }
}

/// A piece, or that there will be no more because of an error.
type Piece = Result<Vec<u8>, ()>;

/// Decompresses into `pieces`; returns the hash and the length of what came out.
fn unpack(
    compressed: impl Read,
    limit: u64,
    pieces: &SyncSender<Piece>,
    cancel: &CancellationToken,
) -> Result<([u8; 32], u64), LayerError> {
    let outcome = unpack_all(compressed, limit, pieces, cancel);
    if outcome.is_err() {
        // The other end may have gone, and knows why.
        let _ = pieces.send(Err(()));
    }
    outcome
}

fn unpack_all(
    compressed: impl Read,
    limit: u64,
    pieces: &SyncSender<Piece>,
    cancel: &CancellationToken,
) -> Result<([u8; 32], u64), LayerError> {
    let stream = decompressed(compressed).map_err(LayerError::Unpack)?;
    let mut stream = Wanted::new(stream, cancel);
    let mut hasher = Sha256::new();
    let mut length = 0;
    let mut is_wanted = true;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let read = stream
            .by_ref()
            .take(PIECE as u64)
            .read_to_end(&mut piece)
            .map_err(LayerError::Unpack)?;
        if read == 0 {
            return Ok((hasher.finalize().into(), length));
        }
        length += read as u64;
        if length > limit {
            return Err(LayerError::Expands { limit });
        }
        hasher.update(&piece);
        is_wanted = is_wanted && pieces.send(Ok(piece)).is_ok();
        if !is_wanted {
            // The layer was refused: its hash is of no interest.
            return Ok(([0; 32], length));
        }
    }
}

/// The tar stream, whatever it is compressed with: its first bytes tell, as Docker has it.
pub(crate) fn decompressed<'a>(compressed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut compressed = BufReader::with_capacity(PIECE, compressed);
    let mut start = Vec::with_capacity(4);
    compressed.by_ref().take(4).read_to_end(&mut start)?;
    let is_gzip = start.starts_with(&GZIP);
    let is_zstd = start == ZSTD
        || (start.len() == 4 && start[0] & 0xf0 == 0x50 && start[1..] == ZSTD_SKIPPABLE);
    let whole = io::Cursor::new(start).chain(compressed);
    Ok(match (is_gzip, is_zstd) {
        (true, _) => {
            let whole = BufReader::with_capacity(PIECE, whole);
            Box::new(flate2::bufread::MultiGzDecoder::new(whole))
        }
        (_, true) => Box::new(zstd::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

/// The pieces as one stream.
struct Stream {
    pieces: Receiver<Piece>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.pieces.recv() {
                Ok(Ok(piece)) => (self.piece, self.at) = (piece, 0),
                Ok(Err(())) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..][..count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::Writer;
    use crate::oci::wanted::is_called_off;
    use crate::tarball::TarError;
    use std::io::Write;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(3_000_000);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let content = io::repeat(b'x').take(3_000_000);
        builder.append_data(&mut header, "file", content).unwrap();
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn digest(bytes: &[u8]) -> Digest {
        Digest::of(Sha256::digest(bytes).into())
    }

    fn lay_it(compressed: &[u8], wanted: &Digest, limit: u64) -> Result<u64, LayerError> {
        let file = tempfile::tempfile().unwrap();
        let mut merge = Merge::new(Writer::new(file, [1; 16]), u64::MAX);
        lay(
            compressed,
            wanted,
            limit,
            &mut merge,
            &CancellationToken::new(),
        )
    }

    #[test]
    fn every_compression_is_known_by_its_first_bytes() {
        let plain = archive();
        let wanted = digest(&plain);
        let length = plain.len() as u64;
        // Two members, and two frames with one to be skipped before them, are one stream.
        let (start, end) = plain.split_at(1_000_000);
        let gzips = [gzip(start), gzip(end)].concat();
        let mut zstds = vec![0x55, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
        for part in [start, end] {
            zstds.extend(zstd::encode_all(part, 1).unwrap());
        }
        for compressed in [plain, gzips, zstds] {
            assert_eq!(lay_it(&compressed, &wanted, length).unwrap(), length);
        }
    }

    #[test]
    fn what_is_not_what_it_should_be_is_refused() {
        let plain = archive();
        let wanted = digest(&plain);
        let gzipped = gzip(&plain);
        let cut = lay_it(&gzipped[..gzipped.len() / 2], &wanted, u64::MAX);
        assert!(matches!(cut, Err(LayerError::Unpack(_))), "{cut:?}");
        let other = lay_it(&plain, &digest(b"other"), u64::MAX);
        assert!(matches!(other, Err(LayerError::DiffId { .. })), "{other:?}");
        let rubbish = lay_it(&[b'x'; 5000], &wanted, u64::MAX);
        assert!(
            matches!(
                rubbish,
                Err(LayerError::Merge(MergeError::Tar(TarError::Header)))
            ),
            "{rubbish:?}"
        );
    }

    #[test]
    fn what_is_called_off_ends_however_much_is_to_come() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let file = tempfile::tempfile().unwrap();
        let mut merge = Merge::new(Writer::new(file, [1; 16]), u64::MAX);
        let endless = io::repeat(0);
        let outcome = lay(endless, &digest(b""), u64::MAX, &mut merge, &cancel);
        assert!(
            matches!(&outcome, Err(LayerError::Unpack(error)) if is_called_off(error)),
            "{outcome:?}"
        );
    }

    #[test]
    fn a_bomb_is_let_go_of_when_it_has_grown_too_large() {
        let bomb = gzip(&archive());
        assert!(bomb.len() < 100_000);
        let outcome = lay_it(&bomb, &digest(b""), 1 << 20);
        assert!(
            matches!(outcome, Err(LayerError::Expands { limit: 0x10_0000 })),
            "{outcome:?}"
        );
    }
}
