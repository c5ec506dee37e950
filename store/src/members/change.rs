//! A change of the members on its way: from whichever member was asked to the leader, which decides
//! on it and puts it into the log. One at a time, and each within the deadline of a request.

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::{ClientWriteResponse, Precondition};
use openraft::{ChangeMembers, ServerState};
use store_proto::etcdserverpb as pb;
use store_proto::peer::member_change::{Add, Change, Update};
use store_proto::peer::{MemberChange, MemberChanged};
use tonic::Status;

use std::sync::Arc;
use std::time::Duration;

use super::peer_urls;
use super::rules::Roster;
use crate::error::RequestError;
use crate::member::Member;
use crate::raft::network::never_sent;
use crate::raft::types::{MemberNode, StoredMembership, TypeConfig};

/// After the leader could not be reached or was none, how long until the next try.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

type Written =
    Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

impl Member {
    /// Adds a member, as a learner or to become a voter. Its id is of etcd's kind: a hash of its
    /// URLs, the cluster and the time.
    pub(crate) async fn member_add(
        &self,
        urls: &[String],
        learner: bool,
        unix_nanos: u128,
    ) -> Result<(pb::Member, Vec<pb::Member>), Status> {
        let peer_urls = peer_urls::checked(urls)?;
        let cluster = format!("{:x}", self.cluster_id);
        let member_id =
            crate::config::stable_hash(&[&peer_urls.join(","), &cluster, &unix_nanos.to_string()]);
        let added = pb::Member {
            id: member_id,
            peer_ur_ls: peer_urls.clone(),
            is_learner: learner,
            ..pb::Member::default()
        };
        let members =
            self.change_members(Change::Add(Add { member_id, peer_urls, learner })).await?;
        Ok((added, members))
    }

    /// Gives a member other peer URLs.
    pub(crate) async fn member_update(
        &self,
        member_id: u64,
        urls: &[String],
    ) -> Result<Vec<pb::Member>, Status> {
        let peer_urls = peer_urls::checked(urls)?;
        self.change_members(Change::Update(Update { member_id, peer_urls })).await
    }

