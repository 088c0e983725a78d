//! What waits for others in the guest: its listening sockets, whose they are, and when that
//! changes.

mod changes;
mod trace;

use std::io;
use std::sync::Arc;

use banger_proto::agent::{Listener, ListenerProcess};
use banger_sockets::{Process, Socket};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::agent::{Agent, Place};
use changes::Changes;

/// What is told of at most: a guest that has more has run wild, and each is one more socket on
/// the host.
const LISTENERS_MAX: usize = 1024;

/// Every listener, with the process that has it.
pub async fn list(agent: &Arc<Agent>) -> Vec<Listener> {
    // A watch that has missed something sees it now.
    agent.ports_looked_at();
    let agent = agent.clone();
    let looked = spawn_blocking(move || listeners(&agent, banger_sockets::all()));
    // Reading /proc does not panic; if it did, nothing would be known.
    looked.await.unwrap_or_default()
}

/// The TCP listeners as lines of JSON: those that there are, and all of them again whenever
/// they have changed. It ends when nobody reads it.
pub fn watch(agent: Arc<Agent>) -> mpsc::Receiver<io::Result<Bytes>> {
    let (lines, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let told = tell_changes(&agent, &lines);
        tokio::select! {
            () = told => {}
            () = lines.closed() => {}
        }
    });
    receiver
}

async fn tell_changes(agent: &Arc<Agent>, lines: &mpsc::Sender<io::Result<Bytes>>) {
    let mut changes = Changes::watch(agent);
    let (mut seen, mut told) = (None, None);
    loop {
        let sockets = banger_sockets::tcp();
        if seen.as_ref() != Some(&sockets) {
            let listeners = without_processes(agent, &sockets).await;
            seen = Some(sockets);
            if told.as_ref() != Some(&listeners) {
                let mut line = serde_json::to_vec(&listeners).expect("it has only string keys");
                line.push(b'\n');
                if lines.send(Ok(line.into())).await.is_err() {
                    return;
                }
                told = Some(listeners);
            }
        }
        changes.next().await;
    }
}

/// Only where some are not the agent's must their processes be looked for.
async fn without_processes(agent: &Arc<Agent>, sockets: &[Socket]) -> Vec<Listener> {
    if let Place::Guest(_) = agent.place {
        return settled(sockets.iter().map(listener).collect());
    }
    let (agent, sockets) = (agent.clone(), sockets.to_vec());
    let looked = spawn_blocking(move || listeners(&agent, sockets)).await;
    let without = |listener| Listener {
        process: None,
        ..listener
    };
    settled(
        looked
            .unwrap_or_default()
            .into_iter()
            .map(without)
            .collect(),
    )
}

/// Sockets with their processes. An ordinary process has only those of its own commands: the
/// machine around it is not the agent's.
fn listeners(agent: &Agent, sockets: Vec<Socket>) -> Vec<Listener> {
    let processes = match agent.place {
        Place::Guest(_) => banger_sockets::processes(),
        Place::Process => banger_sockets::descendants(std::process::id()),
    };
    let owners = banger_sockets::owners(processes, &sockets);
    let all = sockets.iter().map(|socket| Listener {
        process: owners.get(&socket.inode).map(process),
        ..listener(socket)
    });
    let ours = |listener: &Listener| match agent.place {
        Place::Guest(_) => true,
        Place::Process => listener.process.is_some(),
    };
    settled(all.filter(ours).collect())
}

fn listener(socket: &Socket) -> Listener {
    Listener {
        port: socket.port,
        protocol: socket.protocol,
        address: socket.address,
        process: None,
    }
}

fn process(process: &Process) -> ListenerProcess {
    ListenerProcess {
        pid: process.pid,
        name: process.name.clone(),
        command: process.command.clone(),
    }
}

/// In order, each once (several sockets may share a port), and not too many.
fn settled(mut listeners: Vec<Listener>) -> Vec<Listener> {
    listeners.sort();
    listeners.dedup_by(|a, b| (a.port, a.protocol, a.address) == (b.port, b.protocol, b.address));
    listeners.truncate(LISTENERS_MAX);
    listeners
}
