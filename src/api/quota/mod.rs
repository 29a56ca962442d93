//! Limits on the resources that one identity holds at a time, over all of its connections: calls,
//! bytes of unfinished requests and unread answers, sockets.
//!
//! Each resource has a limit for all callers together and a smaller one for each identity, so that
//! no caller exhausts the resource for the others. Callers without a role, and peers that have not
//! proved an identity, have small pools of their own. They never take a place of a worker.

pub(crate) mod each_second;
pub(crate) mod line_budget;
mod pool;
pub(crate) mod streams;
pub(crate) mod turns;

use std::{
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use dashmap::DashMap;
use tls_sessiond_core::session::events::WATCHERS_MAX;

use super::{
    error::Refusal,
    quota::pool::{Full, Pool},
};
use crate::config::Limits;

/// Most calls of health and reflection in flight, in all and of one identity. Every caller may make
/// these calls.
const OPEN_CALLS: usize = 256;
const OPEN_CALLS_OF_ONE: usize = 32;
/// Most sockets of callers without a role, in all and of one identity.
const SOCKETS_WITHOUT_ROLE: usize = 128;
const SOCKETS_WITHOUT_ROLE_OF_ONE: usize = 4;
/// Most streams of WatchSessions, in all and of one identity.
const WATCHERS: usize = WATCHERS_MAX;
const WATCHERS_OF_ONE: usize = WATCHERS_MAX / 2;
/// Most unfinished TLS handshakes of the API, in all and from one source. A source is an IPv4
/// address or an IPv6 network of 64 bits.
const HANDSHAKES: usize = 512;
const HANDSHAKES_OF_ONE: usize = 64;

/// Most bytes of answers that HTTP/2 has accepted and not yet written, of all connections and of
/// those of one identity. The last two bound the share of one connection.
const ANSWERS: usize = 256 << 20;
const ANSWERS_OF_ONE: usize = 16 << 20;
const ANSWERS_LEAST: usize = 8 << 10;
const ANSWERS_MOST: usize = 1 << 20;

/// All pools, and the account of each identity.
pub(crate) struct Accounts {
    calls: Pool,
    attached: Pool,
    open_calls: Pool,
    sockets_without_role: Pool,
    handshakes: Pool,
    watchers: Pool,
    bytes: Pool,
    /// Bytes of answers that HTTP/2 holds.
    answers: AtomicUsize,
    /// Connections whose identity is known.
    connections: AtomicUsize,
    by_owner: Members<Arc<str>, Account>,
    by_address: Members<IpAddr, Source>,
}

/// The resources that one identity holds.
#[derive(Default)]
pub(crate) struct Account {
    calls: AtomicUsize,
    attached: AtomicUsize,
    open_calls: AtomicUsize,
    sockets_without_role: AtomicUsize,
    watchers: AtomicUsize,
    bytes: AtomicUsize,
    /// Bytes of answers that HTTP/2 holds.
    answers: AtomicUsize,
}

/// The resources that one source address holds before an identity is proved.
#[derive(Default)]
struct Source {
    handshakes: AtomicUsize,
}

/// Members that hold a resource now, by key. Others have no entry.
struct Members<K: Eq + Hash, M>(DashMap<K, Weak<M>>);

impl<K: Eq + Hash + Clone, M: Default> Members<K, M> {
    /// Returns the member of this key, and creates it if there is none.
    fn get(&self, key: &K) -> Arc<M> {
        let mut entry = self.0.entry(key.clone()).or_default();
        if let Some(member) = entry.upgrade() {
            return member;
        }
        let member = Arc::new(M::default());
        *entry = Arc::downgrade(&member);
        member
    }

    /// Removes the entry of this key if its member is no longer referenced.
    fn forget(&self, key: &K) {
        self.0
            .remove_if(key, |_, member| member.strong_count() == 0);
    }
}

/// The account of an identity, as one of its connections holds it.
pub(crate) struct Holder {
    accounts: Arc<Accounts>,
    owner: Arc<str>,
    account: Arc<Account>,
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Release the account before looking at its count. When several holders are dropped at
        // once, the last one then finds it unreferenced.
        self.account = Arc::default();
        self.accounts.connections.fetch_sub(1, Ordering::Relaxed);
        self.accounts.by_owner.forget(&self.owner);
    }
}

impl std::fmt::Debug for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Holder")
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

