//! The credentials that `docker login` keeps (docker/cli, `config.json`, "Credential stores"), and
//! `onggi login` in the same place. What others have in the file stays as it is.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{DirBuilder, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::source::SourceError;

/// By this key Docker keeps the credentials for Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name by which a helper says that its secret is an identity token.
const TOKEN_USER: &str = "<token>";
const HELPER_NOT_FOUND: &str = "credentials not found in native keychain";

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password, or a token that serves as one.
    pub password: String,
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

/// The login for a registry, if there is one: of Docker, or else of podman and skopeo.
pub(crate) fn login(registry: &str) -> Result<Option<Login>, SourceError> {
    for path in [config_path(), containers_path()].into_iter().flatten() {
        if let Some(login) = login_from(&path, registry, |helper| helper.into())? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

/// A variable of the environment that is set to something.
fn set(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The file of containers-auth.json(5), which has the same form.
fn containers_path() -> Option<PathBuf> {
    match set("REGISTRY_AUTH_FILE") {
        Some(path) => Some(path.into()),
        None => Some(Path::new(&set("XDG_RUNTIME_DIR")?).join("containers/auth.json")),
    }
}

fn config_path() -> Option<PathBuf> {
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
    let (_, config) = read(path)?;
    let unusable = |source| SourceError::Credentials {
        path: path.to_owned(),
        source,
    };
    let key = key_of(registry);
    if let Some(helper) = config.helper(key)
        && let Some(login) = ask_helper(helper, key, program)?
    {
        return Ok(Some(login));
    }
    match find(&config.auths, key) {
        Some(auth) => auth.login(registry, unusable),
        None => Ok(None),
    }
}

/// Keeps a login in the file, or with the helper that the file names.
pub(crate) fn keep(registry: &str, login: &Login) -> Result<(), SourceError> {
    let path = config_path().ok_or(SourceError::NoConfig)?;
    keep_in(&path, registry, login, |helper| helper.into())
}

fn keep_in(
    path: &Path,
    registry: &str,
    login: &Login,
    program: impl Fn(&str) -> PathBuf,
) -> Result<(), SourceError> {
    let (mut document, config) = read(path)?;
    let key = key_of(registry);
    let entry = match config.helper(key) {
        Some(helper) => {
            let secret = json!({
                "ServerURL": key,
                "Username": login.user,
                "Secret": login.password,
            });
            run_helper(helper, "store", &secret.to_string(), program)?;
            // As Docker marks a registry whose credentials are with a helper.
            json!({})
        }
        None => {
            let auth = format!("{}:{}", login.user, login.password);
            json!({ "auth": STANDARD.encode(auth) })
        }
    };
    let auths = document.entry("auths").or_insert_with(|| json!({}));
    if let Some(auths) = auths.as_object_mut() {
        auths.retain(|other, _| !is_for(other, key));
        auths.insert(key.to_owned(), entry);
    }
    write(path, &document)
}

/// Forgets a login; false where there was none.
pub(crate) fn forget(registry: &str) -> Result<bool, SourceError> {
    let path = config_path().ok_or(SourceError::NoConfig)?;
    forget_in(&path, registry, |helper| helper.into())
}

fn forget_in(
    path: &Path,
    registry: &str,
    program: impl Fn(&str) -> PathBuf,
) -> Result<bool, SourceError> {
    let (mut document, config) = read(path)?;
    let key = key_of(registry);
    let mut was_there = false;
    if let Some(helper) = config.helper(key)
        && run_helper(helper, "get", key, &program)?.is_some()
    {
        run_helper(helper, "erase", key, program)?;
        was_there = true;
    }
    if let Some(Value::Object(auths)) = document.get_mut("auths") {
        let before = auths.len();
        auths.retain(|other, _| !is_for(other, key));
        if auths.len() < before {
            was_there = true;
            write(path, &document)?;
        }
    }
    Ok(was_there)
}

/// The file's document with everything that others have in it, and what is understood of it.
fn read(path: &Path) -> Result<(Map<String, Value>, Config), SourceError> {
    let unusable = |source| SourceError::Credentials {
        path: path.to_owned(),
        source,
    };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => b"{}".to_vec(),
        Err(error) => return Err(unusable(error)),
    };
    let document = serde_json::from_slice(&text).map_err(|error| unusable(error.into()))?;
    let config = serde_json::from_slice(&text).map_err(|error| unusable(error.into()))?;
    Ok((document, config))
}

/// Replaces the file as a whole; only its owner may read it. A link stays one.
fn write(path: &Path, document: &Map<String, Value>) -> Result<(), SourceError> {
    let failed = |source| SourceError::Keep {
        path: path.to_owned(),
        source,
    };
    let path = match std::fs::canonicalize(path) {
        Ok(path) => path,
        Err(_) => path.to_owned(),
    };
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(directory);
    made.map_err(failed)?;
    let mut text = serde_json::to_vec_pretty(document).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    let permissions = Permissions::from_mode(0o600);
    file.as_file()
        .set_permissions(permissions)
        .and_then(|()| file.write_all(&text))
        .and_then(|()| file.as_file().sync_all())
        .map_err(failed)?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// By what Docker's file names the registry.
fn key_of(registry: &str) -> &str {
    match registry {
        "docker.io" => DOCKER_HUB_KEY,
        other => other,
    }
}

impl Config {
    /// The helper that keeps the credentials by this key.
    fn helper(&self, key: &str) -> Option<&str> {
        let helper = find(&self.helpers, key).or(self.store.as_ref());
        helper
            .map(String::as_str)
            .filter(|helper| !helper.is_empty())
    }
}

/// Looks a registry up by host, however the key is written.
fn find<'a, T>(map: &'a HashMap<String, T>, key: &str) -> Option<&'a T> {
    map.get(key).or_else(|| {
        let found = map
            .keys()
            .filter(|candidate| is_for(candidate, key))
            .min()?;
        map.get(found)
    })
}

/// Whether a key is for the same registry as `key`, and for all of it: podman has some for a part.
fn is_for(candidate: &str, key: &str) -> bool {
    let path = split(candidate).1.trim_matches('/');
    host(candidate) == host(key) && matches!(path, "" | "v1" | "v2")
}

/// A key's host and port.
pub(super) fn host(key: &str) -> &str {
    split(key).0
}

fn split(key: &str) -> (&str, &str) {
    let key = key
        .strip_prefix("https://")
        .or(key.strip_prefix("http://"))
        .unwrap_or(key);
    key.split_once('/').unwrap_or((key, ""))
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

/// Runs `docker-credential-HELPER get`; None where it has nothing for the key.
fn ask_helper(
    helper: &str,
    key: &str,
    program: impl Fn(&str) -> PathBuf,
) -> Result<Option<Login>, SourceError> {
    let failed = |source| SourceError::Helper {
        helper: helper.to_owned(),
        source,
    };
    let Some(output) = run_helper(helper, "get", key, program)? else {
        return Ok(None);
    };
    let answer: HelperAnswer =
        serde_json::from_slice(&output).map_err(|error| failed(error.into()))?;
    if answer.username == TOKEN_USER {
        return Err(SourceError::IdentityToken(key.to_owned()));
    }
    Ok(Some(Login {
        user: answer.username,
        password: answer.secret,
    }))
}

/// Runs `docker-credential-HELPER VERB` (docker/docker-credential-helpers) with `input`. Gives back
/// its output; None where it says that it has nothing.
fn run_helper(
    helper: &str,
    verb: &str,
    input: &str,
    program: impl Fn(&str) -> PathBuf,
) -> Result<Option<Vec<u8>>, SourceError> {
    let failed = |source| SourceError::Helper {
        helper: helper.to_owned(),
        source,
    };
    let other = |text: String| failed(io::Error::other(text));
    if helper.contains('/') {
        return Err(other("its name is not valid".to_owned()));
    }
    let mut child = Command::new(program(&format!("docker-credential-{helper}")))
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading says why on its output.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stdout);
        return match message.trim() {
            HELPER_NOT_FOUND => Ok(None),
            message => Err(other(message.to_owned())),
        };
    }
    Ok(Some(output.stdout))
}

#[cfg(test)]
#[path = "credentials_test.rs"]
mod tests;
