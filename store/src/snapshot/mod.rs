//! Snapshots as checksummed files.

/// Why a snapshot file cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// placeholder
    #[error("the snapshot is not readable")]
    Unreadable,
}