impl Accounts {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            calls: Pool::new(limits.calls_in_flight, limits.calls_per_owner),
            attached: Pool::with_reserve(limits.calls_in_flight, limits.calls_per_owner),
            open_calls: Pool::new(OPEN_CALLS, OPEN_CALLS_OF_ONE),
            sockets_without_role: Pool::new(SOCKETS_WITHOUT_ROLE, SOCKETS_WITHOUT_ROLE_OF_ONE),
            handshakes: Pool::new(HANDSHAKES, HANDSHAKES_OF_ONE),
            watchers: Pool::new(WATCHERS, WATCHERS_OF_ONE),
            bytes: Pool::with_reserve(limits.request_bytes, limits.request_bytes_per_owner),
            answers: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            by_owner: Members(DashMap::new()),
            by_address: Members(DashMap::new()),
        }
    }

    /// Applies the limits of a new configuration.
    pub(crate) fn resize(&self, limits: &Limits) {
        self.calls
            .resize(limits.calls_in_flight, limits.calls_per_owner);
        self.attached
            .resize(limits.calls_in_flight, limits.calls_per_owner);
        self.bytes
            .resize(limits.request_bytes, limits.request_bytes_per_owner);
    }

    /// Returns the number of connections whose identity is known.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Returns the number of calls in flight.
    pub(crate) fn calls(&self) -> usize {
        self.calls.taken()
    }

    /// Returns the account of an identity, for one more of its connections.
    pub(crate) fn holder(self: &Arc<Self>, owner: &Arc<str>) -> Arc<Holder> {
        let account = self.by_owner.get(owner);
        self.connections.fetch_add(1, Ordering::Relaxed);
        Arc::new(Holder {
            accounts: Arc::clone(self),
            owner: Arc::clone(owner),
            account,
        })
    }

    /// Counts a TLS handshake with a peer from this address until the return value is dropped.
    /// Returns `None` if too many are unfinished, in all or from this source.
    pub(crate) fn handshake(self: &Arc<Self>, from: IpAddr) -> Option<Handshake> {
        let from = network(from);
        let source = self.by_address.get(&from);
        let taken = self.handshakes.take(&source.handshakes, 1);
        if taken.is_err() {
            drop(source);
            self.by_address.forget(&from);
            return None;
        }
        Some(Handshake {
            accounts: Arc::clone(self),
            from,
            source: Some(source),
        })
    }
}

/// Returns the source that an address counts for. All addresses of one IPv6 network of 64 bits are
/// one source, because one host can use all of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

/// An unfinished handshake. Dropping it ends its count.
pub(crate) struct Handshake {
    accounts: Arc<Accounts>,
    from: IpAddr,
    source: Option<Arc<Source>>,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        if let Some(source) = self.source.take() {
            self.accounts.handshakes.give_back(&source.handshakes, 1);
        }
        self.accounts.by_address.forget(&self.from);
    }
}

/// A resource that an identity holds: one place, or a number of bytes. Dropping it returns the
/// resource.
pub(crate) struct Held {
    holder: Arc<Holder>,
    what: Resource,
    amount: usize,
}

#[derive(Clone, Copy)]
enum Resource {
    Call,
    Attached,
    OpenCall,
    SocketWithoutRole,
    Watcher,
    Bytes,
}

impl Holder {
    fn place(&self, what: Resource) -> (&Pool, &AtomicUsize) {
        let (accounts, account) = (&self.accounts, &self.account);
        match what {
            Resource::Call => (&accounts.calls, &account.calls),
            Resource::Attached => (&accounts.attached, &account.attached),
            Resource::OpenCall => (&accounts.open_calls, &account.open_calls),
            Resource::SocketWithoutRole => (
                &accounts.sockets_without_role,
                &account.sockets_without_role,
            ),
            Resource::Watcher => (&accounts.watchers, &account.watchers),
            Resource::Bytes => (&accounts.bytes, &account.bytes),
        }
    }

    fn take(self: &Arc<Self>, what: Resource) -> Result<Held, Full> {
        let (pool, of_one) = self.place(what);
        pool.take(of_one, 1)?;
        Ok(Held {
            holder: Arc::clone(self),
            what,
            amount: 1,
        })
    }

    /// Takes a place for a call, held until the call is answered.
    ///
    /// # Errors
    /// [`Refusal::CallLimit`] or [`Refusal::OwnerCallLimit`].
    pub(crate) fn call(self: &Arc<Self>) -> Result<Held, Refusal> {
        self.take(Resource::Call).map_err(Full::of_calls)
    }

