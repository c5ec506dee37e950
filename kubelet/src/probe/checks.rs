//! Makes a probe once: a command, a connection, a gRPC call, or a request ([`http`](super::http)).

use std::time::Duration;

use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::http;
use super::settings::Check;
use crate::error::Chain;
use crate::runtime::{RunOutcome, Runtime};

/// What is kept of a command's output for the message: Kubernetes' number.
const OUTPUT_MAX_BYTES: usize = 10 << 10;

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Success,
    /// It failed, and why.
    Failure(String),
    /// It could not be made, which says nothing about the container.
    Unknown(String),
}

/// Makes a probe of a container, within its timeout.
pub(super) async fn make(
    check: &Check,
    timeout: Duration,
    runtime: &dyn Runtime,
    container: &str,
) -> Answer {
    let network = async {
        match check {
            Check::Exec { command } => return exec(command, timeout, runtime, container).await,
            Check::Http { url, headers } => http::get(url, headers).await,
            Check::Tcp { host, port } => match TcpStream::connect((host.as_str(), *port)).await {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("dial tcp {host}:{port}: {error}")),
            },
            Check::Grpc { host, port, service } => grpc(host, *port, service).await,
        }
        .map_or_else(Answer::Failure, |()| Answer::Success)
    };
    if let Check::Exec { .. } = check {
        // It keeps to its timeout by itself, and then needs a moment to kill the command.
        return network.await;
    }
    match tokio::time::timeout(timeout, network).await {
        Ok(answer) => answer,
        Err(_) => Answer::Failure(format!("{}: no answer within {timeout:?}", check.target())),
    }
}

impl Check {
    fn target(&self) -> String {
        match self {
            Self::Exec { command } => format!("{command:?}"),
            Self::Http { url, .. } => format!("Get {url:?}"),
            Self::Tcp { host, port } => format!("dial tcp {host}:{port}"),
            Self::Grpc { host, port, .. } => format!("grpc {host}:{port}"),
        }
    }
}

async fn exec(
    command: &[String],
    timeout: Duration,
    runtime: &dyn Runtime,
    container: &str,
) -> Answer {
    match runtime.run(container, command, timeout, OUTPUT_MAX_BYTES).await {
        Ok(RunOutcome::Exited { code: 0, .. }) => Answer::Success,
        Ok(RunOutcome::Exited { code, output }) => {
            let text = output.text();
            let text = text.trim();
            Answer::Failure(if text.is_empty() {
                format!("command {command:?} exited with {code}")
            } else {
                text.to_owned()
            })
        }
        Ok(RunOutcome::TimedOut { .. }) => {
            Answer::Failure(format!("command timed out: {command:?} timed out after {timeout:?}"))
        }
        Err(error) => Answer::Unknown(Chain(&error).to_string()),
    }
}

async fn grpc(host: &str, port: u16, service: &str) -> Result<(), String> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let endpoint =
        Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|e| e.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| {
        format!("failed to connect service \"{host}:{port}\": {}", Chain(&error))
    })?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let response = HealthClient::new(channel).check(request).await;
    let status = response.map_err(|error| format!("health rpc failed: {}", error.message()))?;
    match status.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("service unhealthy (responded with {:?})", other.as_str_name())),
    }
}
