//! What `--format` asks for: a table, JSON, or a template in the small part of Go's language that
//! scripts use with Docker.
//!
//! A template is text with actions in it: `{{.Field}}`, `{{.Outer.Inner}}` and `{{json .Field}}`,
//! where `.` alone is the whole object; `json` is short for `{{json .}}`. `\t` and `\n` stand for a tab and the end of a line. Rows are
//! anything that serializes to a JSON object with Docker's field names.

use std::fmt::Write;
use std::str::FromStr;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::Explain;

/// Between two columns of a table, as with Docker.
const PADDING: usize = 3;
/// The narrowest column of a table, with its padding.
const NARROWEST: usize = 10;

/// How to show a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// Columns under headings; those of the template, where there is one.
    Table(Option<Template>),
    /// One object a line.
    Json,
    /// A line for each row.
    Template(Template),
}

/// Text with fields in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The path of a field; empty for the whole object.
    Field(Vec<String>),
    Json(Vec<String>),
}

/// A column of a table: its heading, and the field that is in it.
pub type Column = (&'static str, &'static str);

/// Why something can't be shown as asked for.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The template is none.
    #[error("'{0}' is not supported in a format: there is {{{{.Field}}}} and {{{{json .Field}}}}")]
    Action(String),
    /// `{{` without `}}`.
    #[error("'{{{{' has no '}}}}' in the format '{0}'")]
    Open(String),
    /// No such field.
    #[error("there is no field '{name}' to show: there is {}", known.join(", "))]
    Field {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The rows are no JSON. That is a defect of onggi's.
    #[error("the list can't be shown")]
    Row(#[source] serde_json::Error),
}

impl Explain for FormatError {
    fn hint(&self) -> Option<String> {
        match self {
            FormatError::Row(_) => None,
            _ => Some("'--format json' shows every field".to_owned()),
        }
    }
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "" | "table" => Ok(Self::Table(None)),
            "json" => Ok(Self::Json),
            trimmed => match trimmed.strip_prefix("table ") {
                Some(template) => Ok(Self::Table(Some(template.trim().parse()?))),
                None => Ok(Self::Template(text.parse()?)),
            },
        }
    }
}

impl FromStr for Template {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "json" {
            return Ok(Self(vec![Part::Json(Vec::new())]));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after
                .split_once("}}")
                .ok_or_else(|| FormatError::Open(text.to_owned()))?;
            parts.push(Part::Text(unescape(before)));
            parts.push(parse_action(action)?);
            rest = after;
        }
        parts.push(Part::Text(unescape(rest)));
        parts.retain(|part| *part != Part::Text(String::new()));
        Ok(Self(parts))
    }
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn parse_action(action: &str) -> Result<Part, FormatError> {
    let unknown = || FormatError::Action(format!("{{{{{action}}}}}"));
    let words: Vec<&str> = action.split_whitespace().collect();
    match words.as_slice() {
        [path] => Ok(Part::Field(parse_path(path).ok_or_else(unknown)?)),
        ["json", path] => Ok(Part::Json(parse_path(path).ok_or_else(unknown)?)),
        _ => Err(unknown()),
    }
}

fn parse_path(path: &str) -> Option<Vec<String>> {
    let path = path.strip_prefix('.')?;
    if path.is_empty() {
        return Some(Vec::new());
    }
    let is_name = |name: &str| {
        !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_'))
    };
    let names = path.split('.');
    names
        .map(|name| is_name(name).then(|| name.to_owned()))
        .collect()
}

impl Template {
    /// The template with the fields of `object` in it.
    ///
    /// # Errors
    /// [`FormatError::Field`].
    pub fn render(&self, object: &impl Serialize) -> Result<String, FormatError> {
        self.render_value(&serde_json::to_value(object).map_err(FormatError::Row)?)
    }

    fn render_value(&self, object: &Value) -> Result<String, FormatError> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Field(path) => write_value(&mut text, look_up(object, path)?),
                Part::Json(path) => {
                    let json = serde_json::to_string(look_up(object, path)?);
                    text.push_str(&json.map_err(FormatError::Row)?);
                }
            }
        }
        Ok(text)
    }

    /// The template's line of headings.
    fn headings(&self, columns: &[Column]) -> String {
        let heading = |path: &[String]| {
            let field = path.last().map_or("", String::as_str);
            let known = columns.iter().find(|(_, of)| *of == field);
            known.map_or_else(
                || field.to_uppercase(),
                |(heading, _)| (*heading).to_owned(),
            )
        };
        let parts = self.0.iter().map(|part| match part {
            Part::Text(literal) => literal.clone(),
            Part::Field(path) | Part::Json(path) => heading(path),
        });
        parts.collect()
    }
}