    /// Takes a place for an Attach, held until its stream ends. Attach streams have the same limits
    /// as calls in flight, and are counted apart from them.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) fn attached(self: &Arc<Self>) -> Result<Held, Refusal> {
        self.take(Resource::Attached).map_err(Full::of_calls)
    }

    /// Takes a place for a call of health or reflection, which every caller may make.
    ///
    /// # Errors
    /// [`Refusal::OpenCallLimit`] or [`Refusal::OwnerOpenCallLimit`].
    pub(crate) fn open_call(self: &Arc<Self>) -> Result<Held, Refusal> {
        self.take(Resource::OpenCall).map_err(|full| match full {
            Full::OfOne(most) => Refusal::OwnerOpenCallLimit(most),
            Full::OfAll(most) => Refusal::OpenCallLimit(most),
        })
    }

    /// Takes a place for a socket of a caller without a role. Returns `None` if the limit is
    /// reached.
    pub(crate) fn socket_without_role(self: &Arc<Self>) -> Option<Held> {
        self.take(Resource::SocketWithoutRole).ok()
    }

    /// Takes a place for a watcher, held until its stream ends.
    ///
    /// # Errors
    /// [`Refusal::WatcherLimit`].
    pub(crate) fn watcher(self: &Arc<Self>) -> Result<Held, Refusal> {
        self.take(Resource::Watcher).map_err(|full| match full {
            Full::OfOne(most) | Full::OfAll(most) => Refusal::WatcherLimit(most),
        })
    }

    /// Checks that a new call would have room for its bytes. A call that changes state must have
    /// room to report the result.
    ///
    /// # Errors
    /// [`Refusal::RequestBytesLimit`].
    pub(crate) fn has_room_for_bytes(&self) -> Result<(), Refusal> {
        let (pool, of_one) = self.place(Resource::Bytes);
        pool.has_room(of_one).map_err(Full::of_bytes)
    }

    /// Returns how many more bytes of answers a connection may have in HTTP/2, where it has `held`
    /// bytes already. That is the rest of its share, within the rest of the limits of its identity
    /// and of all callers. A connection that holds nothing always has room for [`ANSWERS_LEAST`]
    /// bytes.
    pub(crate) fn answers_room(&self, held: usize) -> usize {
        let connections = self.accounts.connections.load(Ordering::Relaxed).max(1);
        let of_one = Arc::strong_count(&self.account);
        let share = (ANSWERS / connections)
            .min(ANSWERS_OF_ONE / of_one)
            .clamp(ANSWERS_LEAST, ANSWERS_MOST);
        let left =
            |most: usize, taken: &AtomicUsize| most.saturating_sub(taken.load(Ordering::Relaxed));
        let left =
            left(ANSWERS_OF_ONE, &self.account.answers).min(left(ANSWERS, &self.accounts.answers));
        let room = share.saturating_sub(held).min(left);
        if held == 0 {
            room.max(ANSWERS_LEAST)
        } else {
            room
        }
    }

    /// Counts bytes of an answer that HTTP/2 has accepted.
    pub(crate) fn hold_answer(&self, bytes: usize) {
        self.account.answers.fetch_add(bytes, Ordering::Relaxed);
        self.accounts.answers.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Ends the count of bytes that were written, or whose connection has closed.
    pub(crate) fn release_answer(&self, bytes: usize) {
        self.account.answers.fetch_sub(bytes, Ordering::Relaxed);
        self.accounts.answers.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns a count of 0 bytes, for an unfinished request or an unread answer. Grows with
    /// [`Held::resize`].
    pub(crate) fn no_bytes(self: &Arc<Self>) -> Held {
        Held {
            holder: Arc::clone(self),
            what: Resource::Bytes,
            amount: 0,
        }
    }
}

impl Held {
    /// Changes the amount held.
    ///
    /// # Errors
    /// [`Refusal::RequestBytesLimit`]. The amount then stays as it was.
    pub(crate) fn resize(&mut self, amount: usize) -> Result<(), Refusal> {
        if let Some(more) = amount.checked_sub(self.amount) {
            let (pool, of_one) = self.holder.place(self.what);
            pool.take(of_one, more).map_err(Full::of_bytes)?;
            self.amount = amount;
        }
        self.shrink(amount);
        Ok(())
    }

    /// Returns the amount held.
    pub(crate) fn bytes(&self) -> usize {
        self.amount
    }

    /// Reduces the amount held to this many, if it is more.
    pub(crate) fn shrink(&mut self, at_most: usize) {
        let less = self.amount.saturating_sub(at_most);
        let (pool, of_one) = self.holder.place(self.what);
        pool.give_back(of_one, less);
        self.amount -= less;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn accounts(calls: usize, of_one: usize) -> Arc<Accounts> {
        let limits = Config::defaults().limits;
        let limits = Limits {
            calls_in_flight: calls,
            calls_per_owner: of_one,
            ..limits
        };
        Arc::new(Accounts::new(&limits))
    }

    #[test]
    fn one_identity_does_not_take_what_is_for_all() {
        let accounts = accounts(5, 3);
        let (one, other) = (
            accounts.holder(&"one".into()),
            accounts.holder(&"other".into()),
        );
        // A second connection of one identity shares its account.
        let again = accounts.holder(&"one".into());
        let held: Vec<_> = [one.call(), again.call(), one.call()]
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert!(matches!(again.call(), Err(Refusal::OwnerCallLimit(3))));
        let others = [other.call().unwrap(), other.call().unwrap()];
        assert!(matches!(other.call(), Err(Refusal::CallLimit(5))));
        drop(held);
        assert!(other.call().is_ok() && one.call().is_ok());
        drop(others);
        assert_eq!(accounts.calls.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn identities_that_hold_nothing_are_forgotten() {
        let accounts = accounts(10, 10);
        for number in 0..1000 {
            let owner: Arc<str> = format!("owner {number}").into();
            let holder = accounts.holder(&owner);
            let held = holder.call().unwrap();
            drop(holder);
            assert_eq!(
                accounts.by_owner.0.len(),
                1,
                "a running call keeps its account"
            );
            drop(held);
            assert_eq!(accounts.by_owner.0.len(), 0);
        }
        for number in 0..1000_u32 {
            drop(accounts.handshake(IpAddr::from(number.to_be_bytes())));
        }
        assert_eq!(accounts.by_address.0.len(), 0);
    }

    #[test]
    fn of_connections_that_end_at_once_the_last_forgets_their_identity() {
        let accounts = accounts(10, 10);
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        let holder = accounts.holder(&"one".into());
                        barrier.wait();
                        drop(holder);
                        barrier.wait();
                        assert_eq!(accounts.by_owner.0.len(), 0);
                        barrier.wait();
                    }
                });
            }
        });
    }

    #[test]
    fn bytes_are_taken_as_they_come_and_given_back() {
        let limits = Limits {
            request_bytes: 100,
            request_bytes_per_owner: 60,
            ..Config::defaults().limits
        };
        let accounts = Arc::new(Accounts::new(&limits));
        let holder = accounts.holder(&"one".into());
        let mut bytes = holder.no_bytes();
        bytes.resize(40).unwrap();
        assert!(matches!(
            bytes.resize(61),
            Err(Refusal::RequestBytesLimit(60))
        ));
        bytes.resize(60).unwrap();
        bytes.resize(10).unwrap();
        let mut others = holder.no_bytes();
        others.resize(50).unwrap();
        bytes.shrink(20);
        assert!(
            bytes.resize(11).is_err(),
            "the first count still holds 10 bytes"
        );
        drop(others);
        bytes.resize(60).unwrap();
        drop(bytes);
        assert_eq!(accounts.bytes.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn identities_that_take_everything_leave_each_other_one_its_reserve() {
        let limits = Limits {
            request_bytes: 256,
            request_bytes_per_owner: 64,
            ..Config::defaults().limits
        };
        let limits = Limits {
            calls_in_flight: 64,
            calls_per_owner: 32,
            ..limits
        };
        let accounts = Arc::new(Accounts::new(&limits));
        let holder = |name: &str| accounts.holder(&name.into());
        let hostile = ["a", "b", "c", "d"].map(|name| {
            let mut bytes = holder(name).no_bytes();
            bytes.resize(64).unwrap();
            bytes
        });
        let honest = holder("honest");
        honest.has_room_for_bytes().unwrap();
        let mut bytes = honest.no_bytes();
        bytes.resize(4).unwrap();
        assert!(matches!(
            bytes.resize(5),
            Err(Refusal::RequestBytesLimit(256))
        ));
        assert!(matches!(
            honest.has_room_for_bytes(),
            Err(Refusal::RequestBytesLimit(256))
        ));
        let attached: Vec<_> = ["a", "b"]
            .iter()
            .flat_map(|name| (0..32).map(|_| holder(name).attached().unwrap()))
            .collect();
        let mine = [honest.attached().unwrap(), honest.attached().unwrap()];
        assert!(matches!(honest.attached(), Err(Refusal::CallLimit(64))));
        drop((hostile, attached, mine, bytes));
        assert_eq!(accounts.bytes.taken.load(Ordering::Relaxed), 0);
        assert_eq!(accounts.attached.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn addresses_of_one_network_share_their_handshakes() {
        let accounts = accounts(10, 10);
        let from = |text: &str| accounts.handshake(text.parse().unwrap());
        let held: Vec<_> = (0..HANDSHAKES_OF_ONE)
            .map(|at| from(&format!("2001:db8::{at:x}")))
            .collect();
        assert!(held.iter().all(Option::is_some));
        assert!(from("2001:db8::ffff:1").is_none() && from("2001:db8:0:1::1").is_some());
        assert!(from("192.0.2.1").is_some() && from("::ffff:192.0.2.1").is_some());
        drop(held);
        assert!(from("2001:db8::ffff:1").is_some());
    }
}
