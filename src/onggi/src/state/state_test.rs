use super::*;

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
fn a_home_that_can_not_be() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let home = Home::at(&file.path().join("below"));
    assert!(matches!(home.containers(), Err(Error::MakeDirectory(..))));
    assert!(matches!(home.nameless(), Err(Error::MakeDirectory(..))));
}

#[test]
fn a_file_is_replaced_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file.json");
    write_json(&path, &[1, 2, 3]).unwrap();
    write_json(&path, &[4]).unwrap();
    assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), [4]);
    std::fs::write(&path, "[1, 2").unwrap();
    assert!(matches!(read_json::<Vec<u8>>(&path), Err(Error::Read(..))));
    let missing = directory.path().join("no/file.json");
    assert!(matches!(write_json(&missing, &[1]), Err(Error::Write(..))));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}
