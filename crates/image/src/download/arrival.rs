//! How much of a file has come and was hashed, for one who reads it meanwhile.
//!
//! The reader of an [`Arrival`] gets only bytes that are on the disk and went into the hash
//! that is compared at the end. What it makes of them counts only when the file turned out to
//! be whole. If the bytes have to be fetched anew, the reader fails with [`StartedAnew`], and
//! whoever uses it begins anew too.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The end that the file's bytes are told of. When it is dropped before the file is whole, its
/// readers fail.
#[derive(Debug, Default)]
pub(crate) struct Arrival {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    /// Bytes that can be read.
    length: u64,
    /// How often it was begun.
    round: u32,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Whole,
    BrokenOff,
}

/// What was read so far turned out to be wrong.
#[derive(Debug, thiserror::Error)]
#[error("what was there of the file is not what it should be, and is fetched anew")]
pub(crate) struct StartedAnew;

/// The file will never be whole.
#[derive(Debug, thiserror::Error)]
#[error("the file does not come")]
pub(crate) struct BrokenOff;

impl Arrival {
    /// Reads the file from its beginning. Blocks until there is something.
    pub(crate) fn reader(&self) -> Arriving {
        Arriving {
            shared: Arc::clone(&self.shared),
            round: None,
            at: 0,
        }
    }

    /// The file is this one, and nothing of it can be believed yet.
    pub(super) fn begin(&self, file: Arc<File>) {
        self.change(|state| {
            state.file = Some(file);
            state.length = 0;
            state.round += 1;
        });
    }

    /// So much of the file is on the disk and hashed.
    pub(super) fn grown(&self, length: u64) {
        self.change(|state| state.length = length);
    }

    /// The file is whole and has its hash.
    pub(super) fn whole(&self) {
        self.change(|state| state.end = Some(End::Whole));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.shared));
        self.shared.changed.notify_all();
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.change(|state| {
            state.end.get_or_insert(End::BrokenOff);
        });
    }
}

/// Reads a file while it comes.
#[derive(Debug)]
pub(crate) struct Arriving {
    shared: Arc<Shared>,
    /// The round that was read from.
    round: Option<u32>,
    at: u64,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = lock(&self.shared);
        let (file, length) = loop {
            if self.round.is_some_and(|round| round != state.round) {
                return Err(io::Error::other(StartedAnew));
            }
            if let Some(file) = &state.file
                && state.length > self.at
            {
                break (Arc::clone(file), state.length);
            }
            match state.end {
                Some(End::Whole) => return Ok(0),
                Some(End::BrokenOff) => return Err(io::Error::other(BrokenOff)),
                None => {}
            }
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        self.round = Some(state.round);
        drop(state);
        let there = usize::try_from(length - self.at).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(there);
        let count = file.read_at(&mut buffer[..wanted], self.at)?;
        if count == 0 && wanted > 0 {
            // It was cut meanwhile; its round is over.
            return Err(io::Error::other(StartedAnew));
        }
        self.at += count as u64;
        Ok(count)
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(content: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    #[test]
    fn a_reader_gets_the_bytes_as_they_come_and_no_others() {
        let arrival = Arrival::default();
        let mut reader = arrival.reader();
        arrival.begin(file(b"all of it, and more"));
        arrival.grown(4);
        let mut buffer = [0; 100];
        assert_eq!(reader.read(&mut buffer).unwrap(), 4);
        let rest = std::thread::spawn(move || {
            let mut rest = String::new();
            reader.read_to_string(&mut rest).map(|_| rest)
        });
        arrival.grown(9);
        arrival.whole();
        drop(arrival);
        assert_eq!(rest.join().unwrap().unwrap(), "of it");
    }

    #[test]
    fn a_reader_learns_that_what_it_read_was_wrong() {
        let arrival = Arrival::default();
        let (mut early, mut late) = (arrival.reader(), arrival.reader());
        arrival.begin(file(b"wrong"));
        arrival.grown(5);
        early.read_exact(&mut [0; 2]).unwrap();
        arrival.begin(file(b"right"));
        arrival.grown(5);
        arrival.whole();
        let error = early.read(&mut [0; 2]).unwrap_err();
        assert!(error.get_ref().unwrap().is::<StartedAnew>());
        let mut content = String::new();
        late.read_to_string(&mut content).unwrap();
        assert_eq!(content, "right");
    }

    #[test]
    fn a_reader_does_not_wait_for_what_will_never_come() {
        let arrival = Arrival::default();
        let mut reader = arrival.reader();
        let waiting = std::thread::spawn(move || reader.read(&mut [0; 2]));
        drop(arrival);
        let error = waiting.join().unwrap().unwrap_err();
        assert!(error.get_ref().unwrap().is::<BrokenOff>());
    }
}
