//! What strangers' bytes must never do, whatever they are: the bodies of the fuzz targets in
//! `fuzz/`, which the tests below feed with less.
//!
//! Each takes bytes and returns, or panics where something is wrong.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;

use tokio_util::sync::CancellationToken;

use crate::bundle::{Bundle, BundleSource};
use crate::catalog::{Catalog, ImageSource};
use crate::debian;
use crate::ext4::Writer;
use crate::kernel::bzimage;
use crate::manifest::Manifest;
use crate::oci::fuzz as oci;
use crate::progress::Reporter;
use crate::tarball::{End, Reader};
use crate::tool::Tool;

const E2FSCK: Tool = Tool {
    name: "e2fsck",
    package: "e2fsprogs",
};
/// Most bytes of files, so that a sparse one does not take hours.
const LIMIT: u64 = 4 << 20;

/// Any bytes as a tar stream: it ends, and no entry has more content than it says.
pub fn tar(bytes: &[u8]) {
    for end in [End::Marked, End::Anywhere] {
        let mut reader = Reader::new(bytes, end);
        while let Ok(Some(entry)) = reader.next_entry() {
            let mut content = reader.content().take(1 << 16);
            let read = io::copy(&mut content, &mut io::sink()).unwrap_or(0);
            assert!(entry.is_sparse() || read <= entry.size);
        }
    }
}

/// Any bytes as layers, which are laid over each other and become a file system: what is taken is
/// sound as `e2fsck` sees it, and its memory is counted right.
///
/// The bytes are no tar stream but a recipe for one (see [`Recipe`]), so that few are wasted on
/// checksums.
pub fn layers(bytes: &[u8]) {
    let layers = Recipe(bytes).layers();
    let mut file = tempfile::NamedTempFile::new().expect("there is a place for temporary files");
    let disk = file.as_file().try_clone().expect("a file can be had twice");
    let mut writer = oci::merge(layers.iter().map(Vec::as_slice), disk, LIMIT);
    lay_out(&mut writer, file.as_file());
    require_sound(writer, &mut file);
}

/// What an ordinary user's files can show is laid out, all of it and in its place.
fn lay_out(writer: &mut Writer, disk: &File) {
    let Ok(Some(subtree)) = writer.subtree(b"a") else {
        return;
    };
    let Some(amount) = subtree.measure() else {
        return;
    };
    let place = tempfile::tempdir().expect("there is a place for temporary files");
    let root = place.path().join("a");
    subtree
        .unpack(disk, &root, &CancellationToken::new())
        .expect("it was measured");
    let mut inodes = BTreeSet::new();
    let mut open = vec![root];
    while let Some(path) = open.pop() {
        let metadata = path.symlink_metadata().expect("it was laid out");
        inodes.insert(metadata.ino());
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path).expect("its owner may read it");
            open.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        }
    }
    assert_eq!(inodes.len() as u64, amount.inodes);
    let beside = std::fs::read_dir(place.path()).expect("it is ours").count();
    assert_eq!(beside, 1, "something is where it does not belong");
}

/// The same of one tar stream that need not be a layer.
pub fn ext4(bytes: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("there is a place for temporary files");
    let disk = file.as_file().try_clone().expect("a file can be had twice");
    let mut writer = Writer::new(disk, [7; 16]);
    let stream = Recipe(bytes).layers().concat();
    let mut reader = Reader::new(&stream[..], End::Anywhere);
    // What was taken before an entry that is refused must be as sound.
    let mut size = 0u64;
    while let Ok(Some(entry)) = reader.next_entry() {
        size = size.saturating_add(entry.size);
        if size > LIMIT || reader.copy_entry(&entry, &mut writer).is_err() {
            break;
        }
    }
    require_sound(writer, &mut file);
}

