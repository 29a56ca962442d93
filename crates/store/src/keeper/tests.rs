use tls_sessiond_types::Role;

use super::*;
use crate::layout::NameKey;

/// The store's clock is this far ahead in these tests.
const AHEAD: u64 = 1_000_000;

fn at(millis: u64) -> LocalTime {
    LocalTime(10_000 + millis)
}

fn name(number: usize) -> Name {
    NameKey::new(&[1; 32]).name(b"scope", Role::Server, &number.to_be_bytes())
}

fn keeper() -> Keeper {
    Keeper::new(name(0).bucket(), Seed::new(Zeroizing::new([7; 32])))
}

/// Answers a probe or a beat as the store does.
fn beaten(request: &Request, now: LocalTime) -> Answer {
    let Request::Beat {
        life, valid_until, ..
    } = request
    else {
        panic!("not a beat: {request:?}")
    };
    let now = now.0 + AHEAD;
    if now > *valid_until {
        return Answer::Overdue {
            now: Some(now),
            revision: Some(0),
        };
    }
    Answer::Beaten {
        now,
        deadline: now + life,
        revision: 0,
    }
}

fn alive(now: LocalTime) -> Keeper {
    let mut keeper = keeper();
    for _ in 0..2 {
        beat(&mut keeper, now);
    }
    keeper
}

/// Answers the next request, which must be a probe or a beat.
fn beat(keeper: &mut Keeper, now: LocalTime) -> Request {
    let (id, request) = keeper.poll(now).unwrap();
    keeper.answered(id, Ok(beaten(&request, now)), now);
    request
}

#[test]
fn first_heartbeat_comes_after_the_time_is_known() {
    let mut keeper = keeper();
    assert_eq!(keeper.may_find(at(0), 50), Err(Away::Lost));
    assert_eq!(keeper.may_put(at(0), 50), Err(Away::Lost));
    let (id, probe) = keeper.poll(at(0)).unwrap();
    assert!(
        matches!(probe, Request::Beat { valid_until: 0, .. }),
        "{probe:?}"
    );
    assert_eq!(keeper.poll(at(1)), None, "one request at a time");
    keeper.answered(id, Ok(beaten(&probe, at(5))), at(5));
    let (id, first) = keeper.poll(at(5)).unwrap();
    keeper.answered(id, Ok(beaten(&first, at(10))), at(10));
    assert_eq!(keeper.may_find(at(10), 50), Err(Away::Quarantine));
    let (claim, valid_until) = keeper.may_put(at(10), 50).unwrap();
    assert_eq!(claim.deadline, at(10).0 + AHEAD + LIFE);
    assert_eq!(valid_until, at(10).0 + AHEAD + 50);
    assert_eq!(keeper.poll(at(500)), None);
    for second in 1..=3 {
        beat(&mut keeper, at(5 + second * BEAT_EVERY));
    }
    assert!(keeper.may_find(at(3_100), 50).is_ok());
    assert_eq!(keeper.may_find(at(3_005 + LIFE), 50), Err(Away::Late));
}

#[test]
fn no_heartbeat_is_made_before_the_removals_are_acknowledged() {
    let mut keeper = alive(at(0));
    for number in 0..100 {
        keeper.remove(name(number), Some(Reason::Unclosed));
    }
    assert!(keeper.is_removing(name(99)));
    let mut now = at(BEAT_EVERY);
    let (mut id, first) = keeper.poll(now).unwrap();
    assert!(
        matches!(&first, Request::Remove { entries } if entries.len() == ENTRIES_MAX),
        "{first:?}"
    );
    // The answer does not come. The same removals are sent again, and nothing else.
    for _ in 0..5 {
        keeper.answered(id, Err(NoAnswer), now);
        assert_eq!(keeper.poll(now), None);
        now = now.after(RETRY);
        let again = keeper.poll(now).unwrap();
        assert_eq!(again.1, first);
        keeper.answered(id, Ok(Answer::Done(64)), now);
        assert!(keeper.is_removing(name(0)), "an answer that came too late");
        id = again.0;
    }
    keeper.answered(id, Ok(Answer::Done(64)), now);
    assert!(!keeper.is_removing(name(0)) && keeper.is_removing(name(99)));
    let (id, second) = keeper.poll(now).unwrap();
    assert!(matches!(&second, Request::Remove { entries } if entries.len() == 36));
    keeper.answered(id, Ok(Answer::Done(36)), now);
    assert!(matches!(keeper.poll(now), Some((_, Request::Beat { .. }))));
}

