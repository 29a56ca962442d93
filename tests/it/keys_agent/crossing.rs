//! Clients that return to another server while the keys rotate.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, UnixStream},
    process::Command,
    time::{Instant, timeout},
};

use super::{
    Agent, GET, LIFETIME, RING, free_port, has_no_key, member, memory,
    replica::{Kind, Replica, go},
    ring, text, until_ring,
};
use crate::{
    harness::TestDaemon,
    process::{PATIENCE, peer, run},
};

const CLIENTS: [&str; 3] = ["openssl", "gnutls", "go"];
/// The rotations that a fleet goes through.
const ROTATIONS: u64 = 10;

/// Connects a client to one server, and then to another. Returns whether the second connection was resumed.
async fn returns(
    client: &str,
    version: &str,
    listener: &TcpListener,
    from: &Replica,
    to: &Replica,
) -> bool {
    let address = listener.local_addr().unwrap();
    let mut command = match client {
        "openssl" => {
            let version = if version == "1.2" {
                "-tls1_2"
            } else {
                "-tls1_3"
            };
            let file = text(&from.folder.join("session"));
            assert!(!from.resumes(version, ["-sess_out", &file]).await);
            return to.resumes(version, ["-sess_in", &file]).await;
        }
        "gnutls" => {
            let mut command = Command::new("gnutls-cli");
            let priority = format!("NORMAL:-VERS-ALL:+VERS-TLS{version}");
            command.args(["--resume", "--insecure", "--priority", &priority]);
            command.args(["--port", &address.port().to_string(), "127.0.0.1"]);
            command
        }
        _ => {
            let mut command = peer("go-resuming");
            command.args([&address.to_string(), version]);
            command
        }
    };
    // Both connections of these clients go to one address.
    let carry = async {
        for server in [from, to] {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = UnixStream::connect(&server.socket).await.unwrap();
            // A client may close its socket with a close_notify unread, which is a reset.
            drop(copy_bidirectional(&mut near, &mut far).await);
        }
    };
    let ((said, good), ()) = tokio::join!(run(&mut command, GET), carry);
    assert!(good, "{client} from {} to {}: {said}", from.name, to.name);
    match client {
        "gnutls" => said.contains("This is a resumed session"),
        _ => said.contains("second resumed: true"),
    }
}

