//! What to run: the image's configuration and the command line put together by Docker's rules.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::path::{Path, PathBuf};

use onggi_protocol::{Process, WindowSize};

use crate::cli::{ContainerArgs, ExecArgs, HealthArgs};
use crate::error::Explain;
use crate::state::record::{HealthCheck, ProcessSpec};

/// The longest host name (`HOST_NAME_MAX`).
const MAX_HOSTNAME: usize = 64;

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither image nor command line says what to run.
    #[error("the image has no command of its own, and none was given")]
    NoCommand,
    /// `--workdir` is relative.
    #[error("the working directory '{0}' is not an absolute path")]
    RelativeWorkdir(String),
    /// `--hostname` is none.
    #[error("'{0}' is no host name")]
    Hostname(String),
    /// An environment variable without a name, or with one that can't be.
    #[error("'{0}' is no environment variable")]
    Variable(String),
    /// `--env-file` can't be read.
    #[error("the file of environment variables {} can't be read", .0.display())]
    EnvFile(PathBuf, #[source] io::Error),
    /// A line of `--env-file` is wrong.
    #[error("line {line} of {} is no environment variable", file.display())]
    EnvFileLine {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A label without a name.
    #[error("'{0}' is no label")]
    Label(String),
    /// `--label-file` can't be read.
    #[error("the file of labels {} can't be read", .0.display())]
    LabelFile(PathBuf, #[source] io::Error),
    /// A capability that Linux has not.
    #[error("there is no capability '{0}'")]
    Capability(String),
    /// A string with a NUL, which no program can be given.
    #[error("an argument or variable has a NUL character in it")]
    Nul,
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NoCommand => Some("name a command after the image".to_owned()),
            _ => None,
        }
    }
}

/// What an image's configuration says of running it (OCI image-spec, "Image Configuration").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// The working directory, or nothing.
    pub working_dir: String,
    /// `USER[:GROUP]`, or nothing.
    pub user: String,
}

impl ImageDefaults {
    /// Takes them from an image.
    pub fn of(image: &onggi_image::Image) -> ImageDefaults {
        let Some(config) = image.config.config() else {
            return ImageDefaults::default();
        };
        ImageDefaults {
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
        }
    }
}

/// What the command line says of the environment, read and checked before anything else is done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Environment(Vec<Variable>);

/// One `-e`, or one line of an `--env-file`.
#[derive(Debug, PartialEq, Eq)]
enum Variable {
    Set {
        name: String,
        value: String,
    },
    /// `-e NAME` where onggi has no such variable: the image's goes too.
    Remove {
        name: String,
    },
}

impl Environment {
    /// The files come first, so that a flag overrides them.
    ///
    /// # Errors
    /// For a file that can't be read, or a variable without a proper name.
    pub fn read(files: &[PathBuf], flags: &[String]) -> Result<Environment, Error> {
        let own = |name: &str| env::var(name).ok();
        let mut variables = Vec::new();
        for file in files {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Error::EnvFile(file.clone(), error))?;
            parse_file(file, &text, own, &mut variables)?;
        }
        for flag in flags {
            variables.push(parse_flag(flag, own)?);
        }
        Ok(Environment(variables))
    }

    /// The image's variables, changed and added to. Their order stays.
    fn apply(&self, image: &[String]) -> Vec<String> {
        let mut merged: Vec<String> = image.to_vec();
        let named = |entry: &String, name: &str| {
            entry.split_once('=').map_or(entry.as_str(), |(n, _)| n) == name
        };
        for variable in &self.0 {
            match variable {
                Variable::Remove { name } => merged.retain(|entry| !named(entry, name)),
                Variable::Set { name, value } => {
                    let entry = format!("{name}={value}");
                    match merged.iter_mut().find(|entry| named(entry, name)) {
                        Some(old) => *old = entry,
                        None => merged.push(entry),
                    }
                }
            }
        }
        merged
    }
}

