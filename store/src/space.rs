//! Room for more: each member watches over its own data and its own disk, and tells the cluster when
//! there is none.
//!
//! * **The quota** bounds what the records take ([`crate::mvcc::Mvcc::in_use_bytes`]). A request that
//!   has no room is refused where it arrives, before it gets into any log, as with etcd.
//! * **The reserve** is a part of the disk that is left free, so that deletions, compactions and the
//!   log still have room when everything else is full.
//!
//! Who runs out of either raises the alarm NOSPACE in its own name (what that refuses:
//! [`crate::mvcc`]'s `alarm`), and takes it back when there is room again, with a margin, so that it
//! does not come and go. etcd leaves that to an administrator.
//!
//! ```text
//! quota 2 GiB:      raised at 2 GiB in use             taken back below 1.875 GiB
//! reserve 128 MiB:  raised below 128 MiB free          taken back above 160 MiB
//!                   (each and as much as is in use: a snapshot has to find room)
//!                   with less than that and once more what is in use, the log is kept short
//!                   below 32 MiB free the member ends: the log could fail at any time
//! ```
//! What was deleted is out of use at once, but out of the state's files only later, and they even grow
//! while it leaves them. So an alarm for the disk also waits until they have been rewritten.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use store_proto::etcdserverpb::AlarmType;
use store_proto::peer::alarm::Cause;
use store_proto::peer::command::Op;
use store_proto::peer::{Alarm, AlarmChange};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::error::RequestError;
use crate::member::Member;
use crate::mvcc::cost_bytes;
use crate::raft::snapshot_transfer::blocking;

const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// For the cluster to take up an alarm; after that, what there is to say is looked at again.
const ALARM_TIMEOUT: Duration = Duration::from_secs(1);
/// This part of the quota has to come free before growth is let in again.
const QUOTA_MARGIN: u64 = 16;
/// This part of the reserve has to be free on top of it, likewise.
const RESERVE_MARGIN: u64 = 4;
/// Below this part of the reserve a member ends.
const RESERVE_END: u64 = 4;

/// On a full disk the state is rewritten once its files take so many times what they hold, …
const REWRITE_FACTOR: u64 = 2;
/// … and so much more, as fresh files take some at once.
const REWRITE_BYTES: u64 = 4 << 20;
const REWRITE_PAUSE: Duration = Duration::from_secs(10);

/// Rewritten, the state takes this part more than its records do, for lengths and the index, …
const REWRITTEN_PART: u64 = 4;
/// … and so much in any case.
const REWRITTEN_BYTES: u64 = 4 << 20;

/// What the state's files take once they are rewritten.
pub(crate) fn rewritten_bytes(in_use_bytes: u64) -> u64 {
    in_use_bytes.saturating_add(in_use_bytes / REWRITTEN_PART).saturating_add(REWRITTEN_BYTES)
}

/// How much room a member may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpaceLimits {
    /// What the records may take; `None`: as much as there is.
    pub(crate) quota_bytes: Option<u64>,
    /// What is left free on the disk; 0: the disk is not looked at.
    pub(crate) reserve_bytes: u64,
}

impl SpaceLimits {
    /// Below this many bytes in use an exceeded quota has room again.
    fn resume_below(quota_bytes: u64) -> u64 {
        quota_bytes - quota_bytes / QUOTA_MARGIN
    }

    /// With less free a member does not start, and ends if it runs.
    fn end_below(&self) -> u64 {
        self.reserve_bytes / RESERVE_END
    }
}

/// The disk is too full to go on.
#[derive(Debug, thiserror::Error)]
#[error(
    "the disk of {} is full: {free_bytes} bytes are free and at least {needed_bytes} are needed; \
     make room there, then start this member again (or ask for less with --disk-reserve-bytes)",
    path.display()
)]
pub struct DiskFull {
    path: PathBuf,
    free_bytes: u64,
    needed_bytes: u64,
}

