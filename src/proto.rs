//! The contract: code generated from `proto/`, and the descriptors that reflection serves.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; its manual is in the protos")]

tonic::include_proto!("tls.sessiond.v1");

/// All protos with their comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
