//! Looks after the pods of a node that is in trouble: what [`decide`] says is done here.

use std::sync::Arc;

use api::{DeleteOptions, Error, Object, ObjectKey, Outcome};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::eviction::{self, Verdict, decide};
use super::{NodeLifecycle, condition};
use crate::pod;

/// Pods of one node that are written at the same time.
const WRITES_IN_FLIGHT: usize = 16;
/// What is said of a pod that is deleted while its node is not heard of, as in Kubernetes.
const NODE_LOST: &str = "NodeLost";

impl NodeLifecycle {
    /// Marks, evicts and removes the pods of a node as is due. The cache tells whether there is
    /// anything to do; what is done is decided by the node as it is at this moment.
    pub(super) async fn look_after_pods(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let is_due = |node: &Node, pod: &Pod| {
            let due = matches!(self.verdict(pod, node), Verdict::Evict | Verdict::Remove);
            due || is_falsely_ready(pod, node)
        };
        let Some(cached) = self.node_cache.get(key) else { return Ok(Outcome::Done) };
        let mut pods = self.pod_cache.on_node(&key.name);
        pods.retain(|pod| is_due(&cached, pod));
        if pods.is_empty() {
            return Ok(Outcome::Done);
        }
        let Some(node) = self.nodes.find(key).await? else { return Ok(Outcome::Done) };
        if self.seen.lock().zones.all_dead() || !eviction::concerns(&node) {
            return Ok(Outcome::Done);
        }
        let results: Vec<_> = stream::iter(pods)
            .map(|pod| self.look_after(pod, &node))
            .buffer_unordered(WRITES_IN_FLIGHT)
            .collect()
            .await;
        results.into_iter().collect::<Result<(), Error>>().map(|()| Outcome::Done)
    }

    fn verdict(&self, pod: &Pod, node: &Node) -> Verdict {
        decide(pod, node, self.removal_period, self.nodes.clock().now())
    }

    async fn look_after(&self, pod: Arc<Pod>, node: &Node) -> Result<(), Error> {
        let done = match self.verdict(&pod, node) {
            Verdict::Evict => self.evict(&pod, node).await,
            Verdict::Remove => {
                self.pods.finish_delete(&pod.key(), pod.uid()).await?;
                tracing::warn!(
                    pod = pod.name(),
                    node = node.name(),
                    "node lifecycle: pod removed, its node cannot say whether it has ended"
                );
                Ok(())
            }
            Verdict::Stay | Verdict::Wait(_) => self.mark_not_ready(&pod, node).await,
        };
        match done {
            // Somebody else was faster, and the cache is about to say so.
            Err(Error::NotFound { .. } | Error::Conflict { .. }) => Ok(()),
            done => done,
        }
    }

    /// Nobody can tell whether a pod on a node that is not heard of still does its work.
    async fn mark_not_ready(&self, pod: &Pod, node: &Node) -> Result<(), Error> {
        if !is_falsely_ready(pod, node) {
            return Ok(());
        }
        self.events.warning(pod, "NodeNotReady", "Node is not ready");
        self.report(pod, |current| not_ready(current, self.nodes.clock().now())).await.map(|_| ())
    }

    async fn evict(&self, pod: &Pod, node: &Node) -> Result<(), Error> {
        let lost = condition::status(node, "Ready") == Some("Unknown");
        let report = |current: &mut Pod| {
            if lost {
                not_ready(current, self.nodes.clock().now());
                let status = current.status.get_or_insert_default();
                status.reason = Some(NODE_LOST.to_owned());
                status.message = Some(format!(
                    "Node {} which was running pod {} is unresponsive",
                    node.name(),
                    pod.name()
                ));
            }
        };
        let marked = self.report(pod, report).await?;
        let options = DeleteOptions { uid: Some(pod.uid().to_owned()), ..DeleteOptions::default() };
        self.pods.delete_from(&marked, &options).await?;
        let message = format!("Marking for deletion Pod {}", pod.key());
        self.taint_eviction_events.normal(pod, "TaintManagerEviction", message);
        tracing::warn!(pod = pod.name(), node = node.name(), "node lifecycle: pod evicted");
        Ok(())
    }

    /// Changes the status of just this pod, and of no other of its name.
    async fn report(&self, pod: &Pod, change: impl Fn(&mut Pod)) -> Result<Pod, Error> {
        let written = self.pods.modify_status_from(pod, |current| {
            if current.uid() == pod.uid() && !current.is_deleting() {
                change(current);
            }
            Ok(())
        });
        written.await
    }
}

fn is_falsely_ready(pod: &Pod, node: &Node) -> bool {
    condition::status(node, "Ready") == Some("Unknown") && pod::is_ready(pod)
}

fn not_ready(pod: &mut Pod, now: jiff::Timestamp) {
    let conditions = pod.status.as_mut().and_then(|status| status.conditions.as_mut());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    if let Some(ready) = ready.filter(|ready| ready.status != "False") {
        ready.status = "False".to_owned();
        ready.last_transition_time = Some(Time(now));
    }
}
