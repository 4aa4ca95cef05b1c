//! Requests and answers, as bytes and as what they mean.

use std::fmt::Write;

use serde::Serialize;
use serde_json::json;

/// The most header fields that a request may have.
const MAX_FIELDS: usize = 64;

/// What a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub payload: usize,
    /// Bytes of a request's line and fields.
    pub head: usize,
    /// Connections at once.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload: 51200,
            head: 8192,
            connections: 64,
        }
    }
}

/// What is asked for. The API knows no other methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Put,
    Patch,
    Delete,
}

impl Method {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "GET" => Method::Get,
            "PUT" => Method::Put,
            "PATCH" => Method::Patch,
            "DELETE" => Method::Delete,
            _ => return None,
        })
    }

    /// The method's name.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }
}

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    /// The path, without a query.
    pub path: String,
    pub body: Vec<u8>,
}

/// Status codes that the API answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    NoContent,
    BadRequest,
    PayloadTooLarge,
}

impl Status {
    /// The code as a number.
    pub fn code(self) -> u16 {
        match self {
            Status::Ok => 200,
            Status::NoContent => 204,
            Status::BadRequest => 400,
            Status::PayloadTooLarge => 413,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::NoContent => "No Content",
            Status::BadRequest => "Bad Request",
            Status::PayloadTooLarge => "Payload Too Large",
        }
    }
}

/// An answer: a status and, but for `NoContent`, JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: Status,
    pub body: Vec<u8>,
}

impl Response {
    /// It was done, and there is nothing to say.
    pub fn done() -> Self {
        Self {
            status: Status::NoContent,
            body: Vec::new(),
        }
    }

    /// What was asked for.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self {
                status: Status::Ok,
                body,
            },
            Err(error) => Self::fault(Status::BadRequest, &error.to_string()),
        }
    }

    /// Why it was not done.
    pub fn fault(status: Status, message: &str) -> Self {
        Self {
            status,
            body: json!({ "fault_message": message }).to_string().into_bytes(),
        }
    }

    /// Appends the answer to what a connection is to send.
    pub(super) fn write_to(&self, out: &mut Vec<u8>, keep_alive: bool) {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nServer: onggi\r\nConnection: {}\r\n",
            self.status.code(),
            self.status.reason(),
            if keep_alive { "keep-alive" } else { "close" },
        );
        // An answer without content has no length either (RFC 9110 §8.6).
        if self.status != Status::NoContent {
            // Writing to a string does not fail.
            let _ = write!(
                head,
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                self.body.len()
            );
        }
        head.push_str("\r\n");
        out.extend(head.as_bytes());
        if self.status != Status::NoContent {
            out.extend(&self.body);
        }
    }
}

/// The head of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub method: Method,
    pub path: String,
    /// Bytes of the head itself.
    pub len: usize,
    /// Bytes of the body that follows.
    pub content: usize,
    /// The client wants to go on after this request.
    pub keep_alive: bool,
    /// The client waits to be told to send the body (RFC 9110 §10.1.1).
    pub expects_continue: bool,
}

/// What a client sent that can't be served. The connection ends with the answer: where the next
/// request begins is not known.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum BadHead {
    #[error("The request is not valid HTTP/1.1: {0}.")]
    Syntax(httparse::Error),
    #[error("The request's line and header fields are longer than {0} bytes.")]
    TooLong(usize),
    #[error("The method '{0}' is not one that the API knows.")]
    Method(String),
    #[error("The request has no valid Content-Length.")]
    ContentLength,
    #[error("The request has a Transfer-Encoding; only a Content-Length is supported.")]
    TransferEncoding,
    #[error("The request's body has {len} bytes, more than the {limit} that are allowed.")]
    Payload { len: usize, limit: usize },
}

impl BadHead {
    pub fn response(&self) -> Response {
        let status = match self {
            BadHead::Payload { .. } => Status::PayloadTooLarge,
            _ => Status::BadRequest,
        };
        Response::fault(status, &self.to_string())
    }
}

