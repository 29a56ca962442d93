use std::time::Duration;

use tls_sessiond_types::{Version, server_name::ServerName};

use super::*;
use crate::{
    clock::{Clock, ManualClock, Step},
    session::{Format, PeerIdentity, Secret, stats::Account},
};

const NOW: Now = Now::from_millis(1_000_000);
const HOUR: Duration = Duration::from_secs(3600);

const ROOM: Limits = Limits {
    entries_max: 10,
    bytes_max: 10_000,
};

fn cache() -> Cache {
    cache_of(Role::Server, ROOM, &Arc::new(SharedState::new(ROOM)))
}

fn cache_of(role: Role, limits: Limits, ledger: &Arc<SharedState>) -> Cache {
    let plan = Plan {
        role,
        offering: Offering::Shared,
        limits,
        session_bytes_max: 100,
    };
    Cache::new(&plan, ledger)
}

fn new(id: u8, version: Version) -> NewSession {
    NewSession {
        id: SessionId::new(&[id]),
        version,
        cipher_suite: "TLS_AES_128_GCM_SHA256".into(),
        server_name: "a.test".into(),
        format: Format::Rustls,
        binding: [].into(),
        single_use: version == Version::Tls13,
        account: Arc::new(Account::new("default")),
        peer: None,
        authenticated: NOW.at,
        timeout: HOUR,
        secret: Secret::bytes(vec![1; 50]),
    }
}

fn find(
    cache: &Cache,
    id: u8,
    version: Version,
    name: &str,
    now: Now,
) -> Result<Arc<Session>, Miss> {
    let terms = ResumeCriteria {
        format: &Format::Rustls,
        binding: &[],
        versions: &[version],
        server_name: &name.into(),
        cipher_suite: None,
    };
    cache.find(&self::id(id), &terms, now)
}

fn id(id: u8) -> SessionId {
    SessionId::new(&[id]).unwrap()
}

// Invariant 5.
#[test]
fn lifetime_counts_from_authentication_up_to_the_certificate() {
    let cache = cache();
    let soon = NOW.after(Duration::from_secs(60));
    let peer = PeerIdentity {
        not_after: soon.wall(),
        ..PeerIdentity::default()
    };
    let cut = NewSession {
        peer: Some(Arc::new(peer)),
        ..new(1, Version::Tls12)
    };
    assert_eq!(cache.put(cut, NOW).unwrap().expires(), soon.at);
    let later = NOW.after(HOUR / 2);
    assert_eq!(
        cache.put(new(2, Version::Tls12), later).unwrap().expires(),
        NOW.at.after(HOUR)
    );
    assert!(
        cache.put(new(3, Version::Tls12), NOW.after(HOUR)).is_err(),
        "its lifetime has passed"
    );

    let last = Now::from_millis(soon.at.as_millis() - 1);
    assert!(find(&cache, 1, Version::Tls12, "a.test", last).is_ok());
    assert_eq!(
        find(&cache, 1, Version::Tls12, "a.test", soon).unwrap_err(),
        Miss::Expired
    );
    assert_eq!(
        find(&cache, 1, Version::Tls12, "a.test", NOW).unwrap_err(),
        Miss::Expired,
        "it was removed"
    );
}

#[test]
fn wall_clock_past_the_certificate_expires_its_session() {
    let cache = cache();
    let peer = PeerIdentity {
        not_after: NOW.after(HOUR).wall(),
        ..PeerIdentity::default()
    };
    let put = |id| {
        let new = NewSession {
            peer: Some(Arc::new(peer.clone())),
            ..new(id, Version::Tls12)
        };
        cache.put(new, NOW).unwrap();
    };
    put(1);
    let manual = ManualClock::starting(NOW.wall());
    manual.set_wall(Step::Forward(HOUR - Duration::from_millis(1)));
    let now = || Clock::Manual(manual.clone()).now();
    assert!(find(&cache, 1, Version::Tls12, "a.test", now()).is_ok());
    manual.set_wall(Step::Forward(Duration::from_millis(1)));
    assert!(cache.peek(&id(1), now()).is_none());
    assert_eq!(
        find(&cache, 1, Version::Tls12, "a.test", now()).unwrap_err(),
        Miss::Expired
    );
    let again = NewSession {
        peer: Some(Arc::new(peer.clone())),
        ..new(1, Version::Tls12)
    };
    assert_eq!(cache.put(again, now()).unwrap_err(), NotStored::Expired);
    manual.set_wall(Step::Back(2 * HOUR));
    put(2);
    manual.advance(HOUR);
    assert_eq!(
        find(&cache, 2, Version::Tls12, "a.test", now()).unwrap_err(),
        Miss::Expired,
        "the certificate has shortened its lifetime"
    );
}

// Invariant 3.
#[test]
fn lookup_needs_version_and_name_and_a_miss_consumes_nothing() {
    let cache = cache();
    cache.put(new(1, Version::Tls13), NOW).unwrap();
    assert!(find(&cache, 1, Version::Tls12, "a.test", NOW).is_err());
    assert!(find(&cache, 1, Version::Tls13, "b.test", NOW).is_err());
    assert!(find(&cache, 1, Version::Tls13, "", NOW).is_err());
    assert!(find(&cache, 1, Version::Tls13, "a.test", NOW).is_ok());
    assert!(
        find(&cache, 1, Version::Tls13, "a.test", NOW).is_err(),
        "the first lookup consumed the ticket"
    );
    cache.put(new(2, Version::Tls12), NOW).unwrap();
    for _ in 0..2 {
        assert!(find(&cache, 2, Version::Tls12, "a.test", NOW).is_ok());
    }
    assert!(cache.remove(&id(2), NOW) && !cache.remove(&id(2), NOW));
}

