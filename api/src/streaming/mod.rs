//! Logs and commands: what an API server asks the kubelet whose pod it is.
//!
//! A kubelet serves HTTP as Kubernetes' kubelet does, at the address that its Node tells
//! ([`kubelet_address`]):
//!
//! | request | what it does |
//! | --- | --- |
//! | `GET /containerLogs/{namespace}/{pod}/{container}` | reads a log, see [`LogOptions`] |
//! | `GET /exec/{namespace}/{pod}/{container}` | a WebSocket to a command, see [`ExecOptions`] and [`channels`] |
//!
//! An error is a status and a line of text.
//!
//! ```
//! use api::streaming::{LogOptions, logs_path};
//!
//! let options = LogOptions { follow: true, tail_lines: Some(10), ..LogOptions::default() };
//! assert_eq!(
//!     format!("{}?{}", logs_path("default", "web-1", "main"), options.to_query()),
//!     "/containerLogs/default/web-1/main?follow=true&tailLines=10"
//! );
//! ```

pub mod channels;
mod options;

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Node;

pub use options::{ExecOptions, LogOptions, Since};

/// The type of a node's address at which its kubelet is reached, where that is not the node's own.
/// Kubernetes has no such type: its kubelets listen on all addresses of their node.
pub const KUBELET_IP: &str = "KubeletIP";

/// Where the node's kubelet serves requests, as far as the node tells.
///
/// The address is the one of type [`KUBELET_IP`], otherwise the node's internal one; the port is
/// `status.daemonEndpoints.kubeletEndpoint.Port`.
pub fn kubelet_address(node: &Node) -> Option<SocketAddr> {
    let status = node.status.as_ref()?;
    let port = status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?.port;
    let addresses = status.addresses.as_deref().unwrap_or_default();
    let of_type = |type_: &str| {
        let mut found = addresses.iter().filter(|address| address.type_ == type_);
        found.next()?.address.parse::<IpAddr>().ok()
    };
    let ip = of_type(KUBELET_IP).or_else(|| of_type("InternalIP"))?;
    Some(SocketAddr::new(ip, u16::try_from(port).ok().filter(|port| *port > 0)?))
}

/// The path of a container's log on its kubelet. The names are those of objects, so that nothing in
/// them needs escaping.
pub fn logs_path(namespace: &str, pod: &str, container: &str) -> String {
    format!("/containerLogs/{namespace}/{pod}/{container}")
}

/// The path for commands in a container on its kubelet.
pub fn exec_path(namespace: &str, pod: &str, container: &str) -> String {
    format!("/exec/{namespace}/{pod}/{container}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn address(addresses: &[(&str, &str)], port: &Value) -> Option<String> {
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|(type_, address)| json!({"type": type_, "address": address}))
            .collect();
        let node = json!({
            "metadata": {"name": "node-1"},
            "status": {
                "addresses": addresses,
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            },
        });
        kubelet_address(&serde_json::from_value(node).unwrap()).map(|address| address.to_string())
    }

    #[test]
    fn a_node_tells_where_its_kubelet_is() {
        let own = [("InternalIP", "10.0.0.7"), ("Hostname", "node-1")];
        assert_eq!(address(&own, &json!(10250)).as_deref(), Some("10.0.0.7:10250"));
        let loopback = [own[0], (KUBELET_IP, "127.0.0.1")];
        assert_eq!(address(&loopback, &json!(4711)).as_deref(), Some("127.0.0.1:4711"));
        assert_eq!(address(&own, &json!(0)), None, "it serves nothing");
        assert_eq!(address(&own[1..], &json!(10250)), None, "it has no address");
        let bare = json!({"metadata": {"name": "node-1"}});
        assert_eq!(kubelet_address(&serde_json::from_value(bare).unwrap()), None);
    }
}
