//! The store: an etcd-compatible, Raft-replicated key-value store with revisions, watches and leases.

mod engine;
mod error;
mod mvcc;
mod raft;
mod rpc;
mod snapshot;
mod wal;
mod watch;

pub use error::RequestError;
