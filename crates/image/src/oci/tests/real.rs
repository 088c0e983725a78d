//! Images in a real registry, against what `umoci` makes of the same layers.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

use tar::EntryType;

use super::image::{Image, Layer};
use super::registry::{Registry, run};
use super::server::{Home, request_for};
use crate::ext4::read::{self, ContentHash, Node};
use crate::tool::Tool;

const UMOCI: Tool = Tool {
    name: "umoci",
    package: "umoci",
};
const E2FSCK: Tool = Tool {
    name: "e2fsck",
    package: "e2fsprogs",
};
const BUSYBOX: &str = "/bin/busybox";

/// What `umoci` unpacked, in the words of our reader.
fn unpacked(root: &Path) -> BTreeMap<Vec<u8>, Node> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            open.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        let is_device = matches!(metadata.mode() & 0o170_000, 0o020_000 | 0o060_000);
        let device = metadata.rdev();
        let node = Node {
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified: (metadata.mtime(), metadata.mtime_nsec().try_into().unwrap()),
            size: if metadata.is_dir() { 0 } else { metadata.len() },
            content: metadata.is_file().then(|| content(&path)),
            target: metadata.is_symlink().then(|| {
                std::fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_vec()
            }),
            device: is_device.then(|| (rustix::fs::major(device), rustix::fs::minor(device))),
            extended: extended(&path),
            links: if metadata.is_dir() {
                0
            } else {
                metadata.nlink().try_into().unwrap()
            },
            inode: metadata.ino(),
        };
        found.insert(name.to_vec(), node);
    }
    found
}

fn content(path: &Path) -> [u8; 32] {
    let mut file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let mut hash = ContentHash::default();
    let mut at = 0;
    // Only what is not a hole is read.
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        at = data / 4096 * 4096;
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        while at < hole {
            let mut block = [0; 4096];
            let wanted = usize::try_from((length - at).min(4096)).unwrap();
            file.read_exact(&mut block[..wanted]).unwrap();
            hash.block(at / 4096, &block[..wanted]);
            at += 4096;
        }
    }
    hash.finish()
}

fn extended(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..length].split(|byte| *byte == 0);
    names
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

/// Names of the same file.
fn groups(tree: &BTreeMap<Vec<u8>, Node>) -> BTreeSet<BTreeSet<&[u8]>> {
    let mut groups: BTreeMap<u64, BTreeSet<&[u8]>> = BTreeMap::new();
    for (path, node) in tree {
        groups.entry(node.inode).or_default().insert(path);
    }
    groups
        .into_values()
        .filter(|names| names.len() > 1)
        .collect()
}

/// Everything but inode numbers, and what a file system says of its directories.
fn comparable(node: &Node) -> Node {
    let mut node = node.clone();
    node.inode = 0;
    if node.mode & 0o170_000 == 0o040_000 {
        node.links = 0;
    }
    node
}

/// A registry and a directory to work in; `None`, with a word, where the comparison cannot be made.
fn workplace() -> Option<(Registry, tempfile::TempDir)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can unpack an image with its owners and devices");
        return None;
    }
    for tool in [UMOCI, E2FSCK] {
        if let Err(error) = tool.find() {
            eprintln!("skipped: {error}");
            return None;
        }
    }
    Some((Registry::start()?, tempfile::tempdir().unwrap()))
}

/// Puts an image of these layers into a real registry, pulls it, and compares it with what
/// `umoci` unpacks.
async fn same_as_umoci(layers: &[Vec<u8>]) {
    let Some((registry, directory)) = workplace() else {
        return;
    };
    let (image, layout) = (Image::of(layers), directory.path().join("layout"));
    image.write_layout(&layout);
    // Older versions of umoci know only one compression.
    let plain = directory.path().join("plain");
    Image::plain(layers).write_layout(&plain);
    let pulled = require_same(&registry, &layout, &plain).await;
    // The registry had the layers as they are, each compressed in its own way.
    let digest = super::image::digest(&image.manifest_bytes());
    assert_eq!(pulled, digest.to_string());
}

