//! The contract of tls-sessiond: the messages and stubs that are generated from `proto/`, and the transport pieces that the
//! daemon and its clients share.
//!
//! * the generated messages, at the root of the crate
//! * [`tag`]: the field numbers of all messages
//! * [`wire`]: fields of messages, encoded and decoded by hand
//! * `codec`, and the generated stubs: gRPC with tonic (features `server` and `stubs`)
//! * `transport`: sockets, busy polling and wakers (feature `transport`)

#[cfg(feature = "grpc")]
pub mod codec;
mod convert;
#[cfg(feature = "transport")]
pub mod transport;
pub mod wire;

mod generated {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        reason = "generated; its manual is in the protos"
    )]

    #[cfg(feature = "grpc")]
    use super::codec::{Answers, Calls};

    include!(concat!(env!("OUT_DIR"), "/tls.sessiond.v1.rs"));
}

pub use generated::*;

/// Envoy's secret discovery service, as far as it carries session ticket keys (`envoy/sds.proto`).
pub mod envoy {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        reason = "generated; its manual is in the proto"
    )]

    include!(concat!(env!("OUT_DIR"), "/envoy.service.secret.v3.rs"));

    /// The descriptors of the service, as an encoded `FileDescriptorSet`.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));
}

/// The field numbers of all messages, by message: `tag::session::SESSION_ID`.
pub mod tag {
    #![allow(missing_docs, reason = "generated; the names are those of the protos")]

    include!(concat!(env!("OUT_DIR"), "/tags.rs"));
}

/// The descriptors of all protos, with their comments, as an encoded `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
