//! Clients that each send their next request when the last one is answered, for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::bail;
use store_bench::latencies::Latencies;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use crate::cluster::Cluster;
use crate::connections::Connections;
use crate::options::Options;
use crate::report::{Better, Line};

pub(crate) const WARMING_UP: u8 = 0;
pub(crate) const MEASURING: u8 = 1;
pub(crate) const ENDED: u8 = 2;
/// After a request that failed.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// What one client does.
pub(crate) trait Work: Send + 'static {
    /// Sends one request and waits for its answer. False: it was answered, but does not count, such
    /// as a comparison that failed.
    fn step(
        &mut self,
        connections: &mut Connections,
    ) -> impl Future<Output = Result<bool, Status>> + Send;
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) latencies: Latencies,
    /// Requests that were answered, but do not count.
    pub(crate) missed: u64,
    pub(crate) elapsed: Duration,
    /// Of all members together, meanwhile.
    pub(crate) cpu: Duration,
}

impl Outcome {
    /// The lines of the table.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn lines(&self) -> Vec<Line> {
        let done = self.latencies.count() as f64;
        vec![
            Line::new("per second", Better::Higher, vec![done / self.elapsed.as_secs_f64()]),
            latencies_line(&self.latencies, "p50, p99 (ms)"),
            Line::new(
                "CPU s of the servers per 100,000",
                Better::Lower,
                vec![self.cpu.as_secs_f64() / done * 100_000.0],
            ),
        ]
    }
}

/// The line of the table for times that something took.
pub(crate) fn latencies_line(latencies: &Latencies, what: &'static str) -> Line {
    let ms = |fraction| latencies.quantile(fraction).as_secs_f64() * 1000.0;
    Line::new(what, Better::Lower, vec![ms(0.5), ms(0.99)])
}

/// Lets `clients` clients work, first to warm up, then to be measured.
pub(crate) async fn run<W: Work>(
    cluster: &Cluster,
    clients: usize,
    options: &Options,
    work: impl Fn(usize) -> W,
) -> anyhow::Result<Outcome> {
    let connections = Connections::open(cluster, clients).await?;
    let phase = Arc::new(AtomicU8::new(WARMING_UP));
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        tasks.spawn(one(work(client), connections.for_client(client), Arc::clone(&phase)));
    }
    sleep(options.warm_up()).await;
    let cpu_before = cluster.cpu_time()?;
    let began = Instant::now();
    phase.store(MEASURING, Ordering::Relaxed);
    sleep(options.measured()).await;
    phase.store(ENDED, Ordering::Relaxed);
    let elapsed = began.elapsed();
    let cpu = cluster.cpu_time()? - cpu_before;

    let mut all = Vec::new();
    let (mut missed, mut failed) = (0, 0);
    let mut error = None;
    for mut report in tasks.join_all().await {
        all.append(&mut report.latencies);
        missed += report.missed;
        failed += report.failed;
        error = error.or(report.error);
    }
    if let Some(error) = error
        && failed * 1000 > all.len()
    {
        bail!("{failed} of {} requests failed: {error}", all.len() + failed);
    }
    Ok(Outcome { latencies: Latencies::new(all), missed, elapsed, cpu })
}

#[derive(Default)]
struct Report {
    latencies: Vec<Duration>,
    missed: u64,
    failed: usize,
    error: Option<String>,
}

async fn one(mut work: impl Work, mut connections: Connections, phase: Arc<AtomicU8>) -> Report {
    let mut report = Report::default();
    loop {
        let began = Instant::now();
        let answer = timeout(REQUEST_TIMEOUT, work.step(&mut connections)).await;
        let took = began.elapsed();
        let phase = phase.load(Ordering::Relaxed);
        match answer {
            Ok(Ok(true)) if phase == MEASURING => report.latencies.push(took),
            Ok(Ok(false)) if phase == MEASURING => report.missed += 1,
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => {
                report.failed += 1;
                report.error = Some(match answer {
                    Ok(Err(status)) => status.message().to_owned(),
                    _ => format!("no answer within {REQUEST_TIMEOUT:?}"),
                });
                sleep(ERROR_PAUSE).await;
            }
        }
        if phase == ENDED {
            return report;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_ranks() {
        let ms = |from, to| Latencies::new((from..=to).rev().map(Duration::from_millis).collect());
        let hundred = ms(1, 100);
        assert_eq!(hundred.quantile(0.5), Duration::from_millis(50));
        assert_eq!(hundred.quantile(0.99), Duration::from_millis(99));
        assert_eq!(ms(7, 7).quantile(0.99), Duration::from_millis(7));
        assert_eq!(Latencies::default().quantile(0.5), Duration::ZERO);
    }
}
