//! Trees of files as tar streams: packed and unpacked on this host, and renamed on their way
//! from one VM to another.
//!
//! Every archive has one root: its entries are `root`, `root/a`, `root/a/b`. What is copied is
//! called something else at its destination, so packing names the root, and unpacking puts
//! whatever the root is called where it is wanted.
//!
//! The tar library reads and writes in the ordinary, blocking way: all of this runs on threads
//! that blocking is for, joined to the runtime by channels of pieces.

mod kernel;
mod pack;
mod pieces;
mod rename;
mod unpack;

use std::io;
use std::path::PathBuf;

pub(crate) use self::kernel::{KernelFiles, read_file};
pub(crate) use self::pack::{Owners, Packing, pack, size_of};
pub(crate) use self::pieces::{Pieces, PiecesWriter, pieces};
pub(crate) use self::rename::rename;
pub(crate) use self::unpack::{Kind, unpack};

/// Why a tree could not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// A file of this host cannot be read.
    #[error("could not read `{}`", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file of this host cannot be written.
    #[error("could not write `{}`", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The archive is broken, or its stream was cut short.
    #[error("could not read what the VM sent")]
    Broken(#[source] io::Error),
    /// An entry would land outside of its place.
    #[error("the VM sent `{0}`, which leads out of the copy's place")]
    Escape(String),
    /// It was said where the archive cannot go.
    #[error("{0}")]
    Place(String),
    /// The other side takes, or sends, no more; it knows why.
    #[error("the connection ended")]
    Gone,
}
