//! Reading that ends when nobody wants what comes of it any more.

use std::io::{self, Read};

use tokio_util::sync::CancellationToken;

/// What is read as long as it is not called off.
pub(super) struct Wanted<'a, R> {
    stream: R,
    cancel: &'a CancellationToken,
}

/// It was called off.
#[derive(Debug, thiserror::Error)]
#[error("it was called off")]
struct CalledOff;

impl<'a, R> Wanted<'a, R> {
    pub(super) fn new(stream: R, cancel: &'a CancellationToken) -> Self {
        Self { stream, cancel }
    }
}

impl<R: Read> Read for Wanted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.cancel.is_cancelled() {
            true => Err(io::Error::other(CalledOff)),
            false => self.stream.read(buffer),
        }
    }
}

/// Whether the reading ended because it was called off.
pub(super) fn is_called_off(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<CalledOff>())
}
