//! Random runs: what a stream tells is the filtered history, however it is stalled.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use proptest::prelude::*;
use store_proto::etcdserverpb::watch_create_request::FilterType;
use store_proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use store_proto::mvccpb::{Event, event::EventType};
use tokio::time::timeout;

use super::history::FakeHistory;
use super::{A_WHILE, Client, from, key, revision, store_with};
use crate::watch::{History as _, WatchLimits};

/// One step of a random run.
#[derive(Clone, Debug)]
enum Step {
    /// Applies a revision; `publish` says whether it and what waits before it are published.
    Write {
        writes: Vec<(u8, Option<u8>)>,
        publish: bool,
    },
    /// Replaces the state: all that is applied is there, what was not published never is.
    Reset,
    Compact {
        behind: i64,
    },
    /// What one of the clients does.
    Client(usize, Act),
}

#[derive(Clone, Debug)]
enum Act {
    Create {
        start_behind: Option<i64>,
        key: u8,
        end: u8,
        no_put: bool,
        fragment: bool,
        prev_kv: bool,
    },
    Cancel(prop::sample::Index),
    Progress,
    Read {
        responses: usize,
    },
}

const CLIENTS: usize = 2;

fn a_key(key: u8) -> Vec<u8> {
    vec![b'a' + key % 6]
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0u8..6, prop::option::weighted(0.7, any::<u8>()));
    prop_oneof![
        8 => (prop::collection::vec(write, 1..4), prop::bool::weighted(0.7))
            .prop_map(|(writes, publish)| Step::Write { writes, publish }),
        1 => Just(Step::Reset),
        1 => (0i64..6).prop_map(|behind| Step::Compact { behind }),
        9 => (0..CLIENTS, act()).prop_map(|(client, act)| Step::Client(client, act)),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let places = (prop::option::of(-3i64..12), 0u8..6, 0u8..8);
    let wishes = (prop::bool::weighted(0.2), any::<bool>(), any::<bool>());
    let create = (places, wishes).prop_map(|((start_behind, key, end), wishes)| {
        let (no_put, fragment, prev_kv) = wishes;
        Act::Create { start_behind, key, end, no_put, fragment, prev_kv }
    });
    prop_oneof![
        2 => create,
        1 => any::<prop::sample::Index>().prop_map(Act::Cancel),
        1 => Just(Act::Progress),
        5 => (1usize..6).prop_map(|responses| Act::Read { responses }),
    ]
}

/// What one watch has to see, and has seen.
#[derive(Debug)]
struct Seen {
    request: WatchCreateRequest,
    start: i64,
    events: Vec<Event>,
    /// No event at or below this may come any more.
    sent_through: i64,
    in_fragments: bool,
    canceled: bool,
    compacted_at: i64,
}

