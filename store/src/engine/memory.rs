//! The engine without a disk: for tests and simulations.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use bytes::Bytes;
use parking_lot::RwLock;

use super::{Engine, EngineError, Visit, WriteBatch};

/// An engine that forgets everything when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct MemoryEngine {
    map: RwLock<BTreeMap<Vec<u8>, Bytes>>,
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.map.read().get(key).cloned())
    }

    fn scan(&self, range: Range<&[u8]>, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        if range.start >= range.end {
            return Ok(());
        }
        let map = self.map.read();
        let bounds = (Bound::Included(range.start), Bound::Excluded(range.end));
        for (key, value) in map.range::<[u8], _>(bounds) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), EngineError> {
        let mut map = self.map.write();
        for (key, value) in batch.operations {
            match value {
                Some(value) => map.insert(key, value.into()),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn reclaim(&self) -> Result<bool, EngineError> {
        Ok(false)
    }

    fn size_bytes(&self) -> Result<u64, EngineError> {
        let map = self.map.read();
        Ok(map.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
}
