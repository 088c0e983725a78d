//! HTTP/2 connections on a wire, one after another.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use banger_proto::hello::MAX_FRAME_SIZE;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::AbortHandle;
use tracing::{debug, info};

use super::opening::open;
use super::wire::{End, Wire, WireStream};
use crate::agent::Agent;
use crate::http;

/// What one request may send before the agent has taken it.
const STREAM_WINDOW: u32 = 512 * 1024;
/// What all requests together may send before the agent has taken it: so much more that a
/// hundred commands that read no input do not keep the other requests out.
const CONNECTION_WINDOW: u32 = 128 * STREAM_WINDOW;
/// What the agent keeps ready for one slow reader.
const SEND_BUFFER: usize = 256 * 1024;

/// The connection that is served; a later one takes its place.
#[derive(Debug, Default)]
pub struct Current(Mutex<Option<AbortHandle>>);

impl Current {
    /// Ends the connection before, whose commands are hung up.
    fn replace(&self, task: AbortHandle) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = current.replace(task) {
            before.abort();
        }
    }
}

/// Serves the wire until it ends; a virtio-serial port never does.
///
/// # Errors
/// The descriptor failed.
pub async fn serve(wire: Wire, agent: Arc<Agent>, current: Option<Arc<Current>>) -> io::Result<()> {
    let wire = Arc::new(wire);
    while let Some(version) = open(&wire).await? {
        info!(version, "daemon connected");
        let stream = TokioIo::new(WireStream(wire.clone()));
        let agent = agent.clone();
        let connection = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME_SIZE)
            .max_send_buf_size(SEND_BUFFER)
            .max_concurrent_streams(1024)
            .serve_connection(
                stream,
                service_fn(move |request| http::answer(agent.clone(), request)),
            );
        let task = tokio::spawn(connection);
        if let Some(current) = &current {
            current.replace(task.abort_handle());
        }
        match task.await {
            Ok(Ok(())) => info!("daemon disconnected"),
            Ok(Err(error)) => debug!(%error, "connection broke"),
            Err(_) => {
                info!("another daemon took over");
                if wire.end() == End::Final {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}
