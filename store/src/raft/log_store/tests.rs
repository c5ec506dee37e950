//! The log as openraft and the member use it, with its thread.

mod power_cut;
mod suite;

use std::sync::Arc;

use futures::TryStreamExt as _;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt as _;

use super::{ENTRY_BYTES, LogStore, MESSAGE_BYTES};
use crate::raft::types::{Entry, TypeConfig, Vote};
use crate::wal::files::{DiskDir, LogDir};
use crate::wal::memory::{Fault, MemoryDir};
use crate::wal::tests::{content, entry, log_id};
use crate::wal::{Recovered, WalError, WalOptions};

fn open(dir: &MemoryDir, options: WalOptions) -> (LogStore, Recovered) {
    LogStore::open(Arc::new(dir.clone()), options).unwrap()
}

/// Segments and a cache so small that they are left soon.
fn small() -> WalOptions {
    WalOptions { segment_bytes: 4096, cache_bytes: 1000, ..WalOptions::default() }
}

/// Appends without waiting for the disk; the returned future does.
async fn begin_append(
    log: &LogStore,
    entries: Vec<Entry>,
) -> std::io::Result<impl Future<Output = std::io::Result<()>> + use<>> {
    let (done, flushed) = TypeConfig::oneshot();
    log.clone().append(entries, IOFlushed::signal(done)).await?;
    Ok(async move { flushed.await.unwrap() })
}

async fn append(log: &LogStore, entries: Vec<Entry>) -> std::io::Result<()> {
    begin_append(log, entries).await?.await
}

async fn all(log: &LogStore) -> Vec<Entry> {
    log.clone().try_get_log_entries(..).await.unwrap()
}

/// The error that the log gave, out of what openraft is given.
fn cause(error: &std::io::Error) -> &WalError {
    error.get_ref().unwrap().downcast_ref().unwrap()
}

#[tokio::test]
async fn what_was_written_is_there_again() {
    let dir = MemoryDir::default();
    let (mut log, recovered) = open(&dir, small());
    assert_eq!(recovered, Recovered::default());
    log.save_vote(&Vote::new(3, 2)).await.unwrap();
    let entries: Vec<Entry> = (0..50).map(|index| entry(3, index, 300)).collect();
    for chunk in entries.chunks(7) {
        append(&log, chunk.to_vec()).await.unwrap();
    }
    log.truncate_after(Some(log_id(3, 44))).await.unwrap();
    append(&log, vec![entry(4, 45, 10)]).await.unwrap();
    log.save_committed(Some(log_id(3, 40))).await.unwrap();
    log.note_checkpoint(log_id(3, 30)).await.unwrap();
    log.purge(log_id(3, 9)).await.unwrap();
    let before = all(&log).await;
    log.close().await.unwrap();

    let (mut log, recovered) = open(&dir, small());
    assert_eq!(
        recovered,
        Recovered {
            vote: Some(Vote::new(3, 2)),
            committed: Some(log_id(3, 40)),
            purged: Some(log_id(3, 9)),
            last: Some(log_id(4, 45)),
            checkpoint: Some(log_id(3, 30)),
            first_index: Some(10),
            torn: None,
        }
    );
    assert_eq!(log.read_vote().await.unwrap(), recovered.vote);
    assert_eq!(log.read_committed().await.unwrap(), recovered.committed);
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (recovered.purged, recovered.last));
    let after = all(&log).await;
    assert_eq!(after.len(), 36);
    assert!(before.iter().map(content).eq(after.iter().map(content)));
}

#[tokio::test]
async fn entries_are_read_from_files_and_memory_alike() {
    let (mut log, _) = open(&MemoryDir::default(), small());
    let entries: Vec<Entry> = (0..40).map(|index| entry(1, index, 100)).collect();
    for entry in &entries {
        append(&log, vec![entry.clone()]).await.unwrap();
    }
    let in_memory = log.shared.view.lock().cache.len();
    assert!((1..40).contains(&in_memory), "{in_memory} entries are in memory");
    for (from, to) in [(0, 40), (0, 1), (39, 40), (3, 17), (35, 60), (17, 17), (50, 60)] {
        let read = log.try_get_log_entries(from..to).await.unwrap();
        let expected = &entries[from.min(40) as usize..to.min(40) as usize];
        assert!(read.iter().map(content).eq(expected.iter().map(content)), "{from}..{to}");
    }
}