#[test]
fn removals_of_the_last_minute_are_repeated_after_a_loss() {
    let mut keeper = alive(at(0));
    let claim = keeper.may_put(at(0), 50).unwrap().0;
    keeper.took(name(1), &claim, at(0));
    keeper.took(name(2), &claim, at(30_000));
    keeper.remove(name(3), Some(Reason::Unclosed));
    let (id, _) = keeper.poll(at(30_000)).unwrap();
    keeper.answered(id, Ok(Answer::Done(1)), at(30_000));
    beat(&mut keeper, at(30_000));
    let holder = keeper.holder();
    keeper.lost(at(61_000));
    assert_eq!(keeper.may_put(at(61_000), 50), Err(Away::Lost));
    // The store is lost twice: before its answer comes, and after it.
    for _ in 0..2 {
        let (id, again) = keeper.poll(at(61_000)).unwrap();
        let Request::Remove { entries } = &again else {
            panic!("{again:?}")
        };
        let repeated: Vec<_> = entries.iter().map(|(name, _)| *name).collect();
        assert!(repeated.contains(&name(2)) && repeated.contains(&name(3)));
        keeper.lost(at(61_000));
        keeper.answered(id, Ok(Answer::Done(0)), at(61_000));
        let (id, again) = keeper.poll(at(61_000)).unwrap();
        assert!(matches!(&again, Request::Remove { .. }), "{again:?}");
        keeper.answered(id, Ok(Answer::Done(0)), at(61_000));
        assert!(!keeper.is_removing(name(3)));
        keeper.lost(at(61_000));
        assert!(keeper.is_removing(name(3)));
    }
    let (id, _) = keeper.poll(at(61_000)).unwrap();
    keeper.answered(id, Ok(Answer::Done(0)), at(61_000));
    beat(&mut keeper, at(61_000));
    let first = beat(&mut keeper, at(61_000));
    assert!(matches!(
        first,
        Request::Beat {
            expected: Expected::Any,
            ..
        }
    ));
    assert_ne!(
        keeper.holder(),
        holder,
        "the store may be an old file, and have what this holder removed long ago"
    );
    assert_eq!(keeper.may_find(at(61_000), 50), Err(Away::Quarantine));
    beat(&mut keeper, at(62_500));
    assert!(keeper.may_find(at(63_000), 50).is_ok());
    // The answer of a take comes after the loss. The store may have lost the take.
    keeper.took(name(4), &claim, at(63_000));
    assert!(keeper.is_removing(name(4)));
    let (claim, _) = keeper.may_find(at(63_000), 50).unwrap();
    keeper.took(name(5), &claim, at(63_000));
    assert!(!keeper.is_removing(name(5)));
}

#[test]
fn newest_removals_are_repeated_first() {
    let mut keeper = alive(at(0));
    let claim = keeper.may_put(at(0), 50).unwrap().0;
    for number in 0..100 {
        keeper.took(name(number), &claim, at(0));
    }
    keeper.remove(name(200), Some(Reason::Unclosed));
    keeper.lost(at(0));
    let (_, Request::Remove { entries }) = keeper.poll(at(0)).unwrap() else {
        panic!("no removal")
    };
    let newest: Vec<_> = (36..100).rev().map(|number| (name(number), None)).collect();
    assert_eq!(entries, newest);
}

#[test]
fn nothing_is_forgotten_while_the_store_is_away() {
    let mut keeper = alive(at(0));
    let claim = keeper.may_put(at(0), 50).unwrap().0;
    keeper.took(name(1), &claim, at(0));
    for second in 1..200 {
        if let Some((id, _)) = keeper.poll(at(1_000 * second)) {
            keeper.answered(id, Err(NoAnswer), at(1_000 * second));
        }
    }
    keeper.lost(at(200_000));
    assert!(keeper.is_removing(name(1)));
    // A minute of heartbeats later it is forgotten.
    let mut keeper = alive(at(0));
    keeper.took(name(1), &claim, at(0));
    for second in 1..=62 {
        beat(&mut keeper, at(1_000 * second));
    }
    assert_eq!(keeper.poll(at(62_001)), None);
    assert_eq!(keeper.ring.len(), 0);
}

#[test]
fn life_is_abandoned_when_too_much_waits() {
    let mut keeper = alive(at(0));
    let first = keeper.holder();
    let claim = keeper.may_put(at(0), 50).unwrap().0;
    for number in 0..=REMEMBERED_MAX {
        keeper.took(name(number), &claim, at(0));
    }
    assert_eq!(keeper.ring.len(), REMEMBERED_MAX);
    keeper.lost(at(0));
    let second = keeper.holder();
    assert_ne!(second, first);
    for number in 0..REMEMBERED_MAX {
        let reason = Some(Reason::Unclosed);
        assert_eq!(keeper.remove(name(number), reason), Removal::Queued);
    }
    assert_eq!(
        keeper.remove(name(0), Some(Reason::Unclosed)),
        Removal::Abandoned
    );
    assert_ne!(keeper.holder(), second);
    assert_eq!(
        keeper.removals.len(),
        REMEMBERED_MAX,
        "takes do not depend on the holder"
    );
    assert!(keeper.removals.iter().all(|(_, reason)| reason.is_none()));
    assert_eq!(keeper.may_find(at(0), 50), Err(Away::Lost));
}

