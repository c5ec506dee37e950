//! The members of the cluster: who they are, how they change, and how one joins or leaves.
//!
//! A member is listed as etcd lists it, but what it is to Raft may lag behind that:
//!
//! | listed as                    | to Raft it is                                                    |
//! |------------------------------|------------------------------------------------------------------|
//! | a voter that has not started | a learner: a dead newcomer costs no quorum                        |
//! | a voter that has started     | a learner until its log has caught up, then a voter ([`keeper`]) |
//! | a learner                    | a learner, until somebody promotes it                            |
//! | nothing: it was removed      | nothing. Its id stays taken, and whoever goes by it is told      |
//!
//! So `member add` on three members keeps a quorum of two until the fourth is really there.
//!
//! | module        | is                                                                   |
//! |---------------|----------------------------------------------------------------------|
//! | [`rules`]     | which changes are refused, and why                                    |
//! | [`change`]    | a change on its way: to the leader, and by it into the log            |
//! | [`keeper`]    | what the leader does by itself: votes for those that have caught up   |
//! | [`join`]      | a new member asks those that there are who it is                      |
//! | [`removal`]   | a member learns that it has been removed                              |
//! | [`transfer`]  | leadership goes to another member in good order                       |
//! | [`peer_urls`] | the addresses of members                                              |

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::type_config::alias::InstantOf;
use store_proto::etcdserverpb as pb;
use tokio::time::{Instant, timeout_at};

use crate::member::Member;
use crate::raft::types::{MemberNode, TypeConfig};
use rules::{Roster, Standing};

pub(crate) mod change;
pub(crate) mod join;
pub(crate) mod keeper;
pub(crate) mod peer_urls;
pub(crate) mod removal;
mod rules;
pub(crate) mod transfer;

/// A member that has not answered the leader for so many election timeouts counts as down.
const ELECTIONS_UNTIL_SILENT: u32 = 2;
/// But not for longer: `etcdctl` gives up after five seconds.
const MAX_PATIENCE: Duration = Duration::from_secs(2);

/// openraft's clock, which is tokio's in another type.
type RaftInstant = InstantOf<TypeConfig>;

impl Member {
    /// The members as etcd lists them, in the order of their ids, as of this member's state.
    pub(crate) fn listed_members(&self) -> Vec<pb::Member> {
        let (_, mut membership) = self.mvcc.applied();
        if membership.nodes().next().is_none() {
            // Before anything is applied: those that the cluster was started with.
            membership = (*self.membership()).clone();
        }
        let mut attributes = self.mvcc.members();
        let listed = membership.nodes().map(|(id, node)| {
            // A member that has not been up yet is listed by what the cluster was started with.
            let told = attributes.remove(id).unwrap_or_default();
            let name = if told.name.is_empty() { node.name.clone() } else { told.name };
            pb::Member {
                id: *id,
                name,
                peer_ur_ls: node.peer_urls.clone(),
                client_ur_ls: told.client_urls,
                is_learner: node.learner,
            }
        });
        listed.collect()
    }

    /// What the leader knows of all members. It waits until every one has answered and has all that the
    /// log held at the call, or until it is `enough` before, but no longer than a few elections: who
    /// has not answered then does not.
    async fn roster(&self, enough: impl Fn(&Roster) -> bool) -> Roster {
        let asked = <RaftInstant as openraft::Instant>::now();
        let mut metrics = self.raft.metrics();
        let goal = metrics.borrow_watched().last_log_index;
        // Not worth an error: the next regular one does as well.
        let _ = self.raft.trigger().heartbeat().await;
        let patience = (ELECTIONS_UNTIL_SILENT * self.election_timeout).min(MAX_PATIENCE);
        let deadline = Instant::now() + patience;
        loop {
            let roster = self.roster_at(asked, goal);
            let complete = roster.members.iter().all(|member| member.answers && member.caught_up);
            if complete
                || enough(&roster)
                || !matches!(timeout_at(deadline, metrics.changed()).await, Ok(Ok(())))
            {
                return roster;
            }
        }
    }

    fn roster_at(&self, asked: RaftInstant, goal: Option<u64>) -> Roster {
        let (membership, answered, matched) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let answered: BTreeMap<u64, RaftInstant> = (metrics.heartbeat.iter().flatten())
                .filter_map(|(id, at)| Some((*id, (*at)?.into_inner())))
                .collect();
            let matched: BTreeMap<u64, u64> = (metrics.replication.iter().flatten())
                .filter_map(|(id, log_id)| Some((*id, log_id.as_ref()?.index())))
                .collect();
            (metrics.membership_config.clone(), answered, matched)
        };
        let attributes = self.mvcc.members();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let standing = |(id, node): (&u64, &MemberNode)| {
            let is_self = *id == self.id;
            let told = attributes.get(id).is_some_and(|told| !told.name.is_empty());
            Standing {
                id: *id,
                peer_urls: node.peer_urls.clone(),
                learner: node.learner,
                started: told || !node.name.is_empty(),
                votes: voters.contains(id),
                answers: is_self || answered.get(id).is_some_and(|at| *at >= asked),
                caught_up: is_self || matched.get(id).copied() >= goal,
            }
        };
        let members = membership.nodes().map(standing).collect();
        let removed =
            attributes.values().filter(|told| told.removed).map(|told| told.member_id).collect();
        Roster { members, removed }
    }
}
