//! `banger daemon logs`: the file itself, so that it can be read when no daemon runs.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_proto::error::{ApiError, ErrorKind};
use clap::Args;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on printing what comes
    #[arg(long, short)]
    follow: bool,
    /// Print at most this many of the last lines first
    #[arg(long, short = 'n', value_name = "N", default_value_t = 200)]
    lines: usize,
}

impl Logs {
    pub(super) fn run(self, path: &Path) -> Result<(), Failure> {
        let could_not_read = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Failure::from(no_log(path)),
            _ => Failure::system(format!("could not read `{}`", path.display()), &error),
        };
        // Watched from before the first read, so that nothing written meanwhile is missed.
        let watch = match self.follow {
            true => Some(Watch::on_directory_of(path).map_err(could_not_read)?),
            false => None,
        };
        let mut log = Log::open(path).map_err(could_not_read)?;
        output::write(&log.last_lines(self.lines).map_err(could_not_read)?)?;
        if let Some(watch) = watch {
            loop {
                watch.wait().map_err(could_not_read)?;
                output::write(&log.new_bytes(path).map_err(could_not_read)?)?;
            }
        }
        Ok(())
    }
}

fn no_log(path: &Path) -> ApiError {
    ApiError::new(
        ErrorKind::NotFound,
        format!("there is no log at `{}`", path.display()),
    )
    .with_hint("no daemon has run here yet; `banger daemon start` starts one")
}

/// The file, read up to its end.
#[derive(Debug)]
struct Log {
    file: BufReader<File>,
    inode: u64,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self {
            file: BufReader::new(file),
            inode,
        })
    }

    fn last_lines(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut lines = VecDeque::new();
        loop {
            let mut line = Vec::new();
            if self.file.read_until(b'\n', &mut line)? == 0 {
                return Ok(lines.into_iter().flatten().collect());
            }
            lines.push_back(line);
            if lines.len() > count {
                lines.pop_front();
            }
        }
    }

    /// What came since, also if the file was rotated away and a new one begun.
    fn new_bytes(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        let rotated = std::fs::metadata(path).is_ok_and(|now| now.ino() != self.inode);
        if rotated {
            *self = Self::open(path)?;
            self.file.read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }
}

/// Tells when something in a directory changes (inotify(7)).
#[derive(Debug)]
struct Watch(OwnedFd);

impl Watch {
    fn on_directory_of(path: &Path) -> io::Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let watch = inotify::init(CreateFlags::CLOEXEC)?;
        let changes = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, directory, changes)?;
        Ok(Self(watch))
    }

    /// Blocks until there is a change. Which file it was does not matter.
    fn wait(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        events.next()?;
        while !events.is_buffer_empty() {
            events.next()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    #[test]
    fn the_last_lines_are_printed_and_a_rotated_log_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bangerd.log");
        fs::write(&path, "1\n2\n3").unwrap();
        let mut log = Log::open(&path).unwrap();
        assert_eq!(log.last_lines(2).unwrap(), b"2\n3");
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"\n4\n").unwrap();
        fs::rename(&path, directory.path().join("bangerd.log.1")).unwrap();
        fs::write(&path, "5\n").unwrap();
        assert_eq!(log.new_bytes(&path).unwrap(), b"\n4\n5\n");
        assert_eq!(log.new_bytes(&path).unwrap(), b"");
    }
}