/// The disk has no room for a second copy of the state.
#[derive(Debug, thiserror::Error)]
#[error(
    "the disk of {} has {free_bytes} bytes free, and rewriting the data needs up to {needed_bytes}",
    path.display()
)]
pub(crate) struct RewriteRefused {
    path: PathBuf,
    free_bytes: u64,
    needed_bytes: u64,
}

/// What a member finds when it looks.
#[derive(Clone, Copy, Debug)]
struct Observed {
    in_use_bytes: u64,
    /// `None` when the disk is not looked at, or cannot be.
    free_bytes: Option<u64>,
    /// What the state's files take.
    state_bytes: u64,
    /// Whether a request was refused for the quota since the last look.
    refused: bool,
}

impl Observed {
    /// Whether there is room for the state to be rewritten.
    fn is_rewrite_possible(&self, limits: &SpaceLimits) -> bool {
        let needed_bytes = rewritten_bytes(self.in_use_bytes).saturating_add(limits.end_below());
        self.free_bytes.is_some_and(|free| free >= needed_bytes)
    }

    /// Whether the state's files take much more than they hold.
    fn is_rewrite_worthwhile(&self) -> bool {
        self.state_bytes / REWRITE_FACTOR > self.in_use_bytes + REWRITE_BYTES
    }
}

/// Which alarm this member should have raised, given the one that it has.
fn wanted(limits: &SpaceLimits, seen: Observed, raised: Option<Cause>) -> Option<Cause> {
    let exceeds_quota = limits.quota_bytes.is_some_and(|quota| {
        let is_close = seen.refused || raised == Some(Cause::Quota);
        let limit = if is_close { SpaceLimits::resume_below(quota) } else { quota };
        seen.in_use_bytes >= limit
    });
    if exceeds_quota {
        Some(Cause::Quota)
    } else {
        is_low(limits, seen, raised).then_some(Cause::Disk)
    }
}

fn is_low(limits: &SpaceLimits, seen: Observed, raised: Option<Cause>) -> bool {
    let reserve = limits.reserve_bytes;
    let is_raised = raised == Some(Cause::Disk);
    if is_raised && seen.is_rewrite_worthwhile() && seen.is_rewrite_possible(limits) {
        return true;
    }
    let margin = if is_raised { reserve / RESERVE_MARGIN } else { 0 };
    // A snapshot takes as much as is in use, and the state rewritten little more.
    let needed = reserve.saturating_add(margin).saturating_add(seen.in_use_bytes);
    seen.free_bytes.is_some_and(|free| free < needed)
}

/// How much room there is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// As far as is known.
    Ample,
    /// Enough, but not for a log that grows with the state.
    Tight,
    /// The alarm is to be raised, or stays.
    Low,
}

fn room(limits: &SpaceLimits, seen: Observed, raised: Option<Cause>) -> Room {
    let ample = limits.reserve_bytes.saturating_add(seen.in_use_bytes.saturating_mul(2));
    if is_low(limits, seen, raised) {
        Room::Low
    } else if seen.free_bytes.is_some_and(|free| free < ample) {
        Room::Tight
    } else {
        Room::Ample
    }
}

/// What has to be told to the cluster, if anything.
fn change(raised: Option<Cause>, wanted: Option<Cause>) -> Option<(Cause, bool)> {
    match (raised, wanted) {
        // That one is not this member's to change.
        (Some(Cause::Client), _) => None,
        (raised, wanted) if raised == wanted => None,
        (_, Some(cause)) => Some((cause, true)),
        (Some(cause), None) => Some((cause, false)),
        (None, None) => None,
    }
}

/// The limits of a member, and what was refused for them.
#[derive(Debug)]
pub(crate) struct Space {
    limits: SpaceLimits,
    data_dir: PathBuf,
    refused: AtomicBool,
    room: Mutex<Room>,
    look: Notify,
}

impl Space {
    pub(crate) fn new(limits: SpaceLimits, data_dir: PathBuf) -> Self {
        let (refused, room) = (AtomicBool::new(false), Mutex::new(Room::Ample));
        Self { limits, data_dir, refused, room, look: Notify::new() }
    }

