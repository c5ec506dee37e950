//! The flat form of a node. Nodes come from their kubelets, so clients read and delete them only.
//!
//! A node's heartbeat is the renewal of its Lease; the node object itself is written rarely. So a
//! node that is read shows when its Lease was renewed last, and heartbeats are no lines in a watch.

use std::collections::HashMap;

use api::{Error, Object, ObjectKey, Scope, Store};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::Flat;
use super::pod::{NO_TIME, whole_seconds};

/// Nodes under `/nodes`.
pub(crate) struct Nodes;

/// The namespace of the nodes' Leases, as in Kubernetes.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// What a client reads; the order of the fields is part of it.
#[derive(Debug, Serialize)]
pub(crate) struct Form {
    name: String,
    status: Status,
    /// The last heartbeat.
    #[serde(serialize_with = "or_never")]
    time: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
enum Status {
    Ready,
    NotReady,
}

impl Flat for Nodes {
    type Object = Node;
    type Form = Form;

    fn form(object: &Node) -> Form {
        let conditions = object.status.as_ref().and_then(|status| status.conditions.as_deref());
        let ready =
            conditions.unwrap_or_default().iter().find(|condition| condition.type_ == "Ready");
        Form {
            name: object.metadata.name.clone().unwrap_or_default(),
            status: match ready {
                Some(condition) if condition.status == "True" => Status::Ready,
                _ => Status::NotReady,
            },
            time: ready
                .and_then(|condition| condition.last_heartbeat_time.as_ref())
                .map(|time| time.0),
        }
    }

    async fn complete(store: &Store, forms: &mut [Form]) -> Result<(), Error> {
        let leases = store.api::<Lease>();
        let renewed = |lease: &Lease| Some(lease.spec.as_ref()?.renew_time.as_ref()?.0);
        let renewals: HashMap<String, Timestamp> = match forms {
            [form] => {
                let key = ObjectKey::namespaced(LEASE_NAMESPACE, &form.name);
                let lease = leases.find(&key).await?;
                lease
                    .as_ref()
                    .and_then(renewed)
                    .map(|time| (form.name.clone(), time))
                    .into_iter()
                    .collect()
            }
            _ => {
                let all = leases.list(&Scope::Namespace(LEASE_NAMESPACE.to_owned())).await?.items;
                all.iter()
                    .filter_map(|lease| Some((lease.name().to_owned(), renewed(lease)?)))
                    .collect()
            }
        };
        for form in forms {
            form.time = form.time.max(renewals.get(&form.name).copied());
        }
        Ok(())
    }
}

/// A time in whole seconds, as everywhere in the flat forms.
fn or_never<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.serialize_str(&whole_seconds(*time)),
        None => serializer.serialize_str(NO_TIME),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_what_its_condition_says() {
        for (conditions, expected) in [
            (
                serde_json::json!([{"type":"Ready","status":"True","lastHeartbeatTime":"2026-01-02T03:04:05Z"}]),
                r#"{"name":"node-1","status":"Ready","time":"2026-01-02T03:04:05Z"}"#,
            ),
            (
                serde_json::json!([
                    {"type":"DiskPressure","status":"True"},
                    {"type":"Ready","status":"Unknown","lastHeartbeatTime":"2026-01-02T03:04:05Z"},
                ]),
                r#"{"name":"node-1","status":"NotReady","time":"2026-01-02T03:04:05Z"}"#,
            ),
            (
                serde_json::json!([]),
                r#"{"name":"node-1","status":"NotReady","time":"0001-01-01T00:00:00Z"}"#,
            ),
        ] {
            let node = serde_json::from_value(serde_json::json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": "node-1"},
                "status": {"conditions": conditions},
            }))
            .unwrap();
            assert_eq!(serde_json::to_string(&Nodes::form(&node)).unwrap(), expected);
        }
        assert_eq!(
            serde_json::to_string(&Nodes::form(&Node::default())).unwrap(),
            r#"{"name":"","status":"NotReady","time":"0001-01-01T00:00:00Z"}"#
        );
    }
}
