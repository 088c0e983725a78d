//! Guest commands of the test daemon: they speak frames, and behave as their names say.

use banger_proto::agent::{ExecRefusal, ExecRefused, ExecRequest, ExecStarted};
use banger_proto::exit::ExitStatus;
use banger_proto::frame::Frame;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};

struct Link<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    buffer: BytesMut,
}

impl<S: AsyncRead + AsyncWrite> Link<S> {
    /// The client's next frame; `None` when it has gone.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if self.reader.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// `None` when the client has gone.
    async fn send(&mut self, frame: Frame) -> Option<()> {
        self.writer.write_all(&frame.to_bytes()).await.ok()
    }

    async fn say(&mut self, text: String) -> Option<()> {
        self.send(Frame::Stdout(text.into())).await
    }
}

/// Serves one exec stream. The result is what the daemon's test may want to know: how the
/// client behaved.
pub async fn serve<S: AsyncRead + AsyncWrite>(stream: S) -> String {
    let (reader, writer) = split(stream);
    let mut link = Link {
        reader,
        writer,
        buffer: BytesMut::new(),
    };
    let Some(Frame::Start(request)) = link.next().await else {
        return "no start frame".into();
    };
    match run(&mut link, &request).await {
        Some(status) => {
            let _ = link.send(Frame::Exit(status)).await;
            "exited".into()
        }
        None => "client gone".into(),
    }
}

async fn run<S: AsyncRead + AsyncWrite>(
    link: &mut Link<S>,
    request: &ExecRequest,
) -> Option<ExitStatus> {
    let words: Vec<&str> = request.command.iter().map(String::as_str).collect();
    let refusal = match words[..] {
        ["missing"] => Some(ExecRefusal::NotFound),
        ["not-executable"] => Some(ExecRefusal::NotExecutable),
        ["nowhere"] => Some(ExecRefusal::Unusable),
        _ => None,
    };
    if let Some(refusal) = refusal {
        let message = format!("`{}` is refused", words[0]);
        link.send(Frame::Refused(ExecRefused { refusal, message }))
            .await?;
        return None;
    }
    link.send(Frame::Started(ExecStarted {
        pid: 7,
        input_window: 0,
    }))
    .await?;
    match words[..] {
        ["exit", code] => Some(ExitStatus::Code(code.parse().unwrap())),
        ["killed-by", signal] => Some(ExitStatus::Signal(signal.parse().unwrap())),
        ["cat"] => cat(link).await,
        ["both"] => {
            link.send(Frame::Stdout(Bytes::from_static(b"out\n")))
                .await?;
            link.send(Frame::Stderr(Bytes::from_static(b"err\n")))
                .await?;
            Some(ExitStatus::Code(0))
        }
        ["request"] => {
            link.say(serde_json::to_string(request).unwrap()).await?;
            Some(ExitStatus::Code(0))
        }
        ["yes"] => yes(link).await,
        ["sleep"] => sleep(link, &[]).await,
        ["stubborn"] => sleep(link, &[2, 3, 15]).await,
        ["vanish"] => {
            link.say("half".into()).await?;
            None
        }
        // An empty command is the login shell.
        ["tty"] | [] => tty(link).await,
        _ => panic!("no guest command {words:?}"),
    }
}

async fn cat<S: AsyncRead + AsyncWrite>(link: &mut Link<S>) -> Option<ExitStatus> {
    loop {
        match link.next().await? {
            Frame::Stdin(bytes) if bytes.is_empty() => return Some(ExitStatus::Code(0)),
            Frame::Stdin(bytes) => link.send(Frame::Stdout(bytes)).await?,
            Frame::Signal(signal) => return Some(ExitStatus::Signal(signal)),
            _ => {}
        }
    }
}

/// Writes until SIGPIPE.
async fn yes<S: AsyncRead + AsyncWrite>(link: &mut Link<S>) -> Option<ExitStatus> {
    let piece = Frame::Stdout("y\n".repeat(32 << 10).into()).to_bytes();
    loop {
        while let Some(frame) = Frame::decode(&mut link.buffer).unwrap() {
            if let Frame::Signal(signal) = frame {
                return Some(ExitStatus::Signal(signal));
            }
        }
        // What is begun is written whole, or the client could not tell frames apart.
        let mut writing = std::pin::pin!(link.writer.write_all(&piece));
        loop {
            tokio::select! {
                read = link.reader.read_buf(&mut link.buffer) => if read.unwrap_or(0) == 0 {
                    return None;
                },
                written = &mut writing => break written.ok()?,
            }
        }
    }
}

/// Sleeps until a signal that it does not ignore.
async fn sleep<S: AsyncRead + AsyncWrite>(
    link: &mut Link<S>,
    ignored: &[i32],
) -> Option<ExitStatus> {
    link.say("asleep\n".into()).await?;
    loop {
        match link.next().await? {
            Frame::Signal(signal) if ignored.contains(&signal) => {
                link.say(format!("ignored {signal}\n")).await?;
            }
            Frame::Signal(signal) => return Some(ExitStatus::Signal(signal)),
            _ => {}
        }
    }
}

/// Tells what it sees of the terminal; ends with `q`.
async fn tty<S: AsyncRead + AsyncWrite>(link: &mut Link<S>) -> Option<ExitStatus> {
    link.say("ready\r\n".into()).await?;
    loop {
        match link.next().await? {
            Frame::Stdin(bytes) if bytes.contains(&b'q') => return Some(ExitStatus::Code(5)),
            Frame::Stdin(bytes) => link.say(format!("typed {:02x?}\r\n", &bytes[..])).await?,
            Frame::Resize { columns, rows } => {
                link.say(format!("size {columns}x{rows}\r\n")).await?;
            }
            _ => {}
        }
    }
}
