//! What a guest tells of its listening sockets while somebody watches.

use std::io;

use banger_proto::agent::Listener;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt as _};

/// Longest line that is read: room for more listeners than an agent tells of.
const LINE_MAX: usize = 1 << 20;

/// Lists of listening TCP sockets, each as it was at some time.
pub struct WatchedPorts {
    bytes: BoxStream<'static, io::Result<Bytes>>,
    line: BytesMut,
    /// Of which no line's end was found.
    searched: usize,
}

impl WatchedPorts {
    pub(super) fn new(bytes: BoxStream<'static, io::Result<Bytes>>) -> Self {
        Self {
            bytes,
            line: BytesMut::new(),
            searched: 0,
        }
    }

    /// The next list; `None` when there will be no more. Cancel-safe.
    ///
    /// # Errors
    /// The stream broke off, or what came is no list.
    pub async fn next(&mut self) -> io::Result<Option<Vec<Listener>>> {
        loop {
            let found = self.line[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n');
            if let Some(end) = found {
                let line = self.line.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            self.searched = self.line.len();
            if self.searched > LINE_MAX {
                let text = format!("a line of more than {LINE_MAX} bytes came");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            match self.bytes.next().await {
                Some(bytes) => self.line.extend_from_slice(&bytes?),
                None => return Ok(None),
            }
        }
    }
}

impl std::fmt::Debug for WatchedPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchedPorts").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::port::Protocol;
    use futures_util::stream;

    fn watched(pieces: Vec<&'static str>) -> WatchedPorts {
        let pieces = pieces.into_iter().map(|piece| Ok(Bytes::from(piece)));
        WatchedPorts::new(stream::iter(pieces).boxed())
    }

    #[tokio::test]
    async fn lists_come_wherever_they_are_cut() {
        let mut watched = watched(vec![
            "[]\n[{\"port\":80,",
            "\"protocol\":\"tcp\",\"address\":\"::\"}]",
            "\n[",
        ]);
        assert_eq!(watched.next().await.unwrap(), Some(Vec::new()));
        let listeners = watched.next().await.unwrap().unwrap();
        assert_eq!(
            (listeners[0].port, listeners[0].protocol),
            (80, Protocol::Tcp)
        );
        assert_eq!(watched.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn rubbish_and_endless_lines_are_errors() {
        assert!(watched(vec!["{\n"]).next().await.is_err());
        let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[b' '; 4096])));
        assert!(WatchedPorts::new(endless.boxed()).next().await.is_err());
    }
}
