//! Random requests, put to the state and to a real etcd.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use store_proto::etcdserverpb::{
    Compare, RequestOp, TxnRequest, compare::TargetUnion, request_op::Request,
};

use super::super::model::{any_delete, any_end, any_key, any_put};
use super::*;

const REQUESTS: usize = 4000;

#[derive(Clone, Debug)]
enum Question {
    Write(Op),
    /// Compacts so many revisions before the present one.
    Compact(i64),
    Range(RangeRequest),
    Lease(i64),
}

fn any_range() -> impl Strategy<Value = RangeRequest> {
    let bound = || prop_oneof![3 => Just(0), 1 => 1..60_i64];
    let past = prop_oneof![3 => Just(0), 1 => 1..200_i64];
    (
        (any_key(), any_end(), -1..4_i64, past),
        (0..3_i32, 0..5_i32, any::<bool>(), 0..5_u8),
        (bound(), bound(), bound(), bound()),
    )
        .prop_map(
            |((key, range_end, limit, revision), (order, target, keys_only, count), bounds)| {
                RangeRequest {
                    key,
                    range_end,
                    limit,
                    revision,
                    sort_order: order,
                    sort_target: target,
                    keys_only,
                    count_only: count == 0,
                    min_mod_revision: bounds.0,
                    max_mod_revision: bounds.1,
                    min_create_revision: bounds.2,
                    max_create_revision: bounds.3,
                    serializable: false,
                }
            },
        )
}

fn any_compare() -> impl Strategy<Value = Compare> {
    let operand = prop_oneof![
        (0..4_i64).prop_map(|version| (0, TargetUnion::Version(version))),
        (0..60_i64).prop_map(|revision| (1, TargetUnion::CreateRevision(revision))),
        (0..60_i64).prop_map(|revision| (2, TargetUnion::ModRevision(revision))),
        (0..50_u8).prop_map(|n| (3, TargetUnion::Value(vec![n; 3].into()))),
        (0..4_i64).prop_map(|id| (4, TargetUnion::Lease(id))),
    ];
    (any_key(), any_end(), 0..4_i32, operand).prop_map(|(key, range_end, result, operand)| {
        Compare { key, range_end, result, target: operand.0, target_union: Some(operand.1) }
    })
}

fn any_txn() -> impl Strategy<Value = TxnRequest> {
    let plain = prop_oneof![
        3 => any_put().prop_map(Request::RequestPut),
        2 => any_delete().prop_map(Request::RequestDeleteRange),
        2 => any_range().prop_map(Request::RequestRange),
    ];
    let txn_of = |operation: BoxedStrategy<Request>| {
        let branch = vec(operation.prop_map(|request| RequestOp { request: Some(request) }), 0..4);
        (vec(any_compare(), 0..2), branch.clone(), branch)
            .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
    };
    let operation = plain.prop_recursive(2, 12, 4, move |inner| {
        prop_oneof![3 => inner.clone(), 1 => txn_of(inner.boxed()).prop_map(Request::RequestTxn)]
    });
    txn_of(operation.boxed())
}

fn any_question() -> impl Strategy<Value = Question> {
    prop_oneof![
        6 => any_put().prop_map(|put| Question::Write(Op::Put(put))),
        2 => any_delete().prop_map(|delete| Question::Write(Op::DeleteRange(delete))),
        6 => any_txn().prop_map(|txn| Question::Write(Op::Txn(txn))),
        1 => (1..4_i64, 60..90_i64).prop_map(|(id, ttl)| Question::Write(grant(id, ttl))),
        1 => (1..4_i64).prop_map(|id| Question::Write(revoke(id))),
        1 => option::of(-1..30_i64).prop_map(|before| Question::Compact(before.unwrap_or(0))),
        8 => any_range().prop_map(Question::Range),
        1 => (1..4_i64).prop_map(Question::Lease),
    ]
}

/// Revisions of a question are small; here they become some near the present one.
fn near(range: &mut RangeRequest, current: i64) {
    let shift = (current - 60).max(0);
    for revision in [
        &mut range.min_mod_revision,
        &mut range.max_mod_revision,
        &mut range.min_create_revision,
        &mut range.max_create_revision,
    ] {
        if *revision != 0 {
            *revision += shift;
        }
    }
    if range.revision != 0 {
        range.revision = current + 5 - range.revision % 40;
    }
}

fn near_all(txn: &mut TxnRequest, current: i64) {
    let shift = (current - 60).max(0);
    for compare in &mut txn.compare {
        if let Some(TargetUnion::ModRevision(revision) | TargetUnion::CreateRevision(revision)) =
            &mut compare.target_union
        {
            *revision += shift;
        }
    }
    for operation in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut operation.request {
            Some(Request::RequestRange(range)) => near(range, current),
            Some(Request::RequestTxn(nested)) => near_all(nested, current),
            _ => {}
        }
    }
}

/// What etcd overlooks is refused here, see `own_checks`.
fn is_comparable(txn: &TxnRequest) -> bool {
    check_txn(txn, MAX_TXN_OPS) != Err(RequestError::DuplicateKey)
}

fn ask(store: &mut impl Store, question: &Question, current: i64) -> String {
    let mut answer = String::new();
    match question.clone() {
        Question::Write(mut op) => {
            if let Op::Txn(txn) = &mut op {
                near_all(txn, current);
            }
            match store.write(op) {
                Ok(outcome) => show_outcome(&mut answer, &outcome),
                Err(error) => answer = error,
            }
        }
        Question::Compact(before) => match store.write(compact_at(current - before)) {
            Ok(outcome) => show_outcome(&mut answer, &outcome),
            Err(error) => answer = error,
        },
        Question::Range(mut range) => {
            near(&mut range, current);
            match store.range(range) {
                Ok(response) => show_range(&mut answer, 0, &response),
                Err(error) => answer = error,
            }
        }
        Question::Lease(id) => answer = format!("{:?}", store.lease(id)),
    }
    answer
}

#[test]
fn random_requests_are_answered_as_by_etcd() {
    let mut runner = TestRunner::default();
    let Some(mut etcd) = etcd::Etcd::start() else { return };
    let mut ours = Ours::new();
    for number in 0..REQUESTS {
        let question = any_question().new_tree(&mut runner).unwrap().current();
        if matches!(&question, Question::Write(Op::Txn(txn)) if !is_comparable(txn)) {
            continue;
        }
        let current = ours.mvcc.current_revision();
        let expected = ask(&mut etcd, &question, current);
        let answer = ask(&mut ours, &question, current);
        assert_eq!(answer, expected, "request {number} at revision {current}: {question:#?}");
    }
    assert!(ours.mvcc.current_revision() > 500, "they were all refused");
}
