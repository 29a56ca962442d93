//! Daemons that start again, emergencies, and members that cannot be reached: each with what the clients notice.

use std::{fs, path::Path};

use tls_sessiond_proto::{self as pb, ticket_key_service_client::TicketKeyServiceClient};
use tokio::net::UnixStream;
use tonic::transport::Channel;

use super::{
    Agent, RING,
    fleet::{Fleet, two_of_each},
    free_port, member, memory,
    replica::{Kind, Replica},
    ring, serve, text, until, until_ring,
};
use crate::{doors::over, harness::TestDaemon};

/// A ring that does not rotate by itself in a test.
const SLOW: &str = "[[ticket_keys]]\nname = \"web\"\n";
/// A ring that fences a member after 4 s.
const IMPATIENT: &str = "[[ticket_keys]]\nname = \"web\"\nrotate = \"1s\"\nlifetime = \"1s\"\nmax_key_age = \"4s\"\nmembers_wait = \"1s\"\n";

/// Servers of some kinds, each with its agent.
async fn servers(
    address: &str,
    kinds: &[(&str, Kind)],
    folder: &Path,
) -> (Vec<Replica>, Vec<Agent>) {
    let (mut replicas, mut agents) = (Vec::new(), Vec::new());
    for &(name, kind) in kinds {
        let mut replica = Replica::new(kind, name, folder);
        agents.push(replica.agent(address));
        replica.start().await;
        replicas.push(replica);
    }
    (replicas, agents)
}

/// Waits until all members run what they are to run.
async fn all_run(channel: &Channel, count: usize) {
    until_ring(channel, "all members run their keys", |ring| {
        let runs = |member: &&pb::RingMember| {
            member.attached && member.counted && member.acknowledged_sequence == ring.sequence
        };
        ring.members.iter().filter(runs).count() == count && !ring.emergency
    })
    .await;
}

/// Returns the file with a new session of a server.
async fn session(server: &Replica) -> String {
    let file = text(&server.path("session"));
    assert!(!server.resumes("-tls1_3", ["-sess_out", &file]).await);
    file
}

async fn takes(server: &Replica, session: &str) -> bool {
    server.resumes("-tls1_3", ["-sess_in", session]).await
}

#[tokio::test]
async fn tickets_survive_a_killed_daemon_only_with_a_credential() {
    let folder = memory();
    let at = |name: &str| text(&folder.path().join(name));
    fs::write(at("credential"), [7; 32]).unwrap();
    let saved = format!(
        "{SLOW}state = \"{}\"\ncredential = \"{}\"\n",
        at("ring"),
        at("credential")
    );
    let reach = async || over(UnixStream::connect(at("api.sock")).await.unwrap()).await;
    let address = format!("unix://{}", at("api.sock"));
    let daemon = serve(folder.path(), &saved).await;
    let kinds = [("go-1", Kind::Go), ("go-2", Kind::Go)];
    let (fleet, agents) = servers(&address, &kinds, folder.path()).await;
    all_run(&reach().await, 2).await;
    let old = session(&fleet[0]).await;
    let joined = async |times| {
        until("both agents join again", async || {
            agents
                .iter()
                .all(|agent| agent.said().matches("joined the ring").count() == times)
        })
        .await;
    };

    daemon.kill().await;
    // The servers go on without their daemon.
    assert!(takes(&fleet[1], &old).await);
    let daemon = serve(folder.path(), &saved).await;
    joined(2).await;
    all_run(&reach().await, 2).await;
    assert!(takes(&fleet[0], &old).await && takes(&fleet[1], &old).await);

    // Without what was saved, the ring begins anew: one full handshake for each client.
    daemon.kill().await;
    fs::remove_file(at("ring")).unwrap();
    let _daemon = serve(folder.path(), &saved).await;
    joined(3).await;
    all_run(&reach().await, 2).await;
    assert!(!takes(&fleet[0], &old).await && !takes(&fleet[1], &old).await);
    let new = session(&fleet[0]).await;
    assert!(takes(&fleet[1], &new).await);
}

