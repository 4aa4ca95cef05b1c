use super::*;

fn parse(text: &str) -> Reference {
    text.parse().unwrap()
}

fn refuse(text: &str) -> ParseReferenceError {
    text.parse::<Reference>().unwrap_err()
}

fn digest_text() -> String {
    Digest::of(b"").to_string()
}

#[test]
fn registry_names_follow_dockers_rules() {
    let digest = digest_text();
    for (typed, meant) in [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("index.docker.io/debian", "docker.io/library/debian:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("someone/tool", "docker.io/someone/tool:latest"),
        ("localhost/tool", "localhost/tool:latest"),
        (
            "localhost:5000/a/b__c:v1.0-RC",
            "localhost:5000/a/b__c:v1.0-RC",
        ),
        ("[::1]:5000/tool", "[::1]:5000/tool:latest"),
        ("Ghcr.IO/x/y-z", "Ghcr.IO/x/y-z:latest"),
        ("test.com:5000", "docker.io/library/test.com:5000"),
    ] {
        assert_eq!(parse(typed).to_string(), meant, "{typed}");
        assert_eq!(parse(meant), parse(meant), "{meant}");
    }
    let pinned = format!("debian@{digest}");
    assert_eq!(
        parse(&pinned).to_string(),
        format!("docker.io/library/debian@{digest}")
    );
    let both = format!("debian:12@{digest}");
    assert_eq!(
        parse(&both).to_string(),
        format!("docker.io/library/debian:12@{digest}")
    );
}

#[test]
fn what_is_displayed_parses_to_the_same() {
    for text in [
        "debian",
        "a/b:c",
        "oci:/some/dir:v1",
        "docker-archive:/f.tar",
    ] {
        let reference = parse(text);
        assert_eq!(
            parse(&reference.to_string()).to_string(),
            reference.to_string()
        );
    }
}

#[test]
fn local_names_take_the_path_up_to_the_first_colon() {
    let Kind::Local { path, tag, .. } = parse("oci:some/dir:docker.io/library/x:1").0 else {
        panic!("not local");
    };
    assert!(path.is_absolute() && path.ends_with("some/dir"));
    assert_eq!(tag.as_deref(), Some("docker.io/library/x:1"));
    let Kind::Local { transport, tag, .. } = parse("oci-archive:/a.tar").0 else {
        panic!("not local");
    };
    assert_eq!((transport, tag), (Transport::OciArchive, None));
    assert!(matches!(refuse("oci:"), ParseReferenceError::NoPath(_)));
    assert!(matches!(refuse("oci::tag"), ParseReferenceError::NoPath(_)));
    assert!(matches!(refuse("oci:/a:"), ParseReferenceError::Tag(_)));
}

#[test]
fn what_could_be_an_id_is_both() {
    assert_eq!(parse("cafe").id_prefix().as_deref(), Some("cafe"));
    assert_eq!(parse("cafe:1").id_prefix(), None);
    assert_eq!(parse("coffee").id_prefix(), None);
    let id = digest_text();
    assert_eq!(parse(&id).to_string(), id);
    assert_eq!(parse(&id).id_prefix(), Some(Digest::of(b"").hex()));
}

#[test]
fn loopback_is_told_from_the_rest() {
    let loopback = |text| match parse(text).0 {
        Kind::Registry(name) => name.is_loopback(),
        _ => panic!("not a registry's"),
    };
    assert!(loopback("localhost:5000/x"));
    assert!(loopback("127.0.0.1:5000/x"));
    assert!(loopback("127.9.9.9/x"));
    assert!(loopback("[::1]:5000/x"));
    assert!(!loopback("localhost.evil.com/x"));
    assert!(!loopback("10.0.0.1:5000/x"));
    assert!(!loopback("debian"));
}

#[test]
fn bad_names_are_refused_with_the_part_that_is_wrong() {
    assert_eq!(refuse(""), ParseReferenceError::Empty);
    for (text, wrong) in [
        ("Debian", "Debian"),
        ("a//b", ""),
        ("a/.b", ".b"),
        ("a/b..c", "b..c"),
        ("a/b_-c", "b_-c"),
        ("a b", "a b"),
        ("/a", ""),
        ("../a", ".."),
    ] {
        match refuse(text) {
            ParseReferenceError::Component { component, .. } => {
                assert!(component.ends_with(wrong), "{text}: {component}");
            }
            ParseReferenceError::Registry(_) if text == "../a" => {}
            other => panic!("{text}: {other}"),
        }
    }
    assert!(matches!(refuse("a:"), ParseReferenceError::Tag(_)));
    assert!(matches!(refuse("a:-x"), ParseReferenceError::Tag(_)));
    let long_tag = format!("a:{}", "x".repeat(129));
    assert!(matches!(refuse(&long_tag), ParseReferenceError::Tag(_)));
    assert!(matches!(
        refuse("a@sha256:1"),
        ParseReferenceError::Digest { .. }
    ));
    assert!(matches!(
        refuse("a@md5:1"),
        ParseReferenceError::Digest { .. }
    ));
    assert!(matches!(
        refuse("h_st.x:1/a"),
        ParseReferenceError::Registry(_)
    ));
    assert!(matches!(
        refuse("host:99999/a"),
        ParseReferenceError::Registry(_)
    ));
    let long = format!("a/{}", "x".repeat(255));
    assert!(matches!(refuse(&long), ParseReferenceError::TooLong(_)));
}
