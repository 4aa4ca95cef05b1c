//! The part of HTTP/1 that the service speaks (RFC 9112): requests without a body, one answer to
//! each, connections that stay open.

use crate::store::Format;

/// The most bytes of a request.
pub(crate) const MAX_REQUEST: usize = 4096;

/// The most header fields of a request.
const MAX_FIELDS: usize = 64;

/// A request, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Without a query.
    pub(crate) path: String,
    /// How the answer is wanted.
    pub(crate) format: Format,
    /// The session's token.
    pub(crate) token: Option<String>,
    /// How long a new token is to live, and in which field that was said.
    pub(crate) lifetime: Option<(&'static str, String)>,
    /// It has come through a proxy.
    pub(crate) is_forwarded: bool,
    /// HTTP/1.0.
    pub(crate) is_old: bool,
    /// The client wants to go on after this request.
    pub(crate) keep_alive: bool,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Put,
    Other,
}

/// What a client sent that is no request. Where the next one begins is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error("The request is not valid HTTP/1: {0}.")]
    Syntax(httparse::Error),
    #[error("The request is longer than {MAX_REQUEST} bytes.")]
    TooLong,
    #[error("The request has a body, which the service takes none of.")]
    Body,
}

/// Fields that a token's lifetime may come in.
const LIFETIME_FIELDS: [&str; 2] = [
    "X-metadata-token-ttl-seconds",
    "X-aws-ec2-metadata-token-ttl-seconds",
];

/// Fields that a token may come in.
const TOKEN_FIELDS: [&str; 2] = ["X-metadata-token", "X-aws-ec2-metadata-token"];

impl Request {
    /// Reads the request at the front of `bytes`, and how long it is; `None` where its end has not
    /// come yet.
    ///
    /// # Errors
    /// See [`BadRequest`].
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, BadRequest> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut fields);
        let len = match parsed.parse(bytes).map_err(BadRequest::Syntax)? {
            httparse::Status::Complete(len) if len <= MAX_REQUEST => len,
            httparse::Status::Partial if bytes.len() < MAX_REQUEST => return Ok(None),
            _ => return Err(BadRequest::TooLong),
        };
        let is_old = parsed.version == Some(0);
        let mut request = Request {
            method: match parsed.method {
                Some("GET") => Method::Get,
                Some("PUT") => Method::Put,
                _ => Method::Other,
            },
            path: path(parsed.path.unwrap_or_default()).to_owned(),
            format: Format::Imds,
            token: None,
            lifetime: None,
            is_forwarded: false,
            is_old,
            keep_alive: !is_old,
        };
        for field in parsed.headers.iter() {
            request.take(field.name, field.value.trim_ascii())?;
        }
        Ok(Some((request, len)))
    }

    /// Takes what a header field says, where it says anything to the service.
    fn take(&mut self, name: &str, value: &[u8]) -> Result<(), BadRequest> {
        let is = |other: &&str| name.eq_ignore_ascii_case(other);
        let text = || String::from_utf8_lossy(value).into_owned();
        if is(&"accept") {
            self.format = format(value);
        } else if is(&"connection") {
            for option in value.split(|byte| *byte == b',') {
                match option.trim_ascii().to_ascii_lowercase().as_slice() {
                    b"close" => self.keep_alive = false,
                    b"keep-alive" => self.keep_alive = true,
                    _ => {}
                }
            }
        } else if is(&"content-length") {
            if value != b"0" {
                return Err(BadRequest::Body);
            }
        } else if is(&"transfer-encoding") {
            return Err(BadRequest::Body);
        } else if is(&"x-forwarded-for") {
            self.is_forwarded = true;
        } else if TOKEN_FIELDS.iter().any(is) {
            self.token = Some(text());
        } else if let Some(field) = LIFETIME_FIELDS.into_iter().find(is) {
            self.lifetime = Some((field, text()));
        }
        Ok(())
    }
}

/// The first of the types that a client takes which the service can give; text where there is none.
fn format(accept: &[u8]) -> Format {
    let types = accept.split(|byte| *byte == b',').map(|one| {
        let name = one.split(|byte| *byte == b';').next().unwrap_or_default();
        name.trim_ascii().to_ascii_lowercase()
    });
    let known = types.filter_map(|name| match name.as_slice() {
        b"application/json" => Some(Format::Json),
        b"text/plain" | b"text/*" | b"*/*" => Some(Format::Imds),
        _ => None,
    });
    known.into_iter().next().unwrap_or(Format::Imds)
}

/// The path of a target, which clients give with or without an authority (RFC 9112 §3.2).
fn path(target: &str) -> &str {
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    target.split(['?', '#']).next().unwrap_or_default()
}

/// Status codes of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    BadRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    NotImplemented,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::Unauthorized => "401 Unauthorized",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::NotImplemented => "501 Not Implemented",
        }
    }
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: Status,
    pub(crate) format: Format,
    /// One more header field.
    pub(crate) field: Option<(&'static str, String)>,
    pub(crate) body: String,
}

impl Response {
    /// What was asked for.
    pub(crate) fn found(format: Format, body: String) -> Self {
        Self {
            status: Status::Ok,
            format,
            field: None,
            body,
        }
    }

    /// Why it was not done.
    pub(crate) fn refusal(status: Status, why: impl ToString) -> Self {
        Self {
            status,
            ..Self::found(Format::Imds, why.to_string())
        }
    }

