//! The commands of AdminService: status, owners, misses, failures, reload, drain, log-level, config
//! print, connections free.

use std::fs;

use tls_sessiond_proto as pb;

use super::{Ran, ask, run, shown};
use crate::{
    binary::Binary,
    calls::{Worker, lookup, put, worker},
    doors::{House, rule},
    harness::TestDaemon,
    pki,
};

/// Runs a command, split at spaces, against a daemon in another process.
async fn ask_binary(daemon: &Binary, args: &str) -> Ran {
    let address = format!("tcp://{}", daemon.address);
    let args: Vec<_> = args.split(' ').chain(["--address", &address]).collect();
    run(&args).await
}

/// A configuration with one context `web`, whose `alpn` is this.
fn configuration(alpn: &str) -> String {
    format!(
        "[log]\nlevel = \"warn\"\n[drain]\ntimeout = \"100ms\"\n[[context]]\nname = \"web\"\n\
         certificate = \"tls.crt\"\nkey = \"tls.key\"\nalpn = [\"{alpn}\"]\n"
    )
}

/// A daemon with a configuration file.
struct Configured {
    daemon: Binary,
    folder: tempfile::TempDir,
}

impl Configured {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki::localhost(folder.path());
        let file = folder.path().join("daemon.toml");
        fs::write(&file, configuration("h2")).unwrap();
        let daemon = Binary::start(&["--config", &shown(&file)]).await;
        Self { daemon, folder }
    }

    fn write(&self, text: &str) {
        fs::write(self.folder.path().join("daemon.toml"), text).unwrap();
    }

    async fn ask(&self, args: &str) -> Ran {
        ask_binary(&self.daemon, args).await
    }
}

#[tokio::test]
async fn status_shows_the_state_of_the_daemon() {
    let daemon = TestDaemon::start().await;
    let client = daemon.open(pb::Role::Client).await;
    let server = daemon.open(pb::Role::Server).await;
    daemon.handshake(&client, &server).await;
    daemon.open(pb::Role::Server).await;

    let text = ask(&daemon, "status").await.ok();
    for line in [
        "state          serving",
        "connections    3 (1 before, 2 established)",
        "last reload    none",
        "CONTEXTS",
        "PROCESS",
        "CERTIFICATES",
    ] {
        assert!(text.lines().any(|held| held == line), "{line}:\n{text}");
    }
    assert!(!text.contains("SHARED STORE"), "{text}");

    let json = ask(&daemon, "status -o json").await.json();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["state"], "DAEMON_STATE_SERVING");
    assert_eq!(json["contexts"][0]["name"], "default");
    assert_eq!(json["owners"][0]["owner"], "local");
    assert_eq!(json["owners"][0]["connections"], "3");
    assert_eq!(json["process"]["connections"], 3);
    let digest = json["configDigest"].as_str().unwrap();
    assert!(digest.len() == 16 && digest.chars().all(|c| c.is_ascii_hexdigit()));

    let colored = ask(&daemon, "status --color always").await.ok();
    assert!(colored.contains("\x1b[32mserving\x1b[0m"), "{colored}");
    let yaml = ask(&daemon, "status -o yaml").await.ok();
    assert!(yaml.contains("\nstate: DAEMON_STATE_SERVING\n"), "{yaml}");
}

#[tokio::test]
async fn owners_are_listed_with_their_counts() {
    let daemon = TestDaemon::start().await;
    let calls = Worker(&daemon);
    let id = calls.established("abcd").await;
    calls.free(&id).await;
    calls.open(worker(pb::Role::Server)).await;
    assert!(!calls.found("abcd").await);
    let table = ask(&daemon, "owners").await.ok();
    let rows: Vec<Vec<_>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0],
        [
            "OWNER",
            "CONNECTIONS",
            "UNCLOSED",
            "FAILURES",
            "MISSES",
            "STORED"
        ]
    );
    assert_eq!(rows[1], ["local", "1", "1", "0", "1", "1"]);
    let json = ask(&daemon, "owners -o json").await.json();
    assert_eq!(json["owners"][0]["misses"], "1");
}

