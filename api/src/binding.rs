//! The bind: a pod gets its node.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::lifecycle::{self, Step};
use crate::{Api, Error, Object};

impl Api<Pod> {
    /// Binds a pod to a node, in one transaction: sets `spec.nodeName` and the condition
    /// `PodScheduled`, and puts the pod under the node's prefix, where its kubelet sees it. The pod
    /// may come from a cache: if others changed it since, the bind is tried on what it is now.
    /// Binding it to the node that it is bound to already does nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the pod is gone; [`Error::Conflict`] when there is another pod of
    /// that name, it is being deleted or bound to another node; [`Error::Invalid`] when no node can
    /// have that name.
    pub async fn bind(&self, pod: &Pod, node: &str) -> Result<Pod, Error> {
        let uid = pod.uid().to_owned();
        let now = self.clock().now();
        let bound = self.step_until_done(pod.clone(), |before| plan_bind(before, &uid, node, now));
        Ok(bound.await?.into_object())
    }
}

fn plan_bind(
    before: &Pod,
    uid: &str,
    node: &str,
    now: jiff::Timestamp,
) -> Result<Step<Pod>, Error> {
    let conflict = |reason: String| {
        Err(Error::Conflict { kind: Pod::kind().plural, key: before.key(), reason })
    };
    if before.uid() != uid {
        return conflict(format!("its uid is {}, not {uid}", before.uid()));
    }
    match before.node_name() {
        Some(bound) if bound == node => return Ok(Step::Keep),
        Some(other) => return conflict(format!("it is bound to node {other}")),
        None => {}
    }
    if before.is_deleting() {
        return conflict("it is being deleted".to_owned());
    }
    let mut after = before.clone();
    after.spec.get_or_insert_default().node_name = Some(node.to_owned());
    let conditions = after.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "PodScheduled");
    conditions.push(PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "True".to_owned(),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    });
    lifecycle::validate(&after, Some(before))?;
    Ok(Step::Write(after))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn which_pods_can_be_bound() {
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        let pod = |change: fn(&mut Value)| {
            let mut pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": "web", "namespace": "default", "uid": "u" },
                "spec": { "containers": [{ "name": "main", "image": "nginx" }] },
                "status": { "conditions": [{ "type": "PodScheduled", "status": "False" }] },
            });
            change(&mut pod);
            serde_json::from_value::<Pod>(pod).unwrap()
        };
        let free = pod(|_| ());
        let Step::Write(bound) = plan_bind(&free, "u", "node-1", now).unwrap() else {
            panic!("not bound")
        };
        assert_eq!(bound.node_name(), Some("node-1"));
        let conditions = bound.status.as_ref().unwrap().conditions.as_ref().unwrap();
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].status, "True");
        assert_eq!(plan_bind(&bound, "u", "node-1", now).unwrap(), Step::Keep);

        let deleting =
            pod(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z"));
        for (pod, uid, node) in
            [(&bound, "u", "node-2"), (&free, "other", "node-1"), (&deleting, "u", "node-1")]
        {
            let error = plan_bind(pod, uid, node, now).unwrap_err();
            assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
        }
        let error = plan_bind(&free, "u", "no/de", now).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    }
}