#[test]
fn lookup_needs_equal_format_and_binding() {
    let cache = cache();
    let openssl = Format::Worker("openssl".into());
    let alike = Format::Worker("rustls".into());
    let put = NewSession {
        format: openssl.clone(),
        binding: (*b"vhost").into(),
        ..new(1, Version::Tls13)
    };
    cache.put(put, NOW).unwrap();
    let name = ServerName::from("a.test");
    let terms = |format, binding| ResumeCriteria {
        format,
        binding,
        versions: &[Version::Tls13],
        server_name: &name,
        cipher_suite: None,
    };
    for (format, binding) in [
        (&Format::Rustls, &b"vhost"[..]),
        (&alike, b"vhost"),
        (&openssl, b"vhos"),
        (&openssl, b""),
        (&openssl, b"vhost2"),
    ] {
        assert_eq!(
            cache
                .find(&id(1), &terms(format, binding), NOW)
                .unwrap_err(),
            Miss::Scope
        );
    }
    assert!(
        cache.find(&id(1), &terms(&openssl, b"vhost"), NOW).is_ok(),
        "no miss has consumed it"
    );
}

#[test]
fn id_is_reused_only_after_its_session_expired() {
    let cache = cache();
    cache.put(new(1, Version::Tls12), NOW).unwrap();
    assert_eq!(
        cache.put(new(1, Version::Tls12), NOW).unwrap_err(),
        NotStored::IdTaken
    );
    let later = NOW.after(HOUR);
    let next = NewSession {
        authenticated: later.at,
        ..new(1, Version::Tls12)
    };
    assert_eq!(cache.put(next, later).unwrap().facts().created(), later.at);
}

#[test]
fn session_over_the_size_limit_is_not_kept() {
    let cache = cache();
    let large = NewSession {
        secret: Secret::bytes(vec![1; 101]),
        ..new(1, Version::Tls12)
    };
    assert_eq!(cache.put(large, NOW).unwrap_err(), NotStored::TooLarge);
    assert!(cache.is_empty() && cache.bytes() == 0);
}

#[test]
fn referenced_sessions_are_not_overwritten_and_memory_is_reused() {
    let limits = Limits {
        entries_max: 1,
        bytes_max: usize::MAX,
    };
    let cache = cache_of(Role::Server, limits, &Arc::new(SharedState::new(ROOM)));
    let put = |id: u8| {
        let secret = Secret::bytes(vec![id; 50]);
        cache
            .put(
                NewSession {
                    secret,
                    ..new(id, Version::Tls12)
                },
                NOW,
            )
            .unwrap()
    };
    let is = |session: &Session, id: u8| {
        assert_eq!(
            (session.id(), session.secret().as_bytes()),
            (&self::id(id), Some(&[id; 50][..]))
        );
    };
    let held = put(1);
    let gone = Arc::as_ptr(&put(2));
    assert_eq!(Arc::strong_count(&held), 1, "it was evicted for the second");
    let third = put(3);
    assert_ne!(
        Arc::as_ptr(&third),
        gone,
        "the second was stored until the third came"
    );
    // The second was evicted and unused, so its memory is reused. Storing the fourth evicts the
    // third.
    let fourth = put(4);
    assert_eq!(Arc::as_ptr(&fourth), gone);
    for (session, id) in [(&held, 1), (&third, 3), (&fourth, 4)] {
        is(session, id);
        assert_eq!(session.open_connections(), 0);
    }
    fourth.hold();
    drop(fourth);
    let fifth = put(5);
    assert!(
        Arc::as_ptr(&fifth) != gone,
        "the fourth was stored until the fifth came"
    );
    let sixth = put(6);
    assert_eq!(
        (Arc::as_ptr(&sixth), sixth.open_connections()),
        (gone, 0),
        "no state of the fourth remains"
    );
    (1..6).for_each(|id| {
        assert_eq!(
            find(&cache, id, Version::Tls12, "a.test", NOW).unwrap_err(),
            Miss::Removed
        );
    });
    is(&find(&cache, 6, Version::Tls12, "a.test", NOW).unwrap(), 6);
}

#[test]
fn prefetched_lookups_find_the_same_sessions() {
    let limits = Limits {
        entries_max: FAR,
        bytes_max: usize::MAX,
    };
    let cache = cache_of(Role::Server, limits, &Arc::new(SharedState::new(limits)));
    let id = |number: usize| SessionId::new(&number.to_be_bytes()).unwrap();
    let put = |number: usize| {
        cache
            .put(
                NewSession {
                    id: Some(id(number)),
                    ..new(0, Version::Tls13)
                },
                NOW,
            )
            .unwrap();
    };
    (1..FAR).for_each(put);
    cache.expect((0..1).map(|_| unreachable!("a small cache prefetches nothing")));
    put(FAR);
    let terms = ResumeCriteria {
        format: &Format::Rustls,
        binding: &[],
        versions: &[Version::Tls13],
        server_name: &"a.test".into(),
        cipher_suite: None,
    };
    // The last id twice, and one that is not stored.
    let wanted = || (FAR - 20..=FAR).chain([FAR, FAR + 1]).map(id);
    cache.expect(wanted());
    let found: Vec<_> = wanted()
        .map(|id| cache.find(&id, &terms, NOW).map(|found| found.id().clone()))
        .collect();
    let expected = (FAR - 20..=FAR).map(|number| Ok(id(number)));
    assert!(
        found
            .into_iter()
            .eq(expected.chain([Err(Miss::Removed), Err(Miss::Unknown)]))
    );
}
