//! Leadership goes from one member to another in good order, without waiting for an election.

use std::time::Duration;

use super::rules::Roster;
use crate::error::RequestError;
use crate::member::Member;

/// A member that stops waits no longer than this until another one leads.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

impl Member {
    /// etcd's MoveLeader: returns once `to` leads.
    pub(crate) async fn move_leader(&self, to: u64) -> Result<(), RequestError> {
        if !self.is_leader() {
            return Err(RequestError::NotLeader);
        }
        if to == self.id {
            return Ok(());
        }
        let enough = |roster: &Roster| roster.check_transferee(to).is_ok();
        self.roster(enough).await.check_transferee(to)?;
        self.transfer_to(to).await
    }

    async fn transfer_to(&self, to: u64) -> Result<(), RequestError> {
        tracing::info!(to = format_args!("{to:x}"), "handing leadership over");
        let mut leadership = self.leadership.clone();
        self.raft.trigger().transfer_leader(to).await.map_err(|_| RequestError::Stopped)?;
        let changed = leadership.wait_for(|now| now.leader.is_some_and(|id| id != self.id));
        match tokio::time::timeout(self.request_timeout, changed).await {
            Ok(Ok(now)) if now.leader == Some(to) => Ok(()),
            Ok(Ok(_)) => Err(RequestError::LeaderChanged),
            Ok(Err(_)) => Err(RequestError::Stopped),
            Err(_) => Err(RequestError::TransferTimeout),
        }
    }

    /// Hands leadership to whichever other voter answers, one that has caught up if there is one.
    pub(super) async fn hand_over(&self, roster: &Roster) -> Result<(), RequestError> {
        let to = roster.successor(self.id).ok_or(RequestError::Unhealthy)?;
        self.transfer_to(to).await
    }

    /// Before this member stops: if it leads, another one does afterwards, so that nobody has to wait
    /// for an election. Whatever hinders that is no reason not to stop.
    pub(crate) async fn resign(&self) {
        if !self.is_leader() || self.membership().voter_ids().all(|id| id == self.id) {
            return;
        }
        let handed_over = async {
            let roster = self.roster(|roster| roster.has_ready_successor(self.id)).await;
            self.hand_over(&roster).await
        };
        match tokio::time::timeout(FAREWELL_TIMEOUT, handed_over).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "leadership could not be handed over"),
            Err(_) => tracing::warn!("leadership could not be handed over in time"),
        }
    }
}
