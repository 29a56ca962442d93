//! Reloads of a configuration that shrank: an empty file, a file cut while it was written, a
//! removed key. A reload never loosens by omission.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use tls_sessiond::config::Config;
use tls_sessiond_core::access::AccessRole;
use tls_sessiond_proto as pb;
use tokio::process::Command;

use crate::{
    harness::TestDaemon,
    pki::{self, Authority},
    process::{PATIENCE, Process},
};

/// Writes `ca.pem`, `tls.*`, and a bundle of two authorities.
fn files() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let bundle = [Authority::new("one").pem, Authority::new("two").pem].concat();
    fs::write(folder.path().join("bundle.pem"), bundle).unwrap();
    folder
}

/// A realistic configuration: rules first, then contexts, each with keys that differ from their
/// defaults.
const REALISTIC: &str = r#"# Rules first: the first rule that matches counts.
[[access]]
identity = "uid:4000000000"
contexts = ["*"]
role = "admin"

[[access]]
identity = "spiffe://example.org/ns/web/*"
contexts = ["web"]
role = "worker"

[[access]]
identity = "local"
contexts = ["web"]
role = "observer"

[drain]
timeout = "10s"

[limits]
connections_per_owner = 100
streams = 50

# The public site.
[[context]]
name = "web"
certificate = "tls.crt"
key = "tls.key"
ca = "bundle.pem"
client_auth = "require"
versions = ["1.3"]
cipher_suites = [
    "TLS_AES_256_GCM_SHA384",
]
close_policy = "written"
session_timeout = "10m"
idle_timeout = "1m"

[[context]]
name = "mail"
certificate = ["tls.crt"]
key = ["tls.key"]
ca = "ca.pem"
client_auth = "request"
alpn = ["imap"]
tickets = 1
client_certificates = [
    { certificate = "tls.crt", key = "tls.key" },
]
"#;

/// Returns the configuration with the contexts first. A cut file then loses its rules before its
/// contexts.
fn contexts_first() -> String {
    let (rules, contexts) = REALISTIC.split_once("[drain]").unwrap();
    format!("[drain]{contexts}\n{rules}")
}

fn load(folder: &Path, text: &str) -> Result<Config, String> {
    let file = folder.join("daemon.toml");
    fs::write(&file, text).unwrap();
    let set = ["listen.api=[\"tcp://127.0.0.1:0\"]".to_owned()];
    Config::load(Some(&file), std::iter::empty(), &set).map_err(|err| err.to_string())
}

/// Asserts that nothing is looser than before: every context equals the running one of its name, no
/// name is new, and the rules are the first of the rules that ran.
fn assert_as_strict(now: &Config, before: &Config, what: &str) {
    assert!(
        !now.access.is_empty() || before.access.is_empty(),
        "{what}: the rules were removed"
    );
    assert!(
        before.access.starts_with(&now.access),
        "{what}: other rules: {:?}",
        now.access
    );
    for context in &now.contexts {
        let old = before.contexts.iter().find(|old| old.name == context.name);
        let old = old.unwrap_or_else(|| panic!("{what}: `{}` is new", context.name));
        assert_eq!(context, old, "{what}");
    }
}

// Invariant 25.
#[tokio::test]
async fn file_cut_at_any_byte_is_refused_or_as_strict() {
    let folder = files();
    let folder = folder.path();
    for text in [REALISTIC.to_owned(), contexts_first()] {
        let whole = load(folder, &text).unwrap();
        let daemon = TestDaemon::run(&whole).await;
        let (mut refused, mut taken) = (0, 0);
        for length in 0..=text.len() {
            let Ok(cut) = load(folder, &text[..length]) else {
                refused += 1;
                continue;
            };
            let what = format!(
                "cut behind {:?}",
                text[..length].lines().next_back().unwrap_or_default()
            );
            if daemon.apply(&cut).is_err() {
                refused += 1;
                continue;
            }
            taken += 1;
            assert_as_strict(&cut, &whole, &what);
            // Then the whole configuration again, because it adds back the contexts that the cut
            // file removed.
            daemon.apply(&whole).unwrap();
        }
        assert!(
            refused > text.len() / 2,
            "{refused} of {} were refused",
            text.len()
        );
        assert!(taken > 2, "a file without its last context was refused");
        daemon.stop().await;
    }
}

/// The binary with a configuration file and a log file.
pub(crate) struct Reloading {
    daemon: Process,
    file: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) folder: TempDir,
    /// Reloads that the log has reported.
    told: usize,
}

impl Reloading {
    async fn start(text: &str) -> Self {
        Self::over(files(), text).await
    }

