//! `banger-vsock-agent sftp`: the SFTP protocol on standard input and output.
//!
//! As a process of its own it has the rights of the user who logged in, and may wait for
//! the disk without holding anybody up. Version 3 of the protocol as OpenSSH speaks it
//! (draft-ietf-secsh-filexfer-02, and OpenSSH's PROTOCOL file for the extensions).

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, ReadDir};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, symlink,
};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use russh_sftp::protocol::{
    Attrs, Data, File as Entry, FileAttributes, Handle, Name, OpenFlags, Packet, Status,
    StatusCode, Version,
};
use russh_sftp::server::{Handler, StatusReply};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

/// Longest answer to one read, as OpenSSH's own server has it.
const LONGEST_READ: u32 = 256 * 1024;
/// Entries per answer to one `readdir`.
const ENTRIES: usize = 100;

/// Serves standard input and output until the input ends.
///
/// # Errors
/// They are no pipes.
pub async fn serve_stdio() -> io::Result<()> {
    let input = duplicate(io::stdin())?;
    let output = duplicate(io::stdout())?;
    let stream = tokio::io::join(
        pipe::Receiver::from_owned_fd(input)?,
        pipe::Sender::from_owned_fd(output)?,
    );
    let (ended, end) = oneshot::channel();
    russh_sftp::server::run(
        stream,
        Sftp {
            files: HashMap::new(),
            next: 0,
            _ended: ended,
        },
    )
    .await;
    // The sender is dropped, never used: with the handler, at the stream's end.
    let _ = end.await;
    Ok(())
}

fn duplicate(stream: impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

struct Sftp {
    files: HashMap<String, Open>,
    next: u64,
    _ended: oneshot::Sender<()>,
}

enum Open {
    File { file: File, append: bool },
    Directory(PathBuf, ReadDir),
}

impl Sftp {
    fn keep(&mut self, id: u32, open: Open) -> Handle {
        let handle = self.next.to_string();
        self.next += 1;
        self.files.insert(handle.clone(), open);
        Handle { id, handle }
    }

    fn file(&self, handle: &str) -> Result<&File, StatusReply> {
        match self.files.get(handle) {
            Some(Open::File { file, .. }) => Ok(file),
            _ => Err(StatusCode::Failure.with_message("no such file handle")),
        }
    }
}

fn failed(error: io::Error) -> StatusReply {
    let code = match error.kind() {
        io::ErrorKind::NotFound => StatusCode::NoSuchFile,
        io::ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
        _ => StatusCode::Failure,
    };
    code.with_message(error.to_string())
}

fn done(id: u32) -> Status {
    Status {
        id,
        status_code: StatusCode::Ok,
        error_message: "Ok".to_owned(),
        language_tag: String::new(),
    }
}

fn attributes(metadata: &fs::Metadata) -> FileAttributes {
    let seconds = |time: i64| Some(u32::try_from(time).unwrap_or_default());
    FileAttributes {
        size: Some(metadata.len()),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        permissions: Some(metadata.mode()),
        atime: seconds(metadata.atime()),
        mtime: seconds(metadata.mtime()),
        ..FileAttributes::default()
    }
}

/// Sets what the client gave. The size comes first, because it changes the times; the owner
/// before the mode, because it clears bits of it.
fn apply(file: &File, wanted: &FileAttributes) -> io::Result<()> {
    if let Some(size) = wanted.size {
        file.set_len(size)?;
    }
    if wanted.uid.is_some() || wanted.gid.is_some() {
        fchown(file, wanted.uid, wanted.gid)?;
    }
    if let Some(mode) = wanted.permissions {
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let (Some(accessed), Some(modified)) = (wanted.atime, wanted.mtime) {
        let time = |seconds: u32| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into());
        let times = fs::FileTimes::new().set_accessed(time(accessed));
        file.set_times(times.set_modified(time(modified)))?;
    }
    Ok(())
}

/// As [`apply`], where the file cannot be opened or must not be (a FIFO, a device).
fn apply_to_path(path: &Path, wanted: &FileAttributes) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() || metadata.is_dir() {
        let mut options = OpenOptions::new();
        options
            .read(wanted.size.is_none())
            .write(wanted.size.is_some());
        match options.open(path) {
            Ok(file) => return apply(&file, wanted),
            Err(error) if wanted.size.is_some() => return Err(error),
            Err(_) => {}
        }
    }
    if wanted.uid.is_some() || wanted.gid.is_some() {
        chown(path, wanted.uid, wanted.gid)?;
    }
    if let Some(mode) = wanted.permissions {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    Ok(())
}

/// The absolute path; what does not exist is resolved by its words alone.
fn real_path(path: &str) -> io::Result<PathBuf> {
    let path = std::path::absolute(if path.is_empty() { "." } else { path })?;
    if let Ok(real) = path.canonicalize() {
        return Ok(real);
    }
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            component => plain.push(component),
        }
    }
    Ok(plain)
}

