//! The state as a whole, on both engines.

mod compaction;
mod concurrency;
mod failure;
mod golden;
mod model;
mod restore;

use std::sync::Arc;

use openraft::EntryPayload;
use store_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest,
};
use store_proto::peer::{Command, command::Op};

use super::apply::Applied;
use super::*;
use crate::engine::testing::once_unlocked;
use crate::engine::{MemoryEngine, SledEngine};
use crate::raft::types::Batch;

/// An engine and, for sled, the directory that it needs.
struct TestEngine {
    engine: Option<Arc<dyn Engine>>,
    dir: Option<tempfile::TempDir>,
}

impl TestEngine {
    fn memory() -> Self {
        Self { engine: Some(Arc::new(MemoryEngine::default())), dir: None }
    }

    fn sled() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { engine: Some(Arc::new(SledEngine::open(dir.path()).unwrap())), dir: Some(dir) }
    }

    fn get(&self) -> Arc<dyn Engine> {
        Arc::clone(self.engine.as_ref().unwrap())
    }

    /// As after the end of the process: what is on disk is opened again.
    fn reopen(&mut self) {
        if let Some(dir) = &self.dir {
            drop(self.engine.take());
            let engine = once_unlocked(|| SledEngine::open(dir.path())).unwrap();
            self.engine = Some(Arc::new(engine));
        }
    }

    fn open(&self, window_bytes: usize) -> Mvcc {
        // An entry or two at a time.
        Mvcc::open(self.get(), Limits { window_bytes, batch_bytes: 1000 }).unwrap()
    }
}

fn log_id(index: u64) -> LogId {
    LogId::new_term_index(1, index)
}

fn apply(mvcc: &Mvcc, ops: impl IntoIterator<Item = Op>) -> Applied {
    let commands =
        (1..).zip(ops).map(|(id, op)| Command { id, op: Some(op) }).collect::<Vec<Command>>();
    let index = mvcc.applied().0.map_or(0, |applied| applied.index() + 1);
    mvcc.apply(log_id(index), &EntryPayload::Normal(Batch::new(commands))).unwrap()
}

fn apply_one(mvcc: &Mvcc, op: Op) -> Result<Outcome, RequestError> {
    apply(mvcc, [op]).results.pop().unwrap()
}

fn put(key: &str, value: &str) -> Op {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    Op::Put(PutRequest { key, value, ..PutRequest::default() })
}

fn put_with_lease(key: &str, lease: i64) -> Op {
    Op::Put(PutRequest { key: key.to_owned().into(), lease, ..PutRequest::default() })
}

fn delete(key: &str, range_end: &str) -> Op {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    Op::DeleteRange(DeleteRangeRequest { key, range_end, prev_kv: true })
}

fn compact_at(revision: i64) -> Op {
    Op::Compaction(CompactionRequest { revision, physical: false })
}

fn grant(id: i64, ttl: i64) -> Op {
    Op::LeaseGrant(LeaseGrantRequest { id, ttl })
}

fn revoke(id: i64) -> Op {
    Op::LeaseRevoke(LeaseRevokeRequest { id })
}

fn write_all(mvcc: &Mvcc) {
    while !mvcc.write_behind().unwrap().is_idle {}
}

/// Removes everything that can be removed, worthwhile or not.
fn compact_all(mvcc: &Mvcc) {
    mvcc.want_removal(i64::MAX);
    while mvcc.compact_step().unwrap() == CompactStep::More {}
}

fn range(key: &str, range_end: &str, revision: i64) -> RangeRequest {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    RangeRequest { key, range_end, revision, ..RangeRequest::default() }
}

fn request_error<T: fmt::Debug>(result: Result<T, Failure>) -> RequestError {
    match result {
        Err(Failure::Request(error)) => error,
        other => panic!("expected a refusal, got {other:?}"),
    }
}