    /// Starts the daemon with the files of this folder.
    pub(crate) async fn over(folder: TempDir, text: &str) -> Self {
        let (file, log) = (folder.path().join("daemon.toml"), folder.path().join("log"));
        fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        command.env_clear().arg("--config").arg(&file);
        command.args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"]);
        let mut daemon = Process::logging(&mut command, File::create(&log).unwrap());
        daemon.says("listening on tcp://").await;
        Self {
            daemon,
            file,
            log,
            folder,
            told: 0,
        }
    }

    /// Reloads with this text. Returns the log line about the result.
    async fn reload(&mut self, text: &str) -> String {
        fs::write(&self.file, text).unwrap();
        self.hangup().await
    }

    /// Reloads with the files as they are now. Returns the log line about the result.
    pub(crate) async fn hangup(&mut self) -> String {
        self.daemon.signal("HUP").await;
        let wait = async {
            loop {
                let log = fs::read_to_string(&self.log).unwrap();
                // A read may see the beginning of a line that the daemon is writing.
                let whole = log
                    .split_inclusive('\n')
                    .filter_map(|line| line.strip_suffix('\n'));
                let mut lines = whole.filter(|line| {
                    line.contains("configuration reloaded") || line.contains("reload refused")
                });
                if let Some(line) = lines.nth(self.told) {
                    return line.to_owned();
                }
                tokio::task::yield_now().await;
            }
        };
        let line = tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the log has no line about the reload");
        self.told += 1;
        line
    }

    pub(crate) async fn end(self) {
        self.daemon.signal("TERM").await;
        assert!(self.daemon.succeeds().await);
    }
}

/// Returns whether a log line says that the new configuration applies.
pub(crate) fn taken(line: &str) -> bool {
    line.contains("configuration reloaded")
}

// Invariant 25.
#[tokio::test]
async fn file_cut_at_any_line_never_loosens_the_daemon() {
    let mut running = Reloading::start(REALISTIC).await;
    let lines: Vec<_> = REALISTIC.split_inclusive('\n').collect();
    let whole = load(running.folder.path(), REALISTIC).unwrap();
    for kept in 0..lines.len() {
        let text = lines[..kept].concat();
        let line = running.reload(&text).await;
        if taken(&line) {
            let cut = load(running.folder.path(), &text).unwrap();
            assert_as_strict(&cut, &whole, &format!("{kept} lines"));
            assert!(taken(&running.reload(REALISTIC).await));
        }
    }
    running.end().await;
}

#[tokio::test]
async fn an_empty_file_is_refused_and_changes_nothing() {
    let mut running = Reloading::start(REALISTIC).await;
    for text in ["", "\n", "# nothing\n", "[drain]\n", "[[context]]\n"] {
        let line = running.reload(text).await;
        assert!(!taken(&line) && line.contains("daemon.toml:1: "), "{line}");
    }
    let line = running.reload("").await;
    for word in [
        "access: not set",
        "3 rules",
        "write `access = []`",
        "context",
        "drain.timeout",
    ] {
        assert!(line.contains(word), "{word} is missing: {line}");
    }
    assert!(taken(&running.reload(REALISTIC).await));
    running.end().await;
}

#[tokio::test]
async fn rules_of_access_are_removed_only_explicitly() {
    let mut running = Reloading::start(REALISTIC).await;
    let (_, rest) = REALISTIC.split_once("[drain]").unwrap();
    let rest = format!("[drain]{rest}");
    let line = running.reload(&rest).await;
    assert!(!taken(&line) && line.contains("access: not set"), "{line}");
    // Removing one rule of three is an edit, not an omission.
    let rule = "[[access]]\nidentity = \"local\"\ncontexts = [\"web\"]\nrole = \"observer\"\n";
    assert!(taken(&running.reload(&format!("{rule}{rest}")).await));
    assert!(!taken(&running.reload(&rest).await));
    assert!(taken(
        &running.reload(&format!("access = []\n{rest}")).await
    ));
    // A key at its default may be left out.
    assert!(taken(&running.reload(&rest).await));
    running.end().await;
}

#[tokio::test]
async fn the_built_in_context_returns_only_explicitly() {
    let context = "[[context]]\nname = \"web\"\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n";
    let mut running = Reloading::start(context).await;
    let line = running.reload("").await;
    assert!(!taken(&line) && line.contains("context: not set"), "{line}");
    assert!(
        line.contains("`web`") && line.contains("write `context = []`"),
        "{line}"
    );
    let line = running.reload("context = []\n").await;
    assert!(taken(&line) && line.contains("\"removed\":1"), "{line}");
    assert!(
        taken(&running.reload("").await),
        "the built-in context is running already"
    );
    assert!(taken(&running.reload(context).await));
    running.end().await;
}

