//! The initramfs: banger's agent as init, and the modules that boot needs.
//!
//! ```text
//! /init                  the agent
//! /banger/modules.load   one path a line, in the order of loading
//! /banger/modules/*.ko   decompressed: the kernel's own loader takes them as they are
//! /dev/{console,null}    before anything is mounted
//! /dev /proc /run /sys   to mount on
//! ```

use std::io::{self, Read};
use std::path::Path;

use super::cpio::Archive;
use crate::debian::deb::decompress;

/// No module is larger.
const LARGEST_MODULE: u64 = 64 << 20;

/// A module, decompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// File name without directory, such as `virtio_blk.ko`.
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// Builds the archive; `modules` are in load order.
pub(crate) fn build(agent: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::new();
    for directory in ["banger", "banger/modules", "dev", "proc", "run", "sys"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    archive.file("init", 0o755, agent);
    let mut list = String::new();
    for module in modules {
        let path = format!("banger/modules/{}", module.name);
        archive.file(&path, 0o644, &module.content);
        list.push_str(&format!("/{path}\n"));
    }
    archive.file("banger/modules.load", 0o644, list.as_bytes());
    archive.finish()
}

/// Reads the module at `path` and decompresses it as its name says.
pub(crate) fn read_module(path: &Path) -> io::Result<Module> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (stem, compression) = name.split_once(".ko").ok_or(io::ErrorKind::InvalidInput)?;
    let file = std::fs::File::open(path)?;
    let stream = decompress(compression, file).ok_or(io::ErrorKind::Unsupported)??;
    let mut content = Vec::new();
    stream.take(LARGEST_MODULE).read_to_end(&mut content)?;
    match content.starts_with(b"\x7fELF") {
        true => Ok(Module {
            name: format!("{stem}.ko"),
            content,
        }),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::Stdio;

    fn example() -> Vec<u8> {
        let module = |name: &str| Module {
            name: format!("{name}.ko"),
            content: name.as_bytes().to_vec(),
        };
        build(b"the agent", &[module("failover"), module("virtio_net")])
    }

    #[test]
    fn the_archive_holds_the_agent_the_modules_and_their_order() {
        let mut list = Vec::new();
        let archive = example();
        let mut rest = &archive[..];
        // Header, name and content of each entry, every one padded to four bytes.
        loop {
            let field = |at: usize| {
                let digits = std::str::from_utf8(&rest[6 + at * 8..14 + at * 8]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let device = (field(9), field(10));
            let name = String::from_utf8(rest[110..110 + name_size - 1].to_vec()).unwrap();
            let content_at = (110 + name_size).next_multiple_of(4);
            let content = &rest[content_at..content_at + size];
            if name == "TRAILER!!!" {
                break;
            }
            list.push(format!(
                "{mode:06o} {device:?} {name}: {:?}",
                String::from_utf8_lossy(content)
            ));
            rest = &rest[(content_at + size).next_multiple_of(4)..];
        }
        insta::assert_snapshot!(list.join("\n"), @r#"
        040755 (0, 0) banger: ""
        040755 (0, 0) banger/modules: ""
        040755 (0, 0) dev: ""
        040755 (0, 0) proc: ""
        040755 (0, 0) run: ""
        040755 (0, 0) sys: ""
        020600 (5, 1) dev/console: ""
        020666 (1, 3) dev/null: ""
        100755 (0, 0) init: "the agent"
        100644 (0, 0) banger/modules/failover.ko: "failover"
        100644 (0, 0) banger/modules/virtio_net.ko: "virtio_net"
        100644 (0, 0) banger/modules.load: "/banger/modules/failover.ko\n/banger/modules/virtio_net.ko\n"
        "#);
    }

    #[test]
    fn cpio_itself_lists_the_archive() {
        let spawned = banger_process::command("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            eprintln!("skipped: cpio is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&example()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(
            String::from_utf8(output.stdout).unwrap().lines().count(),
            12
        );
    }

    #[test]
    fn modules_are_decompressed_by_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.ko.zst");
        std::fs::write(&path, zstd::encode_all(&b"\x7fELF module"[..], 1).unwrap()).unwrap();
        assert_eq!(
            read_module(&path).unwrap(),
            Module {
                name: "x.ko".to_owned(),
                content: b"\x7fELF module".to_vec()
            }
        );
        let path = directory.path().join("y.ko");
        std::fs::write(&path, "not a module").unwrap();
        assert_eq!(
            read_module(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
