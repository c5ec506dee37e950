//! Snapshots on their way between members: a file on either side, and never whole in memory.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt as _};

use crate::snapshot::SnapshotDir;

/// A snapshot that lies in a file, complete and checksummed.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    path: PathBuf,
}

impl SnapshotFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes in parts of `chunk_bytes`, the last one shorter; read off the runtime's threads.
    pub(crate) async fn chunks(
        &self,
        chunk_bytes: usize,
    ) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let path = self.path.clone();
        let file = blocking(move || File::open(path)).await?;
        let chunks = stream::try_unfold(file, move |mut file| async move {
            blocking(move || {
                let mut chunk = BytesMut::zeroed(chunk_bytes);
                let mut filled = 0;
                while filled < chunk_bytes {
                    match file.read(&mut chunk[filled..])? {
                        0 => break,
                        count => filled += count,
                    }
                }
                chunk.truncate(filled);
                Ok((filled > 0).then(|| (chunk.freeze(), file)))
            })
            .await
        });
        Ok(chunks.boxed())
    }
}

/// A snapshot that is still coming in. What is not finished is removed when this is dropped.
pub(crate) struct IncomingSnapshot {
    file: Option<File>,
    path: PathBuf,
}

impl IncomingSnapshot {
    /// Starts a file in `dir` under a name that nothing else uses at this time.
    pub(crate) async fn create(dir: &Path, unique: u64) -> io::Result<Self> {
        let path = dir.join(format!("incoming-{unique:016x}.tmp"));
        let to_create = path.clone();
        let file = blocking(move || File::create(to_create)).await?;
        Ok(Self { file: Some(file), path })
    }

    pub(crate) async fn write(&mut self, data: Bytes) -> io::Result<()> {
        let Some(mut file) = self.file.take() else { return Err(already_failed()) };
        self.file = Some(
            blocking(move || {
                file.write_all(&data)?;
                Ok(file)
            })
            .await?,
        );
        Ok(())
    }

    /// Gives it its place among this member's snapshots, if it is whole.
    pub(crate) async fn finish(mut self, snapshots: &SnapshotDir) -> io::Result<SnapshotFile> {
        // A file that is not whole is removed with `self`.
        self.file.take().ok_or_else(already_failed)?;
        let (snapshots, incoming) = (snapshots.clone(), self.path.clone());
        blocking(move || {
            let (_, path) = snapshots.adopt(&incoming).map_err(io::Error::other)?;
            Ok(SnapshotFile { path })
        })
        .await
    }
}

impl Drop for IncomingSnapshot {
    fn drop(&mut self) {
        // It is not there any more if it was adopted. A leftover is harmless: the next start of the
        // member clears it away.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn already_failed() -> io::Error {
    io::Error::other("an earlier write to this snapshot failed")
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => Err(io::Error::other(join)),
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_file_comes_in_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "one two three").unwrap();
        let chunks = SnapshotFile::new(path).chunks(4).await.unwrap();
        let chunks: Vec<Bytes> = chunks.try_collect().await.unwrap();
        assert_eq!(chunks, ["one ", "two ", "thre", "e"]);
    }

    #[tokio::test]
    async fn what_is_unfinished_or_no_snapshot_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(dir.path()).unwrap();
        drop(IncomingSnapshot::create(dir.path(), 1).await.unwrap());
        let mut nonsense = IncomingSnapshot::create(dir.path(), 2).await.unwrap();
        nonsense.write(Bytes::from_static(b"nonsense")).await.unwrap();
        assert!(nonsense.finish(&snapshots).await.is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
