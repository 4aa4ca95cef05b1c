//! What the service answers to a request.

use std::time::Instant;

use ring::rand::{self, SystemRandom};

use crate::http::{Method, Request, Response, Status};
use crate::store::{Format, Missing, Store, pointer};
use crate::token::{LIFETIMES, Tokens};

/// Where tokens are given.
const TOKEN_PATH: &str = "/latest/api/token";

/// Whether a guest needs a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// It does not, but may have one.
    V1,
    /// Without one it gets nothing.
    V2,
}

/// There can be no service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// Keys are made of these.
    #[error("the system has no random numbers")]
    NoRandomNumbers,
}

/// The service of a VM, whatever links the guest reaches it by.
#[derive(Debug)]
pub struct Service {
    store: Store,
    version: Version,
    always_text: bool,
    tokens: Tokens,
    seed: u64,
}

/// Why a request is refused, in the answer's body.
#[derive(Debug, thiserror::Error)]
enum Refusal<'a> {
    #[error("The service takes no other methods than GET and PUT.")]
    Method,
    #[error("There is nothing at '{0}'.")]
    NotFound(&'a str),
    #[error("What is at '{0}' is neither text nor an object: ask for application/json.")]
    NoText(&'a str),
    #[error("The request needs the token of a session, in the field X-metadata-token.")]
    NoToken,
    #[error("The token was not given by this service, or it has expired.")]
    Token,
    #[error("A token is not given to a request that was forwarded.")]
    Forwarded,
    #[error(
        "The field X-metadata-token-ttl-seconds must say how long the token is to live: \
         {} to {} seconds.",
        LIFETIMES.start(), LIFETIMES.end()
    )]
    Lifetime,
}

impl Refusal<'_> {
    fn status(&self) -> Status {
        match self {
            Refusal::Method => Status::MethodNotAllowed,
            Refusal::NotFound(_) => Status::NotFound,
            Refusal::NoText(_) => Status::NotImplemented,
            Refusal::NoToken | Refusal::Token => Status::Unauthorized,
            Refusal::Forwarded | Refusal::Lifetime => Status::BadRequest,
        }
    }
}

