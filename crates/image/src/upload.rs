//! A file that a client sends. It has no name, so that nothing of it is left when it is dropped,
//! and it leaves room on the disk.

use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};

use banger_proto::error::ErrorKind;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use crate::disk::{DiskError, Room};

/// Why a file cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// It is too long for what it should be.
    #[error("the file is longer than the {} MiB that it may have", .0 >> 20)]
    TooLong(u64),
    /// There is no room for it.
    #[error(transparent)]
    Room(#[from] DiskError),
    /// It cannot be kept.
    #[error("could not {action} a file in `{}`", directory.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// Where.
        directory: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl UploadError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLong(_) => ErrorKind::Invalid,
            Self::Room(error) => error.kind(),
            Self::Io { .. } => ErrorKind::Failed,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Room(error) => error.hint(),
            Self::TooLong(_) | Self::Io { .. } => None,
        }
    }
}

/// A file without a name that a client has sent so far.
#[derive(Debug)]
pub struct Upload {
    file: File,
    directory: PathBuf,
    length: u64,
    limit: u64,
    room: Room,
}

impl Upload {
    /// An empty one of at most `limit` bytes, on the file system of `directory`, which is there.
    pub(crate) async fn new(directory: &Path, limit: u64) -> Result<Self, UploadError> {
        let place = directory.to_owned();
        let made = tokio::task::spawn_blocking(move || tempfile::tempfile_in(place)).await;
        let made = made.map_err(io::Error::other).and_then(|made| made);
        Ok(Self {
            file: File::from_std(made.map_err(failure("make", directory))?),
            directory: directory.to_owned(),
            length: 0,
            limit,
            room: Room::default(),
        })
    }

    /// Adds bytes to its end.
    ///
    /// # Errors
    /// It is too long, there is no room, or it cannot be written.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        self.length = self.length.saturating_add(bytes.len() as u64);
        if self.length > self.limit {
            return Err(UploadError::TooLong(self.limit));
        }
        self.room.before(&self.file, bytes.len() as u64)?;
        let written = async {
            self.file.write_all(bytes).await?;
            // So that an error of the disk shows here.
            self.file.flush().await
        };
        written.await.map_err(failure("write", &self.directory))
    }

    /// The file, at its beginning.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn into_file(mut self) -> Result<std::fs::File, UploadError> {
        let rewound = self.file.seek(SeekFrom::Start(0)).await;
        rewound.map_err(failure("read", &self.directory))?;
        Ok(self.file.into_std().await)
    }
}

fn failure<'a>(
    action: &'static str,
    directory: &'a Path,
) -> impl FnOnce(io::Error) -> UploadError + 'a {
    move |source| UploadError::Io {
        action,
        directory: directory.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[tokio::test]
    async fn an_upload_leaves_no_name_and_is_not_endless() {
        let directory = tempfile::tempdir().unwrap();
        let mut upload = Upload::new(directory.path(), 8).await.unwrap();
        upload.write(b"some").await.unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        upload.write(b"more").await.unwrap();
        let error = upload.write(b"!").await.unwrap_err();
        assert!(matches!(error, UploadError::TooLong(8)), "{error:?}");
        let mut content = String::new();
        let mut file = upload.into_file().await.unwrap();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "somemore");
    }
}
