//! What the guest can ask for: a JSON object of limited size.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

/// Why metadata is refused. What was there stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It is JSON, but no object.
    #[error("the metadata is no JSON object")]
    NotAnObject,
    /// There is none yet that could be changed.
    #[error("there is no metadata yet")]
    Empty,
    /// It is more than the store takes.
    #[error("the metadata has {len} bytes, more than the {limit} that are allowed")]
    TooLarge {
        /// Bytes of JSON that it would be.
        len: usize,
        /// Bytes of JSON that it may be.
        limit: usize,
    },
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As JSON, with all that is in it.
    Json,
    /// As Amazon's service does: a text as it is, and of an object the names, one a line, with a
    /// slash behind those that have others below them.
    Imds,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Nothing has that path.
    NotFound,
    /// A value that is neither text nor an object can't be written as [`Format::Imds`].
    NoText,
}

#[derive(Debug)]
struct Metadata {
    value: Value,
    /// Whether somebody has put it there.
    is_set: bool,
    limit: usize,
}

/// The metadata of a VM. Every clone is the same one.
#[derive(Debug, Clone)]
pub struct Store(Arc<Mutex<Metadata>>);

impl Store {
    /// No metadata yet, and room for `limit` bytes of JSON.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Metadata {
            value: Value::Object(Map::new()),
            is_set: false,
            limit,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Metadata> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it.
    pub fn get(&self) -> Value {
        self.lock().value.clone()
    }

    /// Puts `value` in the place of what was there.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn set(&self, value: Value) -> Result<(), StoreError> {
        self.lock().set(value)
    }

    /// Changes what is there (RFC 7396, JSON merge patch).
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn update(&self, patch: Value) -> Result<(), StoreError> {
        let mut metadata = self.lock();
        if !metadata.is_set {
            return Err(StoreError::Empty);
        }
        let mut value = metadata.value.clone();
        merge(&mut value, patch);
        metadata.set(value)
    }

    /// Writes what is found at `path`, a JSON pointer (RFC 6901) in which slashes may be doubled and
    /// may end it.
    ///
    /// # Errors
    /// See [`Missing`].
    pub fn read(&self, path: &str, format: Format) -> Result<String, Missing> {
        let metadata = self.lock();
        let value = metadata.value.pointer(&pointer(path));
        let value = value.ok_or(Missing::NotFound)?;
        match (format, value) {
            (Format::Json, value) => Ok(value.to_string()),
            (Format::Imds, Value::Object(map)) => Ok(names(map)),
            (Format::Imds, Value::String(text)) => Ok(text.clone()),
            (Format::Imds, _) => Err(Missing::NoText),
        }
    }
}

impl Metadata {
    fn set(&mut self, value: Value) -> Result<(), StoreError> {
        if !value.is_object() {
            return Err(StoreError::NotAnObject);
        }
        let (len, limit) = (value.to_string().len(), self.limit);
        if len > limit {
            return Err(StoreError::TooLarge { len, limit });
        }
        self.value = value;
        self.is_set = true;
        Ok(())
    }
}

/// The JSON pointer that a path means: it has one slash before each name, and no other.
pub(crate) fn pointer(path: &str) -> String {
    let names = path.split('/').filter(|name| !name.is_empty());
    names.flat_map(|name| ["/", name]).collect()
}

fn names(map: &Map<String, Value>) -> String {
    let lines: Vec<_> = map
        .iter()
        .map(|(name, value)| match value.is_object() {
            true => format!("{name}/"),
            false => name.clone(),
        })
        .collect();
    lines.join("\n")
}

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(target) = target {
        for (name, value) in patch {
            match value {
                Value::Null => drop(target.remove(&name)),
                value => merge(target.entry(name).or_insert(Value::Null), value),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Cases of RFC 7396, appendix A.
    #[test]
    fn patches() {
        for (target, patch, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (
                json!({"a":"b","b":"c"}),
                json!({"a":null}),
                json!({"b":"c"}),
            ),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ] {
            let store = Store::new(1000);
            store.set(target).unwrap();
            store.update(patch).unwrap();
            assert_eq!(store.get(), result);
        }
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let store = Store::new(10);
        let too_large = |len| Err(StoreError::TooLarge { len, limit: 10 });
        assert_eq!(store.update(json!({"a":"1"})), Err(StoreError::Empty));
        assert_eq!(store.set(json!({"a":"1234"})), too_large(12));
        store.set(json!({"a":"12"})).unwrap();
        assert_eq!(store.update(json!({"b":1})), too_large(16));
        assert_eq!(store.update(json!([1])), Err(StoreError::NotAnObject));
        assert_eq!(store.set(json!("text")), Err(StoreError::NotAnObject));
        assert_eq!(store.get(), json!({"a":"12"}));
    }

    #[test]
    fn every_clone_is_the_same_store() {
        let store = Store::new(100);
        store.clone().set(json!({"a":"b"})).unwrap();
        assert_eq!(store.read("/a", Format::Imds).unwrap(), "b");
    }

    #[test]
    fn values_as_json_and_as_text() {
        let store = Store::new(1000);
        let both = |path: &str| [Format::Json, Format::Imds].map(|format| store.read(path, format));
        assert_eq!(both("/"), [Ok("{}".to_owned()), Ok(String::new())]);
        let value = json!({
            "latest": {"id": "i-1", "n": 43, "list": ["a"], "none": null, "deep": {"x": "y\nz"}},
            "a/b": "slash",
        });
        store.set(value.clone()).unwrap();
        let texts = |json: &str, text: &str| [Ok(json.to_owned()), Ok(text.to_owned())];
        for path in ["", "/", "//"] {
            assert_eq!(both(path), texts(&value.to_string(), "a/b\nlatest/"));
        }
        for path in ["/latest/deep", "//latest///deep/", "latest/deep"] {
            assert_eq!(both(path), texts(r#"{"x":"y\nz"}"#, "x"));
        }
        assert_eq!(both("/latest/deep/x"), texts(r#""y\nz""#, "y\nz"));
        assert_eq!(both("/latest/list/0"), texts(r#""a""#, "a"));
        assert_eq!(both("/a~1b"), texts(r#""slash""#, "slash"));
        for (path, json) in [("n", "43"), ("list", r#"["a"]"#), ("none", "null")] {
            let expected = [Ok(json.to_owned()), Err(Missing::NoText)];
            assert_eq!(both(&format!("/latest/{path}")), expected);
        }
        for path in ["/x", "/latest/deep/x/y", "/latest/list/1", "/latest/ id"] {
            assert_eq!(both(path), [Err(Missing::NotFound), Err(Missing::NotFound)]);
        }
    }
}
