//! How commands run in the guest, for `/v1/exec` and for SSH alike.
//!
//! ```text
//! request + settings --user, plan--> Plan --spawn--> Process --run--> events
//!                                     │                        ^
//!                                     └── Refusal              └── input
//! ```

mod plan;
mod process;
mod spawn;
mod user;

use std::sync::Arc;

use banger_proto::agent::{Configure, ExecRefusal, ExecRefused, ExecRequest};
use tokio::sync::mpsc;

pub use process::{Chunk, Control, Event, Stream};
pub use user::{User, UserError};

use crate::agent::Agent;

/// How many pieces of output wait for a slow client; each is at most 64 KiB.
const OUTPUT_QUEUE: usize = 4;
/// How many pieces of input wait for a slow command.
const INPUT_QUEUE: usize = 4;

/// Why a command was not started.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such command.
    #[error("{0}")]
    NotFound(String),
    /// The command is there but cannot be executed.
    #[error("{0}")]
    NotExecutable(String),
    /// What the command needs around it is not to be had.
    #[error("{0}")]
    Unusable(String),
}

impl Refusal {
    /// The refusal as the protocol has it.
    pub fn to_protocol(&self) -> ExecRefused {
        ExecRefused {
            refusal: match self {
                Self::NotFound(_) => ExecRefusal::NotFound,
                Self::NotExecutable(_) => ExecRefusal::NotExecutable,
                Self::Unusable(_) => ExecRefusal::Unusable,
            },
            message: self.to_string(),
        }
    }
}

/// A command that runs.
#[derive(Debug)]
pub struct Command {
    /// Bytes for its standard input; dropping the sender ends the input.
    pub input: mpsc::Sender<bytes::Bytes>,
    /// Signals and the terminal's size.
    pub control: Control,
    /// What comes out of it; dropping the receiver hangs the command up.
    pub events: mpsc::Receiver<Event>,
}

/// Starts a command. It runs on by itself until it ends or nobody listens any more.
///
/// # Errors
/// The command could not be started.
pub fn start(
    agent: &Arc<Agent>,
    configure: &Configure,
    request: &ExecRequest,
) -> Result<Command, Refusal> {
    let plan = plan::Plan::new(request, configure)?;
    let process = spawn::spawn(&plan)?;
    let registration = agent.register(process.pid());
    let control = process.control();
    let (input, from_client) = mpsc::channel(INPUT_QUEUE);
    let (to_client, events) = mpsc::channel(OUTPUT_QUEUE);
    tokio::spawn(async move {
        process.run(from_client, to_client).await;
        drop(registration);
    });
    Ok(Command {
        input,
        control,
        events,
    })
}
