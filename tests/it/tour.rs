//! The tour of README.md, word for word, with the real binary, the real grpcurl, and bash.

use std::{env, path::Path, process::Stdio};

use tokio::{process::Command, time::timeout};

use crate::binary::{Binary, PATIENCE};

const README: &str = include_str!("../../README.md");
/// The address of the daemon in the README.
const ADDRESS: &str = "127.0.0.1:50551";

/// Returns the blocks behind `<!-- tour -->`, in order.
fn blocks() -> Vec<&'static str> {
    README
        .split("<!-- tour -->\n")
        .skip(1)
        .map(|after| {
            let block = after
                .strip_prefix("```sh\n")
                .expect("a tour mark stands before a ```sh block");
            block.split_once("\n```\n").expect("the block ends").0
        })
        .collect()
}

/// Runs the blocks as one script and returns the output of each.
async fn run(address: &str) -> Vec<String> {
    const MARK: &str = "==== next block ====";
    let script = blocks()
        .join(&format!("\nprintf '\\n{MARK}\\n'\n"))
        .replace(ADDRESS, address);
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers/bin");
    let path = format!(
        "{}:{}",
        peers.display(),
        env::var("PATH").unwrap_or_default()
    );
    let found = Command::new("bash")
        .args(["-c", "command -v grpcurl"])
        .env("PATH", &path)
        .output()
        .await
        .unwrap();
    assert!(
        found.status.success(),
        "grpcurl is missing: `make test` installs it into .peers/bin"
    );

    let bash = Command::new("bash")
        .args(["-eu", "-o", "pipefail", "-c", &script])
        .env("PATH", &path)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, bash)
        .await
        .expect("the tour hangs")
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{printed}\n{errors}",
        output.status
    );
    assert_eq!(errors, "", "the tour printed errors");
    printed.split(MARK).map(str::to_owned).collect()
}

// Invariant 12.
#[tokio::test]
async fn tour_of_the_readme_runs_word_for_word() {
    let daemon = Binary::start(&[]).await;
    let printed = run(&daemon.address).await;
    let [made, shaken, hello, closed, resumed, freed, told, revoked] = printed.as_slice() else {
        panic!(
            "{} blocks: this test knows what eight of them print",
            printed.len()
        );
    };
    let says = |text: &str, wanted: &[&str]| {
        wanted
            .iter()
            .for_each(|wanted| assert!(text.contains(wanted), "no {wanted} in\n{text}"));
    };

    assert_eq!(made.trim(), "");
    says(
        shaken,
        &[
            "CONNECTION_STATE_ESTABLISHED",
            "PROTOCOL_VERSION_TLS_1_3",
            "\"certificateSha256\"",
        ],
    );
    assert!(!shaken.contains("sessionReused"), "{shaken}");
    assert_eq!(hello.trim(), "hello");
    says(
        closed,
        &[
            "SHUTDOWN_STATUS_COMPLETE",
            "\"received\": true",
            "CLOSE_EVIDENCE_WRITTEN",
        ],
    );

    says(
        resumed,
        &[
            "\"sessionReused\": true",
            "\"pinnedVersion\": \"PROTOCOL_VERSION_TLS_1_3\"",
        ],
    );
    assert_eq!(
        resumed.matches("CONNECTION_STATE_BEFORE").count(),
        2,
        "{resumed}"
    );
    assert!(!resumed.contains("removedSessions"), "{resumed}");

    says(freed, &["CLOSE_EVIDENCE_ASSERTED"]);
    assert_eq!(
        freed.matches("REMOVAL_REASON_UNCLOSED").count(),
        1,
        "only the open side loses its ticket: {freed}"
    );
    assert!(
        freed.find("CLOSE_EVIDENCE_ASSERTED") < freed.find("REMOVAL_REASON_UNCLOSED"),
        "{freed}"
    );

    assert_eq!(
        told.matches("\"role\": \"ROLE_SERVER\"").count(),
        1,
        "{told}"
    );
    assert_eq!(
        told.matches("\"role\": \"ROLE_CLIENT\"").count(),
        2,
        "{told}"
    );
    for service in ["ConnectionService", "SessionService", "ContextService"] {
        says(told, &[&format!("\ntls.sessiond.v1.{service}\n")]);
    }
    says(
        told,
        &[
            "// SSL_clear(3): makes the object ready",
            "returns ( .tls.sessiond.v1.ClearResponse )",
        ],
    );

    says(
        revoked,
        &[
            "\"removed\": \"3\"",
            "MISS_REASON_REVOKED",
            "REMOVAL_REASON_REVOKED",
            "RevokeSessions",
        ],
    );
}
