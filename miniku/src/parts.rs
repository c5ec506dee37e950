//! The parts that run in this process: whichever ends by itself ends the process, and all are
//! stopped in the reverse order of their start, so that none misses one that it needs.

use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::select_all;
use tokio::time::timeout;

use crate::signals::Signals;

/// How long all parts together get to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How long a part that can be told gets of that.
const PART_DEADLINE: Duration = Duration::from_secs(5);
/// The exit code when a second signal came, or the deadline.
const STOPPED_HARD: i32 = 1;

/// A part of the system that runs.
#[async_trait]
pub(crate) trait Part: Send {
    /// Waits until it ends by itself, which it should not.
    async fn ended(&mut self) -> anyhow::Error;
    /// Lets it finish what it does.
    async fn stop(self: Box<Self>);
}

macro_rules! part {
    ($part:ty, shutdown($($deadline:expr)?)) => {
        #[async_trait]
        impl Part for $part {
            async fn ended(&mut self) -> anyhow::Error {
                self.join().await.into()
            }

            async fn stop(self: Box<Self>) {
                self.shutdown($($deadline)?).await;
            }
        }
    };
}

part!(store::Running, shutdown());
part!(apiserver::Running, shutdown());
part!(controllers::Running, shutdown(PART_DEADLINE));
part!(kubelet::Running, shutdown());

/// The parts of this process.
#[derive(Default)]
pub(crate) struct Parts(Vec<(String, Box<dyn Part>)>);

impl Parts {
    /// Adds one that has been started.
    pub(crate) fn add(&mut self, name: impl Into<String>, part: impl Part + 'static) {
        self.0.push((name.into(), Box::new(part)));
    }

    /// Waits until one of them ends by itself, and tells which and why.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        let ends = self.0.iter_mut().map(|(name, part)| {
            async move { part.ended().await.context(format!("{name} ended")) }.boxed()
        });
        select_all(ends).await.0
    }

    /// Stops all, the last one first. A second signal, or the deadline, ends the process on the
    /// spot: everything that was acknowledged is on disk at any time.
    pub(crate) async fn stop(&mut self, signals: &mut Signals) {
        let all = async {
            while let Some((name, part)) = self.0.pop() {
                part.stop().await;
                tracing::debug!(part = name, "stopped");
            }
        };
        tokio::select! {
            stopped = timeout(STOP_DEADLINE, all) => if stopped.is_err() {
                tracing::error!("not everything stopped within {STOP_DEADLINE:?}: ending anyway");
                std::process::exit(STOPPED_HARD);
            },
            signal = signals.next() => {
                tracing::warn!(signal, "ending at once");
                std::process::exit(STOPPED_HARD);
            }
        }
    }
}
