//! The store: an etcd-compatible, Raft-replicated key-value store with revisions, watches and leases.

mod auto_compaction;
pub mod backup;
mod config;
mod defragment;
mod engine;
mod error;
mod housekeeping;
mod identity;
mod leadership;
mod lease_clock;
mod leases;
mod member;
mod members;
mod metrics;
mod mvcc;
mod proposals;
mod proposer;
mod raft;
mod read_index;
mod reads;
mod rpc;
mod snapshot;
mod space;
mod start;
mod storage;
mod sync_dir;
mod wal;
mod watch;

pub use auto_compaction::AutoCompactionMode;
pub use config::{ClusterState, Config, ConfigError};
pub use error::RequestError;
pub use identity::IdentityError;
pub use members::join::JoinError;
pub use space::DiskFull;
pub use start::{Error, Running, start};
pub use storage::StorageError;