fn parse_flag(flag: &str, own: impl Fn(&str) -> Option<String>) -> Result<Variable, Error> {
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (flag, own(flag)),
    };
    if name.is_empty() {
        return Err(Error::Variable(flag.to_owned()));
    }
    let name = name.to_owned();
    Ok(match value {
        Some(value) => Variable::Set { name, value },
        None => Variable::Remove { name },
    })
}

/// Docker's format: no quotes, no escapes; `#` starts a comment only at the start of a line; a name
/// alone takes onggi's own value, or nothing at all.
fn parse_file(
    file: &Path,
    text: &str,
    own: impl Fn(&str) -> Option<String>,
    variables: &mut Vec<Variable>,
) -> Result<(), Error> {
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line.trim_end(), own(line.trim_end())),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(Error::EnvFileLine {
                file: file.to_owned(),
                line: index + 1,
            });
        }
        if let Some(value) = value {
            variables.push(Variable::Set {
                name: name.to_owned(),
                value,
            });
        }
    }
    Ok(())
}

/// Puts together what a container runs.
///
/// # Errors
/// See [`Error`].
pub fn process(
    args: &ContainerArgs,
    environment: &Environment,
    image: &ImageDefaults,
) -> Result<ProcessSpec, Error> {
    let process = ProcessSpec {
        args: arguments(args.entrypoint.as_deref(), args.command(), image)?,
        env: environment.apply(&image.env),
        cwd: working_directory(args.workdir.as_deref(), &image.working_dir)?,
        user: args.user.clone().unwrap_or_else(|| image.user.clone()),
        tty: args.tty,
        stdin: args.interactive,
        stdin_once: args.interactive,
    };
    check_strings(
        process
            .args
            .iter()
            .chain(&process.env)
            .chain([&process.cwd, &process.user]),
    )?;
    Ok(process)
}

/// Puts together another program for a container.
///
/// # Errors
/// See [`Error`].
pub fn exec(
    args: &ExecArgs,
    environment: &Environment,
    container: &ProcessSpec,
    terminal: Option<WindowSize>,
) -> Result<Process, Error> {
    let process = Process {
        args: args.command().to_vec(),
        env: environment.apply(&container.env),
        cwd: working_directory(args.workdir.as_deref(), &container.cwd)?,
        user: args.user.clone().unwrap_or_else(|| container.user.clone()),
        terminal,
        stdin: args.interactive,
    };
    check_strings(
        process
            .args
            .iter()
            .chain(&process.env)
            .chain([&process.cwd, &process.user]),
    )?;
    Ok(process)
}

fn check_strings<'a>(mut strings: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    match strings.any(|text| text.contains('\0')) {
        true => Err(Error::Nul),
        false => Ok(()),
    }
}

/// The health check: the command line's where it has one, else the image's, which the command line may
/// change in its parts.
pub fn health(args: &HealthArgs, image: Option<HealthCheck>) -> Option<HealthCheck> {
    if args.no_healthcheck {
        return None;
    }
    let shell = |command: &String| vec!["/bin/sh".to_owned(), "-c".to_owned(), command.clone()];
    let test = match &args.health_cmd {
        Some(command) if command == "none" => return None,
        Some(command) => Some(shell(command)),
        None => None,
    };
    let base = match (test, image) {
        (Some(test), Some(image)) => HealthCheck { test, ..image },
        (Some(test), None) => HealthCheck {
            test,
            ..DEFAULT_HEALTH
        },
        (None, Some(image)) => image,
        (None, None) => return None,
    };
    let positive = |flag: Option<u64>, base| flag.filter(|it| *it > 0).unwrap_or(base);
    Some(HealthCheck {
        interval: positive(args.health_interval, base.interval),
        timeout: positive(args.health_timeout, base.timeout),
        start_period: args.health_start_period.unwrap_or(base.start_period),
        start_interval: args.health_start_interval.unwrap_or(base.start_interval),
        retries: args
            .health_retries
            .filter(|it| *it > 0)
            .unwrap_or(base.retries),
        test: base.test,
    })
}

