//! A member learns that it has been removed, and ends.
//!
//! The leader sends nothing more to a member that it removes, not even the entry that says so. What
//! is left is that the others refuse whatever the removed one asks of them, by saying why. It asks
//! soon: for votes, or, when it has not heard of a leader for a while, whether it is a member still.

use std::sync::Arc;
use std::time::Duration;

use store_proto::peer::MembersRequest;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::member::Member;

/// etcd's words.
pub(crate) const REMOVED: &str = "the member has been permanently removed from the cluster";

/// For the question to one peer.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// What a member that has been removed is told, whatever it asks.
pub(crate) fn refusal() -> Status {
    Status::permission_denied(REMOVED)
}

/// Whether this is what a member that has been removed is told.
pub(crate) fn is_refusal(status: &Status) -> bool {
    status.code() == Code::PermissionDenied && status.message() == REMOVED
}

/// Ends when this member has been removed.
pub(crate) async fn notice(member: Arc<Member>) {
    let mut interval = tokio::time::interval(member.election_timeout);
    loop {
        tokio::select! {
            () = member.removed.cancelled() => return,
            _ = interval.tick() => {}
        }
        let asks = member.leader_in_contact().is_none() && others_refuse(&member).await;
        if asks || member.mvcc.is_removed(member.id) {
            member.removed.cancel();
        }
    }
}

/// Asks all others at once; one that knows is enough, as it knows from an applied entry.
async fn others_refuse(member: &Member) -> bool {
    let mut asked = JoinSet::new();
    for (id, _) in member.membership().nodes().filter(|(id, _)| **id != member.id) {
        let Some(mut peer) = member.peer(*id) else { continue };
        asked.spawn(async move {
            tokio::time::timeout(ASK_TIMEOUT, peer.members(MembersRequest {})).await
        });
    }
    while let Some(answer) = asked.join_next().await {
        if let Ok(Ok(Err(status))) = answer
            && is_refusal(&status)
        {
            return true;
        }
    }
    false
}
