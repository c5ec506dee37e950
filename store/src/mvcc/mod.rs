//! The applied state: keys with all their revisions, leases, and how far the log is applied.
//!
//! [`Mvcc`] is a handle that everybody shares. One writer, the state machine of Raft, calls
//! [`Mvcc::apply`] with the entries of the log in order; everybody else reads. What holds:
//!
//! * **Applying is a pure function** of the entry and the state: no clock, no randomness. Members
//!   that applied the same entries hold the same data, and [`Mvcc::hash`] says so in one number.
//! * **Readers see whole revisions.** A write gets revision `n + 1` in the index at once, but
//!   `current_revision` becomes `n + 1` only when all of its request is done, and no reader looks
//!   above that.
//! * **Apply works in memory, the engine follows.** [`Mvcc::write_behind`] hands what is pending to
//!   the engine, data and applied log id in one atomic batch, so the engine always holds the state
//!   after some entry, never between two. Until then readers find it in the [`window`].
//! * **A compaction is a mark first.** From its entry on, nobody reads below it; the records go
//!   later, in small steps, and only once the mark itself is in the engine: out of the index soon,
//!   out of the engine once they are worth it ([`garbage`]).
//!
//! ```text
//! apply -> index, window, leases      (memory, at once)
//!       -> pending -> write_behind -> engine       (data + applied id, one batch)
//! range -> index -> window, or the engine
//! ```

mod alarm;
mod apply;
mod check;
mod compact;
mod defragment;
mod garbage;
mod hash;
mod history;
mod index;
mod key_range;
mod keys;
mod lease;
mod open;
mod pending;
mod quota;
mod range;
mod records;
mod restore;
mod revision;
mod state_dir;
mod txn;
mod window;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use store_proto::etcdserverpb::AlarmType;
use store_proto::peer::{Alarm, MemberAttributes};
use tokio::sync::watch;

pub(crate) use self::alarm::Restrictions;
pub(crate) use self::apply::{Outcome, is_quick};
pub(crate) use self::check::{MAX_TXN_OPS, check_delete_range, check_put, check_range, check_txn};
pub(crate) use self::compact::CompactStep;
pub(crate) use self::defragment::Moved;
pub(crate) use self::hash::HashKv;
pub(crate) use self::history::HistoryError;
pub(crate) use self::index::NextChanges;
pub(crate) use self::key_range::KeyRange;
pub(crate) use self::lease::LeaseInfo;
pub(crate) use self::quota::cost_bytes;
pub(crate) use self::restore::Capture;
pub(crate) use self::revision::{
    EMPTY_REVISION, NEVER_COMPACTED, Revision, RevisionEvents, delete_event, is_delete, kv_of,
    put_event,
};
pub(crate) use self::state_dir::{Opened, StateDir};
pub(crate) use self::txn::{is_read_only, is_serializable};

use self::alarm::AlarmTable;
use self::index::Index;
use self::lease::LeaseTable;
use self::pending::{Pending, Persisted};
use self::window::Window;
use crate::engine::{Engine, EngineError};
use crate::error::RequestError;
use crate::raft::types::{LogId, StoredMembership};

/// How much the state may hold in memory beyond its index, and hand over at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// What the recent revisions may take. It is exceeded while the engine lags behind.
    pub(crate) window_bytes: usize,
    /// What one batch of write-behind may take, unless a single entry is larger. It is in memory three
    /// times meanwhile: as what waits, as records, and as blocks.
    pub(crate) batch_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { window_bytes: 32 * 1024 * 1024, batch_bytes: 1024 * 1024 }
    }
}

/// Why a read or an operation did not succeed: refused, or the engine is broken and the process has
/// to end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The same on every member; goes to the client.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Goes to nobody; ends the process.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The applied state; clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Mvcc {
    shared: Arc<Shared>,
}

struct Shared {
    /// Held for short times only, never while waiting for the disk.
    state: RwLock<State>,
    /// One at a time changes the state: an apply, or a restore.
    writer: Mutex<Writer>,
    /// One at a time changes the engine: write-behind, a step of compaction, the swap of a restore.
    /// Taken before `state` and after `writer`.
    engine_work: Mutex<EngineWork>,
    /// How many [`compact::CompactionPause`]s there are; raised under `engine_work`.
    pauses: AtomicUsize,
    /// [`Index::record_bytes`], for those who ask often.
    in_use_bytes: AtomicU64,
    /// Up to which compacted revision all invisible records are removed from the engine.
    removed: watch::Sender<i64>,
    /// Up to which somebody wants that.
    removal_wanted: AtomicI64,
    limits: Limits,
}

#[derive(Default)]
struct Writer {
    /// Set while an entry is half applied, and for ever when that failed.
    is_broken: bool,
}

struct EngineWork {
    compaction: compact::Progress,
    /// How many records the engine has. It is written with every batch, so that an engine that lost
    /// some is found out when it is opened.
    records: usize,
}

