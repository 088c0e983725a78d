//! The moment at which a file appears, such as the socket of a process that starts.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::reactor;

/// The moment at which a file appears.
#[derive(Debug)]
pub(crate) struct Birth {
    path: PathBuf,
    events: AsyncFd<OwnedFd>,
}

impl Birth {
    /// Watches for `path` from now on. Its directory exists.
    pub(crate) fn watch(path: &Path) -> io::Result<Self> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&events, directory, flags)?;
        Ok(Self {
            path: path.to_owned(),
            events: reactor::readable(events)?,
        })
    }

    /// Returns when the file is there. Cancel-safe.
    pub(crate) async fn happened(&self) -> io::Result<()> {
        loop {
            if self.path.symlink_metadata().is_ok() {
                return Ok(());
            }
            let mut ready = self.events.readable().await?;
            // Only that something happened matters; the path tells what.
            let mut buffer = [MaybeUninit::uninit(); 1024];
            let mut events = inotify::Reader::new(self.events.get_ref(), &mut buffer);
            while events.next().is_ok() {}
            ready.clear_ready();
        }
    }
}