#[tokio::test]
async fn misses_are_listed_and_filtered() {
    let daemon = TestDaemon::start().await;
    let calls = Worker(&daemon);
    let id = calls.established("abcd").await;
    calls.free(&id).await;
    let named = pb::LookupSessionRequest {
        server_name: "a\x1b[31m".into(),
        ..lookup("0123456789")
    };
    assert!(!calls.lookup(named).await.found);
    assert!(!calls.found("abcd").await);

    let json = ask(&daemon, "misses -o json").await.json();
    assert_eq!(json["misses"][0]["sessionIdPrefix"], "abcd");
    assert_eq!(json["misses"][0]["reason"], "MISS_REASON_REMOVED");
    assert_eq!(json["misses"][1]["sessionIdPrefix"], "01234567");
    assert_eq!(json["misses"].as_array().unwrap().len(), 2);
    let json = ask(&daemon, "misses --reason unknown -o json").await.json();
    assert_eq!(json["misses"].as_array().unwrap().len(), 1);
    let json = ask(&daemon, "misses --limit 1 -o json").await.json();
    assert_eq!(json["misses"].as_array().unwrap().len(), 1);
    let json = ask(&daemon, "misses --context default --reason expired -o json").await;
    assert_eq!(json.json()["misses"].as_array().unwrap().len(), 0);

    let table = ask(&daemon, "misses").await.ok();
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        row[1..],
        ["removed", "default", "server", "abcd", "-", "local", "-"]
    );
    assert!(
        table.contains("a\\u{1b}[31m") && !table.contains('\x1b'),
        "{table:?}"
    );
    let err = ask(&daemon, "misses --context nowhere").await.failed(1);
    assert!(err.contains("CONTEXT_NOT_FOUND"), "{err}");
}

#[tokio::test]
async fn failures_are_listed() {
    let daemon = TestDaemon::start().await;
    assert_eq!(ask(&daemon, "failures").await.ok().lines().count(), 1);
    let server = daemon.open(pb::Role::Server).await;
    // No TLS record begins with a G. The answer may be an alert or an error.
    drop(
        daemon
            .exchange(&server, b"GET / HTTP/1.1\r\n\r\n", b"")
            .await,
    );
    let json = ask(&daemon, "failures --context default -o json")
        .await
        .json();
    let failure = &json["failures"][0];
    assert_eq!(failure["context"], "default");
    assert_eq!(failure["role"], "ROLE_SERVER");
    assert_eq!(failure["owner"], "local");
    assert!(!failure["reason"].as_str().unwrap().is_empty());
    let table = ask(&daemon, "failures --limit 1").await.ok();
    assert_eq!(table.lines().count(), 2, "{table}");
    let err = ask(&daemon, "failures --context nowhere").await.failed(1);
    assert!(err.contains("CONTEXT_NOT_FOUND"), "{err}");
}

#[tokio::test]
async fn a_connection_is_freed_as_unclosed() {
    let daemon = TestDaemon::start().await;
    let calls = Worker(&daemon);
    let id = calls.open(worker(pb::Role::Server)).await.id;
    assert_eq!(calls.put(put(&id, "abcd")).await.reason, "");
    let first_digits = id[..9].to_uppercase();
    let out = ask(&daemon, &format!("connections free {first_digits}"))
        .await
        .ok();
    assert_eq!(
        out,
        format!("freed {id}\nremoved session abcd (unclosed)\n")
    );
    assert!(!calls.found("abcd").await);
    let err = ask(&daemon, &format!("connections free {id}"))
        .await
        .failed(1);
    assert!(err.contains("CONNECTION_NOT_FOUND"), "{err}");

    let id = calls.established("ab").await;
    let json = ask(&daemon, &format!("connections free {id} -o json"))
        .await
        .json();
    assert_eq!(json["removedSessions"][0]["sessionId"], "ab");
}