impl Format {
    /// The rows in this format. `columns` are those of the table; further ones, that it does not
    /// show, lend their headings to a template. `shown` is how many it shows.
    ///
    /// # Errors
    /// [`FormatError::Field`].
    pub fn render(
        &self,
        rows: &[impl Serialize],
        columns: &[Column],
        shown: usize,
    ) -> Result<String, FormatError> {
        let rows: Result<Vec<Value>, _> = rows.iter().map(serde_json::to_value).collect();
        let rows = rows.map_err(FormatError::Row)?;
        let lines = |template: &Template| -> Result<Vec<String>, FormatError> {
            rows.iter().map(|row| template.render_value(row)).collect()
        };
        match self {
            Self::Json => Ok(rows.iter().map(|row| format!("{row}\n")).collect()),
            Self::Template(template) => {
                let lines = lines(template)?;
                Ok(lines.iter().map(|line| format!("{line}\n")).collect())
            }
            Self::Table(Some(template)) => {
                let mut all = vec![template.headings(columns)];
                all.extend(lines(template)?);
                let cells = all.iter().map(|line| line.split('\t').map(str::to_owned));
                Ok(table(&cells.map(Iterator::collect).collect::<Vec<_>>()))
            }
            Self::Table(None) => {
                let columns = &columns[..shown.min(columns.len())];
                let mut all = vec![
                    columns
                        .iter()
                        .map(|(heading, _)| (*heading).to_owned())
                        .collect(),
                ];
                for row in &rows {
                    let cells: Result<Vec<String>, FormatError> =
                        columns.iter().map(|(_, field)| cell(row, field)).collect();
                    all.push(cells?);
                }
                Ok(table(&all))
            }
        }
    }
}

fn cell(row: &Value, field: &str) -> Result<String, FormatError> {
    let mut text = String::new();
    write_value(&mut text, look_up(row, &[field.to_owned()])?);
    Ok(text)
}

fn look_up<'a>(object: &'a Value, path: &[String]) -> Result<&'a Value, FormatError> {
    let mut value = object;
    for name in path {
        let fields = value.as_object();
        let found = fields.and_then(|fields| fields.get(name));
        value = found.ok_or_else(|| FormatError::Field {
            name: name.clone(),
            known: fields.map_or_else(Vec::new, |fields| fields.keys().cloned().collect()),
        })?;
    }
    Ok(value)
}

/// Writes a value as Go prints it.
fn write_value(text: &mut String, value: &Value) {
    match value {
        Value::Null => text.push_str("<no value>"),
        Value::String(string) => text.push_str(string),
        Value::Bool(_) | Value::Number(_) => {
            let _ = write!(text, "{value}");
        }
        Value::Array(items) => {
            text.push('[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    text.push(' ');
                }
                write_value(text, item);
            }
            text.push(']');
        }
        Value::Object(fields) => write_map(text, fields),
    }
}

fn write_map(text: &mut String, fields: &Map<String, Value>) {
    text.push_str("map[");
    for (number, (name, value)) in fields.iter().enumerate() {
        if number > 0 {
            text.push(' ');
        }
        let _ = write!(text, "{name}:");
        write_value(text, value);
    }
    text.push(']');
}

/// Aligns columns.
fn table(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        (widest + PADDING).max(NARROWEST)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const COLUMNS: [Column; 3] = [
        ("IMAGE ID", "ID"),
        ("REPOSITORY", "Repository"),
        ("DIGEST", "Digest"),
    ];

    fn render(format: &str) -> String {
        let rows = [
            json!({"ID": "1", "Repository": "debian", "Digest": null, "Size": 5}),
            json!({"ID": "22", "Repository": "a/long/one", "Digest": "d", "Size": 6}),
        ];
        match format.parse::<Format>() {
            Ok(format) => format
                .render(&rows, &COLUMNS, 2)
                .unwrap_or_else(|error| error.to_string()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn lists() {
        let table = "IMAGE ID   REPOSITORY\n1          debian\n22         a/long/one\n";
        assert_eq!(render("table"), table);
        assert_eq!(render(""), table);
        assert_eq!(
            render("table {{.ID}}\\t{{.Size}}\\t{{.Repository}}"),
            "IMAGE ID   SIZE      REPOSITORY\n1          5         debian\n\
             22         6         a/long/one\n"
        );
        assert_eq!(
            render("json").lines().next(),
            Some(r#"{"Digest":null,"ID":"1","Repository":"debian","Size":5}"#)
        );
    }

    #[test]
    fn templates() {
        assert_eq!(
            render("{{.Repository}}:{{ .ID }}"),
            "debian:1\na/long/one:22\n"
        );
        assert_eq!(
            render("{{json .Repository}}\\n-"),
            "\"debian\"\n-\n\"a/long/one\"\n-\n"
        );
        assert_eq!(render("{{.Digest}}"), "<no value>\nd\n");
        assert_eq!(render("plain"), "plain\nplain\n");
        let object = json!({"A": {"B": ["x", 1], "C": {"k": true}}});
        let template: Template = "{{.A.B}} {{.A.C}} {{json .A.B}}".parse().unwrap();
        assert_eq!(
            template.render(&object).unwrap(),
            r#"[x 1] map[k:true] ["x",1]"#
        );
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for (format, message) in [
            ("{{.Nope}}", "there is no field 'Nope'"),
            ("{{.ID.Nope}}", "there is no field 'Nope'"),
            ("{{range .X}}", "'{{range .X}}' is not supported"),
            ("{{ID}}", "'{{ID}}' is not supported"),
            ("{{.A..B}}", "'{{.A..B}}' is not supported"),
            ("{{.ID}", "'{{' has no '}}'"),
        ] {
            let said = render(format);
            assert!(said.contains(message), "{format}: {said}");
        }
        assert!(render("{{.Nope}}").contains("Digest, ID, Repository, Size"));
    }
}
