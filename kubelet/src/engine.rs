//! How the kubelet hears of what happens to its containers.
//!
//! The engine's event stream tells of exits and removals as they happen. A scan every few seconds
//! compares all containers with what the scan before saw, and is the net for events that were
//! missed. Neither decides anything: both only say which pods to look at again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::ObjectKey;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::error::Chain;
use crate::pods::Pods;
use crate::runtime::{Listed, RuntimeError};

/// How often all containers are compared with what was seen before.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// Every so many scans all pods are looked at, whether anything was seen to change or not.
const SCANS_PER_RESYNC: u32 = 12;
/// The pause before a broken event stream is taken up again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// What a scan compares: a pod's containers, and whether each runs.
type Sighting = Vec<(String, bool)>;

/// Follows the event stream, over and over, until told to stop.
pub(crate) async fn listen(pods: Arc<Pods>, stop: CancellationToken) {
    loop {
        let listening = stop.run_until_cancelled(listen_once(&pods)).await;
        match listening {
            None => return,
            Some(Ok(())) => tracing::debug!("the engine's event stream ended"),
            Some(Err(error)) => {
                tracing::debug!(error = %Chain(&error), "the engine's event stream broke");
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(RECONNECT_PAUSE)).await.is_none() {
            return;
        }
    }
}

async fn listen_once(pods: &Pods) -> Result<(), RuntimeError> {
    let mut events = pods.runtime().events(pods.node()).await?;
    // Whatever happened while nobody listened.
    pods.wake_all();
    while let Some(event) = events.next().await {
        pods.wake(event?.pod);
    }
    Ok(())
}

/// Scans all containers of the node, over and over, until told to stop.
pub(crate) async fn scan(pods: Arc<Pods>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(SCAN_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen: HashMap<ObjectKey, Sighting> = HashMap::new();
    let mut foreign_before = 0;
    let mut scans_left = SCANS_PER_RESYNC;
    let mut down = false;
    let mut swept = false;
    loop {
        if stop.run_until_cancelled(ticks.tick()).await.is_none() {
            return;
        }
        let listing = pods.runtime().list(pods.node(), None);
        let listed = match stop.run_until_cancelled(listing).await {
            None => return,
            Some(Ok(listed)) => listed,
            Some(Err(error)) => {
                tracing::debug!(error = %Chain(&error), "the containers cannot be listed");
                down = true;
                continue;
            }
        };
        let (ours, foreign): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|one| pods.is_ours(&one.identity));
        if foreign.len() > foreign_before {
            let node = pods.node();
            tracing::warn!(
                containers = foreign.len(),
                "this engine runs containers of another cluster with a node {node}; they are left \
                 alone. To remove them: docker rm -f $(docker ps -aq --filter label=miniku.cluster={})",
                foreign[0].identity.cluster,
            );
        }
        foreign_before = foreign.len();
        let now = sightings(ours);
        changed(&seen, &now).for_each(|key| pods.wake(key.clone()));
        seen = now;
        scans_left -= 1;
        if !swept || scans_left == 0 {
            let sweep = stop.run_until_cancelled(pods.sweep_volumes()).await;
            if let Some(Err(error)) = &sweep {
                tracing::debug!(error = %Chain(error), "volumes cannot be removed");
            }
            swept = matches!(sweep, Some(Ok(())));
        }
        if scans_left == 0 || std::mem::take(&mut down) {
            scans_left = SCANS_PER_RESYNC;
            pods.wake_all();
        }
    }
}

fn sightings(listed: Vec<Listed>) -> HashMap<ObjectKey, Sighting> {
    let mut seen: HashMap<ObjectKey, Sighting> = HashMap::new();
    for one in listed {
        seen.entry(one.identity.pod).or_default().push((one.id, one.running));
    }
    seen.values_mut().for_each(|sighting| sighting.sort());
    seen
}

/// The pods whose containers are not as they were.
fn changed<'a>(
    before: &'a HashMap<ObjectKey, Sighting>,
    now: &'a HashMap<ObjectKey, Sighting>,
) -> impl Iterator<Item = &'a ObjectKey> {
    let gone = before.keys().filter(|key| !now.contains_key(*key));
    let other = now.iter().filter(|(key, sighting)| before.get(*key) != Some(*sighting));
    gone.chain(other.map(|(key, _)| key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_notices_what_came_went_and_ended() {
        let pod = |name: &str| ObjectKey::namespaced("default", name);
        let before = HashMap::from([
            (pod("same"), vec![("1".into(), true)]),
            (pod("ended"), vec![("2".into(), true)]),
            (pod("replaced"), vec![("3".into(), true)]),
            (pod("gone"), vec![("4".into(), true)]),
        ]);
        let now = HashMap::from([
            (pod("same"), vec![("1".into(), true)]),
            (pod("ended"), vec![("2".into(), false)]),
            (pod("replaced"), vec![("5".into(), true)]),
            (pod("new"), vec![("6".into(), true)]),
        ]);
        let mut noticed: Vec<&str> = changed(&before, &now).map(|key| &*key.name).collect();
        noticed.sort_unstable();
        assert_eq!(noticed, ["ended", "gone", "new", "replaced"]);
        assert_eq!(changed(&now, &now).count(), 0);
    }
}
