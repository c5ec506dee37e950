//! Reading a snapshot file, block by block, and believing nothing that is not checked.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use store_proto::mvccpb::Event;

use super::format::{self, BLOCK_HEAD_BYTES, Header, Leases, MAGIC, Records, Trailer};
use super::{SnapshotError, SnapshotMeta};
use crate::mvcc::{LeaseInfo, Revision};
use crate::raft::codec;

/// What comes out of a snapshot, in this order.
#[derive(Debug)]
pub(crate) enum Item {
    /// All leases come first.
    Lease(LeaseInfo),
    /// Then all writes in the order in which they happened.
    Record(Revision, Event),
}

/// Reads one file, front to back.
#[derive(Debug)]
pub(crate) struct SnapshotReader {
    blocks: Blocks,
    meta: SnapshotMeta,
    seen: Trailer,
    last: Option<Revision>,
}

impl SnapshotReader {
    /// Opens a file and checks how it begins.
    pub(crate) fn open(path: &Path) -> Result<Self, SnapshotError> {
        let mut blocks = Blocks::open(path)?;
        let (kind, payload) = blocks.next()?;
        if kind != format::HEADER {
            return Err(blocks.damaged("it does not begin with a header"));
        }
        let header: Header = blocks.decode(payload)?;
        let last_log_id =
            header.last_log_id.ok_or_else(|| blocks.damaged("it does not say its log id"))?;
        let membership = codec::stored_membership_from_proto(header.membership.unwrap_or_default())
            .map_err(|error| blocks.damaged(&format!("its membership is unreadable: {error}")))?;
        let meta = SnapshotMeta {
            last_log_id: codec::log_id_from_proto(&last_log_id),
            membership,
            revision: header.revision,
            compacted: header.compacted,
            members: header.members,
            alarms: header.alarms,
        };
        Ok(Self { blocks, meta, seen: Trailer::default(), last: None })
    }

    /// What the file says about itself.
    pub(crate) fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Shows all leases and records to `visit`, until it fails. Only when this returns without an
    /// error was the file whole.
    pub(crate) fn read_all<E: From<SnapshotError>>(
        mut self,
        mut visit: impl FnMut(Item) -> Result<(), E>,
    ) -> Result<SnapshotMeta, E> {
        loop {
            match self.blocks.next()? {
                (format::LEASES, payload) => {
                    for lease in self.blocks.decode::<Leases>(payload)?.leases {
                        if self.last.is_some() {
                            return Err(self.blocks.damaged("a lease comes after records").into());
                        }
                        self.seen.leases += 1;
                        let (id, ttl_seconds) = (lease.id, lease.ttl_seconds);
                        visit(Item::Lease(LeaseInfo { id, ttl_seconds }))?;
                    }
                }
                (format::RECORDS, payload) => {
                    for record in self.blocks.decode::<Records>(payload)?.records {
                        let event = record.event.unwrap_or_default();
                        let main = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                        let revision = Revision { main, sub: record.sub };
                        if self.last >= Some(revision) || main > self.meta.revision {
                            let text = format!("record {revision} is out of place");
                            return Err(self.blocks.damaged(&text).into());
                        }
                        self.last = Some(revision);
                        self.seen.records += 1;
                        visit(Item::Record(revision, event))?;
                    }
                }
                (format::TRAILER, payload) => {
                    let trailer: Trailer = self.blocks.decode(payload)?;
                    self.check_end(&trailer)?;
                    return Ok(self.meta);
                }
                (kind, _) => {
                    let text = format!("it has a block of kind {kind}");
                    return Err(self.blocks.damaged(&text).into());
                }
            }
        }
    }

    fn check_end(&mut self, trailer: &Trailer) -> Result<(), SnapshotError> {
        if *trailer != self.seen {
            let text = format!("it should have {trailer:?} and has {:?}", self.seen);
            return Err(self.blocks.damaged(&text));
        }
        self.blocks.check_end()
    }
}

/// The blocks of a file, checked one by one.
#[derive(Debug)]
struct Blocks {
    path: PathBuf,
    file: BufReader<File>,
    position: u64,
}

impl Blocks {
    fn open(path: &Path) -> Result<Self, SnapshotError> {
        let file = File::open(path).map_err(SnapshotError::io("open", path))?;
        let file = BufReader::with_capacity(format::BLOCK_BYTES, file);
        let mut blocks = Self { path: path.to_owned(), file, position: 0 };
        let mut magic = [0; MAGIC.len()];
        blocks.read(&mut magic)?;
        if magic == MAGIC {
            Ok(blocks)
        } else {
            Err(blocks.damaged("it is no snapshot, or one of another version"))
        }
    }

    fn check_end(&mut self) -> Result<(), SnapshotError> {
        match self.file.read(&mut [0]).map_err(SnapshotError::io("read", &self.path))? {
            0 => Ok(()),
            _ => Err(self.damaged("something follows its end")),
        }
    }

    fn next(&mut self) -> Result<(u8, Bytes), SnapshotError> {
        let mut head = [0; BLOCK_HEAD_BYTES];
        self.read(&mut head)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3, kind] = head;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > format::MAX_BLOCK_BYTES {
            return Err(self.damaged("a block is too long"));
        }
        // Grows with what is really there: a wrong length must not cost memory.
        let mut payload = Vec::new();
        let got = (&mut self.file)
            .take(length as u64)
            .read_to_end(&mut payload)
            .map_err(SnapshotError::io("read", &self.path))?;
        self.position += got as u64;
        if got < length {
            return Err(self.damaged("it ends too early"));
        }
        if format::checksum(kind, &payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(self.damaged("a checksum is wrong"));
        }
        Ok((kind, payload.into()))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.file.read_exact(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.damaged("it ends too early"),
            _ => SnapshotError::io("read", &self.path)(error),
        })?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn decode<M: Message + Default>(&self, payload: Bytes) -> Result<M, SnapshotError> {
        M::decode(payload).map_err(|error| self.damaged(&error.to_string()))
    }

    fn damaged(&self, reason: &str) -> SnapshotError {
        SnapshotError::Damaged {
            path: self.path.clone(),
            reason: format!("{reason} (before byte {})", self.position),
        }
    }
}

/// Reads all of a file and says whether it is whole.
pub(crate) fn verify(path: &Path) -> Result<SnapshotMeta, SnapshotError> {
    SnapshotReader::open(path)?.read_all(|_| Ok(()))
}
