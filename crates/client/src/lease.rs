//! A lease: VMs that hang on it are deleted when this client goes, however it goes.

use std::io;

use banger_proto::api::LeaseGrant;
use banger_proto::id::LeaseId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::error::ClientError;
use crate::stream::ByteStream;

/// Longest first line of a lease's stream.
const GRANT_MAX: u64 = 4096;

/// A held lease. It ends when this is dropped, or when the process ends in any way.
#[derive(Debug)]
pub struct Lease {
    id: LeaseId,
    stream: BufReader<ByteStream>,
}

impl Lease {
    pub(crate) async fn receive(request: String, stream: ByteStream) -> Result<Self, ClientError> {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        let read = (&mut stream)
            .take(GRANT_MAX)
            .read_until(b'\n', &mut line)
            .await;
        if read.is_err() || line.is_empty() {
            return Err(ClientError::Ended { request });
        }
        let grant: LeaseGrant = serde_json::from_slice(&line)
            .map_err(|source| ClientError::Shape { request, source })?;
        Ok(Self {
            id: grant.lease,
            stream,
        })
    }

    /// What to name in [`banger_proto::api::CreateVm::lease`].
    pub fn id(&self) -> &LeaseId {
        &self.id
    }

    /// Waits until the daemon ends the lease from its side, which it does when it stops.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn ended(&mut self) -> io::Result<()> {
        let mut scratch = [0u8; 256];
        while self.stream.read(&mut scratch).await? > 0 {}
        Ok(())
    }
}