/// The daemon is killed in each phase of a rotation that waits for members, and in the one that waits for tickets.
#[tokio::test]
async fn no_ticket_of_a_fleet_is_lost_when_the_daemon_is_killed() {
    let mut fleet = Fleet::new().await;
    let folder = fleet.folder.path().to_owned();
    let at = |name: &str| text(&folder.join(name));
    fs::write(at("credential"), [7; 32]).unwrap();
    let saved = format!(
        "{RING}state = \"{}\"\ncredential = \"{}\"\n",
        at("ring"),
        at("credential")
    );
    let reach = async || over(UnixStream::connect(at("api.sock")).await.unwrap()).await;
    let address = format!("unix://{}", at("api.sock"));
    let mut daemon = serve(&folder, &saved).await;
    let servers = two_of_each();
    fleet.start(&address, &servers).await;
    let all_count = |ring: &pb::Ring| {
        let counts = |member: &&pb::RingMember| member.attached && member.counted;
        ring.members.iter().filter(counts).count() == servers.len()
    };
    until_ring(&reach().await, "all of them count", all_count).await;
    let first = ring(&reach().await).await.epoch;
    let logs: Vec<_> = fleet.members.iter().map(|m| m.agent.log.clone()).collect();
    let mut killed = 0;
    for phase in [
        pb::RingPhase::Prepare,
        pb::RingPhase::Activate,
        pb::RingPhase::Settle,
    ] {
        let outage = async {
            let channel = reach().await;
            until_ring(&channel, "a phase", |ring| ring.phase() == phase).await;
            daemon.kill().await;
            killed += 1;
            until("the agents miss the daemon", async || {
                logs.iter().all(|log| {
                    let said = fs::read_to_string(log).unwrap();
                    said.matches("not a member now").count() == killed
                })
            })
            .await;
            let daemon = serve(&folder, &saved).await;
            let channel = reach().await;
            until_ring(&channel, "all of them count again", all_count).await;
            let again = ring(&channel).await.epoch;
            until_ring(&channel, "two rotations", |ring| {
                all_count(ring) && ring.epoch >= again + 2
            })
            .await;
            daemon
        };
        daemon = fleet.carry(outage).await;
    }
    fleet.visit_all_ways().await;
    let now = ring(&reach().await).await;
    assert_eq!(now.fenced, 0, "{now:?}");
    println!(
        "{} rotations and {killed} killed daemons",
        now.epoch - first
    );
    // A ring that begins anew has the first epoch again.
    assert!(now.epoch >= first + 6, "{now:?}");
    fleet.report("daemons that are killed");
    fleet.has_lost_none();
}

#[tokio::test]
async fn no_ticket_is_resumed_after_an_emergency() {
    let daemon = TestDaemon::by_real_time(SLOW).await;
    let folder = memory();
    let kinds = [
        ("nginx", Kind::Nginx),
        ("haproxy", Kind::Haproxy),
        ("envoy", Kind::Envoy(free_port())),
        ("go", Kind::Go),
    ];
    let address = format!("tcp://{}", daemon.address);
    let (servers, _agents) = servers(&address, &kinds, folder.path()).await;
    all_run(&daemon.channel, kinds.len()).await;
    let mut sessions = Vec::new();
    for server in &servers {
        sessions.push(session(server).await);
        assert!(
            takes(server, &sessions[sessions.len() - 1]).await,
            "{}",
            server.name
        );
    }
    let rotate = pb::RotateRingRequest {
        ring: "web".into(),
        emergency: true,
    };
    let mut client = TicketKeyServiceClient::new(daemon.channel.clone());
    client.rotate_ring(rotate).await.unwrap();
    all_run(&daemon.channel, kinds.len()).await;
    for (server, old) in servers.iter().zip(&sessions) {
        assert!(!takes(server, old).await, "{} has an old key", server.name);
        let new = session(server).await;
        assert!(takes(server, &new).await, "{} has no new key", server.name);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn member_behind_a_partition_is_waited_for_and_then_fenced() {
    let daemon = TestDaemon::by_real_time(IMPATIENT).await;
    let folder = memory();
    let address = format!("tcp://{}", daemon.address);
    let kinds = [("go-1", Kind::Go), ("go-2", Kind::Go)];
    let (fleet, agents) = servers(&address, &kinds, folder.path()).await;
    until_ring(&daemon.channel, "a rotation with both", |ring| {
        ring.rotations > 0 && ring.members.iter().filter(|member| member.counted).count() == 2
    })
    .await;
    assert_eq!(ring(&daemon.channel).await.fenced, 0);
    // Neither side of a stopped process learns that it does not answer.
    agents[0].process.signal("STOP").await;
    until_ring(&daemon.channel, "go-1 is late", |ring| {
        member(ring, "go-1").is_some_and(|member| member.late && member.counted)
    })
    .await;
    let waits = ring(&daemon.channel).await;
    let new = session(&fleet[1]).await;
    let resumed = takes(&fleet[0], &new).await;
    let now = ring(&daemon.channel).await;
    // While the ring waits, every ticket is one that both can open.
    if (now.fenced, now.sequence) == (0, waits.sequence) {
        assert!(resumed, "{waits:?}");
    }

    until_ring(
        &daemon.channel,
        "go-1 is fenced, and go-2 goes on",
        |ring| ring.fenced > 0 && ring.rotations > waits.rotations + 1,
    )
    .await;
    let new = session(&fleet[1]).await;
    assert!(
        !takes(&fleet[0], &new).await,
        "go-1 has keys that it was not given"
    );
    agents[0].process.signal("CONT").await;
    until_ring(&daemon.channel, "go-1 is a member again", |ring| {
        member(ring, "go-1").is_some_and(|member| member.attached && member.counted && !member.late)
    })
    .await;
    // On a busy machine a ticket may expire on its way.
    until("tickets cross again", async || {
        let new = session(&fleet[1]).await;
        takes(&fleet[0], &new).await
    })
    .await;
    daemon.stop().await;
}
