//! A backup in a file: the database, and whether it has the checksum that it should have.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::bolt::{Bolt, BoltError, BucketRef, Entry};

const CHECKSUM_BYTES: u64 = 32;
/// Pages are multiples of this.
const SECTOR_BYTES: u64 = 512;
const READ_BYTES: usize = 1 << 20;

/// What is asked of the checksum at the end of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    /// It must be there and right.
    Required,
    /// It must be right if it is there.
    Optional,
    /// It may be wrong.
    Ignored,
}

/// A file that was opened.
#[derive(Debug)]
pub(super) struct BackupFile {
    path: PathBuf,
    bolt: Bolt<File>,
    buckets: Vec<BucketRef>,
    sha256: [u8; 32],
}

impl BackupFile {
    /// Opens a file, and reads all of it for its checksum. Blocks on the disk.
    pub(super) fn open(
        path: &Path,
        checksum: Checksum,
        stop: &CancellationToken,
    ) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(Error::read(path))?;
        let size_bytes = file.metadata().map_err(Error::read(path))?.len();
        let has_checksum = size_bytes % SECTOR_BYTES == CHECKSUM_BYTES;
        if !has_checksum && checksum == Checksum::Required {
            return Err(Error::NoChecksum { path: path.to_owned() });
        }
        let database_bytes = if has_checksum { size_bytes - CHECKSUM_BYTES } else { size_bytes };
        let sha256 = sum(&mut file, path, database_bytes, stop)?;
        if has_checksum && checksum != Checksum::Ignored {
            let mut expected = [0; CHECKSUM_BYTES as usize];
            file.read_exact(&mut expected).map_err(Error::read(path))?;
            if sha256 != expected {
                let reason =
                    format!("its checksum (at byte {database_bytes}) is not that of its content");
                return Err(Error::Damaged { path: path.to_owned(), reason });
            }
        }
        let bolt = Bolt::open(file, database_bytes).map_err(Error::bolt(path))?;
        let buckets = bolt.buckets().map_err(Error::bolt(path))?;
        Ok(Self { path: path.to_owned(), bolt, buckets, sha256 })
    }

    /// The SHA-256 of the database.
    pub(super) fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// What the pages of the database take up.
    pub(super) fn database_bytes(&self) -> u64 {
        self.bolt.size_bytes()
    }

    /// All buckets in the order of their names.
    pub(super) fn buckets(&self) -> &[BucketRef] {
        &self.buckets
    }

    /// The bucket of this name.
    pub(super) fn bucket(&self, name: &str) -> Option<&BucketRef> {
        self.buckets.iter().find(|bucket| bucket.name == name.as_bytes())
    }

    /// Shows all keys of a bucket and their values, in order, until `visit` fails.
    pub(super) fn walk(
        &self,
        bucket: &BucketRef,
        mut visit: impl FnMut(Entry) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let walked = self.bolt.walk(bucket, |entry| visit(entry).map_err(Interruption::Visit));
        walked.map_err(|interruption| match interruption {
            Interruption::Bolt(error) => Error::bolt(&self.path)(error),
            Interruption::Visit(error) => error,
        })
    }

    /// The same for the bucket of this name, if there is one.
    pub(super) fn walk_if_there(
        &self,
        name: &str,
        visit: impl FnMut(Entry) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.bucket(name).map_or(Ok(()), |bucket| self.walk(bucket, visit))
    }

    /// The last key of a bucket.
    pub(super) fn last_key(&self, bucket: &BucketRef) -> Result<Option<Bytes>, Error> {
        self.bolt.last_key(bucket).map_err(Error::bolt(&self.path))
    }

    /// Says what is wrong with the content.
    pub(super) fn damaged(&self, reason: impl Into<String>) -> Error {
        Error::Damaged { path: self.path.clone(), reason: reason.into() }
    }

    /// Says what is wrong with the content, and where.
    pub(super) fn damaged_at(&self, offset: u64, reason: &str) -> Error {
        self.damaged(format!("{reason} (at byte {offset})"))
    }
}

enum Interruption {
    Bolt(BoltError),
    Visit(Error),
}

impl From<BoltError> for Interruption {
    fn from(error: BoltError) -> Self {
        Self::Bolt(error)
    }
}

/// The SHA-256 of the first `size_bytes`; the file is behind them afterwards.
fn sum(
    file: &mut File,
    path: &Path,
    size_bytes: u64,
    stop: &CancellationToken,
) -> Result<[u8; 32], Error> {
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut remaining_bytes = size_bytes;
    while remaining_bytes > 0 {
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let part = usize::try_from(remaining_bytes).map_or(READ_BYTES, |rest| rest.min(READ_BYTES));
        file.read_exact(&mut buffer[..part]).map_err(Error::read(path))?;
        sha256.update(&buffer[..part]);
        remaining_bytes -= part as u64;
    }
    Ok(sha256.finalize().into())
}
