//! Random histories against a model that keeps every state there ever was.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::select;
use store_proto::etcdserverpb::{
    Compare, RequestOp, TxnRequest, TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
    response_op::Response,
};
use store_proto::mvccpb::KeyValue;

use super::*;
use crate::mvcc::revision::is_delete;

/// Every state since the beginning, copied whole: state `n` is that at revision `n + 1`.
struct Model {
    states: Vec<BTreeMap<Bytes, KeyValue>>,
    leases: BTreeMap<i64, i64>,
    compacted: i64,
}

impl Model {
    fn new() -> Self {
        Self { states: vec![BTreeMap::new()], leases: BTreeMap::new(), compacted: -1 }
    }

    fn revision(&self) -> i64 {
        self.states.len() as i64
    }

    fn now(&self) -> &BTreeMap<Bytes, KeyValue> {
        self.states.last().unwrap()
    }

    fn at(&self, revision: i64) -> &BTreeMap<Bytes, KeyValue> {
        &self.states[revision as usize - 1]
    }

    fn within(state: &BTreeMap<Bytes, KeyValue>, key: &Bytes, end: &Bytes) -> Vec<KeyValue> {
        state
            .values()
            .filter(|kv| match end.as_ref() {
                [] => kv.key == key,
                [0] => kv.key >= key,
                end => kv.key >= key && kv.key.as_ref() < end,
            })
            .cloned()
            .collect()
    }

    fn put(state: &mut BTreeMap<Bytes, KeyValue>, revision: i64, put: &PutRequest) {
        let old = state.get(&put.key);
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: old.map_or(revision, |old| old.create_revision),
            mod_revision: revision,
            version: old.map_or(0, |old| old.version) + 1,
            value: old
                .filter(|_| put.ignore_value)
                .map_or_else(|| put.value.clone(), |old| old.value.clone()),
            lease: old.filter(|_| put.ignore_lease).map_or(put.lease, |old| old.lease),
        };
        state.insert(put.key.clone(), kv);
    }

    fn check_put(&self, put: &PutRequest) -> Result<(), RequestError> {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(RequestError::LeaseNotFound);
        }
        if (put.ignore_value || put.ignore_lease) && !self.now().contains_key(&put.key) {
            return Err(RequestError::KeyNotFound);
        }
        Ok(())
    }

    /// Carries out one command; says the header's revision.
    fn apply(&mut self, op: &Op) -> Result<i64, RequestError> {
        let next = self.revision() + 1;
        let mut state = self.now().clone();
        match op {
            Op::Publish(_) | Op::Alarm(_) => unreachable!("the model publishes nothing"),
            Op::Put(put) => {
                self.check_put(put)?;
                Self::put(&mut state, next, put);
            }
            Op::DeleteRange(delete) => {
                for kv in Self::within(self.now(), &delete.key, &delete.range_end) {
                    state.remove(&kv.key);
                }
            }
            Op::Txn(txn) => {
                let holds = txn.compare.iter().all(|compare| {
                    let kv = self.now().get(&compare.key);
                    let Some(TargetUnion::ModRevision(expected)) = &compare.target_union else {
                        panic!("the strategy makes no other");
                    };
                    kv.map_or(0, |kv| kv.mod_revision) == *expected
                });
                let branch = if holds { &txn.success } else { &txn.failure };
                for op in branch {
                    if let Some(Request::RequestPut(put)) = &op.request {
                        // etcd asks in the other order inside a transaction.
                        if (put.ignore_value || put.ignore_lease)
                            && !self.now().contains_key(&put.key)
                        {
                            return Err(RequestError::KeyNotFound);
                        }
                        self.check_put(put)?;
                    }
                }
                for op in branch {
                    match &op.request {
                        Some(Request::RequestPut(put)) => Self::put(&mut state, next, put),
                        Some(Request::RequestDeleteRange(delete)) => {
                            for kv in Self::within(&state.clone(), &delete.key, &delete.range_end) {
                                state.remove(&kv.key);
                            }
                        }
                        _ => {}
                    }
                }
            }
            Op::Compaction(compaction) => {
                if compaction.revision <= self.compacted {
                    return Err(RequestError::Compacted);
                }
                if compaction.revision > self.revision() {
                    return Err(RequestError::FutureRevision);
                }
                self.compacted = compaction.revision;
            }
            Op::LeaseGrant(grant) => {
                if self.leases.contains_key(&grant.id) {
                    return Err(RequestError::LeaseExists);
                }
                self.leases.insert(grant.id, grant.ttl);
            }
            Op::LeaseRevoke(revoke) => {
                self.leases.remove(&revoke.id).ok_or(RequestError::LeaseNotFound)?;
                state.retain(|_, kv| kv.lease != revoke.id);
            }
        }
        if state != *self.now() {
            self.states.push(state);
        }
        Ok(self.revision())
    }
}

