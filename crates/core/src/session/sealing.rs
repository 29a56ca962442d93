//! Sessions that are sealed in the ticket of their client, instead of stored.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use zeroize::Zeroizing;

/// Bytes of a [`Handle`].
pub const HANDLE_BYTES: usize = 16;

/// The id of a sealed session. It is random, and its ticket names it.
pub type Handle = [u8; HANDLE_BYTES];

/// A state that was sealed in a ticket.
pub struct OpenedState {
    /// The handle of the session.
    pub handle: Handle,
    /// What was sealed.
    pub state: Zeroizing<Vec<u8>>,
}

/// Seals sessions in tickets, with keys that are rotated.
pub trait SealsTickets: fmt::Debug + Send + Sync {
    /// Seals `state` in a ticket under this handle. The ticket opens with an equal `bound` only.
    /// `None`: the system has no random numbers.
    fn seal(&self, handle: &Handle, state: &[u8], bound: &[u8]) -> Option<Vec<u8>>;

    /// Opens a ticket. `None`: no key that is in use has sealed it, or ticket or `bound` are not those
    /// that were sealed.
    fn open(&self, ticket: &[u8], bound: &[u8]) -> Option<OpenedState>;

    /// Returns the handle that a ticket names, without opening it. `None`: it is no ticket.
    fn named_handle(&self, ticket: &[u8]) -> Option<Handle>;

    /// Returns how long a ticket that is sealed now opens at least, unless an operator replaces all keys
    /// at once.
    fn lifetime(&self) -> Duration;
}

/// The rings of a configuration, by their names.
pub type Sealers = BTreeMap<Box<str>, Arc<dyn SealsTickets>>;
