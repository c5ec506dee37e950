//! The leader is killed: how long until a put that was sent after that is acknowledged.
//!
//! Both survivors get a put every few milliseconds, whether the ones before are answered or not, so
//! that what is measured is the cluster's pause and not a client's pause between its tries.

use std::time::Duration;

use anyhow::Context as _;
use store_proto::etcdserverpb::PutRequest;
use store_proto::etcdserverpb::kv_client::KvClient;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use super::key;
use crate::cluster::{Cluster, MEMBERS};
use crate::connections::Connections;
use crate::options::Options;
use crate::report::{Better, Line, median};

/// Between two puts.
const PERIOD: Duration = Duration::from_millis(4);
/// Puts that succeed, before the leader is killed.
const BEFORE: Duration = Duration::from_millis(500);
/// After a member is back, for the cluster to be as it was.
const SETTLE: Duration = Duration::from_secs(1);
const GAP_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn measure(cluster: &mut Cluster, options: &Options) -> anyhow::Result<Vec<Line>> {
    let mut gaps = Vec::new();
    for _ in 0..options.kills {
        gaps.push(gap(cluster).await?.as_secs_f64() * 1000.0);
        cluster.wait_until_ready().await?;
        sleep(SETTLE).await;
    }
    let worst = gaps.iter().copied().fold(0.0, f64::max);
    let line = Line::new(
        "no put acknowledged, default timeouts: median, worst (ms)",
        Better::Lower,
        vec![median(gaps), worst],
    );
    Ok(vec![line])
}

/// Kills the leader, measures, and starts it again.
async fn gap(cluster: &mut Cluster) -> anyhow::Result<Duration> {
    let leader = cluster.leader().await?;
    let mut urls = cluster.urls();
    urls.remove(leader);
    let connections = Connections::to(&urls, MEMBERS - 1).await?;
    let (acknowledged, mut acknowledgements) = mpsc::channel(1024);
    let mut writer = JoinSet::new();
    writer.spawn(write(connections, acknowledged));
    sleep(BEFORE).await;
    cluster.kill(leader)?;
    let killed = Instant::now();
    let first = async {
        while let Some((sent, answered)) = acknowledgements.recv().await {
            if sent >= killed {
                return Some(answered);
            }
        }
        None
    };
    let answered = timeout(GAP_TIMEOUT, first)
        .await
        .with_context(|| format!("no put was acknowledged within {GAP_TIMEOUT:?}"))?
        .context("the writer ended")?;
    cluster.spawn(leader)?;
    Ok(answered - killed)
}

/// Puts until it is dropped, and tells when each acknowledged one was sent and answered.
async fn write(mut connections: Connections, acknowledged: mpsc::Sender<(Instant, Instant)>) {
    let mut ticks = interval(PERIOD);
    let mut under_way = JoinSet::new();
    for number in 0.. {
        ticks.tick().await;
        let mut kv = KvClient::new(connections.next());
        let put = PutRequest {
            key: key("gap/", number % 100),
            value: "x".into(),
            ..PutRequest::default()
        };
        let acknowledged = acknowledged.clone();
        under_way.spawn(async move {
            let sent = Instant::now();
            // One that failed tells nothing: others follow it.
            if kv.put(put).await.is_ok() {
                let _ = acknowledged.send((sent, Instant::now())).await;
            }
        });
        while under_way.try_join_next().is_some() {}
    }
}
