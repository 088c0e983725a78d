//! QEMU's machine protocol: one JSON object a line (QEMU's docs/interop/qmp-spec.rst).
//!
//! banger gives half a dozen orders and heeds three events, so this is our own and not a library
//! of the whole protocol.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use banger_proto::agent::DiskRole;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot, watch};

use super::argv::AGENT_PORT;
use crate::{ControlError, DiskAccess, DiskError, Signs, socket};

/// Longest line that is read; QEMU's answers to our orders are far shorter.
const LINE_MAX: u64 = 1024 * 1024;

/// What QEMU says.
#[derive(Clone, Debug, PartialEq)]
enum Message {
    /// It is there.
    Greeting,
    /// An order was carried out.
    Return(Value),
    /// An order was not carried out.
    Error(String),
    /// The machine ends; this is why.
    Shutdown(Shutdown),
    /// The guest has opened or closed the agent's port (qapi/char.json, `VSERPORT_CHANGE`).
    AgentPort { open: bool },
    /// A disk's file could not be read or written (qapi/block-core.json, `BLOCK_IO_ERROR`).
    DiskError {
        disk: DiskRole,
        access: DiskAccess,
        reason: String,
    },
    /// Something that we do not heed.
    Other,
}

/// Why QEMU ends the machine: `ShutdownCause` of qapi/run-state.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Shutdown {
    /// The guest switched itself off.
    #[serde(rename = "guest-shutdown")]
    GuestOff,
    /// The guest restarted.
    GuestReset,
    /// The guest panicked.
    GuestPanic,
    /// Anything else, which is this side's doing.
    #[serde(other)]
    Host,
}

/// What a conversation has told of the machine's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastWord {
    /// QEMU did not get to talking: it may have ended for any reason.
    Unheard,
    /// QEMU was talking and has not said that it ends. It says so before every end of its own.
    Silence,
    /// QEMU has said why it ends.
    Said(Shutdown),
}

impl Message {
    /// Reads a line. `None`: it is no message.
    fn parse(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line {
            #[serde(rename = "QMP")]
            greeting: Option<Value>,
            #[serde(rename = "return", default, deserialize_with = "present")]
            answer: Option<Value>,
            error: Option<Refusal>,
            event: Option<String>,
            #[serde(default)]
            data: Value,
        }
        #[derive(Deserialize)]
        struct Refusal {
            desc: String,
        }
        /// An answer may be `null`, which is not the same as none.
        fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
            Value::deserialize(from).map(Some)
        }

        let line: Line = serde_json::from_slice(line).ok()?;
        if let Some(answer) = line.answer {
            return Some(Self::Return(answer));
        }
        if let Some(refusal) = line.error {
            return Some(Self::Error(refusal.desc));
        }
        match line.event.as_deref() {
            Some("SHUTDOWN") => {
                let reason = line.data.get("reason").cloned().unwrap_or_default();
                let cause = serde_json::from_value(reason).unwrap_or(Shutdown::Host);
                Some(Self::Shutdown(cause))
            }
            Some("VSERPORT_CHANGE") => Some(Self::port_change(line.data)),
            Some("BLOCK_IO_ERROR") => Some(Self::disk_error(line.data)),
            Some(_) => Some(Self::Other),
            None => line.greeting.map(|_| Self::Greeting),
        }
    }

    fn port_change(data: Value) -> Self {
        #[derive(Deserialize)]
        struct Change {
            id: String,
            open: bool,
        }
        match serde_json::from_value(data) {
            Ok(Change { id, open }) if id == AGENT_PORT => Self::AgentPort { open },
            _ => Self::Other,
        }
    }

    fn disk_error(data: Value) -> Self {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Failed {
            node_name: DiskRole,
            operation: DiskAccess,
            reason: String,
        }
        match serde_json::from_value(data) {
            Ok(Failed {
                node_name,
                operation,
                reason,
            }) => Self::DiskError {
                disk: node_name,
                access: operation,
                reason,
            },
            Err(_) => Self::Other,
        }
    }
}

/// A conversation with one QEMU.
#[derive(Clone, Debug)]
pub(super) struct Qmp {
    orders: mpsc::Sender<Order>,
    last: watch::Receiver<LastWord>,
}

#[derive(Debug)]
struct Order {
    name: &'static str,
    arguments: Option<Value>,
    answer: oneshot::Sender<Result<Value, String>>,
}

