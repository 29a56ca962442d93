//! TicketKeyService: rings, members, rotations, rights, restarts.
//!
//! * `member`: a server, played by a test
//! * `shared`: daemons that share a ring

mod member;
#[cfg(feature = "peers")]
mod shared;

use std::{fs, path::Path, time::Duration};

use member::{Member, client, epochs, ring, until};
use tls_sessiond_proto::{self as pb, watch_ticket_keys_request::Event as Said};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::{
    harness::{TestDaemon, reason},
    process::PATIENCE,
};

/// A ring whose rotations take seconds.
const QUICK: &str = "[[ticket_keys]]\nname = \"web\"\nrotate = \"1s\"\nlifetime = \"1s\"\nmax_key_age = \"60s\"\nmembers_wait = \"1s\"\n";
/// A ring that rotates only if it is asked to.
const SLOW: &str = "[[ticket_keys]]\nname = \"web\"\nrotate = \"7d\"\nlifetime = \"1s\"\nmax_key_age = \"7d\"\nmembers_wait = \"1s\"\n";

#[tokio::test]
async fn members_prepare_before_any_of_them_encrypts() {
    let daemon = TestDaemon::with(SLOW).await;
    let mut one = Member::join(&daemon, "one", pb::TicketKeyStyle::List).await;
    let mut two = Member::join(&daemon, "two", pb::TicketKeyStyle::Push).await;
    let told = one.runs().await;
    assert_eq!((told.encrypt_epoch, epochs(&told)), (1, vec![1]));
    assert!(told.keys.iter().all(|key| key.key.len() == 80));
    assert_eq!(epochs(&two.runs().await), [0, 1, 2]);
    until(&daemon, |ring| {
        ring.members.iter().all(|member| member.counted)
    })
    .await;
    let rotate = pb::RotateRingRequest {
        ring: "web".into(),
        emergency: false,
    };
    client(&daemon).rotate_ring(rotate).await.unwrap();
    let told = one.told().await.unwrap();
    assert_eq!(
        (told.phase(), epochs(&told)),
        (pb::RingPhase::Prepare, vec![1, 2])
    );
    let prepare = told.sequence;
    assert_eq!(epochs(&two.runs().await), [0, 1, 2]);
    // One has not acknowledged, so no member encrypts with epoch 2. It is late, and named.
    let late = until(&daemon, |ring| {
        ring.members.iter().any(|member| member.late)
    })
    .await;
    assert_eq!((late.phase(), late.epoch), (pb::RingPhase::Prepare, 1));
    assert_eq!(late.members[0].name, "one");
    assert!(late.members[0].late && late.members[0].behind.is_some() && !late.members[1].late);
    one.acknowledges(prepare).await;
    let told = one.runs().await;
    assert_eq!((told.encrypt_epoch, epochs(&told)), (2, vec![2, 1]));
    assert_eq!(epochs(&two.runs().await), [1, 2, 3]);
    let settled = until(&daemon, |ring| ring.phase() == pb::RingPhase::Settle).await;
    assert_eq!((settled.epoch, settled.rotations), (2, 1));
    // The ticket lifetime is over.
    let idle = until(&daemon, |ring| ring.phase() == pb::RingPhase::Idle).await;
    assert_eq!(idle.open_epochs, [2]);
    daemon.stop().await;
}

#[tokio::test]
async fn layouts_of_an_epoch_are_keys_of_their_own() {
    use pb::TicketKeyLayout as Layout;
    let daemon = TestDaemon::with(SLOW).await;
    let mut keys = Vec::new();
    for (layout, bytes) in [
        (Layout::TicketKeyLayout80, 80),
        (Layout::TicketKeyLayout48, 48),
        (Layout::TicketKeyLayout32, 32),
    ] {
        let name = format!("{bytes}");
        let style = pb::TicketKeyStyle::Single;
        let mut member = Member::join_with(&daemon, &name, style, layout).await;
        let told = member.told().await.unwrap();
        assert_eq!(epochs(&told), [1]);
        assert_eq!(told.keys[0].key.len(), bytes);
        keys.push(told.keys[0].key.slice(..16));
    }
    keys.dedup();
    assert_eq!(keys.len(), 3);
    daemon.stop().await;
}

