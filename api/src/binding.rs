//! The bind: a pod gets its node.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::lifecycle::Step;
use crate::{Api, Error, Object};

impl Api<Pod> {
    /// Binds a pod to a node, in one transaction: sets `spec.nodeName` and the condition
    /// `PodScheduled`, and puts the pod under the node's prefix, where its kubelet sees it. The pod
    /// may come from a cache: if others changed it since, the bind is tried on what it is now.
    /// Binding it to the node that it is bound to already does nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the pod is gone; [`Error::Conflict`] when there is another pod of
    /// that name, it is being deleted or bound to another node.
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
    Ok(Step::Write(after))
}
