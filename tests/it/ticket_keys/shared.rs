//! Daemons that share a ring over a real Redis or Valkey.

use std::time::Duration;

use bytes::Bytes;
use tls_sessiond::config::Config;
use tls_sessiond_proto as pb;
use tokio::time::{sleep, timeout};

use super::{
    QUICK, SLOW,
    member::{Member, client, epochs, ring, until},
};
use crate::{
    binary::Binary,
    fleet::server::{Kind, StoreServer},
    harness::{TestDaemon, reason},
    process::PATIENCE,
};

/// Two daemons with one ring.
struct Two {
    store: StoreServer,
    one: TestDaemon,
    two: TestDaemon,
}

impl Two {
    async fn start(kind: Kind, ring: &str) -> Self {
        let store = StoreServer::start(kind);
        let config = store.config() + ring;
        let (one, two) = tokio::join!(
            TestDaemon::by_real_time(&config),
            TestDaemon::by_real_time(&config)
        );
        for daemon in [&one, &two] {
            until(daemon, |ring| ring.epoch > 0 && ring.daemons == 2).await;
        }
        Self { store, one, two }
    }

    async fn stop(self) {
        tokio::join!(self.one.stop(), self.two.stop());
    }
}

async fn rotate(daemon: &TestDaemon, emergency: bool) {
    let request = pb::RotateRingRequest {
        ring: "web".into(),
        emergency,
    };
    client(daemon).rotate_ring(request).await.unwrap();
}

fn bytes(told: &pb::WatchTicketKeysResponse) -> Vec<Vec<u8>> {
    told.keys.iter().map(|key| key.key.to_vec()).collect()
}

async fn counted(daemon: &TestDaemon, members: usize) {
    until(daemon, |ring| {
        ring.members.iter().filter(|member| member.counted).count() == members
    })
    .await;
}

#[tokio::test]
async fn members_at_two_daemons_run_the_same_keys_and_are_waited_for() {
    for kind in Kind::ALL {
        let two = Two::start(kind, SLOW).await;
        let mut here = Member::join(&two.one, "here", pb::TicketKeyStyle::List).await;
        let mut there = Member::join(&two.two, "there", pb::TicketKeyStyle::List).await;
        let (first, second) = (here.runs().await, there.runs().await);
        assert_eq!(bytes(&first), bytes(&second));
        counted(&two.one, 2).await;
        counted(&two.two, 2).await;
        let (one, other) = tokio::join!(ring(&two.one), ring(&two.two));
        assert!(one.shared && one.saved && one.rotates_here != other.rotates_here);
        // Asked for at one daemon, the rotation waits for the member of the other one.
        rotate(&two.one, false).await;
        let prepare = here.told().await.unwrap();
        assert_eq!(prepare.phase(), pb::RingPhase::Prepare);
        here.acknowledges(prepare.sequence).await;
        let waits = until(&two.one, |ring| {
            ring.members.iter().any(|member| member.late)
        })
        .await;
        assert_eq!(waits.phase(), pb::RingPhase::Prepare);
        assert!(waits.members[1].late && !waits.members[0].late);
        assert_eq!(epochs(&there.runs().await), [1, 2]);
        let (activated, other) = (here.runs().await, there.runs().await);
        assert_eq!(
            (activated.encrypt_epoch, epochs(&activated)),
            (2, vec![2, 1])
        );
        assert_eq!(bytes(&activated), bytes(&other));
        until(&two.two, |ring| ring.phase() == pb::RingPhase::Settle).await;
        two.stop().await;
    }
}

#[tokio::test]
async fn name_of_a_member_is_one_for_all_daemons() {
    let two = Two::start(Kind::Redis, SLOW).await;
    let mut first = Member::join(&two.one, "web-1", pb::TicketKeyStyle::List).await;
    first.runs().await;
    counted(&two.two, 1).await;
    let mut second = Member::join(&two.two, "web-1", pb::TicketKeyStyle::List).await;
    assert_eq!(first.refused().await, "MEMBER_FENCED");
    second.runs().await;
    counted(&two.one, 1).await;
    let fence = pb::FenceMemberRequest {
        ring: "web".into(),
        member: "web-1".into(),
    };
    client(&two.one).fence_member(fence).await.unwrap();
    assert_eq!(second.refused().await, "MEMBER_FENCED");
    assert!(ring(&two.two).await.members.is_empty());
    two.stop().await;
}

