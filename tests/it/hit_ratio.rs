//! Which sessions a full cache keeps, beside an exact LRU, moka and quick_cache.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tls_sessiond_core::{
    cache::{Cache, Offering, Plan, shared::Ledger},
    clock::Now,
    session::{Format, NewSession, Secret, SessionId, Terms, stats::Account},
    store::memory::Limits,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

/// Peers that come back, some often and most of them seldom.
const PEERS: usize = 10_000;
/// The cache has room for a tenth of them.
const ROOM: usize = PEERS / 10;
const REQUESTS: usize = 100_000;
/// Ids from here on come once.
const STRANGERS: u64 = 1 << 40;
/// From time to time as many strangers come as the cache has room for.
const BETWEEN_FLOODS: usize = 5_000;

/// Random numbers that are the same at every run: splitmix64.
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The peer of rank k comes as often as 1 / k^skew.
fn zipf(skew: f64, seed: u64) -> Vec<u64> {
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=PEERS)
        .map(|rank| {
            sum += (rank as f64).powf(-skew);
            sum
        })
        .collect();
    let mut random = Random(seed);
    (0..REQUESTS)
        .map(|_| {
            let place = random.next() * sum;
            sums.partition_point(|&sum| sum < place) as u64
        })
        .collect()
}

/// The same with floods of ids that never come again.
fn polluted(trace: &[u64]) -> Vec<u64> {
    let mut strangers = STRANGERS..;
    trace
        .chunks(BETWEEN_FLOODS)
        .flat_map(|part| part.iter().copied().chain(strangers.by_ref().take(ROOM)).collect::<Vec<_>>())
        .collect()
}

/// Per cent of the trace that is found. `ask` looks for one, and puts what is not there.
fn found(trace: &[u64], mut ask: impl FnMut(u64) -> bool) -> f64 {
    let found = trace.iter().filter(|&&peer| ask(peer)).count();
    100.0 * found as f64 / trace.len() as f64
}

fn ours(trace: &[u64]) -> f64 {
    const NOW: Now = Now::from_millis(1_000_000);
    let limits = Limits { entries_max: ROOM, bytes_max: usize::MAX };
    let plan = Plan { role: Role::Server, offering: Offering::Explicit, limits, session_bytes_max: 100 };
    let cache = Cache::new(&plan, &Arc::new(Ledger::new(limits)));
    let account = Arc::new(Account::new("default"));
    let server_name = ServerName::new("a.test").into_owned();
    let terms = Terms {
        format: &Format::Rustls,
        binding: &[],
        versions: &[Version::Tls12],
        server_name: &server_name,
        cipher_suite: None,
    };
    found(trace, |peer| {
        let id = SessionId::new(&peer.to_be_bytes()).unwrap();
        if cache.find(&id, &terms, NOW).is_ok() {
            return true;
        }
        let new = NewSession {
            id: Some(id),
            version: Version::Tls12,
            cipher_suite: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".into(),
            server_name: server_name.clone(),
            format: Format::Rustls,
            binding: [].into(),
            single_use: false,
            account: Arc::clone(&account),
            peer: None,
            authenticated: NOW.at,
            timeout: Duration::from_secs(3600),
            secret: Secret::copied(&[1; 48]),
        };
        cache.put(new, NOW).unwrap();
        false
    })
}

/// Exactly the least recently used leaves.
fn lru(trace: &[u64]) -> f64 {
    let (mut held, mut order) = (HashMap::new(), BTreeMap::new());
    let mut times = 0_u64..;
    found(trace, |peer| {
        let now = times.next().unwrap();
        let before = held.insert(peer, now);
        if let Some(before) = before {
            order.remove(&before);
        }
        order.insert(now, peer);
        if held.len() > ROOM {
            let (_, oldest) = order.pop_first().unwrap();
            held.remove(&oldest);
        }
        before.is_some()
    })
}

/// It puts off what it has to do; here it does so at each put and at every 64th question.
fn moka(trace: &[u64]) -> f64 {
    let cache = moka::sync::Cache::new(ROOM as u64);
    let mut asked = 0;
    found(trace, |peer| {
        let found = cache.get(&peer).is_some();
        asked += 1;
        if !found {
            cache.insert(peer, ());
        }
        if !found || asked % 64 == 0 {
            cache.run_pending_tasks();
        }
        found
    })
}

fn quick_cache(trace: &[u64]) -> f64 {
    let cache = quick_cache::sync::Cache::new(ROOM);
    found(trace, |peer| {
        let found = cache.get(&peer).is_some();
        if !found {
            cache.insert(peer, ());
        }
        found
    })
}

/// Everybody has the same traces. Two points are what other ids at random make of the same cache, and more.
#[test]
fn full_cache_keeps_what_is_asked_for_as_well_as_moka_and_quick_cache_do_and_better_than_lru() {
    for (seed, skew) in [0.7, 0.95, 1.2].into_iter().enumerate() {
        let trace = zipf(skew, seed as u64);
        for (name, trace) in [("Zipf", &trace), ("Zipf with scans", &polluted(&trace))] {
            let [ours, lru, moka, quick_cache] = [ours, lru, moka, quick_cache].map(|policy| policy(trace));
            let told = format!(
                "{name} {skew:.2}: ours {ours:.1} %, LRU {lru:.1} %, moka {moka:.1} %, quick_cache {quick_cache:.1} %"
            );
            println!("{told}");
            assert!(ours >= lru && ours >= moka.max(quick_cache) - 2.0, "{told}");
        }
    }
}
