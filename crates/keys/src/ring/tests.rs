//! Single histories of a ring.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn settings() -> Settings {
    Settings {
        rotate: 10 * SECOND,
        lifetime: 10 * SECOND,
        max_key_age: 30 * SECOND,
        members_wait: 2 * SECOND,
    }
}

fn ring() -> Ring {
    Ring::new("web", settings(), Duration::ZERO).unwrap()
}

/// Joins, and acknowledges what it is told.
fn member(ring: &mut Ring, name: &str, now: Duration) -> Lease {
    let lease = ring
        .join(name, Style::List, &Attachment::default(), now)
        .unwrap();
    up_to_date(ring, lease, now);
    lease
}

fn up_to_date(ring: &mut Ring, lease: Lease, now: Duration) {
    let sequence = ring.instruction(lease).unwrap().sequence;
    ring.acknowledge(lease, sequence, now).unwrap();
}

fn names(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| format!("{event:?}")).collect()
}

#[test]
fn rotation_waits_for_every_member() {
    let mut ring = ring();
    let (one, two) = (
        member(&mut ring, "one", Duration::ZERO),
        member(&mut ring, "two", Duration::ZERO),
    );
    assert!(ring.tick(9 * SECOND).unwrap().is_empty());
    assert_eq!(
        names(&ring.tick(10 * SECOND).unwrap()),
        ["Began(Prepare, 1)"]
    );
    let told = ring.instruction(one).unwrap();
    assert_eq!((told.encrypt, told.open), (1, vec![1, 2]));
    up_to_date(&mut ring, one, 11 * SECOND);
    assert!(ring.tick(11 * SECOND).unwrap().is_empty());
    up_to_date(&mut ring, two, 12 * SECOND);
    assert_eq!(
        names(&ring.tick(12 * SECOND).unwrap()),
        ["Began(Activate, 2)"]
    );
    let told = ring.instruction(one).unwrap();
    assert_eq!((told.encrypt, told.open), (2, vec![2, 1]));
    up_to_date(&mut ring, one, 12 * SECOND);
    up_to_date(&mut ring, two, 13 * SECOND);
    assert_eq!(
        names(&ring.tick(13 * SECOND).unwrap()),
        ["Began(Settle, 2)"]
    );
    assert!(ring.tick(22 * SECOND).unwrap().is_empty());
    assert_eq!(ring.due(), 23 * SECOND);
    // The next rotation is due by then.
    assert_eq!(
        names(&ring.tick(23 * SECOND).unwrap()),
        ["Began(Idle, 2)", "Began(Prepare, 2)"]
    );
}

#[test]
fn member_that_takes_three_keys_learns_the_next_one_at_each_push() {
    let mut ring = ring();
    let haproxy = ring
        .join(
            "haproxy",
            Style::Push,
            &Attachment::default(),
            Duration::ZERO,
        )
        .unwrap();
    let runs = |ring: &Ring| ring.instruction(haproxy).unwrap().open;
    assert_eq!(runs(&ring), [0, 1, 2]);
    up_to_date(&mut ring, haproxy, Duration::ZERO);
    ring.tick(10 * SECOND).unwrap();
    assert_eq!(runs(&ring), [0, 1, 2], "it has the next epoch already");
    up_to_date(&mut ring, haproxy, 10 * SECOND);
    ring.tick(10 * SECOND).unwrap();
    assert_eq!(runs(&ring), [1, 2, 3]);
    assert_eq!(ring.instruction(haproxy).unwrap().encrypt, 2);
}

#[test]
fn member_that_is_away_is_late_and_then_fenced() {
    let mut ring = ring();
    let away = member(&mut ring, "away", Duration::ZERO);
    let here = member(&mut ring, "here", Duration::ZERO);
    ring.detach(away, 5 * SECOND);
    ring.tick(10 * SECOND).unwrap();
    up_to_date(&mut ring, here, 10 * SECOND);
    assert_eq!(ring.due(), 12 * SECOND);
    assert_eq!(names(&ring.tick(12 * SECOND).unwrap()), ["Late(\"away\")"]);
    assert_eq!(ring.due(), 30 * SECOND);
    assert!(ring.tick(29 * SECOND).unwrap().is_empty());
    assert_eq!(
        names(&ring.tick(30 * SECOND).unwrap()),
        ["Fenced(\"away\")", "Began(Activate, 2)"]
    );
    assert_eq!(ring.acknowledge(away, 1, 31 * SECOND), Err(Refused::Fenced));
    // It comes back as a new member.
    let back = ring
        .join("away", Style::List, &Attachment::default(), 31 * SECOND)
        .unwrap();
    assert_eq!(ring.instruction(back).unwrap().open, [2, 1]);
    // The others have their time, although the key is too old.
    assert!(ring.tick(31 * SECOND).unwrap().is_empty());
    assert!(ring.holds(here));
}

