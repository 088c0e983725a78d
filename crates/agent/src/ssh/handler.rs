//! What an SSH client asks for, and who may.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use banger_proto::agent::{Configure, ExecRequest, Pty};
use banger_proto::exit;
use bytes::Bytes;
use russh::keys::PublicKey;
use russh::server::{Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel as RusshChannel, ChannelId, ChannelOpenFailure, Sig};
use rustix::process::geteuid;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::channel::{Channel, Output, carry, number};
use super::forward::{Forwards, data, join_unix};
use crate::agent::Agent;
use crate::exec::{self, Chunk, Control, Event, Stream, User};
use crate::tcp;

/// More variables than this are no use to anybody.
const MAX_VARIABLES: usize = 256;

/// One SSH connection.
pub(super) struct Handler {
    agent: Arc<Agent>,
    authorized: Vec<PublicKey>,
    user: Option<String>,
    channels: HashMap<ChannelId, State>,
    forwards: Forwards,
}

/// A session channel.
enum State {
    /// Nothing runs yet.
    Open {
        channel: Box<Channel>,
        env: BTreeMap<String, String>,
        pty: Option<Pty>,
    },
    Running(Control),
}

impl Handler {
    pub(super) fn new(agent: Arc<Agent>, authorized: Vec<PublicKey>) -> Self {
        Self {
            agent,
            authorized,
            user: None,
            channels: HashMap::new(),
            forwards: Forwards::default(),
        }
    }

    fn admits(&self, user: &str, key: &PublicKey) -> bool {
        let known = self
            .authorized
            .iter()
            .any(|it| it.key_data() == key.key_data());
        known && (!geteuid().is_root() || User::find(user).is_ok())
    }

    /// An agent that is not root runs everything as itself, whoever logs in.
    fn user(&self) -> Option<String> {
        self.user.clone().filter(|_| geteuid().is_root())
    }

    /// Starts a command on a channel; says whether the client may go on with it.
    fn start(&mut self, id: ChannelId, command: Command<'_>) -> bool {
        let Some(State::Open { channel, env, pty }) = self.channels.remove(&id) else {
            return false;
        };
        let request = ExecRequest {
            command: match command {
                Command::Shell => Vec::new(),
                Command::Words(words) => words,
                Command::Script(script) => script_command(self.user().as_deref(), script),
            },
            env,
            user: self.user(),
            pty,
            stdin: true,
            acknowledge_input: false,
            cwd: None,
        };
        // A login begins at home, not in the image's directory for commands.
        let settings = self.agent.settings();
        let configure = Configure {
            workdir: None,
            ..settings.configure.clone()
        };
        match exec::start(&self.agent, &configure, &request) {
            Ok(command) => {
                self.channels.insert(id, State::Running(command.control));
                let task = carry(*channel, Some(command.input), command.events, output);
                tokio::spawn(task);
            }
            Err(refusal) => {
                info!(%refusal, "command refused");
                tokio::spawn(refuse(*channel, refusal));
            }
        }
        true
    }
}

enum Command<'a> {
    Shell,
    Script(&'a str),
    Words(Vec<String>),
}

/// As sshd does, the user's shell reads the command. An image without any shell gets the
/// words themselves.
fn script_command(user: Option<&str>, script: &str) -> Vec<String> {
    let user = user.map_or_else(|| geteuid().as_raw().to_string(), str::to_owned);
    match User::find(&user).ok().and_then(|user| user.shell_file()) {
        Some(shell) => vec![shell, "-c".to_owned(), script.to_owned()],
        None => script.split_ascii_whitespace().map(str::to_owned).collect(),
    }
}

fn output(event: Event) -> Option<Output> {
    let bytes = Chunk::into_bytes;
    match event {
        Event::Started(_) => Some(Output::Nothing),
        Event::Wrote(Stream::Output, chunk) => Some(Output::Data(bytes(chunk))),
        Event::Wrote(Stream::Error, chunk) => Some(Output::Error(bytes(chunk))),
        Event::Exited(status) => Some(Output::Exit(status)),
    }
}

/// Tells the client why, with the status that a shell would give.
async fn refuse(channel: Channel, refusal: exec::Refusal) {
    let status = match refusal {
        exec::Refusal::NotFound(_) => exit::NOT_FOUND,
        exec::Refusal::NotExecutable(_) => exit::NOT_EXECUTABLE,
        exec::Refusal::Unusable(_) => exit::BANGER,
    };
    let (sender, receiver) = mpsc::channel(2);
    let message = Bytes::from(format!("banger: {refusal}\n"));
    // There is room for both, and the receiver is here.
    let _ = sender.try_send(Output::Error(message));
    let _ = sender.try_send(Output::Exit(exit::ExitStatus::Code(status)));
    drop(sender);
    carry(channel, None, receiver, Some).await;
}