impl EngineWork {
    /// For a state that was just loaded.
    fn new(state: &State) -> Self {
        Self { compaction: compact::Progress::default(), records: state.index.len() }
    }
}

struct State {
    engine: Arc<dyn Engine>,
    /// Changes when a restore replaces everything, so that a long read notices.
    epoch: u64,
    index: Index,
    /// How many records the engine has that are not in the index any more.
    garbage: usize,
    window: Window,
    leases: LeaseTable,
    /// The newest revision that readers see.
    revision: i64,
    /// Nothing below can be read.
    compacted: i64,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// What members told of themselves, by their ids.
    members: BTreeMap<u64, MemberAttributes>,
    alarms: AlarmTable,
    pending: Pending,
    /// What the engine has.
    persisted: Persisted,
}

impl State {
    fn is_removed(&self, member_id: u64) -> bool {
        self.members.get(&member_id).is_some_and(|member| member.removed)
    }
}

impl Mvcc {
    fn new(state: State, limits: Limits) -> Self {
        let shared = Shared {
            engine_work: Mutex::new(EngineWork::new(&state)),
            state: RwLock::new(state),
            writer: Mutex::default(),
            pauses: AtomicUsize::new(0),
            in_use_bytes: AtomicU64::default(),
            removed: watch::Sender::new(NEVER_COMPACTED),
            removal_wanted: AtomicI64::new(NEVER_COMPACTED),
            limits,
        };
        shared.note_size(&shared.state.read());
        Self { shared: Arc::new(shared) }
    }

    /// The newest revision that can be read; 1 in an empty store.
    pub(crate) fn current_revision(&self) -> i64 {
        self.shared.state.read().revision
    }

    /// The oldest revision that can be read; -1 if none was ever compacted.
    pub(crate) fn compacted_revision(&self) -> i64 {
        self.shared.state.read().compacted
    }

    /// The last applied entry and the last applied membership.
    pub(crate) fn applied(&self) -> (Option<LogId>, StoredMembership) {
        let state = self.shared.state.read();
        (state.applied, state.membership.clone())
    }

    /// What the members told of themselves, by their ids; those that were removed are marked.
    pub(crate) fn members(&self) -> BTreeMap<u64, MemberAttributes> {
        self.shared.state.read().members.clone()
    }

    /// Whether there was a member of this id, and it has been removed.
    pub(crate) fn is_removed(&self, member_id: u64) -> bool {
        self.shared.state.read().is_removed(member_id)
    }

    /// The alarms of a type, or all for NONE, in the order of types and members.
    pub(crate) fn alarms(&self, alarm: AlarmType) -> Vec<Alarm> {
        self.shared.state.read().alarms.of_type(alarm)
    }

    /// What is refused for the alarms that are raised.
    pub(crate) fn restrictions(&self) -> Restrictions {
        let state = self.shared.state.read();
        state.alarms.restrictions(&state.membership)
    }

    /// The last entry whose effects the engine has.
    pub(crate) fn persisted(&self) -> Option<LogId> {
        self.shared.state.read().persisted.applied
    }

    /// About how many bytes wait for [`Mvcc::write_behind`]. Whoever applies should wait while
    /// there are too many: they are in memory.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.shared.state.read().pending.bytes()
    }

    /// All leases in the order of their ids.
    pub(crate) fn leases(&self) -> Vec<LeaseInfo> {
        self.shared.state.read().leases.all()
    }

    /// One lease, if it exists.
    pub(crate) fn lease(&self, id: i64) -> Option<LeaseInfo> {
        self.shared.state.read().leases.get(id)
    }

    /// The keys that are bound to a lease, sorted; none if there is no such lease.
    pub(crate) fn lease_keys(&self, id: i64) -> Vec<Bytes> {
        self.shared.state.read().leases.keys(id)
    }

    /// What the records in the index take, keys and values. The same on all members, but for how far
    /// each has come with taking out what a compaction made invisible.
    pub(crate) fn in_use_bytes(&self) -> u64 {
        self.shared.in_use_bytes.load(Ordering::Relaxed)
    }

    /// How many keys there are now.
    pub(crate) fn key_count(&self) -> usize {
        self.shared.state.read().index.live_keys()
    }

    /// What the engine takes up.
    pub(crate) fn size_bytes(&self) -> Result<u64, EngineError> {
        let engine = Arc::clone(&self.shared.state.read().engine);
        engine.size_bytes()
    }
}

impl Shared {
    /// Notes what the index says; to be called whenever that has changed.
    fn note_size(&self, state: &State) {
        self.in_use_bytes.store(state.index.record_bytes(), Ordering::Relaxed);
    }
}

impl fmt::Debug for Mvcc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.read();
        f.debug_struct("Mvcc")
            .field("engine", &state.engine)
            .field("revision", &state.revision)
            .field("compacted", &state.compacted)
            .field("applied", &state.applied)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
