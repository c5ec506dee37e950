//! Transactions that hold nothing but reads are reads: no limit for what goes into a log holds for
//! them, and a member may answer them alone where it may answer a read.

use store_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use store_proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse, request_op, response_op,
};
use tonic::{Code, Status};

use crate::support::prerequisites::{Need, have};
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Member, Store, within_deadline};

/// More than a write may have, less than a request may have.
const LARGE_BYTES: usize = 1_700_000;

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn range(serializable: bool) -> RequestOp {
    let range = RangeRequest { key: "a".into(), serializable, ..RangeRequest::default() };
    op(request_op::Request::RequestRange(range))
}

/// Whether "a" holds a value of so many bytes, in vain.
fn value_of(bytes: usize) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Value.into(),
        key: "a".into(),
        target_union: Some(TargetUnion::Value(vec![b'x'; bytes].into())),
        ..Compare::default()
    }
}

async fn ask(member: &Member, txn: TxnRequest) -> Result<TxnResponse, Status> {
    let mut kv = member.kv();
    Ok(within_deadline(kv.txn(txn)).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_passes_when_it_only_reads() {
    if !have(&[Need::Etcd]) {
        return;
    }
    let (scratch, etcd_scratch) = (Scratch::new(), Scratch::new());
    let ours = Store::start_with(&scratch, Kind::Miniku, 1, &[]).await;
    let etcd = Store::start_with(&etcd_scratch, Kind::Etcd, 1, &[]).await;
    for store in [&ours, &etcd] {
        let member = &store.members[0];
        let revision = member.put("a", "1").await.expect("it serves");
        let reads = TxnRequest {
            compare: vec![value_of(LARGE_BYTES)],
            success: vec![range(false)],
            failure: vec![range(false), range(true)],
        };
        let answer = ask(member, reads.clone()).await.expect("it is a read");
        assert!(!answer.succeeded);
        assert_eq!(answer.header.map_or(0, |header| header.revision), revision);
        for response in &answer.responses {
            let Some(response_op::Response::ResponseRange(range)) = &response.response else {
                panic!("{response:?}");
            };
            assert_eq!((range.count, &*range.kvs[0].value), (1, &b"1"[..]));
        }
        assert_eq!(answer.responses.len(), 2);

        let put = PutRequest { key: "b".into(), value: "1".into(), ..PutRequest::default() };
        let writes =
            TxnRequest { success: vec![op(request_op::Request::RequestPut(put))], ..reads };
        let refused = ask(member, writes).await.expect_err("it might write");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "etcdserver: request is too large")
        );
        assert_eq!(member.revision().await, revision);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_alone_answers_what_asks_for_no_more_than_it_has() {
    let scratch = Scratch::new();
    let mut store = Store::start(&scratch, 3).await;
    store.members[0].put("a", "1").await.expect("it serves");
    store.agree().await;
    for other in [1, 2] {
        store.members[other].process.kill();
    }
    let reads = TxnRequest { success: vec![range(true)], ..TxnRequest::default() };
    let answer = ask(&store.members[0], reads).await.expect("it needs nobody");
    assert!(answer.succeeded);
    assert_eq!(answer.responses.len(), 1);
}