#[tokio::test]
async fn keys_beside_the_file_make_no_built_in_context() {
    let folder = files();
    let load = |text: &str| {
        let file = folder.path().join("daemon.toml");
        fs::write(&file, text).unwrap();
        let set = ["listen.api=[\"tcp://127.0.0.1:0\"]", "context.0.tickets=4"].map(str::to_owned);
        Config::load(Some(&file), std::iter::empty(), &set)
    };
    // A context without a certificate, which cannot be a server.
    let daemon = TestDaemon::run(&load("[[context]]\n").unwrap()).await;
    let refused = daemon.apply(&load("").unwrap()).unwrap_err().to_string();
    assert!(
        refused.contains("the file defines no context any more"),
        "{refused}"
    );
    let explicit = load("context = []\n").unwrap();
    assert!(explicit.contexts[0].self_made && explicit.contexts[0].tickets == 4);
    daemon.apply(&explicit).unwrap();
    daemon.apply(&load("").unwrap()).unwrap();
    daemon.stop().await;
}

#[tokio::test]
async fn client_auth_is_weakened_only_explicitly() {
    let mut running = Reloading::start(REALISTIC).await;
    let without = REALISTIC.replace("client_auth = \"require\"\n", "");
    let line = running.reload(&without).await;
    assert!(!taken(&line), "{line}");
    for word in [
        "daemon.toml:",
        "context[0].client_auth: not set",
        "`\\\"require\\\"`",
        "write the key",
    ] {
        assert!(line.contains(word), "{word} is missing: {line}");
    }
    let explicit = REALISTIC.replace("client_auth = \"require\"", "client_auth = \"none\"");
    assert!(taken(&running.reload(&explicit).await));
    // The running value is the default now, so the key may be left out.
    assert!(taken(&running.reload(&without).await));
    running.end().await;
}

// Invariant 25.
#[tokio::test]
async fn each_key_that_falls_back_to_its_default_is_named() {
    let folder = files();
    let folder = folder.path();
    let daemon = TestDaemon::run(&load(folder, REALISTIC).unwrap()).await;
    let mut tried = 0;
    for line in REALISTIC
        .lines()
        .filter(|line| line.contains(" = ") && !line.starts_with([' ', '#']))
    {
        let (key, value) = line.split_once(" = ").unwrap();
        // Keys of rules are required. A separate test cuts the file within lists over several
        // lines.
        if ["identity", "contexts", "role", "name"].contains(&key) || value == "[" {
            continue;
        }
        tried += 1;
        let refused = match load(folder, &REALISTIC.replacen(&format!("{line}\n"), "", 1)) {
            // A certificate without its key.
            Err(refused) => refused,
            Ok(config) => {
                let refused = daemon.apply(&config).unwrap_err().to_string();
                assert!(
                    refused.contains("not set, and the running configuration has"),
                    "{refused}"
                );
                refused
            }
        };
        assert!(
            refused.contains(&format!("{key}: ")) || key == "certificate",
            "{line}: {refused}"
        );
    }
    assert!(tried >= 16, "{tried}");
    daemon.apply(&load(folder, REALISTIC).unwrap()).unwrap();
    daemon.stop().await;
}

#[tokio::test]
async fn reload_counts_removed_contexts_and_adds_new_ones() {
    let mut running = Reloading::start(REALISTIC).await;
    // Contexts are matched by name, not by position.
    let web = REALISTIC.find("[[context]]").unwrap();
    let mail = REALISTIC.rfind("[[context]]").unwrap();
    let swapped = [&REALISTIC[..web], &REALISTIC[mail..], &REALISTIC[web..mail]].concat();
    let line = running.reload(&swapped).await;
    assert!(taken(&line) && line.contains("\"removed\":0"), "{line}");
    let line = running.reload(&REALISTIC[..mail]).await;
    assert!(
        taken(&line) && line.contains("\"removed\":1") && line.contains("\"contexts\":1"),
        "{line}"
    );
    // A context of a new name is added as it is written.
    let renamed = REALISTIC[..mail].replace("\"web\"", "\"site\"");
    let line = running
        .reload(&renamed.replace("client_auth = \"require\"\n", ""))
        .await;
    assert!(taken(&line) && line.contains("\"removed\":1"), "{line}");
    // A context without a name would take the name `default`.
    let line = running.reload(&format!("{renamed}[[context]]\n")).await;
    assert!(
        !taken(&line) && line.contains("context[1].name: a context without a name"),
        "{line}"
    );
    running.end().await;
}

