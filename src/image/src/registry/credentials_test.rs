use std::os::unix::fs::PermissionsExt;

use super::*;

fn with_config(config: &str, registry: &str) -> Result<Option<Login>, SourceError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, config).unwrap();
    login_from(&path, registry, |helper| helper.into())
}

fn login(user: &str, password: &str) -> Option<Login> {
    Some(Login {
        user: user.into(),
        password: password.into(),
    })
}

/// Makes a file that can be run. Not by this process: a child of another test could inherit the file
/// while it is open for writing, and nobody could run it.
fn write_program(path: &Path, script: &str) {
    let written = Command::new("sh")
        .args(["-c", r#"printf %s "$1" >"$0" && chmod 755 "$0""#])
        .arg(path)
        .arg(script)
        .status();
    assert!(written.unwrap().success());
}

/// `u:p` in base64.
const AUTH: &str = "dTpw";

#[test]
fn no_file_is_no_login() {
    assert_eq!(
        login_from(Path::new("/nonexistent/config.json"), "x", |name| name
            .into())
        .unwrap(),
        None
    );
    assert_eq!(with_config("{}", "docker.io").unwrap(), None);
}

#[test]
fn entries_are_found_however_their_key_is_written() {
    for (key, registry) in [
        ("https://index.docker.io/v1/", "docker.io"),
        ("localhost:5000", "localhost:5000"),
        ("http://localhost:5000/v2/", "localhost:5000"),
    ] {
        let config = format!(r#"{{"auths":{{"{key}":{{"auth":"{AUTH}"}}}}}}"#);
        assert_eq!(
            with_config(&config, registry).unwrap(),
            login("u", "p"),
            "{key}"
        );
        assert_eq!(with_config(&config, "other.example").unwrap(), None);
    }
    let part = format!(r#"{{"auths":{{"r.example/part":{{"auth":"{AUTH}"}}}}}}"#);
    assert_eq!(with_config(&part, "r.example").unwrap(), None);
    let plain = r#"{"auths":{"r.example":{"username":"a","password":"b"}}}"#;
    assert_eq!(with_config(plain, "r.example").unwrap(), login("a", "b"));
    let empty = r#"{"auths":{"r.example":{}}}"#;
    assert_eq!(with_config(empty, "r.example").unwrap(), None);
}

#[test]
fn what_can_not_be_used_is_an_error() {
    assert!(matches!(
        with_config("{", "x"),
        Err(SourceError::Credentials { .. })
    ));
    for auth in ["!", "/w==", "eA=="] {
        let config = format!(r#"{{"auths":{{"r.example":{{"auth":"{auth}"}}}}}}"#);
        let error = with_config(&config, "r.example").unwrap_err();
        assert!(matches!(error, SourceError::Credentials { .. }), "{auth}");
    }
    let token = r#"{"auths":{"r.example":{"identitytoken":"x"}}}"#;
    assert!(matches!(
        with_config(token, "r.example"),
        Err(SourceError::IdentityToken(_))
    ));
}

#[test]
fn helpers_are_asked() {
    let directory = tempfile::tempdir().unwrap();
    let helper = directory.path().join("docker-credential-onggitest");
    let script = r#"#!/bin/sh
        read -r key || true
        case "$1 $key" in
            "get r.example") echo '{"Username":"helped","Secret":"s"}' ;;
            "get t.example") echo '{"Username":"<token>","Secret":"s"}' ;;
            "get broken.example") echo 'no way'; exit 1 ;;
            *) echo 'credentials not found in native keychain'; exit 1 ;;
        esac
    "#;
    write_program(&helper, script);
    let run = |registry: &str| {
        let config = r#"{"credsStore":"onggitest","auths":{"a.example":{"auth":"dTpw"}}}"#;
        let path = directory.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        login_from(&path, registry, |helper| directory.path().join(helper))
    };
    assert_eq!(run("r.example").unwrap(), login("helped", "s"));
    assert_eq!(run("a.example").unwrap(), login("u", "p"));
    assert_eq!(run("none.example").unwrap(), None);
    assert!(matches!(
        run("t.example"),
        Err(SourceError::IdentityToken(_))
    ));
    assert!(matches!(
        run("broken.example"),
        Err(SourceError::Helper { .. })
    ));
    let missing = r#"{"credHelpers":{"r.example":"onggi-not-there"}}"#;
    assert!(matches!(
        with_config(missing, "r.example"),
        Err(SourceError::Helper { .. })
    ));
    // A helper is looked up on PATH; a name with a slash in it would be a way round that.
    let slash = r#"{"credHelpers":{"r.example":"x/../evil"}}"#;
    assert!(matches!(
        with_config(slash, "r.example"),
        Err(SourceError::Helper { .. })
    ));
}

#[test]
fn what_is_kept_leaves_the_rest_of_the_file_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/config.json");
    let keep = |registry: &str, user: &str, password: &str| {
        let login = login(user, password).unwrap();
        keep_in(&path, registry, &login, |helper| helper.into()).unwrap();
    };
    let read = |registry: &str| login_from(&path, registry, |helper| helper.into()).unwrap();
    keep("r.example:5000", "a", "p:q");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(read("r.example:5000"), login("a", "p:q"));

    let other = r#"{"auths":{"http://r.example:5000/v2/":{"auth":"dTpw"},"r.example:5000/part":{},
        "b.example":{"auth":"dTpw"}},"detachKeys":"ctrl-x","HttpHeaders":{"X":"y"}}"#;
    std::fs::write(&path, other).unwrap();
    keep("r.example:5000", "a", "new");
    keep("docker.io", "hub", "h");
    let document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let keys: Vec<&String> = document["auths"].as_object().unwrap().keys().collect();
    let expected = [
        "b.example",
        DOCKER_HUB_KEY,
        "r.example:5000",
        "r.example:5000/part",
    ];
    assert_eq!(keys, expected);
    assert_eq!(document["detachKeys"], "ctrl-x");
    assert_eq!(document["HttpHeaders"]["X"], "y");
    assert_eq!(read("r.example:5000"), login("a", "new"));
    assert_eq!(read("docker.io"), login("hub", "h"));

    let forget = |registry: &str| forget_in(&path, registry, |helper| helper.into()).unwrap();
    assert!(forget("r.example:5000") && !forget("r.example:5000") && forget("docker.io"));
    assert_eq!((read("r.example:5000"), read("docker.io")), (None, None));
    assert_eq!(read("b.example"), login("u", "p"));
    assert_eq!(
        std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1
    );
}

