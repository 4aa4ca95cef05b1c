use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct Image(tempfile::TempDir);

impl Image {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(self, path: &str, mode: u32) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    fn check(&self, program: &str, path: &str, cwd: &str, uid: u32) -> Result<(), ProgramError> {
        let root = RootFs::open(self.0.path()).unwrap();
        let user = User {
            uid,
            gid: uid,
            groups: vec![uid],
            home: "/".into(),
        };
        let environment = [format!("PATH={path}")];
        let cwd = Path::new(cwd);
        find(&root, program, &environment, cwd, &user, &MOUNTED).map(drop)
    }
}

#[test]
fn a_program_is_found_in_path() {
    let image = Image::new().file("usr/bin/tool", 0o755);
    assert!(image.check("tool", "/bin:/usr/bin", "/", 0).is_ok());
    let error = image.check("tool", "/bin", "/", 0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no program \"tool\" in the container's PATH"
    );
    assert!(matches!(
        image.check("", "/usr/bin", "/", 0),
        Err(ProgramError::NoneInPath(_))
    ));
}

#[test]
fn relative_entries_and_programs_start_at_the_working_directory() {
    let image = Image::new().file("srv/bin/tool", 0o755);
    assert!(image.check("tool", "bin", "/srv", 0).is_ok());
    assert!(image.check("tool", "", "/srv/bin", 0).is_ok());
    assert!(image.check("./tool", "", "/srv/bin", 0).is_ok());
    assert!(image.check("../bin/tool", "", "/srv/bin", 0).is_ok());
    assert!(matches!(
        image.check("./tool", "", "/srv", 0),
        Err(ProgramError::Missing(_))
    ));
}

#[test]
fn links_are_followed_inside_the_image_only() {
    let image = Image::new().file("bin/busybox", 0o755);
    symlink("/bin/busybox", image.0.path().join("bin/sh")).unwrap();
    symlink("/usr/bin/env", image.0.path().join("bin/env")).unwrap();
    assert!(image.check("sh", "/bin", "/", 0).is_ok());
    assert!(matches!(
        image.check("/bin/env", "", "/", 0),
        Err(ProgramError::Missing(_))
    ));
}

#[test]
fn a_directory_is_no_program() {
    let image = Image::new()
        .file("bin/tool/file", 0o755)
        .file("sbin/tool", 0o755);
    assert!(matches!(
        image.check("/bin/tool", "", "/", 0),
        Err(ProgramError::NotAFile(_))
    ));
    assert!(image.check("tool", "/bin:/sbin", "/", 0).is_ok());
    let below = image.check("/sbin/tool/x", "", "/", 0).unwrap_err();
    assert!(matches!(below, ProgramError::Missing(_)));
}

#[test]
fn permissions_decide_by_the_first_class_that_fits() {
    // The files belong to whoever runs the test; the users here are others, but for root.
    let image = Image::new()
        .file("all", 0o755)
        .file("none", 0o644)
        .file("others", 0o700);
    let denied = |program, uid| {
        matches!(
            image.check(program, "", "/", uid),
            Err(ProgramError::Forbidden { .. })
        )
    };
    assert!(!denied("/all", 4711));
    assert!(denied("/none", 0));
    assert!(denied("/none", 4711));
    assert!(denied("/others", 4711));

    let found = Found {
        directory: false,
        regular: true,
        mode: 0o010,
        uid: 5,
        gid: 6,
    };
    let user = |uid, groups: &[u32]| User {
        uid,
        gid: 9,
        groups: groups.into(),
        home: "/".into(),
    };
    assert!(may_execute(&found, &user(0, &[])));
    assert!(may_execute(&found, &user(7, &[9, 6])));
    assert!(!may_execute(&found, &user(5, &[6])));
    assert!(!may_execute(&found, &user(7, &[9])));
}

#[test]
fn a_program_that_may_not_run_is_passed_over_for_one_that_may() {
    let image = Image::new().file("a/tool", 0o644).file("b/tool", 0o755);
    assert!(image.check("tool", "/a:/b", "/", 0).is_ok());
    assert!(matches!(
        image.check("tool", "/a:/none", "/", 0),
        Err(ProgramError::Forbidden { .. })
    ));
}

#[test]
fn what_will_be_mounted_is_left_to_the_runtime() {
    let image = Image::new();
    assert!(image.check("/proc/self/exe", "", "/", 0).is_ok());
    assert!(image.check("self/exe", "", "/proc", 0).is_ok());
    assert!(image.check("/process", "", "/", 0).is_err());
}