#[tokio::test]
async fn an_entry_can_be_read_before_it_is_on_the_disk() {
    let (log, _) = open(&MemoryDir::default(), small());
    let mut flushed = Vec::new();
    for index in 0..200 {
        flushed.push(begin_append(&log, vec![entry(1, index, 200)]).await.unwrap());
        let read = log.clone().try_get_log_entries(index..=index).await.unwrap();
        assert_eq!(read.len(), 1);
    }
    futures::future::try_join_all(flushed).await.unwrap();
    append(&log, vec![entry(1, 200, 0)]).await.unwrap();
    let view = log.shared.view.lock();
    assert!(view.cached_bytes <= 1000, "{} bytes are kept in memory", view.cached_bytes);
}

#[tokio::test]
async fn one_message_carries_a_bounded_number_of_bytes_but_at_least_one_entry() {
    for cache_bytes in [0, 64 << 20] {
        let options = WalOptions { cache_bytes, ..WalOptions::default() };
        let (mut log, _) = open(&MemoryDir::default(), options);
        let large = MESSAGE_BYTES * 2;
        let sizes = [large, 400_000, 400_000, 400_000, large, large];
        let entries = (0..).zip(sizes).map(|(index, bytes)| entry(1, index, bytes)).collect();
        append(&log, entries).await.unwrap();
        let mut read = Vec::new();
        let mut next = 0;
        while next < 6 {
            let message = log.limited_get_log_entries(next, 6).await.unwrap();
            read.push(message.len());
            next += message.len() as u64;
        }
        assert_eq!(read, [1, 2, 1, 1, 1], "with {cache_bytes} bytes of cache");

        let applied = log.entries_stream(..).await.try_collect::<Vec<_>>().await.unwrap();
        assert_eq!(applied.len(), 6);
    }
}

#[tokio::test]
async fn a_message_never_begins_behind_what_was_asked_for() {
    let (mut log, _) = open(&MemoryDir::default(), small());
    append(&log, (0..10).map(|index| entry(1, index, 10)).collect()).await.unwrap();
    log.purge(log_id(1, 4)).await.unwrap();
    assert!(log.limited_get_log_entries(3, 8).await.unwrap().is_empty());
    assert_eq!(log.limited_get_log_entries(5, 8).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_hole_in_the_log_is_refused() {
    let (mut log, _) = open(&MemoryDir::default(), small());
    append(&log, vec![entry(1, 0, 0), entry(1, 1, 0)]).await.unwrap();
    for hole in [vec![entry(1, 3, 0)], vec![entry(1, 1, 0)], vec![entry(1, 2, 0), entry(1, 4, 0)]] {
        let error = append(&log, hole).await.unwrap_err();
        assert!(matches!(cause(&error), WalError::Gap { .. }), "{error}");
    }
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(1, 1)));
    append(&log, vec![entry(1, 2, 0)]).await.unwrap();
}

