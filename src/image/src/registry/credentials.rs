//! The credentials that `docker login` has kept (docker/cli, `config.json`, "Credential stores").

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::source::SourceError;

/// By this key Docker keeps the credentials for Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name by which a helper says that its secret is an identity token.
const TOKEN_USER: &str = "<token>";
const HELPER_NOT_FOUND: &str = "credentials not found in native keychain";

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.user)
    }
}

#[derive(Default, serde::Deserialize)]
struct Config {
    #[serde(default)]
    auths: HashMap<String, Auth>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
    #[serde(rename = "credHelpers", default)]
    helpers: HashMap<String, String>,
}

#[derive(serde::Deserialize)]
struct Auth {
    #[serde(default)]
    auth: String,
    username: Option<String>,
    password: Option<String>,
    #[serde(default)]
    identitytoken: String,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// The login for a registry, if there is one.
pub(crate) fn login(registry: &str) -> Result<Option<Login>, SourceError> {
    match config_path() {
        Some(path) => login_from(&path, registry, |helper| helper.into()),
        None => Ok(None),
    }
}

fn config_path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let directory = match set("DOCKER_CONFIG") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(&set("HOME")?).join(".docker"),
    };
    Some(directory.join("config.json"))
}

/// `program` says where a helper's program is.
fn login_from(
    path: &Path,
    registry: &str,
    program: impl Fn(&str) -> PathBuf,
) -> Result<Option<Login>, SourceError> {
    let unusable = |source| SourceError::Credentials {
        path: path.to_owned(),
        source,
    };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(error)),
    };
    let config: Config = serde_json::from_slice(&text).map_err(|e| unusable(e.into()))?;
    let key = match registry {
        "docker.io" => DOCKER_HUB_KEY,
        other => other,
    };
    let helper = find(&config.helpers, key).or(config.store.as_ref());
    if let Some(helper) = helper.filter(|helper| !helper.is_empty())
        && let Some(login) = ask_helper(helper, key, program)?
    {
        return Ok(Some(login));
    }
    match find(&config.auths, key) {
        Some(auth) => auth.login(registry, unusable),
        None => Ok(None),
    }
}

/// Looks a registry up by host, however the key is written.
fn find<'a, T>(map: &'a HashMap<String, T>, key: &str) -> Option<&'a T> {
    map.get(key).or_else(|| {
        let same = |candidate: &&String| host(candidate) == host(key);
        let found = map.keys().filter(same).min()?;
        map.get(found)
    })
}

fn host(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or(key.strip_prefix("http://"))
        .unwrap_or(key);
    key.split('/').next().unwrap_or(key)
}

impl Auth {
    fn login(
        &self,
        registry: &str,
        unusable: impl Fn(io::Error) -> SourceError,
    ) -> Result<Option<Login>, SourceError> {
        if !self.identitytoken.is_empty() {
            return Err(SourceError::IdentityToken(registry.to_owned()));
        }
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            let (user, password) = (user.clone(), password.clone());
            return Ok(Some(Login { user, password }));
        }
        // Docker leaves an empty entry for a registry whose credentials are in a store.
        if self.auth.is_empty() {
            return Ok(None);
        }
        let bad = || {
            let text = format!("the entry for {registry} is not the base64 of USER:PASSWORD");
            unusable(io::Error::new(ErrorKind::InvalidData, text))
        };
        let decoded = STANDARD.decode(&self.auth).map_err(|_| bad())?;
        let decoded = String::from_utf8(decoded).map_err(|_| bad())?;
        let (user, password) = decoded.split_once(':').ok_or_else(bad)?;
        Ok(Some(Login {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

/// Runs `docker-credential-HELPER get` (docker/docker-credential-helpers).
fn ask_helper(
    helper: &str,
    key: &str,
    program: impl Fn(&str) -> PathBuf,
) -> Result<Option<Login>, SourceError> {
    let failed = |source| SourceError::Helper {
        helper: helper.to_owned(),
        source,
    };
    let other = |text: String| failed(io::Error::other(text));
    if helper.contains('/') {
        return Err(other("its name is not valid".to_owned()));
    }
    let mut child = Command::new(program(&format!("docker-credential-{helper}")))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that ends without reading says why on its output.
        let _ = input.write_all(key.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stdout);
        return match message.trim() {
            HELPER_NOT_FOUND => Ok(None),
            message => Err(other(message.to_owned())),
        };
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.into()))?;
    if answer.username == TOKEN_USER {
        return Err(SourceError::IdentityToken(key.to_owned()));
    }
    Ok(Some(Login {
        user: answer.username,
        password: answer.secret,
    }))
}

#[cfg(test)]
#[path = "credentials_test.rs"]
mod tests;
