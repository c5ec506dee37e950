//! The flat form of a node. Nodes come from their kubelets, so clients read and delete them only.

use k8s_openapi::api::core::v1::Node;
use serde::Serialize;

use super::Flat;
use super::pod::NO_TIME;

/// Nodes under `/nodes`.
pub(crate) struct Nodes;

/// What a client reads; the order of the fields is part of it.
#[derive(Debug, Serialize)]
pub(crate) struct Form {
    name: String,
    status: Status,
    /// The last heartbeat.
    time: String,
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
                .map_or_else(|| NO_TIME.to_owned(), |time| time.0.to_string()),
        }
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
