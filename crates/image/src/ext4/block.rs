//! Where blocks go: handed out one after the other, and written in large pieces.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::BLOCK;

/// Bytes collected before they are written.
const BUFFER: usize = 1 << 20;

/// Hands out blocks in ascending order and writes them.
pub(super) struct Blocks {
    file: File,
    next: u64,
    limit: u64,
    buffer: Vec<u8>,
    /// Block that the buffer's first byte belongs to.
    buffer_at: u64,
    freed: Vec<(u64, u64)>,
}

impl Blocks {
    /// Blocks `first..limit` of `file` are to be handed out.
    pub(super) fn new(file: File, first: u64, limit: u64) -> Self {
        Self {
            file,
            next: first,
            limit,
            buffer: Vec::with_capacity(BUFFER),
            buffer_at: first,
            freed: Vec::new(),
        }
    }

    /// The block that will be handed out next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Ranges (start, count) that were handed out and given back.
    pub(super) fn freed(&self) -> &[(u64, u64)] {
        &self.freed
    }

    /// Hands out one block for each [`BLOCK`] bytes of `data` (the last one is padded with
    /// zeros), writes them, and returns the first.
    pub(super) fn append(&mut self, data: &[u8]) -> io::Result<u64> {
        let start = self.next;
        let count = data.len().div_ceil(BLOCK);
        if start + count as u64 > self.limit {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "more than 1 TiB of data",
            ));
        }
        if self.buffer.len() + count * BLOCK > BUFFER {
            self.flush()?;
        }
        self.buffer.extend_from_slice(data);
        let padding = count * BLOCK - data.len();
        self.buffer.resize(self.buffer.len() + padding, 0);
        self.next += count as u64;
        Ok(start)
    }

    /// Takes `count` blocks from `start` back. They read as zeros from now on.
    pub(super) fn free(&mut self, start: u64, count: u64) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.flush()?;
        // Only saves room on the host: a file system that cannot do it loses nothing.
        let _ = rustix::fs::fallocate(
            &self.file,
            rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
            start * BLOCK as u64,
            count * BLOCK as u64,
        );
        self.freed.push((start, count));
        Ok(())
    }

    /// Writes `data` at a block that was not handed out by [`Blocks::append`].
    pub(super) fn write_at(&mut self, block: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, block * BLOCK as u64)
    }

    /// Writes what is buffered and makes the file `blocks` long.
    pub(super) fn finish(mut self, blocks: u64) -> io::Result<File> {
        self.flush()?;
        self.file.set_len(blocks * BLOCK as u64)?;
        Ok(self.file)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file
            .write_all_at(&self.buffer, self.buffer_at * BLOCK as u64)?;
        self.buffer.clear();
        self.buffer_at = self.next;
        Ok(())
    }
}
