//! What to run: the image's configuration and the command line put together by Docker's rules.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

use onggi_protocol::{Container, Process, ProcessId, Resolver, Run, WindowSize};

use crate::cli::RunArgs;
use crate::error::Explain;

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

/// Puts together what the guest is asked to run.
///
/// # Errors
/// See [`Error`].
pub fn request(
    args: &RunArgs,
    environment: &Environment,
    image: &ImageDefaults,
    layers: u32,
    id: &str,
    terminal: Option<WindowSize>,
) -> Result<Run, Error> {
    let process = Process {
        args: arguments(args.entrypoint.as_deref(), args.command(), image)?,
        env: environment.apply(&image.env),
        cwd: working_directory(args.workdir.as_deref(), &image.working_dir)?,
        user: args.user.clone().unwrap_or_else(|| image.user.clone()),
        terminal,
        stdin: args.interactive,
    };
    let strings = process.args.iter().chain(&process.env);
    if strings
        .chain([&process.cwd, &process.user])
        .any(|text| text.contains('\0'))
    {
        return Err(Error::Nul);
    }
    Ok(Run {
        id: ProcessId(1),
        process,
        container: Container {
            hostname: hostname(args.hostname.as_deref().unwrap_or(id))?,
            layers,
            hosts: Vec::new(),
            resolver: Resolver::default(),
        },
    })
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

fn hostname(name: &str) -> Result<String, Error> {
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
