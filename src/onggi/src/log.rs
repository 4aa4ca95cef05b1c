//! onggi's own messages: off, unless `ONGGI_LOG` or a configuration file asks for them.
//!
//! `ONGGI_LOG` is a level (`error`, `warn`, `info`, `debug`, `trace`) or a list such as
//! `info,onggi_vmm=trace`; the target `guest` is what a container's kernel prints.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use onggi_api::config::{LogLevel, Logger};
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::fmt::{self, writer::BoxMakeWriter};
use tracing_subscriber::layer::SubscriberExt;

use crate::error::Explain;

/// Why messages can't be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `ONGGI_LOG` makes no sense.
    #[error("ONGGI_LOG is not valid")]
    Variable(#[source] ParseError),
    /// The file of the `logger` section.
    #[error("the log file {} can't be written", .0.display())]
    File(PathBuf, #[source] io::Error),
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Variable(_) => Some("set it to a level such as 'debug'".to_owned()),
            Error::File(..) => None,
        }
    }
}

/// Follows `ONGGI_LOG`. Does nothing where it is not set, which costs nothing either.
///
/// # Errors
/// When the variable is set to something else than a filter.
pub fn from_environment() -> Result<(), Error> {
    let Some(filter) = std::env::var("ONGGI_LOG").ok().filter(|f| !f.is_empty()) else {
        return Ok(());
    };
    let filter: Targets = filter.parse().map_err(Error::Variable)?;
    let format = fmt::layer().with_writer(io::stderr);
    install(tracing_subscriber::registry().with(format).with(filter));
    Ok(())
}

/// Follows the `logger` section of a configuration file; `ONGGI_LOG` overrides it.
///
/// # Errors
/// When the file can't be opened.
pub fn from_config(logger: &Logger) -> Result<(), Error> {
    if tracing::dispatcher::has_been_set() {
        return Ok(());
    }
    let writer = match &logger.log_path {
        None => BoxMakeWriter::new(io::stderr),
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            BoxMakeWriter::new(Mutex::new(
                file.map_err(|error| Error::File(path.clone(), error))?,
            ))
        }
    };
    let level = match logger.level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let filter = match &logger.module {
        Some(module) => Targets::new().with_target(module, level),
        None => Targets::new().with_default(level),
    };
    let format = fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        .with_level(logger.show_level)
        .with_file(logger.show_log_origin)
        .with_line_number(logger.show_log_origin);
    install(tracing_subscriber::registry().with(format).with(filter));
    Ok(())
}

fn install(subscriber: impl tracing::Subscriber + Send + Sync) {
    // Fails only where one is installed, and then that one serves.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
