//! Takes the two programs out of a release's archive: a gzip-compressed tar of one directory
//! `release-v<version>-<arch>` with `firecracker-v<version>-<arch>`, `jailer-v<version>-<arch>`
//! and more. Nothing else of it reaches the disk, and no name of it decides where.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::EntryType;

use super::{FIRECRACKER, JAILER, make_executable};
use crate::tarball::{End, Reader, TarError};

/// How much an archive may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of one program: that of 1.16.1 has 3 million.
    program: u64,
    /// Bytes of everything.
    archive: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            program: 256 << 20,
            archive: 1 << 30,
        }
    }
}

/// Why nothing comes out of an archive.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    /// It is damaged, ends early, or holds more than it may.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A program is too long.
    #[error("the archive's `{name}` has {size} bytes; at most {limit} are expected")]
    ProgramTooLong {
        /// Which.
        name: &'static str,
        /// Its length.
        size: u64,
        /// Most bytes.
        limit: u64,
    },
    /// It has a program twice.
    #[error("the archive has `{0}` twice")]
    Twice(&'static str),
    /// It is for other processors.
    #[error(
        "the archive has Firecracker for {found}, and this host is {}",
        std::env::consts::ARCH
    )]
    OtherArch {
        /// What it is for.
        found: String,
    },
    /// There is no Firecracker in it.
    #[error(
        "the archive has no `release-v<version>-{arch}/firecracker-v<version>-{arch}`",
        arch = std::env::consts::ARCH
    )]
    NoFirecracker,
    /// A file could not be written.
    #[error("could not write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Writes `firecracker`, and `jailer` if there is one, into `directory`, which has neither.
pub(super) fn archive(
    compressed: impl Read,
    directory: &Path,
    limits: Limits,
) -> Result<(), UnpackError> {
    let stream = Bounded {
        stream: MultiGzDecoder::new(io::BufReader::new(compressed)),
        left: limits.archive,
    };
    let mut reader = Reader::new(stream, End::Marked);
    let mut other_arch = None;
    while let Some(entry) = reader.next_entry()? {
        if entry.kind != EntryType::Regular {
            continue;
        }
        let Some(member) = Member::of(&entry.path) else {
            continue;
        };
        if member.arch != std::env::consts::ARCH {
            other_arch = Some(member.arch);
            continue;
        }
        if entry.size > limits.program {
            return Err(UnpackError::ProgramTooLong {
                name: member.program,
                size: entry.size,
                limit: limits.program,
            });
        }
        let path = directory.join(member.program);
        if path.exists() {
            return Err(UnpackError::Twice(member.program));
        }
        let written = write(&mut reader.content(), &path)?;
        if written != entry.size {
            return Err(TarError::Truncated.into());
        }
    }
    match (directory.join(FIRECRACKER).exists(), other_arch) {
        (true, _) => Ok(()),
        (false, Some(found)) => Err(UnpackError::OtherArch { found }),
        (false, None) => Err(UnpackError::NoFirecracker),
    }
}

/// Copies a program that came alone.
pub(super) fn program(mut from: impl Read, to: &Path) -> Result<(), UnpackError> {
    write(&mut from, to).map(drop)
}

/// A program of an archive, by its path in there.
struct Member {
    program: &'static str,
    arch: String,
}

impl Member {
    fn of(path: &[u8]) -> Option<Self> {
        let path = std::str::from_utf8(path).ok()?;
        let path = path.strip_prefix("./").unwrap_or(path);
        let (directory, file) = path.split_once('/')?;
        let release = directory.strip_prefix("release-v")?;
        let (version, arch) = release.rsplit_once('-')?;
        let program = [FIRECRACKER, JAILER]
            .into_iter()
            .find(|program| file == format!("{program}-v{version}-{arch}"))?;
        Some(Self {
            program,
            arch: arch.to_owned(),
        })
    }
}

/// A stream that fails when more comes out of it than may.
struct Bounded<R> {
    stream: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => {
                return Err(io::Error::other(
                    "it unpacks to more than a release may have",
                ));
            }
        }
        Ok(count)
    }
}

