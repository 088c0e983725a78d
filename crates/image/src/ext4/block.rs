//! Where blocks go: handed out one after the other, and written in large pieces.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::BLOCK;
use crate::disk::Room;

/// Bytes collected before they are written.
const BUFFER: usize = 1 << 20;

/// Hands out blocks in ascending order and writes them.
pub(super) struct Blocks {
    file: File,
    first: u64,
    next: u64,
    limit: u64,
    buffer: Vec<u8>,
    /// Block that the buffer's first byte belongs to.
    buffer_at: u64,
    /// Runs that were handed out and given back: start and count, none next to another. Between
    /// two of them is something that is kept, so that there are never more than files.
    freed: BTreeMap<u64, u64>,
    /// How many blocks these are.
    given_back: u64,
    room: Room,
}

impl Blocks {
    /// Blocks `first..limit` of `file` are to be handed out.
    pub(super) fn new(file: File, first: u64, limit: u64) -> Self {
        Self {
            file,
            first,
            next: first,
            limit,
            buffer: Vec::with_capacity(BUFFER),
            buffer_at: first,
            freed: BTreeMap::new(),
            given_back: 0,
            room: Room::default(),
        }
    }

    /// The block that will be handed out next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// How many were handed out and not given back.
    pub(super) fn kept(&self) -> u64 {
        self.next - self.first - self.given_back
    }

    /// Ranges (start, count) that were handed out and given back.
    pub(super) fn freed(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.freed.iter().map(|(start, count)| (*start, *count))
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
        self.given_back += count;
        self.remember_freed(start, count);
        Ok(())
    }

    /// Adds a run to those that were given back, as one with its neighbours.
    fn remember_freed(&mut self, mut start: u64, mut count: u64) {
        let before = self.freed.range(..start).next_back();
        if let Some((before, length)) = before.map(|(before, length)| (*before, *length))
            && before + length == start
        {
            (start, count) = (before, length + count);
        }
        count += self.freed.remove(&(start + count)).unwrap_or(0);
        self.freed.insert(start, count);
    }

    /// Writes `data` at a block that was not handed out by [`Blocks::append`].
    pub(super) fn write_at(&mut self, block: u64, data: &[u8]) -> io::Result<()> {
        self.look_for_room(data.len())?;
        self.file.write_all_at(data, block * BLOCK as u64)
    }

    /// Writes what is buffered and makes the file `blocks` long.
    pub(super) fn finish(mut self, blocks: u64) -> io::Result<File> {
        self.flush()?;
        self.file.set_len(blocks * BLOCK as u64)?;
        Ok(self.file)
    }

    fn look_for_room(&mut self, bytes: usize) -> io::Result<()> {
        let looked = self.room.before(&self.file, bytes as u64);
        looked.map_err(io::Error::other)
    }

    /// Writes what is buffered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.look_for_room(self.buffer.len())?;
        self.file
            .write_all_at(&self.buffer, self.buffer_at * BLOCK as u64)?;
        self.buffer.clear();
        self.buffer_at = self.next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_remembered_in_as_few_runs_as_can_be() {
        let mut blocks = Blocks::new(tempfile::tempfile().unwrap(), 0, 100);
        for block in [3, 5, 9, 4, 8, 7, 1] {
            blocks.free(block, 1).unwrap();
        }
        blocks.free(10, 5).unwrap();
        assert_eq!(blocks.freed().collect::<Vec<_>>(), [(1, 1), (3, 3), (7, 8)]);
        blocks.free(2, 1).unwrap();
        blocks.free(6, 1).unwrap();
        assert_eq!(blocks.freed().collect::<Vec<_>>(), [(1, 14)]);
    }
}
