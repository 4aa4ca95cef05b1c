//! Several layers as one file system.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;

use proptest::prelude::*;

use super::test_tar::TestTar;
use super::*;
use crate::erofs::test_reader::{self, Node};

type Nodes = BTreeMap<String, Node>;

fn read(image: Cursor<Vec<u8>>) -> Nodes {
    test_reader::read(&image.into_inner())
        .into_iter()
        .map(|(path, node)| (String::from_utf8(path).unwrap(), node))
        .collect()
}

fn try_merge(layers: &[TestTar]) -> Result<Nodes, LayerError> {
    let mut conversion = Conversion::merging(Cursor::new(Vec::new()))?;
    for layer in layers {
        let tar = layer.clone().finish();
        conversion.add(&tar[..], &Digest::of(&tar))?;
    }
    let (image, leaning) = conversion.finish(&Digest::of(b"id"))?;
    assert_eq!(leaning, Leaning::Nothing);
    Ok(read(image))
}

fn merge(layers: &[TestTar]) -> Nodes {
    try_merge(layers).unwrap()
}

fn refused(layers: &[TestTar]) -> EntryError {
    match try_merge(layers).unwrap_err() {
        LayerError::Entry { source, .. } => source,
        other => panic!("{other}"),
    }
}

fn paths(nodes: &Nodes) -> Vec<&str> {
    nodes.keys().map(String::as_str).skip(1).collect()
}

/// A directory with a mode and an owner that none has by chance.
fn private(tar: TestTar, path: &str) -> TestTar {
    tar.pax(&[("SCHILY.xattr.user.colour", b"blue")])
        .entry(b'5', path, b"", |header| {
            header.set_mode(0o2710);
            header.set_uid(7);
            header.set_gid(8);
        })
}

fn is_private(node: &Node) -> bool {
    let colour = node.xattrs.get(&b"user.colour"[..]);
    (node.mode, node.uid, node.gid) == (0o042_710, 7, 8) && colour.is_some_and(|it| it == b"blue")
}

#[test]
fn directories_keep_what_lower_layers_say_of_them() {
    let lower = private(private(TestTar::new(), "a"), "a/b").file("a/b/old", b"1");
    let upper = TestTar::new().file("a/b/new", b"2").file("c/d", b"3");
    let nodes = merge(&[lower, upper]);
    assert_eq!(
        paths(&nodes),
        ["a", "a/b", "a/b/new", "a/b/old", "c", "c/d"]
    );
    assert!(is_private(&nodes["a"]) && is_private(&nodes["a/b"]));
    assert_eq!((nodes["c"].mode, nodes["c"].uid), (0o040_755, 0));
    assert_eq!(
        (&nodes["a/b/old"].data[..], &nodes["a/b/new"].data[..]),
        (&b"1"[..], &b"2"[..])
    );
}

#[test]
fn what_a_layer_says_of_a_directory_wins() {
    let lower = private(TestTar::new(), "a").file("a/f", b"");
    let nodes = merge(&[lower, TestTar::new().directory("a")]);
    assert_eq!(paths(&nodes), ["a", "a/f"]);
    assert_eq!(
        (nodes["a"].mode, nodes["a"].uid, nodes["a"].xattrs.len()),
        (0o040_755, 0, 0)
    );
}

#[test]
fn symbolic_links_of_lower_layers_are_followed() {
    let lower = TestTar::new()
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .directory("var")
        .symlink("var/run", "../run")
        .symlink("abs", "/nowhere/../usr");
    let upper = TestTar::new()
        .file("lib/x.so", b"x")
        .file("var/run/pid", b"1")
        .file("abs/share", b"");
    let nodes = merge(&[lower, upper]);
    let expected = [
        "abs",
        "lib",
        "nowhere",
        "run",
        "run/pid",
        "usr",
        "usr/lib",
        "usr/lib/x.so",
        "usr/share",
        "var",
        "var/run",
    ];
    assert_eq!(paths(&nodes), expected);
    assert_eq!(nodes["lib"].data, b"usr/lib");
}

#[test]
fn lower_layers_can_not_lead_out_or_to_nothing() {
    let file = |path: &str| TestTar::new().file(path, b"");
    let out = TestTar::new().symlink("evil", "../../etc");
    assert_eq!(
        refused(&[out, file("evil/passwd")]),
        EntryError::LinkClimbsOut("evil".into())
    );
    let circle = TestTar::new().symlink("a", "b").symlink("b", "a");
    assert_eq!(refused(&[circle, file("a/f")]), EntryError::TooManyLinks);
    assert_eq!(
        refused(&[file("f"), file("f/below")]),
        EntryError::NotADirectory("f".into())
    );
}

