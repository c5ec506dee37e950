//! What all controllers have in common: a queue of keys that changes fill and workers empty, with
//! a span and a log line for each.

use std::fmt::{self, Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::time::Duration;

use api::{Backoff, Outcome, WorkQueue, run_workers};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

/// How long a key waits whose reconcile has failed. Most failures are a store that elects a
/// leader, which is over in less than a second.
pub(crate) const BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(50), max: Duration::from_secs(10) };

/// Works on the keys of `queue` until cancelled, or until `listen`, which fills it, has ended.
pub(crate) async fn run<T, Fut>(
    controller: &'static str,
    queue: WorkQueue<T>,
    workers: usize,
    cancelled: CancellationToken,
    listen: impl Future<Output = ()>,
    work: impl Fn(T) -> Fut + Clone + Send + Sync + 'static,
) where
    T: Clone + Debug + Display + Eq + Hash + Send + Sync + 'static,
    Fut: Future<Output = Result<Outcome, api::Error>> + Send + 'static,
{
    let work = move |key: T| {
        let span = info_span!("reconcile", controller, %key);
        let result = work(key);
        async move {
            match result.await {
                // Decided on what is no longer so: what it has become is in the cache soon.
                Err(conflict @ api::Error::Conflict { .. }) => {
                    tracing::debug!(%conflict, "looking again");
                    Ok(Outcome::After(BACKOFF.base))
                }
                result => result.map_err(|error| Chain(&error).to_string()),
            }
        }
        .instrument(span)
    };
    tokio::select! {
        () = run_workers(queue, workers, cancelled, work) => {}
        () = listen => {}
    }
}

/// An error with all its causes, for the one place where it is logged.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