    /// How much room this member's disk has, as far as it has looked.
    pub(crate) fn room(&self) -> Room {
        *self.room.lock()
    }

    /// Refuses to write `bytes` more to the disk where that would use up the reserve. Blocks.
    pub(crate) fn check_rewrite(&self, bytes: u64) -> Result<(), RewriteRefused> {
        if self.limits.reserve_bytes == 0 {
            return Ok(());
        }
        let free_bytes = free_bytes(&self.data_dir).unwrap_or(u64::MAX);
        let needed_bytes = bytes.saturating_add(self.limits.end_below());
        if free_bytes >= needed_bytes {
            return Ok(());
        }
        Err(RewriteRefused { path: self.data_dir.clone(), free_bytes, needed_bytes })
    }

    /// What the records may take; `None`: as much as there is.
    pub(crate) fn quota_bytes(&self) -> Option<u64> {
        self.limits.quota_bytes
    }

    /// Whether the quota has room for `cost_bytes` beside what is in use.
    fn admit(&self, in_use_bytes: u64, cost_bytes: u64) -> Result<(), RequestError> {
        match self.limits.quota_bytes {
            Some(quota) if in_use_bytes.saturating_add(cost_bytes) >= quota => {
                self.refused.store(true, Ordering::Relaxed);
                self.look.notify_one();
                Err(RequestError::NoSpace)
            }
            _ => Ok(()),
        }
    }
}

impl Member {
    /// Refuses what there is no room for, before it takes room in the logs.
    pub(crate) async fn check_room(&self, op: &Op) -> Result<(), RequestError> {
        let cost_bytes = cost_bytes(op);
        if cost_bytes == 0 {
            return Ok(());
        }
        if self.mvcc.restrictions().growth {
            // This member may be behind, and the alarm gone since.
            self.linearize().await?;
            if self.mvcc.restrictions().growth {
                return Err(RequestError::NoSpace);
            }
        }
        self.space.admit(self.mvcc.in_use_bytes(), cost_bytes)
    }

    fn own_alarm(&self) -> Option<Cause> {
        let alarms = self.mvcc.alarms(AlarmType::Nospace);
        alarms.iter().find(|alarm| alarm.member_id == self.id).map(Alarm::cause)
    }
}

/// Refuses to start on a disk that is full.
pub(crate) fn check_disk(path: &Path, limits: &SpaceLimits) -> Result<(), DiskFull> {
    match free_bytes(path) {
        Ok(free_bytes) => check_free(path, limits, free_bytes),
        Err(error) => {
            tracing::warn!(%error, "it cannot be told how full the disk is");
            Ok(())
        }
    }
}

fn check_free(path: &Path, limits: &SpaceLimits, free_bytes: u64) -> Result<(), DiskFull> {
    let needed_bytes = limits.end_below();
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(DiskFull { path: path.to_owned(), free_bytes, needed_bytes })
}

