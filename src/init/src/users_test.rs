use std::fs;
use std::os::unix::fs::symlink;

use super::*;

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
# a comment
broken
noid:x:::::
1001:x:1500:1500::/home/number:/bin/sh
alice:x:1000:1000:Alice:/home/alice:/bin/sh
bob:x:1001:1000::/home/bob:/bin/sh
homeless:x:1002:1002::
  spaced:x:1003:1003::/srv:/bin/sh
";

const GROUP: &str = "\
root:x:0:root
alice:x:1000:
staff:x:50:alice,bob
broken:x
audio:x:29:bob, alice
twice:x:1000:alice
42:x:77:
";

fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, RootFs) {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("etc")).unwrap();
    for (name, content) in files {
        fs::write(directory.path().join(name), content).unwrap();
    }
    let root = RootFs::open(directory.path()).unwrap();
    (directory, root)
}

fn find(wanted: &str) -> Result<User, UserError> {
    let (_directory, root) = root(&[("etc/passwd", PASSWD), ("etc/group", GROUP)]);
    look_up(&root, wanted)
}

fn user(uid: u32, groups: &[u32], home: &str) -> User {
    User {
        uid,
        gid: groups[0],
        groups: groups.to_vec(),
        home: home.into(),
    }
}

#[test]
fn nobody_named_is_root() {
    assert_eq!(find("").unwrap(), user(0, &[0], "/root"));
    assert_eq!(find(":").unwrap(), user(0, &[0], "/root"));
    assert_eq!(find(":staff").unwrap(), user(0, &[50], "/root"));
}

#[test]
fn a_name_brings_its_groups_each_once() {
    assert_eq!(
        find("alice").unwrap(),
        user(1000, &[1000, 50, 29], "/home/alice")
    );
    assert_eq!(find("spaced").unwrap(), user(1003, &[1003], "/srv"));
}

#[test]
fn a_number_with_an_entry_is_that_user() {
    assert_eq!(
        find("1000").unwrap(),
        user(1000, &[1000, 50, 29], "/home/alice")
    );
}

#[test]
fn a_number_without_an_entry_is_enough() {
    assert_eq!(find("4711").unwrap(), user(4711, &[0], "/"));
    assert_eq!(find("4711:4712").unwrap(), user(4711, &[4712], "/"));
    assert_eq!(find("2147483647").unwrap(), user(2_147_483_647, &[0], "/"));
}

#[test]
fn the_first_entry_that_fits_wins_by_name_or_number() {
    assert_eq!(find("1001").unwrap(), user(1500, &[1500], "/home/number"));
    assert_eq!(find("alice:42").unwrap(), user(1000, &[77], "/home/alice"));
}

#[test]
fn a_group_that_is_named_replaces_the_others() {
    assert_eq!(
        find("alice:staff").unwrap(),
        user(1000, &[50], "/home/alice")
    );
    assert_eq!(find("bob:0").unwrap(), user(1001, &[0], "/home/bob"));
}

#[test]
fn a_user_without_a_home_lives_in_the_root() {
    assert_eq!(find("homeless").unwrap().home, "/");
}

#[test]
fn an_unknown_name_is_an_error_that_names_it() {
    for (wanted, message) in [
        ("carol", "the container has no user \"carol\""),
        ("noid", "the container has no user \"noid\""),
        ("-1", "the container has no user \"-1\""),
        ("alice:wheel", "the container has no group \"wheel\""),
        ("alice:a:b", "the container has no group \"a:b\""),
        (
            "2147483648",
            "2147483648 is not in the range of user and group ids, 0 to 2147483647",
        ),
        (
            "0:99999999999999",
            "99999999999999 is not in the range of user and group ids, 0 to 2147483647",
        ),
    ] {
        assert_eq!(find(wanted).unwrap_err().to_string(), message);
    }
}

#[test]
fn an_image_without_the_files_has_numbers_only() {
    let (_directory, root) = root(&[]);
    assert_eq!(look_up(&root, "").unwrap(), user(0, &[0], "/"));
    assert_eq!(look_up(&root, "5:6").unwrap(), user(5, &[6], "/"));
    assert!(matches!(
        look_up(&root, "root"),
        Err(UserError::NoSuchUser(_))
    ));
}

#[test]
fn files_that_are_links_out_of_the_root_or_no_files_do_no_harm() {
    let (directory, root) = root(&[]);
    symlink("/etc/passwd", directory.path().join("etc/passwd")).unwrap();
    assert!(matches!(
        look_up(&root, "root"),
        Err(UserError::Unreadable("/etc/passwd", _))
    ));

    fs::remove_file(directory.path().join("etc/passwd")).unwrap();
    symlink(
        "../../../../../../etc/hostname",
        directory.path().join("etc/passwd"),
    )
    .unwrap();
    assert_eq!(look_up(&root, "3").unwrap(), user(3, &[0], "/"));

    fs::remove_file(directory.path().join("etc/passwd")).unwrap();
    fs::create_dir(directory.path().join("etc/group")).unwrap();
    assert!(matches!(
        look_up(&root, "3"),
        Err(UserError::Unreadable("/etc/group", _))
    ));
}

#[test]
fn bytes_that_are_no_text_are_passed_over() {
    let (directory, root) = root(&[]);
    fs::write(
        directory.path().join("etc/passwd"),
        b"\xff\xfe:x:1:1::/:\nok:x:7:8::/ok:\n",
    )
    .unwrap();
    assert_eq!(look_up(&root, "ok").unwrap(), user(7, &[8], "/ok"));
}
