use super::super::LayerError;
use super::super::tar::{TarReader, entry_error};
use super::super::test_tar::TestTar;
use super::*;

fn build(tar: TestTar) -> Result<Tree, LayerError> {
    Ok(build_leaning(tar)?.0)
}

fn build_leaning(tar: TestTar) -> Result<(Tree, Leaning), LayerError> {
    let tar = tar.finish();
    let mut reader = TarReader::new(std::io::BufReader::new(&tar[..]));
    let mut writer = erofs::Writer::new(std::io::Cursor::new(Vec::new())).unwrap();
    let mut builder = Builder::new();
    while let Some(entry) = reader.next()? {
        let path = entry.path.clone();
        let place = builder
            .add(entry)
            .map_err(|source| entry_error(&path, source))?;
        if let Place::File(place) = place {
            let size = place.map().size;
            let mut file = writer.file(size).unwrap();
            file.hole(size).unwrap();
            builder.add_file(place, file.finish().unwrap()).unwrap();
        }
    }
    Ok(builder.finish().unwrap())
}

/// Every path with one letter for what it is; `o` behind a directory that is opaque.
fn listing(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![(String::new(), Tree::ROOT)];
    while let Some((path, id)) = todo.pop() {
        let inode = tree.get(id);
        let opaque = inode.attributes.xattrs.contains_key(OPAQUE_XATTR);
        let letter = match &inode.content {
            Content::Directory(_) if opaque => "do",
            Content::Directory(_) => "d",
            Content::File(_) => "f",
            Content::Symlink(_) => "l",
            Content::CharDevice(Device { major: 0, minor: 0 }) => "w",
            _ => "?",
        };
        if id != Tree::ROOT {
            lines.push(format!("{path} {letter}"));
        }
        for (name, child) in tree.entries(id).into_iter().flatten() {
            let name = String::from_utf8_lossy(name);
            todo.push((format!("{path}/{name}"), *child));
        }
    }
    lines.sort();
    lines
}

fn built(tar: TestTar) -> Vec<String> {
    listing(&build(tar).unwrap())
}

fn refused(tar: TestTar) -> (String, EntryError) {
    match build(tar).unwrap_err() {
        LayerError::Entry { name, source } => (name, source),
        other => panic!("{other}"),
    }
}

#[test]
fn paths_are_cleaned_and_parents_made() {
    let tar = TestTar::new()
        .file("./a/b/../c", b"")
        .file("/abs//d", b"")
        .directory("a/x/")
        .file("e/", b"");
    assert_eq!(
        built(tar),
        ["/a d", "/a/c f", "/a/x d", "/abs d", "/abs/d f", "/e f"]
    );
}

#[test]
fn the_root_takes_its_attributes_from_its_entry() {
    let tar = TestTar::new().entry(b'5', "./", b"", |header| header.set_mode(0o1700));
    assert_eq!(build(tar).unwrap().get(Tree::ROOT).attributes.mode, 0o1700);
    let (_, error) = refused(TestTar::new().file(".", b""));
    assert_eq!(error, EntryError::Root);
}

#[test]
fn the_last_of_several_entries_wins() {
    let tar = TestTar::new()
        .file("f", b"1")
        .symlink("f", "x")
        .directory("d")
        .file("d/kept", b"")
        .entry(b'5', "d", b"", |header| header.set_mode(0o700))
        .directory("gone")
        .file("gone/below", b"")
        .file("gone", b"now a file");
    let tree = build(tar).unwrap();
    assert_eq!(listing(&tree), ["/d d", "/d/kept f", "/f l", "/gone f"]);
    let id = tree.entries(Tree::ROOT).unwrap()[&b"d"[..]];
    assert_eq!(tree.get(id).attributes.mode, 0o700);
}

#[test]
fn whiteouts_hide_what_is_below() {
    let tar = TestTar::new()
        .file("d/.wh.gone", b"")
        .file(".wh.top", b"")
        .file("o/.wh..wh..opq", b"")
        .file("o/.wh.x", b"")
        .file("o/kept", b"");
    assert_eq!(
        built(tar),
        ["/d d", "/d/gone w", "/o do", "/o/kept f", "/top w"]
    );
}

#[test]
fn whiteouts_do_not_hide_what_the_layer_itself_has() {
    let tar = TestTar::new()
        .file("f", b"")
        .file(".wh.f", b"")
        .file(".wh.d", b"")
        .file("d/new", b"")
        .file("d/.wh.old", b"");
    assert_eq!(built(tar), ["/d do", "/d/new f", "/f f"]);
}

#[test]
fn names_of_whiteouts_that_hide_nothing_are_refused() {
    for name in ["d/.wh.", "d/.wh..", "d/.wh..."] {
        let (entry, error) = refused(TestTar::new().file(name, b""));
        assert_eq!((entry.as_str(), error), (name, EntryError::Name));
    }
    let tar = TestTar::new()
        .file(".wh..wh.aufs", b"")
        .file(".wh..wh.plnk/1.2", b"");
    assert!(built(tar).is_empty());
}

#[test]
fn hard_links_share_an_inode() {
    let tar = TestTar::new()
        .file("a/f", b"x")
        .hard_link("b/g", "/a/../a/f")
        .symlink("s", "f")
        .hard_link("t", "s")
        .file("a/f", b"replaced");
    let tree = build(tar).unwrap();
    assert_eq!(
        listing(&tree),
        ["/a d", "/a/f f", "/b d", "/b/g f", "/s l", "/t l"]
    );
    let size = |directory: &str, name: &str| {
        let directory = tree.entries(Tree::ROOT).unwrap()[directory.as_bytes()];
        match &tree
            .get(tree.entries(directory).unwrap()[name.as_bytes()])
            .content
        {
            Content::File(data) => data.size(),
            _ => panic!("not a file"),
        }
    };
    assert_eq!((size("a", "f"), size("b", "g")), (8, 1));
}