/// What an unprivileged process may still write to the file system of `path`. Blocks.
fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Looks again and again, raises this member's alarm and takes it back. Ends when the disk is too
/// full to go on.
pub(crate) async fn watch_over(member: Arc<Member>) -> DiskFull {
    let Space { limits, data_dir, .. } = &*member.space;
    let mut interval = tokio::time::interval(LOOK_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut relief = Relief::default();
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = member.space.look.notified() => {}
        }
        let (mut free, mut state_bytes, mut unfinished_bytes) = (None, 0, 0);
        if limits.reserve_bytes > 0 {
            let (path, mvcc) = (data_dir.clone(), member.mvcc.clone());
            let snapshots = member.snapshots.clone();
            let look = move || {
                let unfinished = snapshots.unfinished_bytes().unwrap_or(0);
                Ok((free_bytes(&path)?, mvcc.size_bytes().unwrap_or(0), unfinished))
            };
            // Where it cannot be told, the log will tell.
            if let Ok((now_free, now_held, unfinished)) = blocking(look).await {
                (free, state_bytes, unfinished_bytes) = (Some(now_free), now_held, unfinished);
            }
        }
        if let Some(free_bytes) = free
            && let Err(full) = check_free(data_dir, limits, free_bytes)
        {
            return full;
        }
        let seen = Observed {
            in_use_bytes: member.mvcc.in_use_bytes(),
            // A snapshot under way has been allowed for, and takes the place of the one before.
            free_bytes: free.map(|free| free.saturating_add(unfinished_bytes)),
            state_bytes,
            refused: member.space.refused.swap(false, Ordering::Relaxed),
        };
        let raised = member.own_alarm();
        let room = room(limits, seen, raised);
        *member.space.room.lock() = room;
        if room == Room::Low {
            relief.rewrite(&member, seen);
        }
        let Some((cause, raise)) = change(raised, wanted(limits, seen, raised)) else { continue };
        let alarm =
            Alarm { member_id: member.id, alarm: AlarmType::Nospace.into(), cause: cause.into() };
        let proposed = member.propose(Op::Alarm(AlarmChange { alarm: Some(alarm), raised: raise }));
        match tokio::time::timeout(ALARM_TIMEOUT, proposed).await {
            Ok(Ok(_)) => tell(limits, seen, cause, raise),
            // It comes up again at the next look.
            Ok(Err(error)) => tracing::debug!(%error, "the alarm NOSPACE could not be changed"),
            Err(_) => tracing::debug!("the alarm NOSPACE could not be changed in time"),
        }
    }
}

/// Gives a full disk back what the state's files take without need, now and then.
#[derive(Default)]
struct Relief {
    rewrites: JoinSet<()>,
    last: Option<Instant>,
}

impl Relief {
    fn rewrite(&mut self, member: &Arc<Member>, seen: Observed) {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= REWRITE_PAUSE);
        if !seen.is_rewrite_worthwhile() || !is_due {
            return;
        }
        while self.rewrites.try_join_next().is_some() {}
        self.last = Some(Instant::now());
        let member = Arc::clone(member);
        self.rewrites.spawn(async move {
            if let Err(status) = member.defragment().await {
                tracing::warn!(reason = status.message(), "the state could not be rewritten");
            }
        });
    }
}

