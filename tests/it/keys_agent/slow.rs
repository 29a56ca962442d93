//! Slow members: with acknowledgements a rotation waits for them, and without, tickets are lost.

use std::{fs, sync::atomic::Ordering};

use tls_sessiond_proto as pb;
use tokio::{process::Command, time::timeout};

use super::{
    Agent, RING,
    fleet::{Fleet, Member, two_of_each},
    member,
    relay::{Acknowledgement, is_slow, relay},
    replica::{Kind, Replica, go},
    ring, text, until_ring,
};
use crate::{
    harness::TestDaemon,
    process::{PATIENCE, run},
};

/// Starts two servers of each kind, of which the second gets its instructions late.
async fn slow_fleet(daemon: &TestDaemon, acknowledgement: Acknowledgement) -> Fleet {
    let (address, delays) = relay(daemon.channel.clone(), acknowledgement).await;
    let mut fleet = Fleet::new().await;
    fleet.start(&address, &two_of_each()).await;
    until_ring(&daemon.channel, "all of them count", |ring| {
        ring.members.iter().filter(|member| member.counted).count() == fleet.members.len()
    })
    .await;
    delays.store(true, Ordering::Relaxed);
    fleet
}

/// With acknowledgements: the slow members are late, and two rotations wait for them.
async fn acknowledged() -> Fleet {
    let daemon = TestDaemon::by_real_time(RING).await;
    let mut fleet = slow_fleet(&daemon, Acknowledgement::Agent).await;
    let first = ring(&daemon.channel).await.rotations;
    let rotations = async {
        until_ring(&daemon.channel, "the slow members are late", |ring| {
            let slow = |member: &&pb::RingMember| is_slow(&member.name);
            ring.members.iter().filter(slow).all(|member| member.late)
        })
        .await;
        for rotation in 1..=2 {
            until_ring(&daemon.channel, "a rotation", |ring| {
                ring.rotations >= first + rotation
            })
            .await;
        }
    };
    fleet.carry(rotations).await;
    let now = ring(&daemon.channel).await;
    assert_eq!((now.fenced, now.members.len()), (0, 8), "{now:?}");
    daemon.stop().await;
    fleet
}

/// The same without acknowledgements, until each kind of server has lost a ticket.
async fn unacknowledged() -> Fleet {
    let daemon = TestDaemon::by_real_time(RING).await;
    let mut fleet = slow_fleet(&daemon, Acknowledgement::Relay).await;
    let visits = async {
        while fleet.tallies.len() < 4 || fleet.tallies.values().any(|tally| tally.lost == 0) {
            fleet.visit().await;
        }
    };
    timeout(4 * PATIENCE, visits)
        .await
        .expect("each kind of server loses a ticket");
    daemon.stop().await;
    fleet
}

/// Both fleets differ in the source of their acknowledgements alone.
#[tokio::test]
async fn only_acknowledgements_save_the_tickets_of_slow_members() {
    let (saved, lost) = tokio::join!(acknowledged(), unacknowledged());
    saved.report("with acknowledgements");
    lost.report("without acknowledgements");
    saved.has_lost_none();
}

/// A server that takes twice as long as `members_wait`.
#[tokio::test]
async fn slow_server_is_late_until_it_acknowledges() {
    let daemon = TestDaemon::by_real_time(RING).await;
    let address = format!("tcp://{}", daemon.address);
    let mut fleet = Fleet::new().await;
    fleet.start(&address, &[("prompt", Kind::Go)]).await;
    let mut server = Replica::new(Kind::Go, "slow", fleet.folder.path());
    let (keys, slow) = (text(&server.path("keys")), text(&server.path("slow")));
    let script = format!(
        "cat > {keys} && if [ -e {slow} ]; then sleep 2; fi && {}",
        server.push()
    );
    let args = go(&script);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let agent = Agent::start(&address, "slow", &args, fleet.folder.path());
    server.start().await;
    fleet.members.push(Member { server, agent });
    until_ring(&daemon.channel, "both count", |ring| {
        ring.members.iter().filter(|member| member.counted).count() == 2
    })
    .await;
    fs::write(slow, "").unwrap();
    let events = async {
        let mut waited = Vec::new();
        for _ in 0..2 {
            until_ring(&daemon.channel, "the slow server is late", |ring| {
                member(ring, "slow").is_some_and(|slow| slow.counted && slow.late)
            })
            .await;
            let late = ring(&daemon.channel).await;
            let mut status = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
            status.args(["--address", &address, "keys", "status", "web"]);
            let (said, _) = run(&mut status, "").await;
            // The member may have acknowledged in the meantime.
            if ring(&daemon.channel).await.sequence == late.sequence {
                let mut lines = said.lines().map(|line| line.split_whitespace());
                let heads = lines.find(|line| line.clone().next() == Some("RING"));
                let column = heads.and_then(|mut heads| heads.position(|head| head == "LATE"));
                let line = lines.find(|line| line.clone().nth(1) == Some("slow"));
                let late = line.and_then(|mut line| line.nth(column?));
                assert_eq!(late, Some("yes"), "{said}");
            }
            until_ring(&daemon.channel, "the rotation goes on", |ring| {
                ring.sequence > late.sequence
                    && member(ring, "slow")
                        .is_some_and(|slow| slow.acknowledged_sequence >= late.sequence)
            })
            .await;
            waited.push(late.sequence);
        }
        waited
    };
    let waited = fleet.carry(events).await;
    let now = ring(&daemon.channel).await;
    assert_eq!(now.fenced, 0, "{now:?}");
    println!("instructions that waited for the slow server: {waited:?}");
    fleet.report("one slow server");
    fleet.has_lost_none();
    daemon.stop().await;
}
