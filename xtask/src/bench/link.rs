//! A network link of a chosen rate, on the loopback: whatever comes from behind it comes no faster.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Bytes that come at a time.
const PIECE: usize = 32 << 10;

/// A link to a server, for as long as this program runs.
pub struct Link {
    /// Where it begins.
    pub address: SocketAddr,
}

impl Link {
    /// A link to `server` over which `rate` bytes come in a second, however many connections
    /// there are.
    pub fn to(server: SocketAddr, rate: f64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let pace = Arc::new(Pace {
            rate,
            free_at: Mutex::new(Instant::now()),
        });
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                // A server that is gone is the client's to notice.
                let Ok(server) = TcpStream::connect(server) else {
                    continue;
                };
                let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone())
                else {
                    continue;
                };
                let pace = Arc::clone(&pace);
                std::thread::spawn(move || carry(from_client, to_server, None));
                std::thread::spawn(move || carry(server, client, Some(&pace)));
            }
        });
        Ok(Self { address })
    }
}

/// When the link is free for the next piece.
struct Pace {
    rate: f64,
    free_at: Mutex<Instant>,
}

impl Pace {
    fn wait_for(&self, bytes: usize) {
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = (*free_at).max(Instant::now());
            *free_at = begin + Duration::from_secs_f64(bytes as f64 / self.rate);
            *free_at
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

/// Carries bytes one way until either end closes.
fn carry(mut from: TcpStream, mut to: TcpStream, pace: Option<&Pace>) {
    let mut piece = vec![0; PIECE];
    while let Ok(count) = from.read(&mut piece) {
        if count == 0 {
            break;
        }
        if let Some(pace) = pace {
            pace.wait_for(count);
        }
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    // The other direction may still have something.
    let _ = (to.shutdown(Shutdown::Write), from.shutdown(Shutdown::Read));
}