    /// Has a change carried out by whoever leads; the members after it. This member's own state shows
    /// it as well by then.
    pub(crate) async fn change_members(&self, change: Change) -> Result<Vec<pb::Member>, Status> {
        let removes_self = change == Change::Remove(self.id);
        let mut request = MemberChange { change: Some(change), again: false };
        let attempts = async {
            loop {
                let (_, leader) = self.wait_for_leader().await;
                let outcome = if leader == self.id {
                    self.lead_change(&request).await.map_err(Status::from)
                } else {
                    self.change_at(leader, request.clone()).await
                };
                match outcome {
                    Ok(changed) => {
                        // One that has been removed hears nothing any more.
                        if !removes_self {
                            self.wait_for_applied(changed.index).await;
                        }
                        return Ok(changed.members);
                    }
                    Err(status) if is_final(&status) => return Err(status),
                    Err(status) => {
                        request.again |= !never_sent(&status);
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                }
            }
        };
        match tokio::time::timeout(self.request_timeout, attempts).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RequestError::Timeout.into()),
        }
    }

    async fn change_at(&self, leader: u64, request: MemberChange) -> Result<MemberChanged, Status> {
        let Some(mut peer) = self.peer(leader) else { return Err(RequestError::NotLeader.into()) };
        let mut leadership = self.leadership.clone();
        tokio::select! {
            changed = peer.change_members(request) => changed.map(tonic::Response::into_inner),
            _ = leadership.wait_for(|now| now.leader != Some(leader)) => {
                Err(RequestError::LeaderChanged.into())
            }
        }
    }

    /// Decides on a change and makes it, as the leader.
    pub(crate) async fn lead_change(
        &self,
        request: &MemberChange,
    ) -> Result<MemberChanged, RequestError> {
        let change = request.change.as_ref().ok_or(RequestError::MemberNotFound)?;
        let changed = async {
            let _turn = self.member_changes.acquire().await.map_err(|_| RequestError::Stopped)?;
            loop {
                let membership = self.settled_membership().await?;
                // Whoever answers later can only speak for the change; but not for a removal.
                let is_removal = matches!(change, Change::Remove(_));
                let enough = |roster: &Roster| {
                    !is_removal && decide(roster, &membership, change, request.again).is_ok()
                };
                let roster = self.roster(enough).await;
                let index = match decide(&roster, &membership, change, request.again)? {
                    // Another leader removes this one, which has handed over to it before.
                    Some(_) if *change == Change::Remove(self.id) => {
                        self.hand_over(&roster).await?;
                        return Err(RequestError::NotLeader);
                    }
                    Some(step) => self.write_members(step, &membership).await?,
                    None => membership.log_id().as_ref().map(|log_id| log_id.index()),
                };
                if let Some(index) = index {
                    return Ok(MemberChanged { index, members: self.listed_members() });
                }
            }
        };
        match tokio::time::timeout(self.request_timeout, changed).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RequestError::Timeout),
        }
    }

    /// The membership, once it is committed and simple: a change that an earlier leader left half-way
    /// is brought to its end.
    pub(super) async fn settled_membership(&self) -> Result<Arc<StoredMembership>, RequestError> {
        let mut metrics = self.raft.server_metrics();
        loop {
            let (leads, effective, committed) = {
                let metrics = metrics.borrow_watched();
                let leads = metrics.state == ServerState::Leader;
                let committed = *metrics.committed_membership_config.log_id();
                (leads, Arc::clone(&metrics.membership_config), committed)
            };
            if !leads {
                return Err(RequestError::NotLeader);
            }
            if *effective.log_id() != committed {
                metrics.changed().await.map_err(|_| RequestError::Stopped)?;
            } else if effective.membership().get_joint_config().len() > 1 {
                tracing::info!("completing the change of members that was under way");
                let nothing_more = ChangeMembers::AddVoterIds([].into());
                self.write_members(nothing_more, &effective).await?;
            } else {
                return Ok(effective);
            }
        }
    }

    /// Puts a change into the log, on top of `base`. Returns the index of its last entry once that is
    /// applied here; `None` when the membership was another already: then it is to be decided anew.
    pub(super) async fn write_members(
        &self,
        step: ChangeMembers<u64, MemberNode>,
        base: &StoredMembership,
    ) -> Result<Option<u64>, RequestError> {
        tracing::info!(change = %step, "changing the members");
        let unchanged =
            Precondition::LastMembershipLogId { last_membership_log_id: *base.log_id() };
        // A voter that is removed is to be gone, not a learner.
        let written: Written = self.raft.change_membership_if(step, false, [unchanged]).await;
        match written {
            Ok(response) => Ok(Some(response.log_id.index())),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(RequestError::NotLeader)
            }
            Err(RaftError::APIError(_)) => Ok(None),
            Err(RaftError::Fatal(_)) => Err(RequestError::Stopped),
        }
    }
}

/// Whether the leader has spoken; else it was not the leader, or not reached.
fn is_final(status: &Status) -> bool {
    let passing = [
        RequestError::NotLeader,
        RequestError::NoLeader,
        RequestError::LeaderChanged,
        RequestError::Stopped,
    ];
    let says = |error: &RequestError| status.message() == error.to_string();
    status.message().starts_with("etcdserver: ") && !passing.iter().any(says)
}