/// Compares the image `latest` of a layout, which goes by the registry, with what `umoci` unpacks
/// of `plain`, which has the same layers. Returns the digest of what was pulled.
async fn require_same(registry: &Registry, layout: &Path, plain: &Path) -> String {
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("bundle");
    unpack(plain, &bundle);
    let reference = registry.push(layout);
    let home = Home::new();
    let request = request_for(&reference, Some(registry.auth()));
    let pulled = home.pull(&request).await.unwrap();
    run(E2FSCK, [OsStr::new("-fn"), pulled.rootfs.as_os_str()]);
    let (ours, theirs) = (read::tree(&pulled.rootfs), unpacked(&bundle.join("rootfs")));
    let names = |tree: &BTreeMap<Vec<u8>, Node>| -> Vec<String> {
        tree.keys()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect()
    };
    assert_eq!(names(&ours), names(&theirs));
    for (path, node) in &ours {
        assert_eq!(
            comparable(node),
            comparable(&theirs[path]),
            "{}",
            String::from_utf8_lossy(path)
        );
    }
    assert_eq!(groups(&ours), groups(&theirs));
    pulled.manifest.digest
}

/// `umoci` unpacks the image `latest` of a layout.
fn unpack(layout: &Path, bundle: &Path) {
    let tagged = format!("{}:latest", layout.display());
    let (image, bundle) = (OsStr::new(&tagged), bundle.as_os_str());
    run(
        UMOCI,
        [OsStr::new("unpack"), OsStr::new("--image"), image, bundle],
    );
}

/// A layer with a root that has a time.
fn layer() -> Layer {
    Layer::new().directory("./")
}

#[tokio::test]
async fn whiteouts_and_opaque_directories_are_as_umoci_has_them() {
    let below = layer()
        .directory("a")
        .file("a/one", b"1")
        .file("a/two", b"2")
        .directory("b")
        .directory("b/deep")
        .file("b/deep/three", b"3")
        .directory("c")
        .file("c/four", b"4")
        .file("five", b"5");
    let above = layer()
        .directory("a")
        .file("a/new", b"new")
        .file("a/.wh..wh..opq", b"")
        .directory("b")
        .file("b/.wh.deep", b"")
        .file(".wh.c", b"")
        .file(".wh.five", b"")
        .file("five", b"again");
    let last = layer().directory("a").file("a/.wh.new", b"");
    let layers = [below.finish(), above.finish(), last.finish()];
    same_as_umoci(&layers).await;
}

#[tokio::test]
async fn attributes_and_capabilities_are_as_umoci_has_them() {
    // `cap_net_raw=ep`, as `setcap` writes it.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layers = [
        layer()
            .attributes(&[("security.capability", &capability)])
            .file("ping", b"ping")
            .attributes(&[
                ("user.empty", b""),
                ("user.binary", b"\n\0=\xff"),
                ("trusted.x", b"y"),
            ])
            .file("many", b"many")
            .attributes(&[("user.long", &[b'v'; 2000])])
            .directory("long")
            .finish(),
        layer()
            .file("many", b"none any more")
            .attributes(&[("user.other", b"1")])
            .directory("long")
            .finish(),
    ];
    same_as_umoci(&layers).await;
}

#[tokio::test]
async fn modes_and_owners_are_as_umoci_has_them() {
    let file = |layer: Layer, path: &str, mode: u32, owner: (u64, u64)| {
        layer.entry(path, EntryType::Regular, mode, owner, None, b"x")
    };
    let layer = file(layer(), "setuid", 0o4755, (0, 0));
    let layer = file(layer, "setgid", 0o2755, (0, 42));
    let layer = file(layer, "none", 0, (1000, 1000));
    let layer = file(layer, "far", 0o640, (70_000, 3_000_000_000));
    let layer = layer
        .entry("sticky", EntryType::Directory, 0o1777, (0, 0), None, b"")
        .entry("shared", EntryType::Directory, 0o2775, (5, 6), None, b"");
    same_as_umoci(&[layer.finish()]).await;
}

