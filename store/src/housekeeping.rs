//! What a member does for its disk besides serving: state is written behind, compacted and
//! snapshotted, and a log that fails ends the member.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::member::Member;
use crate::metrics::Metrics;
use crate::mvcc::{CompactStep, Mvcc};
use crate::raft::log_store::LogStore;
use crate::raft::snapshot_transfer::blocking;
use crate::reads::Reads;
use crate::space::Room;
use crate::start::Error;

/// Between two looks at what is to be written behind.
const WRITE_BEHIND_INTERVAL: Duration = Duration::from_millis(50);
/// Between two times that the state is flushed and the log told about it.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(2);
/// After so many batches it is looked whether the state is to be flushed.
const BATCHES_AT_ONCE: usize = 16;
/// An engine that has not taken them by then hangs.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(60);
const COMPACTION_INTERVAL: Duration = Duration::from_millis(100);
/// After each step of one, so that writes find the state's lock free.
const COMPACTION_PAUSE: Duration = Duration::from_micros(100);
/// A step that took longer is followed by as long a pause, up to this, so that the log has the disk
/// for a part of the time.
const COMPACTION_LONGEST_PAUSE: Duration = Duration::from_millis(5);
/// After so long a member that is to stop can.
const COMPACTION_AT_ONCE: Duration = Duration::from_secs(1);
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// On a disk that is nearly full, a snapshot is taken for so much log: a segment.
const LOW_DISK_LOG_BYTES: u64 = 16 << 20;
/// While there is room the log may grow to this part of what is in use.
const LOG_PART: u64 = 2;

/// Hands applied entries to the engine, a batch at a time. Ends when the engine fails.
pub(crate) async fn write_behind(mvcc: Mvcc, log: LogStore, metrics: Arc<Metrics>) -> Error {
    let mut interval = tokio::time::interval(WRITE_BEHIND_INTERVAL);
    let mut next_checkpoint = Instant::now() + CHECKPOINT_INTERVAL;
    loop {
        interval.tick().await;
        let writing = mvcc.clone();
        let seconds = metrics.commit_seconds.clone();
        let written = blocking(move || {
            for _ in 0..BATCHES_AT_ONCE {
                if writing.pending_bytes() == 0 {
                    return Ok(true);
                }
                let begun = Instant::now();
                let written = writing.write_behind().map_err(std::io::Error::other)?;
                seconds.observe(begun.elapsed().as_secs_f64());
                if written.is_idle {
                    return Ok(true);
                }
            }
            Ok(false)
        });
        // An engine that hangs would fill the memory and then hold up everything else.
        match tokio::time::timeout(ENGINE_TIMEOUT, written).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => interval.reset_immediately(),
            Ok(Err(error)) => return Error::write("the state", error),
            Err(late) => return Error::write("the state", late),
        }
        if Instant::now() >= next_checkpoint {
            match tokio::time::timeout(ENGINE_TIMEOUT, checkpoint(&mvcc, &log)).await {
                Ok(Checkpoint::Noted) => *metrics.checkpoint_at.lock() = Some(Instant::now()),
                Ok(Checkpoint::Failed) => {}
                Err(_) => tracing::error!("the state engine hangs"),
            }
            next_checkpoint = Instant::now() + CHECKPOINT_INTERVAL;
        }
    }
}

/// Makes the state durable as far as it is applied and notes that in the log: an engine that comes
/// back with less has lost data and is rebuilt.
pub(crate) async fn checkpoint(mvcc: &Mvcc, log: &LogStore) -> Checkpoint {
    let flushing = mvcc.clone();
    let flushed = blocking(move || flushing.flush().map_err(std::io::Error::other)).await;
    match flushed {
        Ok(Some(applied)) => {
            if let Err(error) = log.note_checkpoint(applied).await {
                tracing::error!(%error, "the log cannot note a checkpoint");
                return Checkpoint::Failed;
            }
            Checkpoint::Noted
        }
        Ok(None) => Checkpoint::Noted,
        Err(error) => {
            tracing::error!(%error, "the state cannot be flushed");
            Checkpoint::Failed
        }
    }
}