#[tokio::test]
async fn ring_rotates_by_itself_and_members_that_leave_hold_nothing_up() {
    let daemon = TestDaemon::with(QUICK).await;
    let mut stays = Member::join(&daemon, "stays", pb::TicketKeyStyle::List).await;
    let mut leaves = Member::join(&daemon, "leaves", pb::TicketKeyStyle::List).await;
    leaves.runs().await;
    leaves.says(Said::Leave(pb::LeaveRing {})).await;
    let rotates = async {
        loop {
            let told = stays.runs().await;
            if told.encrypt_epoch == 4 {
                return told;
            }
        }
    };
    let told = timeout(PATIENCE, rotates).await.expect("three rotations");
    assert_eq!(epochs(&told), [4, 3]);
    let ring = ring(&daemon).await;
    assert_eq!(ring.members.len(), 1, "{ring:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn second_agent_of_a_name_ends_the_first() {
    let daemon = TestDaemon::with(SLOW).await;
    let mut first = Member::join(&daemon, "one", pb::TicketKeyStyle::List).await;
    first.runs().await;
    let mut second = Member::join(&daemon, "one", pb::TicketKeyStyle::List).await;
    assert_eq!(first.refused().await, "MEMBER_FENCED");
    second.runs().await;
    assert_eq!(ring(&daemon).await.members.len(), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn lies_of_a_member_end_its_stream_and_not_the_ring() {
    let daemon = TestDaemon::with(SLOW).await;
    for (said, why) in [
        (
            Said::Acknowledge(pb::AcknowledgeKeys { sequence: 99 }),
            "INSTRUCTION_UNKNOWN",
        ),
        (
            Said::Acknowledge(pb::AcknowledgeKeys { sequence: 0 }),
            "INSTRUCTION_UNKNOWN",
        ),
        (
            Said::Join(pb::JoinRing::default()),
            "MEMBER_EVENT_UNEXPECTED",
        ),
    ] {
        let member = Member::join(&daemon, "liar", pb::TicketKeyStyle::List).await;
        member.says(said).await;
        assert_eq!(member.refused().await, why);
    }
    // A refusal is shown, and the ring goes on.
    let mut member = Member::join(&daemon, "broken", pb::TicketKeyStyle::List).await;
    let sequence = member.runs().await.sequence;
    let reason = "Length 79, expected length 80".to_owned();
    member
        .says(Said::Refuse(pb::RefuseKeys { sequence, reason }))
        .await;
    let ring = until(&daemon, |ring| {
        ring.members.iter().any(|member| !member.trouble.is_empty())
    })
    .await;
    assert_eq!(ring.members[0].trouble, "Length 79, expected length 80");
    daemon.stop().await;
}

#[tokio::test]
async fn wrong_joins_name_the_field() {
    let daemon = TestDaemon::with(SLOW).await;
    let join = |ring: &str, member: &str, layout: i32, style: i32| pb::JoinRing {
        ring: ring.into(),
        member: member.into(),
        layout,
        style,
    };
    for (join, code, why) in [
        (join("other", "one", 1, 1), Code::NotFound, "RING_NOT_FOUND"),
        (
            join("web", "", 1, 1),
            Code::InvalidArgument,
            "MEMBER_INVALID",
        ),
        (
            join("web", "a\nb", 1, 1),
            Code::InvalidArgument,
            "MEMBER_INVALID",
        ),
        (
            join("web", "one", 0, 1),
            Code::InvalidArgument,
            "MEMBER_INVALID",
        ),
        (
            join("web", "one", 1, 9),
            Code::InvalidArgument,
            "MEMBER_INVALID",
        ),
    ] {
        let event = Some(Said::Join(join));
        let said = tokio_stream::once(pb::WatchTicketKeysRequest { event });
        let watch = client(&daemon).watch_ticket_keys(said).await.unwrap();
        let status = watch.into_inner().message().await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (code, why));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn fenced_member_is_told_and_joins_as_a_new_one() {
    let daemon = TestDaemon::with(SLOW).await;
    let mut member = Member::join(&daemon, "one", pb::TicketKeyStyle::List).await;
    member.runs().await;
    let fence = |member: &str| pb::FenceMemberRequest {
        ring: "web".into(),
        member: member.into(),
    };
    let fenced = client(&daemon).fence_member(fence("one")).await.unwrap();
    assert_eq!(fenced.into_inner().ring.unwrap().fenced, 1);
    assert_eq!(member.refused().await, "MEMBER_FENCED");
    let missing = client(&daemon)
        .fence_member(fence("one"))
        .await
        .unwrap_err();
    assert_eq!(reason(&missing), "MEMBER_NOT_FOUND");
    let mut member = Member::join(&daemon, "one", pb::TicketKeyStyle::List).await;
    member.runs().await;
    daemon.stop().await;
}

#[tokio::test]
async fn emergency_leaves_no_key_that_was_there() {
    let daemon = TestDaemon::with(SLOW).await;
    let mut member = Member::join(&daemon, "one", pb::TicketKeyStyle::Push).await;
    let before = member.runs().await;
    let rotate = pb::RotateRingRequest {
        ring: "web".into(),
        emergency: true,
    };
    let rotated = client(&daemon).rotate_ring(rotate).await.unwrap();
    assert_eq!(rotated.into_inner().ring.unwrap().epoch, 4);
    let after = member.runs().await;
    assert_eq!(epochs(&after), [3, 4, 5]);
    for key in &after.keys {
        assert!(before.keys.iter().all(|old| old.key != key.key));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn tickets_are_sealed_and_opened_without_a_key() {
    let daemon = TestDaemon::with(SLOW).await;
    let mut client = client(&daemon);
    let seal = pb::SealTicketRequest {
        ring: "web".into(),
        state: "a session".into(),
        binding: "scope".into(),
    };
    let sealed = client.seal_ticket(seal).await.unwrap().into_inner();
    assert_eq!(sealed.ticket.len(), "a session".len() + 60);
    let open = |binding: &str, single_use| pb::OpenTicketRequest {
        ring: "web".into(),
        ticket: sealed.ticket.clone(),
        binding: binding.to_owned().into(),
        single_use,
    };
    let mut opened = async |request| client.open_ticket(request).await.unwrap().into_inner();
    let found = opened(open("scope", false)).await;
    assert!(found.found && found.state == "a session" && found.epoch == 1 && !found.renew);
    let other = opened(open("other", false)).await;
    assert_eq!(
        (other.found, other.miss_reason()),
        (false, pb::MissReason::Scope)
    );
    assert!(opened(open("scope", true)).await.found);
    for single_use in [true, false] {
        let spent = opened(open("scope", single_use)).await;
        assert_eq!(
            (spent.found, spent.miss_reason()),
            (false, pb::MissReason::Removed)
        );
    }
    let mut garbage = open("scope", false);
    garbage.ticket = vec![7; 100].into();
    let unknown = opened(garbage).await;
    assert_eq!(
        (unknown.found, unknown.miss_reason()),
        (false, pb::MissReason::Unknown)
    );
    let counted = ring(&daemon).await;
    assert_eq!((counted.tickets_sealed, counted.tickets_opened), (1, 2));
    let of_epoch = pb::EpochTickets {
        epoch: 1,
        sealed: 1,
        opened: 2,
    };
    assert_eq!(counted.tickets, [of_epoch]);
    daemon.stop().await;
}

#[tokio::test]
async fn rights_of_a_ring_are_those_of_its_context() {
    let with = |contexts: &str, roles: &str, ring: &str| {
        format!(
            "[[access]]\nidentity = \"local\"\ncontexts = [\"{contexts}\"]\nrole = {roles}\n{SLOW}{ring}\n\
             [[context]]\nname = \"a\"\nclose_policy = \"errors-only\"\n[[context]]\nname = \"b\"\n"
        )
    };
    let of_a = "context = \"a\"";
    for (config, may) in [
        (with("*", "\"keys\"", ""), true),
        (with("a", "\"keys\"", ""), false),
        (with("a", "\"keys\"", of_a), true),
        (with("b", "\"keys\"", of_a), false),
        (with("a", "[\"worker\", \"keys\"]", of_a), true),
        (
            with("*", "[\"worker\", \"observer\", \"admin\"]", of_a),
            false,
        ),
    ] {
        let daemon = TestDaemon::with(&config).await;
        let seal = pb::SealTicketRequest {
            ring: "web".into(),
            state: "x".into(),
            ..Default::default()
        };
        let sealed = client(&daemon).seal_ticket(seal).await;
        let denied = |status: Status| status.code() == Code::PermissionDenied;
        match may {
            true => drop(sealed.unwrap()),
            false => assert!(denied(sealed.unwrap_err()), "{config}"),
        }
        daemon.stop().await;
    }
}

#[tokio::test]
async fn reload_keeps_a_ring_and_ends_streams_of_one_that_is_gone() {
    let daemon = TestDaemon::with(SLOW).await;
    let mut member = Member::join(&daemon, "one", pb::TicketKeyStyle::List).await;
    let before = member.runs().await;
    daemon
        .reload(&SLOW.replace("lifetime = \"1s\"", "lifetime = \"2s\""))
        .unwrap();
    let kept = ring(&daemon).await;
    assert_eq!(kept.lifetime.unwrap().seconds, 2);
    assert_eq!(kept.members.len(), 1);
    let mut again = Member::join(&daemon, "two", pb::TicketKeyStyle::List).await;
    assert_eq!(again.runs().await.keys, before.keys);
    daemon.reload("ticket_keys = []\n").unwrap();
    assert_eq!(member.refused().await, "RING_NOT_FOUND");
    daemon.stop().await;
}

fn saved(folder: &Path) -> String {
    fs::write(folder.join("credential"), [7; 32]).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    format!(
        "{SLOW}state = {:?}\ncredential = {:?}\n",
        path("ring"),
        path("credential")
    )
}

#[tokio::test]
async fn saved_ring_survives_a_restart_and_waits_for_its_members() {
    let folder = tempfile::tempdir().unwrap();
    let config = saved(folder.path());
    let daemon = TestDaemon::with(&config).await;
    let mut member = Member::join(&daemon, "one", pb::TicketKeyStyle::List).await;
    let before = member.runs().await;
    until(&daemon, |ring| ring.members[0].counted).await;
    let file = folder.path().join("ring");
    let seal = pb::SealTicketRequest {
        ring: "web".into(),
        state: "x".into(),
        ..Default::default()
    };
    let ticket = client(&daemon)
        .seal_ticket(seal)
        .await
        .unwrap()
        .into_inner()
        .ticket;
    // The membership is saved a moment later.
    let is_saved = async {
        while !fs::metadata(&file).is_ok_and(|saved| saved.len() > 160) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, is_saved)
        .await
        .expect("the ring is not saved");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let sealed = fs::read(&file).unwrap();
    for key in &before.keys {
        assert!(!sealed.windows(16).any(|part| part == &key.key[..16]));
    }
    drop(member);
    daemon.stop().await;

    let daemon = TestDaemon::with(&config).await;
    let restored = ring(&daemon).await;
    assert!(restored.saved && restored.members[0].counted && !restored.members[0].attached);
    let mut member = Member::join(&daemon, "one", pb::TicketKeyStyle::List).await;
    let after = member.runs().await;
    let of = |told: &pb::WatchTicketKeysResponse, epoch| {
        told.keys.iter().find(|key| key.epoch == epoch).cloned()
    };
    assert_eq!(of(&before, 1), of(&after, 1));
    // A ticket that the daemon sealed itself does not open: the list of spent ones is gone.
    let open = pb::OpenTicketRequest {
        ring: "web".into(),
        ticket,
        ..Default::default()
    };
    assert!(
        !client(&daemon)
            .open_ticket(open)
            .await
            .unwrap()
            .into_inner()
            .found
    );
    daemon.stop().await;

    // Another credential: the ring begins anew.
    fs::write(folder.path().join("credential"), [8; 32]).unwrap();
    let daemon = TestDaemon::with(&config).await;
    let mut member = Member::join(&daemon, "one", pb::TicketKeyStyle::List).await;
    let anew = member.runs().await;
    assert_ne!(of(&before, 1), of(&anew, 1));
    daemon.stop().await;
}
