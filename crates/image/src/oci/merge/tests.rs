//! Layers against what the specification says of them, and against a model that does the same
//! in another way.

use std::collections::BTreeMap;
use std::fs::File;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::ext4::read::{self, Node};

/// An entry of a layer.
#[derive(Clone, Debug)]
enum Item {
    Directory(String, u32),
    File(String, String),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

use Item::{Directory, HardLink, Opaque, Symlink, Whiteout};

fn file(path: &str, content: &str) -> Item {
    Item::File(path.to_owned(), content.to_owned())
}

fn layer(items: &[Item]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for item in items {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        header.set_size(0);
        let (path, kind, link, content) = match item {
            Directory(path, mode) => {
                header.set_mode(*mode);
                (path.clone(), EntryType::Directory, None, "")
            }
            Item::File(path, content) => (path.clone(), EntryType::Regular, None, &content[..]),
            Symlink(path, target) => (path.clone(), EntryType::Symlink, Some(target), ""),
            HardLink(path, target) => (path.clone(), EntryType::Link, Some(target), ""),
            Whiteout(path) => {
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                let path = format!("{parent}/.wh.{name}");
                let path = path.trim_start_matches('/').to_owned();
                (path, EntryType::Regular, None, "")
            }
            Opaque(path) => {
                let path = format!("{path}/.wh..wh..opq");
                let path = path.trim_start_matches('/').to_owned();
                (path, EntryType::Regular, None, "")
            }
        };
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        // Set as they are: the crate's own checks would keep hostile ones out of the tests.
        let bytes = path.as_bytes();
        assert!(bytes.len() < 100, "{path}");
        header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
        if let Some(link) = link {
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn merged(layers: &[Vec<Item>]) -> Result<BTreeMap<String, Node>, MergeError> {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk.ext4");
    let writer = Writer::new(File::create_new(&disk).unwrap(), [1; 16]);
    let mut merge = Merge::new(writer, 1 << 30);
    for items in layers {
        merge.lay(&layer(items)[..])?;
    }
    merge.into_parts().0.finish().unwrap();
    let tree = read::tree(&disk).into_iter();
    Ok(tree
        .map(|(path, node)| (String::from_utf8(path).unwrap(), node))
        .collect())
}

/// Names, one a line: `/` behind directories, targets behind links.
fn listed(layers: &[Vec<Item>]) -> String {
    match merged(layers) {
        Err(error) => format!("error: {error}"),
        Ok(tree) => {
            let line = |(path, node): (&String, &Node)| match node.mode & 0o170_000 {
                0o040_000 => format!("{path}/"),
                0o120_000 => format!(
                    "{path} -> {}",
                    String::from_utf8_lossy(node.target.as_ref().unwrap())
                ),
                _ => path.clone(),
            };
            let lines: Vec<_> = tree.iter().skip(1).map(line).collect();
            lines.join("\n")
        }
    }
}

fn directory(path: &str) -> Item {
    Directory(path.to_owned(), 0o755)
}

fn whiteout(path: &str) -> Item {
    Whiteout(path.to_owned())
}

fn opaque(path: &str) -> Item {
    Opaque(path.to_owned())
}

fn symlink(path: &str, target: &str) -> Item {
    Symlink(path.to_owned(), target.to_owned())
}

fn hard_link(path: &str, target: &str) -> Item {
    HardLink(path.to_owned(), target.to_owned())
}

#[test]
fn a_whiteout_hides_what_is_below_and_not_what_its_own_layer_brings() {
    let below = vec![file("d/old", "1"), file("d/both", "1"), file("gone", "1")];
    for above in [
        vec![
            whiteout("d"),
            whiteout("gone"),
            file("d/both", "2"),
            file("d/new", "2"),
        ],
        vec![
            file("d/both", "2"),
            file("d/new", "2"),
            whiteout("gone"),
            whiteout("d"),
        ],
        vec![
            file("d/new", "2"),
            opaque("d"),
            file("d/both", "2"),
            whiteout("gone"),
        ],
    ] {
        assert_eq!(listed(&[below.clone(), above]), "d/\nd/both\nd/new");
    }
    let deep = vec![file("a/b/c", "1"), file("a/b/d", "1"), file("a/e", "1")];
    let above = vec![file("a/b/new", "2"), whiteout("a")];
    assert_eq!(listed(&[deep, above]), "a/\na/b/\na/b/new");
}

#[test]
fn a_whiteout_of_nothing_and_those_of_aufs_change_nothing() {
    let below = vec![file("a", "1")];
    let above = vec![
        whiteout("b"),
        whiteout("no/such/thing"),
        opaque("nowhere"),
        file(".wh..wh.plnk/1.2", "x"),
        file(".wh..wh.aufs", "x"),
    ];
    assert_eq!(listed(&[below, above]), "a");
}

#[test]
fn a_file_takes_the_place_of_a_directory_and_the_reverse() {
    let below = vec![file("d/x", "1"), file("f", "1"), symlink("l", "d")];
    let above = vec![
        file("d", "2"),
        directory("f"),
        file("f/y", "2"),
        directory("l"),
    ];
    assert_eq!(listed(&[below, above]), "d\nf/\nf/y\nl/");
}

#[test]
fn a_directory_that_comes_again_keeps_what_is_in_it() {
    let below = vec![Directory("d".to_owned(), 0o700), file("d/x", "1")];
    let tree = merged(&[below, vec![Directory("d".to_owned(), 0o1777)]]).unwrap();
    assert_eq!(tree["d"].mode, 0o041_777);
    assert!(tree.contains_key("d/x"));
}

#[test]
fn a_symbolic_link_on_the_way_is_followed_within_the_image() {
    let long = format!("usr/{}", "l".repeat(80));
    let below = vec![
        directory("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("abs", "/usr/lib"),
        directory("a/b"),
        symlink("a/b/up", "../../usr"),
        symlink("long", &long),
    ];
    let above = vec![
        file("lib/one", "2"),
        file("abs/two", "2"),
        file("a/b/up/lib/three", "2"),
        file("long/four", "2"),
        hard_link("lib/five", "abs/one"),
        file("lib/six", "2"),
        whiteout("lib/six"),
    ];
    let hidden = vec![whiteout("abs/two"), opaque("long")];
    let listed = listed(&[below, above, hidden]);
    assert_eq!(
        listed,
        format!(
            "a/\na/b/\na/b/up -> ../../usr\nabs -> /usr/lib\nlib -> usr/lib\nlong -> {long}\n\
             usr/\nusr/lib/\nusr/lib/five\nusr/lib/one\nusr/lib/six\nusr/lib/three\n{long}/"
        )
    );
}

#[test]
fn hard_links_reach_across_layers_and_outlive_their_first_name() {
    let below = vec![file("a", "content")];
    let above = vec![hard_link("b", "a")];
    let tree = merged(&[below.clone(), above.clone()]).unwrap();
    assert_eq!((tree["a"].inode, tree["a"].links), (tree["b"].inode, 2));
    let tree = merged(&[below.clone(), above.clone(), vec![whiteout("a")]]).unwrap();
    assert_eq!((tree["b"].links, tree["b"].size), (1, 7));
    let tree = merged(&[below, above, vec![file("a", "other")]]).unwrap();
    assert_eq!((tree["b"].size, tree["a"].size), (7, 5));
}

#[test]
fn what_leads_out_of_the_image_is_refused() {
    let refused = [
        vec![file("../x", "1")],
        vec![file("a/../../x", "1")],
        vec![symlink("a", "../x")],
        vec![symlink("d/a", "b/../../../x")],
        vec![file("a", "1"), hard_link("b", "../a")],
        vec![hard_link("b", "/etc/passwd")],
        vec![file("a/.wh.", "")],
        vec![file("a/.wh...", "")],
        vec![file("a/.wh..", "")],
        vec![symlink("loop", "loop"), file("loop/x", "1")],
        vec![file("a", "1"), file("a/b", "1")],
    ];
    let errors: Vec<_> = refused
        .iter()
        .map(|items| listed(std::slice::from_ref(items)))
        .collect();
    insta::assert_snapshot!(errors.join("\n"), @r"
    error: the path `../x` leads out of the image
    error: the path `a/../../x` leads out of the image
    error: the symbolic link `a` leads out of the image: `../x`
    error: the symbolic link `d/a` leads out of the image: `b/../../../x`
    error: the path `../a` leads out of the image
    error: `b` is a hard link to `/etc/passwd`, which is not there or a directory
    error: the whiteout `a/.wh.` names nothing
    error: the whiteout `a/.wh...` names nothing
    error: the whiteout `a/.wh..` names nothing
    error: there are too many symbolic links on the way to `loop/x`
    error: `a/b` lies below something that is not a directory
    ");
}

#[test]
fn files_that_are_larger_than_allowed_are_refused() {
    let writer = Writer::new(tempfile::tempfile().unwrap(), [1; 16]);
    let mut merge = Merge::new(writer, 5);
    merge.lay(&layer(&[file("a", "123")])[..]).unwrap();
    let outcome = merge.lay(&layer(&[file("b", "123")])[..]);
    assert!(
        matches!(outcome, Err(MergeError::TooLarge { limit: 5 })),
        "{outcome:?}"
    );
}

#[test]
fn the_distribution_is_read_on_the_way() {
    let writer = Writer::new(tempfile::tempfile().unwrap(), [1; 16]);
    let mut merge = Merge::new(writer, 1 << 20);
    let items = [
        file("./usr/lib/os-release", "ID=x\n"),
        symlink("etc/os-release", "../usr/lib/os-release"),
    ];
    merge.lay(&layer(&items)[..]).unwrap();
    assert_eq!(merge.into_parts().1.unwrap(), b"ID=x\n");
}

/// What the specification says, done plainly: all whiteouts of a layer first, as they are about
/// the layers below, and then what the layer brings. `None` where a layer makes no sense.
fn modelled(layers: &[Vec<Item>]) -> Option<BTreeMap<String, String>> {
    // A directory is `/`, a file its content.
    let mut tree = BTreeMap::new();
    for items in layers {
        for item in items {
            match item {
                Whiteout(path) => remove(&mut tree, path, true),
                Opaque(path) => remove(&mut tree, path, false),
                _ => {}
            }
        }
        for item in items {
            let (path, content) = match item {
                Directory(path, _) => (path, "/".to_owned()),
                Item::File(path, content) => (path, content.clone()),
                Symlink(path, target) => (path, format!("-> {target}")),
                HardLink(path, target) => (path, tree.get(target).filter(|it| *it != "/")?.clone()),
                Whiteout(_) | Opaque(_) => continue,
            };
            let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
            for parent in parents {
                match tree.get(parent).map(String::as_str) {
                    None => drop(tree.insert(parent.to_owned(), "/".to_owned())),
                    Some("/") => {}
                    Some(_) => return None,
                }
            }
            let keeps = content == "/" && tree.get(path).is_some_and(|it| it == "/");
            if !keeps {
                remove(&mut tree, path, true);
            }
            tree.insert(path.clone(), content);
        }
    }
    Some(tree)
}

fn remove(tree: &mut BTreeMap<String, String>, path: &str, itself: bool) {
    let below = format!("{path}/");
    tree.retain(|name, _| !(name.starts_with(&below) || (itself && name == path)));
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[abc]", 1..4).prop_map(|names| names.join("/"))
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        2 => path().prop_map(|path| Directory(path, 0o755)),
        4 => (path(), "[xyz]{1,3}").prop_map(|(path, content)| Item::File(path, content)),
        1 => path().prop_map(|path| Symlink(path, "/nowhere".to_owned())),
        1 => (path(), path()).prop_map(|(path, target)| HardLink(path, target)),
        2 => path().prop_map(Whiteout),
        1 => path().prop_map(Opaque),
    ]
}

/// Directories, contents and links as the model has them.
fn as_modelled(tree: &BTreeMap<String, Node>, layers: &[Vec<Item>]) -> BTreeMap<String, String> {
    let hash = |content: &str| {
        let mut hash = read::ContentHash::default();
        hash.block(0, content.as_bytes());
        hash.finish()
    };
    let contents: BTreeMap<_, _> = layers
        .iter()
        .flatten()
        .filter_map(|item| match item {
            Item::File(_, content) => Some((hash(content), content.clone())),
            _ => None,
        })
        .collect();
    tree.iter()
        .filter(|(path, _)| !path.is_empty())
        .map(|(path, node)| {
            let shown = match (&node.content, &node.target) {
                (Some(content), _) => contents[content].clone(),
                (_, Some(target)) => format!("-> {}", String::from_utf8_lossy(target)),
                _ => "/".to_owned(),
            };
            (path.clone(), shown)
        })
        .collect()
}

proptest! {
    #[test]
    fn layers_are_merged_as_the_model_does_it(
        layers in prop::collection::vec(prop::collection::vec(item(), 0..8), 1..5)
    ) {
        // Where one finds no sense in the layers, there is nothing to compare: a whiteout that
        // comes late may hide what is in the way.
        if let (Ok(found), Some(expected)) = (merged(&layers), modelled(&layers)) {
            prop_assert_eq!(as_modelled(&found, &layers), expected);
        }
    }
}
