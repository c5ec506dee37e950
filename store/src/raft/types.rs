//! The types that openraft is told to work with, and what one log entry carries.
//!
//! Terms are the Raft paper's: one leader a term (`leader_id_std`), so a term alone names a leader.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use openraft::impls::leader_id_std;
use prost::Message as _;
use store_proto::peer;

openraft::declare_raft_types!(
    /// How this store configures openraft.
    pub(crate) TypeConfig:
        D = Batch,
        R = (),
        NodeId = u64,
        Node = MemberNode,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
);

/// Where an entry stands in the log: its leader's term and its index.
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A vote for a leader, or a leader's own mark once a quorum gave it.
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// One entry of the log.
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// A membership and the place in the log that it came from.
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;

/// A member as the others know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberNode {
    /// The name that the first start of the cluster gave it; empty for one that was added later.
    pub(crate) name: String,
    /// Where its peers reach it.
    pub(crate) peer_urls: Vec<String>,
    /// It stays a learner until somebody promotes it. Any other node that has no vote yet gets it
    /// as soon as it has caught up.
    pub(crate) learner: bool,
}

/// Requests that share one log entry, in the order in which they are applied.
///
/// It is held decoded and encoded: the leader encodes once, and the same bytes go to the log and to
/// every follower.
#[derive(Clone)]
pub(crate) struct Batch {
    commands: Arc<[peer::Command]>,
    encoded: Bytes,
}

impl Batch {
    /// Encodes `commands` once, for the log and for all followers.
    pub(crate) fn new(commands: Vec<peer::Command>) -> Self {
        let message = peer::Batch { commands };
        let encoded = Bytes::from(message.encode_to_vec());
        Self { commands: message.commands.into(), encoded }
    }

    /// Takes a batch out of a message. Values stay in memory for long, and the buffer of a message may be
    /// three times as large as what is in it: so they share memory with each other only.
    pub(crate) fn received(encoded: &[u8]) -> Result<Self, prost::DecodeError> {
        Self::decode(Bytes::copy_from_slice(encoded))
    }

    /// Takes a batch that has its memory to itself; values share it.
    pub(crate) fn decode(encoded: Bytes) -> Result<Self, prost::DecodeError> {
        let commands = peer::Batch::decode(encoded.clone())?.commands.into();
        Ok(Self { commands, encoded })
    }

    /// The requests, in order.
    pub(crate) fn commands(&self) -> &[peer::Command] {
        &self.commands
    }

    /// The form that stands in the log and goes over the wire.
    pub(crate) fn encoded(&self) -> &Bytes {
        &self.encoded
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} commands, {} bytes)", self.commands.len(), self.encoded.len())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
