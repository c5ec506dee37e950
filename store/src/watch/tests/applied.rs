//! Watches over the applied state itself: history from memory and from the engine, compactions.

use std::sync::Arc;

use bytes::Bytes;
use openraft::EntryPayload;
use proptest::prelude::*;
use store_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, ResponseHeader,
};
use store_proto::mvccpb::{Event, KeyValue, event::EventType};
use store_proto::peer::{Command, command::Op};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Client, everything, from};
use crate::engine::MemoryEngine;
use crate::mvcc::{CompactStep, HistoryError, KeyRange, Limits, Mvcc, NextChanges, RevisionEvents};
use crate::raft::types::{Batch, LogId};
use crate::watch::{History, ReadError, WatchHub, WatchLimits, watch};

/// Reads the state in place: an engine in memory does not block.
struct Applied(Mvcc);

impl History for Applied {
    fn current_revision(&self) -> i64 {
        self.0.current_revision()
    }

    fn compacted_revision(&self) -> i64 {
        self.0.compacted_revision()
    }

    fn next_changes(&self, range: &KeyRange, from: i64) -> Option<NextChanges> {
        self.0.next_changes(range, from)
    }

    async fn read(
        &self,
        from: i64,
        max_bytes: usize,
    ) -> Result<Vec<Arc<RevisionEvents>>, ReadError> {
        self.0.history(from, max_bytes).map_err(|error| match error {
            HistoryError::Compacted { .. } => ReadError::Compacted,
            HistoryError::Engine(error) => ReadError::Failed(error.into()),
        })
    }

    async fn value_at(&self, key: &Bytes, revision: i64) -> Result<Option<KeyValue>, ReadError> {
        self.0.value_at(key, revision).map_err(|error| ReadError::Failed(error.into()))
    }
}

/// What a member does with its entries: apply, publish, and later write behind and compact.
struct Member {
    mvcc: Mvcc,
    hub: Arc<WatchHub>,
    history: Arc<Applied>,
    events: Vec<Event>,
}

impl Member {
    fn new(window_bytes: usize, limits: WatchLimits) -> Self {
        let engine = Arc::new(MemoryEngine::default());
        let mvcc = Mvcc::open(engine, Limits { window_bytes, ..Limits::default() }).unwrap();
        let hub = WatchHub::new(mvcc.current_revision(), limits);
        let history = Arc::new(Applied(mvcc.clone()));
        Self { mvcc, hub, history, events: Vec::new() }
    }

    fn apply(&mut self, op: Op) {
        let index = self.mvcc.applied().0.map_or(0, |applied| applied.index() + 1);
        let batch = Batch::new(vec![Command { id: index, op: Some(op) }]);
        let log_id = LogId::new_term_index(1, index);
        let applied = self.mvcc.apply(log_id, &EntryPayload::Normal(batch)).unwrap();
        self.events.extend(applied.revisions.iter().flat_map(|one| one.events.clone()));
        self.hub.publish(&applied.revisions);
    }

    fn put(&mut self, key: u8, bytes: usize) {
        let (key, value) = (vec![b'a' + key].into(), vec![key; bytes].into());
        self.apply(Op::Put(PutRequest { key, value, ..PutRequest::default() }));
    }

    fn delete(&mut self, from: u8, to: u8) {
        let (key, range_end) = (vec![b'a' + from].into(), vec![b'a' + to].into());
        self.apply(Op::DeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false }));
    }

    fn compact(&mut self, revision: i64) {
        self.apply(Op::Compaction(CompactionRequest { revision, physical: false }));
    }

    fn settle(&self) {
        while !self.mvcc.write_behind().unwrap().is_idle {}
        while self.mvcc.compact_step().unwrap() == CompactStep::More {}
    }

    fn client(&self) -> Client {
        let (requests, received) = mpsc::channel(16);
        let received = ReceiverStream::new(received);
        let history = Arc::clone(&self.history);
        let responses = watch(&self.hub, history, received, ResponseHeader::default).unwrap();
        Client { requests, responses: Box::pin(responses) }
    }

    /// The last event of `key` before `revision`, if that was a put.
    fn before(&self, key: &[u8], revision: i64) -> Option<&Event> {
        let kv = |event: &Event| event.kv.clone().unwrap();
        let mut events = self.events.iter();
        let last = events.rfind(|old| kv(old).key == key && kv(old).mod_revision < revision)?;
        (last.r#type() == EventType::Put).then_some(last)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, bytes: usize },
    Delete { from: u8, to: u8 },
    Compact { behind: i64 },
    Settle,
    Read,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0u8..5, 0usize..40).prop_map(|(key, bytes)| Step::Put { key, bytes }),
        3 => (0u8..5, 1u8..6).prop_map(|(from, to)| Step::Delete { from, to }),
        1 => (0i64..10).prop_map(|behind| Step::Compact { behind }),
        2 => Just(Step::Settle),
        3 => Just(Step::Read),
    ]
}

/// Reads one watch from the beginning of what is left until it is canceled or has all.
async fn check(member: &Member, start: i64, client: &mut Client, seen: &mut Vec<Event>, all: bool) {
    let expected: Vec<&Event> = member
        .events
        .iter()
        .filter(|event| event.kv.as_ref().unwrap().mod_revision >= start)
        .collect();
    while seen.len() < expected.len() {
        let response = client.next().await;
        assert!(!response.canceled && !response.events.is_empty(), "{response:?}");
        for event in response.events {
            assert_eq!(Event { prev_kv: None, ..event.clone() }, *expected[seen.len()]);
            let kv = event.kv.as_ref().unwrap();
            if kv.mod_revision > member.mvcc.compacted_revision() {
                let before = member.before(&kv.key, kv.mod_revision);
                assert_eq!(event.prev_kv.as_ref(), before.and_then(|old| old.kv.as_ref()));
            }
            seen.push(event);
        }
        if !all {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn watches_of_the_applied_state_tell_its_whole_history(
        steps in prop::collection::vec(step(), 1..80),
        window_bytes in prop::sample::select(&[0usize, 700, 1 << 20][..]),
        pending_revisions in 0usize..3,
    ) {
        let limits =
            WatchLimits { pending_revisions, response_bytes: 500, ..Default::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut member = Member::new(window_bytes, limits);
            let mut live = member.client();
            let mut seen = Vec::new();
            let with_previous =
                |start| from(start, store_proto::etcdserverpb::WatchCreateRequest {
                    prev_kv: true,
                    ..everything()
                });
            live.created(with_previous(0)).await;
            for step in steps {
                match step {
                    Step::Put { key, bytes } => member.put(key, bytes),
                    Step::Delete { from, to } => member.delete(from, to),
                    Step::Compact { behind } => {
                        // The reader is to have all that is compacted, or it would be canceled.
                        check(&member, 2, &mut live, &mut seen, true).await;
                        member.compact(member.mvcc.current_revision() - behind);
                    }
                    Step::Settle => member.settle(),
                    Step::Read => check(&member, 2, &mut live, &mut seen, false).await,
                }
            }
            check(&member, 2, &mut live, &mut seen, true).await;
            member.settle();
            let start = member.mvcc.compacted_revision().max(2);
            let mut late = member.client();
            late.created(with_previous(start)).await;
            check(&member, start, &mut late, &mut Vec::new(), true).await;
            if start > 2 {
                late.created(from(start - 1, everything())).await;
                let canceled = late.next().await;
                assert!(canceled.canceled);
                assert_eq!(canceled.compact_revision, start);
            }
            assert_eq!(member.hub.published_revision(), member.history.current_revision());
        });
    }
}
