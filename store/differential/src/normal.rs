//! Answers as they are compared: what differs between any two clusters is left out, the rest is
//! spelled out field by field.

use std::borrow::Cow;

use store_proto::etcdserverpb::{
    LeaseTimeToLiveResponse, MemberListResponse, ResponseHeader, StatusResponse,
};
use store_proto::mvccpb::Event;
use tonic::Status;

use crate::call::{Answer, Reply};
use crate::leases::LeaseIds;

/// How long a run may take, as far as the time that is left of leases is concerned.
const RUN_SECONDS: i64 = 3600;

/// An answer or an error. Of an error that is code and text.
pub(crate) fn answer(result: Result<Reply, Status>, ids: &LeaseIds) -> Answer {
    let mut reply = match result {
        Ok(reply) => reply,
        Err(status) => {
            let message = without_found_bytes(status.message());
            return Answer(format!("error {:?}: {message}", status.code()));
        }
    };
    ids.rename(&mut reply);
    match &mut reply {
        Reply::Range(range) => strip(&mut range.header),
        Reply::Put(put) => strip(&mut put.header),
        Reply::DeleteRange(delete) => strip(&mut delete.header),
        Reply::Txn(txn) => strip(&mut txn.header),
        Reply::Compact(compaction) => strip(&mut compaction.header),
        Reply::LeaseGrant(grant) => strip(&mut grant.header),
        Reply::LeaseRevoke(revoke) => strip(&mut revoke.header),
        Reply::LeaseTimeToLive(lease) => lease_time_to_live(lease),
        Reply::LeaseLeases(leases) => {
            strip(&mut leases.header);
            // etcd's order is that of expiry, on the leader, and none at all on the others.
            leases.leases.sort_by_key(|lease| lease.id);
        }
        Reply::LeaseKeepAlive(kept) => {
            kept.iter_mut().for_each(|response| strip(&mut response.header));
        }
        Reply::MemberList(list) => member_list(list),
        // etcd 3.4 leaves it out, 3.5 does not.
        Reply::Alarm(alarm) => {
            alarm.header = None;
            // etcd's order is that of a hash map.
            alarm.alarms.sort_by_key(|alarm| (alarm.alarm, alarm.member_id));
        }
        Reply::Lock(lock) => strip(&mut lock.header),
        Reply::Unlock(unlock) => strip(&mut unlock.header),
        Reply::Campaign(campaign) => strip(&mut campaign.header),
        Reply::Proclaim(proclaim) => strip(&mut proclaim.header),
        Reply::Leader(leader) => strip(&mut leader.header),
        Reply::Resign(resign) => strip(&mut resign.header),
        Reply::Status(status) => member_status(status),
        Reply::HashKv(hash) => {
            strip(&mut hash.header);
            // It covers how a store lays out its records.
            hash.hash = 0;
        }
    }
    Answer(format!("{reply:#?}"))
}

/// Leaves out how long a request was that is too long: ids of leases that a store chose itself are
/// part of it, and they take eight bytes or nine.
fn without_found_bytes(message: &str) -> Cow<'_, str> {
    const HEAD: &str = "grpc: received message larger than max (";
    let found = message.strip_prefix(HEAD).and_then(|rest| rest.split_once(" vs. "));
    match found {
        Some((_, limit)) => Cow::Owned(format!("{HEAD}… vs. {limit}")),
        None => Cow::Borrowed(message),
    }
}

/// Takes out who answers; the revision stays.
pub(crate) fn strip(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        // That they are there is compared.
        header.cluster_id = header.cluster_id.min(1);
        header.member_id = header.member_id.min(1);
        header.raft_term = header.raft_term.min(1);
    }
}

fn lease_time_to_live(lease: &mut LeaseTimeToLiveResponse) {
    strip(&mut lease.header);
    // etcd's order is that of a hash map.
    lease.keys.sort();
    if lease.granted_ttl > 0
        && (lease.granted_ttl - RUN_SECONDS..=lease.granted_ttl).contains(&lease.ttl)
    {
        lease.ttl = lease.granted_ttl;
    }
}

fn member_list(list: &mut MemberListResponse) {
    strip(&mut list.header);
    // The order is that of the ids, which follow from the addresses.
    list.members.sort_by(|a, b| a.name.cmp(&b.name));
    for member in &mut list.members {
        member.id = member.id.min(1);
        for url in member.peer_ur_ls.iter_mut().chain(&mut member.client_ur_ls) {
            url.truncate("http://".len());
        }
    }
}

fn member_status(status: &mut StatusResponse) {
    strip(&mut status.header);
    status.errors.sort();
    status.version.clear();
    status.db_size = 0;
    status.db_size_in_use = 0;
    status.leader = status.leader.min(1);
    status.raft_index = status.raft_index.min(1);
    status.raft_term = status.raft_term.min(1);
    status.raft_applied_index = status.raft_applied_index.min(1);
}

/// An event of a watch.
pub(crate) fn event(mut event: Event, ids: &LeaseIds) -> Event {
    ids.rename_event(&mut event);
    event
}