impl Qmp {
    /// Begins a conversation on the socket. QEMU may be busy: orders wait for it.
    /// What QEMU tells unasked goes into `signs`.
    pub(super) async fn connect(path: &Path, signs: watch::Sender<Signs>) -> io::Result<Self> {
        let stream = socket::connect(path).await?;
        let (orders, received) = mpsc::channel(8);
        let (tell, last) = watch::channel(LastWord::Unheard);
        tokio::spawn(converse(stream, received, tell, signs));
        Ok(Self { orders, last })
    }

    /// Gives an order.
    pub(super) async fn order(
        &self,
        name: &'static str,
        arguments: Option<Value>,
        limit: Duration,
    ) -> Result<Value, ControlError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let order = Order {
                name,
                arguments,
                answer,
            };
            self.orders.send(order).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(Some(Ok(value))) => Ok(value),
            Ok(Some(Err(reason))) => Err(ControlError::Refused {
                order: name,
                reason,
            }),
            Ok(None) => Err(ControlError::Ended),
            Err(_) => Err(ControlError::Timeout {
                order: name,
                seconds: limit.as_secs(),
            }),
        }
    }

    /// Whether the conversation has come to its end.
    pub(super) fn is_over(&self) -> bool {
        self.orders.is_closed()
    }

    /// Waits for the conversation's end; returns what was told of the machine's.
    pub(super) async fn last_word(&self) -> LastWord {
        let mut last = self.last.clone();
        while last.changed().await.is_ok() {}
        *last.borrow()
    }
}

/// Carries the conversation until QEMU hangs up or every [`Qmp`] is dropped.
async fn converse(
    stream: UnixStream,
    mut orders: mpsc::Receiver<Order>,
    last: watch::Sender<LastWord>,
    signs: watch::Sender<Signs>,
) {
    let (read, mut write) = stream.into_split();
    let mut lines = Lines::new(read);
    // QEMU answers in the order in which it was asked. `None`: the negotiation, which goes
    // first and which nobody waits for.
    let mut asked: VecDeque<Option<oneshot::Sender<Result<Value, String>>>> = VecDeque::new();
    asked.push_back(None);
    if write
        .write_all(&line_of("qmp_capabilities", None))
        .await
        .is_err()
    {
        return;
    }
    loop {
        tokio::select! {
            // Both branches are cancel-safe.
            order = orders.recv() => {
                let Some(order) = order else { return };
                // An order is short, and QEMU reads until it has it: this does not block for
                // longer than QEMU itself hangs, and the order has its limit.
                if write
                    .write_all(&line_of(order.name, order.arguments))
                    .await
                    .is_err() {
                    return;
                }
                asked.push_back(Some(order.answer));
            }
            line = lines.next() => {
                let line = match line {
                    Ok(Some(line)) => line,
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        // This side breaks it off: what QEMU says from now on is not heard.
                        last.send_replace(LastWord::Unheard);
                        return;
                    }
                    Ok(None) | Err(_) => return,
                };
                let answer = match Message::parse(&line) {
                    Some(Message::Return(value)) => Ok(value),
                    Some(Message::Error(reason)) => Err(reason),
                    Some(Message::Shutdown(cause)) => {
                        last.send_replace(LastWord::Said(cause));
                        continue;
                    }
                    Some(Message::AgentPort { open }) => {
                        signs.send_modify(|signs| match open {
                            true => signs.agent_came += 1,
                            false => signs.agent_left += 1,
                        });
                        continue;
                    }
                    Some(Message::DiskError {
                        disk,
                        access,
                        reason,
                    }) => {
                        let at = SystemTime::now();
                        signs.send_if_modified(|signs| {
                            signs.add(DiskError {
                                disk,
                                access,
                                reason,
                                at,
                            })
                        });
                        continue;
                    }
                    Some(Message::Greeting | Message::Other) => continue,
                    None => {
                        let line = String::from_utf8_lossy(&line);
                        tracing::warn!(%line, "qemu sent a line that is no message");
                        continue;
                    }
                };
                match asked.pop_front() {
                    Some(Some(waiting)) => {
                        // Whoever asked may have given up.
                        let _ = waiting.send(answer);
                    }
                    // Events are sent from the negotiation on.
                    Some(None) if answer.is_ok() => {
                        last.send_replace(LastWord::Silence);
                    }
                    Some(None) | None => {}
                }
            }
        }
    }
}

