//! The log under power cuts and damage, and its bytes. The writer is driven directly, so that what
//! is written together is the test's choice.

mod damage;
mod format;
pub(crate) mod power_cut;

use std::sync::Arc;

use bytes::Bytes;
use openraft::EntryPayload;
use parking_lot::Mutex;
use store_proto::{etcdserverpb, peer};

use crate::raft::types::{Batch, Entry, LogId};

use super::files::LogDir;
use super::index::{Index, read_entries};
use super::memory::MemoryDir;
use super::record::Record;
use super::recovery::{Recovery, recover};
use super::writer::{Submission, Writer};
use super::{Recovered, WalError, WalOptions};

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

/// An entry that puts a value of so many bytes; no two terms and indexes put the same.
pub(crate) fn entry(term: u64, index: u64, value_bytes: usize) -> Entry {
    let put = etcdserverpb::PutRequest {
        key: Bytes::from(format!("key-{term}-{index}")),
        value: Bytes::from(vec![b'v'; value_bytes]),
        ..Default::default()
    };
    let command = peer::Command { id: index, op: Some(peer::command::Op::Put(put)) };
    let payload = EntryPayload::Normal(Batch::new(vec![command]));
    Entry { log_id: log_id(term, index), payload }
}

/// What tells two entries apart.
pub(crate) fn content(entry: &Entry) -> (LogId, Bytes) {
    let bytes = match &entry.payload {
        EntryPayload::Normal(batch) => batch.encoded().clone(),
        EntryPayload::Blank | EntryPayload::Membership(_) => Bytes::new(),
    };
    (entry.log_id, bytes)
}

fn options(segment_bytes: u32) -> WalOptions {
    WalOptions { segment_bytes, make_ahead: false, ..WalOptions::default() }
}

/// A log without its thread.
struct Log {
    recovered: Recovered,
    writer: Writer,
    index: Arc<Mutex<Index>>,
}

impl Log {
    fn open(dir: &MemoryDir, segment_bytes: u32) -> Result<Self, WalError> {
        let options = options(segment_bytes);
        let Recovery { recovered, index, positions, active } = recover(dir, &options)?;
        let index = Arc::new(Mutex::new(index));
        let dir: Arc<dyn LogDir> = Arc::new(dir.clone());
        let writer = Writer::new(dir, &options, active, positions, Arc::clone(&index));
        Ok(Self { recovered, writer, index })
    }

    /// Writes records together, as a submission each.
    fn write(&mut self, records: Vec<Record>) -> Result<(), WalError> {
        let submissions: Vec<Submission> = records
            .into_iter()
            .map(|record| Submission { records: vec![record], done: None, _budget: None })
            .collect();
        self.writer.write(&submissions)?;
        self.writer.unlink_purged()
    }

    /// Where the records of the newest segment end.
    fn end(&self) -> usize {
        self.index.lock().newest_end() as usize
    }

    fn entries(&self) -> Result<Vec<Entry>, WalError> {
        let index = self.index.lock();
        let range = index.range();
        read_entries(&index.stored(range, usize::MAX))
    }
}