#[test]
fn hard_links_to_nothing_or_to_directories_are_not_made() {
    let missing = TestTar::new()
        .hard_link("l", "usr/bin/tool")
        .hard_link("m", "l");
    let (tree, leaning) = build_leaning(missing).unwrap();
    assert_eq!(listing(&tree), [] as [&str; 0]);
    assert_eq!(leaning, Leaning::Links);
    let root = TestTar::new().hard_link("l", "/");
    assert_eq!(refused(root).1, EntryError::LinkToDirectory("/".into()));
    let directory = TestTar::new().directory("d").hard_link("l", "d");
    assert_eq!(
        refused(directory).1,
        EntryError::LinkToDirectory("d".into())
    );
    let outside = TestTar::new().hard_link("l", "../../etc/shadow");
    assert_eq!(refused(outside).1, EntryError::ClimbsOut);
    assert_eq!(
        refused(TestTar::new().hard_link("l", "")).1,
        EntryError::Name
    );
}

#[test]
fn paths_that_climb_out_are_refused_by_name() {
    for name in ["..", "../x", "a/../../x", "/../x", "./.."] {
        let (entry, error) = refused(TestTar::new().file(name, b""));
        assert_eq!((entry.as_str(), error), (name, EntryError::ClimbsOut));
    }
}

#[test]
fn symbolic_links_on_the_way_stay_in_the_layer() {
    let tar = TestTar::new()
        .symlink("abs", "/usr/lib")
        .file("abs/f", b"")
        .directory("var")
        .symlink("var/run", "../run")
        .file("var/run/pid", b"")
        .symlink("link", "elsewhere")
        .file("link", b"a file instead");
    assert_eq!(
        built(tar),
        [
            "/abs l",
            "/link f",
            "/run d",
            "/run/pid f",
            "/usr d",
            "/usr/lib d",
            "/usr/lib/f f",
            "/var d",
            "/var/run l",
        ]
    );
}

#[test]
fn symbolic_links_that_lead_out_or_nowhere_are_refused() {
    let out = TestTar::new()
        .symlink("evil", "../../etc")
        .file("evil/passwd", b"");
    assert_eq!(
        refused(out),
        (
            "evil/passwd".into(),
            EntryError::LinkClimbsOut("evil".into())
        )
    );
    let circle = TestTar::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/f", b"");
    assert_eq!(refused(circle).1, EntryError::TooManyLinks);
    let file = TestTar::new().file("f", b"").file("f/below", b"");
    assert_eq!(refused(file).1, EntryError::NotADirectory("f".into()));
    assert_eq!(
        refused(TestTar::new().symlink("l", "")).1,
        EntryError::SymlinkTarget
    );
    let long = TestTar::new()
        .symlink("l", &"n".repeat(90))
        .pax(&[("linkpath", "n".repeat(300).as_bytes())]);
    let long = long.symlink("m", "x").file("m/f", b"");
    assert_eq!(refused(long).1, EntryError::PathTooLong);
}

#[test]
fn names_longer_than_linux_allows_are_refused() {
    let with_path = |path: &str| {
        TestTar::new()
            .pax(&[("path", path.as_bytes())])
            .file("f", b"")
    };
    assert!(build(with_path(&"n".repeat(255))).is_ok());
    assert_eq!(
        refused(with_path(&"n".repeat(256))).1,
        EntryError::PathTooLong
    );
    assert!(build(with_path(&"d/".repeat(2047))).is_ok());
    assert_eq!(
        refused(with_path(&"d/".repeat(2048))).1,
        EntryError::PathTooLong
    );
    assert_eq!(refused(with_path("a\0b")).1, EntryError::Name);
}

#[test]
fn foreign_attributes_are_left_out() {
    let tar = TestTar::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/elsewhere"),
            ("SCHILY.xattr.com.apple.quarantine", b"x"),
            ("SCHILY.xattr.user.kept", b"x"),
        ])
        .file("f", b"");
    let tree = build(tar).unwrap();
    let id = tree.entries(Tree::ROOT).unwrap()[&b"f"[..]];
    let names: Vec<_> = tree.get(id).attributes.xattrs.keys().cloned().collect();
    assert_eq!(names, [Box::from(&b"user.kept"[..])]);
}

#[test]
fn a_layer_leans_on_others_by_directories_that_it_never_mentions() {
    let leaning = |tar| build_leaning(tar).unwrap().1;
    let own = TestTar::new()
        .file("top", b"")
        .file("a/late/f", b"")
        .directory("a/late")
        .directory("a")
        .directory("b")
        .symlink("b/link", "../a")
        .file("b/link/g", b"")
        .file(".wh.gone", b"");
    assert_eq!(leaning(own), Leaning::Nothing);
    let leaning_tars = [
        TestTar::new().directory("a/b"),
        TestTar::new().directory("a").file("a/b/f", b""),
        TestTar::new().file("a/.wh.f", b""),
        TestTar::new().file("a/.wh..wh..opq", b""),
        TestTar::new().symlink("l", "a").file("l/f", b""),
        // What came into it may be elsewhere, where a lower layer has a symbolic link.
        TestTar::new().file("a/f", b"").file("a", b""),
    ];
    for tar in leaning_tars {
        assert_eq!(leaning(tar), Leaning::Directories);
    }
}