pub(super) fn revision_of(outcome: &Outcome) -> i64 {
    let header = match outcome {
        Outcome::Put(response) => &response.header,
        Outcome::DeleteRange(response) => &response.header,
        Outcome::Txn(response) => &response.header,
        Outcome::Compaction(response) => &response.header,
        Outcome::LeaseGrant(response) => &response.header,
        Outcome::LeaseRevoke(response) => &response.header,
        Outcome::Publish | Outcome::Alarm(_) => unreachable!("the model publishes nothing"),
    };
    header.as_ref().unwrap().revision
}

pub(super) fn any_key() -> impl Strategy<Value = Bytes> {
    select(vec!["a", "aa", "ab", "b", "c", "d"]).prop_map(|key| Bytes::from_static(key.as_bytes()))
}

pub(super) fn any_end() -> impl Strategy<Value = Bytes> {
    select(vec![&b""[..], b"", b"\0", b"ab", b"c", b"z"]).prop_map(Bytes::from_static)
}

pub(super) fn any_put() -> impl Strategy<Value = PutRequest> {
    let value = prop_oneof![
        8 => (0..50_u8).prop_map(|n| Bytes::from(vec![n; 3])),
        1 => (0..50_u8).prop_map(|n| Bytes::from(vec![n; 20_000])),
    ];
    (any_key(), value, 0..4_i64, any::<bool>(), 0..12_u8).prop_map(
        |(key, value, lease, prev_kv, ignore)| {
            let (ignore_value, ignore_lease) = (ignore == 0, ignore <= 1);
            let lease = if ignore_lease { 0 } else { lease };
            let value = if ignore_value { Bytes::new() } else { value };
            PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease }
        },
    )
}

pub(super) fn any_delete() -> impl Strategy<Value = DeleteRangeRequest> {
    (any_key(), any_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn any_range() -> impl Strategy<Value = RangeRequest> {
    (any_key(), any_end()).prop_map(|(key, range_end)| RangeRequest {
        key,
        range_end,
        ..RangeRequest::default()
    })
}

fn any_txn() -> impl Strategy<Value = TxnRequest> {
    let branch = || {
        let op = prop_oneof![
            any_put().prop_map(Request::RequestPut),
            any_delete().prop_map(Request::RequestDeleteRange),
            any_range().prop_map(Request::RequestRange),
        ];
        proptest::collection::vec(op.prop_map(|op| RequestOp { request: Some(op) }), 0..4)
    };
    let compare = (any_key(), 0..12_i64).prop_map(|(key, revision)| Compare {
        key,
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        range_end: Bytes::new(),
    });
    (proptest::collection::vec(compare, 0..2), branch(), branch())
        .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
        .prop_filter("clients may not write a key twice", |txn| check_txn(txn, MAX_TXN_OPS).is_ok())
}

/// What happens to a store.
#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Op>),
    WriteBehind,
    Compact,
    /// What is compacted has to leave the engine.
    WantRemoval,
    /// The process dies and comes back, and the log brings what the engine had not got.
    Crash,
}

fn any_step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        8 => any_put().prop_map(Op::Put),
        3 => any_delete().prop_map(Op::DeleteRange),
        4 => any_txn().prop_map(Op::Txn),
        1 => (-1..40_i64).prop_map(compact_at),
        1 => (1..4_i64, 2..9_i64).prop_map(|(id, ttl)| grant(id, ttl)),
        1 => (1..4_i64).prop_map(revoke),
    ];
    prop_oneof![
        8 => proptest::collection::vec(op, 0..6).prop_map(Step::Apply),
        3 => Just(Step::WriteBehind),
        3 => Just(Step::Compact),
        1 => Just(Step::WantRemoval),
        1 => Just(Step::Crash),
    ]
}

