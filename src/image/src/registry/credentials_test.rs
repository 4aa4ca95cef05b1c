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
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
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