impl Seen {
    fn wants(&self, event: &Event) -> bool {
        let kv = event.kv.as_ref().unwrap();
        let (key, end) = (&self.request.key, &self.request.range_end);
        let in_range = match end.as_ref() {
            b"" => kv.key == key,
            b"\0" => kv.key >= key,
            end => kv.key >= key && kv.key.as_ref() < end,
        };
        in_range && (self.request.filters.is_empty() || event.r#type() == EventType::Delete)
    }
}

#[derive(Default)]
struct Model {
    watches: BTreeMap<i64, Seen>,
    ended: Vec<Seen>,
    /// The ids of watches that a compaction ended: they can be canceled once more.
    compacted_ids: BTreeSet<i64>,
    /// Requests whose answer has not come yet, in order.
    creating: VecDeque<WatchCreateRequest>,
    progress_asked: Vec<i64>,
    progress_told: i64,
}

impl Model {
    fn take(&mut self, response: WatchResponse, history: &FakeHistory) {
        let revision = revision(&response);
        if response.created {
            let request = self.creating.pop_front().expect("created without a create");
            if response.canceled {
                assert_eq!(response.watch_id, -1);
                assert!(!request.range_end.is_empty() && request.key >= request.range_end);
                return;
            }
            let start =
                if request.start_revision == 0 { revision + 1 } else { request.start_revision };
            let seen = Seen {
                request,
                start,
                events: Vec::new(),
                sent_through: 0,
                in_fragments: false,
                canceled: false,
                compacted_at: 0,
            };
            assert!(self.watches.insert(response.watch_id, seen).is_none());
            return;
        }
        if response.watch_id == -1 {
            assert!(response.events.is_empty());
            assert!(self.progress_asked.iter().any(|asked| *asked <= revision), "too old");
            self.progress_told = revision;
            for seen in self.watches.values_mut() {
                assert!(revision >= seen.start - 1, "progress before the watch's start");
                seen.sent_through = seen.sent_through.max(revision);
            }
            return;
        }
        if response.canceled && self.compacted_ids.remove(&response.watch_id) {
            assert_eq!(response.compact_revision, 0);
            return;
        }
        let seen =
            self.watches.get_mut(&response.watch_id).expect("a response of an unknown watch");
        if response.canceled {
            if response.compact_revision != 0 {
                self.compacted_ids.insert(response.watch_id);
            }
            seen.canceled = true;
            seen.compacted_at = response.compact_revision;
            let seen = self.watches.remove(&response.watch_id).unwrap();
            self.ended.push(seen);
            return;
        }
        assert!(!response.events.is_empty());
        assert!(seen.request.fragment || !response.fragment);
        for event in &response.events {
            let kv = event.kv.as_ref().unwrap();
            assert!(kv.mod_revision > seen.sent_through, "told to be sent already: {event:?}");
            assert!(kv.mod_revision <= revision);
            let previous = event.prev_kv.as_ref();
            if seen.request.prev_kv && kv.mod_revision > history.compacted_revision() {
                let before = history.all_events(0);
                let before = before.iter().rfind(|old| {
                    let old = old.kv.as_ref().unwrap();
                    old.key == kv.key && old.mod_revision < kv.mod_revision
                });
                let before = before.filter(|old| old.r#type() == EventType::Put);
                assert_eq!(previous, before.and_then(|old| old.kv.as_ref()));
            } else if !seen.request.prev_kv {
                assert_eq!(previous, None);
            }
        }
        if !response.fragment {
            seen.sent_through = revision;
        }
        seen.in_fragments = response.fragment;
        let without_previous = |event| Event { prev_kv: None, ..event };
        seen.events.extend(response.events.into_iter().map(without_previous));
    }

    /// At the end, when all has been read.
    fn check(&self, history: &FakeHistory) {
        assert!(self.creating.is_empty());
        let waits = |seen: &Seen| seen.start - 1 > history.current_revision();
        if !self.watches.values().any(waits) {
            let asked = self.progress_asked.last();
            assert!(asked.is_none_or(|asked| *asked <= self.progress_told), "not answered");
        }
        for seen in self.watches.values().chain(&self.ended) {
            assert!(!seen.in_fragments, "the last fragment is missing");
            let mut expected = history.all_events(seen.start);
            expected.retain(|event| seen.wants(event));
            if seen.canceled {
                // Canceled early by compaction or by the client: what came is the beginning.
                expected.truncate(seen.events.len());
                let last =
                    seen.events.last().map_or(0, |last| last.kv.as_ref().unwrap().mod_revision);
                assert!(seen.compacted_at == 0 || last < seen.compacted_at);
            }
            assert_eq!(seen.events, expected, "{:?} from {}", seen.request, seen.start);
        }
    }
}

impl Client {
    async fn act(&mut self, act: Act, model: &mut Model, history: &FakeHistory) {
        match act {
            Act::Create { start_behind, key, end, no_put, fragment, prev_kv } => {
                let start = start_behind.map(|behind| history.current_revision() - behind);
                let range_end = match end {
                    0..=5 => a_key(end),
                    6 => vec![0],
                    _ => Vec::new(),
                };
                let request = WatchCreateRequest {
                    key: a_key(key).into(),
                    range_end: range_end.into(),
                    start_revision: start.unwrap_or(0).max(0),
                    filters: if no_put { vec![FilterType::Noput.into()] } else { Vec::new() },
                    prev_kv,
                    fragment,
                    ..Default::default()
                };
                self.create(request.clone());
                model.creating.push_back(request);
            }
            Act::Cancel(which) => {
                if !model.watches.is_empty() {
                    let ids: Vec<i64> = model.watches.keys().copied().collect();
                    self.cancel(*which.get(&ids));
                }
            }
            Act::Progress => {
                self.ask_progress();
                model.progress_asked.push(history.current_revision());
            }
            Act::Read { responses } => {
                for _ in 0..responses {
                    let Ok(next) = timeout(A_WHILE, self.responses.next()).await else { break };
                    model.take(next.unwrap().unwrap(), history);
                }
            }
        }
    }
}

async fn run(steps: Vec<Step>, limits: WatchLimits) {
    let store = store_with(limits);
    let mut clients: [_; CLIENTS] = std::array::from_fn(|_| (store.client(), Model::default()));
    let mut unpublished = Vec::new();
    for step in steps {
        match step {
            Step::Write { writes, publish } => {
                let mut once = BTreeMap::new();
                for (key, value) in writes {
                    once.insert(a_key(key), value.map(|value| vec![value; usize::from(value)]));
                }
                let writes: Vec<_> =
                    once.iter().map(|(key, value)| (key.as_slice(), value.as_deref())).collect();
                unpublished.push(store.history.apply(&writes));
                if publish {
                    store.hub.publish(&std::mem::take(&mut unpublished));
                }
            }
            Step::Reset => {
                unpublished.clear();
                store.hub.reset(store.history.current_revision());
            }
            Step::Compact { behind } => {
                // As in the store: never beyond what is there, never back.
                let at = store.history.current_revision() - behind;
                if at > store.history.compacted_revision() {
                    store.history.compact(at);
                }
            }
            Step::Client(client, act) => {
                let (client, model) = &mut clients[client];
                client.act(act, model, &store.history).await;
            }
        }
    }
    store.hub.publish(&unpublished);
    let everything = Act::Read { responses: usize::MAX };
    for (client, model) in &mut clients {
        client.act(everything.clone(), model, &store.history).await;
        model.check(&store.history);
    }
    let watches: usize = clients.iter().map(|(_, model)| model.watches.len()).sum();
    assert_eq!(store.hub.watchers(), watches);
    assert_eq!((store.hub.pending_bytes(), store.hub.lagging_watchers()), (0, 0));
}

proptest! {
    #[test]
    fn a_stream_is_the_filtered_history_however_it_is_stalled(
        steps in prop::collection::vec(step(), 1..120),
        pending_revisions in 0usize..4,
        bytes in prop::sample::select(&[1usize, 600, 5000, 1 << 20][..]),
        response_bytes in prop::sample::select(&[1usize, 600, 1 << 20][..]),
    ) {
        let limits = WatchLimits {
            pending_revisions,
            pending_bytes_per_stream: bytes,
            pending_bytes: bytes + 300,
            response_bytes,
            fragment_bytes: 300,
            ..Default::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(steps, limits));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn publishing_beside_reading_loses_and_repeats_nothing() {
    const REVISIONS: i64 = 20_000;
    let limits = WatchLimits { pending_revisions: 8, response_bytes: 2000, ..Default::default() };
    let store = store_with(limits);
    let mut readers = tokio::task::JoinSet::new();
    for start in [1, 1, 5000, 15_000] {
        let mut client = store.client();
        client.created(from(start, key("a"))).await;
        readers.spawn(async move {
            let mut seen = Vec::new();
            while seen.last() != Some(&(REVISIONS + 1)) {
                let response = client.responses.next().await.unwrap().unwrap();
                let revisions = response.events.iter().map(|event| event.kv.as_ref().unwrap());
                seen.extend(revisions.map(|kv| kv.mod_revision));
            }
            assert_eq!(seen, (start.max(2)..=REVISIONS + 1).collect::<Vec<_>>());
        });
    }
    let (hub, history) = (Arc::clone(&store.hub), Arc::clone(&store.history));
    let publisher = tokio::task::spawn_blocking(move || {
        for _ in 0..REVISIONS {
            let revision = history.put_unversioned("a");
            hub.publish(&[revision]);
        }
    });
    let all = async {
        publisher.await.unwrap();
        while let Some(done) = readers.join_next().await {
            done.unwrap();
        }
    };
    timeout(Duration::from_secs(60), all).await.expect("the readers did not finish");
    assert_eq!((store.hub.watchers(), store.hub.pending_bytes()), (0, 0));
}