fn reply(session: &mut Session, id: ChannelId, success: bool) -> Result<(), russh::Error> {
    if success {
        session.channel_success(id)
    } else {
        session.channel_failure(id)
    }
}

impl russh::server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(if self.admits(user, offer.public_key) {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        if !self.admits(user, key.public_key) {
            warn!(user, "SSH login refused");
            return Ok(Auth::reject());
        }
        info!(user, "SSH login");
        self.user = Some(user.to_owned());
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: RusshChannel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let id = channel.id();
        let channel = Box::new(Channel::new(channel, session.handle()));
        self.channels.insert(
            id,
            State::Open {
                channel,
                env: BTreeMap::new(),
                pty: None,
            },
        );
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: RusshChannel<Msg>,
        host_to_connect: &str,
        port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let address = format!("{host_to_connect}:{port_to_connect}");
        let channel = Channel::new(channel, session.handle());
        tokio::spawn(async move {
            match tcp::connect(&address).await {
                Ok(connection) => {
                    reply.accept().await;
                    carry(channel, Some(connection.input), connection.output, data).await;
                }
                Err(error) => {
                    info!(%error, "forwarding refused");
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
            }
        });
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: RusshChannel<Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        // The agent may connect to any socket, and others than root may not.
        if self.user().is_some_and(|user| user != "root") {
            reply
                .reject(ChannelOpenFailure::AdministrativelyProhibited)
                .await;
            return Ok(());
        }
        let path = socket_path.to_owned();
        let channel = Channel::new(channel, session.handle());
        tokio::spawn(async move {
            match UnixStream::connect(&path).await {
                Ok(stream) => {
                    reply.accept().await;
                    join_unix(channel, stream).await;
                }
                Err(error) => {
                    info!(%error, path, "forwarding refused");
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
            }
        });
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let (user, handle) = (self.user(), session.handle());
        let listening = self
            .forwards
            .listen(address, *port, user.as_deref(), &handle);
        match listening.await {
            Ok(bound) => {
                *port = bound;
                Ok(true)
            }
            Err(error) => {
                info!(%error, address, port, "forwarding refused");
                Ok(false)
            }
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.forwards.cancel(address, port))
    }

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let user = self.user();
        let Some(State::Open { env, .. }) = self.channels.get_mut(&channel) else {
            return Ok(false);
        };
        match self.forwards.agent(user.as_deref(), &session.handle()) {
            Ok(path) => {
                let path = path.display().to_string();
                env.insert("SSH_AUTH_SOCK".to_owned(), path);
                Ok(true)
            }
            Err(error) => {
                info!(%error, "the client's agent is not to be had");
                Ok(false)
            }
        }
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.remove(&channel);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        col_width: u32,
        row_height: u32,
        _pix_width: u32,
        _pix_height: u32,
        _modes: &[(russh::Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let open = match self.channels.get_mut(&channel) {
            Some(State::Open { pty, .. }) => {
                *pty = Some(Pty {
                    term: term.to_owned(),
                    columns: u16::try_from(col_width).unwrap_or(u16::MAX),
                    rows: u16::try_from(row_height).unwrap_or(u16::MAX),
                });
                true
            }
            _ => false,
        };
        reply(session, channel, open)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        variable_name: &str,
        variable_value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let usable = !variable_name.is_empty() && !variable_name.contains(['=', '\0']);
        let taken = match self.channels.get_mut(&channel) {
            Some(State::Open { env, .. }) if usable && env.len() < MAX_VARIABLES => {
                env.insert(variable_name.to_owned(), variable_value.to_owned());
                true
            }
            _ => false,
        };
        reply(session, channel, taken)
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let started = self.start(channel, Command::Shell);
        reply(session, channel, started)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let script = std::str::from_utf8(data);
        let started = script.is_ok_and(|script| self.start(channel, Command::Script(script)));
        reply(session, channel, started)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let command = ["/proc/self/exe", "sftp"].map(str::to_owned).to_vec();
        let started = name == "sftp" && self.start(channel, Command::Words(command));
        reply(session, channel, started)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        col_width: u32,
        row_height: u32,
        _pix_width: u32,
        _pix_height: u32,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(State::Running(control)) = self.channels.get(&channel) {
            let columns = u16::try_from(col_width).unwrap_or(u16::MAX);
            control.resize(columns, u16::try_from(row_height).unwrap_or(u16::MAX));
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(State::Running(control)) = self.channels.get(&channel)
            && let Some(signal) = number(&signal)
        {
            control.signal(signal);
        }
        Ok(())
    }
}
