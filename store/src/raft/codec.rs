//! Between openraft's types and the messages of the peer protocol, which are also what the log and
//! the snapshots on disk are written with.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{EntryPayload, Membership};
use store_proto::peer;

use super::types::{Batch, Entry, LogId, MemberNode, StoredMembership, Vote};

/// A message that is well-formed protobuf but says something that cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    /// A field that every sender sets is missing.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// The requests of an entry cannot be read.
    #[error("the message cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    /// The membership names a voter without saying who it is, or has none.
    #[error("the membership is not valid: {0}")]
    Membership(String),
}

pub(crate) fn log_id_to_proto(id: &LogId) -> peer::LogId {
    peer::LogId { term: **id.committed_leader_id(), index: id.index() }
}

pub(crate) fn log_id_from_proto(id: &peer::LogId) -> LogId {
    LogId::new_term_index(id.term, id.index)
}

pub(crate) fn vote_to_proto(vote: &Vote) -> peer::Vote {
    peer::Vote {
        term: vote.leader_id().term,
        node_id: vote.leader_id().voted_for,
        committed: vote.is_committed(),
    }
}

pub(crate) fn vote_from_proto(vote: &peer::Vote) -> Vote {
    if vote.committed {
        Vote::new_committed(vote.term, vote.node_id)
    } else {
        Vote::new(vote.term, vote.node_id)
    }
}

pub(crate) fn membership_to_proto(membership: &Membership<u64, MemberNode>) -> peer::Membership {
    peer::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| peer::membership::Config { voters: voters.iter().copied().collect() })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| {
                let node = peer::Node {
                    name: node.name.clone(),
                    peer_urls: node.peer_urls.clone(),
                    learner: node.learner,
                };
                (*id, node)
            })
            .collect(),
    }
}

pub(crate) fn membership_from_proto(
    membership: peer::Membership,
) -> Result<Membership<u64, MemberNode>, CodecError> {
    if membership.configs.is_empty() && membership.nodes.is_empty() {
        return Ok(Membership::default());
    }
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, MemberNode> = membership
        .nodes
        .into_iter()
        .map(|(id, node)| {
            let node =
                MemberNode { name: node.name, peer_urls: node.peer_urls, learner: node.learner };
            (id, node)
        })
        .collect();
    Membership::new(configs, nodes).map_err(|error| CodecError::Membership(error.to_string()))
}

pub(crate) fn stored_membership_to_proto(stored: &StoredMembership) -> peer::StoredMembership {
    peer::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_proto),
        membership: Some(membership_to_proto(stored.membership())),
    }
}

pub(crate) fn stored_membership_from_proto(
    stored: peer::StoredMembership,
) -> Result<StoredMembership, CodecError> {
    let membership = membership_from_proto(stored.membership.unwrap_or_default())?;
    Ok(StoredMembership::new(stored.log_id.as_ref().map(log_id_from_proto), membership))
}

pub(crate) fn entry_to_proto(entry: &Entry) -> peer::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => peer::entry::Payload::Blank(peer::Blank {}),
        EntryPayload::Normal(batch) => peer::entry::Payload::Batch(batch.encoded().clone()),
        EntryPayload::Membership(m) => peer::entry::Payload::Membership(membership_to_proto(m)),
    };
    peer::Entry { log_id: Some(log_id_to_proto(&entry.log_id)), payload: Some(payload) }
}

pub(crate) fn entry_from_proto(entry: peer::Entry) -> Result<Entry, CodecError> {
    let log_id = entry.log_id.as_ref().ok_or(CodecError::Missing("entry.log_id"))?;
    let payload = match entry.payload.ok_or(CodecError::Missing("entry.payload"))? {
        peer::entry::Payload::Blank(_) => EntryPayload::Blank,
        peer::entry::Payload::Batch(encoded) => EntryPayload::Normal(Batch::received(&encoded)?),
        peer::entry::Payload::Membership(m) => EntryPayload::Membership(membership_from_proto(m)?),
    };
    Ok(Entry { log_id: log_id_from_proto(log_id), payload })
}
