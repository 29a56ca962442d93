//! Why the settings of a context cannot be used.

/// A fault of one context's settings, or of a file that they name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {why}")]
pub struct Refusal {
    /// The key of `[[context]]` that is at fault, `key[1]` for example.
    pub key: String,
    /// The fault. It can quote a value of the settings, which may be a key that was pasted in the
    /// wrong place: filter it before it is printed.
    pub why: String,
}

/// A fault of one context of [`Settings`](super::Settings), or a warning about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("context[{place}].{refusal}")]
pub struct ContextRefusal {
    /// The place of the context in the settings, from 0.
    pub place: usize,
    /// The fault.
    pub refusal: Refusal,
}
