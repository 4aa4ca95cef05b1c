use std::sync::Barrier;

use super::*;

fn temporary() -> (tempfile::TempDir, Home) {
    let directory = tempfile::tempdir().unwrap();
    let home = Home {
        path: directory.path().to_owned(),
    };
    (directory, home)
}

fn entries(home: &Home) -> Vec<String> {
    fs::read_dir(home.path.join("vms"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn where_home_is() {
    let path = |text: &str| Some(PathBuf::from(text));
    assert_eq!(home(path("/o"), true, None, None), path("/o"));
    assert_eq!(
        home(None, true, path("/x"), path("/h")),
        path("/var/lib/onggi")
    );
    assert_eq!(home(None, false, path("/x"), path("/h")), path("/x/onggi"));
    assert_eq!(
        home(None, false, None, path("/h")),
        path("/h/.local/share/onggi")
    );
    assert_eq!(home(None, false, None, None), None);
}

#[test]
fn names() {
    for good in ["a", "web-1", "0ab_c.d", &"x".repeat(63)] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "-a",
        ".",
        "..",
        "a/b",
        "a b",
        "a\0",
        "ä",
        &"x".repeat(64),
    ] {
        assert!(matches!(check_name(bad), Err(Error::BadName(_))), "{bad}");
    }
}

#[test]
fn a_name_is_taken_while_it_runs() {
    let (_directory, home) = temporary();
    let first = home.claim("jar", "debian").unwrap();
    let entry: Entry =
        serde_json::from_slice(&fs::read(first.path.join("vm.json")).unwrap()).unwrap();
    assert_eq!(
        (entry.pid, entry.image.as_str()),
        (std::process::id(), "debian")
    );
    assert!(matches!(home.claim("jar", "x"), Err(Error::NameInUse(name)) if name == "jar"));
    let _other = home.claim("pot", "debian").unwrap();
    drop(first);
    assert_eq!(entries(&home), ["pot"]);
    assert!(home.claim("jar", "x").is_ok());
}

/// What kill -9 leaves: an entry whose lock went with its process.
#[test]
fn stale_entries_are_reaped() {
    let (_directory, home) = temporary();
    let vms = home.path.join("vms");
    fs::create_dir_all(vms.join("dead")).unwrap();
    fs::write(vms.join("dead/vm.json"), "half an en").unwrap();
    fs::create_dir_all(vms.join("dead2")).unwrap();
    fs::create_dir(vms.join("held")).unwrap();
    let _held = lock(&vms.join("held")).unwrap().unwrap();

    let _claim = home.claim("dead", "debian").unwrap();
    let mut names = entries(&home);
    names.sort();
    assert_eq!(names, ["dead", "held"]);
}

#[test]
fn one_of_many_wins_a_name() {
    let (_directory, home) = temporary();
    const RACERS: usize = 8;
    for _ in 0..20 {
        let start = Barrier::new(RACERS);
        let end = Barrier::new(RACERS);
        let winners: usize = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..RACERS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        let claim = home.claim("jar", "debian");
                        end.wait();
                        match claim {
                            Ok(_) => 1,
                            Err(Error::NameInUse(_)) => 0,
                            Err(error) => panic!("{error:?}"),
                        }
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).sum()
        });
        assert_eq!(winners, 1);
        assert!(entries(&home).is_empty());
    }
}

#[test]
fn a_home_that_can_not_be() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let home = Home {
        path: file.path().join("below"),
    };
    assert!(matches!(
        home.claim("jar", "x"),
        Err(Error::MakeDirectory(..))
    ));
    assert!(matches!(home.scratch(), Err(Error::MakeDirectory(..))));
}

#[test]
fn ids() {
    let id = new_id().unwrap();
    assert!(id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_ne!(id, new_id().unwrap());
    assert!(check_name(&id).is_ok());
}