#[tokio::test]
async fn purged_segments_are_unlinked_and_the_rest_is_counted() {
    let dir = MemoryDir::default();
    let (mut log, _) = open(&dir, small());
    for index in 0..60 {
        append(&log, vec![entry(1, index, 300)]).await.unwrap();
    }
    let segments = dir.segments().len();
    assert!(segments >= 5, "{segments}");
    let bytes = log.purgeable_bytes(59);
    assert!((60 * 300..60 * 500).contains(&bytes), "{bytes}");
    assert_eq!(log.purgeable_bytes(100), bytes);
    assert!((300..500).contains(&log.purgeable_bytes(0)));
    assert!((20 * 300..20 * 500).contains(&log.bytes_from(40, 59)));
    assert_eq!(log.bytes_from(60, 59), 0);

    log.purge(log_id(1, 50)).await.unwrap();
    assert_eq!(log.purgeable_bytes(50), 0);
    let rest = log.purgeable_bytes(59);
    assert!((9 * 300..9 * 500).contains(&rest), "{rest}");
    // Anything that waits for the disk comes after the purge.
    log.save_vote(&Vote::new(2, 1)).await.unwrap();
    append(&log, vec![entry(1, 60, 0)]).await.unwrap();
    assert!(dir.segments().len() <= 2, "{:?}", dir.segments());
    assert_eq!(all(&log).await.len(), 10);
}

#[tokio::test]
async fn a_snapshot_beyond_the_log_empties_it() {
    let dir = MemoryDir::default();
    let (mut log, _) = open(&dir, small());
    append(&log, (0..10).map(|index| entry(1, index, 10)).collect()).await.unwrap();
    log.purge(log_id(2, 100)).await.unwrap();
    assert_eq!(log.purgeable_bytes(200), 0);
    append(&log, vec![entry(2, 101, 10)]).await.unwrap();
    drop(log);
    let (log, recovered) = open(&dir, small());
    assert_eq!(recovered.first_index, Some(101));
    assert_eq!(recovered.last, Some(log_id(2, 101)));
    assert_eq!(all(&log).await.len(), 1);
}

#[tokio::test]
async fn a_log_is_open_once() {
    let temp = tempfile::tempdir().unwrap();
    let memory = MemoryDir::default();
    let on_disk = || -> Arc<dyn LogDir> { Arc::new(DiskDir::open(temp.path()).unwrap()) };
    let in_memory = || -> Arc<dyn LogDir> { Arc::new(memory.clone()) };
    let dirs: [&dyn Fn() -> Arc<dyn LogDir>; 2] = [&on_disk, &in_memory];
    for dir in dirs {
        let (log, _) = LogStore::open(dir(), small()).unwrap();
        let error = LogStore::open(dir(), small()).map(|_| ()).unwrap_err();
        assert!(matches!(error, WalError::Locked(_)), "{error:?}");
        assert!(error.to_string().contains("in use by another process"), "{error}");
        log.close().await.unwrap();
        let (log, _) = LogStore::open(dir(), small()).unwrap();
        drop(log);
        LogStore::open(dir(), small()).unwrap();
    }
}

