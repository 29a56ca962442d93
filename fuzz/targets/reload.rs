//! Reloads: a configuration resets no setting of the running one by leaving it out.
//!
//! ```text
//! input: the running file, a zero byte, and the next file; or, instead of the next file, a byte
//!   255 and a length in two bytes: the next file is the running one cut to that length
//! ```

use std::{cell::OnceCell, fs, path::Path};

use tempfile::TempDir;
use tls_sessiond::config::Config;
use tls_sessiond_core::context::ContextConfig;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

pub(crate) fn run(data: &[u8]) {
    let Some(end) = data.iter().position(|&byte| byte == 0) else {
        return;
    };
    let (old, rest) = (&data[..end], &data[end + 1..]);
    let (next, is_cut) = match rest {
        [255, high, low, ..] => (
            &old[..old.len().min(u16::from_be_bytes([*high, *low]).into())],
            true,
        ),
        next => (next, false),
    };
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().expect("a folder for the files"));
        let file = folder.path().join("reloaded.toml");
        let (Some(running), Some(new)) = (load(&file, old), load(&file, next)) else {
            return;
        };
        running.can_follow(&running).expect("it may follow itself");
        if new.can_follow(&running).is_err() {
            return;
        }
        follows(&running, &new, next);
        if is_cut {
            shrunk(&running, &new);
        }
    });
}

fn load(file: &Path, text: &[u8]) -> Option<Config> {
    fs::write(file, text).expect("the file can be written");
    Config::load(Some(file), std::iter::empty(), &[]).ok()
}

/// Returns the running value of a key.
type Value = fn(&ContextConfig) -> String;

/// Keys of a context.
const KEYS: [(&str, Value); 14] = [
    ("ca", |context| format!("{:?}", context.trust)),
    ("client_auth", |context| {
        format!("{:?}", context.client_auth)
    }),
    ("versions", |context| format!("{:?}", context.versions)),
    ("cipher_suites", |context| {
        format!("{:?}", context.cipher_suites)
    }),
    ("key_exchange", |context| {
        format!("{:?}", context.key_exchange)
    }),
    ("alpn", |context| format!("{:?}", context.alpn)),
    ("options", |context| format!("{:?}", context.options)),
    ("session_id_context", |context| {
        format!("{:?}", context.session_id_context)
    }),
    ("client_sessions", |context| {
        format!("{:?}", context.offering)
    }),
    ("tickets", |context| format!("{:?}", context.tickets)),
    ("close_policy", |context| {
        format!("{:?}", context.close_policy)
    }),
    ("session_timeout", |context| {
        format!("{:?}", context.session_timeout)
    }),
    ("cache_entries_max", |context| {
        format!("{:?}", context.cache_entries_max)
    }),
    ("idle_timeout", |context| {
        format!("{:?}", context.idle_timeout)
    }),
];

/// Checks that every difference is written in the next file: a key that does not occur in it cannot
/// have changed.
fn follows(running: &Config, next: &Config, text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    if text.contains('\\') {
        return;
    }
    assert!(
        !next.access.is_empty() || running.access.is_empty() || text.contains("access"),
        "access rules were removed by omission"
    );
    for context in &next.contexts {
        // A context without a name is compared with the running context `default`, and no other.
        let Some(before) = running
            .contexts
            .iter()
            .find(|before| before.name == context.name)
        else {
            continue;
        };
        for (key, value) in KEYS {
            let (new, old) = (value(context), value(before));
            assert!(
                new == old || text.contains(key),
                "{}: {key} went from {old} to {new}",
                context.name
            );
        }
    }
}

/// Checks a file that was cut: it has a prefix of the rules, and contexts that equal the running
/// ones.
fn shrunk(running: &Config, next: &Config) {
    assert!(
        running.access.starts_with(&next.access),
        "other rules: {:?}",
        next.access
    );
    assert!(
        !next.access.is_empty() || running.access.is_empty(),
        "no rules are left"
    );
    for context in &next.contexts {
        let before = running
            .contexts
            .iter()
            .find(|before| before.name == context.name);
        assert_eq!(before, Some(context), "a cut changed a context");
    }
}
