//! onggi's own messages: off, unless `ONGGI_LOG` or a configuration file asks for them.
//!
//! `ONGGI_LOG` is a level (`error`, `warn`, `info`, `debug`, `trace`) or a list such as
//! `info,onggi_vmm=trace`; the target `guest` is what a container's kernel prints.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use onggi_api::config::{LogLevel, Logger};
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{self, FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Registry, reload};

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
    // The process of a VM has a file there.
    let colours = io::stderr().is_terminal();
    let format = fmt::layer().with_writer(io::stderr).with_ansi(colours);
    install(tracing_subscriber::registry().with(format).with(filter));
    Ok(())
}

/// Follows the `logger` section of a configuration file or the last one of a client; `ONGGI_LOG`
/// overrides it.
///
/// # Errors
/// When the file can't be opened.
pub fn from_config(logger: &Logger) -> Result<(), Error> {
    let writer: Box<dyn Write + Send> = match &logger.log_path {
        None => Box::new(io::stderr()),
        Some(path) => {
            let file = open_output(path);
            Box::new(file.map_err(|error| Error::File(path.clone(), error))?)
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
    let format = fmt::format()
        .with_ansi(false)
        .with_level(logger.show_level)
        .with_file(logger.show_log_origin)
        .with_line_number(logger.show_log_origin);
    match CHANGEABLE.get() {
        Some(changeable) => changeable.change(writer, format, filter),
        // `ONGGI_LOG` is followed.
        None if tracing::dispatcher::has_been_set() => {}
        None => Changeable::install(writer, format, filter),
    }
    Ok(())
}

/// Opens a file to append to, or a named pipe, on which nothing ever waits for a reader.
///
/// # Errors
/// The kernel's.
pub fn open_output(path: &Path) -> io::Result<File> {
    let is_pipe = path.metadata().is_ok_and(|it| it.file_type().is_fifo());
    OpenOptions::new()
        // A pipe that we can read too has a reader.
        .read(is_pipe)
        .append(true)
        .create(!is_pipe)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// The logger that configurations ask for, once there is one.
static CHANGEABLE: OnceLock<Changeable> = OnceLock::new();

/// A logger that can be told to write otherwise, and elsewhere.
struct Changeable {
    writer: Arc<Mutex<Box<dyn Write + Send>>>,
    format: Arc<RwLock<Format>>,
    filter: reload::Handle<Targets, Registry>,
}

impl Changeable {
    fn install(writer: Box<dyn Write + Send>, format: Format, filter: Targets) {
        let (filter, handle) = reload::Layer::new(filter);
        let changeable = Changeable {
            writer: Arc::new(Mutex::new(writer)),
            format: Arc::new(RwLock::new(format)),
            filter: handle,
        };
        let output = Output(changeable.writer.clone());
        let layer = fmt::layer()
            .event_format(Current(changeable.format.clone()))
            .with_ansi(false)
            .with_writer(move || output.clone());
        install(tracing_subscriber::registry().with(filter).with(layer));
        // Nobody else sets it: clients are served one by one.
        let _ = CHANGEABLE.set(changeable);
    }

    fn change(&self, writer: Box<dyn Write + Send>, format: Format, filter: Targets) {
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = writer;
        *self.format.write().unwrap_or_else(PoisonError::into_inner) = format;
        if let Err(error) = self.filter.reload(filter) {
            tracing::warn!("the log goes on as before: {error}");
        }
    }
}

/// The writer of the moment.
#[derive(Clone)]
struct Output(Arc<Mutex<Box<dyn Write + Send>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The format of the moment.
struct Current(Arc<RwLock<Format>>);

impl<S, N> FormatEvent<S, N> for Current
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let format = self.0.read().unwrap_or_else(PoisonError::into_inner);
        format.format_event(context, writer, event)
    }
}

fn install(subscriber: impl tracing::Subscriber + Send + Sync) {
    // Fails only where one is installed, and then that one serves.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
