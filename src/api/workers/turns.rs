//! The order of calls on one stream while the shared store is asked.
//!
//! A New or SetSession that asks the store is not done until the store has answered. Calls about the
//! same connection wait for it, in their order. Calls about other connections go on.

use std::collections::{HashMap, VecDeque};

use tls_sessiond_proto as pb;
use tls_sessiond_proto::call::Method;

/// Which later calls wait for a call that asks the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Those that name this alias.
    Alias(String),
    /// None: the connection has no name yet.
    Unnamed,
    /// All. The call names its connection by its id, and later ones may do so by its alias.
    All,
}

impl Turn {
    /// Returns the turn of a call that asks the store.
    pub(super) fn of(call: &mut pb::Call) -> Self {
        match (alias(call).map(str::to_owned), &call.method) {
            (Some(alias), _) => Self::Alias(alias),
            (None, Some(Method::New(_))) => Self::Unnamed,
            (None, _) => Self::All,
        }
    }
}

/// The calls of a stream that wait for their turn.
///
/// They keep the memory of the message that they came in. So no new message may be read before
/// [`Self::is_idle`].
#[derive(Default)]
pub(super) struct Turns {
    /// How many New and SetSession wait for the store.
    asked: usize,
    /// Whether one of them keeps back all calls.
    all: bool,
    /// By alias: the calls behind one of them.
    behind: HashMap<String, VecDeque<pb::Call>>,
    /// The calls that waited, and may run now.
    free: VecDeque<pb::Call>,
    /// A call that names a connection by its id. It may be any connection, so the call waits for
    /// all that were asked before.
    last: Option<pb::Call>,
}

impl Turns {
    /// Returns the call if it may run now. Else it waits.
    pub(super) fn admit(&mut self, mut call: pb::Call) -> Option<pb::Call> {
        if self.asked == 0 {
            return Some(call);
        }
        if let Some(alias) = alias(&mut call) {
            let Some(behind) = self.behind.get_mut(alias) else {
                return Some(call);
            };
            behind.push_back(call);
            return None;
        }
        if !names_connection(&mut call) {
            return Some(call);
        }
        self.last = Some(call);
        None
    }

    /// Returns the next call that has waited, to be admitted again.
    pub(super) fn next(&mut self) -> Option<pb::Call> {
        self.free.pop_front()
    }

    /// Begins the turn of a call that asks the store.
    pub(super) fn begin(&mut self, turn: &Turn) {
        self.asked += 1;
        match turn {
            Turn::Alias(alias) => drop(self.behind.insert(alias.clone(), VecDeque::new())),
            Turn::Unnamed => {}
            Turn::All => self.all = true,
        }
    }

    /// Ends it: the store has answered, and the call is done.
    pub(super) fn end(&mut self, turn: &Turn) {
        self.asked -= 1;
        match turn {
            Turn::Alias(alias) => self
                .free
                .extend(self.behind.remove(alias).unwrap_or_default()),
            Turn::Unnamed => {}
            Turn::All => self.all = false,
        }
        if self.asked == 0 {
            self.free.extend(self.last.take());
        }
    }

    /// Returns whether no new call may be admitted before a turn ends.
    pub(super) fn is_blocked(&self) -> bool {
        self.all || self.last.is_some()
    }

    /// Returns the number of calls that have waited long enough.
    pub(super) fn len(&self) -> usize {
        self.free.len()
    }

    /// Returns whether no call waits, for the store or for its turn.
    pub(super) fn is_idle(&self) -> bool {
        self.asked == 0 && self.free.is_empty()
    }
}

/// Returns the alias that a call names or gives.
fn alias(call: &mut pb::Call) -> Option<&str> {
    let name = match call.method.as_mut()? {
        Method::New(_) => &call.alias,
        method => connection_id(method)?,
    };
    name.starts_with('@').then_some(name)
}

/// Returns whether a call names a connection.
fn names_connection(call: &mut pb::Call) -> bool {
    let name = call.method.as_mut().and_then(connection_id);
    name.is_some_and(|name| !name.is_empty())
}