fn tell(limits: &SpaceLimits, seen: Observed, cause: Cause, raised: bool) {
    let Observed { in_use_bytes, free_bytes, .. } = seen;
    match (raised, cause) {
        (true, Cause::Disk) => tracing::warn!(
            free_bytes,
            reserve_bytes = limits.reserve_bytes,
            "alarm NOSPACE: this member's disk is nearly full; make room on it, or delete keys and \
             compact"
        ),
        (true, _) => tracing::warn!(
            in_use_bytes,
            quota_bytes = limits.quota_bytes,
            "alarm NOSPACE: the data have reached the quota, and what needs room is refused; delete \
             keys and compact, or raise --quota-backend-bytes"
        ),
        (false, _) => {
            tracing::warn!(
                in_use_bytes,
                free_bytes,
                "there is room again: alarm NOSPACE taken back"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SpaceLimits = SpaceLimits { quota_bytes: Some(1600), reserve_bytes: 400 };

    #[test]
    fn alarms_are_raised_at_the_limit_and_taken_back_with_a_margin() {
        use Cause::{Client, Disk, Quota};
        let cases = [
            // In use, free, refused, raised; wanted.
            (1599, 1999, false, None, None),
            (1599, 1998, false, None, Some(Disk)),
            (1600, 9000, false, None, Some(Quota)),
            (1500, 9000, false, Some(Quota), Some(Quota)),
            (1499, 9000, false, Some(Quota), None),
            (1500, 9000, true, None, Some(Quota)),
            // One large request is no reason to refuse all others.
            (1499, 9000, true, None, None),
            (0, 400, false, None, None),
            (0, 399, false, None, Some(Disk)),
            (0, 499, false, Some(Disk), Some(Disk)),
            (0, 500, false, Some(Disk), None),
            (1600, 10, false, Some(Disk), Some(Quota)),
            (0, 10, false, Some(Quota), Some(Disk)),
            (0, 1000, false, Some(Client), None),
        ];
        for (in_use_bytes, free_bytes, refused, raised, expected) in cases {
            let free_bytes = Some(free_bytes);
            let seen = Observed { in_use_bytes, free_bytes, state_bytes: in_use_bytes, refused };
            assert_eq!(wanted(&LIMITS, seen, raised), expected, "{seen:?} {raised:?}");
        }
        let unlimited = SpaceLimits { quota_bytes: None, reserve_bytes: 400 };
        let seen =
            Observed { in_use_bytes: u64::MAX, free_bytes: None, state_bytes: 0, refused: true };
        assert_eq!(wanted(&unlimited, seen, None), None);
    }

    #[test]
    fn an_alarm_for_the_disk_waits_until_what_was_deleted_has_left_the_files() {
        use Cause::Disk;
        let much = REWRITE_FACTOR * (REWRITE_BYTES + 1);
        // What the state takes when it is rewritten, and what is left for the log.
        let enough = REWRITTEN_BYTES + 100;
        let cases = [
            // The state's files, free, raised; wanted.
            (much, Some(enough), Some(Disk), Some(Disk)),
            (much - 1, Some(enough), Some(Disk), None),
            // What cannot be rewritten is not waited for.
            (much, Some(enough - 1), Some(Disk), None),
            // Who has room enough raises none for it.
            (much, Some(enough), None, None),
            (much, None, Some(Disk), None),
        ];
        for (state_bytes, free_bytes, raised, expected) in cases {
            let seen = Observed { in_use_bytes: 0, free_bytes, state_bytes, refused: false };
            assert_eq!(wanted(&LIMITS, seen, raised), expected, "{seen:?} {raised:?}");
        }
    }

    #[test]
    fn there_is_ample_room_for_the_reserve_and_twice_what_is_in_use() {
        let cases = [
            (100, Some(600), Room::Ample),
            (100, Some(599), Room::Tight),
            (100, Some(500), Room::Tight),
            (100, Some(499), Room::Low),
            (100, None, Room::Ample),
        ];
        for (in_use_bytes, free_bytes, expected) in cases {
            let seen = Observed { in_use_bytes, free_bytes, state_bytes: 0, refused: false };
            assert_eq!(room(&LIMITS, seen, None), expected, "{seen:?}");
        }
    }

    #[test]
    fn what_a_client_raised_is_left_alone() {
        use Cause::{Client, Disk, Quota};
        let cases = [
            (None, None, None),
            (None, Some(Disk), Some((Disk, true))),
            (Some(Disk), Some(Disk), None),
            (Some(Disk), Some(Quota), Some((Quota, true))),
            (Some(Quota), None, Some((Quota, false))),
            (Some(Client), None, None),
            (Some(Client), Some(Quota), None),
        ];
        for (raised, wanted, expected) in cases {
            assert_eq!(change(raised, wanted), expected, "{raised:?} {wanted:?}");
        }
    }

    #[test]
    fn a_request_without_room_is_refused_and_noticed() {
        let space = Space::new(LIMITS, PathBuf::from("/"));
        assert_eq!(space.admit(1000, 599), Ok(()));
        assert!(!space.refused.load(Ordering::Relaxed));
        assert_eq!(space.admit(1000, 600), Err(RequestError::NoSpace));
        assert!(space.refused.load(Ordering::Relaxed));
        let limits = SpaceLimits { quota_bytes: None, ..LIMITS };
        let unlimited = Space::new(limits, PathBuf::from("/"));
        assert_eq!(unlimited.admit(u64::MAX, u64::MAX), Ok(()));
    }

    #[test]
    fn the_message_names_the_disk_and_what_to_do() {
        let path = Path::new("/data/n1");
        assert!(check_free(path, &LIMITS, 100).is_ok());
        let message = check_free(path, &LIMITS, 99).unwrap_err().to_string();
        assert!(message.contains("/data/n1") && message.contains("make room"), "{message}");
        assert!(free_bytes(Path::new("/")).unwrap() > 0);
    }
}