fn line_of(order: &str, arguments: Option<Value>) -> Vec<u8> {
    let mut line = json!({ "execute": order });
    if let Some(arguments) = arguments {
        line["arguments"] = arguments;
    }
    format!("{line}\n").into_bytes()
}

/// Lines of bounded length. [`Lines::next`] is cancel-safe: what was read of a line stays.
struct Lines {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Lines {
    fn new(read: OwnedReadHalf) -> Self {
        Self {
            reader: BufReader::new(read),
            line: Vec::new(),
        }
    }

    /// The next line; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let room = LINE_MAX.saturating_sub(self.line.len() as u64);
        let mut bounded = (&mut self.reader).take(room);
        bounded.read_until(b'\n', &mut self.line).await?;
        match self.line.last() {
            Some(b'\n') => Ok(Some(std::mem::take(&mut self.line))),
            _ if self.line.len() as u64 >= LINE_MAX => Err(io::ErrorKind::InvalidData.into()),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_qemu_says_is_understood() {
        let parse = |line: &str| Message::parse(line.as_bytes());
        assert_eq!(
            parse(r#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}"#),
            Some(Message::Greeting)
        );
        assert_eq!(
            parse(r#"{"return": {}}"#),
            Some(Message::Return(serde_json::json!({})))
        );
        assert_eq!(
            parse(r#"{"return": null}"#),
            Some(Message::Return(Value::Null))
        );
        assert_eq!(
            parse(r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 1}"#),
            Some(Message::Error("no".to_owned()))
        );
        for (reason, cause) in [
            ("guest-shutdown", Shutdown::GuestOff),
            ("guest-reset", Shutdown::GuestReset),
            ("guest-panic", Shutdown::GuestPanic),
            ("host-signal", Shutdown::Host),
            ("of-the-future", Shutdown::Host),
        ] {
            let line = format!(
                r#"{{"timestamp": {{"seconds": 1}}, "event": "SHUTDOWN",
                     "data": {{"guest": true, "reason": "{reason}"}}}}"#
            );
            assert_eq!(parse(&line), Some(Message::Shutdown(cause)), "{reason}");
        }
        // QEMU 7.2.
        let left = r#"{"timestamp": {"seconds": 1}, "event": "VSERPORT_CHANGE",
                       "data": {"open": false, "id": "agent-port"}}"#;
        assert_eq!(parse(left), Some(Message::AgentPort { open: false }));
        let full = r#"{"timestamp": {"seconds": 1}, "event": "BLOCK_IO_ERROR", "data":
                       {"device": "", "nospace": true, "node-name": "system",
                        "reason": "No space left on device", "operation": "write",
                        "action": "report"}}"#;
        let failed = Message::DiskError {
            disk: DiskRole::System,
            access: DiskAccess::Write,
            reason: "No space left on device".to_owned(),
        };
        assert_eq!(parse(full), Some(failed));
        for other in [
            r#"{"event": "RESUME", "data": {}}"#,
            r#"{"event": "VSERPORT_CHANGE", "data": {"open": false, "id": "other"}}"#,
            r#"{"event": "BLOCK_IO_ERROR", "data": {"node-name": "floppy"}}"#,
        ] {
            assert_eq!(parse(other), Some(Message::Other), "{other}");
        }
        assert_eq!(parse("{}"), None);
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::parse(&bytes);
        }

