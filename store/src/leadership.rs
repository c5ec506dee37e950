//! Who leads, as this member sees it at present.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::sync::watch;

use crate::member::Raft;

/// The leader of a term. Terms are never led twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    /// The highest term that this member has heard of.
    pub(crate) term: u64,
    /// Whom a quorum elected in `term`; `None` while it is open.
    pub(crate) leader: Option<u64>,
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