#[tokio::test]
async fn hard_links_across_layers_are_as_umoci_has_them() {
    let layers = [
        layer()
            .file("one", b"content")
            .file("other", b"other")
            .finish(),
        layer()
            .hard_link("two", "one")
            .symlink("link", "one")
            .finish(),
        layer()
            .hard_link("three", "two")
            .hard_link("link-too", "link")
            .finish(),
        layer().file(".wh.one", b"").finish(),
    ];
    same_as_umoci(&layers).await;
}

#[tokio::test]
async fn long_and_strange_names_are_as_umoci_has_them() {
    let longest = "n".repeat(255);
    let deep = vec!["directory-of-some-length"; 20].join("/");
    let mut layer = layer()
        .file(&longest, b"1")
        .symlink("to-longest", &longest)
        .symlink("far", &"t".repeat(1000))
        .file("ünïcödé ☃ 名前", b"2")
        .file("new\nline\tand \\ \" '", b"3")
        .file(" ", b"4")
        .file("-rf", b"5")
        .file("*", b"6")
        .file("a.wh.b", b"7");
    for (at, _) in deep.match_indices('/') {
        layer = layer.directory(&deep[..at]);
    }
    let layer = layer
        .directory(&deep)
        .file(&format!("{deep}/{longest}"), b"8");
    same_as_umoci(&[layer.finish()]).await;
}

#[tokio::test]
async fn a_symbolic_link_that_a_later_layer_uses_as_a_directory_is_as_umoci_has_it() {
    let layers = [
        layer()
            .directory("usr")
            .directory("usr/lib")
            .directory("usr/bin")
            .symlink("lib", "usr/lib")
            .symlink("bin", "/usr/bin")
            .finish(),
        layer()
            .file("lib/library", b"1")
            .file("bin/tool", b"2")
            .hard_link("bin/same", "lib/library")
            .finish(),
        layer().file("lib/.wh.library", b"").finish(),
    ];
    same_as_umoci(&layers).await;
}

#[tokio::test]
async fn files_and_directories_in_each_others_place_are_as_umoci_has_them() {
    let layers = [
        layer()
            .directory("d")
            .file("d/in", b"1")
            .file("f", b"2")
            .symlink("l", "d")
            .symlink("to-file", "f")
            .finish(),
        layer()
            .file("d", b"now a file")
            .directory("f")
            .file("f/in", b"3")
            .directory("l")
            .file("l/in", b"4")
            .file("to-file", b"5")
            .finish(),
    ];
    same_as_umoci(&layers).await;
}

#[tokio::test]
async fn devices_and_pipes_are_as_umoci_has_them() {
    let layer = layer()
        .directory("dev")
        .entry("dev/null", EntryType::Char, 0o666, (0, 0), None, b"")
        .entry("dev/disk", EntryType::Block, 0o660, (0, 6), None, b"")
        .entry("pipe", EntryType::Fifo, 0o600, (1, 1), None, b"");
    same_as_umoci(&[layer.finish()]).await;
}

#[tokio::test]
async fn a_hundred_thousand_files_are_as_umoci_has_them() {
    let mut many = layer();
    for directory in 0..100 {
        many = many.directory(&format!("d{directory}"));
        for file in 0..1000 {
            // Few have something in them, so that the layer is not too large for a test.
            let content = match file % 100 {
                0 => format!("{directory} {file}"),
                _ => String::new(),
            };
            many = many.file(&format!("d{directory}/f{file}"), content.as_bytes());
        }
    }
    // The third layer is the one that is not compressed.
    same_as_umoci(&[layer().finish(), layer().finish(), many.finish()]).await;
}

