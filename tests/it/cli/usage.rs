//! The command line without a daemon: help, wrong use, completions, manual pages, defaults.

use std::{fs, process::Stdio};

use tls_sessiond::config::Config;
use tokio::process::Command;

use super::{command, finish, run, shown};
use crate::binary::PATIENCE;

/// Every command, as words.
const COMMANDS: [&str; 35] = [
    "status",
    "top",
    "health",
    "connections",
    "connections list",
    "connections show",
    "connections free",
    "sessions",
    "sessions list",
    "sessions show",
    "sessions explain",
    "sessions remove",
    "sessions revoke",
    "sessions watch",
    "contexts",
    "contexts list",
    "contexts show",
    "keys",
    "keys status",
    "keys rotate",
    "keys fence",
    "keys agent",
    "misses",
    "failures",
    "owners",
    "doctor",
    "reload",
    "drain",
    "log-level",
    "config",
    "config print",
    "config check",
    "config defaults",
    "completions",
    "man",
];

#[tokio::test]
async fn every_command_has_examples_that_parse() {
    for words in COMMANDS {
        let args: Vec<_> = words.split(' ').chain(["--help"]).collect();
        let help = run(&args).await.ok();
        let (_, examples) = help
            .split_once("Examples:\n")
            .unwrap_or_else(|| panic!("{words}: no examples:\n{help}"));
        let examples = examples
            .lines()
            .map_while(|line| line.strip_prefix("  tls-sessiond "))
            .filter(|line| !line.contains(['$', '\'', '&', '>']));
        for example in examples {
            // A comment stands behind the arguments, after several spaces.
            let line = example.split(" | ").next().unwrap_or_default();
            let line = line.split("  ").next().unwrap_or_default();
            let args: Vec<_> = line.split(' ').chain(["--help"]).collect();
            let help = run(&args).await;
            assert_eq!(help.status, 0, "{words}: {example}: {help:?}");
        }
    }
}

#[tokio::test]
async fn wrong_use_has_status_2_and_names_the_mistake() {
    for (args, said) in [
        ("connections", "Usage:"),
        (
            "connections list --state closed",
            "[possible values: before, handshaking",
        ),
        (
            "connections list --role peer",
            "[possible values: client, server]",
        ),
        ("connections list --limit many", "--limit"),
        ("connections show xyz", "expected an id or its first digits"),
        (
            "health --proxy http://192.0.2.1:1",
            "another address of loopback",
        ),
        ("health --proxy --service x", "cannot be used with"),
        (
            "health --proxy --address tcp://127.0.0.1:1",
            "--address has no meaning for health --proxy",
        ),
        ("sessions revoke", "required arguments were not provided"),
        ("sessions revoke --all --uri x", "cannot be used with"),
        ("sessions revoke --all --before soon", "--before"),
        ("sessions revoke --all", "revoke needs --yes"),
        (
            "sessions watch --kind gone",
            "[possible values: added, hit, removed, missed]",
        ),
        ("sessions watch --reason bored", "possible values"),
        ("keys rotate", "<RING>"),
        (
            "keys rotate web --emergency",
            "rotate --emergency needs --yes",
        ),
        ("keys fence web", "<MEMBER>"),
        (
            "keys agent --ring web",
            "required arguments were not provided",
        ),
        ("keys agent --command true", "--ring <NAME>"),
        ("keys agent --ring web --nginx /run/x", "--pid-file <FILE>"),
        ("keys agent --ring web --haproxy /run/x", "--socket <PATH>"),
        (
            "keys agent --ring web --files /run/x",
            "--signal <PIDFILE:NAME>",
        ),
        (
            "keys agent --ring web --files /run/x --signal /run/p:KILL",
            "expected PIDFILE:HUP",
        ),
        (
            "keys agent --ring web --envoy /run/x --haproxy /run/y --socket /run/s",
            "cannot be used with",
        ),
        (
            "keys agent --ring web --envoy /run/x --admin http://192.0.2.1:1",
            "another address of loopback",
        ),
        (
            "keys agent --ring web --layout 32 --nginx /run/x --pid-file /run/p",
            "expected 48 or 80",
        ),
        (
            "keys agent --ring web --layout 79 --command true",
            "[possible values: 80, 48, 32]",
        ),
        (
            "keys agent --ring web --nginx /proc/x --pid-file /run/p",
            "/proc is on a disk",
        ),
        (
            "keys agent --ring web --nginx /run/x --pid-file /run/p --owner root",
            "expected UID:GID",
        ),
        ("misses --reason bored", "possible values"),
        ("status --timeout 0s", "expected more than 0"),
        (
            "status --timeout 5",
            "expected a number and ms, s, m, h or d",
        ),
        (
            "status --output xml",
            "[possible values: table, json, yaml]",
        ),
        ("top --interval 499ms", "expected at least 500ms"),
        ("top --interval 1s", "use tls-sessiond status -o json"),
        ("top --output json", "top has no form json or yaml"),
        ("status --address 127.0.0.1", "expected tcp://HOST:PORT"),
        (
            "status --address tcp://192.0.2.1:1",
            "use tls://192.0.2.1:1",
        ),
        (
            "status --address tls://localhost:1",
            "needs --ca, --certificate and --key",
        ),
        ("status --config x.toml", "--config has no meaning"),
        ("config print --set a=b", "--set has no meaning"),
        ("serve --output json", "--output has no meaning"),
        ("--tls-server-name x", "--tls-server-name has no meaning"),
        ("completions tcsh", "[possible values: bash, zsh, fish]"),
        ("man", "<DIR>"),
        ("config check", "check needs a file"),
    ] {
        let args: Vec<_> = args.split(' ').collect();
        let ran = run(&args).await;
        assert!(
            ran.status == 2 && ran.err.contains(said),
            "{args:?}: {ran:?}"
        );
        assert_eq!(ran.out, "", "{args:?}");
    }
}