#[test]
fn a_link_to_the_file_stays_one() {
    let directory = tempfile::tempdir().unwrap();
    let (real, link) = (directory.path().join("real"), directory.path().join("link"));
    std::fs::write(&real, "{}").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    keep_in(&link, "x", &login("a", "b").unwrap(), |helper| {
        helper.into()
    })
    .unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(std::fs::read_to_string(&real).unwrap().contains("auths"));
    std::fs::write(&real, "[]").unwrap();
    let error = keep_in(&link, "x", &login("a", "b").unwrap(), |helper| {
        helper.into()
    });
    assert!(matches!(error, Err(SourceError::Credentials { .. })));
    assert_eq!(std::fs::read_to_string(&real).unwrap(), "[]");
}

#[test]
fn helpers_keep_and_forget() {
    let directory = tempfile::tempdir().unwrap();
    let kept = directory.path().join("kept");
    let helper = directory.path().join("docker-credential-onggitest");
    let script = format!(
        r#"#!/bin/sh
        case "$1" in
            store) cat >'{0}' ;;
            erase) rm '{0}' ;;
            get) cat '{0}' 2>/dev/null || {{ echo 'credentials not found in native keychain'; exit 1; }} ;;
        esac
    "#,
        kept.display()
    );
    write_program(&helper, &script);
    let path = directory.path().join("config.json");
    std::fs::write(&path, r#"{"credsStore":"onggitest"}"#).unwrap();
    let program = |helper: &str| directory.path().join(helper);
    keep_in(
        &path,
        "docker.io",
        &login("hub", "secret").unwrap(),
        program,
    )
    .unwrap();
    let stored: Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    let expected = json!({"ServerURL": DOCKER_HUB_KEY, "Username": "hub", "Secret": "secret"});
    assert_eq!(stored, expected);
    let config = std::fs::read_to_string(&path).unwrap();
    assert!(
        config.contains(DOCKER_HUB_KEY) && !config.contains("auth\""),
        "{config}"
    );
    assert_eq!(
        login_from(&path, "docker.io", program).unwrap(),
        login("hub", "secret")
    );
    assert!(forget_in(&path, "docker.io", program).unwrap());
    assert!(!kept.exists());
    assert!(!forget_in(&path, "docker.io", program).unwrap());
}
