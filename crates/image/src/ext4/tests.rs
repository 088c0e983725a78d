//! The writer against the file system's own tools: `e2fsck` finds nothing to mend, and
//! `debugfs` reads back what was written.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::tool::Tool;

const E2FSCK: Tool = Tool {
    name: "e2fsck",
    package: "e2fsprogs",
};
const DEBUGFS: Tool = Tool {
    name: "debugfs",
    package: "e2fsprogs",
};

/// Where to write a disk; `None`, with a word, without the tools.
fn workplace() -> Option<(tempfile::TempDir, PathBuf)> {
    if E2FSCK.find().is_err() || DEBUGFS.find().is_err() {
        eprintln!("skipped: e2fsprogs is not installed");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk.ext4");
    Some((directory, disk))
}

fn writer(disk: &Path) -> Writer {
    Writer::new(File::create_new(disk).unwrap(), [7; 16])
}

fn require_clean(disk: &Path) {
    let output = banger_process::command(E2FSCK.find().unwrap())
        .args(["-f", "-n"])
        .arg(disk)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
}

/// Runs debugfs commands, one a line, and returns what they print.
fn debugfs(disk: &Path, commands: &str) -> String {
    let script = disk.with_extension("commands");
    std::fs::write(&script, commands).unwrap();
    let output = banger_process::command(DEBUGFS.find().unwrap())
        .arg("-f")
        .arg(&script)
        .arg(disk)
        .stderr(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the line `field: value` of a `stat` says.
fn stat_field<'a>(stat: &'a str, field: &str) -> &'a str {
    let at = stat
        .find(field)
        .unwrap_or_else(|| panic!("no {field} in {stat}"));
    stat[at + field.len()..]
        .trim_start_matches([':', ' '])
        .split_whitespace()
        .next()
        .unwrap()
}

fn attributes(mode: u16) -> Attributes {
    Attributes {
        mode,
        ..Attributes::default()
    }
}

fn write_file(writer: &mut Writer, path: &str, content: &[u8]) {
    writer
        .file(
            path.as_bytes(),
            &attributes(0o644),
            &mut &content[..],
            content.len() as u64,
        )
        .unwrap();
}

#[test]
fn an_empty_file_system_is_clean() {
    let Some((_directory, disk)) = workplace() else {
        return;
    };
    let summary = writer(&disk).finish().unwrap();
    require_clean(&disk);
    assert_eq!(std::fs::metadata(&disk).unwrap().len(), summary.length);
    assert!(summary.length < 1 << 20, "{}", summary.length);
}

#[test]
fn special_files_keep_their_numbers() {
    let Some((_directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    for (path, device) in [
        ("null", Device::Character(1, 3)),
        ("large", Device::Block(259, 70_000)),
        ("pipe", Device::Fifo),
    ] {
        writer
            .device(path.as_bytes(), &attributes(0o660), device)
            .unwrap();
    }
    writer.finish().unwrap();
    require_clean(&disk);
    let stat = debugfs(&disk, "stat null\nstat large\nstat pipe\n");
    assert!(stat.contains("Type: character special"), "{stat}");
    assert!(stat.contains("Device major/minor number: 01:03"), "{stat}");
    assert!(
        stat.contains("Device major/minor number: 259:70000"),
        "{stat}"
    );
    assert!(stat.contains("Type: FIFO"), "{stat}");
}

#[test]
fn symbolic_links_of_every_length_read_back() {
    let Some((_directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    for length in [1, 59, 60, 61, 4095] {
        let target = "t".repeat(length);
        writer
            .symlink(
                format!("link{length}").as_bytes(),
                &attributes(0),
                target.as_bytes(),
            )
            .unwrap();
    }
    assert!(
        writer
            .symlink(b"long", &attributes(0), &[b't'; 4096])
            .is_err()
    );
    assert!(writer.symlink(b"empty", &attributes(0), b"").is_err());
    writer.finish().unwrap();
    require_clean(&disk);
    for length in [1, 59, 60, 61, 4095] {
        let stat = debugfs(&disk, &format!("stat link{length}\n"));
        assert_eq!(stat_field(&stat, "Size"), length.to_string());
    }
}

#[test]
fn a_file_of_more_than_2_gib_keeps_its_holes_and_its_end() {
    const HOLE: u64 = 3 << 30;
    let Some((_directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    let mut content = (&b"begin"[..])
        .chain(io::repeat(0).take(HOLE))
        .chain(&b"end"[..]);
    writer
        .file(b"large", &attributes(0o644), &mut content, HOLE + 8)
        .unwrap();
    writer.finish().unwrap();
    require_clean(&disk);
    assert!(std::fs::metadata(&disk).unwrap().blocks() * 512 < 1 << 20);
    // Through a pipe: what debugfs writes to a file has no holes.
    let mut cat = banger_process::command(DEBUGFS.find().unwrap())
        .args(["-R", "cat large"])
        .arg(&disk)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut shown = cat.stdout.take().unwrap();
    let mut begin = [0; 5];
    shown.read_exact(&mut begin).unwrap();
    assert_eq!(&begin, b"begin");
    let (mut hole, mut buffer, zeros) = (0, vec![0; 1 << 20], vec![0; 1 << 20]);
    while hole < HOLE {
        let wanted = usize::try_from(HOLE - hole).unwrap().min(buffer.len());
        shown.read_exact(&mut buffer[..wanted]).unwrap();
        assert!(buffer[..wanted] == zeros[..wanted], "not all zeros");
        hole += wanted as u64;
    }
    let mut end = Vec::new();
    shown.read_to_end(&mut end).unwrap();
    assert_eq!(end, b"end");
    assert!(cat.wait().unwrap().success());
}

#[test]
fn a_file_of_many_extents_has_a_tree_of_them() {
    // Each piece is data and then a hole: more extents than one tree block can hold.
    const PIECE: usize = 17 * BLOCK;
    const PIECES: usize = 1500;
    let Some((directory, disk)) = workplace() else {
        return;
    };
    let mut content = vec![0; PIECE * PIECES];
    for (number, piece) in content.chunks_mut(PIECE).enumerate() {
        piece[..4].copy_from_slice(&(number as u32 + 1).to_le_bytes());
    }
    let mut writer = writer(&disk);
    write_file(&mut writer, "file", &content);
    write_file(&mut writer, "next", b"next");
    writer.finish().unwrap();
    require_clean(&disk);
    let copy = directory.path().join("copy");
    debugfs(&disk, &format!("dump file {}\n", copy.display()));
    assert!(std::fs::read(&copy).unwrap() == content);
}

#[test]
fn more_than_one_group_of_blocks_and_of_inodes_is_clean() {
    const FILES: usize = 70_000;
    let Some((_directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    let data = [1; 1 << 20];
    for number in 0..150 {
        write_file(&mut writer, &format!("data/{number}"), &data);
    }
    for number in 0..FILES {
        write_file(
            &mut writer,
            &format!("many/file-with-some-name-{number}"),
            b"",
        );
    }
    let summary = writer.finish().unwrap();
    assert!(summary.inodes > FILES as u64);
    require_clean(&disk);
    let stat = debugfs(
        &disk,
        "stat many/file-with-some-name-69999\nstat data/149\n",
    );
    assert!(stat.contains("Size: 1048576"), "{stat}");
}

#[test]
fn directories_count_their_subdirectories_also_when_they_are_too_many_to_count() {
    let Some((_directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    for number in 0..65_100 {
        writer
            .directory(format!("d/{number}").as_bytes(), &attributes(0o755))
            .unwrap();
    }
    writer.directory(b"e/f", &attributes(0o755)).unwrap();
    writer.finish().unwrap();
    require_clean(&disk);
    let stat = debugfs(&disk, "stat d\n");
    assert_eq!(stat_field(&stat, "Links"), "1");
    assert_eq!(stat_field(&debugfs(&disk, "stat e\n"), "Links"), "3");
}

#[test]
fn what_is_replaced_or_removed_leaves_no_trace() {
    let Some((_directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    write_file(&mut writer, "a/file", &[1; 20_000]);
    write_file(&mut writer, "a/file", b"new");
    writer.hard_link(b"b", b"a/file").unwrap();
    writer.hard_link(b"b", b"a/file").unwrap();
    writer.symlink(b"a/file", &attributes(0), b"/b").unwrap();
    writer
        .directory(b"a/gone/below", &attributes(0o755))
        .unwrap();
    write_file(&mut writer, "a/gone/below/file", &[2; 100_000]);
    writer.hard_link(b"kept", b"a/gone/below/file").unwrap();
    writer.remove(b"a/gone").unwrap();
    writer.remove(b"not/there").unwrap();
    writer.directory(b"c", &attributes(0o755)).unwrap();
    write_file(&mut writer, "c", b"file");
    write_file(&mut writer, "d", b"file");
    writer.directory(b"d", &attributes(0o700)).unwrap();
    writer.finish().unwrap();
    require_clean(&disk);
    let text = debugfs(
        &disk,
        "cat b\nstat b\nstat kept\nstat c\nstat d\nls -p /a\n",
    );
    assert!(text.contains("new"), "{text}");
    assert!(text.contains("Size: 100000"), "{text}");
    assert!(!text.contains("gone"), "{text}");
}

#[test]
fn a_hard_link_may_replace_the_directory_that_holds_its_target() {
    let Some((_directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    write_file(&mut writer, "a/b/file", b"content");
    writer.hard_link(b"a", b"a/b/file").unwrap();
    let summary = writer.finish().unwrap();
    require_clean(&disk);
    assert_eq!(summary.inodes, 2, "lost+found and the file");
    assert!(debugfs(&disk, "cat a\n").contains("content"));
}

#[test]
fn attributes_of_every_size_read_back() {
    let Some((directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    let capability = vec![
        1, 0, 0, 2, 0x0a, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let sets: [Vec<(Vec<u8>, Vec<u8>)>; 3] = [
        vec![(b"security.capability".to_vec(), capability)],
        vec![
            (b"user.large".to_vec(), vec![b'x'; 3000]),
            (b"user.a".to_vec(), Vec::new()),
        ],
        vec![
            (b"user.small".to_vec(), b"1".to_vec()),
            (b"trusted.x".to_vec(), b"22".to_vec()),
            (b"user.odd".to_vec(), b"54321".to_vec()),
        ],
    ];
    for (number, extended) in sets.iter().enumerate() {
        let attributes = Attributes {
            mode: 0o755,
            extended: extended.clone(),
            ..Attributes::default()
        };
        writer
            .file(
                format!("f{number}").as_bytes(),
                &attributes,
                &mut &b"x"[..],
                1,
            )
            .unwrap();
        writer
            .directory(format!("d{number}").as_bytes(), &attributes)
            .unwrap();
    }
    let too_large = Attributes {
        extended: vec![(b"user.x".to_vec(), vec![0; 4096])],
        ..Attributes::default()
    };
    assert!(matches!(
        writer.directory(b"x", &too_large),
        Err(Ext4Error::Attribute { .. })
    ));
    writer.finish().unwrap();
    require_clean(&disk);
    let value = directory.path().join("value");
    for (number, extended) in sets.iter().enumerate() {
        for kind in ["f", "d"] {
            for (name, expected) in extended {
                let name = String::from_utf8_lossy(name);
                debugfs(
                    &disk,
                    &format!("ea_get -f {} {kind}{number} {name}\n", value.display()),
                );
                assert_eq!(
                    &std::fs::read(&value).unwrap(),
                    expected,
                    "{kind}{number} {name}"
                );
            }
        }
    }
}

#[test]
fn memory_for_names_and_what_belongs_to_them_is_bounded() {
    const LIMIT: usize = 1 << 20;
    let attribute = |number: u32| Attributes {
        extended: vec![(b"user.x".to_vec(), number.to_string().into_bytes())],
        ..Attributes::default()
    };
    type Step<'a> = &'a dyn Fn(&mut Writer, u32) -> Result<(), Ext4Error>;
    let kinds: [Step<'_>; 6] = [
        &|writer, number| {
            let path = format!("{}{number}", "n".repeat(240));
            writer.file(path.as_bytes(), &attributes(0), &mut io::empty(), 0)
        },
        &|writer, number| writer.directory(format!("{number}").as_bytes(), &attribute(number)),
        &|writer, number| {
            let path = format!("{number}/{}d", "d/".repeat(2000));
            writer.directory(path.as_bytes(), &attributes(0))
        },
        &|writer, number| {
            let target = format!("{}{number}", "t".repeat(4000));
            writer.symlink(
                number.to_string().as_bytes(),
                &attributes(0),
                target.as_bytes(),
            )
        },
        &|writer, number| {
            let path = format!("f{}", number / 60_000);
            match number.is_multiple_of(60_000) {
                true => writer.file(path.as_bytes(), &attributes(0), &mut io::empty(), 0),
                false => writer.hard_link(number.to_string().as_bytes(), path.as_bytes()),
            }
        },
        &|writer, number| {
            // Each takes the place of the one before, so that nothing more is needed.
            writer.directory(b"same/below", &attribute(number))?;
            writer.file(b"same", &attribute(number), &mut io::empty(), 0)?;
            writer.directory(b"same", &attribute(number))
        },
    ];
    for (kind, make) in kinds.iter().enumerate() {
        let mut writer = Writer::new(tempfile::tempfile().unwrap(), [7; 16]);
        writer.limit_memory(LIMIT);
        let refused = (0..20_000).find_map(|number| make(&mut writer, number).err());
        match (kind, refused) {
            (5, None) => {}
            (0..5, Some(Ext4Error::TooMuch)) => {}
            (_, other) => panic!("{kind}: {other:?}"),
        }
        let (counted, anew) = writer.memory();
        assert_eq!(counted, anew, "{kind}");
        assert!(counted <= LIMIT, "{kind}: {counted}");
    }
}

#[test]
fn paths_that_cannot_be_are_refused() {
    let Some((_directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    write_file(&mut writer, "file", b"");
    let file =
        |writer: &mut Writer, path: &[u8]| writer.file(path, &attributes(0), &mut io::empty(), 0);
    for path in [&b""[..], b"/", b"a/../b", b"..", b"a\0b", &[b'x'; 256]] {
        assert!(
            matches!(file(&mut writer, path), Err(Ext4Error::Path { .. })),
            "{path:?}"
        );
    }
    assert!(matches!(
        file(&mut writer, b"file/below"),
        Err(Ext4Error::NotADirectory { .. })
    ));
    assert!(matches!(
        writer.hard_link(b"x", b"none"),
        Err(Ext4Error::LinkTarget { .. })
    ));
    assert!(matches!(
        writer.hard_link(b"x", b"/"),
        Err(Ext4Error::LinkTarget { .. })
    ));
    assert!(matches!(
        writer.file(b"short", &attributes(0), &mut &b"ab"[..], 3),
        Err(Ext4Error::Short { .. })
    ));
}

#[test]
fn names_of_any_bytes_are_kept() {
    let Some((_directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    for name in [
        &b"\xff\xfe"[..],
        b"with space",
        b"new\nline",
        &[b'n'; 255],
        "ä".as_bytes(),
    ] {
        writer
            .file(name, &attributes(0o600), &mut io::empty(), 0)
            .unwrap();
    }
    writer.finish().unwrap();
    require_clean(&disk);
}

/// What a generated tree holds at a path.
#[derive(Clone, Debug)]
enum Node {
    File {
        content: Vec<u8>,
        mode: u16,
        owner: u32,
    },
    Symlink(String),
    Directory {
        mode: u16,
    },
    HardLink(usize),
}

fn node() -> impl Strategy<Value = Node> {
    let content = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..100),
        (any::<u8>(), 0usize..300_000).prop_map(|(byte, length)| vec![byte; length]),
        // Data, a hole that may be long enough to stay one, and data.
        (0usize..40)
            .prop_map(|blocks| [vec![1; 5000], vec![0; blocks * BLOCK], vec![2; 3]].concat()),
    ];
    prop_oneof![
        4 => (content, 0u16..0o10000, any::<u32>()).prop_map(|(content, mode, owner)| Node::File { content, mode, owner }),
        1 => "[a-z/]{1,200}".prop_map(Node::Symlink),
        2 => (0u16..0o10000).prop_map(|mode| Node::Directory { mode }),
        1 => any::<usize>().prop_map(Node::HardLink),
    ]
}

/// Paths of up to three names out of few, so that they often meet.
fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec("[a-d]{1,2}", 1..4).prop_map(|names| names.join("/"))
}

/// What the tree holds in the end: content of files by path, and targets, and directories.
#[derive(Default, Debug)]
struct Model {
    files: BTreeMap<String, (Vec<u8>, u16, u32)>,
    links: BTreeMap<String, String>,
    directories: BTreeMap<String, u16>,
}

impl Model {
    fn is_below_a_file(&self, path: &str) -> bool {
        path.match_indices('/')
            .any(|(at, _)| self.files.contains_key(&path[..at]))
    }

    fn is_below_a_link(&self, path: &str) -> bool {
        path.match_indices('/')
            .any(|(at, _)| self.links.contains_key(&path[..at]))
    }

    fn make_parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.directories
                .entry(path[..at].to_owned())
                .or_insert(0o755);
        }
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        let keeps = |candidate: &String| candidate != path && !candidate.starts_with(&below);
        self.files.retain(|candidate, _| keeps(candidate));
        self.links.retain(|candidate, _| keeps(candidate));
        self.directories.retain(|candidate, _| keeps(candidate));
    }
}

/// Does to the writer and to the model what the steps say.
fn play(steps: &[(String, Node)], writer: &mut Writer) -> Model {
    let mut model = Model::default();
    for (path, node) in steps {
        // Such a path is followed, which the merging of layers tests.
        if model.is_below_a_link(path) {
            continue;
        }
        let refused = model.is_below_a_file(path);
        let outcome = match node {
            Node::File {
                content,
                mode,
                owner,
            } => {
                let attributes = Attributes {
                    mode: *mode,
                    uid: *owner,
                    gid: !*owner,
                    ..Attributes::default()
                };
                writer.file(
                    path.as_bytes(),
                    &attributes,
                    &mut &content[..],
                    content.len() as u64,
                )
            }
            Node::Symlink(target) => {
                writer.symlink(path.as_bytes(), &attributes(0), target.as_bytes())
            }
            Node::Directory { mode } => writer.directory(path.as_bytes(), &attributes(*mode)),
            Node::HardLink(number) => {
                let Some(target) = model
                    .files
                    .keys()
                    .nth(number % model.files.len().max(1))
                    .cloned()
                else {
                    continue;
                };
                let outcome = writer.hard_link(path.as_bytes(), target.as_bytes());
                if outcome.is_ok() && *path != target {
                    let file = model.files[&target].clone();
                    // A link can take the place of a directory that held its target.
                    model.remove(path);
                    model.make_parents(path);
                    model.files.insert(path.clone(), file);
                }
                continue;
            }
        };
        assert_eq!(outcome.is_err(), refused, "{path}: {outcome:?}");
        if refused {
            continue;
        }
        model.make_parents(path);
        match node {
            Node::Directory { mode } if model.directories.contains_key(path) => {
                model.directories.insert(path.clone(), *mode);
            }
            _ => {
                model.remove(path);
                match node {
                    Node::File {
                        content,
                        mode,
                        owner,
                    } => {
                        model
                            .files
                            .insert(path.clone(), (content.clone(), *mode, *owner));
                    }
                    Node::Symlink(target) => {
                        model.links.insert(path.clone(), target.clone());
                    }
                    Node::Directory { mode } => {
                        model.directories.insert(path.clone(), *mode);
                    }
                    Node::HardLink(_) => {}
                }
            }
        }
    }
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_tree_reads_back_as_it_was_written(steps in proptest::collection::vec((path(), node()), 0..40)) {
        let Some((directory, disk)) = workplace() else { return Ok(()) };
        let mut writer = writer(&disk);
        let model = play(&steps, &mut writer);
        let (counted, anew) = writer.memory();
        prop_assert_eq!(counted, anew);
        let summary = writer.finish().unwrap();
        require_clean(&disk);

        let mut commands = String::new();
        for (number, path) in model.files.keys().enumerate() {
            writeln!(commands, "dump {path} {}/{number}", directory.path().display()).unwrap();
        }
        for path in model.files.keys().chain(model.links.keys()).chain(model.directories.keys()) {
            writeln!(commands, "stat {path}").unwrap();
        }
        let output = debugfs(&disk, &commands);
        let mut stats = output.split("Inode: ").skip(1);
        for (number, (path, (content, mode, owner))) in model.files.iter().enumerate() {
            let stat = stats.next().expect("a stat for each path");
            prop_assert_eq!(u16::from_str_radix(stat_field(stat, "Mode"), 8), Ok(*mode), "{}", path);
            // debugfs takes ids for signed.
            prop_assert_eq!(stat_field(stat, "User"), (*owner as i32).to_string());
            prop_assert_eq!(stat_field(stat, "Group"), (!*owner as i32).to_string());
            let copy = std::fs::read(directory.path().join(number.to_string())).unwrap();
            prop_assert!(copy == *content, "the content of {}", path);
        }
        for (path, target) in &model.links {
            let stat = stats.next().expect("a stat for each path");
            prop_assert!(stat.contains("Type: symlink"), "{}", path);
            prop_assert_eq!(stat_field(stat, "Size"), target.len().to_string());
        }
        for (path, mode) in &model.directories {
            let stat = stats.next().expect("a stat for each path");
            prop_assert!(stat.contains("Type: directory"), "{}", path);
            prop_assert_eq!(u16::from_str_radix(stat_field(stat, "Mode"), 8), Ok(*mode), "{}", path);
        }
        // `lost+found` is there too, and nothing else; names of one file share its inode.
        let names = (model.files.len() + model.links.len() + model.directories.len()) as u64;
        let shares = steps.iter().any(|(_, node)| matches!(node, Node::HardLink(_)));
        prop_assert!(summary.inodes <= names + 1);
        prop_assert!(shares || summary.inodes == names + 1);
    }
}

#[test]
fn a_subtree_becomes_files_of_the_host() {
    use std::os::unix::fs::PermissionsExt;
    let Some((directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    let plain = |mode| Attributes {
        mode,
        modified: Time {
            seconds: 1_600_000_000,
            nanoseconds: 0,
        },
        ..Attributes::default()
    };
    writer.directory(b"root", &plain(0o700)).unwrap();
    // Every other 64 KiB a hole: more extents than an inode or one block of the tree holds.
    let pieces: Vec<u8> = (0..800u32)
        .flat_map(|at| vec![u8::try_from(at % 2 * 7).unwrap(); 64 << 10])
        .collect();
    let size = pieces.len() as u64;
    writer
        .file(b"root/holes", &plain(0o640), &mut &pieces[..], size)
        .unwrap();
    writer
        .file(
            b"root/.config/deep/tool",
            &plain(0o4755),
            &mut &b"#!"[..],
            2,
        )
        .unwrap();
    writer
        .hard_link(b"root/same", b"root/.config/deep/tool")
        .unwrap();
    let far = [b'x'; 200];
    writer.symlink(b"root/far", &plain(0o777), &far).unwrap();
    writer
        .symlink(b"root/near", &plain(0o777), b"/etc")
        .unwrap();

    let to = directory.path().join("root");
    let subtree = writer.subtree(b"root").unwrap().unwrap();
    let amount = subtree.measure().unwrap();
    assert_eq!(amount.inodes, 7);
    assert!((size / 2..size / 2 + (1 << 20)).contains(&amount.bytes));
    let wanted = CancellationToken::new();
    let disk = File::open(&disk).unwrap();
    subtree.unpack(&disk, &to, &wanted).unwrap();
    let mode = |name: &str| to.join(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        [mode(""), mode("holes"), mode("same"), mode(".config")],
        [0o700, 0o640, 0o4755, 0o755]
    );
    assert!(std::fs::read(to.join("holes")).unwrap() == pieces);
    let status = |name: &str| std::fs::symlink_metadata(to.join(name)).unwrap();
    assert!(status("holes").blocks() * 512 < size / 2 + (1 << 20));
    assert_eq!(status("same").ino(), status(".config/deep/tool").ino());
    assert_eq!(status("far").mtime(), 1_600_000_000);
    assert_eq!(status("").mtime(), 1_600_000_000);
    let target = |name: &str| std::fs::read_link(to.join(name)).unwrap();
    assert_eq!(target("far").as_os_str().len(), 200);
    assert_eq!(target("near"), Path::new("/etc"));

    wanted.cancel();
    let again = directory.path().join("again");
    assert!(subtree.unpack(&disk, &again, &wanted).is_err());
    assert!(!again.exists());
}

#[test]
fn what_an_ordinary_user_cannot_show_has_no_measure() {
    let Some((_directory, disk)) = workplace() else {
        return;
    };
    let mut writer = writer(&disk);
    let odd = [
        Attributes {
            uid: 7,
            ..attributes(0o644)
        },
        Attributes {
            extended: vec![(b"user.x".to_vec(), b"y".to_vec())],
            ..attributes(0o644)
        },
    ];
    let plain = attributes(0o755);
    for (name, attributes) in ["1", "2"].iter().zip(&odd) {
        let path = format!("{name}/below/file");
        writer.directory(name.as_bytes(), &plain).unwrap();
        writer
            .file(path.as_bytes(), attributes, &mut io::empty(), 0)
            .unwrap();
    }
    writer.directory(b"3", &attributes(0o500)).unwrap();
    writer.device(b"4/fifo", &plain, Device::Fifo).unwrap();
    writer.file(b"5", &plain, &mut io::empty(), 0).unwrap();
    for name in ["1", "2", "3", "4", "5"] {
        let subtree = writer.subtree(name.as_bytes()).unwrap().unwrap();
        assert_eq!(subtree.measure(), None, "{name}");
    }
    assert!(writer.subtree(b"6").unwrap().is_none());
}