/// What became of making the state durable; why not has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checkpoint {
    Noted,
    Failed,
}

/// Removes what compactions left behind, and gives back the room that it took, in small steps. Ends
/// when the engine fails.
pub(crate) async fn compact(mvcc: Mvcc) -> Error {
    let mut interval = tokio::time::interval(COMPACTION_INTERVAL);
    loop {
        interval.tick().await;
        let compacting = mvcc.clone();
        let steps = blocking(move || {
            let begun = Instant::now();
            while begun.elapsed() < COMPACTION_AT_ONCE {
                let step_begun = Instant::now();
                if compacting.compact_step().map_err(std::io::Error::other)? != CompactStep::More {
                    return Ok(true);
                }
                let pause = step_begun.elapsed();
                std::thread::park_timeout(pause.clamp(COMPACTION_PAUSE, COMPACTION_LONGEST_PAUSE));
            }
            Ok(false)
        });
        match steps.await {
            Ok(true) => {}
            Ok(false) => interval.reset_immediately(),
            Err(error) => return Error::write("the state", error),
        }
    }
}

/// Takes a snapshot whenever the log has outgrown the last one far enough: see [`log_limit_bytes`].
/// Never ends.
pub(crate) async fn snapshots(member: Arc<Member>, log: LogStore, log_bytes: u64) {
    let mut interval = tokio::time::interval(SNAPSHOT_INTERVAL);
    // The first entry that the last snapshot does not cover.
    let mut uncovered = 0;
    loop {
        interval.tick().await;
        let applied = *member.applied_index.borrow();
        let in_use_bytes = member.mvcc.in_use_bytes();
        let limit_bytes = log_limit_bytes(log_bytes, in_use_bytes, member.space.room());
        if log.bytes_from(uncovered, applied) < limit_bytes {
            continue;
        }
        let space = Arc::clone(&member.space);
        let checked =
            blocking(move || space.check_rewrite(in_use_bytes).map_err(std::io::Error::other));
        if checked.await.is_err() {
            // The alarm says so already.
            continue;
        }
        tracing::info!(index = applied, "the log has outgrown the last snapshot");
        if member.raft.trigger().snapshot().await.is_ok() {
            uncovered = applied.saturating_add(1);
        }
    }
}

/// For how much log a snapshot is taken, which writes all that is in use: at fixed intervals a
/// growing state would be written ever more often. `least_bytes` is what the flag asks for.
///
/// ```text
/// 64 MiB asked for, 1 GiB loaded: snapshots at 64, 128, 256, 512, 1024 MiB
/// ```
fn log_limit_bytes(least_bytes: u64, in_use_bytes: u64, room: Room) -> u64 {
    match room {
        Room::Ample => least_bytes.max(in_use_bytes / LOG_PART),
        // The log is the first to give something back.
        Room::Tight => least_bytes,
        Room::Low => least_bytes.min(LOW_DISK_LOG_BYTES),
    }
}

/// Ends when the state turns out to be unreadable.
pub(crate) async fn state_failure(state: Reads) {
    let error = state.broken().await;
    tracing::error!(%error, "the state cannot be read");
}

/// Ends when the log can no longer be written: nothing may be acknowledged then.
pub(crate) async fn log_failure(log: LogStore) -> Error {
    Error::write("the log", log.failed().await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_state_is_written_seldom_and_on_a_full_disk_the_log_is_short() {
        const MIB: u64 = 1 << 20;
        let cases = [
            (64, 10, Room::Ample, 64),
            (64, 128, Room::Ample, 64),
            (64, 1000, Room::Ample, 500),
            (64, 1000, Room::Tight, 64),
            (64, 1000, Room::Low, 16),
            (8, 1000, Room::Low, 8),
        ];
        for (least, in_use, room, expected) in cases {
            let limit = log_limit_bytes(least * MIB, in_use * MIB, room);
            assert_eq!(limit, expected * MIB, "{least} {in_use} {room:?}");
        }
    }
}