#[tokio::test]
async fn a_reload_shows_what_changed_or_why_it_was_refused() {
    let configured = Configured::start().await;
    let out = configured.ask("reload").await.ok();
    assert!(out.contains("no value has changed"), "{out}");
    configured.write(&configuration("http/1.1"));
    let out = configured.ask("reload").await.ok();
    assert!(out.contains("changed: context[0].alpn\n"), "{out}");
    let status = configured.ask("status -o json").await.json();
    assert_eq!(status["lastReload"]["applied"], true);
    let digest = status["configDigest"].clone();

    configured.write("[listen]\nport = 1\n");
    let err = configured.ask("reload").await.failed(1);
    assert!(err.contains("RELOAD_REFUSED"), "{err}");
    assert!(err.contains("daemon.toml:2: listen.port"), "{err}");
    let status = configured.ask("status -o json").await.json();
    assert_eq!(status["lastReload"]["applied"], false);
    assert_eq!(status["configDigest"], digest);
    let text = configured.ask("status").await.ok();
    assert!(text.contains("\nlast reload    refused\n"), "{text}");
    assert!(text.contains("daemon.toml:2: listen.port"), "{text}");
}

#[tokio::test]
async fn the_log_level_is_shown_and_set() {
    let configured = Configured::start().await;
    assert_eq!(configured.ask("log-level").await.ok(), "warn\n");
    let out = configured.ask("log-level debug").await.ok();
    let row: Vec<_> = out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["warn", "debug"]);
    assert_eq!(configured.ask("log-level").await.ok(), "debug\n");
    let json = configured.ask("log-level -o json").await.json();
    assert_eq!(json, serde_json::json!({"logLevel": "debug"}));
    let json = configured.ask("log-level info -o json").await.json();
    assert_eq!(json["previous"], "debug");
    let err = configured
        .ask("log-level tls_sessiond=loud")
        .await
        .failed(1);
    assert!(err.contains("LOG_LEVEL_INVALID"), "{err}");
}

#[tokio::test]
async fn a_drain_ends_the_daemon() {
    let configured = Configured::start().await;
    let out = configured.ask("drain").await.ok();
    assert!(out.starts_with("draining; the daemon ends at 2"), "{out}");
    let (status, _) = configured.daemon.end().await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn the_configuration_is_printed_with_its_origins() {
    let configured = Configured::start().await;
    let text = configured.ask("config print").await.ok();
    let line = |key: &str| {
        let begin = format!("{key} = ");
        let found = text.lines().find(|line| line.starts_with(&begin));
        found.unwrap_or_else(|| panic!("{key}:\n{text}"))
    };
    assert!(line("log.level").contains("\"warn\""), "{text}");
    assert!(line("log.level").contains("daemon.toml:2"), "{text}");
    assert!(
        line("limits.sockets").ends_with("# built-in defaults"),
        "{text}"
    );
    assert!(line("listen.api").ends_with("# --set listen.api"), "{text}");
    let json = configured.ask("config print -o json").await.json();
    let status = configured.ask("status -o json").await.json();
    assert_eq!(json["digest"], status["configDigest"]);
    assert!(json["values"].as_array().unwrap().len() > 30);
}

#[tokio::test]
async fn changes_need_the_role_admin_for_all_contexts() {
    let house = House::with(&rule("local", "mail", "admin")).await;
    for args in ["reload", "drain", "log-level debug", "config print"] {
        let err = ask(&house.daemon, args).await.failed(1);
        assert!(err.contains("PERMISSION_DENIED"), "{args}: {err}");
    }
    let json = ask(&house.daemon, "status -o json").await.json();
    assert_eq!(json["contexts"].as_array().unwrap().len(), 1);
    assert_eq!(json["contexts"][0]["name"], "mail");
}
