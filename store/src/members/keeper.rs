//! What the leader does about the members by itself: a voter that has caught up gets its vote, and a
//! change that an earlier leader left half-way is brought to its end.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{ChangeMembers, ServerState};

use crate::error::RequestError;
use crate::member::Member;

/// Between two looks, while there is something to wait for.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Never ends.
pub(crate) async fn run(member: Arc<Member>) {
    let mut interval = tokio::time::interval(LOOK_INTERVAL);
    loop {
        interval.tick().await;
        if !member.is_leader() || !any_work(&member) {
            continue;
        }
        // A change by a user goes first; it may be the removal of whom is waited for.
        let Ok(_turn) = member.member_changes.try_acquire() else { continue };
        let kept = tokio::time::timeout(member.request_timeout, keep(&member)).await;
        if let Ok(Err(error)) = kept {
            tracing::debug!(%error, "the members could not be looked after this time");
        }
    }
}

/// Whether the membership is half-way between two, or a voter that has been up has no vote.
fn any_work(member: &Member) -> bool {
    let membership = member.membership();
    if membership.membership().get_joint_config().len() > 1 {
        return true;
    }
    let voters: Vec<u64> = membership.voter_ids().collect();
    let attributes = member.mvcc.members();
    let is_up = |id: &u64| attributes.contains_key(id);
    membership.nodes().any(|(id, node)| !node.learner && !voters.contains(id) && is_up(id))
}

async fn keep(member: &Member) -> Result<(), RequestError> {
    let membership = member.settled_membership().await?;
    let roster = member.roster(|roster| roster.ripe().is_some()).await;
    if let Some(id) = roster.ripe() {
        tracing::info!(
            member = format_args!("{id:x}"),
            "a new member has caught up: it votes from now on"
        );
        member.write_members(ChangeMembers::AddVoterIds([id].into()), &membership).await?;
    }
    Ok(())
}

/// A newcomer without a vote may lose its log and come back, as its old one held up no quorum. The
/// leader of openraft takes that for a breach unless it is told. Never ends.
pub(crate) async fn forgive_newcomers(member: Arc<Member>) {
    let mut metrics = member.raft.server_metrics();
    loop {
        let (leads, membership) = {
            let metrics = metrics.borrow_watched();
            (metrics.state == ServerState::Leader, Arc::clone(&metrics.membership_config))
        };
        let voters: Vec<u64> = membership.voter_ids().collect();
        let newcomers = membership.nodes().filter(|(id, _)| leads && !voters.contains(id));
        for (id, _) in newcomers {
            // Whoever leads by then is told then.
            let _ = member.raft.trigger().allow_next_revert(id, true).await;
        }
        if metrics.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