fn require_sound(writer: Writer, file: &mut tempfile::NamedTempFile) {
    let (counted, anew) = writer.memory();
    assert_eq!(counted, anew, "the memory is counted wrong");
    writer.finish().expect("a few small files have room");
    let Ok(e2fsck) = E2FSCK.find() else { return };
    let output = banger_process::command(e2fsck)
        .args(["-f", "-n"])
        .arg(file.path())
        .output()
        .expect("e2fsck can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}

/// Any bytes as the documents of a registry, and as what it asks for.
pub fn documents(bytes: &[u8]) {
    oci::documents(bytes);
}

/// Any bytes as the archive of an image, up to the places of its layers.
pub fn archive(bytes: &[u8]) {
    // Half of them as they are, half as a recipe for a tar stream.
    let (kind, rest) = bytes.split_first().unwrap_or((&0, b""));
    let stream = match kind % 2 {
        0 => rest.to_vec(),
        _ => Recipe(rest).layers().concat(),
    };
    oci::archive(as_file(&stream));
}

/// Any bytes as the bundle of an image, and as one of a kernel.
pub fn bundle(bytes: &[u8]) {
    let (kind, rest) = bytes.split_first().unwrap_or((&0, b""));
    let stream = match kind % 3 {
        0 => rest.to_vec(),
        1 => Recipe(rest).layers().concat(),
        _ => zstd::encode_all(&Recipe(rest).layers().concat()[..], 1).unwrap_or_default(),
    };
    let limit = |name: &str| match name {
        "manifest.json" | "vmlinux" => Some(1 << 16),
        name if name.starts_with("modules/") => Some(1 << 10),
        _ => None,
    };
    let source = BundleSource {
        from: &stream[..],
        sha256: None,
        cancel: CancellationToken::new(),
        progress: Reporter::silent(),
        what: String::new(),
    };
    let Ok(mut bundle) = Bundle::open(source) else {
        return;
    };
    while let Ok(Some(part)) = bundle.next(limit) {
        assert!(limit(&part.name).is_some_and(|limit| part.length <= limit));
        assert!(
            !part
                .name
                .split('/')
                .any(|name| name == ".." || name.is_empty())
        );
        let mut content = Vec::new();
        if bundle.content().read_to_end(&mut content).is_ok() {
            assert!(content.len() as u64 <= part.length);
        }
        if part.name == "manifest.json" {
            let _ = serde_json::from_slice::<Manifest>(&content);
        }
    }
}

/// Any bytes as a catalog, as they are or put into one here and there: it is refused, or makes sense
/// as a whole.
pub fn catalog(bytes: &[u8]) {
    let (kind, rest) = bytes.split_first().unwrap_or((&0, b""));
    let text = match kind % 2 {
        0 => rest.to_vec(),
        _ => Recipe(rest).changed(include_bytes!("../catalog.toml")),
    };
    let Ok(catalog) = Catalog::parse(&String::from_utf8_lossy(&text)) else {
        return;
    };
    let kernels: BTreeSet<_> = catalog.kernels.iter().map(|entry| &entry.name).collect();
    let images: BTreeSet<_> = catalog.images.iter().map(|entry| &entry.name).collect();
    assert_eq!(kernels.len(), catalog.kernels.len(), "a name twice");
    assert_eq!(images.len(), catalog.images.len(), "a name twice");
    assert!(kernels.contains(catalog.default_kernel()));
    for kernel in &catalog.kernels {
        assert!(!kernel.sources.is_empty());
    }
    for image in &catalog.images {
        assert!(kernels.contains(&image.kernel));
        assert!(!image.sources.is_empty());
        for source in &image.sources {
            if let ImageSource::Recipe(recipe) = source {
                assert!(recipe.packages.is_sorted());
                let is_option = |word: &String| word.is_empty() || word.starts_with('-');
                assert!(!recipe.packages.iter().chain(&recipe.npm).any(is_option));
            }
        }
    }
}

/// Any bytes as what Debian's archives hold: signed releases, indexes, sources, packages.
pub fn debian(bytes: &[u8]) {
    debian::fuzz::read(bytes);
}

/// Any bytes as a kernel.
pub fn vmlinuz(bytes: &[u8]) {
    let _ = bzimage::extract(bytes);
}

fn as_file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("there is a place for temporary files");
    let written = file.write_all(bytes).and_then(|()| file.rewind());
    written.expect("there is room for a few bytes");
    file
}

/// Bytes that say what tar streams are made of: for each entry its kind, attributes, path, target
/// and content, with headers that are right where the bytes do not want them wrong.
struct Recipe<'a>(&'a [u8]);