/// Docker's.
pub const DEFAULT_HEALTH: HealthCheck = HealthCheck {
    test: Vec::new(),
    interval: 30_000,
    timeout: 30_000,
    start_period: 0,
    start_interval: 5_000,
    retries: 3,
};

/// Labels of the command line: files come first, so that a flag overrides them.
///
/// # Errors
/// A file can't be read.
pub fn labels(
    files: &[PathBuf],
    flags: &[String],
    image: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Error> {
    let mut labels = image.clone();
    let mut add = |text: &str| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.is_empty() {
            return Err(Error::Label(text.to_owned()));
        }
        labels.insert(key.to_owned(), value.to_owned());
        Ok(())
    };
    for file in files {
        let text =
            std::fs::read_to_string(file).map_err(|error| Error::LabelFile(file.clone(), error))?;
        let lines = text.lines().map(str::trim_start);
        lines
            .filter(|it| !it.is_empty() && !it.starts_with('#'))
            .try_for_each(&mut add)?;
    }
    flags.iter().try_for_each(|flag| add(flag))?;
    Ok(labels)
}

/// The capabilities of Docker's containers.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All others that Linux has (capabilities(7)).
const FURTHER: [&str; 27] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_NET_ADMIN",
    "CAP_NET_BROADCAST",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// What a container's root may do. `ALL` stands for all; what is dropped by name is dropped, what is
/// added by name is added, and names come after `ALL`.
///
/// # Errors
/// There's no such capability.
pub fn capabilities(
    add: &[String],
    drop: &[String],
    privileged: bool,
) -> Result<Vec<String>, Error> {
    let all = || CAPABILITIES.iter().chain(&FURTHER);
    let name = |text: &String| {
        let upper = text.to_ascii_uppercase();
        let full = match upper.starts_with("CAP_") || upper == "ALL" {
            true => upper,
            false => format!("CAP_{upper}"),
        };
        match full == "ALL" || all().any(|known| **known == *full) {
            true => Ok(full),
            false => Err(Error::Capability(text.clone())),
        }
    };
    let add = add.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    let drop = drop.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    let named = |list: &[String], it: &str| list.iter().any(|name| name == it);
    let has = |it: &str| {
        if privileged || named(&add, it) {
            true
        } else if named(&drop, it) || named(&drop, "ALL") && !named(&add, "ALL") {
            false
        } else {
            named(&add, "ALL") || CAPABILITIES.contains(&it)
        }
    };
    Ok(all()
        .filter(|it| has(it))
        .map(ToString::to_string)
        .collect())
}

/// Entrypoint and command. An entrypoint from the command line, even an empty one, takes the
/// image's command away too.
fn arguments(
    entrypoint: Option<&str>,
    command: &[String],
    image: &ImageDefaults,
) -> Result<Vec<String>, Error> {
    let (program, rest): (&[String], &[String]) = match entrypoint {
        Some("") => (&[], command),
        Some(program) => (&[program.to_owned()], command),
        None if command.is_empty() => (&image.entrypoint, &image.cmd),
        None => (&image.entrypoint, command),
    };
    let arguments: Vec<String> = program.iter().chain(rest).cloned().collect();
    match arguments.first() {
        Some(_) => Ok(arguments),
        None => Err(Error::NoCommand),
    }
}

fn working_directory(flag: Option<&str>, image: &str) -> Result<String, Error> {
    match flag {
        Some(path) if path.starts_with('/') => Ok(path.to_owned()),
        Some(path) => Err(Error::RelativeWorkdir(path.to_owned())),
        None if image.is_empty() || image.starts_with('/') => Ok(image.to_owned()),
        None => Ok(format!("/{image}")),
    }
}

/// Checks a host name.
///
/// # Errors
/// It is none.
pub fn hostname(name: &str) -> Result<String, Error> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if (1..=MAX_HOSTNAME).contains(&name.len()) && name.chars().all(good) {
        Ok(name.to_owned())
    } else {
        Err(Error::Hostname(name.to_owned()))
    }
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