#[test]
fn whiteouts_take_away_lower_files_wherever_they_stand() {
    let lower = TestTar::new()
        .file("f", b"old")
        .file("gone", b"old")
        .file("d/old", b"")
        .file("d/kept", b"");
    let whiteouts = |tar: TestTar| {
        tar.file(".wh.f", b"")
            .file(".wh.gone", b"")
            .file("d/.wh.old", b"")
            .file("d/.wh.never", b"")
    };
    let content = |tar: TestTar| tar.file("f", b"new").file("d/new", b"");
    let before = merge(&[lower.clone(), content(whiteouts(TestTar::new()))]);
    assert_eq!(paths(&before), ["d", "d/kept", "d/new", "f"]);
    assert_eq!(before["f"].data, b"new");
    let after = merge(&[lower, whiteouts(content(TestTar::new()))]);
    assert_eq!(paths(&after), paths(&before));
    assert_eq!(after["f"].data, b"new");
}

#[test]
fn an_opaque_directory_has_only_what_its_layer_has() {
    let lower = private(private(TestTar::new(), "o"), "o/sub").file("o/sub/old", b"");
    let lower = private(lower.file("o/old", b""), "o/said").file("o/said/old", b"");
    let lower = lower.file("o/twice", b"").symlink("o/link", "sub");
    let upper = [
        TestTar::new().file("o/.wh..wh..opq", b""),
        TestTar::new()
            .file("o/sub/new", b"")
            .file("o/twice", b"new")
            .directory("o/said")
            .file("o/said/new", b""),
    ];
    for order in [[0, 1], [1, 0]] {
        let upper = TestTar(order.map(|part| upper[part].0.clone()).concat());
        let nodes = merge(&[lower.clone(), upper]);
        let expected = ["o", "o/said", "o/said/new", "o/sub", "o/sub/new", "o/twice"];
        assert_eq!(paths(&nodes), expected, "{order:?}");
        // The opaque directory is the lower one still, but those in it are new.
        assert!(is_private(&nodes["o"]));
        assert_eq!((nodes["o/sub"].mode, nodes["o/sub"].uid), (0o040_755, 0));
        assert_eq!(nodes["o/said"].uid, 0);
        assert_eq!(nodes["o/twice"].data, b"new");
        assert!(
            nodes
                .values()
                .all(|node| { !node.xattrs.keys().any(|name| name.starts_with(b"trusted.")) })
        );
    }
}

#[test]
fn a_directory_that_is_hidden_and_made_anew_is_new() {
    let lower = private(TestTar::new(), "d")
        .file("d/old", b"")
        .file("other", b"");
    for upper in [
        TestTar::new().file(".wh.d", b"").file("d/new", b""),
        TestTar::new().file("d/new", b"").file(".wh.d", b""),
        TestTar::new()
            .file("d/.wh.old", b"")
            .file("d/new", b"")
            .file(".wh.d", b""),
        TestTar::new().file("d/new", b"").file(".wh..wh..opq", b""),
    ] {
        let nodes = merge(&[lower.clone(), upper]);
        assert_eq!((nodes["d"].mode, nodes["d"].uid), (0o040_755, 0));
        assert!(nodes.contains_key("d/new") && !nodes.contains_key("d/old"));
    }
    // A whiteout of it alone takes all; and the next layer does not know of it.
    let hide = TestTar::new().file(".wh.d", b"");
    let nodes = merge(&[lower, hide, TestTar::new().file("d/new", b"")]);
    assert_eq!(paths(&nodes), ["d", "d/new", "other"]);
    assert_eq!(nodes["d"].uid, 0);
}

#[test]
fn a_symbolic_link_that_is_hidden_is_not_followed_any_more() {
    let lower = TestTar::new()
        .directory("usr/lib")
        .symlink("lib", "usr/lib");
    let upper = TestTar::new().file(".wh.lib", b"").file("lib/f", b"");
    assert_eq!(
        paths(&merge(&[lower.clone(), upper])),
        ["lib", "lib/f", "usr", "usr/lib"]
    );
    let upper = TestTar::new().file("lib/f", b"").file(".wh.lib", b"");
    assert_eq!(
        paths(&merge(&[lower, upper])),
        ["usr", "usr/lib", "usr/lib/f"]
    );
}

