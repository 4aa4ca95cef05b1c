//! `resources/openapi.yaml` and what onggi understands are the same.

use std::collections::BTreeSet;

use onggi_api::config::MachineConfig;
use onggi_api::http::{Method, Request};
use onggi_api::rest::{ActionType, Balloons, Call, Fault, Hinting, When};
use serde_json::{Value, json};

use crate::contract::{Contract, Operation};

const METHODS: [Method; 4] = [Method::Get, Method::Put, Method::Patch, Method::Delete];

fn parse(method: &str, path: &str, body: &Value) -> Result<Call, Fault> {
    let mut methods = METHODS.into_iter();
    let method = methods.find(|it| it.name() == method);
    Call::parse(&Request {
        method: method.expect("a method"),
        path: path.to_owned(),
        body: match body {
            Value::Null => Vec::new(),
            body => body.to_string().into_bytes(),
        },
    })
}

/// The file's example of a request: its path and its body.
fn example(contract: &Contract, operation: Operation) -> (String, Value) {
    let body = contract.body(operation);
    let body = body.map_or(Value::Null, |it| it["example"].clone());
    let parts = operation.path.split('/').map(|part| {
        let name = part.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
        name.map_or(part, |name| body[name].as_str().unwrap_or("a"))
    });
    (parts.collect::<Vec<_>>().join("/"), body)
}

/// What the file calls a call.
fn name(call: &Call) -> Option<&'static str> {
    Some(match call {
        Call::Describe => "describe",
        Call::Version => "version",
        Call::Config => "config",
        Call::SetState(_) => "setState",
        Call::Action(_) => "action",
        Call::BootSource(_) => "setBootSource",
        Call::Machine => "machine",
        Call::SetMachine(_) => "setMachine",
        Call::UpdateMachine(_) => "updateMachine",
        Call::CpuConfig(_) => "setCpuConfig",
        Call::Drive(_) => "setDrive",
        Call::UpdateDrive(_) => "updateDrive",
        Call::NetworkInterface(_) => "setNetworkInterface",
        Call::UpdateNetworkInterface(_) => "updateNetworkInterface",
        Call::Vsock(_) => "setVsock",
        Call::Entropy(_) => "setEntropy",
        Call::Serial(_) => "setSerial",
        Call::Logger(_) => "setLogger",
        Call::Metrics(_) => "setMetrics",
        Call::Balloon(balloon) => match balloon {
            Balloons::Set(_) => "setBalloon",
            Balloons::Get => "balloon",
            Balloons::Update(_) => "updateBalloon",
            Balloons::Statistics => "balloonStatistics",
            Balloons::UpdateStatistics(_) => "updateBalloonStatistics",
            Balloons::Hinting(Hinting::Start { .. }) => "startHinting",
            Balloons::Hinting(Hinting::Stop) => "stopHinting",
            Balloons::Hinting(Hinting::Status) => "hintingStatus",
        },
        Call::MmdsConfig(_) => "setMmdsConfig",
        Call::Metadata => "metadata",
        Call::SetMetadata(_) => "setMetadata",
        Call::UpdateMetadata(_) => "updateMetadata",
        Call::Unsupported(_) => return None,
    })
}

#[test]
fn each_operation_is_a_call() {
    let contract = Contract::load();
    let mut names = BTreeSet::new();
    for operation in contract.operations() {
        let Operation { method, path, says } = operation;
        let id = says["operationId"].as_str().expect("a name");
        assert!(names.insert(id), "{id} is there twice");
        let (request, body) = example(&contract, operation);
        let call = parse(method, &request, &body);
        let call = call.unwrap_or_else(|fault| panic!("{method} {path}: {fault}"));
        let not_yet = says.get("x-not-yet") == Some(&json!(true));
        assert_eq!(not_yet, name(&call).is_none(), "{method} {path}");
        assert!(not_yet || name(&call) == Some(id), "{method} {path}");
        let when = match call.when() {
            _ if matches!(call, Call::Action(ActionType::InstanceStart)) => "either",
            When::Always => "always",
            When::BeforeStart => "before",
            When::AfterStart => "after",
        };
        assert_eq!(says["x-when"], when, "{method} {path}");
    }
}

#[test]
fn each_call_is_an_operation() {
    let contract = Contract::load();
    let operations = contract.operations();
    // A call that no operation stands for would have to have another path.
    let parts = operations.iter().flat_map(|it| it.path.split('/').skip(1));
    let parts: BTreeSet<&str> = parts
        .map(|part| if part.starts_with('{') { "a" } else { part })
        .collect();
    let mut paths: Vec<String> = vec![String::new()];
    let mut longest = paths.clone();
    for _ in 0..3 {
        let longer = longest
            .iter()
            .flat_map(|path| parts.iter().map(move |part| format!("{path}/{part}")));
        longest = longer.collect();
        paths.extend(longest.iter().cloned());
    }
    let known: BTreeSet<(&str, String)> = operations
        .iter()
        .map(|it| (it.method, example(&contract, *it).0))
        .collect();
    for path in paths {
        for method in METHODS.map(Method::name) {
            let there = !matches!(
                parse(method, &path, &Value::Null),
                Err(Fault::NoSuchCall { .. })
            );
            let said = contract.find(method, &path).is_some();
            assert_eq!(
                there,
                said || known.contains(&(method, path.clone())),
                "{method} {path}"
            );
        }
    }
}

