//! Wrong flags in one sentence, where clap writes paragraphs.

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Cli;

/// What is wrong with the command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UsageError {
    message: String,
    /// What to do about it.
    pub hint: String,
}

impl UsageError {
    /// Reduces clap's error to its first paragraph, and its tip if it has one.
    pub fn new(error: &clap::Error, arguments: &[String]) -> UsageError {
        let text = error.to_string();
        let paragraph: Vec<&str> = text
            .lines()
            .map(str::trim)
            .take_while(|line| !line.is_empty())
            .collect();
        let message = match error.kind() {
            ErrorKind::MissingRequiredArgument => missing(error),
            ErrorKind::InvalidSubcommand => match string(error, ContextKind::InvalidSubcommand) {
                Some(name) => format!("there is no command '{name}'"),
                None => paragraph.join(" "),
            },
            ErrorKind::UnknownArgument => match string(error, ContextKind::InvalidArg) {
                Some(name) if name.starts_with('-') => format!("unknown flag: {name}"),
                _ => paragraph.join(" "),
            },
            _ => paragraph.join(" "),
        };
        let similar = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand]
            .into_iter()
            .find_map(|kind| string(error, kind));
        let hint = match similar {
            Some(name) => format!("did you mean '{name}'?"),
            None => format!("see '{} --help'", command_name(arguments)),
        };
        UsageError {
            message: message.trim_start_matches("error: ").to_owned(),
            hint,
        }
    }
}

fn missing(error: &clap::Error) -> String {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(names)) => match names.first() {
            Some(name) if name.contains("IMAGE") => "the name of an image is missing".to_owned(),
            Some(name) => format!("{name} is missing"),
            None => "an argument is missing".to_owned(),
        },
        _ => "an argument is missing".to_owned(),
    }
}

fn string(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        ContextValue::Strings(texts) => texts.first().map(String::as_str),
        _ => None,
    }
}

/// The command whose help is the one to read.
fn command_name(arguments: &[String]) -> String {
    let mut name = "onggi".to_owned();
    let cli = Cli::command();
    let mut command = &cli;
    for argument in arguments.iter().skip(1) {
        let Some(found) = command.find_subcommand(argument) else {
            break;
        };
        name = format!("{name} {}", found.get_name());
        command = found;
    }
    name
}
