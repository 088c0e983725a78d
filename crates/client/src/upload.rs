//! The body of a request that comes by and by, and who is to blame when it does not.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Body, Frame};

/// A stream of bytes as the body of a request.
pub(crate) struct Upload {
    source: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// How often the connection has asked for more.
    taken: AtomicU64,
    /// The connection wants more, and the source has none yet.
    for_source: AtomicBool,
}

/// Tells how an upload goes, from outside.
#[derive(Clone, Debug)]
pub(crate) struct Waiting(Arc<Progress>);

impl Upload {
    pub(crate) fn new(source: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self {
            source: Box::pin(source),
            progress: Arc::default(),
        }
    }

    pub(crate) fn waiting(&self) -> Waiting {
        Waiting(Arc::clone(&self.progress))
    }
}

impl Waiting {
    /// Grows whenever the daemon takes something.
    pub(crate) fn taken(&self) -> u64 {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Whether the source is what is waited for.
    pub(crate) fn for_source(&self) -> bool {
        self.0.for_source.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").finish_non_exhaustive()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.progress.taken.fetch_add(1, Ordering::Relaxed);
        self.progress.for_source.store(true, Ordering::Relaxed);
        let piece = ready!(self.source.as_mut().poll_next(context));
        self.progress.for_source.store(false, Ordering::Relaxed);
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }
}