#[tokio::test]
async fn reload_is_compared_with_the_running_configuration() {
    let folder = files();
    let folder = folder.path();
    let start = "[[context]]\nname = \"a\"\n";
    let daemon = TestDaemon::run(&load(folder, start).unwrap()).await;
    let stricter = format!(
        "[[access]]\nidentity = \"local\"\ncontexts = [\"*\"]\nrole = \"{}\"\n{start}versions = [\"1.3\"]\n",
        AccessRole::Observer
    );
    daemon.apply(&load(folder, &stricter).unwrap()).unwrap();
    let refused = daemon
        .apply(&load(folder, start).unwrap())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("access: not set"), "{refused}");
    let request = pb::NewRequest {
        context: "a".into(),
        role: pb::Role::Client.into(),
        ..Default::default()
    };
    assert!(
        daemon.connections().new_connection(request).await.is_err(),
        "an observer makes no connection"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn truncated_ca_bundle_trusts_fewer_or_is_refused() {
    let text = REALISTIC.to_owned();
    let mut running = Reloading::start(&text).await;
    let bundle = running.folder.path().join("bundle.pem");
    let whole = fs::read_to_string(&bundle).unwrap();
    let lines: Vec<_> = whole.split_inclusive('\n').collect();
    let mut good = Vec::new();
    for kept in 0..=lines.len() {
        fs::write(&bundle, lines[..kept].concat()).unwrap();
        let line = running.hangup().await;
        if taken(&line) {
            good.push(kept);
        } else {
            assert!(line.contains("context[0].ca: "), "{line}");
        }
    }
    let ends: Vec<_> = (1..=lines.len())
        .filter(|kept| lines[kept - 1].starts_with("-----END"))
        .collect();
    let between = |kept: &usize| ends.contains(kept) || lines[kept - 1].trim().is_empty();
    assert!(
        good.len() >= 2 && good.iter().all(between),
        "{good:?} of {}",
        lines.len()
    );
    running.end().await;
}

#[tokio::test]
async fn start_applies_no_rule_of_omission() {
    let mut running = Reloading::start(REALISTIC).await;
    assert!(!taken(&running.reload("").await));
    running.end().await;
    let mut again = Reloading::start("").await;
    assert!(taken(&again.reload("").await));
    again.end().await;
}

#[tokio::test]
async fn a_context_cut_before_its_name_replaces_no_default() {
    let folder = files();
    let context = |name: &str, client_auth: &str| {
        let path = folder.path().display();
        format!(
            "[[context]]\ncertificate = \"{path}/tls.crt\"\nkey = \"{path}/tls.key\"\nca = \"{path}/ca.pem\"\n\
             client_auth = \"{client_auth}\"\nname = \"{name}\"\n"
        )
    };
    let whole = context("public", "none") + &context("default", "require");
    let daemon = TestDaemon::run(&load(folder.path(), &whole).unwrap()).await;
    let lines: Vec<_> = whole.lines().collect();
    for count in 0..lines.len() {
        let cut = lines[..count].join("\n");
        let Ok(config) = load(folder.path(), &cut) else {
            continue;
        };
        if daemon.apply(&config).is_ok() {
            let now = daemon.core.registry();
            let name = now.get("default").map(|context| context.name.to_string());
            assert_eq!(name, None, "cut after line {count}: {cut}");
        }
    }
    // A running context without a name needs none.
    let path = folder.path().display();
    let nameless = format!(
        "[[context]]\ncertificate = \"{path}/tls.crt\"\nkey = \"{path}/tls.key\"\nca = \"{path}/ca.pem\"\n"
    );
    let nameless = load(folder.path(), &nameless).unwrap();
    TestDaemon::run(&nameless).await.apply(&nameless).unwrap();
}

#[test]
fn keys_set_by_index_stay_with_their_context() {
    let folder = files();
    let file = folder.path().join("c.toml");
    let context = |name: &str| {
        format!(
            "[[context]]\nname = \"{name}\"\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\nca = \"ca.pem\"\nclient_auth = \"none\"\n"
        )
    };
    let set = ["context.0.client_auth=require".to_owned()];
    let load = |text: String| {
        fs::write(&file, text).unwrap();
        Config::load(Some(&file), std::iter::empty(), &set).unwrap()
    };
    let running = load(context("web") + &context("mail"));
    let error = load(context("mail") + &context("web"))
        .can_follow(&running)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("context[0].name") && error.contains("set outside the file"),
        "{error}"
    );
    load(context("web") + &context("other"))
        .can_follow(&running)
        .unwrap();
}
