//! The hit ratio of a full session cache, compared with an exact LRU, moka and quick_cache.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tls_sessiond_core::{
    cache::{Cache, Offering, Plan, shared::SharedState},
    clock::Now,
    session::{Format, NewSession, ResumeCriteria, Secret, SessionId, stats::Account},
    store::memory::Limits,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

/// Number of peers that return, some often and most of them rarely.
const PEERS: usize = 10_000;
/// Capacity of the cache: a tenth of the peers.
const ROOM: usize = PEERS / 10;
const REQUESTS: usize = 100_000;
/// First id of the peers that come once.
const STRANGERS: u64 = 1 << 40;
/// Requests between two floods. Each flood has as many one-time peers as the cache has room for.
const BETWEEN_FLOODS: usize = 5_000;

/// A pseudo-random generator (splitmix64) that gives the same numbers in every run.
struct Random(u64);

impl Random {
    /// Returns a number from 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Returns a trace in which the frequency of the peer of rank k is proportional to 1 / k^skew.
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

/// Returns the trace with floods of ids that never return.
fn polluted(trace: &[u64]) -> Vec<u64> {
    let mut strangers = STRANGERS..;
    trace
        .chunks(BETWEEN_FLOODS)
        .flat_map(|part| {
            part.iter()
                .copied()
                .chain(strangers.by_ref().take(ROOM))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Returns the hit ratio of a trace in per cent. `ask` looks a peer up and stores it after a miss.
fn found(trace: &[u64], mut ask: impl FnMut(u64) -> bool) -> f64 {
    let found = trace.iter().filter(|&&peer| ask(peer)).count();
    100.0 * found as f64 / trace.len() as f64
}

fn ours(trace: &[u64]) -> f64 {
    const NOW: Now = Now::from_millis(1_000_000);
    let limits = Limits {
        entries_max: ROOM,
        bytes_max: usize::MAX,
    };
    let plan = Plan {
        role: Role::Server,
        offering: Offering::Explicit,
        limits,
        session_bytes_max: 100,
    };
    let cache = Cache::new(&plan, &Arc::new(SharedState::new(limits)));
    let account = Arc::new(Account::new("default"));
    let server_name = ServerName::new("a.test").into_owned();
    let terms = ResumeCriteria {
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

/// An exact LRU: the least recently used entry is evicted.
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

/// moka defers its maintenance. Here it runs at each put and at every 64th lookup.
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

/// All policies get the same traces. The tolerance is two percentage points: other random ids
/// change the ratio of the same cache by less.
#[test]
fn full_cache_hit_ratio_matches_moka_and_beats_lru() {
    for (seed, skew) in [0.7, 0.95, 1.2].into_iter().enumerate() {
        let trace = zipf(skew, seed as u64);
        for (name, trace) in [("Zipf", &trace), ("Zipf with scans", &polluted(&trace))] {
            let [ours, lru, moka, quick_cache] =
                [ours, lru, moka, quick_cache].map(|policy| policy(trace));
            let told = format!(
                "{name} {skew:.2}: ours {ours:.1} %, LRU {lru:.1} %, moka {moka:.1} %, quick_cache {quick_cache:.1} %"
            );
            println!("{told}");
            assert!(ours >= lru && ours >= moka.max(quick_cache) - 2.0, "{told}");
        }
    }
}