#[test]
fn files_become_directories_and_back() {
    let lower = TestTar::new()
        .file("x", b"file")
        .directory("y")
        .file("y/below", b"")
        .symlink("z", "y");
    let swapped = TestTar::new()
        .directory("x")
        .file("x/f", b"")
        .file("y", b"file")
        .directory("z");
    let nodes = merge(&[lower.clone(), swapped.clone()]);
    assert_eq!(paths(&nodes), ["x", "x/f", "y", "z"]);
    assert_eq!(nodes["y"].data, b"file");
    assert_eq!(nodes["z"].file_type(), 0o040_000);
    let back = merge(&[lower.clone(), swapped, lower]);
    assert_eq!(paths(&back), ["x", "y", "y/below", "z"]);
    assert_eq!(back["x"].data, b"file");
}

#[test]
fn hard_links_lead_to_files_of_lower_layers() {
    let lower = TestTar::new().file("d/f", b"content").file("d/other", b"");
    let upper = TestTar::new()
        .hard_link("new", "d/f")
        .file(".wh.d", b"")
        .file(".wh.new", b"");
    let nodes = merge(&[lower.clone(), upper]);
    assert_eq!(paths(&nodes), ["new"]);
    assert_eq!(
        (&nodes["new"].data[..], nodes["new"].links),
        (&b"content"[..], 1)
    );
    let nodes = merge(&[lower.clone(), TestTar::new().hard_link("d/g", "/d/f")]);
    assert_eq!(
        (nodes["d/f"].nid, nodes["d/f"].links),
        (nodes["d/g"].nid, 2)
    );
    // The link is of its layer, and lower than the next one.
    let link = TestTar::new().hard_link("d/g", "d/f");
    let nodes = merge(&[lower.clone(), link, TestTar::new().file("d/.wh.g", b"")]);
    assert_eq!(paths(&nodes), ["d", "d/f", "d/other"]);
    let missing = TestTar::new().hard_link("d/g", "d/none");
    assert_eq!(
        refused(&[lower, missing]),
        EntryError::NoTarget("d/none".into())
    );
}

#[test]
fn every_layer_is_verified() {
    let tars = [
        TestTar::new().file("a", b"").finish(),
        TestTar::new().file("b", b"").finish(),
    ];
    for wrong in 0..2 {
        let mut conversion = Conversion::merging(Cursor::new(Vec::new())).unwrap();
        let added = tars.iter().enumerate().try_for_each(|(number, tar)| {
            let said = if number == wrong {
                Digest::of(b"other")
            } else {
                Digest::of(tar)
            };
            conversion.add(&tar[..], &said)
        });
        let Err(LayerError::Digest { found, .. }) = added else {
            panic!("{added:?}");
        };
        assert_eq!(found, Digest::of(&tars[wrong]));
    }
}

#[test]
fn the_limit_of_metadata_is_for_all_layers() {
    let flood = |prefix: &str| {
        (0..1200).fold(TestTar::new(), |tar, number| {
            let holes: [(&str, &[u8]); 2] = [
                ("GNU.sparse.size", b"268435456"),
                ("GNU.sparse.map", b"0,0"),
            ];
            tar.pax(&holes).file(&format!("{prefix}{number}"), b"")
        })
    };
    assert!(matches!(
        try_merge(&[flood("a"), flood("b")]),
        Err(LayerError::TooMuchMetadata(_))
    ));
}

/// What one layer of the model says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    File,
    Directory,
}

#[derive(Debug, Clone)]
struct Layer {
    items: BTreeMap<String, Item>,
    /// Whiteouts, each behind so many of the items.
    whiteouts: Vec<(String, usize)>,
}

fn layer() -> impl Strategy<Value = Layer> {
    let path = || "[ab](/[ab]){0,2}";
    let item = prop_oneof![Just(Item::File), Just(Item::Directory)];
    let whiteout = prop_oneof![
        path(),
        "([ab]/){0,2}".prop_map(|directory| format!("{directory}.wh..opq"))
    ];
    let items = prop::collection::btree_map(path(), item, 0..6);
    let whiteouts = prop::collection::vec((whiteout, 0..8_usize), 0..3);
    (items, whiteouts).prop_map(|(items, whiteouts)| Layer { items, whiteouts })
}