    /// What goes over the wire.
    pub(crate) fn to_bytes(&self, is_old: bool, keep_alive: bool) -> Vec<u8> {
        let version = if is_old { "1.0" } else { "1.1" };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let content_type = match self.format {
            Format::Json => "application/json",
            Format::Imds => "text/plain",
        };
        let field = match &self.field {
            Some((name, value)) => format!("{name}: {value}\r\n"),
            None => String::new(),
        };
        let (line, len) = (self.status.line(), self.body.len());
        let head = format!(
            "HTTP/{version} {line}\r\nServer: onggi\r\nConnection: {connection}\r\n{field}\
             Content-Type: {content_type}\r\nContent-Length: {len}\r\n\r\n"
        );
        [head.as_bytes(), self.body.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<(Request, usize)>, BadRequest> {
        Request::parse(text.as_bytes())
    }

    fn with(fields: &str) -> Request {
        let text = format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n");
        let (request, len) = parse(&text).unwrap().unwrap();
        assert_eq!(len, text.len());
        request
    }

    #[test]
    fn requests() {
        let text = "PUT /latest/api/token?a=b HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\nGET";
        let (request, len) = parse(text).unwrap().unwrap();
        assert_eq!(len, text.len() - 3);
        let expected = Request {
            method: Method::Put,
            path: "/latest/api/token".to_owned(),
            format: Format::Imds,
            token: None,
            lifetime: None,
            is_forwarded: false,
            is_old: false,
            keep_alive: true,
        };
        assert_eq!(request, expected);
        for end in 0..len {
            assert_eq!(parse(&text[..end]), Ok(None));
        }
        let (request, _) = parse("HEAD http://169.254.169.254 HTTP/1.0\n\n")
            .unwrap()
            .unwrap();
        assert_eq!(
            (request.method, request.path.as_str()),
            (Method::Other, "/")
        );
        assert!(request.is_old && !request.keep_alive);
    }

    #[test]
    fn fields() {
        assert!(!with("Connection: x, Close").keep_alive);
        assert!(with("x-fOrWaRdEd-FoR: 203.0.113.195").is_forwarded);
        for name in ["X-metadata-token", "x-aws-ec2-METADATA-token"] {
            let token = with(&format!("{name}:  a b ")).token;
            assert_eq!(token.as_deref(), Some("a b"));
        }
        for name in LIFETIME_FIELDS {
            let lifetime = with(&format!("{}: 60", name.to_uppercase())).lifetime;
            assert_eq!(lifetime, Some((name, "60".to_owned())));
        }
        assert!(with("Content-Length: 0").keep_alive);
    }

    #[test]
    fn formats() {
        for accept in [
            "",
            "*/*",
            "text/plain",
            "image/png",
            "*/*, application/json",
        ] {
            let format = with(&format!("Accept: {accept}")).format;
            assert_eq!(format, Format::Imds, "{accept}");
        }
        for accept in [
            "application/json",
            "Application/JSON; q=0.5",
            "text/html, application/json, */*",
        ] {
            let format = with(&format!("Accept: {accept}")).format;
            assert_eq!(format, Format::Json, "{accept}");
        }
    }

    #[test]
    fn bad_requests() {
        for body in [
            "Content-Length: 5",
            "Content-Length: x",
            "Transfer-Encoding: chunked",
        ] {
            let refused = parse(&format!("PUT / HTTP/1.1\r\n{body}\r\n\r\n"));
            assert_eq!(refused, Err(BadRequest::Body));
        }
        for text in [
            "\0",
            "GET / HTTP/2.0\r\n",
            "GET /\r\n\r\n",
            "GET / HTTP/1.1\r\n a: b\r\n",
        ] {
            assert!(
                matches!(parse(text), Err(BadRequest::Syntax(_))),
                "{text:?}"
            );
        }
        for end in ["", " HTTP/1.1\r\n\r\n"] {
            let refused = parse(&format!("GET /{}{end}", "a".repeat(MAX_REQUEST)));
            assert_eq!(refused, Err(BadRequest::TooLong));
        }
        let many = "a: b\r\n".repeat(MAX_FIELDS + 1);
        let refused = parse(&format!("GET / HTTP/1.1\r\n{many}\r\n"));
        assert_eq!(
            refused,
            Err(BadRequest::Syntax(httparse::Error::TooManyHeaders))
        );
    }

    #[test]
    fn answers() {
        let mut response = Response::found(Format::Json, "[\"웅\"]".to_owned());
        response.field = Some(("A", "b".to_owned()));
        assert_eq!(
            String::from_utf8(response.to_bytes(false, true)).unwrap(),
            "HTTP/1.1 200 OK\r\nServer: onggi\r\nConnection: keep-alive\r\nA: b\r\n\
             Content-Type: application/json\r\nContent-Length: 7\r\n\r\n[\"웅\"]"
        );
        let response = Response::refusal(Status::NotFound, BadRequest::Body);
        assert_eq!(
            String::from_utf8(response.to_bytes(true, false)).unwrap(),
            "HTTP/1.0 404 Not Found\r\nServer: onggi\r\nConnection: close\r\n\
             Content-Type: text/plain\r\nContent-Length: 56\r\n\r\n\
             The request has a body, which the service takes none of."
        );
    }
}
