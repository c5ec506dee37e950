//! When pods were seen to exist, to have a node, and to run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use parking_lot::Mutex;
use store_client::{Client, WatchOptions};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Where pods are in the store.
const PODS: &str = "/registry/pods/default/";

/// How many pods have come how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) created: usize,
    pub(crate) bound: usize,
    pub(crate) running: usize,
}

/// What was seen of one pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) created: Instant,
    pub(crate) bound: Option<Instant>,
    pub(crate) running: Option<Instant>,
}

/// Follows the pods whose names begin alike, from now on, until it is dropped.
pub(crate) struct Follower {
    times: Arc<Mutex<HashMap<Bytes, Times>>>,
    progress: watch::Receiver<Progress>,
    watching: JoinSet<anyhow::Error>,
}

impl Follower {
    /// Returns once nothing that comes later is missed.
    pub(crate) async fn start(client: &Client, name_prefix: &str) -> anyhow::Result<Self> {
        let mut stream = client.watch(WatchOptions::prefix(format!("{PODS}{name_prefix}")));
        // The first batch says after which revision the watch begins.
        stream.next().await.context("the pods cannot be watched")?;
        let times = Arc::new(Mutex::new(HashMap::new()));
        let (sender, progress) = watch::channel(Progress::default());
        let mut watching = JoinSet::new();
        let seen = Arc::clone(&times);
        watching.spawn(async move {
            loop {
                let batch = match stream.next().await {
                    Ok(batch) => batch,
                    Err(error) => return error.into(),
                };
                let now = Instant::now();
                let mut times = seen.lock();
                sender.send_modify(|progress| {
                    for kv in batch.events.into_iter().filter_map(|event| event.kv) {
                        note(&mut times, progress, kv.key, &kv.value, now);
                    }
                });
            }
        });
        Ok(Self { times, progress, watching })
    }

    /// Waits until so much has been seen; fails when nothing new is seen for `patience`.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut reached: impl FnMut(Progress) -> bool,
    ) -> anyhow::Result<()> {
        loop {
            let now = *self.progress.borrow_and_update();
            if reached(now) {
                return Ok(());
            }
            tokio::select! {
                changed = timeout(patience, self.progress.changed()) => match changed {
                    Ok(changed) => changed.context("the watch has ended")?,
                    Err(_) => bail!("{what}: nothing new for {patience:?}, after {now:?}"),
                },
                Some(ended) = self.watching.join_next() => return Err(ended?),
            }
        }
    }

    /// What was seen of each pod.
    pub(crate) fn times(&self) -> Vec<Times> {
        self.times.lock().values().copied().collect()
    }
}

fn note(
    times: &mut HashMap<Bytes, Times>,
    progress: &mut Progress,
    key: Bytes,
    value: &[u8],
    now: Instant,
) {
    let times = times.entry(key).or_insert_with(|| {
        progress.created += 1;
        Times { created: now, bound: None, running: None }
    });
    if times.bound.is_none() && holds(value, br#""nodeName":""#) {
        times.bound = Some(now);
        progress.bound += 1;
    }
    if times.running.is_none() && holds(value, br#""phase":"Running""#) {
        times.running = Some(now);
        progress.running += 1;
    }
}

/// Whether the text is there. To look for it is far cheaper than to read the object.
fn holds(value: &[u8], text: &[u8]) -> bool {
    value.windows(text.len()).any(|part| part == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_counts_once_for_each_step() {
        let (mut times, mut progress) = (HashMap::new(), Progress::default());
        let now = Instant::now();
        for (key, value) in [
            ("a", r#"{"status":{"phase":"Pending"}}"#),
            ("b", r#"{"status":{"phase":"Pending"}}"#),
            ("a", r#"{"spec":{"nodeName":"n"},"status":{"phase":"Pending"}}"#),
            ("a", r#"{"spec":{"nodeName":"n"},"status":{"phase":"Running"}}"#),
            ("a", r#"{"spec":{"nodeName":"n"},"status":{"phase":"Running"},"x":1}"#),
        ] {
            note(&mut times, &mut progress, key.into(), value.as_bytes(), now);
        }
        assert_eq!(progress, Progress { created: 2, bound: 1, running: 1 });
        assert!(times[&b"b"[..]].bound.is_none());
    }
}
