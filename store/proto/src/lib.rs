//! The etcd v3 messages and services, and the protocol between the members of a store.
//!
//! Nearly everything here is generated from the files in `proto/`. Byte fields are [`bytes::Bytes`], so a
//! value goes from one wire to the other without being copied. The etcd messages also carry the
//! JSON form of etcd's HTTP gateway.

#![allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic)]

pub mod codec;

/// All messages and services, as an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Users' and roles' rights.
pub mod authpb {
    include!(concat!(env!("OUT_DIR"), "/authpb.rs"));
    include!(concat!(env!("OUT_DIR"), "/authpb.serde.rs"));
}

/// Keys with their revisions, and the events that change them.
pub mod mvccpb {
    include!(concat!(env!("OUT_DIR"), "/mvccpb.rs"));
    include!(concat!(env!("OUT_DIR"), "/mvccpb.serde.rs"));
}

/// The client API.
pub mod etcdserverpb {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.serde.rs"));
}

/// Locks.
pub mod v3lockpb {
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.rs"));
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.serde.rs"));
}

/// Elections.
pub mod v3electionpb {
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.rs"));
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.serde.rs"));
}

/// The protocol between members, and the records of their logs.
pub mod peer {
    include!(concat!(env!("OUT_DIR"), "/minikupeer.rs"));
}
