//! Ports of the host that pods take.

use k8s_openapi::api::core::v1::PodSpec;

const ANY_ADDRESS: &str = "0.0.0.0";

/// A port of the host, as one pod takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    ip: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    /// The ports that a pod takes: those that it says, and in the host's network all of them.
    pub(crate) fn of_pod(spec: &PodSpec) -> Vec<Self> {
        let host_network = spec.host_network.unwrap_or(false);
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|init| init.restart_policy.as_deref() == Some("Always"));
        let ports =
            spec.containers.iter().chain(sidecars).flat_map(|each| each.ports.iter().flatten());
        let ports = ports.filter_map(|port| {
            let own = host_network.then_some(port.container_port);
            let number = port.host_port.filter(|number| *number > 0).or(own)?;
            let or = |value: &Option<String>, default: &str| {
                value.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned())
            };
            Some(Self {
                ip: or(&port.host_ip, ANY_ADDRESS),
                protocol: or(&port.protocol, "TCP"),
                port: number,
            })
        });
        ports.collect()
    }

    /// Whether not both can be had on one host.
    pub(crate) fn conflicts_with(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY_ADDRESS || other.ip == ANY_ADDRESS)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::needless_pass_by_value, reason = "tables of json!() read better")]

    use serde_json::{Value, json};

    use super::*;

    fn ports(spec: Value) -> Vec<HostPort> {
        HostPort::of_pod(&serde_json::from_value(spec).unwrap())
    }

    fn one(port: Value) -> HostPort {
        ports(json!({ "containers": [{ "name": "c", "ports": [port] }] })).remove(0)
    }

    #[test]
    fn which_ports_a_pod_takes() {
        let containers = json!([
            { "name": "a", "ports": [{ "containerPort": 80, "hostPort": 8080 }, { "containerPort": 81 }] },
            { "name": "b", "ports": [{ "containerPort": 53, "protocol": "UDP", "hostPort": 53 }] },
        ]);
        let numbers = |spec| ports(spec).into_iter().map(|port| port.port).collect::<Vec<_>>();
        assert_eq!(numbers(json!({ "containers": containers })), [8080, 53]);
        assert_eq!(
            numbers(json!({ "containers": containers, "hostNetwork": true })),
            [8080, 81, 53]
        );
        let init = |policy: Value| {
            json!([{
                "name": "i", "restartPolicy": policy, "ports": [{ "containerPort": 1, "hostPort": 1 }],
            }])
        };
        assert_eq!(
            numbers(json!({ "containers": [], "initContainers": init(json!("Always")) })),
            [1]
        );
        assert!(
            numbers(json!({ "containers": [], "initContainers": init(Value::Null) })).is_empty()
        );
    }

    #[test]
    fn which_ports_conflict() {
        let plain = json!({ "containerPort": 80, "hostPort": 80 });
        let udp = json!({ "containerPort": 80, "hostPort": 80, "protocol": "UDP" });
        let on = |ip: &str| json!({ "containerPort": 80, "hostPort": 80, "hostIP": ip });
        let rows = [
            (plain.clone(), plain.clone(), true),
            (plain.clone(), udp, false),
            (plain.clone(), json!({ "containerPort": 80, "hostPort": 81 }), false),
            (plain.clone(), on("127.0.0.1"), true),
            (on("127.0.0.1"), plain, true),
            (on("127.0.0.1"), on("127.0.0.1"), true),
            (on("127.0.0.1"), on("127.0.0.2"), false),
        ];
        for (a, b, expected) in rows {
            assert_eq!(one(a.clone()).conflicts_with(&one(b.clone())), expected, "{a} {b}");
        }
    }
}
