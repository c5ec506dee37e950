//! Who leads, as this member sees it at present, and whether it is in contact with whoever that is.
//!
//! A term's leader may have died or been cut off long ago. It counts as known only while this member
//! has heard from it within an election timeout; a leader itself, while a quorum has answered it
//! within one.

use std::sync::Arc;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::member::{Member, Raft};

/// The leader of a term. Terms are never led twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    /// The highest term that this member has heard of.
    pub(crate) term: u64,
    /// Whom a quorum elected in `term`; `None` while it is open.
    pub(crate) leader: Option<u64>,
}

/// When this member last heard from the leader.
#[derive(Default)]
pub(crate) struct Contact {
    heard: Mutex<Option<Instant>>,
}

impl Contact {
    /// A message of the leader of the present term, or of a later one, has come in.
    pub(crate) fn heard(&self, now: Instant) {
        *self.heard.lock() = Some(now);
    }
}

/// Streams that asked for it end when their member has known no leader for so many election timeouts:
/// etcd's number.
const ELECTIONS_UNTIL_CUT_OFF: u32 = 3;

impl Member {
    /// The leader, if it is there: see the module.
    pub(crate) fn leader_in_contact(&self) -> Option<u64> {
        let leader = self.leadership.borrow().leader?;
        let silence = if leader == self.id {
            if self.membership().voter_ids().all(|id| id == self.id) {
                return Some(leader);
            }
            let acked = self.raft.data_metrics().borrow_watched().last_quorum_acked;
            acked.map(|acked| acked.elapsed())
        } else {
            self.contact.heard.lock().map(|heard| heard.elapsed())
        };
        silence.is_some_and(|silence| silence < self.election_timeout).then_some(leader)
    }
}

/// Tells whether `member` has known no leader for a while. Never ends.
pub(crate) async fn watch_contact(member: Arc<Member>, cut_off: watch::Sender<bool>) {
    let mut interval = tokio::time::interval(member.election_timeout / 4);
    let mut last_known = Instant::now();
    loop {
        interval.tick().await;
        if member.leader_in_contact().is_some() {
            last_known = Instant::now();
        }
        let silence = last_known.elapsed();
        cut_off.send_if_modified(|known| {
            let now = silence >= ELECTIONS_UNTIL_CUT_OFF * member.election_timeout;
            if now && !*known {
                tracing::warn!(?silence, "no leader: streams that need one are ended");
            }
            std::mem::replace(known, now) != now
        });
    }
}

/// Follows `raft` and tells of every change, until the Raft core stops. Ends then.
pub(crate) async fn follow(raft: Raft, leadership: Arc<watch::Sender<Leadership>>) {
    let mut metrics = raft.server_metrics();
    loop {
        let now = {
            let metrics = metrics.borrow_watched();
            let leader_id = metrics.vote.leader_id();
            Leadership {
                term: leader_id.term,
                leader: metrics.vote.is_committed().then_some(leader_id.voted_for),
            }
        };
        leadership.send_if_modified(|known| {
            let changed = *known != now;
            if changed {
                tracing::info!(
                    term = now.term,
                    leader = now.leader.map(|id| format!("{id:x}")),
                    "leadership"
                );
            }
            *known = now;
            changed
        });
        if metrics.changed().await.is_err() {
            return;
        }
    }
}