#[test]
fn member_that_leaves_or_never_acknowledged_holds_nothing_up() {
    let mut ring = ring();
    let leaves = member(&mut ring, "leaves", Duration::ZERO);
    ring.join(
        "silent",
        Style::List,
        &Attachment::default(),
        Duration::ZERO,
    )
    .unwrap();
    ring.tick(10 * SECOND).unwrap();
    ring.leave(leaves, 10 * SECOND);
    assert_eq!(
        names(&ring.tick(10 * SECOND).unwrap()),
        ["Began(Activate, 2)", "Began(Settle, 2)"]
    );
}

#[test]
fn member_counts_from_its_first_answer_to_the_last_instruction() {
    let mut ring = ring();
    let slow = ring
        .join("slow", Style::List, &Attachment::default(), Duration::ZERO)
        .unwrap();
    ring.tick(10 * SECOND).unwrap();
    // The ring has not waited for it. What it has done since is too little.
    ring.acknowledge(slow, 1, 11 * SECOND).unwrap();
    assert!(!ring.view(11 * SECOND).members[0].counts);
    up_to_date(&mut ring, slow, 12 * SECOND);
    assert!(ring.view(12 * SECOND).members[0].counts);
}

#[test]
fn lies_and_repetitions_change_nothing() {
    let mut ring = ring();
    let lease = member(&mut ring, "one", Duration::ZERO);
    assert_eq!(
        ring.acknowledge(lease, 2, SECOND),
        Err(Refused::Unknown(2, 1))
    );
    assert_eq!(
        ring.acknowledge(lease, 0, SECOND),
        Err(Refused::Earlier(0, 1))
    );
    ring.tick(10 * SECOND).unwrap();
    // Late: it has not acknowledged the preparation.
    ring.acknowledge(lease, 1, 11 * SECOND).unwrap();
    assert!(ring.tick(11 * SECOND).unwrap().is_empty());
    ring.acknowledge(lease, 2, 11 * SECOND).unwrap();
    ring.acknowledge(lease, 2, 11 * SECOND).unwrap();
    ring.tick(11 * SECOND).unwrap();
    // Twice: the second one is not of the activation.
    ring.acknowledge(lease, 2, 11 * SECOND).unwrap();
    assert!(ring.tick(11 * SECOND).unwrap().is_empty());
}

#[test]
fn second_agent_of_a_name_takes_the_lease() {
    let mut ring = ring();
    let first = member(&mut ring, "one", Duration::ZERO);
    let second = ring
        .join("one", Style::List, &Attachment::default(), SECOND)
        .unwrap();
    assert_eq!(ring.instruction(first), None);
    assert_eq!(ring.acknowledge(first, 1, SECOND), Err(Refused::Fenced));
    assert!(ring.instruction(second).is_some());
    // The end of the first one's stream does not end the second one's lease.
    ring.detach(first, SECOND);
    assert!(ring.holds(second));
}

#[test]
fn refusal_is_kept_in_the_members_words_until_it_acknowledges() {
    let mut ring = ring();
    let lease = member(&mut ring, "one", Duration::ZERO);
    ring.refuse(lease, 1, &"wrong length ä".repeat(100))
        .unwrap();
    let trouble = ring.view(SECOND).members[0].trouble.clone().unwrap();
    assert!(trouble.len() <= 256 && trouble.starts_with("wrong length"));
    up_to_date(&mut ring, lease, SECOND);
    assert_eq!(ring.view(SECOND).members[0].trouble, None);
    assert_eq!(ring.refuse(lease, 9, ""), Err(Refused::Unknown(9, 1)));
}

