//! A command in the guest for the daemon itself: without input, its output handed on as it comes.

use std::io;

use banger_proto::agent::{ExecRefused, ExecRequest};
use banger_proto::exit::ExitStatus;
use banger_proto::frame::Frame;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Guest;

/// How a command came to its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// It ran.
    Exit(ExitStatus),
    /// It could not be started.
    Refused(ExecRefused),
}

/// Runs a command to its end; `output` gets what it prints on either stream. Dropped before, the
/// command is hung up.
///
/// # Errors
/// The link broke, or the agent speaks rubbish.
pub async fn run(
    guest: &Guest,
    request: ExecRequest,
    mut output: impl FnMut(Bytes),
) -> io::Result<Ended> {
    let mut stream = guest.exec();
    let start = Frame::Start(Box::new(request));
    stream.write_all(&start.to_bytes()).await?;
    let mut buffer = BytesMut::new();
    loop {
        while let Some(frame) = Frame::decode(&mut buffer).map_err(io::Error::other)? {
            match frame {
                Frame::Stdout(bytes) | Frame::Stderr(bytes) => output(bytes),
                Frame::Exit(status) => return Ok(Ended::Exit(status)),
                Frame::Refused(refused) => return Ok(Ended::Refused(refused)),
                Frame::Start(_)
                | Frame::Stdin(_)
                | Frame::Resize { .. }
                | Frame::Signal(_)
                | Frame::Started(_)
                | Frame::Taken(_) => {}
            }
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
