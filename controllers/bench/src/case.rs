//! One case from its empty directory to its figures.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use futures::{TryStreamExt as _, stream};
use store_bench::latencies::Latencies;
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::follow::{Follower, Times};
use crate::options::{Case, Options};
use crate::say;
use crate::table::{Cost, Figures};

/// How long nothing new may be seen of pods that are awaited.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests for pods under way at once.
const POSTS_IN_FLIGHT: usize = 64;
/// Between single pods: each meets a control plane at rest.
const LONE_PAUSE: Duration = Duration::from_millis(20);

pub(crate) async fn measure(case: Case, options: &Options, dir: &Path) -> anyhow::Result<Figures> {
    let mut cluster = Cluster::start(options, dir).await?;
    cluster.start_nodes(case.nodes, options).await?;
    // The smaller part, if there are few.
    let waiting = options.waiting.min(case.pods / 4);
    let bound_per_second = bind_waiting(&mut cluster, waiting).await?;
    say(format_args!("  {bound_per_second:.0} waiting pods bound a second"));
    say(format_args!("  {}", cluster.processes()));
    let sets = fill_sets(&mut cluster, case.pods - waiting, options.sets).await?;
    say(format_args!("  {:.0} pods a second from created to Running", sets.per_second));
    let lone_starts = start_lone(&mut cluster, options.lone(case)).await?;
    sleep(Duration::from_secs(options.linger)).await;
    cluster.check()?;
    Ok(Figures {
        case,
        bound_per_second,
        running_per_second: sets.per_second,
        starts: sets.starts,
        lone_starts,
        costs: sets.costs,
    })
}

/// Pods are there, then a scheduler comes: how many it binds a second, from the first to the last.
#[allow(clippy::cast_precision_loss)]
async fn bind_waiting(cluster: &mut Cluster, pods: usize) -> anyhow::Result<f64> {
    let mut follower = Follower::start(&cluster.client, "waiting-").await?;
    let api = cluster.api.clone();
    stream::iter((0..pods).map(Ok))
        .try_for_each_concurrent(POSTS_IN_FLIGHT, |number| {
            let (api, pod) = (api.clone(), format!(r#"{{"name":"waiting-{number}","image":"i"}}"#));
            async move { api.post("/pods", pod).await.map(|_| ()) }
        })
        .await?;
    cluster.start_controllers()?;
    follower.until("waiting pods", PATIENCE, |seen| seen.running == pods).await?;
    cluster.check()?;
    let bound: Vec<Instant> = follower.times().iter().filter_map(|times| times.bound).collect();
    let span = bound.iter().max().zip(bound.iter().min()).map(|(last, first)| *last - *first);
    Ok(pods as f64 / span.unwrap_or_default().as_secs_f64())
}

struct Sets {
    per_second: f64,
    starts: Latencies,
    costs: Vec<Cost>,
}

/// ReplicaSets are created, and filled.
#[allow(clippy::cast_precision_loss)]
async fn fill_sets(cluster: &mut Cluster, pods: usize, sets: usize) -> anyhow::Result<Sets> {
    let mut follower = Follower::start(&cluster.client, "set-").await?;
    let before = cluster.costs()?;
    let began = Instant::now();
    let api = cluster.api.clone();
    let sets = sets.clamp(1, pods);
    stream::iter((0..sets).map(Ok))
        .try_for_each_concurrent(POSTS_IN_FLIGHT, |number| {
            let count = pods / sets + usize::from(number < pods % sets);
            let set = format!(
                r#"{{"name":"set-{number}","desiredCount":{count},"selector":{{"set":"{number}"}},"template":{{"image":"i"}}}}"#
            );
            let api = api.clone();
            async move { api.post("/replicasets", set).await.map(|_| ()) }
        })
        .await?;
    follower.until("the sets' pods", PATIENCE, |seen| seen.running >= pods).await?;
    let times = follower.times();
    let last = times.iter().filter_map(|times| times.running).max().unwrap_or(began);
    let mut costs = cluster.costs()?;
    for (cost, before) in costs.iter_mut().zip(before) {
        cost.cpu -= before.cpu;
    }
    cluster.check()?;
    let way = |times: &Times| Some(times.running? - times.created);
    Ok(Sets {
        per_second: pods as f64 / (last - began).as_secs_f64(),
        starts: Latencies::new(times.iter().filter_map(way).collect()),
        costs,
    })
}

/// Single pods, one after the other: from the request until each is seen Running.
async fn start_lone(cluster: &mut Cluster, pods: usize) -> anyhow::Result<Latencies> {
    let mut follower = Follower::start(&cluster.client, "lone-").await?;
    let mut starts = Vec::with_capacity(pods);
    for number in 0..pods {
        let began = Instant::now();
        let pod = format!(r#"{{"name":"lone-{number}","image":"i"}}"#);
        let posted = cluster.api.post("/pods", pod);
        let running = follower.until("a lone pod", PATIENCE, |seen| seen.running > number);
        let (posted, running) = futures::join!(posted, running);
        posted.and(running).with_context(|| format!("lone-{number}"))?;
        starts.push(began.elapsed());
        sleep(LONE_PAUSE).await;
    }
    Ok(Latencies::new(starts))
}