#[tokio::test]
async fn emergency_at_one_daemon_reaches_the_members_of_the_other() {
    let two = Two::start(Kind::Redis, SLOW).await;
    let mut there = Member::join(&two.two, "there", pb::TicketKeyStyle::Push).await;
    let before = there.runs().await;
    counted(&two.one, 1).await;
    rotate(&two.one, true).await;
    let after = there.runs().await;
    assert!(
        bytes(&after)
            .iter()
            .all(|key| !bytes(&before).contains(key))
    );
    two.stop().await;
}

/// Once the emergency is answered, no daemon opens a ticket from before it.
#[tokio::test]
async fn no_daemon_opens_a_ticket_after_an_emergency_was_answered() {
    let two = Two::start(Kind::Redis, SLOW).await;
    for _ in 0..5 {
        let ticket = seal(&two.two).await;
        assert!(open(&two.one, &ticket, false).await.found);
        rotate(&two.one, true).await;
        for daemon in [&two.two, &two.one] {
            assert!(!open(daemon, &ticket, false).await.found);
        }
    }
    two.stop().await;
}

/// The store has lost which tickets are spent.
#[tokio::test]
async fn spent_ticket_does_not_open_after_the_store_lost_that() {
    let two = Two::start(Kind::Redis, SLOW).await;
    for lost in [&["FLUSHALL"][..], &["DEL", "spent"]] {
        let ticket = seal(&two.one).await;
        assert!(open(&two.two, &ticket, true).await.found);
        let spent: Vec<String> = two.store.run(&["KEYS", "*:t:*"]);
        let lost: Vec<_> = lost
            .iter()
            .map(|word| if *word == "spent" { &*spent[0] } else { word })
            .collect();
        let _: redis::Value = two.store.run(&lost);
        let tries = async {
            let mut sealed = 0;
            while sealed < 20 {
                for daemon in [&two.one, &two.two] {
                    let opened = try_open(daemon, &ticket, true).await;
                    assert!(opened.is_none_or(|opened| !opened.found), "{lost:?}");
                }
                // Once tickets are sealed and opened again, it goes on for a while.
                let other = seal(&two.one).await;
                let opened = try_open(&two.two, &other, true).await;
                sealed += usize::from(opened.is_some_and(|opened| opened.found));
            }
        };
        timeout(PATIENCE, tries).await.unwrap();
    }
    two.stop().await;
}

/// A stream that ends before it has joined leaves no member that is attached.
#[tokio::test]
async fn streams_that_are_cancelled_leave_no_member() {
    let two = Two::start(Kind::Valkey, SLOW).await;
    for place in 0..40 {
        let name = format!("m{place}");
        let join = Member::join(&two.one, &name, pb::TicketKeyStyle::List);
        drop(timeout(Duration::from_micros(300 * place), join).await);
    }
    until(&two.two, |ring| ring.members.is_empty()).await;
    two.stop().await;
}

/// A reload that makes another ring of this name ends the streams of its members, and no member of it stays
/// attached.
#[tokio::test]
async fn members_of_a_ring_that_a_reload_replaces_are_away() {
    let two = Two::start(Kind::Redis, SLOW).await;
    let mut member = Member::join(&two.one, "web-1", pb::TicketKeyStyle::List).await;
    member.runs().await;
    counted(&two.two, 1).await;
    let config = two.store.config() + SLOW + "context = \"default\"\nrule = \"waived\"\n";
    two.one.reload(&config).unwrap();
    assert_eq!(member.refused().await, "RING_NOT_FOUND");
    until(&two.two, |ring| !ring.members[0].attached).await;
    two.stop().await;
}

async fn seal(daemon: &TestDaemon) -> Bytes {
    let request = pb::SealTicketRequest {
        ring: "web".into(),
        state: b"state".as_slice().into(),
        binding: b"scope".as_slice().into(),
    };
    let sealed = client(daemon).seal_ticket(request).await.unwrap();
    sealed.into_inner().ticket
}