impl Layer {
    /// A tar that mentions every directory, and in it nothing below files.
    fn tar(&self, number: usize) -> TestTar {
        let mut all = BTreeMap::new();
        let whiteouts = self.whiteouts.iter().map(|(path, _)| (path, None));
        let items = self.items.iter().map(|(path, item)| (path, Some(*item)));
        for (path, item) in items.chain(whiteouts) {
            let ends = path.match_indices('/').map(|(end, _)| &path[..end]);
            if ends
                .clone()
                .any(|parent| all.get(parent) == Some(&Item::File))
            {
                continue;
            }
            for parent in ends {
                all.insert(parent.to_owned(), Item::Directory);
            }
            if let Some(item) = item {
                all.insert(path.clone(), item);
            }
        }
        let mut tar = TestTar::new();
        for position in 0..=8 {
            tar = self.whiteouts_at(tar, position, &all);
            if let Some((path, item)) = all.iter().nth(position) {
                tar = entry(tar, path, *item, number);
            }
        }
        all.iter()
            .skip(9)
            .fold(tar, |tar, (path, item)| entry(tar, path, *item, number))
    }

    fn whiteouts_at(
        &self,
        mut tar: TestTar,
        position: usize,
        all: &BTreeMap<String, Item>,
    ) -> TestTar {
        for (path, _) in self.whiteouts.iter().filter(|(_, at)| *at == position) {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            // In the order of a walk: a directory's own entry comes before what is in it.
            let parents: BTreeSet<&str> = path
                .match_indices('/')
                .map(|(end, _)| &path[..end])
                .collect();
            if parents
                .iter()
                .all(|parent| all.get(*parent) == Some(&Item::Directory))
            {
                for parent in parents {
                    tar = entry(tar, parent, Item::Directory, 0);
                }
                tar = tar.file(&format!("{parent}/.wh.{name}"), b"");
            }
        }
        tar
    }
}

fn entry(tar: TestTar, path: &str, item: Item, number: usize) -> TestTar {
    match item {
        Item::File => tar.file(path, &[number as u8]),
        Item::Directory => tar.entry(b'5', path, b"", |header| header.set_mode(0o700)),
    }
}

/// What overlayfs shows of two layers.
fn stack(mut lower: Nodes, upper: Nodes) -> Nodes {
    for (path, node) in upper {
        let below = if path.is_empty() {
            String::new()
        } else {
            format!("{path}/")
        };
        let opaque = node.xattrs.contains_key(&b"trusted.overlay.opaque"[..]);
        let is_directory = node.file_type() == 0o040_000;
        let was_directory = lower
            .get(&path)
            .is_some_and(|node| node.file_type() == 0o040_000);
        if opaque || !is_directory || !was_directory {
            lower.retain(|path, _| path.is_empty() || !path.starts_with(&below));
        }
        let whiteout = node.file_type() == 0o020_000 && node.device == 0;
        match whiteout {
            true => lower.remove(&path),
            false => lower.insert(path, node),
        };
    }
    lower
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Layers that don't lean on each other are the same, merged or stacked.
    #[test]
    fn merging_is_stacking(layers in prop::collection::vec(layer(), 1..4)) {
        let tars: Vec<TestTar> =
            layers.iter().enumerate().map(|(number, layer)| layer.tar(number)).collect();
        let mut stacked: Option<Nodes> = None;
        for tar in &tars {
            let tar = tar.clone().finish();
            let mut conversion = Conversion::new(Cursor::new(Vec::new())).unwrap();
            conversion.add(&tar[..], &Digest::of(&tar)).unwrap();
            let (image, leaning) = conversion.finish(&Digest::of(&tar)).unwrap();
            prop_assert_eq!(leaning, Leaning::Nothing);
            let upper = read(image);
            // The lowest file system's own whiteouts hide nothing.
            let lower = stacked.take().unwrap_or_else(|| read_empty(&upper));
            stacked = Some(stack(lower, upper));
        }
        let shown = |nodes: Nodes| -> Vec<(String, u32, Vec<u8>)> {
            let shown = nodes.into_iter().filter(|(path, _)| !path.is_empty());
            shown
                .map(|(path, node)| {
                    let is_file = node.file_type() == 0o100_000;
                    (path, node.mode, if is_file { node.data } else { Vec::new() })
                })
                .collect()
        };
        prop_assert_eq!(shown(merge(&tars)), shown(stacked.unwrap_or_default()));
    }
}

/// Only the root.
fn read_empty(nodes: &Nodes) -> Nodes {
    BTreeMap::from([(String::new(), nodes[""].clone())])
}
