//! The configuration: it loads, or the error says what is wrong and where. It never panics.
//!
//! ```text
//! input: the file, then overrides, each after a zero byte: `--set KEY=VALUE` without the
//!   `--set `, or an environment variable as `$NAME=VALUE`
//! ```

use std::{cell::OnceCell, fs, path::Path};

use tempfile::TempDir;
use tls_sessiond::config::{Config, ConfigError, Endpoint};
use tls_sessiond_core::context::{ContextRefusal, Refusal};

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

pub(crate) fn run(data: &[u8]) {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().expect("a folder for the file"));
        load(&folder.path().join("fuzzed.toml"), data);
    });
}

fn load(file: &Path, data: &[u8]) {
    let mut parts = data.split(|&byte| byte == 0);
    let text = parts.next().unwrap_or_default();
    fs::write(file, text).expect("the file can be written");
    let (mut set, mut variables) = (Vec::new(), Vec::new());
    for part in parts.map(String::from_utf8_lossy) {
        match part
            .strip_prefix('$')
            .and_then(|variable| variable.split_once('='))
        {
            Some((name, value)) => {
                variables.push((format!("TLS_SESSIOND__{name}"), value.to_owned()));
            }
            None => set.push(part.into_owned()),
        }
    }
    let load = || Config::load(Some(file), variables.iter().cloned(), &set);
    match load() {
        Ok(config) => valid(
            &config,
            &load().expect("a file that loads once loads twice"),
        ),
        Err(error) => located(&error, file, text, set.is_empty() && variables.is_empty()),
    }
}

/// Checks invariants of every configuration that loads.
fn valid(config: &Config, again: &Config) {
    assert_eq!(format!("{config:?}"), format!("{again:?}"));
    config.can_follow(again).expect("it may follow itself");
    // An empty file loosens nothing: it may follow only a configuration with the same values.
    let empty = Config::defaults();
    assert!(
        empty.can_follow(config).is_err() || empty == *config,
        "an empty file changes what runs"
    );
    let limits = config.limits;
    let counts = [
        limits.connections,
        limits.message,
        limits.plaintext_buffer,
        limits.sessions,
        limits.session_bytes,
    ];
    assert!(
        counts.iter().all(|&count| count > 0) && limits.streams > 0,
        "a limit is zero"
    );
    for endpoint in &config.api {
        match endpoint {
            Endpoint::Tcp(address) => {
                assert!(address.ip().is_loopback(), "plaintext leaves this host");
            }
            Endpoint::Tls(_) => assert!(config.tls.is_some(), "TLS without a certificate"),
            Endpoint::Systemd => {}
            Endpoint::Unix { path, .. } => assert!(path.is_absolute()),
        }
    }
    assert!(!config.contexts.is_empty());
    for (place, context) in config.contexts.iter().enumerate() {
        assert!((1..=64).contains(&context.name.len()) && !context.versions.is_empty());
        assert!(
            config.contexts[..place]
                .iter()
                .all(|other| other.name != context.name)
        );
        assert!(
            context.tickets <= 16 && context.cache_entries_max > 0 && context.cache_bytes_max > 0
        );
        let refusal = Refusal {
            key: "certificate".into(),
            why: "it is away".into(),
        };
        let error = config.context_error(&ContextRefusal { place, refusal });
        assert!(
            error
                .to_string()
                .ends_with(&format!("context[{place}].certificate: it is away"))
        );
    }
}

/// Checks that the error names the line, if only the file can be at fault, and that the key or one
/// of its parents stands in that line.
fn located(error: &ConfigError, file: &Path, text: &[u8], alone: bool) {
    let message = error.to_string();
    assert!(!message.is_empty());
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    if !alone {
        return;
    }
    let place = message
        .strip_prefix(&format!("{}:", file.display()))
        .and_then(|rest| rest.split_once(": "));
    let Some((line, what)) = place else {
        panic!("no line of the file: {message}")
    };
    let lines: Vec<_> = text.split('\n').collect();
    let line = line
        .parse::<usize>()
        .ok()
        .and_then(|line| lines.get(line.checked_sub(1)?));
    let Some(line) = line else {
        panic!("not a line of the file: {message}")
    };
    // An item of a list may stand on a line of its own, and a key may be written with escapes.
    let part = |c: char| c.is_ascii_alphanumeric() || "_.[]-".contains(c);
    let key = what
        .split(": ")
        .next()
        .filter(|key| key.chars().all(part) && !key.is_empty() && !key.ends_with(']'));
    if let Some(key) = key.filter(|_| !text.contains('\\')) {
        let mut parts = key
            .split('.')
            .map(|part| part.split('[').next().unwrap_or(part));
        assert!(
            parts.any(|part| line.contains(part)),
            "`{line}` has no part of that key: {message}"
        );
    }
}
