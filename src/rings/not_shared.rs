//! Why a ring in the shared store was not reached.

use tls_sessiond_keys::{epoch::NoRandomness, shared::NotNow};

/// Why a ring in the shared store was not changed or asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotShared {
    /// The store did not answer, or refused.
    #[error(
        "the ring is in the shared store, which does not answer, or refuses: try again; `trouble` of the ring says more"
    )]
    Away,
    /// The store has not shown the ring to this daemon yet, or has lost it a moment ago.
    #[error(
        "the shared store has not shown the ring to this daemon yet, or has lost it a moment ago: try again"
    )]
    NotSeen,
    /// Changes of other daemons came before this one again and again.
    #[error("other daemons are changing the ring: try again")]
    Contended,
    /// The change is in the store, and other daemons have not seen it in time.
    #[error(
        "the ring has changed, but not every daemon has confirmed that it knows: repeat the call"
    )]
    Unconfirmed,
    /// The system has no random numbers.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl From<NotNow> for NotShared {
    fn from(why: NotNow) -> Self {
        match why {
            NotNow::NotSeen => Self::NotSeen,
            NotNow::NoRandomness(why) => Self::NoRandomness(why),
        }
    }
}
