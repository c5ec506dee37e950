//! Snapshots as checksummed files.