#[test]
fn emergency_drops_every_epoch_and_waits_for_nobody_long() {
    let mut ring = ring();
    let lease = member(&mut ring, "one", Duration::ZERO);
    let old: Vec<_> = (0..3)
        .map(|epoch| ring.key(epoch, Layout::Bytes80).unwrap())
        .collect();
    ring.rotate_at_once(SECOND).unwrap();
    let told = ring.instruction(lease).unwrap();
    assert_eq!(told.encrypt, 4);
    for epoch in 3..6 {
        let new = ring.key(epoch, Layout::Bytes80).unwrap();
        assert!(old.iter().all(|old| old.bytes() != new.bytes()));
    }
    for epoch in 0..3 {
        assert!(ring.key(epoch, Layout::Bytes80).is_none());
    }
    assert!(ring.tick(2 * SECOND).unwrap().is_empty());
    assert_eq!(
        names(&ring.tick(3 * SECOND).unwrap()),
        ["Fenced(\"one\")", "Began(Settle, 4)"]
    );
}

#[test]
fn rotation_that_is_asked_for_waits_for_tickets_to_expire() {
    let mut ring = ring();
    ring.rotate();
    let events = names(&ring.tick(SECOND).unwrap());
    assert_eq!(
        events,
        [
            "Began(Prepare, 1)",
            "Began(Activate, 2)",
            "Began(Settle, 2)"
        ]
    );
    ring.rotate();
    assert!(ring.tick(5 * SECOND).unwrap().is_empty());
    let events = names(&ring.tick(11 * SECOND).unwrap());
    assert_eq!(events[..2], ["Began(Idle, 2)", "Began(Prepare, 2)"]);
}

#[test]
fn names_and_numbers_of_members_are_bounded() {
    let mut ring = ring();
    for name in ["", "a\nb", &"x".repeat(257)] {
        assert_eq!(
            ring.join(name, Style::List, &Attachment::default(), SECOND),
            Err(Refused::Name)
        );
    }
    for name in 0..MEMBERS_MAX {
        ring.join(
            &name.to_string(),
            Style::List,
            &Attachment::default(),
            SECOND,
        )
        .unwrap();
    }
    assert_eq!(
        ring.join("more", Style::List, &Attachment::default(), SECOND),
        Err(Refused::TooMany)
    );
    ring.join("7", Style::List, &Attachment::default(), SECOND)
        .unwrap();
}

#[test]
fn member_that_joins_again_is_late_from_then_on_and_not_after_its_acknowledgement() {
    let mut ring = ring();
    let one = member(&mut ring, "one", Duration::ZERO);
    ring.tick(10 * SECOND).unwrap();
    up_to_date(&mut ring, one, 10 * SECOND);
    ring.tick(10 * SECOND).unwrap();
    up_to_date(&mut ring, one, 10 * SECOND);
    ring.tick(10 * SECOND).unwrap();
    assert_eq!(ring.view(15 * SECOND).phase, Phase::Settle);
    let is_late = |ring: &Ring, now| ring.view(now).members[0].is_late;
    // The phase is older than members_wait, but the ring waits for this member only now.
    let again = ring
        .join("one", Style::List, &Attachment::default(), 15 * SECOND)
        .unwrap();
    ring.tick(16 * SECOND).unwrap();
    assert!(!is_late(&ring, 16 * SECOND));
    assert_eq!(ring.due(), 17 * SECOND);
    assert_eq!(ring.tick(17 * SECOND).unwrap(), [Event::Late("one".into())]);
    assert!(is_late(&ring, 17 * SECOND));
    up_to_date(&mut ring, again, 18 * SECOND);
    assert!(!is_late(&ring, 18 * SECOND));
}

#[test]
fn words_of_a_member_that_show_a_key_are_withheld() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let mut ring = ring();
    let lease = member(&mut ring, "one", Duration::ZERO);
    let key = ring.key(1, Layout::Bytes80).unwrap();
    let hex: String = key
        .bytes()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    let spaced: String = hex.chars().flat_map(|digit| [digit, ' ']).collect();
    let base64 = STANDARD.encode(key.bytes());
    let shifted = STANDARD.encode([b"ab", key.bytes()].concat());
    for words in [
        &*hex,
        &spaced,
        &hex[20..80],
        &base64,
        &base64[8..60],
        &shifted,
    ] {
        ring.refuse(lease, 1, &format!("bad key {words}!")).unwrap();
        let trouble = ring.view(SECOND).members[0].trouble.clone().unwrap();
        assert!(trouble.contains("withheld"), "{words}: {trouble}");
    }
    ring.refuse(lease, 1, "cannot open /run/keys/0123456789abcdef")
        .unwrap();
    let trouble = ring.view(SECOND).members[0].trouble.clone();
    assert_eq!(
        trouble.as_deref(),
        Some("cannot open /run/keys/0123456789abcdef")
    );
}
