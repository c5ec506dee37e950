//! Very many watchers, and clients among them that never read: what that costs a member in memory,
//! and the others in time. Every watcher must hear of every change of its key, in order, once.
//!
//! It runs small among the tests. For a measurement, on a release build:
//!
//! ```console
//! $ MINIKU_TEST_WATCHERS=10000 MINIKU_TEST_SECONDS=60 \
//!     cargo test --release -p miniku --test e2e -- watchers_at_size --nocapture
//! ```
//! The measured time is taken twice, without and with the clients that do not read; both times the
//! same is written, and so much that to keep it for one of them would show.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use store_proto::etcdserverpb::kv_client::KvClient;
use store_proto::etcdserverpb::watch_client::WatchClient;
use store_proto::etcdserverpb::watch_request::RequestUnion;
use store_proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::support::http::Http;
use crate::support::prerequisites::{Need, have};
use crate::support::processes::Process;
use crate::support::scratch::Scratch;
use crate::support::store::{Member, REQUEST_TIMEOUT, Store};
use crate::support::wait::{PATIENCE, holds, wait_for};

/// Keys that are watched. Each stream has a watcher on each of them.
const KEYS: usize = 50;
const STREAMS_PER_CONNECTION: usize = 10;
const PUTS_PER_SECOND: u32 = 50;
/// Written beside, for those that do not read.
const LARGE_PUTS_PER_SECOND: u32 = 50;
const LARGE_BYTES: usize = 64 << 10;
/// What a member may grow by while clients do not read: what it may keep for all watchers together,
/// and what allocators make of it.
const GROWTH_LIMIT_BYTES: u64 = 128 << 20;

/// When a put was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Alone,
    WithSlowClients,
    /// Tells the watchers that nothing more comes.
    End,
}

/// What is put: its phase, its number among the puts of its key, and when it was due.
#[derive(Debug)]
struct Mark {
    phase: Phase,
    number: u64,
    due: Duration,
}

impl Mark {
    fn encode(&self) -> String {
        format!("{} {} {}", self.phase as u8, self.number, self.due.as_nanos())
    }

    fn decode(value: &[u8]) -> Self {
        let words: Vec<u64> = std::str::from_utf8(value)
            .expect("a mark is text")
            .split(' ')
            .map(|word| word.parse().expect("a mark is of numbers"))
            .collect();
        let phase = [Phase::Alone, Phase::WithSlowClients, Phase::End];
        let phase = phase[usize::try_from(words[0]).expect("few")];
        Self { phase, number: words[1], due: Duration::from_nanos(words[2]) }
    }
}

fn key(number: usize) -> String {
    format!("watched/{number:03}")
}

async fn connect(member: &Member) -> Channel {
    let endpoint = Endpoint::from_shared(member.client_url.clone()).expect("a valid URL");
    wait_for("a client connects", async || endpoint.connect().await).await
}

type WatchStream = (mpsc::Sender<WatchRequest>, Streaming<WatchResponse>);

