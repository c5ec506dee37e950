//! The flat API's objects, as far as tests look at them.

use serde_json::{Value, json};

use super::http::Http;
use super::wait::{holds, wait_for};

/// A pod of `/pods`.
#[derive(Clone, Debug)]
pub(crate) struct FlatPod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) status: String,
    pub(crate) container_id: String,
    pub(crate) message: String,
    pub(crate) retry_count: u64,
    pub(crate) next_retry_at: String,
}

impl FlatPod {
    fn from_json(pod: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            name: text(&pod["spec"]["name"]),
            node: text(&pod["spec"]["node_name"]),
            status: text(&pod["status"]),
            container_id: text(&pod["containerId"]),
            message: text(&pod["message"]),
            retry_count: pod["retry_count"].as_u64().expect("a retry_count"),
            next_retry_at: text(&pod["next_retry_at"]),
        }
    }
}

/// The body of a ReplicaSet that is named as the label of its pods.
pub(crate) fn replicaset(name: &str, count: usize, image: &str) -> String {
    let set = json!({
        "name": name,
        "desiredCount": count,
        "selector": {"app": name},
        "template": {"image": image},
    });
    set.to_string()
}

/// The pods whose names begin so, in the order of their names.
pub(crate) async fn pods(api: &Http, prefix: &str) -> Result<Vec<FlatPod>, String> {
    let answer = api.try_send(hyper::Method::GET, "/pods", "").await?;
    holds(answer.status == 200, &answer.body)?;
    let pods = answer.json();
    let mut pods: Vec<FlatPod> =
        pods.as_array().expect("a list").iter().map(FlatPod::from_json).collect();
    pods.retain(|pod| pod.name.starts_with(prefix));
    pods.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(pods)
}

/// The one pod of this name.
pub(crate) async fn pod(api: &Http, name: &str) -> Result<FlatPod, String> {
    let answer = api.try_send(hyper::Method::GET, &format!("/pods/{name}"), "").await?;
    holds(answer.status == 200, &answer.body)?;
    Ok(FlatPod::from_json(&answer.json()))
}

/// Waits until just so many pods with such names exist and all are Running.
pub(crate) async fn pods_run(api: &Http, prefix: &str, count: usize) -> Vec<FlatPod> {
    wait_for(&format!("{count} pods {prefix}… run"), async || {
        let pods = pods(api, prefix).await?;
        let running = pods.iter().filter(|pod| pod.status == "Running").count();
        holds(pods.len() == count && running == count, format!("{pods:#?}"))?;
        Ok::<_, String>(pods)
    })
    .await
}

/// Waits until no pod has such a name.
pub(crate) async fn pods_are_gone(api: &Http, prefix: &str) {
    pods_run(api, prefix, 0).await;
}

/// How many of the pods each of the nodes has.
pub(crate) fn spread(pods: &[FlatPod], nodes: &[&str]) -> Vec<usize> {
    nodes.iter().map(|node| pods.iter().filter(|pod| pod.node == *node).count()).collect()
}
