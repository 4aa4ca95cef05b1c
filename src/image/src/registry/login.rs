//! Logging in to registries, and out: credentials are tried (OCI distribution-spec, "Determining
//! Support"; distribution, "Token Authentication") before they are kept.

use std::collections::HashMap;
use std::time::Duration;

use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Client, RequestBuilder, StatusCode};

use super::credentials::{self, Login};
use super::{CONNECT_TIMEOUT, PATIENCE, runtime};
use crate::ParseReferenceError;
use crate::reference::{self, RegistryName};
use crate::source::SourceError;

/// Somebody's account with a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    registry: String,
}

impl Account {
    /// With the registry of that host name, which may be written as a URL; Docker Hub's where it is
    /// empty.
    ///
    /// # Errors
    /// Where it is no host name.
    pub fn of(registry: &str) -> Result<Self, ParseReferenceError> {
        let registry = reference::registry_of(credentials::host(registry))?;
        Ok(Self { registry })
    }

    /// The registry's host name.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The credentials that are kept.
    ///
    /// # Errors
    /// Where there are some that can't be used.
    pub fn kept(&self) -> Result<Option<Login>, SourceError> {
        credentials::login(&self.registry)
    }

    /// Tries the credentials, and keeps them where Docker does if the registry takes them.
    ///
    /// # Errors
    /// Where the registry is not there or does not take them, or they can't be kept.
    pub fn log_in(&self, login: &Login) -> Result<(), SourceError> {
        self.check(login)?;
        credentials::keep(&self.registry, login)
    }

    /// Forgets the credentials; false where there were none.
    ///
    /// # Errors
    /// Where the place in which they are kept can't be changed.
    pub fn log_out(&self) -> Result<bool, SourceError> {
        credentials::forget(&self.registry)
    }

    fn check(&self, login: &Login) -> Result<(), SourceError> {
        let runtime = runtime()?;
        let unusable = |error: reqwest::Error| super::error_of(&self.registry, "", error.into());
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(PATIENCE + Duration::from_secs(30))
            .user_agent(super::USER_AGENT)
            .build()
            .map_err(unusable)?;
        runtime.block_on(async {
            let base = self.base();
            let answer = client.get(&base).send().await.map_err(unusable)?;
            let challenge = match answer.status() {
                StatusCode::UNAUTHORIZED => Challenge::of(answer.headers().get(WWW_AUTHENTICATE)),
                _ => return self.judge(answer),
            };
            let request = match challenge {
                Some(Challenge::Basic) => client.get(&base),
                Some(Challenge::Bearer { realm, service }) => {
                    token_request(&client, &realm, service, login)
                }
                None => return Err(SourceError::Challenge(self.registry.clone())),
            };
            let request = request.basic_auth(&login.user, Some(&login.password));
            self.judge(request.send().await.map_err(unusable)?)
        })
    }

    /// What a status says of the credentials.
    fn judge(&self, answer: reqwest::Response) -> Result<(), SourceError> {
        let registry = self.registry.clone();
        match answer.status() {
            status if status.is_success() => Ok(()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(SourceError::WrongLogin(registry))
            }
            status => Err(SourceError::NotARegistry {
                registry,
                status: status.as_u16(),
            }),
        }
    }

    /// The URL by which a registry says that it is one.
    fn base(&self) -> String {
        let scheme = match RegistryName::is_loopback_host(&self.registry) {
            true => "http",
            false => "https",
        };
        let host = match self.registry.as_str() {
            "docker.io" => "index.docker.io",
            other => other,
        };
        format!("{scheme}://{host}/v2/")
    }
}

/// Asks for a token that allows nothing: only whether there is one matters.
fn token_request(
    client: &Client,
    realm: &str,
    service: Option<String>,
    login: &Login,
) -> RequestBuilder {
    let mut query = vec![("account", login.user.clone())];
    query.extend(service.map(|service| ("service", service)));
    client.get(realm).query(&query)
}

/// How a registry wants to be asked (RFC 9110, 11.6.1).
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    fn of(header: Option<&reqwest::header::HeaderValue>) -> Option<Self> {
        Self::parse(header?.to_str().ok()?)
    }

    fn parse(header: &str) -> Option<Self> {
        let (scheme, parameters) = header.trim().split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters_of(parameters);
        Some(Self::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
        })
    }
}

/// Reads `name="value",name=value`.
fn parameters_of(mut text: &str) -> HashMap<String, String> {
    let mut parameters = HashMap::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        parameters.insert(name, value.trim().to_owned());
        text = rest;
    }
    parameters
}

#[cfg(test)]
#[path = "login_test.rs"]
mod tests;
