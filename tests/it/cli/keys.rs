//! `keys status`, `keys rotate` and `keys fence`, in every form of output.

use tokio::process::Child;

use super::{ask, command};
use crate::harness::TestDaemon;

/// A ring that rotates only if it is asked to.
const RING: &str = "[[ticket_keys]]\nname = \"web\"\nrotate = \"7d\"\nlifetime = \"1s\"\nmax_key_age = \"7d\"\nmembers_wait = \"1s\"\n";

/// Starts an agent whose server is a command of the shell.
fn agent(daemon: &TestDaemon, member: &str, script: &str) -> Child {
    let address = format!("tcp://{}", daemon.address);
    let args = ["keys", "agent", "--ring", "web", "--member", member];
    let mut agent = command(&args);
    agent.args(["--command", "/bin/sh", "-c", script]);
    agent.env("TLS_SESSIOND_ADDRESS", address).spawn().unwrap()
}

/// Waits until a member is as the words say, in the table of `keys status`.
async fn until_member(daemon: &TestDaemon, wanted: &[&str]) {
    daemon
        .until(&format!("{wanted:?}"), async |daemon| {
            let table = ask(daemon, "keys status web").await.ok();
            table
                .lines()
                .any(|line| line.split_whitespace().eq(wanted.iter().copied()))
        })
        .await;
}

#[tokio::test]
async fn rings_are_shown_with_their_members() {
    let daemon = TestDaemon::with(&format!("{RING}{}", RING.replace("\"web\"", "\"other\""))).await;
    let table = ask(&daemon, "keys status").await.ok();
    let rows: Vec<Vec<_>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0].join(" "),
        "RING CONTEXT PHASE EPOCH AGE INSTRUCTION MEMBERS LATE"
    );
    assert_eq!(rows[1][..4].join(" "), "web - idle 1");
    assert_eq!(rows[1][5..].join(" "), "1 0 0");
    assert_eq!(rows[2][..4].join(" "), "other - idle 1");
    assert_eq!(rows.len(), 3, "{table}");

    let _good = agent(&daemon, "good", "cat > /dev/null");
    let _bad = agent(&daemon, "bad", "echo 'no room' >&2; exit 3");
    until_member(
        &daemon,
        &[
            "web", "good", "list", "yes", "yes", "1", "-", "no", "local", "-",
        ],
    )
    .await;
    until_member(
        &daemon,
        &[
            "web", "bad", "list", "yes", "no", "0", "-", "no", "local", "/bin/sh:", "no", "room",
        ],
    )
    .await;
    let text = ask(&daemon, "keys status web").await.ok();
    for line in [
        "ring         web",
        "context      -",
        "instruction  1",
        "rotations    0",
        "fenced       0",
        "rotate       7d",
        "lifetime     1s",
        "max key age  7d",
        "saved        no",
        "daemons      this one alone",
        "tickets      none by this daemon",
        "MEMBERS",
        "RING  MEMBER  STYLE  ATTACHED  COUNTED  RUNS  BEHIND  LATE  OWNER  TROUBLE",
        "web   good    list   yes       yes         1  -       no    local  -",
        "web   bad     list   yes       no          0  -       no    local  /bin/sh: no room",
    ] {
        assert!(text.lines().any(|held| held == line), "{line}:\n{text}");
    }
    let all = ask(&daemon, "keys status -o json").await.json();
    assert_eq!(all["rings"][0]["name"], "web");
    assert_eq!(all["rings"][0]["members"][0]["name"], "bad");
    assert_eq!(all["rings"][1]["members"].as_array().unwrap().len(), 0);
    let one = ask(&daemon, "keys status web -o json").await.json();
    assert_eq!(one["phase"], "RING_PHASE_IDLE");
    assert_eq!(one["members"][0]["trouble"], "/bin/sh: no room");
    assert_eq!(one["members"][1]["style"], "TICKET_KEY_STYLE_LIST");
    let yaml = ask(&daemon, "keys status web -o yaml").await.ok();
    assert!(yaml.starts_with("name: web\ncontext: \"\"\n"), "{yaml}");

    let err = ask(&daemon, "keys status nowhere").await.failed(1);
    assert!(err.contains("NOT_FOUND RING_NOT_FOUND: "), "{err}");
    daemon.stop().await;
}

#[tokio::test]
async fn rotation_is_asked_for_and_members_are_fenced() {
    let daemon = TestDaemon::with(RING).await;
    let out = ask(&daemon, "keys rotate web").await.ok();
    let said = "ring web: a rotation is asked for; epoch ";
    assert!(out.starts_with(said), "{out}");
    assert!(
        out.ends_with("members that it waits for: 0; tls-sessiond keys status web shows them\n"),
        "{out}"
    );
    let after = ask(&daemon, "keys rotate web --emergency --yes -o json")
        .await
        .json();
    assert!(after["epoch"].as_str().unwrap().parse::<u64>().unwrap() >= 2);
    let out = ask(&daemon, "keys rotate web --emergency --yes").await.ok();
    let said = "ring web: all keys are replaced; epoch ";
    assert!(out.starts_with(said), "{out}");

    let agent = agent(&daemon, "one", "cat > /dev/null");
    daemon
        .until("the member counts", async |daemon| {
            let ring = ask(daemon, "keys status web -o json").await.json();
            ring["members"][0]["counted"] == true
        })
        .await;
    drop(agent);
    daemon
        .until("the member is away", async |daemon| {
            let ring = ask(daemon, "keys status web -o json").await.json();
            ring["members"][0]["attached"] == false
        })
        .await;
    let out = ask(&daemon, "keys fence web one").await.ok();
    let said = "ring web: it no longer waits for one; epoch ";
    assert!(out.starts_with(said), "{out}");
    let err = ask(&daemon, "keys fence web one").await.failed(1);
    assert!(err.contains("NOT_FOUND MEMBER_NOT_FOUND: "), "{err}");
    for args in ["keys rotate nowhere", "keys fence nowhere one"] {
        let err = ask(&daemon, args).await.failed(1);
        assert!(err.contains("RING_NOT_FOUND"), "{err}");
    }
    let ring = ask(&daemon, "keys status web -o json").await.json();
    assert_eq!(ring["fenced"], "1");
    daemon.stop().await;
}

#[tokio::test]
async fn agent_of_an_unknown_ring_ends_with_status_1() {
    let daemon = TestDaemon::with(RING).await;
    let args = "keys agent --ring nowhere --command /bin/true";
    let ran = ask(&daemon, args).await;
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(ran.err.contains("NOT_FOUND RING_NOT_FOUND: "), "{ran:?}");
    let ran = ask(
        &daemon,
        "keys agent --ring web --member a\tb --command /bin/true",
    )
    .await;
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(ran.err.contains("MEMBER_INVALID"), "{ran:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn commands_of_the_document_parse() {
    let document = include_str!("../../../docs/ticket-keys.md");
    let commands = document
        .lines()
        .filter_map(|line| line.strip_prefix("$ tls-sessiond "));
    let mut seen = 0;
    for line in commands {
        seen += 1;
        let mut args = Vec::new();
        // Every second part is in quotes.
        for (place, part) in line.split('\'').enumerate() {
            match place % 2 {
                0 => args.extend(part.split_whitespace()),
                _ => args.push(part),
            }
        }
        args.push("--help");
        let help = super::run(&args).await;
        assert_eq!(help.status, 0, "{line}: {help:?}");
    }
    assert!(seen >= 4, "{seen}");
}
