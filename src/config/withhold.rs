//! Keeps key material out of error messages.
//!
//! Every [`ConfigError`](super::ConfigError) passes through [`withhold`]. Many messages quote
//! values of the configuration, including those of `serde` and `toml`. A value may be a private key
//! that was pasted in place of its path.

/// Maximum length of a message, in bytes.
const MESSAGE_MAX: usize = 2_000;
/// Shortest run of base64 that counts as key material. A line of PEM has 64 characters, and so has
/// the shortest key in one piece.
const BASE64_RUN: usize = 40;
/// Shortest run of hexadecimal digits that counts as key material: 32 bytes.
const HEX_RUN: usize = 64;

/// Returns the message without text that looks like key material, on one line and of bounded
/// length.
pub(super) fn withhold(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    match secret(message) {
        None => text.push_str(message),
        Some((start, end)) => {
            text.push_str(&message[..start]);
            text.push_str(&format!(
                "({} bytes withheld: they look like a key)",
                end - start
            ));
            text.push_str(&message[end..]);
        }
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        if shown.len() > MESSAGE_MAX {
            shown.push('…');
            break;
        }
    }
    shown
}

/// Returns whether part of a text looks like key material.
pub(super) fn holds_key(text: &str) -> bool {
    secret(text).is_some()
}

/// Returns the range from the first to the last byte that looks like key material.
fn secret(message: &str) -> Option<(usize, usize)> {
    let bytes = message.as_bytes();
    let mut found: Option<(usize, usize)> = None;
    let mut add = |start: usize, end: usize| {
        let (first, last) = found.unwrap_or((start, end));
        found = Some((first.min(start), last.max(end)));
    };
    if let Some(start) = message.find("-----BEGIN") {
        // Up to the end of the last marker. If that was cut off, the end of the key is unknown.
        let end = message.rfind("-----END").map_or(message.len(), |end| {
            message[end + 8..]
                .find("-----")
                .map_or(message.len(), |after| end + 8 + after + 5)
        });
        add(start, end.max(start));
    }
    let mut at = 0;
    while at < bytes.len() {
        let length = bytes[at..]
            .iter()
            .take_while(|byte| is_base64(**byte))
            .count();
        let run = &bytes[at..at + length];
        let count = |is: fn(&u8) -> bool| run.iter().filter(|&byte| is(byte)).count();
        // A path has few capitals. Forty characters of base64 have sixteen of them on average, and
        // six digits.
        let mixed = count(u8::is_ascii_uppercase) >= 4
            && count(u8::is_ascii_lowercase) >= 4
            && count(u8::is_ascii_digit) >= 1;
        let hex = length >= HEX_RUN && run.iter().all(u8::is_ascii_hexdigit);
        if (length >= BASE64_RUN && mixed) || hex {
            add(at, at + length);
        }
        // The form in which openssl prints the numbers of a key: `54:52:bc`.
        let colons = bytes[at..]
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit() || **byte == b':')
            .count();
        let digits = bytes[at..at + colons]
            .iter()
            .filter(|byte| byte.is_ascii_hexdigit())
            .count();
        if digits >= HEX_RUN && 2 * (colons - digits) + 2 >= digits {
            add(at, at + colons);
        }
        at += length.max(1);
    }
    found.map(|(start, end)| (extend_back(bytes, start), extend(bytes, end)))
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)
}

/// Extends the range to further pieces of the same value: base64 after spaces and line ends,
/// including those written as `\n`. A value in a message ends with a quote or a colon.
fn extend(bytes: &[u8], mut end: usize) -> usize {
    loop {
        let rest = &bytes[end..];
        let gap = gap(rest);
        let piece = rest[gap..]
            .iter()
            .take_while(|byte| is_base64(**byte))
            .count();
        if gap == 0 || piece == 0 {
            return end;
        }
        end += gap + piece;
    }
}

/// Extends the range like [`extend`], towards the beginning.
fn extend_back(bytes: &[u8], mut start: usize) -> usize {
    loop {
        let before = &bytes[..start];
        let blank = before
            .iter()
            .rev()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        let gap = if blank == 0 && before.ends_with(b"\\n") {
            2
        } else {
            blank
        };
        let piece = before[..start - gap]
            .iter()
            .rev()
            .take_while(|byte| is_base64(**byte))
            .count();
        // A word of the message, as in `cannot read ...`, is shorter than a line of a key.
        if gap == 0 || piece < 16 {
            return start;
        }
        start -= gap + piece;
    }
}

/// Returns the length of the spaces and line ends at the beginning.
fn gap(bytes: &[u8]) -> usize {
    let blank = bytes
        .iter()
        .take_while(|byte| byte.is_ascii_whitespace())
        .count();
    if blank == 0 && bytes.starts_with(b"\\n") {
        2
    } else {
        blank
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgevZzL1gdAFr88hb2";
    const TAIL: &str = "OF/2NxApJCzGCEDdfSp6VQO30hyhRANC";

    #[test]
    fn key_material_is_withheld_from_messages() {
        let pem =
            format!("-----BEGIN PRIVATE KEY-----\n{BODY}\n{TAIL}\n-----END PRIVATE KEY-----\n");
        for value in [
            pem.clone(),
            pem.replace('\n', ""),
            pem.replace('\n', " "),
            pem.replace('\n', "\\n"),
            pem.replace("-----END PRIVATE KEY-----\n", ""),
            format!("{BODY}{TAIL}"),
            format!("{BODY} {TAIL}"),
            format!("{TAIL}\n{BODY}\n{TAIL}"),
            format!("{BODY}\\n{TAIL}"),
            format!("/etc/tls-sessiond/{BODY}"),
            "0f".repeat(32),
        ] {
            let shown = withhold(&format!(
                "c.toml:3: context[0].key: cannot read {value}: No such file"
            ));
            assert!(
                shown.starts_with("c.toml:3: context[0].key: cannot read "),
                "{shown}"
            );
            assert!(shown.contains("withheld"), "{shown}");
            for secret in [BODY, TAIL, "0f0f0f"] {
                let windows = secret.as_bytes().windows(6.min(secret.len()));
                for window in windows.map(|window| std::str::from_utf8(window).unwrap()) {
                    assert!(!shown.contains(window), "{value:?} is shown as {shown}");
                }
            }
        }
    }

    #[test]
    fn ordinary_messages_stay_as_they_are() {
        for message in [
            "/etc/tls-sessiond/tls-sessiond.toml:12: context[0].certificate: cannot read /var/run/secrets/tls.crt",
            "c.toml:2: lissten: unknown field `lissten`, expected one of `listen`, `access`, `limits`",
            "`TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256` is not known; it may be TLS_AES_256_GCM_SHA384",
            "spiffe://example.org/ns/web/sa/default/region/europe-west",
        ] {
            assert_eq!(withhold(message), message);
        }
        assert_eq!(withhold("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert!(withhold(&"ä".repeat(10_000)).len() < MESSAGE_MAX + 10);
    }
}
