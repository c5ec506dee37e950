//! What is asked, and what comes back.

use store_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, CompactionRequest, CompactionResponse, DeleteRangeRequest,
    DeleteRangeResponse, HashKvRequest, HashKvResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, MemberListRequest,
    MemberListResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, StatusResponse,
    TxnRequest, TxnResponse, WatchCancelRequest, WatchCreateRequest,
};
use store_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use store_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};

/// One call, and on which of the members it is made.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Its place in the sequence.
    pub(crate) number: usize,
    pub(crate) member: usize,
    pub(crate) call: Call,
}

/// A request. Leases whose ids the servers choose go by numbers from
/// [`crate::leases::FIRST_NAME`] on.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Range(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    LeaseGrant(LeaseGrantRequest),
    LeaseRevoke(LeaseRevokeRequest),
    LeaseTimeToLive(LeaseTimeToLiveRequest),
    LeaseLeases,
    LeaseKeepAlive(LeaseKeepAliveRequest),
    MemberList(MemberListRequest),
    Alarm(AlarmRequest),
    Status,
    HashKv(HashKvRequest),
    Lock(LockRequest),
    Unlock(UnlockRequest),
    Campaign(CampaignRequest),
    Proclaim(ProclaimRequest),
    Leader(LeaderRequest),
    Resign(ResignRequest),
    /// On the watch stream of that number.
    WatchCreate(usize, WatchCreateRequest),
    WatchCancel(usize, WatchCancelRequest),
    WatchProgress(usize),
    /// A request that says nothing.
    WatchNothing(usize),
    /// Ends a stream; the next request on it opens another.
    WatchClose(usize),
    /// Brings all watches up to the present, and compares what they heard.
    CompareWatches,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Range(RangeResponse),
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    LeaseTimeToLive(LeaseTimeToLiveResponse),
    LeaseLeases(LeaseLeasesResponse),
    /// All that came on the stream until the server ended it.
    LeaseKeepAlive(Vec<LeaseKeepAliveResponse>),
    MemberList(MemberListResponse),
    Alarm(AlarmResponse),
    Status(StatusResponse),
    HashKv(HashKvResponse),
    Lock(LockResponse),
    Unlock(UnlockResponse),
    Campaign(CampaignResponse),
    Proclaim(ProclaimResponse),
    Leader(LeaderResponse),
    Resign(ResignResponse),
}

/// An answer as it is compared: without what may differ, spelled out field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer(pub(crate) String);

/// Shows a request or an answer; what is very long is cut.
pub(crate) fn shorten(text: &str, max_chars: usize) -> String {
    let length = text.chars().count();
    if length <= max_chars {
        return text.to_owned();
    }
    let head: String = text.chars().take(max_chars).collect();
    format!("{head}… ({length} characters)")
}