/// Writes a program and makes it one.
fn write(from: &mut impl Read, to: &Path) -> Result<u64, UnpackError> {
    let failed = |source| UnpackError::Write {
        path: to.to_owned(),
        source,
    };
    let mut file = File::create_new(to).map_err(failed)?;
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    loop {
        // What goes wrong here is the archive's fault, and there is the file's.
        let count = from.read(&mut buffer).map_err(TarError::Read)?;
        if count == 0 {
            make_executable(&file).map_err(failed)?;
            return Ok(length);
        }
        file.write_all(&buffer[..count]).map_err(failed)?;
        length += count as u64;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    pub(crate) const ARCH: &str = std::env::consts::ARCH;

    /// A compressed archive of these members.
    pub(crate) fn packed(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (path, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            // As `append_data` does, but for paths that lead elsewhere too.
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    /// The path of a program in the archive of a release.
    pub(crate) fn path(program: &str, version: &str, arch: &str) -> String {
        format!("release-v{version}-{arch}/{program}-v{version}-{arch}")
    }

    fn small() -> Limits {
        Limits {
            program: 10_000,
            archive: 100_000,
        }
    }

    fn unpack(archive_bytes: &[u8]) -> (tempfile::TempDir, Result<(), UnpackError>) {
        let directory = tempfile::tempdir().unwrap();
        let outcome = archive(archive_bytes, directory.path(), small());
        (directory, outcome)
    }

    fn names(directory: &tempfile::TempDir) -> Vec<String> {
        let entries = std::fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn only_the_two_programs_are_taken_and_can_be_run() {
        let (directory, outcome) = unpack(&packed(&[
            ("release-v1.2.3-x/LICENSE", b"text"),
            ("../../escape", b"x"),
            ("/etc/passwd", b"x"),
            (&path("firecracker", "1.2.3", ARCH), b"program"),
            (
                &format!("{}.debug", path("firecracker", "1.2.3", ARCH)),
                b"x",
            ),
            (&path("jailer", "1.2.3", ARCH), b"jail"),
            (&path("seccompiler-bin", "1.2.3", ARCH), b"x"),
        ]));
        outcome.unwrap();
        assert_eq!(names(&directory), ["firecracker", "jailer"]);
        let program = directory.path().join("firecracker");
        assert_eq!(std::fs::read(&program).unwrap(), b"program");
        assert_eq!(
            program.metadata().unwrap().permissions().mode() & 0o7777,
            0o755
        );
    }

    #[test]
    fn what_is_no_release_says_why() {
        let long = vec![b'x'; 20_000];
        let zeros = vec![0; 1_000_000];
        let firecracker = path("firecracker", "1.2.3", ARCH);
        let whole = packed(&[(&firecracker, b"program")]);
        let said: Vec<String> = [
            packed(&[("firecracker", b"program")]),
            packed(&[(&path("firecracker", "1.2.3", "riscv64"), b"program")]),
            packed(&[(&firecracker, &long)]),
            packed(&[(&firecracker, b"one"), (&firecracker, b"two")]),
            // A bomb: a thousand times longer when it is unpacked.
            packed(&[("zeros", &zeros), (&firecracker, b"program")]),
            whole[..whole.len() / 2].to_vec(),
            b"rubbish".to_vec(),
            Vec::new(),
        ]
        .iter()
        .map(|bytes| {
            let error = unpack(bytes).1.unwrap_err();
            let mut text = error.to_string();
            let mut below = std::error::Error::source(&error);
            while let Some(error) = below {
                text.push_str(&format!(": {error}"));
                below = error.source();
            }
            text.replace(ARCH, "ARCH")
        })
        .collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    proptest! {
        #[test]
        fn a_damaged_archive_neither_panics_nor_writes_elsewhere(at in 0usize..400, byte: u8) {
            let mut bytes = packed(&[(&path("firecracker", "1.2.3", ARCH), b"program")]);
            let at = at % bytes.len();
            bytes[at] = byte;
            let (directory, _) = unpack(&bytes);
            let names = names(&directory);
            prop_assert!(names.is_empty() || names == ["firecracker"], "{names:?}");
        }

        #[test]
        fn no_path_is_taken_for_a_program_that_is_none(path in "\\PC{0,40}") {
            prop_assert!(Member::of(path.as_bytes()).is_none());
        }
    }
}
