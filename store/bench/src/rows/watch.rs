//! Many watchers on one prefix, and puts at a fixed rate: how long until an event arrives.
//!
//! A put carries the time at which it was due, so that a store that falls behind cannot hide it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use store_bench::latencies::Latencies;
use store_proto::etcdserverpb::kv_client::KvClient;
use store_proto::etcdserverpb::watch_client::WatchClient;
use store_proto::etcdserverpb::watch_request::RequestUnion;
use store_proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::key;
use crate::cluster::Cluster;
use crate::connections::Connections;
use crate::load::{ENDED, MEASURING, WARMING_UP, latencies_line};
use crate::options::Options;
use crate::report::{Better, Line};

const PREFIX: &str = "watched/";
/// `/` plus one: the end of the prefix.
const PREFIX_END: &str = "watched0";
const KEYS: u64 = 1000;
const CREATE_TIMEOUT: Duration = Duration::from_secs(20);

#[allow(clippy::cast_precision_loss)]
pub(super) async fn measure(cluster: &Cluster, options: &Options) -> anyhow::Result<Vec<Line>> {
    let mut connections = Connections::open(cluster, options.watchers).await?;
    let epoch = Instant::now();
    let phase = Arc::new(AtomicU8::new(WARMING_UP));
    let mut watchers = JoinSet::new();
    for _ in 0..options.watchers {
        let (requests, events) = timeout(CREATE_TIMEOUT, watch(&mut connections)).await??;
        watchers.spawn(listen(requests, events, epoch, Arc::clone(&phase)));
    }

    let mut puts = JoinSet::new();
    puts.spawn(put_at_rate(Connections::open(cluster, 1).await?, options.clone(), epoch));
    sleep(options.warm_up()).await;
    let cpu_before = cluster.cpu_time()?;
    let began = Instant::now();
    phase.store(MEASURING, Ordering::Relaxed);
    tokio::select! {
        () = sleep(options.measured()) => {}
        Some(ended) = puts.join_next() => ended??,
    }
    phase.store(ENDED, Ordering::Relaxed);
    let elapsed = began.elapsed();
    let cpu = cluster.cpu_time()? - cpu_before;
    // Puts go on meanwhile, so every watcher has an event by which it sees that the time is over.
    let mut all = Vec::new();
    while let Some(watcher) = watchers.join_next().await {
        all.append(&mut watcher??);
    }
    let latencies = Latencies::new(all);
    let events = latencies.count() as f64;
    Ok(vec![
        Line::new("events per second", Better::Higher, vec![events / elapsed.as_secs_f64()]),
        latencies_line(&latencies, "put to event: p50, p99 (ms)"),
        Line::new(
            "CPU s of the servers per 100,000 events",
            Better::Lower,
            vec![cpu.as_secs_f64() / events * 100_000.0],
        ),
    ])
}

/// Opens a stream with one watch on the prefix, and waits until it is there.
async fn watch(
    connections: &mut Connections,
) -> anyhow::Result<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>)> {
    let (requests, receiver) = mpsc::channel(1);
    let create = WatchCreateRequest {
        key: PREFIX.into(),
        range_end: PREFIX_END.into(),
        ..WatchCreateRequest::default()
    };
    requests
        .send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })
        .await?;
    let mut client = WatchClient::new(connections.next());
    let mut events = client.watch(ReceiverStream::new(receiver)).await?.into_inner();
    let created = events.message().await?.context("the watch ended at once")?;
    anyhow::ensure!(created.created, "the watch was not created: {}", created.cancel_reason);
    Ok((requests, events))
}

/// How long the events of the measured time took. The stream lasts as long as `_requests`.
async fn listen(
    _requests: mpsc::Sender<WatchRequest>,
    mut events: Streaming<WatchResponse>,
    epoch: Instant,
    phase: Arc<AtomicU8>,
) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::new();
    while let Some(response) = events.message().await? {
        anyhow::ensure!(!response.canceled, "a watch was cancelled: {}", response.cancel_reason);
        let now = epoch.elapsed();
        let phase = phase.load(Ordering::Relaxed);
        for event in &response.events {
            let value = event.kv.as_ref().map(|kv| &kv.value[..]).unwrap_or_default();
            let due = value.first_chunk().context("an event without its time")?;
            if phase == MEASURING {
                took.push(now.saturating_sub(Duration::from_nanos(u64::from_le_bytes(*due))));
            }
        }
        if phase == ENDED {
            return Ok(took);
        }
    }
    anyhow::bail!("a watch ended before its time")
}

/// Puts until it is aborted.
async fn put_at_rate(
    mut connections: Connections,
    options: Options,
    epoch: Instant,
) -> anyhow::Result<()> {
    let period = Duration::from_secs(1) / options.watch_rate;
    let mut ticks = interval_at(Instant::now(), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = JoinSet::new();
    for number in 0.. {
        let due = ticks.tick().await;
        let nanos = u64::try_from((due - epoch).as_nanos())?;
        let mut value = nanos.to_le_bytes().to_vec();
        value.resize(options.value_bytes.max(value.len()), 0);
        let put = PutRequest {
            key: key(PREFIX, number % KEYS),
            value: Bytes::from(value),
            ..PutRequest::default()
        };
        let mut kv = KvClient::new(connections.next());
        under_way.spawn(async move { kv.put(put).await });
        while let Some(done) = under_way.try_join_next() {
            done??;
        }
    }
    Ok(())
}
