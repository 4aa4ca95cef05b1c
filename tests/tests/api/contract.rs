//! `resources/openapi.yaml`: what clients may say, and what they may expect.

use serde_json::{Map, Value, json};

/// The file, with its schemas as JSON Schema has them.
pub struct Contract {
    document: Value,
}

/// One method of one path.
#[derive(Clone, Copy)]
pub struct Operation<'a> {
    /// In capitals.
    pub method: &'a str,
    /// With `{name}` where any name may stand.
    pub path: &'a str,
    pub says: &'a Value,
}

impl Contract {
    /// # Panics
    /// Where the file is not valid.
    pub fn load() -> Self {
        let text = include_str!("../../../resources/openapi.yaml");
        let mut document = serde_saphyr::from_str(text).expect("openapi.yaml is YAML");
        translate(&mut document);
        Self { document }
    }

    pub fn operations(&self) -> Vec<Operation<'_>> {
        let paths = self.document["paths"].as_object().expect("there are paths");
        let methods = [
            ("get", "GET"),
            ("put", "PUT"),
            ("patch", "PATCH"),
            ("delete", "DELETE"),
        ];
        let all = paths.iter().flat_map(|(path, item)| {
            methods.into_iter().filter_map(move |(name, method)| {
                let says = item.get(name)?;
                Some(Operation { method, path, says })
            })
        });
        all.collect()
    }

    /// What the file says of a request, if anything.
    pub fn find(&self, method: &str, path: &str) -> Option<Operation<'_>> {
        let is = |template: &str| {
            let mut parts = path.split('/');
            let same = template.split('/').all(|expected| {
                let part = parts.next();
                part == Some(expected) || expected.starts_with('{') && part.is_some()
            });
            same && parts.next().is_none()
        };
        let mut all = self.operations().into_iter();
        all.find(|it| it.method == method && is(it.path))
    }

    /// What stands where a part of the file may refer to another one.
    pub fn resolve<'a>(&'a self, part: &'a Value) -> &'a Value {
        match part["$ref"].as_str() {
            Some(name) => {
                let place = name.strip_prefix('#').expect("a place in this file");
                self.document.pointer(place).expect("a place that is there")
            }
            None => part,
        }
    }

    /// The schema of a request's body, where there may be one.
    pub fn body<'a>(&'a self, operation: Operation<'a>) -> Option<&'a Value> {
        let body = self.resolve(operation.says.get("requestBody")?);
        Some(&body["content"]["application/json"])
    }

    /// # Errors
    /// Why `value` is not what `schema` says.
    ///
    /// # Panics
    /// Where the schema is not valid.
    pub fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let whole = json!({ "allOf": [schema], "components": self.document["components"] });
        let schema = jsonschema::validator_for(&whole).expect("a valid schema");
        let wrong = schema.iter_errors(value);
        let wrong: Vec<_> = wrong
            .map(|it| format!("{}: {it}", it.instance_path()))
            .collect();
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(wrong.join("; ")),
        }
    }

    /// Checks an answer, `Null` being none.
    ///
    /// # Panics
    /// Where a client may not expect it.
    #[track_caller]
    pub fn check_answer(&self, method: &str, path: &str, status: u16, answer: &Value) {
        let schema = match self.find(method, path) {
            Some(operation) => {
                let answers = &operation.says["responses"];
                let expected = answers.get(status.to_string());
                let expected =
                    expected.unwrap_or_else(|| panic!("{method} {path}: {status}: {answer}"));
                self.resolve(expected)["content"]["application/json"].get("schema")
            }
            // Whatever else is asked for.
            None => {
                assert_eq!(status, 400, "{method} {path}: {answer}");
                Some(&self.document["components"]["schemas"]["Fault"])
            }
        };
        let right = match schema {
            Some(schema) => self.check(schema, answer),
            None if answer.is_null() => Ok(()),
            None => Err(format!("{answer} is more than nothing")),
        };
        right.unwrap_or_else(|why| panic!("{method} {path}: {status}: {why}"));
    }
}

/// From OpenAPI 3.0's dialect to JSON Schema's: there `nullable` is a type.
fn translate(part: &mut Value) {
    match part {
        Value::Object(fields) => {
            fields.values_mut().for_each(translate);
            if fields.remove("nullable") == Some(Value::Bool(true)) {
                allow_null(fields);
            }
        }
        Value::Array(parts) => parts.iter_mut().for_each(translate),
        _ => {}
    }
}

fn allow_null(schema: &mut Map<String, Value>) {
    if let Some(kind) = schema.get_mut("type") {
        *kind = json!([kind, "null"]);
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.push(Value::Null);
    }
    if let Some(all) = schema.remove("allOf") {
        schema.insert(
            "anyOf".to_owned(),
            json!([{ "allOf": all }, { "type": "null" }]),
        );
    }
}