/// Opens a ticket. `None`: the ring cannot be reached now.
async fn try_open(
    daemon: &TestDaemon,
    ticket: &Bytes,
    single_use: bool,
) -> Option<pb::OpenTicketResponse> {
    let request = pb::OpenTicketRequest {
        ring: "web".into(),
        ticket: ticket.clone(),
        binding: b"scope".as_slice().into(),
        single_use,
    };
    match client(daemon).open_ticket(request).await {
        Ok(opened) => Some(opened.into_inner()),
        Err(status) => {
            assert_eq!(reason(&status), "STORE_UNAVAILABLE");
            None
        }
    }
}

async fn open(daemon: &TestDaemon, ticket: &Bytes, single_use: bool) -> pb::OpenTicketResponse {
    try_open(daemon, ticket, single_use).await.unwrap()
}

#[tokio::test]
async fn tickets_sealed_at_one_daemon_open_once_at_the_others() {
    let two = Two::start(Kind::Valkey, SLOW).await;
    let ticket = seal(&two.one).await;
    let opened = open(&two.two, &ticket, false).await;
    assert!(opened.found && *opened.state == *b"state");
    let (one, other) = tokio::join!(open(&two.one, &ticket, true), open(&two.two, &ticket, true));
    assert!(one.found != other.found, "exactly one of two takes it");
    for daemon in [&two.one, &two.two] {
        let again = open(daemon, &ticket, false).await;
        assert_eq!(again.miss_reason(), pb::MissReason::Removed);
    }
    two.stop().await;
}

#[tokio::test]
async fn other_daemon_rotates_when_the_one_with_the_lease_is_killed() {
    let store = StoreServer::start(Kind::Redis);
    let config = store.config() + QUICK;
    let file = store.folder.path().join("daemon.toml");
    std::fs::write(&file, &config).unwrap();
    let killed = Binary::start(&["--config", file.to_str().unwrap()]).await;
    let calls = TestDaemon::at(&killed.address).await;
    until(&calls, |ring| ring.rotates_here && ring.epoch > 0).await;
    let other = TestDaemon::by_real_time(&config).await;
    until(&other, |ring| ring.epoch > 0).await;
    let mut lost = Member::join(&calls, "lost", pb::TicketKeyStyle::List).await;
    let mut stays = Member::join(&other, "stays", pb::TicketKeyStyle::List).await;
    let run = async {
        tokio::join!(
            async {
                loop {
                    lost.runs().await;
                }
            },
            async {
                loop {
                    stays.runs().await;
                }
            }
        )
    };
    tokio::select! {
        _ = run => {}
        () = counted(&other, 2) => {}
    }
    killed.kill().await;
    let leads = until(&other, |ring| ring.rotates_here && ring.daemons == 1).await;
    // The server goes on to run its keys, so the ring waits for it; but its way is lost.
    until(&other, |ring| {
        let mut members = ring.members.iter();
        members.any(|member| member.name == "lost" && !member.attached)
    })
    .await;
    let mut back = Member::join(&other, "lost", pb::TicketKeyStyle::List).await;
    let goes_on = async {
        tokio::join!(
            async { while back.runs().await.encrypt_epoch < leads.epoch + 2 {} },
            async { while stays.runs().await.encrypt_epoch < leads.epoch + 2 {} }
        )
    };
    timeout(PATIENCE, goes_on).await.unwrap();
    other.stop().await;
}

/// The store is killed and comes back empty: the daemons give the ring back, and the keys stay.
#[tokio::test]
async fn store_that_lost_the_ring_gets_it_back() {
    let mut two = Two::start(Kind::Redis, SLOW).await;
    let mut here = Member::join(&two.one, "here", pb::TicketKeyStyle::List).await;
    let mut there = Member::join(&two.two, "there", pb::TicketKeyStyle::List).await;
    let before = here.runs().await;
    there.runs().await;
    // Each daemon has seen both before the store goes.
    counted(&two.one, 2).await;
    counted(&two.two, 2).await;
    let seal = pb::SealTicketRequest {
        ring: "web".into(),
        state: b"state".as_slice().into(),
        binding: b"".as_slice().into(),
    };
    let sealed = client(&two.one).seal_ticket(seal).await.unwrap();
    let ticket = sealed.into_inner().ticket;
    two.store.kill();
    let refused = client(&two.one)
        .rotate_ring(rotation_of_web())
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "STORE_UNAVAILABLE");
    assert_eq!(
        ring(&two.one).await.members.len(),
        2,
        "what it knew is shown"
    );
    two.store.restart();
    // Nothing can be changed for a moment, while every daemon gives back what it knows.
    let asks = async {
        while let Err(status) = client(&two.two).rotate_ring(rotation_of_web()).await {
            assert_eq!(reason(&status), "STORE_UNAVAILABLE");
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, asks).await.unwrap();
    let after = here.runs().await;
    assert_eq!(after.phase(), pb::RingPhase::Prepare);
    assert_eq!(
        bytes(&after)[0],
        bytes(&before)[0],
        "the key that encrypts is the same"
    );
    // The store has lost which tickets are spent, so those from before are not opened.
    let open = pb::OpenTicketRequest {
        ring: "web".into(),
        ticket,
        binding: b"".as_slice().into(),
        single_use: true,
    };
    let opened = client(&two.two).open_ticket(open).await.unwrap();
    assert_eq!(opened.into_inner().miss_reason(), pb::MissReason::Scope);
    two.stop().await;
}

