//! How long a member, or all of them, take until they answer again, with much data.
//!
//! The page cache is warm: both read back what was written a moment before.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{fill, value};
use crate::cluster::{Cluster, MEMBERS};
use crate::options::Options;
use crate::report::{Better, Line, median};

const VALUE_BYTES: usize = 8 << 10;
/// For what goes on behind the answers, such as snapshots, to come to an end.
const SETTLE: Duration = Duration::from_secs(5);

#[allow(clippy::cast_precision_loss)]
pub(super) async fn measure(cluster: &mut Cluster, options: &Options) -> anyhow::Result<Vec<Line>> {
    let keys = (options.restart_mib << 20) / VALUE_BYTES as u64;
    let began = Instant::now();
    fill(cluster, keys, "large/", &value(VALUE_BYTES)).await?;
    let filled = began.elapsed();
    cluster.wait_until_ready().await?;
    sleep(SETTLE).await;

    let (mut stopped, mut killed) = (Vec::new(), Vec::new());
    for at in 0..MEMBERS {
        cluster.stop(at).await?;
        stopped.push(start_ms(cluster, at).await?);
        cluster.kill(at)?;
        killed.push(start_ms(cluster, at).await?);
    }
    sleep(SETTLE).await;
    for at in 0..MEMBERS {
        cluster.kill(at)?;
    }
    let began = Instant::now();
    for at in 0..MEMBERS {
        cluster.spawn(at)?;
    }
    cluster.wait_until_ready().await?;
    let all = began.elapsed();
    sleep(SETTLE).await;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let memory = mib(cluster.memory()?.resident);
    let disk = mib(cluster.disk_bytes()?);
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    Ok(vec![
        Line::new("one member after SIGTERM (ms)", Better::Lower, vec![median(stopped)]),
        Line::new("one member after SIGKILL (ms)", Better::Lower, vec![median(killed)]),
        Line::new("all three after SIGKILL (ms)", Better::Lower, vec![ms(all)]),
        Line::new("memory after that (MiB, three members)", Better::Lower, vec![memory]),
        Line::new("on disk (MiB, three members)", Better::Lower, vec![disk]),
        Line::new("writing the data (s)", Better::Lower, vec![filled.as_secs_f64()]),
    ])
}

/// Starts a member; milliseconds until it has answered a linearizable read.
async fn start_ms(cluster: &mut Cluster, at: usize) -> anyhow::Result<f64> {
    let began = Instant::now();
    cluster.spawn(at)?;
    cluster.wait_until_member_ready(at).await?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}