#[test]
fn each_answer_is_described() {
    let contract = Contract::load();
    for Operation { method, path, says } in contract.operations() {
        let statuses: BTreeSet<_> = says["responses"]
            .as_object()
            .expect("answers")
            .keys()
            .collect();
        let has = |status: &str| statuses.contains(&status.to_owned());
        assert!(has("400"), "{method} {path}");
        assert_eq!(
            has("413"),
            says.get("requestBody").is_some(),
            "{method} {path}"
        );
        let done = if method == "GET" { "200" } else { "204" };
        let not_yet = says.get("x-not-yet").is_some();
        assert_eq!(has(done), !not_yet, "{method} {path}");
        for answer in says["responses"].as_object().expect("answers").values() {
            assert!(contract.resolve(answer)["description"].is_string());
        }
    }
}

/// A body that the file allows is understood, and one that it doesn't allow is refused.
#[test]
fn bodies_are_what_the_file_says() {
    let contract = Contract::load();
    let mut tried = 0;
    for operation in contract.operations() {
        let Some(content) = contract.body(operation) else {
            continue;
        };
        let (path, body) = example(&contract, operation);
        if operation.says.get("x-not-yet").is_some()
            || path.starts_with("/mmds") && body.get("latest").is_some()
        {
            continue;
        }
        let schema = contract.resolve(&content["schema"]);
        let mut bodies = vec![body.clone()];
        variants(&contract, schema, &body, &mut bodies);
        for body in bodies {
            let call = parse(operation.method, &path, &body);
            let understood = call.and_then(|call| match call {
                // What it is a change of matters too.
                Call::UpdateMachine(update) => match MachineConfig::default().updated(update) {
                    Ok(_) => Ok(()),
                    Err(error) => Err(Fault::from(error)),
                },
                _ => Ok(()),
            });
            let allowed = contract.check(schema, &body);
            assert_eq!(
                understood.is_ok(),
                allowed.is_ok(),
                "{} {path} {body}: {understood:?}, {allowed:?}",
                operation.method
            );
            tried += 1;
        }
    }
    assert!(tried > 1000, "{tried}");
}

/// Puts all kinds of values in the place of each field, and takes it away.
fn variants(contract: &Contract, schema: &Value, body: &Value, into: &mut Vec<Value>) {
    let Some(fields) = contract.resolve(schema)["properties"].as_object() else {
        return;
    };
    let mut with = |field: &str, value: Option<Value>| {
        let mut changed = body.clone();
        let object = changed.as_object_mut().expect("an object");
        match value {
            Some(value) => drop(object.insert(field.to_owned(), value)),
            None => drop(object.remove(field)),
        }
        into.push(changed);
    };
    with("unknown", Some(json!(1)));
    for (field, schema) in fields {
        // That it is the path's name is not the schema's to say.
        if field == "drive_id" || field == "iface_id" {
            with(field, None);
            continue;
        }
        // Whether there is a socket says which other fields there may be.
        if field == "socket" || field == "path_on_host" && body.get("is_root_device").is_some() {
            continue;
        }
        with(field, None);
        for value in values(contract, schema) {
            with(field, Some(value));
        }
        let inner = body.get(field).filter(|it| it.is_object());
        if let Some(inner) = inner {
            let mut changed = Vec::new();
            let all = schema.pointer("/anyOf/0/allOf/0").unwrap_or(schema);
            variants(contract, all, inner, &mut changed);
            changed
                .into_iter()
                .for_each(|inner| with(field, Some(inner)));
        }
    }
}

/// Values of all kinds, and those at the limits of a schema.
fn values(contract: &Contract, schema: &Value) -> Vec<Value> {
    let mut values = vec![
        Value::Null,
        json!(true),
        json!(false),
        json!(-1),
        json!(0),
        json!(1),
        json!(1.5),
        json!(u32::MAX),
        json!(1u64 << 32),
        json!(u64::MAX),
        json!(""),
        json!("x"),
        json!("None"),
        json!([]),
        json!(["x"]),
        json!([1]),
        json!({}),
        json!({ "x": 1 }),
    ];
    let schema = contract.resolve(schema);
    let schema = schema.pointer("/anyOf/0/allOf/0").unwrap_or(schema);
    let schema = contract.resolve(schema);
    for limit in ["minimum", "maximum"] {
        let limit = schema[limit].as_u64().filter(|it| *it < u64::MAX);
        let near = limit.map(|it| [it.wrapping_sub(1), it, it + 1]);
        values.extend(near.into_iter().flatten().map(Value::from));
    }
    values.extend(schema["enum"].as_array().into_iter().flatten().cloned());
    values.extend(schema.get("default").cloned());
    values
}