#[tokio::test]
async fn a_sparse_file_of_three_gib_is_as_umoci_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = File::create_new(directory.path().join("sparse")).unwrap();
    file.write_all(b"begin").unwrap();
    file.seek(SeekFrom::Start(2 << 30)).unwrap();
    file.write_all(b"middle").unwrap();
    file.set_len(3 << 30).unwrap();
    let output = banger_process::command("tar")
        .args(["--create", "--sparse", "--format=posix", "--directory"])
        .arg(directory.path())
        .arg("sparse")
        .output()
        .unwrap();
    assert!(output.status.success());
    same_as_umoci(&[layer().finish(), output.stdout]).await;
}

#[tokio::test]
async fn busybox_is_as_umoci_has_it() {
    let Ok(busybox) = std::fs::read(BUSYBOX) else {
        eprintln!("skipped: busybox-static is not installed");
        return;
    };
    let mut layer = layer().directory("bin").entry(
        "bin/busybox",
        EntryType::Regular,
        0o755,
        (0, 0),
        None,
        &busybox,
    );
    for applet in ["sh", "ls", "cat"] {
        layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    same_as_umoci(&[layer.finish()]).await;
}

#[tokio::test]
async fn a_part_of_this_system_is_as_umoci_has_it() {
    let output = banger_process::command("tar")
        .args([
            "--create",
            "--format=posix",
            "--xattrs",
            "--xattrs-include=*",
        ])
        .args([
            "--directory",
            "/",
            "etc/alternatives",
            "etc/ssl",
            "usr/share/zoneinfo",
        ])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let above = layer().directory("etc").file("etc/.wh.ssl", b"").finish();
    let below = layer()
        .directory("etc")
        .directory("usr")
        .directory("usr/share")
        .finish();
    same_as_umoci(&[below, output.stdout, above]).await;
}

#[tokio::test]
async fn an_image_that_umoci_made_is_as_umoci_has_it() {
    let Some((registry, directory)) = workplace() else {
        return;
    };
    let (layout, bundle) = (
        directory.path().join("layout"),
        directory.path().join("bundle"),
    );
    let tagged = format!("{}:latest", layout.display());
    let layout_argument = layout.display().to_string();
    run(UMOCI, ["init", "--layout", &layout_argument]);
    run(UMOCI, ["new", "--image", &tagged]);
    unpack(&layout, &bundle);
    let bundle_argument = bundle.display().to_string();
    let repack = || {
        let arguments = ["repack", "--refresh-bundle", "--image", &tagged];
        run(UMOCI, arguments.into_iter().chain([&*bundle_argument]));
    };
    let root = bundle.join("rootfs");
    let write = |name: &str, mode: u32| {
        std::fs::write(root.join(name), name).unwrap();
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    std::fs::create_dir_all(root.join("usr/bin")).unwrap();
    std::fs::create_dir_all(root.join("gone/deep")).unwrap();
    for (name, mode) in [
        ("usr/bin/tool", 0o4755),
        ("usr/bin/other", 0o755),
        ("gone/deep/file", 0o600),
        ("becomes-directory", 0o644),
    ] {
        write(name, mode);
    }
    std::fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/same")).unwrap();
    std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
    repack();
    // The next layer has whiteouts, as umoci finds and writes them.
    std::fs::remove_dir_all(root.join("gone")).unwrap();
    std::fs::remove_file(root.join("usr/bin/other")).unwrap();
    std::fs::remove_file(root.join("becomes-directory")).unwrap();
    std::fs::create_dir(root.join("becomes-directory")).unwrap();
    write("becomes-directory/in", 0o640);
    write("usr/bin/new", 0o711);
    rustix::fs::lsetxattr(
        root.join("usr/bin/new"),
        "security.capability",
        &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    repack();
    require_same(&registry, &layout, &layout).await;
}