/// Reads a request's head; `None` where its end has not come yet.
pub(super) fn parse_head(bytes: &[u8], limits: &Limits) -> Result<Option<Head>, BadHead> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let len = match request.parse(bytes).map_err(BadHead::Syntax)? {
        httparse::Status::Complete(len) if len <= limits.head => len,
        httparse::Status::Partial if bytes.len() < limits.head => return Ok(None),
        _ => return Err(BadHead::TooLong(limits.head)),
    };
    // All are there in a complete head.
    let (name, target) = (
        request.method.unwrap_or_default(),
        request.path.unwrap_or_default(),
    );
    let method = Method::from_name(name);
    let mut head = Head {
        method: method.ok_or_else(|| BadHead::Method(name.to_owned()))?,
        path: path(target).to_owned(),
        len,
        content: 0,
        keep_alive: request.version == Some(1),
        expects_continue: false,
    };
    let mut length = None;
    for field in request.headers.iter() {
        let is = |name| field.name.eq_ignore_ascii_case(name);
        let value = || field.value.trim_ascii();
        if is("content-length") {
            let digits = std::str::from_utf8(value()).ok();
            let digits = digits.filter(|it| it.bytes().all(|byte| byte.is_ascii_digit()));
            let count: usize = digits
                .and_then(|it| it.parse().ok())
                .ok_or(BadHead::ContentLength)?;
            if length.replace(count).is_some_and(|other| other != count) {
                return Err(BadHead::ContentLength);
            }
        } else if is("transfer-encoding") {
            return Err(BadHead::TransferEncoding);
        } else if is("connection") {
            for option in value().split(|byte| *byte == b',') {
                match option.trim_ascii().to_ascii_lowercase().as_slice() {
                    b"close" => head.keep_alive = false,
                    b"keep-alive" => head.keep_alive = true,
                    _ => {}
                }
            }
        } else if is("expect") && value().eq_ignore_ascii_case(b"100-continue") {
            head.expects_continue = true;
        }
    }
    head.content = length.unwrap_or(0);
    if head.content > limits.payload {
        return Err(BadHead::Payload {
            len: head.content,
            limit: limits.payload,
        });
    }
    Ok(Some(head))
}

/// The path of a target, which clients give with or without an authority (RFC 9112 §3.2).
fn path(target: &str) -> &str {
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    target.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Head>, BadHead> {
        parse_head(text.as_bytes(), &Limits::default())
    }

    #[test]
    fn heads() {
        let head = parse(
            "PUT /drives/a?x=1 HTTP/1.1\r\nHost: localhost\r\ncontent-LENGTH: 12 \r\n\r\n{...",
        );
        let head = head.unwrap().unwrap();
        assert_eq!(
            (head.method, head.path.as_str()),
            (Method::Put, "/drives/a")
        );
        assert_eq!((head.content, head.keep_alive), (12, true));
        for (fields, keep_alive) in [
            ("1.0\r\n", false),
            ("1.0\r\nConnection: Keep-Alive\r\n", true),
            ("1.1\r\nConnection: te, close\r\n", false),
        ] {
            let head = parse(&format!("GET http://localhost/vm/config HTTP/{fields}\r\n"));
            let head = head.unwrap().unwrap();
            assert_eq!(
                (head.path.as_str(), head.keep_alive),
                ("/vm/config", keep_alive)
            );
        }
        let head = parse("PATCH / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n");
        assert!(head.unwrap().unwrap().expects_continue);
        assert_eq!(parse("GET / HTTP/1.1\r\nHost"), Ok(None));
        assert_eq!(parse(""), Ok(None));
        assert_eq!(
            (path("http://host"), path("*"), path("a#b")),
            ("/", "*", "a")
        );
    }

    #[test]
    fn bad_heads() {
        let get = |fields: &str| parse(&format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n"));
        for length in ["", "-1", "+1", "x", "1 2", "99999999999999999999999", "0x1"] {
            let refused = get(&format!("Content-Length: {length}"));
            assert_eq!(refused, Err(BadHead::ContentLength), "{length}");
        }
        let refused = get("Content-Length: 1\r\nContent-Length: 2");
        assert_eq!(refused, Err(BadHead::ContentLength));
        let refused = get("Transfer-Encoding: chunked");
        assert_eq!(refused, Err(BadHead::TransferEncoding));
        let refused = get("Content-Length: 51201").unwrap_err();
        assert_eq!(refused.response().status, Status::PayloadTooLarge);
        assert_eq!(
            get("Content-Length: 51200").unwrap().unwrap().content,
            51200
        );
        assert!(matches!(
            parse("HEAD / HTTP/1.1\r\n\r\n"),
            Err(BadHead::Method(_))
        ));
        assert!(matches!(
            parse("GET / HTTP/2.0\r\n\r\n"),
            Err(BadHead::Syntax(_))
        ));
        assert!(matches!(parse("\0\0\0\0"), Err(BadHead::Syntax(_))));
        for end in ["", "\r\n\r\n"] {
            let long = parse(&format!("GET /{} HTTP/1.1{end}", "a".repeat(8192)));
            assert_eq!(long, Err(BadHead::TooLong(8192)));
        }
        assert!(matches!(
            get(&"a: b\r\n".repeat(65)),
            Err(BadHead::Syntax(_))
        ));
    }

    #[test]
    fn answers() {
        let bytes = |response: Response, keep_alive| {
            let mut out = Vec::new();
            response.write_to(&mut out, keep_alive);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            bytes(Response::done(), true),
            "HTTP/1.1 204 No Content\r\nServer: onggi\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(
            bytes(Response::fault(Status::BadRequest, "\"no\""), false),
            "HTTP/1.1 400 Bad Request\r\nServer: onggi\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: 26\r\n\r\n\
             {\"fault_message\":\"\\\"no\\\"\"}"
        );
        assert!(bytes(Response::json(&[1, 2]), true).ends_with("Content-Length: 5\r\n\r\n[1,2]"));
    }
}