/// Everything that a reader can see is what the model says.
fn compare_all(mvcc: &Mvcc, model: &Model) {
    assert_eq!(mvcc.current_revision(), model.revision());
    assert_eq!(mvcc.compacted_revision(), model.compacted);
    let all = |revision| range("\0", "\0", revision);
    for revision in 1..=model.revision() {
        if revision < model.compacted {
            assert_eq!(request_error(mvcc.range(&all(revision))), RequestError::Compacted);
            assert!(mvcc.value_at(b"a", revision).unwrap().is_none());
            continue;
        }
        let expected: Vec<KeyValue> = model.at(revision).values().cloned().collect();
        let response = mvcc.range(&all(revision)).unwrap();
        assert_eq!(response.kvs, expected, "at revision {revision}");
        assert_eq!(response.count, expected.len() as i64);
        assert_eq!(response.header.as_ref().unwrap().revision, model.revision());
        if let Some(cached) = mvcc.range_cached(&all(revision)) {
            assert_eq!(cached, Ok(response));
        }
        for key in ["a", "ab", "d"] {
            let expected = model.at(revision).get(key.as_bytes()).cloned();
            assert_eq!(mvcc.value_at(key.as_bytes(), revision).unwrap(), expected);
            if let Some(cached) = mvcc.try_value_at(key.as_bytes(), revision) {
                assert_eq!(cached, expected);
            }
        }
    }
    let future = mvcc.range(&all(model.revision() + 1));
    assert_eq!(request_error(future), RequestError::FutureRevision);
    compare_history(mvcc, model);

    let leases: Vec<(i64, i64)> =
        mvcc.leases().iter().map(|lease| (lease.id, lease.ttl_seconds)).collect();
    assert_eq!(leases, model.leases.clone().into_iter().collect::<Vec<_>>());
    for id in model.leases.keys() {
        let bound = model.now().values().filter(|kv| kv.lease == *id).map(|kv| kv.key.clone());
        assert_eq!(mvcc.lease_keys(*id), bound.collect::<Vec<_>>());
    }
}

/// The states of the model follow from one another by the events.
fn compare_history(mvcc: &Mvcc, model: &Model) {
    if model.compacted > 1 {
        let error = mvcc.history(model.compacted - 1, 1).unwrap_err();
        assert!(
            matches!(error, HistoryError::Compacted { compact_revision } if compact_revision == model.compacted)
        );
    }
    let mut next = model.compacted.max(2);
    while next <= model.revision() {
        let history = mvcc.history(next, 300).unwrap();
        if let Some(cached) = mvcc.try_history(next, 300) {
            assert_eq!(cached.unwrap(), history);
        }
        assert!(!history.is_empty());
        for made in history {
            assert_eq!(made.revision, next);
            let mut state = model.at(next - 1).clone();
            for event in &made.events {
                let kv = event.kv.clone().unwrap();
                assert!(event.prev_kv.is_none());
                if is_delete(event) {
                    let bare =
                        KeyValue { key: kv.key.clone(), mod_revision: next, ..KeyValue::default() };
                    assert_eq!(kv, bare);
                    assert!(state.remove(&kv.key).is_some());
                } else {
                    state.insert(kv.key.clone(), kv);
                }
            }
            assert_eq!(&state, model.at(next));
            next += 1;
        }
    }
    assert_eq!(mvcc.history(next, 1).unwrap(), []);
}