/// Returns the field that names a connection, if the method has one.
pub(super) fn connection_id(method: &mut Method) -> Option<&mut String> {
    match method {
        Method::New(_) | Method::LookupSession(_) | Method::RemoveSession(_) => None,
        Method::Clear(request) => Some(&mut request.connection_id),
        Method::Shutdown(request) => Some(&mut request.connection_id),
        Method::SetShutdown(request) => Some(&mut request.connection_id),
        Method::Free(request) => Some(&mut request.connection_id),
        Method::SetSession(request) => Some(&mut request.connection_id),
        Method::PutSession(request) => Some(&mut request.connection_id),
        Method::ReportAlert(request) => Some(&mut request.connection_id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(alias: &str) -> pb::Call {
        pb::Call {
            alias: alias.into(),
            method: Some(Method::New(Box::default())),
            ..pb::Call::default()
        }
    }

    fn on(connection_id: &str, id: u64) -> pb::Call {
        let connection_id = connection_id.into();
        let request = pb::ShutdownRequest { connection_id };
        pb::Call {
            id,
            method: Some(Method::Shutdown(request)),
            ..pb::Call::default()
        }
    }

    fn set_session(connection_id: &str) -> pb::Call {
        let request = pb::SetSessionRequest {
            connection_id: connection_id.into(),
            ..pb::SetSessionRequest::default()
        };
        pb::Call {
            method: Some(Method::SetSession(request)),
            ..pb::Call::default()
        }
    }

    /// Begins the turn of a call that may run.
    fn ask(turns: &mut Turns, call: pb::Call) -> Turn {
        let mut call = turns.admit(call).unwrap();
        let turn = Turn::of(&mut call);
        turns.begin(&turn);
        turn
    }

    /// Returns the id of the next call that has waited and may run.
    fn next(turns: &mut Turns) -> Option<u64> {
        let waited = turns.next()?;
        turns.admit(waited).map(|call| call.id)
    }

    #[test]
    fn calls_of_a_connection_wait_and_others_go_on() {
        let mut turns = Turns::default();
        let first = ask(&mut turns, new("@a"));
        let second = ask(&mut turns, new("@b"));
        assert!(turns.admit(on("@a", 1)).is_none());
        assert!(turns.admit(on("@b", 2)).is_none());
        assert!(turns.admit(on("@a", 3)).is_none());
        assert!(turns.admit(on("@c", 4)).is_some());
        assert!(turns.admit(new("@a")).is_none(), "the alias is taken");
        assert!(!turns.is_blocked() && !turns.is_idle());
        turns.end(&second);
        assert_eq!([next(&mut turns), next(&mut turns)], [Some(2), None]);
        turns.end(&first);
        assert_eq!([next(&mut turns), next(&mut turns)], [Some(1), Some(3)]);
        assert_eq!(turns.len(), 1);
        assert!(turns.next().unwrap().alias == "@a" && turns.is_idle());
    }

    #[test]
    fn calls_that_name_an_id_wait_for_all_asked_before() {
        let mut turns = Turns::default();
        let first = ask(&mut turns, new("@a"));
        let second = ask(&mut turns, new(""));
        assert_eq!(second, Turn::Unnamed);
        assert!(turns.admit(on("00", 1)).is_none() && turns.is_blocked());
        turns.end(&first);
        assert!(next(&mut turns).is_none() && turns.is_blocked());
        turns.end(&second);
        assert!(next(&mut turns) == Some(1) && turns.is_idle() && !turns.is_blocked());
    }

    #[test]
    fn call_that_asks_by_id_keeps_all_back() {
        let mut turns = Turns::default();
        let turn = ask(&mut turns, set_session("00"));
        assert!(turn == Turn::All && turns.is_blocked());
        turns.end(&turn);
        assert!(turns.is_idle() && !turns.is_blocked());
    }

    #[test]
    fn call_that_waited_and_asks_keeps_the_next_ones_back() {
        let mut turns = Turns::default();
        let first = ask(&mut turns, new("@a"));
        assert!(turns.admit(set_session("@a")).is_none());
        assert!(turns.admit(on("@a", 1)).is_none());
        turns.end(&first);
        let mut call = turns.next().unwrap();
        let second = Turn::of(&mut call);
        turns.begin(&second);
        assert!(next(&mut turns).is_none());
        turns.end(&second);
        assert!(next(&mut turns) == Some(1) && turns.is_idle());
    }
}