fn create(key: String, range_end: &str) -> WatchRequest {
    let create = WatchCreateRequest {
        key: key.into(),
        range_end: range_end.to_owned().into(),
        ..Default::default()
    };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// Opens a stream with watches, and waits until all are there.
async fn open(channel: Channel, watches: Vec<WatchRequest>) -> WatchStream {
    let (requests, receiver) = mpsc::channel(watches.len());
    let count = watches.len();
    for watch in watches {
        requests.send(watch).await.expect("there is room");
    }
    let mut client = WatchClient::new(channel);
    let answer = client.watch(ReceiverStream::new(receiver)).await;
    let mut events = answer.expect("a watch begins").into_inner();
    for _ in 0..count {
        let created = events.message().await.expect("it goes on").expect("it goes on");
        assert!(created.created && !created.canceled, "{created:?}");
    }
    (requests, events)
}

/// Reads a stream to its end: how long each event took, by phase. The stream lasts as long as
/// `_requests`.
async fn listen((_requests, mut events): WatchStream, epoch: Instant) -> Vec<(Phase, Duration)> {
    let mut numbers = vec![0; KEYS];
    let mut ended = 0;
    let mut took = Vec::new();
    while ended < KEYS {
        let response =
            timeout(PATIENCE, events.message()).await.expect("there is always something");
        let response = response.expect("it goes on").expect("it goes on");
        assert!(!response.canceled, "{response:?}");
        let now = epoch.elapsed();
        for event in &response.events {
            let pair = event.kv.as_ref().expect("a put");
            let mark = Mark::decode(&pair.value);
            let name = std::str::from_utf8(&pair.key).expect("text");
            let number: usize = name["watched/".len()..].parse().expect("a number");
            assert_eq!(mark.number, numbers[number], "{name}: one is missing, or comes twice");
            numbers[number] += 1;
            match mark.phase {
                Phase::End => ended += 1,
                phase => took.push((phase, now.saturating_sub(mark.due))),
            }
        }
    }
    took
}

/// What is put, and who puts it.
struct Puts {
    channels: Vec<Channel>,
    epoch: Instant,
    /// How many puts each key has had.
    numbers: Vec<u64>,
}

impl Puts {
    /// One put to the key that is next in turn.
    fn put(&mut self, turn: usize, phase: Phase, due: Duration) -> PutRequest {
        let number = turn % KEYS;
        let mark = Mark { phase, number: self.numbers[number], due };
        self.numbers[number] += 1;
        PutRequest { key: key(number).into(), value: mark.encode().into(), ..Default::default() }
    }

    /// Puts at a fixed rate for a while; how long each took.
    async fn at_rate(&mut self, phase: Phase, time: Duration) -> Vec<Duration> {
        let mut large = JoinSet::new();
        large.spawn(put_large(self.channels[0].clone(), time));
        let mut ticks = interval_at(Instant::now(), Duration::from_secs(1) / PUTS_PER_SECOND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut under_way: Vec<JoinSet<Duration>> = (0..KEYS).map(|_| JoinSet::new()).collect();
        let mut took = Vec::new();
        let puts = u64::from(PUTS_PER_SECOND) * time.as_secs();
        for turn in 0..usize::try_from(puts).expect("few") {
            let due = ticks.tick().await - self.epoch;
            // Those of one key in their order.
            while let Some(before) = under_way[turn % KEYS].join_next().await {
                took.push(before.expect("it ends well"));
            }
            let put = self.put(turn, phase, due);
            let mut kv = KvClient::new(self.channels[turn % self.channels.len()].clone());
            let epoch = self.epoch;
            under_way[turn % KEYS].spawn(async move {
                kv.put(put).await.expect("it is written");
                epoch.elapsed().saturating_sub(due)
            });
        }
        for puts in under_way {
            took.extend(puts.join_all().await);
        }
        large.join_all().await;
        took
    }

    async fn end(&mut self) {
        for turn in 0..KEYS {
            let put = self.put(turn, Phase::End, Duration::ZERO);
            KvClient::new(self.channels[0].clone()).put(put).await.expect("it is written");
        }
    }
}

async fn put_large(channel: Channel, time: Duration) {
    let mut ticks = interval_at(Instant::now(), Duration::from_secs(1) / LARGE_PUTS_PER_SECOND);
    let mut kv = KvClient::new(channel);
    let value = "x".repeat(LARGE_BYTES);
    for number in 0..u64::from(LARGE_PUTS_PER_SECOND) * time.as_secs() {
        ticks.tick().await;
        let put = PutRequest {
            key: format!("large/{}", number % 10).into(),
            value: value.clone().into(),
            ..Default::default()
        };
        kv.put(put).await.expect("it is written");
    }
}

/// A value of a member's `/metrics`.
async fn metric(member: &Member, name: &str) -> u64 {
    let page = Http::new(&member.client_url).get("/metrics").await.body;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value: f64 = line.expect("it is there").parse().expect("a number");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes and counts")]
    let value = value as u64;
    value
}

async fn memory(store: &Store, when: &str) -> Vec<u64> {
    let mut bytes = Vec::new();
    for member in &store.members {
        bytes.push(metric(member, "process_resident_memory_bytes").await);
    }
    let megabytes: Vec<u64> = bytes.iter().map(|bytes| bytes >> 20).collect();
    println!("{when}: the members take {megabytes:?} MB");
    bytes
}

fn report(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let part = |of: usize| took[(took.len() - 1) * of / 1000];
    let count = took.len();
    println!(
        "{what}: {count}, median {:?}, 99 % {:?}, longest {:?}",
        part(500),
        part(990),
        part(1000)
    );
}

fn setting(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |value| value.parse().expect("a number"))
}

/// Two clients of one member that watch everything and read nothing: one leaves what it has in its
/// gRPC stream, the other one is stopped and leaves it in its socket.
async fn slow_clients(scratch: &Scratch, member: &Member) -> (WatchStream, Process) {
    let unread = open(connect(member).await, vec![create("\0".to_owned(), "\0")]).await;
    let all = BASE64_STANDARD.encode([0]);
    let watch = json!({"create_request": {"key": all, "range_end": all}}).to_string();
    let url = format!("{}/v3/watch", member.client_url);
    let stopped = Process::start(scratch, "slow", "curl", ["-sN", &url, "-d", &watch]);
    wait_for("the gateway's watch is there", async || {
        holds(stopped.output().contains("created"), "nothing came")
    })
    .await;
    stopped.signal(rustix::process::Signal::STOP);
    (unread, stopped)
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_at_size() {
    if !have(&[Need::Curl]) {
        return;
    }
    let streams = setting("MINIKU_TEST_WATCHERS", 300).div_ceil(KEYS);
    let time = Duration::from_secs(setting("MINIKU_TEST_SECONDS", 3) as u64);
    let scratch = Scratch::new();
    let store = Store::start(&scratch, 3).await;
    memory(&store, "at the start").await;

    let epoch = Instant::now();
    let mut channels = Vec::new();
    for member in &store.members {
        channels.push(connect(member).await);
    }
    let mut watchers = JoinSet::new();
    let mut connections = channels.clone();
    for number in 0..streams {
        let (turn, of) = (number / connections.len(), number % connections.len());
        if turn % STREAMS_PER_CONNECTION == 0 {
            connections[of] = connect(&store.members[of]).await;
        }
        let watches = (0..KEYS).map(|number| create(key(number), "")).collect();
        let stream = timeout(REQUEST_TIMEOUT, open(connections[of].clone(), watches)).await;
        watchers.spawn(listen(stream.expect("it begins in time"), epoch));
    }
    memory(&store, &format!("with {} watchers", streams * KEYS)).await;

    let mut puts = Puts { channels, epoch, numbers: vec![0; KEYS] };
    report("puts", puts.at_rate(Phase::Alone, time).await);
    let before = memory(&store, "after the first time").await;
    let slow = slow_clients(&scratch, &store.members[0]).await;
    report("puts with slow clients", puts.at_rate(Phase::WithSlowClients, time).await);
    let after = memory(&store, "after the time with slow clients").await;
    let pending = metric(&store.members[0], "etcd_debugging_mvcc_pending_events_total").await;
    let lagging = metric(&store.members[0], "etcd_debugging_mvcc_slow_watcher_total").await;
    println!("{pending} events wait, {lagging} watchers are slow");
    for (before, after) in before.iter().zip(&after) {
        let growth = after.saturating_sub(*before);
        assert!(growth < GROWTH_LIMIT_BYTES, "{growth} bytes more, for clients that do not read");
    }
    assert!(lagging >= 1, "nobody is slow");

    puts.end().await;
    let took: Vec<(Phase, Duration)> = watchers.join_all().await.into_iter().flatten().collect();
    for (what, phase) in
        [("events", Phase::Alone), ("events beside slow clients", Phase::WithSlowClients)]
    {
        let of_phase = took.iter().filter(|(of, _)| *of == phase);
        report(what, of_phase.map(|(_, took)| *took).collect());
    }

    // Who reads again gets everything that it has not read, from the beginning.
    let ((_requests, mut unread), _stopped) = slow;
    let mut number = None;
    wait_for("the slow client has read everything", async || {
        let response = unread.message().await.map_err(|error| error.to_string())?;
        let response = response.ok_or("the watch ended")?;
        let mut ended = 0;
        for event in &response.events {
            let pair = event.kv.as_ref().expect("a put");
            let follows = number.is_none_or(|number| pair.mod_revision == number + 1);
            assert!(follows, "after {number:?} comes {}", pair.mod_revision);
            number = Some(pair.mod_revision);
            let is_end =
                pair.key.starts_with(b"watched/") && Mark::decode(&pair.value).phase == Phase::End;
            ended += usize::from(is_end && pair.key.ends_with(b"049"));
        }
        holds(ended == 1, format!("it is at {number:?}"))
    })
    .await;
}