fn check_responses(model: &Model, before: &BTreeMap<Bytes, KeyValue>, op: &Op, outcome: &Outcome) {
    match (op, outcome) {
        (Op::Put(put), Outcome::Put(response)) => {
            let expected = before.get(&put.key).filter(|_| put.prev_kv);
            assert_eq!(response.prev_kv.as_ref(), expected);
        }
        (Op::DeleteRange(delete), Outcome::DeleteRange(response)) => {
            let gone = Model::within(before, &delete.key, &delete.range_end);
            assert_eq!(response.deleted, gone.len() as i64);
            assert_eq!(response.prev_kvs, if delete.prev_kv { gone } else { vec![] });
        }
        (Op::Txn(_), Outcome::Txn(TxnResponse { responses, .. })) => {
            for response in responses {
                if let Some(Response::ResponseRange(range)) = &response.response {
                    let seen = range.header.as_ref().unwrap().revision;
                    assert!(range.kvs.iter().all(|kv| kv.mod_revision <= seen));
                    assert!(seen <= model.revision());
                }
            }
        }
        _ => {}
    }
}

/// Runs `steps` and compares after each; at the end a second member that only saw the log, and the
/// same one after a restart, have the same hash.
fn run(mut engine: TestEngine, steps: &[Step]) {
    // So small that most reads need the engine.
    let window_bytes = 1500;
    let mut mvcc = engine.open(window_bytes);
    let mut model = Model::new();
    let mut log: Vec<Vec<Op>> = Vec::new();
    for step in steps {
        match step {
            Step::Apply(ops) => {
                log.push(ops.clone());
                let from = model.revision();
                let applied = apply(&mvcc, ops.iter().cloned());
                for (op, result) in ops.iter().zip(&applied.results) {
                    let before = model.now().clone();
                    let expected = model.apply(op);
                    assert_eq!(result.as_ref().map(revision_of).map_err(|error| *error), expected);
                    if let Ok(outcome) = result {
                        check_responses(&model, &before, op, outcome);
                    }
                }
                // What only reads changes nothing, so the last one can be asked again.
                if let (Some(Op::Txn(txn)), Some(Ok(Outcome::Txn(applied)))) =
                    (ops.last(), applied.results.last())
                    && is_read_only(txn)
                {
                    assert_eq!(&mvcc.read_txn(txn).unwrap(), applied);
                }
                let made: Vec<i64> = applied.revisions.iter().map(|made| made.revision).collect();
                assert_eq!(made, (from + 1..=model.revision()).collect::<Vec<_>>());
            }
            Step::WriteBehind => drop(mvcc.write_behind().unwrap()),
            Step::Compact => drop(mvcc.compact_step().unwrap()),
            Step::WantRemoval => mvcc.want_removal(mvcc.compacted_revision()),
            Step::Crash => {
                drop(mvcc);
                engine.reopen();
                mvcc = engine.open(window_bytes);
                let applied = mvcc.applied().0.map_or(0, |applied| applied.index() as usize + 1);
                for ops in &log[applied..] {
                    apply(&mvcc, ops.iter().cloned());
                }
            }
        }
        compare_all(&mvcc, &model);
    }

    let other = TestEngine::memory().open(usize::MAX);
    for ops in &log {
        apply(&other, ops.iter().cloned());
    }
    for revision in model.compacted.max(1)..=model.revision() {
        assert_eq!(mvcc.hash(revision).unwrap(), other.hash(revision).unwrap());
    }
    mvcc.flush().unwrap();
    compact_all(&mvcc);
    compare_all(&mvcc, &model);
    assert_eq!(mvcc.hash(0).unwrap(), other.hash(0).unwrap());
    drop(mvcc);
    engine.reopen();
    let mvcc = engine.open(window_bytes);
    compare_all(&mvcc, &model);
    assert_eq!(mvcc.hash(0).unwrap(), other.hash(0).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn any_history_reads_as_the_model_says(steps in proptest::collection::vec(any_step(), 1..30)) {
        run(TestEngine::memory(), &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn any_history_reads_as_the_model_says_on_sled(
        steps in proptest::collection::vec(any_step(), 1..30),
    ) {
        run(TestEngine::sled(), &steps);
    }
}
