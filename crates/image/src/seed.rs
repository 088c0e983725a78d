//! The work seed of an image: a disk that holds the image's `/root`, of which the work disks of
//! new VMs are clones. It is made once, with the image, so that a first boot copies nothing.
//!
//! An image without one works as well: then the guest's agent fills the work disk. So nothing that
//! goes wrong here keeps an image from being made.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use tokio_util::sync::CancellationToken;

use crate::disk::{self, DiskError};
use crate::draft;
use crate::ext4::{Amount, Ext4Error, Writer};
use crate::image::{ROOTFS, WORK_SEED};

/// Where the seed's content is laid out, in the image's draft.
const CONTENT: &str = "work-seed";
/// What becomes `/root`, in the image and in the seed.
const HOME: &str = "root";

/// Why a seed was not made.
#[derive(Debug, thiserror::Error)]
enum SeedError {
    #[error("could not find `/{HOME}`")]
    Find(#[from] Ext4Error),
    #[error("could not copy `/{HOME}`")]
    Copy(#[from] io::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Makes the seed of the image whose root file system `writer` holds and writes into `draft`.
/// What it cannot hold, or what fails, is logged, and then there is none. Blocks until it is made or
/// `cancel` is cancelled: then there is none either, and nobody is to want the image.
pub(crate) fn make(writer: &mut Writer, draft: &Path, cancel: &CancellationToken) {
    let content = draft.join(CONTENT);
    let made = try_make(writer, draft, &content, cancel);
    if content.exists() {
        draft::remove(&content);
    }
    match made {
        Ok(true) => {}
        _ if cancel.is_cancelled() => {}
        Ok(false) => tracing::info!("the image's `/{HOME}` is not one that a seed can hold"),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the image gets no work seed");
        }
    }
}

/// Says whether there is one.
fn try_make(
    writer: &mut Writer,
    draft: &Path,
    content: &Path,
    cancel: &CancellationToken,
) -> Result<bool, SeedError> {
    let home = content.join(HOME);
    let amount = match writer.subtree(HOME.as_bytes())? {
        Some(subtree) => {
            let Some(amount) = subtree.measure() else {
                return Ok(false);
            };
            disk::require_room(content, 2 * amount.bytes)?;
            fs::create_dir(content)?;
            subtree.unpack(&File::open(draft.join(ROOTFS))?, &home, cancel)?;
            amount
        }
        None => {
            fs::create_dir(content)?;
            DirBuilder::new().mode(0o700).create(&home)?;
            Amount::default()
        }
    };
    if cancel.is_cancelled() {
        return Ok(false);
    }
    disk::make_seed(content, amount, &draft.join(WORK_SEED))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::Attributes;
    use crate::tool::{self, MKE2FS, Tool};
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    const E2FSCK: Tool = Tool {
        name: "e2fsck",
        package: "e2fsprogs",
    };
    const DEBUGFS: Tool = Tool {
        name: "debugfs",
        package: "e2fsprogs",
    };

    /// A draft with the seed of an image that `write` writes; `None`, with a word, without tools.
    fn seeded(write: impl FnOnce(&mut Writer)) -> Option<(tempfile::TempDir, PathBuf)> {
        if [MKE2FS, E2FSCK, DEBUGFS]
            .iter()
            .any(|tool| tool.find().is_err())
        {
            eprintln!("skipped: e2fsprogs is not installed");
            return None;
        }
        let draft = tempfile::tempdir().unwrap();
        let rootfs = File::create_new(draft.path().join(ROOTFS)).unwrap();
        let mut writer = Writer::new(rootfs, [7; 16]);
        write(&mut writer);
        make(&mut writer, draft.path(), &CancellationToken::new());
        writer.finish().unwrap();
        let seed = draft.path().join(WORK_SEED);
        assert!(!draft.path().join(CONTENT).exists());
        Some((draft, seed))
    }

    fn attributes(mode: u16) -> Attributes {
        Attributes {
            mode,
            ..Attributes::default()
        }
    }

    fn debugfs(disk: &Path, command: &str) -> String {
        let mut debugfs = DEBUGFS.command().unwrap();
        debugfs.args(["-R", command]).arg(disk);
        String::from_utf8(tool::run(&mut debugfs).unwrap()).unwrap()
    }

    #[test]
    fn the_seed_holds_the_images_root_as_roots_and_is_sparse_and_clean() {
        let seeded = seeded(|writer| {
            writer.directory(b"root", &attributes(0o700)).unwrap();
            let content = b"alias ll='ls -l'\n";
            let size = content.len() as u64;
            writer
                .file(b"root/.bashrc", &attributes(0o640), &mut &content[..], size)
                .unwrap();
            writer
                .file(b"etc/other", &attributes(0o640), &mut &content[..], size)
                .unwrap();
        });
        let Some((draft, seed)) = seeded else { return };
        let found = seed.metadata().unwrap();
        assert_eq!(found.len(), 256 << 20);
        assert!(found.blocks() * 512 < 2 << 20, "{} KiB", found.blocks() / 2);
        tool::run(E2FSCK.command().unwrap().args(["-f", "-n"]).arg(&seed)).unwrap();
        assert_eq!(debugfs(&seed, "cat root/.bashrc"), "alias ll='ls -l'\n");
        let stat = debugfs(&seed, "stat root/.bashrc");
        assert!(stat.contains("Mode:  0640"), "{stat}");
        assert!(stat.contains("User:     0   Group:     0"), "{stat}");
        let names = debugfs(&seed, "ls -p /");
        assert!(!names.contains("etc"), "{names}");

        let disk = draft.path().join("disk");
        disk::clone_seed(&seed, banger_proto::size::ByteSize::from_gib(8), &disk).unwrap();
        assert_eq!(disk.metadata().unwrap().len(), 8 << 30);
        assert!(disk.metadata().unwrap().blocks() * 512 < 2 << 20);
    }

    #[test]
    fn an_image_without_a_root_gets_an_empty_one_and_an_odd_one_no_seed() {
        let Some((_draft, seed)) = seeded(|_| {}) else {
            return;
        };
        let stat = debugfs(&seed, "stat root");
        assert!(stat.contains("Mode:  0700"), "{stat}");
        let odd = seeded(|writer| {
            let link = attributes(0o777);
            writer.symlink(b"root", &link, b"/home/me").unwrap();
        });
        assert!(!odd.unwrap().1.exists());
    }

    #[test]
    fn one_that_is_called_off_is_not_made_and_leaves_nothing() {
        let draft = tempfile::tempdir().unwrap();
        let rootfs = File::create_new(draft.path().join(ROOTFS)).unwrap();
        let mut writer = Writer::new(rootfs, [7; 16]);
        let plain = attributes(0o644);
        writer
            .file(b"root/kept", &plain, &mut &b"x"[..], 1)
            .unwrap();
        let cancel = CancellationToken::new();
        cancel.cancel();
        make(&mut writer, draft.path(), &cancel);
        let left = fs::read_dir(draft.path()).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [ROOTFS]);
    }

    #[test]
    fn a_root_as_deep_as_a_path_can_be_gets_no_seed() {
        // As deep as a path can be, with the stack that a daemon's thread has.
        let seeded = std::thread::Builder::new().stack_size(2 << 20).spawn(|| {
            seeded(|writer| {
                let path = format!("root/{}x", "d/".repeat(2044));
                let mode = attributes(0o755);
                writer
                    .file(path.as_bytes(), &mode, &mut &b"x"[..], 1)
                    .unwrap();
            })
        });
        let Some((_draft, seed)) = seeded.unwrap().join().unwrap() else {
            return;
        };
        assert!(!seed.exists());
    }

    #[test]
    fn a_seed_has_room_for_its_content_and_all_its_files() {
        let seeded = seeded(|writer| {
            let noise: Vec<u8> = (0..40u32 << 20)
                .map(|at| (at.wrapping_mul(at) >> 7) as u8)
                .collect();
            let plain = attributes(0o644);
            let size = noise.len() as u64;
            writer
                .file(b"root/large", &plain, &mut &noise[..], size)
                .unwrap();
            for at in 0..20_000 {
                let path = format!("root/{}/{at}", at % 100);
                writer
                    .file(path.as_bytes(), &plain, &mut &b"x"[..], 1)
                    .unwrap();
            }
        });
        let Some((_draft, seed)) = seeded else { return };
        assert!(seed.exists(), "no seed was made");
        tool::run(E2FSCK.command().unwrap().args(["-f", "-n"]).arg(&seed)).unwrap();
        assert!(debugfs(&seed, "stat root/99/19999").contains("Size: 1"));
    }
}