#[tokio::test]
async fn a_closed_log_takes_nothing_more() {
    let dir = MemoryDir::default();
    let (mut log, _) = open(&dir, small());
    let flushed = begin_append(&log, vec![entry(1, 0, 0)]).await.unwrap();
    log.close().await.unwrap();
    flushed.await.unwrap();
    let error = log.save_vote(&Vote::new(1, 1)).await.unwrap_err();
    assert!(matches!(cause(&error), WalError::Closed), "{error}");
    log.close().await.unwrap();
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_and_the_owner_hears_of_it() {
    let dir = MemoryDir::default();
    let (mut log, _) = open(&dir, small());
    append(&log, vec![entry(1, 0, 10)]).await.unwrap();
    dir.inject(Fault::Sync(0));
    let error = append(&log, vec![entry(1, 1, 10)]).await.unwrap_err();
    assert!(matches!(cause(&error), WalError::Failed(_)), "{error}");

    let told = log.failed().await;
    assert!(matches!(&*told, WalError::Io { action: "sync", .. }), "{told}");
    // The next sync would succeed, but what it would stand for is unknown.
    let error = append(&log, vec![entry(1, 2, 10)]).await.unwrap_err();
    assert!(matches!(cause(&error), WalError::Failed(_)), "{error}");
    let error = log.save_vote(&Vote::new(2, 1)).await.unwrap_err();
    assert!(matches!(cause(&error), WalError::Failed(_)), "{error}");
    assert!(matches!(log.close().await, Err(WalError::Failed(_))));

    let (_, recovered) = open(&dir.power_cut(|| false), small());
    assert_eq!(recovered.last, Some(log_id(1, 0)));
}

#[tokio::test]
async fn a_full_disk_is_a_failure_like_any_other() {
    let dir = MemoryDir::default();
    let (log, _) = open(&dir, small());
    dir.inject(Fault::PowerCut(0));
    let waiting: Vec<_> = futures::future::try_join_all(
        (0..20).map(|index| begin_append(&log, vec![entry(1, index, 10)])),
    )
    .await
    .unwrap_or_default();
    for flushed in waiting {
        assert!(flushed.await.is_err());
    }
    assert!(matches!(&*log.failed().await, WalError::Io { action: "write", .. }));
}

#[tokio::test]
async fn a_single_entry_may_be_larger_than_a_segment_and_the_queue() {
    let dir = MemoryDir::default();
    let options = WalOptions { queue_bytes: 2000, ..small() };
    let (log, _) = open(&dir, options);
    append(&log, vec![entry(1, 0, 10), entry(1, 1, 50_000), entry(1, 2, 10)]).await.unwrap();
    drop(log);
    let (log, _) = open(&dir, options);
    let read = all(&log).await;
    assert_eq!(read.len(), 3);
    assert_eq!(content(&read[1]), content(&entry(1, 1, 50_000)));
}

#[tokio::test]
async fn who_submits_more_than_the_queue_takes_waits() {
    let options = WalOptions { queue_bytes: 4 * ENTRY_BYTES as u32, ..small() };
    let (log, _) = open(&MemoryDir::default(), options);
    let mut flushed = Vec::new();
    for index in 0..500 {
        flushed.push(begin_append(&log, vec![entry(1, index, 0)]).await.unwrap());
    }
    futures::future::try_join_all(flushed).await.unwrap();
    assert_eq!(all(&log).await.len(), 500);
}

#[tokio::test]
async fn damage_found_while_reading_is_an_error() {
    let dir = MemoryDir::default();
    let (mut log, _) = open(&dir, WalOptions { cache_bytes: 0, ..WalOptions::default() });
    for index in 0..5 {
        append(&log, vec![entry(1, index, 100)]).await.unwrap();
    }
    let name = &dir.segments()[0];
    let key = b"key-1-2";
    dir.damage(name, |data| {
        let at = data.windows(key.len()).position(|bytes| bytes == key).unwrap();
        data[at] ^= 1;
    });
    let error = log.try_get_log_entries(0..5).await.unwrap_err();
    assert!(matches!(cause(&error), WalError::Damaged { .. }), "{error}");
    assert!(log.entries_stream(0..5).await.try_collect::<Vec<_>>().await.is_err());
}

#[tokio::test]
async fn a_flipped_byte_on_disk_is_refused_by_the_name_of_its_file() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("wal");
    let reopen = || {
        let dir = DiskDir::open(&path).unwrap();
        LogStore::open(Arc::new(dir), WalOptions { segment_bytes: 1 << 20, ..small() })
    };
    let (log, _) = reopen().unwrap();
    let entries: Vec<Entry> = (0..10).map(|index| entry(1, index, 100)).collect();
    for entry in &entries {
        append(&log, vec![entry.clone()]).await.unwrap();
    }
    drop(log);
    let (log, recovered) = reopen().unwrap();
    assert_eq!((recovered.last, recovered.torn), (Some(log_id(1, 9)), None));
    assert!(all(&log).await.iter().map(content).eq(entries.iter().map(content)));
    drop(log);

    let file = path.join("00000000000000000001.wal");
    let mut data = std::fs::read(&file).unwrap();
    assert_eq!(data.len(), 1 << 20);
    data[700] ^= 4;
    std::fs::write(&file, data).unwrap();
    let error = reopen().map(|_| ()).unwrap_err();
    assert!(matches!(error, WalError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}
