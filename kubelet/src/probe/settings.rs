//! What a container's probe asks for, with Kubernetes' defaults filled in.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Kubernetes' defaults.
const DEFAULT_PERIOD_SECONDS: u32 = 10;
const DEFAULT_TIMEOUT_SECONDS: u32 = 1;
const DEFAULT_FAILURE_THRESHOLD: u32 = 3;
const DEFAULT_SUCCESS_THRESHOLD: u32 = 1;

/// Which question a probe answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Has the container come up? Until it has, the other two are not asked.
    Startup,
    /// Is it alive, or to be started again?
    Liveness,
    /// Can it serve?
    Readiness,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// As it begins a message.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// That probe of a container.
    pub(super) fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// When a probe is made, and how many of its answers are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) initial_delay: Duration,
    pub(super) period: Duration,
    pub(super) timeout: Duration,
    pub(super) success_threshold: u32,
    pub(super) failure_threshold: u32,
    /// What the container gets to stop in when this probe ends it, if not what its pod says.
    pub(super) grace_seconds: Option<u32>,
}

impl Settings {
    pub(super) fn of(probe: &Probe) -> Self {
        let positive = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(positive(value, default).into());
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, DEFAULT_PERIOD_SECONDS),
            timeout: seconds(probe.timeout_seconds, DEFAULT_TIMEOUT_SECONDS),
            success_threshold: positive(probe.success_threshold, DEFAULT_SUCCESS_THRESHOLD),
            failure_threshold: positive(probe.failure_threshold, DEFAULT_FAILURE_THRESHOLD),
            grace_seconds: probe
                .termination_grace_period_seconds
                .and_then(|seconds| u32::try_from(seconds).ok()),
        }
    }

    /// How long after `running_for` of a container's life its first probe is made. A container that
    /// was taken over from an earlier kubelet waits for a part of the period, 0 to 1, so that not
    /// all are probed at once.
    pub(super) fn first_after(&self, running_for: Duration, taken_over: Option<f64>) -> Duration {
        let delay = self.initial_delay.saturating_sub(running_for);
        delay + taken_over.map_or(Duration::ZERO, |part| self.period.mul_f64(part.clamp(0.0, 1.0)))
    }
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// A command in the container, which has to exit with 0.
    Exec { command: Vec<String> },
    /// A request that has to be answered with 200 to 399.
    Http { url: String, headers: Vec<(String, String)> },
    /// A connection.
    Tcp { host: String, port: u16 },
    /// gRPC's own health service, asked about a service.
    Grpc { host: String, port: u16, service: String },
}

impl Check {
    /// What the probe of a container in the pod of that address does.
    ///
    /// # Errors
    /// What cannot be made of it, by the field's name.
    pub(super) fn of(probe: &Probe, container: &Container, pod_ip: &str) -> Result<Self, String> {
        if let Some(exec) = &probe.exec {
            return Ok(Self::Exec { command: exec.command.clone().unwrap_or_default() });
        }
        if let Some(http) = &probe.http_get {
            let port = port(&http.port, container).map_err(|why| format!("httpGet.{why}"))?;
            let headers = http.http_headers.iter().flatten();
            return Ok(Self::Http {
                url: url(http, pod_ip, port),
                headers: headers
                    .map(|header| (header.name.clone(), header.value.clone()))
                    .collect(),
            });
        }
        if let Some(tcp) = &probe.tcp_socket {
            let port = port(&tcp.port, container).map_err(|why| format!("tcpSocket.{why}"))?;
            return Ok(Self::Tcp { host: host(tcp.host.as_ref(), pod_ip), port });
        }
        if let Some(grpc) = &probe.grpc {
            let port = number(grpc.port).map_err(|why| format!("grpc.{why}"))?;
            let service = grpc.service.clone().unwrap_or_default();
            return Ok(Self::Grpc { host: pod_ip.to_owned(), port, service });
        }
        Err("it has none of exec, httpGet, tcpSocket and grpc".to_owned())
    }
}

fn host(wanted: Option<&String>, pod_ip: &str) -> String {
    wanted.filter(|host| !host.is_empty()).map_or(pod_ip, String::as_str).to_owned()
}

fn url(http: &HTTPGetAction, pod_ip: &str, port: u16) -> String {
    let scheme = http.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
    let host = host(http.host.as_ref(), pod_ip);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let path = http.path.as_deref().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{host}:{port}{slash}{path}")
}

