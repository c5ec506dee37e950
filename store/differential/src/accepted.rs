//! The differences that are accepted, each with its reason. There should be few.
//!
//! | request | etcd 3.4.23 | the store | why |
//! | --- | --- | --- | --- |
//! | a sort target that is none | panics | refuses it: "invalid sort option" | the process must not end; etcd 3.6 refuses it so |
//! | a sort order that is none | sorts as if ascending, or not at all | refuses it | as above |
//! | a transaction that puts a key and deletes it by a range "from key", or in a later sibling | carries both out | refuses it: "duplicate key" | two writes of one key in one revision |
//! | a watch from a negative revision, before any compaction | hears nothing of the past, nor do others that start then | refuses it as compacted | no events may be lost |
//! | with several members, a transaction that writes and reads at a revision that is not there | refuses it on the member that was asked, carries it out on the others | refuses it | etcd's members differ for good; etcd 3.5 corrected it |
//! | while NOSPACE is raised, a transaction with puts in nested ones | carries it out unless others would be refused | refuses it | etcd does not count them, and its quota can be passed so |
//! | two types of alarms at once | only the last one counts, until one is lowered | NOSPACE counts before CORRUPT | lowering one must not undo the other |
//! | a progress request while a watch of the stream starts in the future | answers at once | answers when that revision is reached | it would take the client back; etcd 3.5 corrected it |
//! | a hash at the compacted revision | refuses it | answers | etcd 3.5 answers, too |
//! | a watch from the compacted revision | does not hear of deletes in that very revision | does | etcd 3.5.16 keeps them, too |
//! | an alarm request | without a header | with a header | etcd 3.5 added it |
//!
//! All but the last two are not asked at all: it would end the real etcd, or part the two for good.

use std::collections::BTreeSet;

use bytes::Bytes;
use store_proto::etcdserverpb::{
    RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
    alarm_request::AlarmAction,
    range_request::{SortOrder, SortTarget},
    request_op::Request,
};

use crate::call::Call;
use crate::generate::Bearings;

/// Whether a call is left out.
pub(crate) fn is_left_out(call: &Call, bearings: &Bearings, members: usize) -> bool {
    match call {
        Call::WatchCreate(_, create) => create.start_revision < 0 && bearings.compacted <= 0,
        Call::Range(range) => has_invalid_sort(range),
        Call::Alarm(alarm) => {
            alarm.action() == AlarmAction::Activate
                && bearings.alarms.iter().any(|(_, raised)| *raised != alarm.alarm)
        }
        Call::HashKv(hash) => hash.revision > 0 && hash.revision == bearings.compacted,
        Call::Txn(txn) => {
            ranges(txn).any(has_invalid_sort)
                || has_nested_puts(txn) && !bearings.alarms.is_empty()
                || (members > 1 && ranges(txn).any(|range| is_out_of_range(range, bearings)))
                || [&txn.success, &txn.failure]
                    .into_iter()
                    .any(|branch| writes_twice(branch).is_none())
        }
        _ => false,
    }
}

/// Whether a progress request is left out, on a stream with a watch that starts as late as that.
pub(crate) fn is_progress_left_out(latest_start: i64, bearings: &Bearings) -> bool {
    latest_start > bearings.revision
}

/// The revision at which a watch's deletes are not compared.
pub(crate) fn forgiven_deletes(request: &WatchCreateRequest, bearings: &Bearings) -> Option<i64> {
    (request.start_revision == bearings.compacted).then_some(bearings.compacted)
}

fn has_nested_puts(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|operation| match &operation.request {
        Some(Request::RequestTxn(nested)) => operations(nested)
            .any(|operation| matches!(operation.request, Some(Request::RequestPut(_)))),
        _ => false,
    })
}

fn ranges(txn: &TxnRequest) -> impl Iterator<Item = &RangeRequest> {
    operations(txn).filter_map(|operation| match &operation.request {
        Some(Request::RequestRange(range)) => Some(range),
        _ => None,
    })
}

fn is_out_of_range(range: &RangeRequest, bearings: &Bearings) -> bool {
    range.revision != 0 && !(bearings.compacted..=bearings.revision).contains(&range.revision)
}

fn has_invalid_sort(range: &RangeRequest) -> bool {
    SortOrder::try_from(range.sort_order).is_err()
        || SortTarget::try_from(range.sort_target).is_err()
}

/// All operations, those of nested transactions as well.
fn operations(txn: &TxnRequest) -> Box<dyn Iterator<Item = &RequestOp> + '_> {
    Box::new(txn.success.iter().chain(&txn.failure).flat_map(|operation| {
        let nested: Box<dyn Iterator<Item = &RequestOp>> = match &operation.request {
            Some(Request::RequestTxn(nested)) => operations(nested),
            _ => Box::new(std::iter::empty()),
        };
        std::iter::once(operation).chain(nested)
    }))
}

/// The puts and deletes of a branch; none when a key is deleted and put in it, in any order.
fn writes_twice(branch: &[RequestOp]) -> Option<Writes> {
    let mut all = Writes::default();
    for operation in branch {
        let own = match &operation.request {
            Some(Request::RequestPut(put)) => {
                Writes { puts: BTreeSet::from([put.key.clone()]), deletes: Vec::new() }
            }
            Some(Request::RequestDeleteRange(delete)) => Writes {
                puts: BTreeSet::new(),
                deletes: vec![(delete.key.clone(), delete.range_end.clone())],
            },
            Some(Request::RequestTxn(nested)) => {
                let mut either = writes_twice(&nested.success)?;
                let or = writes_twice(&nested.failure)?;
                either.puts.extend(or.puts);
                either.deletes.extend(or.deletes);
                either
            }
            Some(Request::RequestRange(_)) | None => continue,
        };
        if all.deletes_any_of(&own.puts) || own.deletes_any_of(&all.puts) {
            return None;
        }
        all.puts.extend(own.puts);
        all.deletes.extend(own.deletes);
    }
    Some(all)
}

#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Vec<(Bytes, Bytes)>,
}

impl Writes {
    fn deletes_any_of(&self, puts: &BTreeSet<Bytes>) -> bool {
        puts.iter().any(|put| {
            self.deletes.iter().any(|(key, end)| match &end[..] {
                b"" => put == key,
                b"\0" => put >= key,
                _ => put >= key && put < end,
            })
        })
    }
}