impl Service {
    /// A service that answers from `store`. With `always_text` nobody gets JSON, whatever it asks
    /// for, as from Amazon's service.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn new(store: Store, version: Version, always_text: bool) -> Result<Self, ServiceError> {
        let tokens = Tokens::new(Instant::now()).ok_or(ServiceError::NoRandomNumbers)?;
        let seed = rand::generate(&SystemRandom::new());
        let seed = seed.map_err(|_| ServiceError::NoRandomNumbers)?.expose();
        Ok(Self {
            store,
            version,
            always_text,
            tokens,
            seed: u64::from_ne_bytes(seed),
        })
    }

    /// What makes the sequence numbers of connections hard to guess.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn answer(&self, request: &Request, now: Instant) -> Response {
        let result = match request.method {
            Method::Get => self.get(request, now),
            Method::Put => self.put(request, now),
            Method::Other => Err(Refusal::Method),
        };
        result.unwrap_or_else(|refusal| {
            let mut response = Response::refusal(refusal.status(), &refusal);
            if matches!(refusal, Refusal::Method) {
                response.field = Some(("Allow", "GET, PUT".to_owned()));
            }
            response
        })
    }

    fn get<'a>(&self, request: &'a Request, now: Instant) -> Result<Response, Refusal<'a>> {
        if self.version == Version::V2 {
            let token = request.token.as_ref().ok_or(Refusal::NoToken)?;
            if !self.tokens.is_valid(token, now) {
                return Err(Refusal::Token);
            }
        }
        let path = request.path.as_str();
        let format = match self.always_text {
            true => Format::Imds,
            false => request.format,
        };
        match self.store.read(path, format) {
            Ok(body) => Ok(Response::found(format, body)),
            Err(Missing::NotFound) => Err(Refusal::NotFound(path)),
            Err(Missing::NoText) => Err(Refusal::NoText(path)),
        }
    }

    fn put<'a>(&self, request: &'a Request, now: Instant) -> Result<Response, Refusal<'a>> {
        if request.is_forwarded {
            return Err(Refusal::Forwarded);
        }
        if pointer(&request.path) != TOKEN_PATH {
            return Err(Refusal::NotFound(&request.path));
        }
        let (field, value) = request.lifetime.as_ref().ok_or(Refusal::Lifetime)?;
        let seconds = value.parse().ok().filter(|it| LIFETIMES.contains(it));
        let seconds = seconds.ok_or(Refusal::Lifetime)?;
        Ok(Response {
            field: Some((field, seconds.to_string())),
            ..Response::found(Format::Imds, self.tokens.issue(seconds, now))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn service(version: Version, always_text: bool) -> Service {
        let store = Store::new(1000);
        store
            .set(json!({"latest": {"id": "i-1", "n": 43}}))
            .unwrap();
        Service::new(store, version, always_text).unwrap()
    }

    fn ask(service: &Service, text: &str, later: Duration) -> (u16, String, Response) {
        let text = text.replace('\n', "\r\n") + "\r\n\r\n";
        let (request, _) = Request::parse(text.as_bytes()).unwrap().unwrap();
        let response = service.answer(&request, Instant::now() + later);
        let line = String::from_utf8(response.to_bytes(false, true)).unwrap();
        let status = line[9..12].parse().unwrap();
        (status, response.body.clone(), response)
    }

    fn status(service: &Service, text: &str) -> u16 {
        let (status, body, response) = ask(service, text, Duration::ZERO);
        assert!(status == 200 || (response.format == Format::Imds && body.ends_with('.')));
        status
    }

    #[test]
    fn metadata_without_a_token() {
        let service = service(Version::V1, false);
        let get = |text: &str| ask(&service, text, Duration::ZERO);
        let (status, body, response) = get("GET /latest HTTP/1.1");
        assert_eq!((status, body.as_str()), (200, "id\nn"));
        assert_eq!(response.format, Format::Imds);
        let (status, body, response) = get("GET /latest HTTP/1.1\nAccept: application/json");
        assert_eq!((status, body.as_str()), (200, r#"{"id":"i-1","n":43}"#));
        assert_eq!(response.format, Format::Json);
        // A token that is none does not matter.
        let (status, ..) = get("GET /latest/id HTTP/1.1\nX-metadata-token: foo");
        assert_eq!(status, 200);
        assert_eq!(self::status(&service, "GET /nothing HTTP/1.1"), 404);
        assert_eq!(self::status(&service, "GET /latest/n HTTP/1.1"), 501);
    }

    #[test]
    fn always_text() {
        let service = service(Version::V1, true);
        let text = "GET /latest/id HTTP/1.1\nAccept: application/json";
        let (status, body, response) = ask(&service, text, Duration::ZERO);
        assert_eq!((status, body.as_str()), (200, "i-1"));
        assert_eq!(response.format, Format::Imds);
        let text = "GET /latest/n HTTP/1.1\nAccept: application/json";
        assert_eq!(self::status(&service, text), 501);
    }

    #[test]
    fn sessions() {
        for version in [Version::V1, Version::V2] {
            let service = service(version, false);
            for (field, token_field) in [
                ("X-metadata-token-ttl-seconds", "X-metadata-token"),
                (
                    "X-aws-ec2-metadata-token-ttl-seconds",
                    "X-aws-ec2-metadata-token",
                ),
            ] {
                let text = format!("PUT /latest//api/token HTTP/1.1\n{field}: 60");
                let (status, token, response) = ask(&service, &text, Duration::ZERO);
                assert_eq!(status, 200);
                assert_eq!(response.field, Some((field, "60".to_owned())));
                let text = format!("GET /latest/id HTTP/1.1\n{token_field}: {token}");
                let (status, body, _) = ask(&service, &text, Duration::from_secs(50));
                assert_eq!((status, body.as_str()), (200, "i-1"));
                let (status, ..) = ask(&service, &text, Duration::from_secs(60));
                assert_eq!(status, if version == Version::V2 { 401 } else { 200 });
            }
        }
    }

    #[test]
    fn refusals() {
        let service = service(Version::V2, false);
        let token = "PUT /latest/api/token HTTP/1.1\nX-metadata-token-ttl-seconds: ";
        for (text, status) in [
            ("GET /latest/id HTTP/1.1", 401),
            ("GET /latest/id HTTP/1.1\nX-metadata-token: foo", 401),
            ("PUT /latest/api/token HTTP/1.1", 400),
            (&format!("{token}0"), 400),
            (&format!("{token}21601"), 400),
            (&format!("{token}1.5"), 400),
            (&format!("{token}60\nX-Forwarded-For: 203.0.113.195"), 400),
            (&format!("{token}21600"), 200),
            (
                "PUT /latest/api/toke HTTP/1.1\nX-metadata-token-ttl-seconds: 1",
                404,
            ),
            ("PUT / HTTP/1.1", 404),
        ] {
            assert_eq!(self::status(&service, text), status, "{text}");
        }
        for method in ["PATCH", "POST", "DELETE", "HEAD", "OPTIONS"] {
            let (status, _, response) =
                ask(&service, &format!("{method} / HTTP/1.1"), Duration::ZERO);
            assert_eq!(status, 405);
            assert_eq!(response.field, Some(("Allow", "GET, PUT".to_owned())));
        }
    }
}