/// A port by its number, or by its name among the container's.
fn port(wanted: &IntOrString, container: &Container) -> Result<u16, String> {
    match wanted {
        IntOrString::Int(port) => number(*port),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            match ports.find(|port| port.name.as_ref() == Some(name)) {
                Some(port) => number(port.container_port),
                None => match name.parse() {
                    Ok(port) => number(port),
                    Err(_) => Err(format!("port: the container has no port named {name:?}")),
                },
            }
        }
    }
}

fn number(port: i32) -> Result<u16, String> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("port: must be 1 to 65535, not {port}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn probe(value: Value) -> Probe {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn defaults_are_kubernetes_own() {
        let seconds = Duration::from_secs;
        let settings = Settings::of(&probe(json!({})));
        assert_eq!((settings.period, settings.timeout), (seconds(10), seconds(1)));
        assert_eq!((settings.success_threshold, settings.failure_threshold), (1, 3));
        assert_eq!((settings.initial_delay, settings.grace_seconds), (Duration::ZERO, None));
        let settings = Settings::of(&probe(json!({
            "initialDelaySeconds": 7, "periodSeconds": 2, "timeoutSeconds": 0,
            "successThreshold": 4, "failureThreshold": 5, "terminationGracePeriodSeconds": 6,
        })));
        assert_eq!((settings.period, settings.timeout), (seconds(2), seconds(1)));
        assert_eq!((settings.success_threshold, settings.failure_threshold), (4, 5));
        assert_eq!((settings.initial_delay, settings.grace_seconds), (seconds(7), Some(6)));
    }

    #[test]
    fn the_first_probe_waits_for_the_containers_delay_and_a_taken_over_one_for_its_turn() {
        let seconds = Duration::from_secs;
        let settings = Settings::of(&probe(json!({"initialDelaySeconds": 7})));
        for (running_for, taken_over, first) in
            [(0, None, 7), (3, None, 4), (9, None, 0), (9, Some(0.5), 5), (3, Some(1.0), 14)]
        {
            assert_eq!(settings.first_after(seconds(running_for), taken_over), seconds(first));
        }
    }

    #[test]
    fn checks_are_addressed() {
        let container: Container = serde_json::from_value(json!({
            "name": "main", "ports": [{"name": "web", "containerPort": 8080}],
        }))
        .unwrap();
        let http = |url: &str| Check::Http { url: url.into(), headers: vec![] };
        let tcp = |host: &str, port| Check::Tcp { host: host.into(), port };
        let table = [
            (json!({"httpGet": {"port": 80}}), "10.0.0.1", Ok(http("http://10.0.0.1:80/"))),
            (
                json!({"httpGet": {"port": "web", "path": "healthz?full=1", "scheme": "HTTPS"}}),
                "10.0.0.1",
                Ok(http("https://10.0.0.1:8080/healthz?full=1")),
            ),
            (
                json!({"httpGet": {"port": "81", "path": "/", "host": "other.example"}}),
                "10.0.0.1",
                Ok(http("http://other.example:81/")),
            ),
            (json!({"httpGet": {"port": 80}}), "fd00::1", Ok(http("http://[fd00::1]:80/"))),
            (json!({"tcpSocket": {"port": "web"}}), "10.0.0.1", Ok(tcp("10.0.0.1", 8080))),
            (json!({"tcpSocket": {"port": 1, "host": "h"}}), "10.0.0.1", Ok(tcp("h", 1))),
            (
                json!({"grpc": {"port": 50051, "service": "s"}}),
                "10.0.0.1",
                Ok(Check::Grpc { host: "10.0.0.1".into(), port: 50051, service: "s".into() }),
            ),
            (
                json!({"exec": {"command": ["true"]}}),
                "",
                Ok(Check::Exec { command: vec!["true".into()] }),
            ),
            (
                json!({"tcpSocket": {"port": "nope"}}),
                "",
                Err("tcpSocket.port: the container has no port named \"nope\""),
            ),
            (
                json!({"httpGet": {"port": 70000}}),
                "",
                Err("httpGet.port: must be 1 to 65535, not 70000"),
            ),
            (json!({}), "", Err("it has none of exec, httpGet, tcpSocket and grpc")),
        ];
        for (value, ip, expected) in table {
            let check = Check::of(&probe(value.clone()), &container, ip);
            assert_eq!(check, expected.map_err(str::to_owned), "{value}");
        }
        let check = Check::of(
            &probe(json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "A", "value": "b"}]}})),
            &container,
            "h",
        );
        let headers = vec![("A".to_owned(), "b".to_owned())];
        assert_eq!(check, Ok(Check::Http { url: "http://h:80/".into(), headers }));
    }
}
