//! Short ways to write the requests that come up again and again.

use bytes::Bytes;

use crate::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, request_op::Request,
};

/// The end of the range of all keys that begin with `prefix`: the prefix with its last byte that
/// can grow grown by one. A prefix of nothing but `0xff`, like an empty one, has no end: one zero
/// byte, which etcd reads as "every key from there on".
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|&byte| byte < 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => Bytes::from_static(&[0]),
    }
}

/// Reads one key.
pub fn key(key: impl Into<Bytes>) -> RangeRequest {
    RangeRequest { key: key.into(), ..RangeRequest::default() }
}

/// Reads every key that begins with `prefix`, which is not empty.
pub fn prefix(prefix: impl Into<Bytes>) -> RangeRequest {
    let key = prefix.into();
    RangeRequest { range_end: prefix_end(&key), key, ..RangeRequest::default() }
}

/// Holds when the key was last written at this revision; 0: when it is not there.
pub fn mod_revision_is(key: impl Into<Bytes>, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.into(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        range_end: Bytes::new(),
    }
}

/// A put as an operation of a transaction.
pub fn put_op(key: impl Into<Bytes>, value: impl Into<Bytes>) -> RequestOp {
    let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
    RequestOp { request: Some(Request::RequestPut(put)) }
}

/// A put as an operation of a transaction, of a key that goes when the lease does.
pub fn put_with_lease_op(key: impl Into<Bytes>, value: impl Into<Bytes>, lease: i64) -> RequestOp {
    let put = PutRequest { key: key.into(), value: value.into(), lease, ..PutRequest::default() };
    RequestOp { request: Some(Request::RequestPut(put)) }
}

/// The deletion of one key as an operation of a transaction.
pub fn delete_op(key: impl Into<Bytes>) -> RequestOp {
    let delete = DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() };
    RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}

/// A read as an operation of a transaction.
pub fn range_op(range: RangeRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestRange(range)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        let cases: [(&[u8], &[u8]); 5] = [
            (b"/registry/pods/", b"/registry/pods0"),
            (b"a\xff", b"b"),
            (b"a\xff\xff", b"b"),
            (b"\xff\xff", b"\0"),
            (b"", b"\0"),
        ];
        for (prefix, end) in cases {
            assert_eq!(prefix_end(prefix), end, "{prefix:?}");
        }
    }
}
