//! YAML 1.2 of a JSON value.
//!
//! A value consists of objects, lists, numbers, booleans and strings. Every string that could be
//! read as something else is written in double quotes, so no library is needed.

use serde_json::Value;

use super::text::is_hazardous;

/// Returns the value as a YAML document, with a line end.
pub(super) fn document(value: &Value) -> String {
    let mut out = String::new();
    node(value, 0, &mut out);
    out.trim_start().to_owned()
}

/// Writes a value after a key or a dash. A collection with elements begins on the next line.
fn node(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            out.push('\n');
            for (name, value) in fields {
                indent(depth, out);
                string(name, out);
                out.push(':');
                node(value, depth + 1, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            for item in items {
                indent(depth, out);
                out.push('-');
                node(item, depth + 1, out);
            }
        }
        scalar => {
            out.push(' ');
            match scalar {
                Value::String(text) => string(text, out),
                other => out.push_str(&other.to_string()),
            }
            out.push('\n');
        }
    }
}

fn indent(depth: usize, out: &mut String) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// Writes a string: plain if it is a word that no reader takes for another type.
fn string(text: &str, out: &mut String) {
    const OTHER_TYPES: [&str; 10] = [
        "true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan",
    ];
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_./-".contains(c))
        && !OTHER_TYPES.contains(&&*text.to_ascii_lowercase());
    if is_plain {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            _ if is_hazardous(c) => out.push_str(&format!("\\U{:08x}", u32::from(c))),
            _ => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn collections_are_indented_and_doubtful_strings_quoted() {
        let value = json!({
            "name": "web",
            "count": "12",
            "none": [],
            "empty": {},
            "flag": true,
            "lists": [{"id": "no", "text": "a: \"b\"\n\x1b"}, {"id": "x.y/z"}, [1, 2.5]],
            "deep": {"deeper": {"word": ""}},
        });
        let wanted = "\
name: web
count: \"12\"
none: []
empty: {}
flag: true
lists:
  -
    id: \"no\"
    text: \"a: \\\"b\\\"\\U0000000a\\U0000001b\"
  -
    id: x.y/z
  -
    - 1
    - 2.5
deep:
  deeper:
    word: \"\"
";
        assert_eq!(document(&value), wanted);
        assert_eq!(document(&json!({})), "{}\n");
    }
}