        #[test]
        fn json_that_is_no_message_never_panics(
            key in prop_oneof!["QMP", "return", "error", "event", "data", "[a-z]{0,5}"],
            value in prop_oneof!["null", "1", "\\[\\]", "\\{\\}", "\"SHUTDOWN\"", "\\{\"desc\":3\\}"],
        ) {
            let _ = Message::parse(format!(r#"{{"{key}": {value}}}"#).as_bytes());
            let _ = Message::parse(
                format!(r#"{{"event": "SHUTDOWN", "data": {value}}}"#).as_bytes(),
            );
        }
    }

    /// A conversation whose other end the test plays.
    async fn conversation() -> (Qmp, UnixStream) {
        conversation_about(watch::Sender::new(Signs::default())).await
    }

    async fn conversation_about(signs: watch::Sender<Signs>) -> (Qmp, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        let (orders, received) = mpsc::channel(8);
        let (tell, last) = watch::channel(LastWord::Unheard);
        tokio::spawn(converse(near, received, tell, signs));
        (Qmp { orders, last }, far)
    }

    #[tokio::test]
    async fn what_qemu_tells_unasked_is_a_sign_and_the_same_failure_only_one() {
        let signs = watch::Sender::new(Signs::default());
        let mut seen = signs.subscribe();
        let (_qmp, mut far) = conversation_about(signs).await;
        let full = |disk: &str| {
            format!(
                "{{\"event\": \"BLOCK_IO_ERROR\", \"data\": {{\"node-name\": \"{disk}\", \
                 \"operation\": \"write\", \"reason\": \"No space left on device\"}}}}\n"
            )
        };
        let port = |open: bool| {
            format!(
                "{{\"event\": \"VSERPORT_CHANGE\", \
                 \"data\": {{\"id\": \"agent-port\", \"open\": {open}}}}}\n"
            )
        };
        let said = [
            port(true),
            full("work"),
            full("work"),
            full("system"),
            port(false),
        ];
        far.write_all(said.concat().as_bytes()).await.unwrap();
        let signs = seen.wait_for(|signs| signs.agent_left == 1).await.unwrap();
        assert_eq!(signs.agent_came, 1);
        let disks: Vec<DiskRole> = signs.disk_errors.iter().map(|error| error.disk).collect();
        assert_eq!(disks, [DiskRole::Work, DiskRole::System]);
    }

    #[tokio::test]
    async fn answers_go_to_whom_asked_and_events_in_between_do_not_confuse() {
        let (qmp, mut far) = conversation().await;
        far.write_all(
            b"{\"QMP\": {}}\r\n{\"return\": {}}\r\nrubbish\n{\"event\": \"STOP\"}\n\
              {\"return\": {\"status\": \"running\"}}\n{\"error\": {\"desc\": \"not now\"}}\n\
              {\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-shutdown\"}}\n",
        )
        .await
        .unwrap();
        let limit = Duration::from_secs(10);
        let (status, stop) = tokio::join!(
            qmp.order("query-status", None, limit),
            qmp.order("stop", None, limit),
        );
        assert_eq!(status.unwrap()["status"], "running");
        insta::assert_snapshot!(stop.unwrap_err(), @"the engine refused `stop`: not now");
        drop(far);
        assert_eq!(qmp.last_word().await, LastWord::Said(Shutdown::GuestOff));
        assert!(matches!(
            qmp.order("stop", None, limit).await,
            Err(ControlError::Ended)
        ));
    }

    #[tokio::test]
    async fn silence_is_told_from_what_could_not_be_heard() {
        let negotiated = "{\"QMP\": {}}\n{\"return\": {}}\n";
        let endless = negotiated.to_owned() + &"x".repeat(usize::try_from(LINE_MAX).unwrap());
        for (said, word) in [
            ("", LastWord::Unheard),
            ("{\"QMP\": {}}\n", LastWord::Unheard),
            (negotiated, LastWord::Silence),
            (&endless, LastWord::Unheard),
        ] {
            let (qmp, mut far) = conversation().await;
            // The order to negotiate is taken: a socket with bytes in it ends otherwise.
            let mut order = vec![0; line_of("qmp_capabilities", None).len()];
            far.read_exact(&mut order).await.unwrap();
            far.write_all(said.as_bytes()).await.unwrap();
            drop(far);
            assert_eq!(qmp.last_word().await, word);
        }
    }

    #[test]
    fn an_order_is_one_line_of_json() {
        assert_eq!(line_of("stop", None), b"{\"execute\":\"stop\"}\n");
        let resize = line_of(
            "block_resize",
            Some(json!({ "node-name": "work", "size": 5 })),
        );
        let read: Value = serde_json::from_slice(&resize).unwrap();
        assert_eq!(
            read,
            json!({ "execute": "block_resize", "arguments": { "node-name": "work", "size": 5 } })
        );
        assert_eq!(resize.last(), Some(&b'\n'));
    }

    #[tokio::test(start_paused = true)]
    async fn a_qemu_that_hangs_does_not_hang_its_caller() {
        let (qmp, _far) = conversation().await;
        let error = qmp
            .order("stop", None, Duration::from_secs(15))
            .await
            .unwrap_err();
        insta::assert_snapshot!(error, @"the engine gave no answer to `stop` within 15 s");
    }
}