impl Recipe<'_> {
    fn layers(mut self) -> Vec<Vec<u8>> {
        let mut layers = vec![Vec::new()];
        while !self.0.is_empty() && layers.len() < 6 {
            match self.byte() {
                0xff => layers.push(Vec::new()),
                kind => {
                    let layer = layers.last_mut().expect("there is always one");
                    self.entry(kind, layer);
                }
            }
        }
        layers
    }

    fn entry(&mut self, kind: u8, into: &mut Vec<u8>) {
        const KINDS: [u8; 14] = *b"00005512346xgS";
        let kind = KINDS[usize::from(kind) % KINDS.len()];
        let how = self.byte();
        let content = match (kind, how & 1) {
            // Records are right, so that their values are what matters.
            (b'x' | b'g', 0) => self.records(),
            (b'0' | b'x' | b'g', _) => self.bytes(),
            _ => Vec::new(),
        };
        let mut header = tar::Header::new_gnu();
        let path = self.path(how);
        let length = path.len().min(100);
        header.as_old_mut().name[..length].copy_from_slice(&path[..length]);
        if matches!(kind, b'1' | b'2') {
            let target = self.path(how >> 1);
            let length = target.len().min(100);
            header.as_old_mut().linkname[..length].copy_from_slice(&target[..length]);
        }
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(u32::from(self.byte()) * 16);
        // Mostly root.
        let owner = u64::from(self.byte());
        header.set_uid(if owner < 0x80 {
            0
        } else {
            owner << (owner % 32)
        });
        header.set_gid(0);
        header.set_mtime(u64::from(how) << (how % 40));
        header.set_size(content.len() as u64);
        if kind == b'S' {
            self.sparse(&mut header);
        }
        if how & 0x80 != 0 {
            // Anything anywhere.
            let at = usize::from(self.byte()) * 2;
            header.as_mut_bytes()[at] = self.byte();
        }
        header.set_cksum();
        into.extend(header.as_bytes());
        into.extend(&content);
        into.resize(into.len().next_multiple_of(512), 0);
    }

    /// A few names that meet often, or any.
    fn path(&mut self, how: u8) -> Vec<u8> {
        const NAMES: [&[u8]; 12] = [
            b"a",
            b"b",
            b"c",
            b"a",
            b"b",
            b".wh.a",
            b".wh.b",
            b".wh..wh..opq",
            b"..",
            b".",
            b"",
            b"lost+found",
        ];
        if how & 0x40 != 0 {
            return self.bytes();
        }
        let count = how % 4 + 1;
        let names: Vec<&[u8]> = (0..count)
            .map(|_| NAMES[usize::from(self.byte()) % NAMES.len()])
            .collect();
        names.join(&b'/')
    }

    fn records(&mut self) -> Vec<u8> {
        const KEYS: [&str; 16] = [
            "path",
            "linkpath",
            "size",
            "uid",
            "gid",
            "mtime",
            "SCHILY.xattr.user.a",
            "SCHILY.xattr.user.b",
            "SCHILY.xattr.security.capability",
            "SCHILY.xattr.system.posix_acl_access",
            "SCHILY.xattr.trusted.overlay.opaque",
            "GNU.sparse.major",
            "GNU.sparse.map",
            "GNU.sparse.realsize",
            "GNU.sparse.size",
            "GNU.sparse.name",
        ];
        let mut records = Vec::new();
        for _ in 0..self.byte() % 4 {
            let key = KEYS[usize::from(self.byte()) % KEYS.len()];
            let value = self.bytes();
            let rest = 3 + key.len() + value.len();
            // The length counts its own digits.
            let digits = [1, 2, 3, 4].into_iter();
            let fitting = digits
                .map(|digits| rest + digits)
                .find(|length| length.to_string().len() + rest == *length);
            let Some(length) = fitting else { continue };
            records.extend(format!("{length} {key}=").bytes());
            records.extend(value);
            records.push(b'\n');
        }
        records
    }

    fn sparse(&mut self, header: &mut tar::Header) {
        let (pieces, size) = (self.byte() % 5, u64::from(self.byte()) << 12);
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.realsize = *b"000000000000";
            gnu.set_real_size(size);
            for piece in gnu.sparse.iter_mut().take(pieces.into()) {
                piece.set_offset(u64::from(self.byte()) << 10);
                piece.set_length(u64::from(self.byte()));
            }
            gnu.set_is_extended(self.byte() == 1);
        }
    }

    /// `text` with parts of it replaced: for each, where, how much, and by what.
    fn changed(mut self, text: &[u8]) -> Vec<u8> {
        let mut text = text.to_vec();
        while !self.0.is_empty() {
            let at = usize::from(self.byte()) << 8 | usize::from(self.byte());
            let start = at % (text.len() + 1);
            let end = (start + usize::from(self.byte()) % 64).min(text.len());
            let put = self.bytes();
            text.splice(start..end, put);
        }
        text
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, b""));
        self.0 = rest;
        *first
    }

    /// So many bytes as the next one says; often a run of one.
    fn bytes(&mut self) -> Vec<u8> {
        let length = self.byte();
        if length > 200 {
            return vec![self.byte(); usize::from(length - 200) * 400];
        }
        let (bytes, rest) = self.0.split_at(usize::from(length).min(self.0.len()));
        self.0 = rest;
        bytes.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..600)
    }

    #[test]
    fn a_recipe_changes_what_it_says() {
        let recipe = [0, 1, 2, 1, b'x', 0, 0, 0, 1, b'y'];
        assert_eq!(Recipe(&recipe).changed(b"abcd"), b"yaxd");
    }

    #[test]
    fn a_recipe_makes_what_it_says() {
        // A directory `a`, a file `a/b` of two bytes, and a layer that hides it.
        let recipe = [
            4, 0, 0, 1, 0, // directory, one name: a; mode, owner
            0, 1, 2, b'h', b'i', 0, 1, 1, 0,    // file with content, two names: a/b
            0xff, //
            0, 1, 0, 0, 6, 1, 0, // empty file: a/.wh.b
        ];
        let layers = Recipe(&recipe).layers();
        let paths: Vec<Vec<String>> = layers
            .iter()
            .map(|layer| {
                let mut reader = Reader::new(&layer[..], End::Anywhere);
                let mut paths = Vec::new();
                while let Some(entry) = reader.next_entry().unwrap() {
                    paths.push(String::from_utf8_lossy(&entry.path).into_owned());
                }
                paths
            })
            .collect();
        assert_eq!(paths, [vec!["a", "a/b"], vec!["a/.wh.b"]]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_comes_is_taken_or_refused(bytes in bytes()) {
            tar(&bytes);
            documents(&bytes);
            archive(&bytes);
            bundle(&bytes);
            catalog(&bytes);
            debian(&bytes);
            vmlinuz(&bytes);
        }

        #[test]
        fn whatever_is_taken_is_a_sound_file_system(bytes in bytes()) {
            layers(&bytes);
            ext4(&bytes);
        }
    }
}
