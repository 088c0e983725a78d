//! The byte stream to the agent behind a virtio-serial port.
//!
//! The socket is QEMU's: it stays open when the agent closes its port or dies, and an HTTP/2 on
//! it would wait for ever. QEMU tells of that on its control socket, and this breaks the stream
//! then, as a socket between two processes would.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::{AgentStream, Signs};

/// A stream that ends with the agent at its other end.
pub(super) struct Link {
    stream: UnixStream,
    /// Ready when the agent has left; `None` from then on.
    left: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Why a link broke.
#[derive(Debug, thiserror::Error)]
#[error("the guest's agent has ended")]
struct AgentLeft;

impl Link {
    /// A stream that breaks when an agent leaves after this moment.
    pub(super) fn new(stream: UnixStream, signs: watch::Receiver<Signs>) -> Self {
        Self {
            stream,
            left: Some(Box::pin(agent_left(signs))),
        }
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(left) = &mut self.left {
            match left.as_mut().poll(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(()) => self.left = None,
            }
        }
        Err(io::Error::new(io::ErrorKind::ConnectionReset, AgentLeft))
    }
}

/// Resolves when one more agent has left than now.
fn agent_left(mut signs: watch::Receiver<Signs>) -> impl Future<Output = ()> {
    let now = signs.borrow().agent_left;
    async move {
        let has_left = |signs: &Signs| signs.agent_left != now;
        let nobody_tells = signs.wait_for(has_left).await.is_err();
        if nobody_tells {
            // Nobody tells any more: then the socket alone does.
            std::future::pending().await
        }
    }
}

impl AgentStream for Link {
    fn all_taken(&self) -> io::Result<bool> {
        self.stream.all_taken()
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // What has come of it before it left is read first.
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => Poll::Ready(Ok(())),
            Poll::Pending => match self.poll_left(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
            ended => ended,
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // A reader waits on every link, and is woken by the leaving; this only looks.
        if self.left.is_none() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                AgentLeft,
            )));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_link_breaks_when_its_agent_leaves_and_not_before() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let tell = watch::Sender::new(Signs {
            agent_left: 3,
            ..Signs::default()
        });
        let mut link = Link::new(near, tell.subscribe());
        tell.send_modify(|signs| signs.agent_came += 1);
        far.write_all(b"last word").await.unwrap();
        link.stream.readable().await.unwrap();
        tell.send_modify(|signs| signs.agent_left += 1);
        let mut word = [0; 9];
        link.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"last word");
        let broken = link.read_u8().await.unwrap_err();
        insta::assert_snapshot!(broken, @"the guest's agent has ended");
        assert!(link.write_all(b"x").await.is_err());
        // The next one begins anew, over the same port.
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut next = Link::new(near, tell.subscribe());
        far.write_all(b"x").await.unwrap();
        assert_eq!(next.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken_by_the_leaving() {
        let (near, _far) = UnixStream::pair().unwrap();
        let tell = watch::Sender::new(Signs::default());
        let mut link = Link::new(near, tell.subscribe());
        let waiting = tokio::spawn(async move { link.read_u8().await });
        tokio::task::yield_now().await;
        tell.send_modify(|signs| signs.agent_left += 1);
        let broken = waiting.await.unwrap().unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_link_without_anybody_who_tells_is_a_socket() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut link = Link::new(near, watch::channel(Signs::default()).1);
        far.write_all(b"x").await.unwrap();
        assert_eq!(link.read_u8().await.unwrap(), b'x');
        drop(far);
        assert_eq!(link.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
