//! Which contexts share sessions: those that agree in everything that decides which sessions they
//! may resume, and no others.

use std::{fs, path::Path, sync::Arc};

use tls_sessiond::config::Config;
use tls_sessiond_core::context::Registry;
use tls_sessiond_types::Role;

use crate::pki::{self, Authority};

fn files(folder: &Path) {
    pki::localhost(folder);
    let other = Authority::new("other");
    fs::write(folder.join("other.pem"), &other.pem).unwrap();
    other.leaf(&["localhost"]).write(folder, "other");
    other.leaf(&["client"]).write(folder, "client");
}

/// Returns whether two contexts share their server cache and their client cache.
fn shared(folder: &Path, one: &str, two: &str) -> (bool, bool) {
    let base = "session_id_context = \"one\"\n";
    let file = folder.join("scope.toml");
    fs::write(
        &file,
        format!("[[context]]\nname = \"a\"\n{base}{one}\n[[context]]\nname = \"b\"\n{base}{two}\n"),
    )
    .unwrap();
    let registry = Registry::build(
        &Config::load(Some(&file), std::iter::empty(), &[])
            .unwrap()
            .settings(),
    )
    .unwrap();
    let (a, b) = (registry.get("a").unwrap(), registry.get("b").unwrap());
    let same = |role| Arc::ptr_eq(a.cache(role), b.cache(role));
    let both = same(Role::Server) && same(Role::Client);
    assert_eq!(
        a.scope == b.scope,
        both,
        "Context.scope differs from the sharing of caches"
    );
    (same(Role::Server), same(Role::Client))
}

// Invariant 3.
#[test]
fn contexts_share_sessions_only_with_equal_resumption_settings() {
    let folder = tempfile::tempdir().unwrap();
    files(folder.path());
    let keys = "certificate = \"tls.crt\"\nkey = \"tls.key\"\n";
    let base = format!("{keys}ca = \"ca.pem\"\n");
    for (what, changed, server, client) in [
        ("nothing", base.clone(), true, true),
        ("versions", format!("{base}versions = [\"1.3\"]"), true, true),
        (
            "time-outs",
            format!("{base}session_timeout = \"1h\"\nidle_timeout = \"1m\"\ntickets = 1"),
            true,
            true,
        ),
        ("certificate", base.replace("tls.", "other."), false, true),
        (
            "an additional certificate",
            "certificate = [\"tls.crt\", \"other.crt\"]\nkey = [\"tls.key\", \"other.key\"]\nca = \"ca.pem\""
                .into(),
            false,
            true,
        ),
        ("trust anchors", base.replace("ca.pem", "other.pem"), true, false),
        ("client_auth", format!("{base}client_auth = \"request\""), false, true),
        ("alpn", format!("{base}alpn = [\"h2\"]"), false, false),
        (
            "client certificates",
            format!("{base}client_certificates = [{{ certificate = \"client.crt\", key = \"client.key\" }}]"),
            true,
            false,
        ),
        ("client_sessions", format!("{base}client_sessions = \"explicit\""), true, false),
    ] {
        assert_eq!(shared(folder.path(), &base, &changed), (server, client), "{what}");
    }
    // Where a server requests client certificates, the trust anchors count (nginx CVE-2025-23419,
    // Go CVE-2025-68121).
    for auth in ["request", "require"] {
        let asks = |ca: &str| format!("{keys}ca = \"{ca}\"\nclient_auth = \"{auth}\"");
        assert_eq!(
            shared(folder.path(), &asks("ca.pem"), &asks("other.pem")),
            (false, false),
            "{auth}"
        );
        assert_eq!(
            shared(folder.path(), &asks("ca.pem"), &asks("ca.pem")),
            (true, true),
            "{auth}"
        );
    }
    // ALPN lists whose concatenations are equal.
    let alpn = |list: &str| format!("{base}alpn = {list}");
    assert_eq!(
        shared(
            folder.path(),
            &alpn("[\"ab\", \"c\"]"),
            &alpn("[\"a\", \"bc\"]")
        ),
        (false, false)
    );
}

#[test]
fn contexts_share_no_sessions_by_default() {
    let folder = tempfile::tempdir().unwrap();
    files(folder.path());
    let base = "certificate = \"tls.crt\"\nkey = \"tls.key\"\nca = \"ca.pem\"\n";
    let file = folder.path().join("scope.toml");
    fs::write(
        &file,
        format!("[[context]]\nname = \"a\"\n{base}[[context]]\nname = \"b\"\n{base}"),
    )
    .unwrap();
    let registry = Registry::build(
        &Config::load(Some(&file), std::iter::empty(), &[])
            .unwrap()
            .settings(),
    )
    .unwrap();
    assert_eq!(registry.caches().count(), 4);
    assert_ne!(
        registry.get("a").unwrap().scope,
        registry.get("b").unwrap().scope
    );
}
