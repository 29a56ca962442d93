//! Random histories of clients, compared with a small model: which tickets each client has, and which
//! connections ended badly.

use std::collections::{HashMap, HashSet, VecDeque};

use proptest::prelude::*;
use rustls::{SupportedProtocolVersion, version::TLS13};

use super::{Client, House, VERSIONS};
use crate::seed::runner;

/// Most tickets of a server that rustls keeps as a client.
const KEPT_MAX: usize = 8;
const CLIENTS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// A client makes a connection, which stays open.
    Visit(usize),
    /// An open connection is closed and freed.
    Close(prop::sample::Index),
    /// An open connection is freed without a close.
    Abandon(prop::sample::Index),
    /// An open connection receives garbage.
    Garbage(prop::sample::Index),
    Remove(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0..CLIENTS).prop_map(Op::Visit),
        3 => index().prop_map(Op::Close),
        1 => index().prop_map(Op::Abandon),
        1 => index().prop_map(Op::Garbage),
        1 => index().prop_map(Op::Remove),
    ]
}

/// What the test knows. A ticket is known by the connection that made it: its family ends as a whole.
#[derive(Default)]
struct Model {
    /// The tickets of each client, newest last.
    tickets: [VecDeque<usize>; CLIENTS],
    bad: HashSet<usize>,
    /// Tickets that were removed alone: the newest of their connections.
    removed: HashSet<usize>,
    /// Open connections: their ids, and the connections whose tickets end with them.
    open: Vec<(String, Vec<usize>)>,
    sessions: HashMap<usize, String>,
    made: usize,
}

impl Model {
    fn take<T>(from: &mut Vec<T>, index: prop::sample::Index) -> Option<T> {
        (!from.is_empty()).then(|| from.remove(index.index(from.len())))
    }

    async fn visit(
        &mut self,
        house: &House,
        client: &Client,
        number: usize,
        version: &SupportedProtocolVersion,
    ) {
        let is_13 = version.version == TLS13.version;
        let tickets = &mut self.tickets[number];
        let offered = match is_13 {
            true => tickets.pop_back(),
            false => tickets.back().copied(),
        };
        // Only the newest ticket of a connection was removed alone, and it is offered first.
        let wanted = offered.filter(|made| {
            let is_removed = match is_13 {
                true => self.removed.remove(made),
                false => self.removed.contains(made),
            };
            !is_removed && !self.bad.contains(made)
        });
        let (id, resumed) = client.visits(&house.daemon).await;
        assert_eq!(resumed, wanted.is_some(), "{version:?}: {offered:?}");
        let session = house.daemon.get(&id).await.session_id;
        let family = match wanted {
            // The session of TLS 1.2 is that of the first connection.
            Some(first) if !is_13 => first,
            _ => {
                self.made += 1;
                let count = if is_13 && !resumed { 2 } else { 1 };
                if !is_13 {
                    tickets.clear();
                }
                tickets.extend(std::iter::repeat_n(self.made, count));
                while tickets.len() > KEPT_MAX {
                    tickets.pop_front();
                }
                self.made
            }
        };
        self.sessions.insert(family, session);
        self.open.push((id, vec![family]));
    }

    async fn apply(
        &mut self,
        op: Op,
        house: &House,
        clients: &[Client],
        version: &SupportedProtocolVersion,
    ) {
        match op {
            Op::Visit(number) => self.visit(house, &clients[number], number, version).await,
            Op::Close(index) => {
                if let Some((id, _)) = Self::take(&mut self.open, index) {
                    house.shut(&id).await;
                }
            }
            Op::Abandon(index) => {
                if let Some((id, families)) = Self::take(&mut self.open, index) {
                    house.free(&id).await;
                    self.bad.extend(families);
                }
            }
            Op::Garbage(index) => {
                if let Some((id, families)) = Self::take(&mut self.open, index) {
                    let garbage = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
                    let failed = house.daemon.exchange(&id, &garbage, b"").await.unwrap();
                    assert!(failed.alert.is_some());
                    self.bad.extend(families);
                    house.free(&id).await;
                }
            }
            Op::Remove(index) => {
                // Where the newest ticket of a connection is still with its client.
                let mut newest: Vec<_> = self
                    .tickets
                    .iter()
                    .filter_map(|tickets| tickets.back().copied())
                    .collect();
                newest.retain(|made| {
                    let of = |tickets: &VecDeque<usize>| {
                        tickets.iter().filter(|other| *other == made).count()
                    };
                    let is_whole = self.tickets.iter().map(of).sum::<usize>();
                    is_whole != 1 || version.version != TLS13.version
                });
                if let Some(made) = Self::take(&mut newest, index) {
                    house.remove(&self.sessions[&made]).await;
                    self.removed.insert(made);
                }
            }
        }
    }
}

// Invariants 1 and 2.
#[test]
fn random_histories_resume_the_good_tickets_and_no_other() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let house = runtime.block_on(House::new());
    for version in VERSIONS {
        runner(100)
            .run(&proptest::collection::vec(op(), 1..30), |ops| {
                let clients: Vec<_> = (0..CLIENTS).map(|_| house.client(version)).collect();
                let mut model = Model::default();
                runtime.block_on(async {
                    for op in ops {
                        model.apply(op, &house, &clients, version).await;
                    }
                    for (id, _) in model.open {
                        house.shut(&id).await;
                    }
                });
                Ok(())
            })
            .unwrap();
    }
    runtime.block_on(house.daemon.stop());
}
