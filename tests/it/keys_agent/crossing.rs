//! A fleet of which members come and leave while the keys rotate.

use std::{fs, os::unix::fs::PermissionsExt};

use tokio::time::Instant;

use super::{
    LIFETIME, RING,
    fleet::{Fleet, Member, two_of_each},
    has_no_key, member,
    replica::{Kind, Replica},
    ring, text, until_ring,
};
use crate::harness::TestDaemon;

/// The rotations that a fleet goes through.
const ROTATIONS: u64 = 10;

#[tokio::test]
async fn tickets_cross_to_another_server_over_rotations() {
    let daemon = TestDaemon::by_real_time(RING).await;
    let address = format!("tcp://{}", daemon.address);
    let mut fleet = Fleet::new().await;
    fleet.start(&address, &two_of_each()).await;
    until_ring(&daemon.channel, "all of them count", |ring| {
        ring.members.iter().filter(|member| member.counted).count() == fleet.members.len()
    })
    .await;

    // Clients return to another server of the same kind, over ten rotations. A server takes no ticket of another kind,
    // whose session id context is another one (SSL_CTX_set_session_id_context(3)).
    let old = |server: &Replica| text(&server.path("old"));
    for Member { server, .. } in &fleet.members {
        let session = ["-sess_out", &old(server)];
        assert!(!server.resumes("-tls1_3", session).await);
        let session = ["-sess_in", &old(server)];
        assert!(server.resumes("-tls1_3", session).await);
    }
    let first = ring(&daemon.channel).await.rotations;
    let rotated = async |times| {
        for rotation in 1..=times {
            until_ring(&daemon.channel, "a rotation", |ring| {
                ring.rotations >= first + rotation
            })
            .await;
        }
    };
    fleet.carry(rotated(3)).await;
    for (name, kind) in [("nginx-3", Kind::Nginx), ("haproxy-3", Kind::Haproxy)] {
        let folder = fleet.folder.path().to_owned();
        let joins = async {
            let new = Member::start(&address, name, kind, &folder).await;
            until_ring(&daemon.channel, "the new member counts", |ring| {
                member(ring, name).is_some_and(|member| member.counted)
            })
            .await;
            new
        };
        let new = fleet.carry(joins).await;
        fleet.members.push(new);
    }
    fleet.carry(rotated(6)).await;
    fleet.visit_all_ways().await;

    // A server leaves as an operator takes it away: it gets no more clients, then its agent stops, and then the server.
    let place = fleet.place("nginx-1");
    let mut left = fleet.members.remove(place);
    let file = text(&left.server.path("session"));
    let made = Instant::now();
    let session = ["-sess_out", &file];
    assert!(!left.server.resumes("-tls1_3", session).await);
    left.agent.process.signal("TERM").await;
    let mut said = left.agent.said();
    assert!(left.agent.process.succeeds().await);
    let server = left.server.process.take().unwrap();
    server.signal("TERM").await;
    assert!(server.succeeds().await);
    let session = ["-sess_in", &file];
    let resumed = fleet.server("nginx-3").resumes("-tls1_3", session).await;
    assert!(
        resumed || made.elapsed() >= LIFETIME,
        "of a server that left"
    );
    let now = ring(&daemon.channel).await;
    assert_eq!(member(&now, "nginx-1"), None);
    let after = now.rotations - first;
    fleet.carry(rotated(ROTATIONS.max(after + 2))).await;
    fleet.visit_all_ways().await;
    let now = ring(&daemon.channel).await;
    println!("{} rotations", now.rotations - first);
    fleet.report("servers that come and leave");
    fleet.has_lost_none();
    assert_eq!(now.fenced, 0, "{now:?}");
    // The servers have dropped the first keys: an agent that only says so would be seen here.
    for Member { server, .. } in &fleet.members {
        if !fs::exists(old(server)).unwrap() {
            continue;
        }
        let session = ["-sess_in", &old(server)];
        let resumed = server.resumes("-tls1_3", session).await;
        assert!(!resumed, "{} has its first key", server.name);
    }

    // A HAProxy that starts again reads the file, and runs what the others run.
    let place = fleet.place("haproxy-1");
    let again = &mut fleet.members[place].server;
    drop(again.process.take());
    fs::remove_file(&again.socket).unwrap();
    again.start().await;
    let file = text(&fleet.folder.path().join("session"));
    let session = ["-sess_out", &file];
    fleet.server("haproxy-2").resumes("-tls1_3", session).await;
    let session = ["-sess_in", &file];
    assert!(fleet.server("haproxy-1").resumes("-tls1_3", session).await);

    // The ring waits for a killed agent, and goes on when another takes over.
    let place = fleet.place("nginx-2");
    let Member { server, agent } = fleet.members.remove(place);
    said += &agent.said();
    agent.process.kill().await;
    until_ring(&daemon.channel, "the killed agent is late", |ring| {
        member(ring, "nginx-2").is_some_and(|member| member.late && !member.attached)
    })
    .await;
    let held = ring(&daemon.channel).await.rotations;
    let agent = server.agent(&address);
    fleet.members.push(Member { server, agent });
    until_ring(&daemon.channel, "rotations go on", |ring| {
        ring.rotations > held && member(ring, "nginx-2").is_some_and(|member| member.counted)
    })
    .await;
    let (two, three) = (fleet.server("nginx-2"), fleet.server("nginx-3"));
    two.resumes("-tls1_2", ["-sess_out", &file]).await;
    assert!(three.resumes("-tls1_2", ["-sess_in", &file]).await);
    let mode = fs::metadata(two.path("1")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o7777, 0o600);

    // Agents that are told to stop leave the ring.
    let mut servers = Vec::new();
    for Member { server, agent } in fleet.members {
        server.collect(&mut fleet.keys);
        said += &agent.said();
        agent.process.signal("TERM").await;
        assert!(agent.process.succeeds().await);
        servers.push(server);
    }
    assert_eq!(ring(&daemon.channel).await.members, []);
    assert!(fleet.keys.len() >= 6, "{} keys", fleet.keys.len());
    has_no_key(&said, &fleet.keys);
    daemon.stop().await;
}