/// What is to be written for a change; nothing, if it was asked for `again` and is there already.
fn decide(
    roster: &Roster,
    membership: &StoredMembership,
    change: &Change,
    again: bool,
) -> Result<Option<ChangeMembers<u64, MemberNode>>, RequestError> {
    let node = |id: &u64| membership.get_node(id).cloned().unwrap_or_default();
    let is_there = |id: u64| membership.get_node(&id).is_some();
    match change {
        Change::Add(add) => {
            if again && is_there(add.member_id) {
                return Ok(None);
            }
            roster.check_add(add.member_id, &add.peer_urls, add.learner)?;
            let node = MemberNode {
                name: String::new(),
                peer_urls: add.peer_urls.clone(),
                learner: add.learner,
            };
            Ok(Some(ChangeMembers::AddNodes([(add.member_id, node)].into())))
        }
        Change::Remove(id) => {
            if again && roster.removed.contains(id) {
                return Ok(None);
            }
            roster.check_remove(*id)?;
            if membership.voter_ids().any(|voter| voter == *id) {
                Ok(Some(ChangeMembers::RemoveVoters([*id].into())))
            } else {
                Ok(Some(ChangeMembers::RemoveNodes([*id].into())))
            }
        }
        Change::Update(update) => {
            roster.check_update(update.member_id, &update.peer_urls)?;
            let node =
                MemberNode { peer_urls: update.peer_urls.clone(), ..node(&update.member_id) };
            Ok(Some(ChangeMembers::SetNodes([(update.member_id, node)].into())))
        }
        Change::Promote(id) => {
            if again && is_there(*id) && !node(id).learner {
                return Ok(None);
            }
            roster.check_promote(*id)?;
            let node = MemberNode { learner: false, ..node(id) };
            let steps = [
                ChangeMembers::SetNodes([(*id, node)].into()),
                ChangeMembers::AddVoterIds([*id].into()),
            ];
            Ok(Some(ChangeMembers::Batch(steps.into())))
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::Membership;

    use super::super::rules::Standing;
    use super::*;
    use crate::raft::types::LogId;

    fn url(id: u64) -> String {
        format!("http://m{id}:2380")
    }

    /// Three voters and the learner 5; 9 was removed.
    fn cluster() -> (Roster, StoredMembership) {
        let node =
            |id| MemberNode { peer_urls: vec![url(id)], learner: id == 5, ..Default::default() };
        let nodes: std::collections::BTreeMap<u64, MemberNode> =
            [1, 2, 3, 5].map(|id| (id, node(id))).into();
        let standing = |(id, node): (&u64, &MemberNode)| Standing {
            id: *id,
            peer_urls: node.peer_urls.clone(),
            learner: node.learner,
            started: true,
            votes: !node.learner,
            answers: true,
            caught_up: true,
        };
        let roster = Roster { members: nodes.iter().map(standing).collect(), removed: [9].into() };
        let membership = Membership::new(vec![[1, 2, 3].into()], nodes).unwrap();
        (roster, StoredMembership::new(Some(LogId::new_term_index(1, 1)), membership))
    }

    #[test]
    fn what_was_done_before_is_not_done_again() {
        let (roster, membership) = cluster();
        let add = |member_id, of| {
            Change::Add(Add { member_id, peer_urls: vec![url(of)], learner: false })
        };
        for (change, at_first) in [
            (add(3, 3), Some(RequestError::MemberExists)),
            (Change::Remove(9), Some(RequestError::MemberNotFound)),
            (Change::Promote(3), Some(RequestError::MemberNotLearner)),
        ] {
            let refused = decide(&roster, &membership, &change, false).err();
            assert_eq!(refused, at_first, "{change:?}");
            assert_eq!(decide(&roster, &membership, &change, true), Ok(None), "{change:?}");
        }
        for change in [add(7, 7), Change::Remove(2), Change::Remove(5), Change::Promote(5)] {
            let first = decide(&roster, &membership, &change, false).unwrap();
            assert!(first.is_some(), "{change:?}");
            assert_eq!(decide(&roster, &membership, &change, true), Ok(first), "{change:?}");
        }
    }

    #[test]
    fn voters_and_learners_leave_in_their_own_ways() {
        let (roster, membership) = cluster();
        let step = |id| decide(&roster, &membership, &Change::Remove(id), false).unwrap().unwrap();
        assert_eq!(step(3), ChangeMembers::RemoveVoters([3].into()));
        assert_eq!(step(5), ChangeMembers::RemoveNodes([5].into()));
    }

    #[test]
    fn only_what_the_leader_says_is_final() {
        for (status, expected) in [
            (Status::from(RequestError::Unhealthy), true),
            (Status::from(RequestError::Timeout), true),
            (Status::from(RequestError::NotLeader), false),
            (Status::from(RequestError::LeaderChanged), false),
            (Status::unavailable("the connection broke"), false),
        ] {
            assert_eq!(is_final(&status), expected, "{status:?}");
        }
    }
}
