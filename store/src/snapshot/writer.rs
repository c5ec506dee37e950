//! Writing a snapshot file.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use prost::Message;
use store_proto::mvccpb::Event;

use super::format::{self, Header, Lease, Leases, MAGIC, Record, Records, Trailer};
use super::{SnapshotError, SnapshotMeta};
use crate::mvcc::LeaseInfo;
use crate::raft::codec;
use crate::sync_dir::sync_dir;

/// After so many bytes the file is synced, so that the syncs of the log never have all of it before
/// them.
const SYNC_BYTES: usize = 4 << 20;

/// Writes one file, front to back. Dropped without [`SnapshotWriter::finish`], it is gone.
pub(crate) struct SnapshotWriter {
    path: PathBuf,
    temporary: PathBuf,
    is_finished: bool,
    file: BufWriter<File>,
    unsynced_bytes: usize,
    leases: Leases,
    records: Records,
    /// The bytes of the block that is being filled.
    block_bytes: usize,
    written: Trailer,
}

impl SnapshotWriter {
    /// Begins a file that will be `path`; until then it is `temporary`, in the same directory.
    pub(super) fn create(
        path: PathBuf,
        temporary: PathBuf,
        meta: &SnapshotMeta,
    ) -> Result<Self, SnapshotError> {
        let file = File::create(&temporary).map_err(SnapshotError::io("create", &temporary))?;
        let mut writer = Self {
            path,
            temporary,
            is_finished: false,
            file: BufWriter::with_capacity(format::BLOCK_BYTES, file),
            unsynced_bytes: 0,
            leases: Leases::default(),
            records: Records::default(),
            block_bytes: 0,
            written: Trailer::default(),
        };
        writer.write(&MAGIC)?;
        let header = Header {
            last_log_id: Some(codec::log_id_to_proto(&meta.last_log_id)),
            membership: Some(codec::stored_membership_to_proto(&meta.membership)),
            revision: meta.revision,
            compacted: meta.compacted,
            members: meta.members.clone(),
            alarms: meta.alarms.clone(),
        };
        writer.write_block(format::HEADER, &header)?;
        Ok(writer)
    }

    /// Adds a lease. All leases come before all records.
    pub(crate) fn add_lease(&mut self, lease: &LeaseInfo) -> Result<(), SnapshotError> {
        debug_assert!(self.records.records.is_empty() && self.written.records == 0);
        self.leases.leases.push(Lease { id: lease.id, ttl_seconds: lease.ttl_seconds });
        self.written.leases += 1;
        self.block_bytes += size_of::<Lease>();
        if self.block_bytes >= format::BLOCK_BYTES { self.end_block() } else { Ok(()) }
    }

    /// Adds the write with the number `sub` of its revision. They come in their order.
    pub(crate) fn add_record(&mut self, sub: u32, event: Event) -> Result<(), SnapshotError> {
        if !self.leases.leases.is_empty() {
            self.end_block()?;
        }
        self.block_bytes += event.encoded_len();
        self.records.records.push(Record { sub, event: Some(event) });
        self.written.records += 1;
        if self.block_bytes >= format::BLOCK_BYTES { self.end_block() } else { Ok(()) }
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn finish(mut self) -> Result<(), SnapshotError> {
        self.end_block()?;
        let trailer = std::mem::take(&mut self.written);
        self.write_block(format::TRAILER, &trailer)?;
        self.file.flush().map_err(SnapshotError::io("write", &self.temporary))?;
        self.file.get_ref().sync_all().map_err(SnapshotError::io("sync", &self.temporary))?;
        publish(&self.temporary, &self.path)?;
        self.is_finished = true;
        Ok(())
    }

    fn end_block(&mut self) -> Result<(), SnapshotError> {
        self.block_bytes = 0;
        let leases = std::mem::take(&mut self.leases);
        if !leases.leases.is_empty() {
            self.write_block(format::LEASES, &leases)?;
        }
        let records = std::mem::take(&mut self.records);
        if !records.records.is_empty() {
            self.write_block(format::RECORDS, &records)?;
        }
        Ok(())
    }

    fn write_block(&mut self, kind: u8, message: &impl Message) -> Result<(), SnapshotError> {
        let payload = message.encode_to_vec();
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= format::MAX_BLOCK_BYTES)
            .ok_or_else(|| SnapshotError::Damaged {
                path: self.path.clone(),
                reason: format!("a record of {} bytes is too long", payload.len()),
            })?;
        self.write(&length.to_le_bytes())?;
        self.write(&format::checksum(kind, &payload).to_le_bytes())?;
        self.write(&[kind])?;
        self.write(&payload)?;
        self.unsynced_bytes += payload.len();
        if self.unsynced_bytes >= SYNC_BYTES {
            self.unsynced_bytes = 0;
            self.file.flush().map_err(SnapshotError::io("write", &self.temporary))?;
            self.file.get_ref().sync_data().map_err(SnapshotError::io("sync", &self.temporary))?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.file.write_all(bytes).map_err(SnapshotError::io("write", &self.temporary))
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.is_finished {
            // What cannot be removed now goes when the directory is opened next time.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Gives a file that is on the disk its final name, for good.
pub(super) fn publish(temporary: &Path, path: &Path) -> Result<(), SnapshotError> {
    fs::rename(temporary, path).map_err(SnapshotError::io("rename", temporary))?;
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    sync_dir(dir).map_err(SnapshotError::io("sync", dir))
}