/// Reads the next string of an extension's data: a big-endian length and the bytes.
fn take_string<'a>(data: &mut &'a [u8]) -> Result<&'a str, StatusReply> {
    let malformed = || StatusReply::new(StatusCode::BadMessage);
    let (length, rest) = data.split_first_chunk::<4>().ok_or_else(malformed)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| malformed())?;
    let (text, rest) = rest.split_at_checked(length).ok_or_else(malformed)?;
    *data = rest;
    std::str::from_utf8(text).map_err(|_| malformed())
}

impl Handler for Sftp {
    type Error = StatusReply;

    fn unimplemented(&self) -> StatusReply {
        StatusCode::OpUnsupported.into()
    }

    async fn init(
        &mut self,
        _version: u32,
        _extensions: HashMap<String, String>,
    ) -> Result<Version, StatusReply> {
        let mut version = Version::new();
        for name in [
            "posix-rename@openssh.com",
            "hardlink@openssh.com",
            "fsync@openssh.com",
        ] {
            version.extensions.insert(name.to_owned(), "1".to_owned());
        }
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        filename: String,
        pflags: OpenFlags,
        attrs: FileAttributes,
    ) -> Result<Handle, StatusReply> {
        let append = pflags.contains(OpenFlags::APPEND);
        let mut options: OpenOptions = pflags.into();
        options.mode(attrs.permissions.unwrap_or(0o666) & 0o7777);
        let file = options.open(filename).map_err(failed)?;
        Ok(self.keep(id, Open::File { file, append }))
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, StatusReply> {
        self.files.remove(&handle);
        Ok(done(id))
    }

    async fn read(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        len: u32,
    ) -> Result<Data, StatusReply> {
        let length = usize::try_from(len.min(LONGEST_READ)).expect("a u32 fits");
        let mut data = vec![0; length];
        let count = self
            .file(&handle)?
            .read_at(&mut data, offset)
            .map_err(failed)?;
        if count == 0 && length > 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(count);
        Ok(Data { id, data })
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<Status, StatusReply> {
        match self.files.get(&handle) {
            Some(Open::File { file, append: true }) => io::Write::write_all(&mut &*file, &data),
            Some(Open::File {
                file,
                append: false,
            }) => file.write_all_at(&data, offset),
            _ => return Err(StatusCode::Failure.with_message("no such file handle")),
        }
        .map_err(failed)?;
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, StatusReply> {
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Attrs {
            id,
            attrs: attributes(&metadata),
        })
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, StatusReply> {
        let metadata = fs::metadata(path).map_err(failed)?;
        Ok(Attrs {
            id,
            attrs: attributes(&metadata),
        })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Result<Attrs, StatusReply> {
        let metadata = self.file(&handle)?.metadata().map_err(failed)?;
        Ok(Attrs {
            id,
            attrs: attributes(&metadata),
        })
    }

    async fn setstat(
        &mut self,
        id: u32,
        path: String,
        attrs: FileAttributes,
    ) -> Result<Status, StatusReply> {
        apply_to_path(Path::new(&path), &attrs).map_err(failed)?;
        Ok(done(id))
    }

    async fn fsetstat(
        &mut self,
        id: u32,
        handle: String,
        attrs: FileAttributes,
    ) -> Result<Status, StatusReply> {
        apply(self.file(&handle)?, &attrs).map_err(failed)?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, StatusReply> {
        let entries = fs::read_dir(&path).map_err(failed)?;
        Ok(self.keep(id, Open::Directory(PathBuf::from(path), entries)))
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, StatusReply> {
        let Some(Open::Directory(path, entries)) = self.files.get_mut(&handle) else {
            return Err(StatusCode::Failure.with_message("no such directory handle"));
        };
        let mut files = Vec::new();
        for entry in entries.by_ref() {
            let name = entry.map_err(failed)?.file_name();
            // It may be gone by now, and the protocol's names are text.
            if let Ok(metadata) = fs::symlink_metadata(path.join(&name)) {
                files.push(Entry::new(name.to_string_lossy(), attributes(&metadata)));
            }
            if files.len() == ENTRIES {
                break;
            }
        }
        if files.is_empty() {
            return Err(StatusCode::Eof.into());
        }
        Ok(Name { id, files })
    }

    async fn remove(&mut self, id: u32, filename: String) -> Result<Status, StatusReply> {
        fs::remove_file(filename).map_err(failed)?;
        Ok(done(id))
    }

    async fn mkdir(
        &mut self,
        id: u32,
        path: String,
        attrs: FileAttributes,
    ) -> Result<Status, StatusReply> {
        let mode = attrs.permissions.unwrap_or(0o777) & 0o7777;
        fs::DirBuilder::new()
            .mode(mode)
            .create(path)
            .map_err(failed)?;
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Result<Status, StatusReply> {
        fs::remove_dir(path).map_err(failed)?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, StatusReply> {
        let path = real_path(&path).map_err(failed)?;
        let entry = Entry {
            filename: path.to_string_lossy().into_owned(),
            longname: String::new(),
            attrs: FileAttributes::empty(),
        };
        Ok(Name {
            id,
            files: vec![entry],
        })
    }

    /// The protocol's own rename never replaces a file.
    async fn rename(
        &mut self,
        id: u32,
        oldpath: String,
        newpath: String,
    ) -> Result<Status, StatusReply> {
        if Path::new(&newpath).symlink_metadata().is_ok() {
            return Err(StatusCode::Failure.with_message("the file exists"));
        }
        fs::rename(oldpath, newpath).map_err(failed)?;
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Result<Name, StatusReply> {
        let target = fs::read_link(path).map_err(failed)?;
        let name = target.to_string_lossy();
        Ok(Name {
            id,
            files: vec![Entry::new(name, FileAttributes::empty())],
        })
    }

    /// OpenSSH has the two paths the other way round, and everybody follows it: PROTOCOL,
    /// section 4.1.
    async fn symlink(
        &mut self,
        id: u32,
        linkpath: String,
        targetpath: String,
    ) -> Result<Status, StatusReply> {
        symlink(linkpath, targetpath).map_err(failed)?;
        Ok(done(id))
    }

    async fn extended(
        &mut self,
        id: u32,
        request: String,
        data: Vec<u8>,
    ) -> Result<Packet, StatusReply> {
        let mut data = &data[..];
        match request.as_str() {
            "posix-rename@openssh.com" => {
                let (from, to) = (take_string(&mut data)?, take_string(&mut data)?);
                fs::rename(from, to).map_err(failed)?;
            }
            "hardlink@openssh.com" => {
                let (from, to) = (take_string(&mut data)?, take_string(&mut data)?);
                fs::hard_link(from, to).map_err(failed)?;
            }
            "fsync@openssh.com" => {
                self.file(take_string(&mut data)?)?
                    .sync_all()
                    .map_err(failed)?;
            }
            _ => return Err(self.unimplemented()),
        }
        Ok(done(id).into())
    }
}
