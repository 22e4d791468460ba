//! As much of JSON Schema as spec/cli.schema.json uses. Stricter in one thing: members that the schema does not name are
//! wrong, as what is printed must be described.

use serde_json::Value;

/// The schema.
pub fn cli_schema() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/spec/cli.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the schema")).expect("the schema is JSON")
}

/// Asserts that a value is as a part of the schema has it; "" is the whole.
#[track_caller]
pub fn assert_described(value: &Value, part: &str) {
    let root = cli_schema();
    let schema = if part.is_empty() { &root } else { &root["$defs"][part] };
    if let Err(why) = check(&root, schema, value) {
        panic!("{why}\nin {value:#}");
    }
}

fn check(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    for (key, rule) in schema.as_object().ok_or("a schema is an object")? {
        let fine = match key.as_str() {
            "$ref" => {
                let name = rule.as_str().and_then(|name| name.strip_prefix("#/$defs/")).ok_or("a reference")?;
                let target = root["$defs"].get(name).ok_or_else(|| format!("no definition {name}"))?;
                check(root, target, value)?;
                true
            }
            "oneOf" | "anyOf" => {
                let list = rule.as_array().ok_or("a list")?;
                let results: Vec<_> = list.iter().map(|schema| check(root, schema, value)).collect();
                let fitting = results.iter().filter(|result| result.is_ok()).count();
                if fitting == 0 {
                    return Err(results.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; "));
                }
                fitting == 1
            }
            "type" => match rule {
                Value::Array(types) => types.iter().any(|name| is_type(name, value)),
                name => is_type(name, value),
            },
            "const" => rule == value,
            "enum" => rule.as_array().is_some_and(|list| list.contains(value)),
            "minimum" => value.is_null() || value.as_f64() >= rule.as_f64(),
            "pattern" => hex(rule, value),
            "properties" => {
                members(root, rule, value)?;
                true
            }
            "required" => rule.as_array().is_some_and(|names| {
                names.iter().all(|name| name.as_str().is_some_and(|name| value.get(name).is_some()))
            }),
            "items" => value.as_array().is_some_and(|list| list.iter().all(|item| check(root, rule, item).is_ok())),
            "description" | "title" | "$schema" | "$defs" => true,
            other => return Err(format!("this checker does not know {other:?}")),
        };
        if !fine {
            return Err(format!("{value} is not as {key:?}: {rule} has it"));
        }
    }
    Ok(())
}

fn members(root: &Value, rules: &Value, value: &Value) -> Result<(), String> {
    let object = value.as_object().ok_or_else(|| format!("{value} is no object"))?;
    object.iter().try_for_each(|(name, value)| {
        let rule = rules.get(name).ok_or_else(|| format!("the schema has no member {name:?} there"))?;
        check(root, rule, value).map_err(|why| format!("{name}: {why}"))
    })
}

fn is_type(name: &Value, value: &Value) -> bool {
    match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => false,
    }
}

/// The only patterns in use: so many hexadecimal digits.
fn hex(rule: &Value, value: &Value) -> bool {
    let digits = rule.as_str().and_then(|rule| rule.strip_prefix("^[0-9a-f]{")?.strip_suffix("}$")?.parse().ok());
    let text = value.as_str().unwrap_or_default();
    digits == Some(text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
