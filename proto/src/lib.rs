//! The contract: `redenvelope.v1` as messages, clients, servers and descriptors.
//!
//! The comments of `redenvelope/v1/*.proto` are the public documentation of every message.

/// Messages, clients and servers of `redenvelope.v1`.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    reason = "written by prost from the proto files; which lints fire depends on its version"
)]
pub mod v1 {
    tonic::include_proto!("redenvelope.v1");
}

/// Every file of the contract with its imports, encoded: what reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/redenvelope.v1.binpb"));