#[test]
fn releases_go_together_and_only_for_the_present_life() {
    let mut keeper = alive(at(0));
    let holder = keeper.holder();
    let (one, two) = (keeper.token(), keeper.token());
    assert_ne!(one, two);
    keeper.release(holder, name(1), one, at(0));
    keeper.release(Holder([0; 8]), name(3), one, at(0));
    assert_eq!(keeper.poll(at(1)), None);
    assert_eq!(keeper.due(at(1)), Some(at(RELEASE_WAIT)));
    keeper.release(holder, name(2), two, at(10));
    let (id, sent) = keeper.poll(at(RELEASE_WAIT)).unwrap();
    let holds = vec![(name(1), one), (name(2), two)];
    assert_eq!(sent, Request::Release { holder, holds });
    keeper.answered(id, Ok(Answer::Done(2)), at(RELEASE_WAIT));
    assert!(keeper.is_flushed());
    for _ in 0..=RELEASES_MAX {
        keeper.release(holder, name(1), one, at(30));
    }
    assert_eq!(keeper.releases.len(), RELEASES_MAX);
}

#[test]
fn debug_form_shows_no_seed() {
    assert!(format!("{:?}", keeper()).contains("Seed(…)"));
}

#[test]
fn heartbeat_that_came_too_late_is_made_again_with_the_right_time() {
    let mut keeper = alive(at(0));
    // The store's clock was set forward by a minute.
    let (id, beat) = keeper.poll(at(BEAT_EVERY)).unwrap();
    let told = Answer::Overdue {
        now: Some(at(BEAT_EVERY).0 + AHEAD + 60_000),
        revision: Some(0),
    };
    keeper.answered(id, Ok(told), at(BEAT_EVERY));
    assert_eq!(keeper.poll(at(BEAT_EVERY)), None);
    let (_, again) = keeper.poll(at(BEAT_EVERY + BEAT_AGAIN)).unwrap();
    let validity = |request: &Request| match request {
        Request::Beat { valid_until, .. } => *valid_until,
        _ => 0,
    };
    assert_eq!(validity(&again), validity(&beat) + 60_000 + BEAT_AGAIN);
    assert_eq!(keeper.may_find(at(BEAT_EVERY), 50), Err(Away::Late));
}

#[test]
fn releases_are_repeated_until_the_store_has_them() {
    let mut keeper = alive(at(0));
    let holder = keeper.holder();
    keeper.release(holder, name(1), Token(1), at(10));
    keeper.release(holder, name(2), Token(2), at(10));
    let (id, release) = keeper.poll(at(40)).unwrap();
    assert!(matches!(&release, Request::Release { holds, .. } if holds.len() == 2));
    keeper.answered(id, Err(NoAnswer), at(50));
    assert!(!keeper.is_flushed());
    assert_eq!(keeper.poll(at(51)), None);
    let (id, again) = keeper.poll(at(400)).unwrap();
    assert_eq!(again, release);
    keeper.answered(id, Ok(Answer::Done(2)), at(401));
    assert!(keeper.is_flushed());
    // Those of an earlier holder are over.
    keeper.release(holder, name(3), Token(3), at(410));
    let (id, _) = keeper.poll(at(450)).unwrap();
    keeper.lost(at(460));
    keeper.answered(id, Err(NoAnswer), at(470));
    assert!(matches!(
        keeper.poll(at(1_000)),
        Some((_, Request::Beat { .. }))
    ));
}

#[test]
fn store_that_refuses_every_heartbeat_is_asked_seldom() {
    let mut keeper = alive(at(0));
    let mut asked = 0;
    for millis in BEAT_EVERY..BEAT_EVERY + 1_000 {
        while let Some((id, request)) = keeper.poll(at(millis)) {
            asked += 1;
            assert!(asked < 100, "{millis}");
            let answer = match request {
                Request::Beat { valid_until: 0, .. } => beaten(&request, at(millis)),
                _ => Answer::BeatLost {
                    now: at(millis).0 + AHEAD,
                    revision: 0,
                },
            };
            keeper.answered(id, Ok(answer), at(millis));
        }
    }
    assert!(asked > 2, "{asked}");
}
