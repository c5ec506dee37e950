//! A member that is started with `--initial-cluster-state existing` on an empty directory: it asks
//! those that there are for the cluster's id and for its own, which `member add` has fixed.
//!
//! It finds itself by its peer URLs, and all members of the cluster must be those of
//! `--initial-cluster`, as with etcd. It begins with an empty log, as a learner.

use std::time::Duration;

use store_proto::etcdserverpb as pb;
use store_proto::peer::{MembersRequest, MembersResponse};
use tokio::time::Instant;

use crate::config::InitialMember;
use crate::raft::network::Network;
use crate::raft::types::MemberNode;

/// How long the others are asked until one answers.
const PATIENCE: Duration = Duration::from_secs(10);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Whom the cluster takes this member for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
}

/// Why a member cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody of --initial-cluster answers.
    #[error(
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the \
         given URLs: none of {urls} answers ({last}); --initial-cluster must name members that run"
    )]
    NoAnswer {
        /// Who was asked.
        urls: String,
        /// What came of it, the last time.
        last: String,
    },
    /// The cluster has other members than --initial-cluster.
    #[error(
        "error validating peerURLs: {reason}; the cluster has {members}: --initial-cluster must name \
         just these, as `etcdctl member add` prints it"
    )]
    Mismatch {
        /// In etcd's words.
        reason: String,
        /// Those of the cluster.
        members: String,
    },
}

/// Asks the members in `initial` except `name`, until one answers.
pub(crate) async fn ask(initial: &[InitialMember], name: &str) -> Result<Admitted, JoinError> {
    let network = Network::stranger();
    let others: Vec<&InitialMember> = initial.iter().filter(|member| member.name != name).collect();
    let deadline = Instant::now() + PATIENCE;
    let mut last = "it names no other member".to_owned();
    while Instant::now() < deadline && !others.is_empty() {
        for other in &others {
            let node = MemberNode { peer_urls: other.peer_urls.clone(), ..MemberNode::default() };
            let Some(mut peer) = network.peer(other.id, &node) else { continue };
            let answer = tokio::time::timeout(ASK_TIMEOUT, peer.members(MembersRequest {})).await;
            match answer {
                Ok(Ok(response)) => return admit(initial, name, response.get_ref()),
                Ok(Err(status)) => last = format!("{}: {}", other.name, status.message()),
                Err(_) => last = format!("{}: no answer in time", other.name),
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    let urls: Vec<&str> =
        others.iter().flat_map(|other| &other.peer_urls).map(String::as_str).collect();
    Err(JoinError::NoAnswer { urls: urls.join(","), last })
}

fn admit(
    initial: &[InitialMember],
    name: &str,
    response: &MembersResponse,
) -> Result<Admitted, JoinError> {
    match own_id(initial, name, &response.members) {
        Ok(member_id) => Ok(Admitted { cluster_id: response.cluster_id, member_id }),
        Err(reason) => Err(JoinError::Mismatch { reason, members: described(&response.members) }),
    }
}

/// The members as in --initial-cluster.
fn described(members: &[pb::Member]) -> String {
    let each = members.iter().flat_map(|member| {
        let name = if member.name.is_empty() { "?" } else { &member.name };
        member.peer_ur_ls.iter().map(move |url| format!("{name}={url}"))
    });
    each.collect::<Vec<_>>().join(",")
}

/// The id of the member `name` of `initial`, if the members that there are match all of `initial`.
fn own_id(initial: &[InitialMember], name: &str, existing: &[pb::Member]) -> Result<u64, String> {
    if existing.len() != initial.len() {
        return Err("member count is unequal".to_owned());
    }
    let mut own = None;
    for member in existing {
        let mut urls = member.peer_ur_ls.clone();
        urls.sort_unstable();
        let Some(found) = initial.iter().find(|initial| initial.peer_urls == urls) else {
            let urls = urls.join(" ");
            return Err(format!(
                "PeerURLs: no match found for existing member ({:x}, [{urls}])",
                member.id
            ));
        };
        if found.name == name {
            own = Some(member.id);
        }
    }
    own.ok_or_else(|| {
        format!("couldn't find local name {name:?} in the initial cluster configuration")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initial(words: &[(&str, &[&str])]) -> Vec<InitialMember> {
        let member = |(name, urls): &(&str, &[&str])| InitialMember {
            id: 0,
            name: (*name).to_owned(),
            peer_urls: urls.iter().map(|url| (*url).to_owned()).collect(),
        };
        words.iter().map(member).collect()
    }

    fn existing(id: u64, name: &str, urls: &[&str]) -> pb::Member {
        pb::Member {
            id,
            name: name.to_owned(),
            peer_ur_ls: urls.iter().map(|url| (*url).to_owned()).collect(),
            ..pb::Member::default()
        }
    }

    #[test]
    fn a_member_finds_itself_by_its_urls_and_all_others_must_match() {
        let there = [existing(1, "n1", &["u1"]), existing(2, "", &["u3", "u2"])];
        let join = |words: &[(&str, &[&str])], name: &str| own_id(&initial(words), name, &there);
        assert_eq!(join(&[("n1", &["u1"]), ("n2", &["u2", "u3"])], "n2"), Ok(2));
        assert_eq!(join(&[("other", &["u1"]), ("n2", &["u2", "u3"])], "n2"), Ok(2));
        let says = |words: &[(&str, &[&str])], part: &str| {
            let error = join(words, "n2").unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        says(&[("n2", &["u2", "u3"])], "member count is unequal");
        says(
            &[("n1", &["u1"]), ("n2", &["u2"])],
            "no match found for existing member (2, [u2 u3])",
        );
        says(&[("n1", &["u4"]), ("n2", &["u2", "u3"])], "no match found for existing member (1");
    }
}
