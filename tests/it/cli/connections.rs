//! `connections list` and `connections show`.

use tls_sessiond_proto as pb;

use super::ask;
use crate::{
    calls::{Worker, worker},
    harness::{TestDaemon, new},
};

/// Text that would act on a terminal: a colour, a new title, a line end, and text to the left.
const HOSTILE: &str = "\x1b[31mred\x1b]0;x\x07\n\u{9b}2J\u{202e}";

#[tokio::test]
async fn connections_are_listed_and_filtered() {
    let daemon = TestDaemon::start().await;
    let client = daemon.open(pb::Role::Client).await;
    let server = daemon.open(pb::Role::Server).await;
    daemon.handshake(&client, &server).await;
    let idle = daemon.open(pb::Role::Server).await;

    let table = ask(&daemon, "connections list").await.ok();
    let rows: Vec<Vec<_>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0][..5], ["ID", "CONTEXT", "ROLE", "ENGINE", "STATE"]);
    assert_eq!(
        rows[1][..7],
        [
            &*client,
            "default",
            "client",
            "daemon",
            "established",
            "TLS",
            "1.3"
        ]
    );
    assert_eq!(
        rows[3][..6],
        [&*idle, "default", "server", "daemon", "before", "-"]
    );
    assert_eq!(rows.len(), 4);

    for (filter, wanted) in [
        ("", vec![&client, &server, &idle]),
        (" --role server", vec![&server, &idle]),
        (" --state established", vec![&client, &server]),
        (" --state established --role client", vec![&client]),
        (" --state failed", vec![]),
        (" --owner local", vec![&client, &server, &idle]),
        (" --owner uid:9", vec![]),
        (" --context default", vec![&client, &server, &idle]),
    ] {
        let json = ask(&daemon, &format!("connections list -o json{filter}"))
            .await
            .json();
        let found = json["connections"].as_array().unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|held| held["id"].as_str().unwrap())
            .collect();
        assert_eq!(found, wanted, "{filter}");
    }
    let err = ask(&daemon, "connections list --context nowhere")
        .await
        .failed(1);
    assert!(err.contains("CONTEXT_NOT_FOUND"), "{err}");

    let ran = ask(&daemon, "connections list --limit 2 -o json").await;
    assert_eq!(ran.status, 0);
    assert!(ran.err.contains("only the first 2 connections"), "{ran:?}");
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["connections"].as_array().unwrap().len(), 2);
    ask(&daemon, "connections list --limit 3").await.ok();
}

#[tokio::test]
async fn a_connection_is_shown_by_any_spelling_of_its_id() {
    let daemon = TestDaemon::start().await;
    let id = daemon.open(pb::Role::Client).await;
    let bytes: Vec<_> = (0..32).step_by(2).map(|at| &id[at..at + 2]).collect();
    for spelled in [
        id.clone(),
        id.to_uppercase(),
        bytes.join(":"),
        id[..7].to_owned(),
        id[..1].to_uppercase(),
    ] {
        let json = ask(&daemon, &format!("connections show {spelled} -o json"))
            .await
            .json();
        assert_eq!(json["id"], id, "{spelled}");
        assert_eq!(json["state"], "CONNECTION_STATE_BEFORE");
        assert_eq!(json["serverName"], "localhost");
    }
    let text = ask(&daemon, &format!("connections show {id}")).await.ok();
    for line in [
        "role            client",
        "state           before",
        "owner           local",
    ] {
        assert!(text.lines().any(|held| held == line), "{line}:\n{text}");
    }
    let yaml = ask(&daemon, &format!("connections show {id} -o yaml"))
        .await
        .ok();
    assert!(
        yaml.contains("\nstate: CONNECTION_STATE_BEFORE\n"),
        "{yaml}"
    );

    let other = if id.starts_with('0') { "1" } else { "0" };
    let err = ask(&daemon, &format!("connections show {other}"))
        .await
        .failed(1);
    assert!(err.contains("no connection has the id"), "{err}");
    let whole = other.repeat(32);
    let err = ask(&daemon, &format!("connections show {whole}"))
        .await
        .failed(1);
    assert!(err.contains("CONNECTION_NOT_FOUND"), "{err}");
}

/// Ids are random, so seventeen connections have two with the same first digit. More than a page of
/// them has that in an error that is cut.
#[tokio::test]
async fn lists_have_all_pages_and_ambiguous_ids_have_candidates() {
    let daemon = TestDaemon::start().await;
    let worker_calls = Worker(&daemon);
    for _ in 0..1001 {
        worker_calls.open(worker(pb::Role::Server)).await;
    }
    let last = daemon.open(pb::Role::Client).await;
    let json = ask(&daemon, "connections list -o json --limit 5000")
        .await
        .json();
    let all = json["connections"].as_array().unwrap();
    assert_eq!(all.len(), 1002);
    let json = ask(&daemon, "connections list -o json --role client")
        .await
        .json();
    assert_eq!(json["connections"][0]["id"], last);

    let first = &last[..1];
    let same = all
        .iter()
        .filter(|held| held["id"].as_str().unwrap().starts_with(first))
        .count();
    let err = ask(&daemon, &format!("connections show {first}"))
        .await
        .failed(1);
    assert!(err.contains(&format!("names {same} connections")), "{err}");
    assert!(err.contains(&format!("and {} more", same - 10)), "{err}");
}

#[tokio::test]
async fn text_of_a_peer_does_not_act_on_the_terminal() {
    let daemon = TestDaemon::start().await;
    let request = pb::NewRequest {
        peer_address: HOSTILE.into(),
        ..new("", pb::Role::Client)
    };
    let connection = Worker(&daemon).open(request).await;
    assert_eq!(
        connection.peer_address, HOSTILE,
        "the daemon changes nothing"
    );
    let is_hazardous = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
    for args in ["connections list", "connections show"] {
        for form in ["table", "json", "yaml"] {
            let id = if args.ends_with("show") {
                format!(" {}", connection.id)
            } else {
                String::new()
            };
            let out = ask(&daemon, &format!("{args}{id} -o {form}")).await.ok();
            assert!(!out.contains(is_hazardous), "{args} {form}: {out:?}");
            assert!(out.contains("[31mred"), "{args} {form}: {out:?}");
        }
    }
    let table = ask(&daemon, "connections list").await.ok();
    assert_eq!(table.lines().count(), 2, "{table:?}");
    let json = ask(&daemon, "connections list -o json").await.json();
    assert_eq!(json["connections"][0]["peerAddress"], HOSTILE);
}