#[tokio::test]
async fn options_stand_before_or_behind_the_command() {
    for args in [
        ["--address", "tcp://127.0.0.1:1", "contexts", "list"],
        ["contexts", "--address", "tcp://127.0.0.1:1", "list"],
        ["contexts", "list", "--address", "tcp://127.0.0.1:1"],
    ] {
        let err = run(&args).await.failed(69);
        assert!(err.contains("tcp://127.0.0.1:1"), "{err}");
    }
}

/// A variable of another program must not keep the daemon from starting.
#[tokio::test]
async fn serve_ignores_the_address_of_the_other_commands() {
    let mut check = command(&["check", "/nowhere/c.toml"]);
    let ran = finish(check.env("TLS_SESSIOND_ADDRESS", "\u{7f}nonsense")).await;
    assert_eq!(ran.status, 78, "{ran:?}");
    let mut status = command(&["status"]);
    let ran = finish(status.env("TLS_SESSIOND_ADDRESS", "nonsense")).await;
    assert_eq!(ran.status, 2, "{ran:?}");
}

#[tokio::test]
async fn a_key_that_was_pasted_is_not_printed() {
    let key = "-----BEGIN PRIVATE KEY-----MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEH";
    for args in [["connections", "show", key], ["status", "--address", key]] {
        let ran = run(&args).await;
        assert_eq!(ran.status, 2, "{ran:?}");
        assert!(!ran.err.contains("MIGHA"), "{ran:?}");
    }
}

#[tokio::test]
async fn printed_defaults_are_the_defaults() {
    let text = run(&["config", "defaults"]).await.ok();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("defaults.toml");
    fs::write(&file, &text).unwrap();
    let config = Config::load(Some(&file), std::iter::empty(), &[]).unwrap();
    assert_eq!(config.limits, Config::defaults().limits);
    assert!(text.lines().filter(|line| line.starts_with('#')).count() > 50);

    // The defaults name no certificate, which a context of a file needs.
    let checked = run(&["config", "check", &shown(&file)]).await;
    let same = run(&["check", &shown(&file)]).await;
    assert_eq!((checked.status, &checked.err), (same.status, &same.err));
    assert_eq!((checked.out, checked.status), (same.out, 0));
}

#[tokio::test]
async fn shells_complete_all_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).await.ok();
        for word in ["explain", "log-level", "tls-server-name"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let bash = run(&["completions", "bash"]).await.ok();
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("completions");
    fs::write(&script, bash).unwrap();
    let checked = Command::new("bash")
        .arg("-n")
        .arg(&script)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status();
    let checked = tokio::time::timeout(PATIENCE, checked).await.unwrap();
    assert!(checked.unwrap().success());
}

#[tokio::test]
async fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man1");
    run(&["man", &shown(&pages)]).await.ok();
    assert!(pages.join("tls-sessiond.1").exists());
    for words in COMMANDS {
        let name = format!("tls-sessiond-{}.1", words.replace(' ', "-"));
        let page = fs::read_to_string(pages.join(&name)).expect(&name);
        assert!(page.contains(".TH tls"), "{name}");
        assert!(page.contains("Examples:"), "{name}");
    }
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let err = run(&["man", &shown(&file)]).await.failed(1);
    assert!(err.contains("cannot write to"), "{err}");
}
