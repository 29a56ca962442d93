//! Shared types as values of the contract.

use tls_sessiond_types as types;

use super::{ProtocolVersion, Role};

impl From<types::Role> for Role {
    fn from(role: types::Role) -> Self {
        match role {
            types::Role::Client => Self::Client,
            types::Role::Server => Self::Server,
        }
    }
}

impl From<types::Version> for ProtocolVersion {
    fn from(version: types::Version) -> Self {
        match version {
            types::Version::Tls12 => Self::Tls12,
            types::Version::Tls13 => Self::Tls13,
        }
    }
}
