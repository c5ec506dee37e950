//! One number for the data, the same on all members that hold the same, and the same as etcd's.
//!
//! etcd hashes its backend's pairs in the order of the revisions (CRC-32C, begun with the name of
//! the bucket, `key`):
//!
//! ```text
//! put     main:i64 BE '_' sub:i64 BE        KeyValue
//! delete  main:i64 BE '_' sub:i64 BE 't'    KeyValue with its key alone
//! ```
//! Of what was written up to the compacted revision only that counts which is still to be seen at the
//! revision of the hash. So it does not depend on how far the removal of compacted records has come.

use std::ops::ControlFlow;
use std::sync::Arc;

use prost::Message as _;
use store_proto::mvccpb::{Event, KeyValue};

use super::revision::{EMPTY_REVISION, Revision, event_size_bytes, is_delete, kv_of};
use super::{Failure, Mvcc, State, records};
use crate::engine::EngineError;
use crate::error::RequestError;

/// What is read, and looked up under the lock, in one step.
const STEP_RECORDS: usize = 1000;
const STEP_BYTES: usize = 1 << 20;

/// What [`Mvcc::hash`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HashKv {
    /// etcd's hash over all records in revision order.
    pub(crate) hash: u32,
    /// The current revision when it was computed.
    pub(crate) current: i64,
    /// The compacted revision that it stands for; hashes of different ones cannot be compared.
    pub(crate) compacted: i64,
}

/// What a hash is taken of.
#[derive(Clone, Copy)]
struct Subject {
    at: i64,
    compacted: i64,
    current: i64,
    epoch: u64,
}

/// A restore has replaced what was being read.
struct Replaced;

impl Mvcc {
    /// A hash over everything that can be seen between the compacted revision and `revision` (0: the
    /// current one). Blocks on the disk while it reads all records, in small steps.
    ///
    /// # Errors
    ///
    /// The revision is compacted or in the future.
    pub(crate) fn hash(&self, revision: i64) -> Result<HashKv, Failure> {
        let _pause = self.pause_compaction();
        loop {
            let subject = self.shared.state.read().subject(revision)?;
            if let Ok(hash) = self.hash_of(subject)? {
                let Subject { current, compacted, .. } = subject;
                return Ok(HashKv { hash, current, compacted });
            }
        }
    }

    fn hash_of(&self, subject: Subject) -> Result<Result<u32, Replaced>, EngineError> {
        let mut hasher = Hasher::new(subject);
        let mut next = Revision::first_of(EMPTY_REVISION);
        while next.main <= subject.at {
            let (engine, engine_end, in_memory) = {
                let state = self.shared.state.read();
                if state.epoch != subject.epoch {
                    return Ok(Err(Replaced));
                }
                let engine_end = subject.at.min(state.persisted.revision) + 1;
                // What the engine does not have yet is in memory.
                let revisions = state
                    .window
                    .from(next.main)
                    .take_while(|made| next.main >= engine_end && made.revision <= subject.at);
                let in_memory: Vec<_> = revisions.take(STEP_RECORDS).cloned().collect();
                (Arc::clone(&state.engine), engine_end, in_memory)
            };
            if let Some(last) = in_memory.last() {
                for made in &in_memory {
                    let step = (0..).zip(made.events.iter().cloned());
                    let main = made.revision;
                    let step = step.map(|(sub, event)| (Revision { main, sub }, event)).collect();
                    hasher.add(self, step)?;
                }
                next = Revision::first_of(last.revision + 1);
                continue;
            }
            let (mut step, mut bytes) = (Vec::new(), 0);
            let from = std::mem::replace(&mut next, Revision::first_of(engine_end));
            records::scan(&*engine, from, engine_end, &mut |revision, event| {
                bytes += event_size_bytes(&event);
                step.push((revision, event));
                if step.len() < STEP_RECORDS && bytes < STEP_BYTES {
                    return ControlFlow::Continue(());
                }
                next = Revision { main: revision.main, sub: revision.sub + 1 };
                ControlFlow::Break(())
            })?;
            hasher.add(self, step)?;
        }
        Ok(Ok(hasher.hash))
    }
}

impl State {
    fn subject(&self, revision: i64) -> Result<Subject, RequestError> {
        let at = if revision <= 0 { self.revision } else { revision };
        if at < self.compacted {
            return Err(RequestError::Compacted);
        }
        if at > self.revision {
            return Err(RequestError::FutureRevision);
        }
        let Self { compacted, revision: current, epoch, .. } = *self;
        Ok(Subject { at, compacted, current, epoch })
    }
}

struct Hasher {
    subject: Subject,
    hash: u32,
    /// The last record above the compacted revision: from there on none may be missing.
    last: Revision,
}

impl Hasher {
    fn new(subject: Subject) -> Self {
        let begin = subject.compacted.max(EMPTY_REVISION);
        Self {
            subject,
            hash: crc32c::crc32c(b"key"),
            last: Revision { main: begin, sub: u32::MAX },
        }
    }

    /// Takes in the records of one step, which follow on those of the one before.
    fn add(&mut self, mvcc: &Mvcc, mut step: Vec<(Revision, Event)>) -> Result<(), EngineError> {
        let Subject { at, compacted, .. } = self.subject;
        if step.first().is_some_and(|(revision, _)| revision.main <= compacted) {
            let state = mvcc.shared.state.read();
            step.retain(|(revision, event)| {
                let is_seen = || {
                    let seen = state.index.get(&kv_of(event).key, at);
                    seen.is_some_and(|seen| seen.revision() == *revision)
                };
                revision.main > compacted || is_seen()
            });
        }
        for (revision, event) in &step {
            if revision.main > compacted {
                let follows = [
                    Revision { main: self.last.main, sub: self.last.sub.wrapping_add(1) },
                    Revision::first_of(self.last.main + 1),
                ];
                if !follows.contains(revision) {
                    let text = format!("a record is missing before {revision}");
                    return Err(EngineError::Damaged(text));
                }
                self.last = *revision;
            }
            self.add_pair(*revision, event);
        }
        Ok(())
    }

    fn add_pair(&mut self, revision: Revision, event: &Event) {
        let kv = kv_of(event);
        self.append(&revision.main.to_be_bytes());
        self.append(b"_");
        self.append(&i64::from(revision.sub).to_be_bytes());
        if is_delete(event) {
            self.append(b"t");
            let key = KeyValue { key: kv.key.clone(), ..KeyValue::default() };
            self.append(&key.encode_to_vec());
        } else {
            self.append(&kv.encode_to_vec());
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.hash = crc32c::crc32c_append(self.hash, bytes);
    }
}
