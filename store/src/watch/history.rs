//! What watches need of the applied state.

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use store_proto::mvccpb::KeyValue;

use crate::mvcc::{KeyRange, NextChanges, RevisionEvents};

/// Why history could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The revision is below the compacted one.
    #[error("the revision has been compacted")]
    Compacted,
    /// The state could not be read.
    #[error("cannot read the history")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

/// What happened so far. A revision can be read here before it is published to the hub.
pub(crate) trait History: Send + Sync + 'static {
    /// The last applied revision.
    fn current_revision(&self) -> i64;

    /// The revision below which history is gone; it is still readable itself.
    fn compacted_revision(&self) -> i64;

    /// When a key of `range` was written next, from `from` on, so that what is between need not be
    /// read. `None` when that cannot be told at once, and when `from` is compacted.
    fn next_changes(&self, range: &KeyRange, from: i64) -> Option<NextChanges>;

    /// Whole revisions from `from` on, in order without a gap, about `max_bytes` of them but at least
    /// one if there is one.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] when `from` is below the compacted revision.
    fn read(
        &self,
        from: i64,
        max_bytes: usize,
    ) -> impl Future<Output = Result<Vec<Arc<RevisionEvents>>, ReadError>> + Send;

    /// What `key` was at `revision`.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] when `revision` is below the compacted one; `None` will do as well.
    fn value_at(
        &self,
        key: &Bytes,
        revision: i64,
    ) -> impl Future<Output = Result<Option<KeyValue>, ReadError>> + Send;
}
