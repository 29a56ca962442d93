//! Text from a daemon, before it goes to a terminal.
//!
//! A peer or a worker may have chosen it: server names, peer addresses, owners.

/// Returns whether a terminal could act on a character, or show the text in another order:
/// control characters, and invisible format characters such as those of bidirectional text.
pub(super) fn is_hazardous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Returns the text with every hazardous character as a Rust escape: `\u{1b}`, `\n`.
pub(super) fn escaped(text: &str) -> String {
    replaced(text, |out, c| out.extend(c.escape_default()))
}

/// Returns JSON with every hazardous character of its strings as a JSON escape: `\u009b`. Line
/// ends between the values stay.
pub(super) fn escaped_json(json: &str) -> String {
    replaced(json, |out, c| match c {
        // Within strings, JSON has no bare line end.
        '\n' => out.push(c),
        _ => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    })
}

fn replaced(text: &str, escape: impl Fn(&mut String, char)) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hazardous(c) {
            escape(&mut out, c);
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_act_on_a_terminal_are_escaped() {
        assert_eq!(escaped("a\x1b[31m\n\u{9b}é"), "a\\u{1b}[31m\\n\\u{9b}é");
        assert_eq!(escaped("\u{202e}txt"), "\\u{202e}txt");
        assert_eq!(escaped("O=Admins\\, Ltd"), "O=Admins\\, Ltd");
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let value = serde_json::json!({"name": "\u{9b}31m\u{202e}\u{e0001}\x1b\n\x7fé"});
        let json = escaped_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(json.chars().all(|c| c == '\n' || !is_hazardous(c)));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).unwrap(),
            value
        );
    }
}
