//! The metadata that the guest can ask for: a JSON object of limited size.

use onggi_api::rest::Fault;
use serde_json::{Map, Value};

/// What clients have put there.
#[derive(Debug)]
pub(super) struct Metadata {
    value: Value,
    limit: usize,
}

impl Metadata {
    /// No metadata yet, and room for `limit` bytes of JSON.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            value: Value::Object(Map::new()),
            limit,
        }
    }

    pub(super) fn get(&self) -> &Value {
        &self.value
    }

    /// Takes the place of what was there.
    pub(super) fn set(&mut self, value: Value) -> Result<(), Fault> {
        if !value.is_object() {
            return Err(Fault::Other("the metadata is no JSON object".to_owned()));
        }
        // Counting what it takes can't fail.
        let len = serde_json::to_vec(&value).map_or(usize::MAX, |json| json.len());
        if len > self.limit {
            let limit = self.limit;
            return Err(Fault::TooMuchMetadata { len, limit });
        }
        self.value = value;
        Ok(())
    }

    /// Changes what is there (RFC 7396, JSON merge patch).
    pub(super) fn update(&mut self, patch: Value) -> Result<(), Fault> {
        let mut value = self.value.clone();
        merge(&mut value, patch);
        self.set(value)
    }
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
            let mut metadata = Metadata::new(1000);
            metadata.set(target).unwrap();
            metadata.update(patch).unwrap();
            assert_eq!(*metadata.get(), result);
        }
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let mut metadata = Metadata::new(10);
        metadata.set(json!({"a":"1234"})).unwrap_err();
        metadata.set(json!({"a":"12"})).unwrap();
        let refused = metadata.update(json!({"b":1})).unwrap_err();
        assert!(matches!(
            refused,
            Fault::TooMuchMetadata { len: 16, limit: 10 }
        ));
        metadata.update(json!([1])).unwrap_err();
        metadata.set(json!("text")).unwrap_err();
        assert_eq!(*metadata.get(), json!({"a":"12"}));
    }
}