fn rotation_of_web() -> pb::RotateRingRequest {
    pb::RotateRingRequest {
        ring: "web".into(),
        emergency: false,
    }
}

/// A daemon that starts while the store is away has no keys, says so, and has them when it is back.
#[tokio::test]
async fn ring_of_a_store_that_is_away_is_not_made_up() {
    let mut store = StoreServer::start(Kind::Redis);
    store.kill();
    let daemon = TestDaemon::by_real_time(&(store.config() + SLOW)).await;
    let shown = ring(&daemon).await;
    assert_eq!(
        (shown.epoch, shown.phase()),
        (0, pb::RingPhase::Unspecified)
    );
    let mut early = Member::join(&daemon, "early", pb::TicketKeyStyle::List).await;
    let refused = early.told().await.unwrap_err();
    assert_eq!(reason(&refused), "STORE_UNAVAILABLE");
    let seal = pb::SealTicketRequest {
        ring: "web".into(),
        ..Default::default()
    };
    let refused = client(&daemon).seal_ticket(seal).await.unwrap_err();
    assert_eq!(reason(&refused), "STORE_UNAVAILABLE");
    store.restart();
    until(&daemon, |ring| ring.epoch == 1).await;
    daemon.stop().await;
}

#[tokio::test]
async fn store_shows_no_key_and_a_changed_ring_is_not_used() {
    let two = Two::start(Kind::Redis, SLOW).await;
    let mut member = Member::join(&two.one, "secretive", pb::TicketKeyStyle::List).await;
    let told = member.runs().await;
    counted(&two.two, 1).await;
    let keys: Vec<String> = two.store.run(&["KEYS", "*:k:*"]);
    // The check of a store looks at a ring too, which has no value.
    let written = keys
        .iter()
        .find(|key| two.store.run::<i64>(&["HEXISTS", key, "s"]) == 1);
    let key = written.unwrap();
    let value: Vec<Vec<u8>> = two.store.run(&["HGETALL", key]);
    let all = value.concat();
    let has = |part: &[u8]| all.windows(part.len()).any(|window| window == part);
    assert!(!has(b"secretive"));
    for key in &told.keys {
        assert!(key.key.chunks(16).all(|part| !has(part)));
    }
    // A value of the store's own making has a later version, so the daemons look at it.
    let _: i64 = two.store.run(&[
        "HSET",
        key,
        "v",
        "9999",
        "s",
        "\u{1}not a sealed ring at all",
    ]);
    let before = ring(&two.two).await;
    let logged = async {
        while client(&two.one)
            .rotate_ring(rotation_of_web())
            .await
            .is_ok()
        {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, logged).await.unwrap();
    let after = until(&two.two, |ring| ring.trouble.contains("cannot be read")).await;
    assert_eq!(after.epoch, before.epoch);
    two.stop().await;
}

#[test]
fn file_of_a_shared_ring_is_refused() {
    let store = StoreServer::start(Kind::Redis);
    let config = store.config() + SLOW + "state = \"/tmp/ring\"\ncredential = \"/tmp/key\"\n";
    let file = store.folder.path().join("daemon.toml");
    std::fs::write(&file, config).unwrap();
    let refused = Config::load(Some(&file), std::iter::empty(), &[]).unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("ticket_keys[0].state"), "{refused}");
    assert!(refused.contains("sealed with its keys"), "{refused}");
}
