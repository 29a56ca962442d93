//! The stages of a stop.

use tokio_util::sync::CancellationToken;

/// The two stages of a stop, as signals to every task.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled when the daemon begins to drain.
    pub drain: CancellationToken,
    /// Cancelled when all remaining connections must be closed at once.
    pub abort: CancellationToken,
}
