use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc;

use super::*;
use crate::registry::test_registry::RealRegistry;

fn login(user: &str, password: &str) -> Login {
    Login {
        user: user.to_owned(),
        password: password.to_owned(),
    }
}

#[test]
fn registries_by_all_their_names() {
    for (text, registry) in [
        ("", "docker.io"),
        ("docker.io", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("localhost:5000", "localhost:5000"),
        ("https://r.example/v2/", "r.example"),
        ("[::1]:5000", "[::1]:5000"),
    ] {
        assert_eq!(Account::of(text).unwrap().registry(), registry);
    }
    for bad in ["-x", "a b", "r.example:port", "user@host"] {
        assert!(Account::of(bad).is_err(), "{bad}");
    }
}

#[test]
fn challenges() {
    let parse = Challenge::parse;
    assert_eq!(parse("Basic realm=\"x\""), Some(Challenge::Basic));
    assert_eq!(parse("basic"), Some(Challenge::Basic));
    let bearer = |realm: &str, service: Option<&str>| {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        })
    };
    assert_eq!(
        parse(r#"Bearer realm="https://a.example/token",service="r.example", scope="x""#),
        bearer("https://a.example/token", Some("r.example"))
    );
    assert_eq!(parse("Bearer Realm=u, x"), bearer("u", None));
    for bad in [
        "",
        "Bearer",
        "Bearer service=\"x\"",
        "Negotiate abc",
        "Bearer realm",
    ] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

#[test]
fn a_real_registry_judges_credentials() {
    let Some(mut registry) = RealRegistry::start(true) else {
        return;
    };
    let account = Account::of(&registry.address.to_string()).unwrap();
    account.check(&login("user", "secret")).unwrap();
    for wrong in [login("user", "wrong"), login("nobody", ""), login("", "")] {
        let error = account.check(&wrong).unwrap_err();
        assert!(matches!(error, SourceError::WrongLogin(_)), "{error}");
    }
    registry.stop();
    let error = account.check(&login("user", "secret")).unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
}

/// Answers one request after the other with what `answer` says for its first line, and tells of the
/// line and of whether there was an authorization.
fn server(
    answer: impl Fn(&str) -> String + Send + 'static,
) -> (u16, mpsc::Receiver<(String, bool)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, seen) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let reader = BufReader::new(stream.try_clone().unwrap());
            let lines: Vec<String> = reader
                .lines()
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .collect();
            let authorized = lines
                .iter()
                .any(|line| line.to_lowercase().starts_with("authorization: basic"));
            let answer = answer(&lines[0]);
            let end = "Content-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = write!(stream, "HTTP/1.1 {answer}\r\n{end}");
            let _ = sender.send((lines[0].clone(), authorized));
        }
    });
    (port, seen)
}

#[test]
fn a_token_is_asked_for_where_the_registry_says() {
    for (status, good) in [
        ("200 OK", true),
        ("401 Unauthorized", false),
        ("403 No", false),
    ] {
        let (tokens, asked) = server(move |_| status.to_owned());
        let (port, _seen) = server(move |_| {
            format!(
                "401 Unauthorized\r\nWWW-Authenticate: Bearer \
                 realm=\"http://127.0.0.1:{tokens}/token\",service=\"a b\""
            )
        });
        let account = Account::of(&format!("127.0.0.1:{port}")).unwrap();
        assert_eq!(account.check(&login("me", "secret")).is_ok(), good);
        let (line, authorized) = asked.recv().unwrap();
        assert_eq!(line, "GET /token?account=me&service=a+b HTTP/1.1");
        assert!(authorized);
    }
}

#[test]
fn what_is_no_registry_is_said() {
    for (answer, expected) in [
        ("404 Not Found", "its status is 404"),
        ("401 Unauthorized", "does not say how to log in"),
        (
            "401 X\r\nWWW-Authenticate: Negotiate",
            "does not say how to log in",
        ),
    ] {
        let (port, _seen) = server(move |_| answer.to_owned());
        let account = Account::of(&format!("127.0.0.1:{port}")).unwrap();
        let error = account
            .check(&login("me", "secret"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}
