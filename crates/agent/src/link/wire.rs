//! How bytes go over a descriptor that may be a socket or a virtio-serial port.
//!
//! A port never ends: while no host is connected a read returns 0, and the port reports
//! `EPOLLHUP` until one connects. Tokio takes a hang-up for final, so the descriptor is
//! watched by two epoll instances of its own, one per direction and edge-triggered, and
//! tokio watches those: they are readable exactly when something has happened.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use banger_proto::hello::HELLO_LEN;
use bytes::{Buf, Bytes};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::time::Timespec;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::watch::watch;

/// What a read of 0 bytes means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer is gone for good: a socket.
    Final,
    /// The host is not connected at the moment: a virtio-serial port.
    UntilReconnect,
}

/// A descriptor to the host that outlives the connections on it.
#[derive(Debug)]
pub struct Wire {
    descriptor: OwnedFd,
    input: AsyncFd<OwnedFd>,
    output: AsyncFd<OwnedFd>,
    end: End,
    memory: Mutex<Memory>,
}

/// Bytes that were read but belong to whoever reads next.
#[derive(Debug, Default)]
struct Memory {
    unread: Bytes,
    /// The last bytes that were handed out: HTTP/2 may have swallowed a hello with them.
    tail: Vec<u8>,
}

impl Wire {
    /// Takes over a connected socket or an open port.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub fn new(descriptor: OwnedFd, end: End) -> io::Result<Self> {
        let flags = fcntl_getfl(&descriptor)?;
        fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        let watched = |flags| {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            epoll::add(
                &epoll,
                &descriptor,
                EventData::new_u64(0),
                flags | EventFlags::ET,
            )?;
            watch(epoll, Interest::READABLE)
        };
        Ok(Self {
            input: watched(EventFlags::IN | EventFlags::RDHUP)?,
            output: watched(EventFlags::OUT)?,
            descriptor,
            end,
            memory: Mutex::default(),
        })
    }

    /// What a read of 0 bytes means on this wire.
    pub fn end(&self) -> End {
        self.end
    }

    /// Waits until something has happened on the reading side since the last wait.
    pub(super) async fn changed(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| poll_edge(&self.input, cx)).await
    }

    /// Reads what there is, at least one byte unless the peer is away.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        std::future::poll_fn(|cx| self.poll_read(cx, &mut buffer)).await?;
        Ok(buffer.filled().len())
    }

    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let slices = [IoSlice::new(bytes)];
            let written = std::future::poll_fn(|cx| self.poll_write(cx, &slices)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Gives bytes back: the next read returns them first.
    pub(super) fn unread(&self, bytes: Bytes) {
        self.memory().unread = bytes;
    }

    /// The last bytes that a connection took, as far as they could be a hello.
    pub(super) fn take_tail(&self) -> Vec<u8> {
        std::mem::take(&mut self.memory().tail)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut memory = self.memory();
        if !memory.unread.is_empty() {
            let length = memory.unread.len().min(buffer.remaining());
            buffer.put_slice(&memory.unread[..length]);
            memory.unread.advance(length);
            return Poll::Ready(Ok(()));
        }
        loop {
            let before = buffer.filled().len();
            // SAFETY: nothing is written to the buffer but what the kernel reads into it.
            let room = unsafe { buffer.unfilled_mut() };
            match rustix::io::read(&self.descriptor, room) {
                Ok((filled, _)) => {
                    let count = filled.len();
                    // SAFETY: the kernel has filled so many bytes.
                    unsafe { buffer.assume_init(count) };
                    buffer.advance(count);
                    memory.remember(&buffer.filled()[before..]);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready!(poll_edge(&self.input, cx))?,
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            match rustix::io::writev(&self.descriptor, slices) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready!(poll_edge(&self.output, cx))?,
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }
}

impl Memory {
    fn remember(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(HELLO_LEN)..];
        let surplus = (self.tail.len() + kept.len()).saturating_sub(HELLO_LEN);
        self.tail.drain(..surplus);
        self.tail.extend_from_slice(kept);
    }
}

/// Ready when the descriptor behind `epoll` has had an event since the last call.
fn poll_edge(epoll: &AsyncFd<OwnedFd>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    loop {
        let mut guard = ready!(epoll.poll_read_ready(cx))?;
        let mut events = Vec::with_capacity(1);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let count = epoll::wait(
            epoll.get_ref().as_fd(),
            spare_capacity(&mut events),
            Some(&now),
        )?;
        if count > 0 {
            return Poll::Ready(Ok(()));
        }
        guard.clear_ready();
    }
}

/// One connection's use of a [`Wire`].
#[derive(Debug)]
pub struct WireStream(pub Arc<Wire>);

impl AsyncRead for WireStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buffer)
    }
}

impl AsyncWrite for WireStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The wire outlives the connection, so there is nothing to shut.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
