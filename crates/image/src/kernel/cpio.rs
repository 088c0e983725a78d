//! A cpio archive in the `newc` form, which the kernel unpacks as its initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

/// Builds an archive in memory. Times, inode numbers and owners are fixed, so that the same
/// calls give the same bytes.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

impl Archive {
    pub(crate) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            inode: 0,
        }
    }

    /// Adds a directory; what contains it must have been added before.
    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, 2, (0, 0), &[]);
    }

    /// Adds a file with those permission bits.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, FILE | mode, 1, (0, 0), content);
    }

    /// Adds a character device with those permission bits and numbers.
    pub(crate) fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.entry(path, CHARACTER | mode, 1, (major, minor), &[]);
    }

    /// The archive with its end mark.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, 1, (0, 0), 0);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, links: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let size =
            u32::try_from(content.len()).expect("a file of an initramfs is smaller than 4 GiB");
        self.header(path, mode, links, device, size);
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn header(&mut self, path: &str, mode: u32, links: u32, device: (u32, u32), size: u32) {
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        let fields = [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::Stdio;

    fn example() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.directory("dev");
        archive.character_device("dev/null", 0o666, 1, 3);
        archive.file("init", 0o755, b"12345");
        archive.finish()
    }

    #[test]
    fn the_same_calls_give_the_same_bytes() {
        assert_eq!(example(), example());
        assert!(example().len().is_multiple_of(4));
    }

    #[test]
    fn cpio_itself_reads_the_archive() {
        let spawned = banger_process::command("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .env("TZ", "UTC")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            eprintln!("skipped: cpio is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&example()).unwrap();
        let output = child.wait_with_output().unwrap();
        insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap(), @r"
        drwxr-xr-x   2 0        0               0 Jan  1  1970 dev
        crw-rw-rw-   1 0        0          1,   3 Jan  1  1970 dev/null
        -rwxr-xr-x   1 0        0               5 Jan  1  1970 init
        ");
    }
}