#[tokio::test]
async fn tickets_cross_to_another_server_over_rotations() {
    let daemon = TestDaemon::by_real_time(RING).await;
    let address = format!("tcp://{}", daemon.address);
    let folder = memory();
    let kinds = [
        ("nginx-1", Kind::Nginx),
        ("nginx-2", Kind::Nginx),
        ("haproxy-1", Kind::Haproxy),
        ("haproxy-2", Kind::Haproxy),
        ("envoy-1", Kind::Envoy(free_port())),
        ("envoy-2", Kind::Envoy(free_port())),
        ("go-1", Kind::Go),
        ("go-2", Kind::Go),
    ];
    let mut fleet = Vec::new();
    let mut agents = Vec::new();
    for (name, kind) in kinds {
        let mut replica = Replica::new(kind, name, folder.path());
        agents.push(replica.agent(&address));
        replica.start().await;
        fleet.push(replica);
    }
    until_ring(&daemon.channel, "all of them count", |ring| {
        ring.members.iter().filter(|member| member.counted).count() == kinds.len()
    })
    .await;

    // Clients return to the other server of the same kind, over ten rotations. A server takes no ticket of another kind,
    // whose session id context is another one (SSL_CTX_set_session_id_context(3)).
    let old = |replica: &Replica| text(&replica.path("old"));
    for replica in &fleet {
        let session = ["-sess_out", &old(replica)];
        assert!(!replica.resumes("-tls1_3", session).await);
        let session = ["-sess_in", &old(replica)];
        assert!(replica.resumes("-tls1_3", session).await);
    }
    let first = ring(&daemon.channel).await.rotations;
    let mut keys = BTreeSet::new();
    let (mut crossed, mut pairs, mut turn) = (0, BTreeSet::new(), 0);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ways = CLIENTS.len() * 2 * fleet.len() - 2;
    let crosses = async {
        while ring(&daemon.channel).await.rotations < first + ROTATIONS || pairs.len() < ways {
            let version = ["1.2", "1.3"][turn % 2];
            let client = CLIENTS[turn / 2 % CLIENTS.len()];
            let from = turn / 2 / CLIENTS.len() % fleet.len();
            let to = from ^ 1;
            turn += 1;
            // Envoy sends tickets of TLS 1.3 with its first answer. gnutls-cli asks nothing before it resumes.
            if (client, version) == ("gnutls", "1.3") && fleet[from].name.starts_with("envoy") {
                continue;
            }
            fleet.iter().for_each(|replica| replica.collect(&mut keys));
            let made = Instant::now();
            let resumed = returns(client, version, &listener, &fleet[from], &fleet[to]).await;
            // A client that was delayed for longer has a ticket that has expired.
            if made.elapsed() < LIFETIME {
                assert!(
                    resumed,
                    "{client} with {version} from {} to {}: {:?}",
                    fleet[from].name,
                    fleet[to].name,
                    ring(&daemon.channel).await
                );
                crossed += 1;
                pairs.insert((from, client, version));
            }
        }
    };
    timeout(4 * PATIENCE, crosses)
        .await
        .expect("ten rotations, with each client");
    let now = ring(&daemon.channel).await;
    println!(
        "{crossed} tickets crossed, {} rotations",
        now.rotations - first
    );
    assert_eq!(now.fenced, 0, "{now:?}");
    // The servers have dropped the first keys: an agent that only says so would be seen here.
    for replica in &fleet {
        let session = ["-sess_in", &old(replica)];
        let resumed = replica.resumes("-tls1_3", session).await;
        assert!(!resumed, "{} has its first key", replica.name);
    }

    // A HAProxy that starts again reads the file, and runs what the others run.
    drop(fleet[2].process.take());
    fs::remove_file(&fleet[2].socket).unwrap();
    fleet[2].start().await;
    let file = text(&folder.path().join("session"));
    fleet[3].resumes("-tls1_3", ["-sess_out", &file]).await;
    assert!(fleet[2].resumes("-tls1_3", ["-sess_in", &file]).await);

    // The ring waits for a killed agent, and goes on when another takes over.
    let killed = agents.remove(0);
    let mut said = killed.said();
    killed.process.kill().await;
    until_ring(&daemon.channel, "the killed agent is late", |ring| {
        member(ring, "nginx-1").is_some_and(|member| member.late && !member.attached)
    })
    .await;
    let held = ring(&daemon.channel).await.rotations;
    agents.push(fleet[0].agent(&address));
    until_ring(&daemon.channel, "rotations go on", |ring| {
        ring.rotations > held && member(ring, "nginx-1").is_some_and(|member| member.counted)
    })
    .await;
    fleet[0].resumes("-tls1_2", ["-sess_out", &file]).await;
    assert!(fleet[1].resumes("-tls1_2", ["-sess_in", &file]).await);

    // Agents that are told to stop leave the ring.
    fleet.iter().for_each(|replica| replica.collect(&mut keys));
    for agent in agents {
        said += &agent.said();
        agent.process.signal("TERM").await;
        assert!(agent.process.succeeds().await);
    }
    assert_eq!(ring(&daemon.channel).await.members, []);
    assert!(keys.len() >= 6, "{} keys", keys.len());
    has_no_key(&said, &keys);
    let mode = fs::metadata(fleet[0].path("1")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o7777, 0o600);
    daemon.stop().await;
}

/// An acknowledgement before a server has its keys is what every rotation without acknowledgement amounts to.
#[tokio::test]
async fn agents_that_acknowledge_too_early_lose_tickets() {
    let daemon = TestDaemon::by_real_time(RING).await;
    let address = format!("tcp://{}", daemon.address);
    let folder = memory();
    let mut prompt = Replica::new(Kind::Go, "prompt", folder.path());
    let mut early = Replica::new(Kind::Go, "early", folder.path());
    let keys = text(&early.path("keys"));
    // The server gets its keys 800 ms after the acknowledgement.
    let script = format!(
        "cat > {keys}; (sleep 0.8; {}) > {keys}.log 2>&1 &",
        early.push()
    );
    let args = go(&script);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let _agents = [
        prompt.agent(&address),
        Agent::start(&address, "early", &args, folder.path()),
    ];
    prompt.start().await;
    early.start().await;
    let file = text(&folder.path().join("session"));
    let (mut lost, mut resumed) = (0, 0);
    let crosses = async {
        while lost == 0 || resumed == 0 {
            let made = Instant::now();
            assert!(!prompt.resumes("-tls1_3", ["-sess_out", &file]).await);
            let reused = early.resumes("-tls1_3", ["-sess_in", &file]).await;
            match reused {
                true => resumed += 1,
                false if made.elapsed() < LIFETIME => lost += 1,
                false => {}
            }
        }
    };
    timeout(PATIENCE, crosses)
        .await
        .expect("some tickets are lost, and some are not");
    daemon.stop().await;
}
