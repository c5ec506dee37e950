//! One number for the data, the same on all members that hold the same.

use std::sync::Arc;

use prost::Message as _;

use super::index::Version;
use super::revision::Revision;
use super::{Failure, Mvcc, records};
use crate::engine::EngineError;
use crate::error::RequestError;

/// What [`Mvcc::hash`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HashKv {
    /// CRC-32C over all records in revision order.
    pub(crate) hash: u32,
    /// The revision up to which it is computed.
    pub(crate) revision: i64,
    /// The compacted revision that it stands for; hashes of different ones cannot be compared.
    pub(crate) compacted: i64,
}

impl Mvcc {
    /// A hash over everything that can be seen between the compacted revision and `revision` (0: the
    /// current one). It does not depend on how far the removal of compacted records has come. Blocks
    /// on the disk while it reads all records.
    ///
    /// # Errors
    ///
    /// The revision is compacted or in the future.
    pub(crate) fn hash(&self, revision: i64) -> Result<HashKv, Failure> {
        let _pause = self.pause_compaction();
        'again: loop {
            let (mut visible, compacted, at, epoch) = {
                let state = self.shared.state.read();
                let at = if revision <= 0 { state.revision } else { revision };
                if at > state.revision {
                    return Err(RequestError::FutureRevision.into());
                }
                if at < state.compacted {
                    return Err(RequestError::Compacted.into());
                }
                let visible: Vec<Revision> = state
                    .index
                    .visible_versions(state.compacted)
                    .map(Version::revision)
                    .filter(|revision| revision.main <= at)
                    .collect();
                (visible, state.compacted, at, state.epoch)
            };
            visible.sort_unstable();
            let mut hash = 0;
            for revision in visible {
                let (event, engine) = {
                    let state = self.shared.state.read();
                    if state.epoch != epoch {
                        continue 'again;
                    }
                    (state.window.event(revision).cloned(), Arc::clone(&state.engine))
                };
                let event = match event {
                    Some(event) => event,
                    None => records::get(&*engine, revision)?.ok_or_else(|| {
                        EngineError::Damaged(format!("record {revision} is missing"))
                    })?,
                };
                hash = crc32c::crc32c_append(hash, &revision.main.to_be_bytes());
                hash = crc32c::crc32c_append(hash, &revision.sub.to_be_bytes());
                hash = crc32c::crc32c_append(hash, &event.encode_to_vec());
            }
            return Ok(HashKv { hash, revision: at, compacted });
        }
    }
}
