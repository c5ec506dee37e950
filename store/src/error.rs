//! Why the store refuses a request: etcd's texts and gRPC codes, word for word, because clients
//! compare them.

use tonic::Code;

/// A request that the store understood and refused. `Display` is the text that etcd sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A request without a key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that is not there.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// `ignore_value` together with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// A transaction with more operations than the limit.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// A transaction that would write one key twice in one revision.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// A sort order or target that does not exist.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// A request over the limit in bytes.
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// A read or compaction below the compacted revision.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// A read or compaction above the current revision.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// A TTL above etcd's maximum of 9,000,000,000 seconds.
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    /// A lease that is not there, or no longer.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// A grant with an id that is taken.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// A write that needs room while the alarm NOSPACE is raised, or that the quota has no room for.
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// A write while the alarm CORRUPT is raised.
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    /// More proposals in flight than the limit.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// Nobody leads at present.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// Leadership changed under the request.
    #[error("etcdserver: leader changed")]
    LeaderChanged,
    /// No answer within the deadline: a write may still be carried out later.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// This member is shutting down.
    #[error("etcdserver: server stopped")]
    Stopped,
    /// Peer URLs that are none, or that cannot be used.
    #[error("etcdserver: given member URLs are invalid")]
    BadMemberUrls,
    /// A member that there is not, or no longer.
    #[error("etcdserver: member not found")]
    MemberNotFound,
    /// A new member with the id of another.
    #[error("etcdserver: member ID already exist")]
    MemberExists,
    /// A peer URL that another member has.
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlExists,
    /// A change after which the members that have been up would be no quorum.
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    /// A change after which the members that answer would be no quorum.
    #[error("etcdserver: unhealthy cluster")]
    Unhealthy,
    /// A promotion of a member that votes already.
    #[error("etcdserver: can only promote a learner member")]
    MemberNotLearner,
    /// A promotion of a learner that has not caught up.
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    /// More learners than the limit.
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    /// A request that only the leader takes.
    #[error("etcdserver: not leader")]
    NotLeader,
    /// Leadership cannot go to this member.
    #[error("etcdserver: bad leader transferee")]
    BadTransferee,
    /// Leadership did not go over within the deadline.
    #[error("etcdserver: request timed out, leader transfer took too long")]
    TransferTimeout,
    /// A request that learners do not take.
    #[error("etcdserver: rpc not supported for learner")]
    NotForLearners,
}

impl RequestError {
    /// The gRPC code that etcd sends with the text.
    pub fn code(self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOps
            | Self::DuplicateKey
            | Self::InvalidSortOption
            | Self::RequestTooLarge
            | Self::BadMemberUrls => Code::InvalidArgument,
            Self::Compacted | Self::FutureRevision | Self::LeaseTtlTooLarge => Code::OutOfRange,
            Self::LeaseNotFound | Self::MemberNotFound => Code::NotFound,
            Self::LeaseExists
            | Self::MemberExists
            | Self::PeerUrlExists
            | Self::NotEnoughStarted
            | Self::MemberNotLearner
            | Self::LearnerNotReady
            | Self::TooManyLearners
            | Self::NotLeader
            | Self::BadTransferee => Code::FailedPrecondition,
            Self::TooManyRequests | Self::NoSpace => Code::ResourceExhausted,
            Self::Corrupt => Code::DataLoss,
            Self::NoLeader
            | Self::LeaderChanged
            | Self::Timeout
            | Self::Stopped
            | Self::Unhealthy
            | Self::NotForLearners => Code::Unavailable,
            // etcd has no code for this one.
            Self::TransferTimeout => Code::Unknown,
        }
    }
}

impl From<RequestError> for tonic::Status {
    fn from(error: RequestError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
