//! Logs and commands of pods: the way to the kubelet whose pod it is.
//!
//! The pod tells its node, the node tells where its kubelet serves (see [`api::streaming`]); what the
//! kubelet answers is handed on as it comes. Each request has a connection of its own to the kubelet,
//! which ends with the request, so that a client which goes away ends what it asked for.
//!
//! [`Target`] is the core, for every face of this server: [`Target::log`] is a stream of bytes and
//! [`Target::exec`] a WebSocket that speaks Kubernetes' `v5.channel.k8s.io`. [`log`] and [`exec`] are
//! the flat API's handlers.

pub(crate) mod exec;
pub(crate) mod log;

use std::net::SocketAddr;
use std::time::Duration;

use api::streaming::{ExecOptions, LogOptions, exec_path, kubelet_address, logs_path};
use api::{Object, ObjectKey, streaming::channels};
use axum::http::header::{HOST, SEC_WEBSOCKET_PROTOCOL};
use axum::http::{HeaderValue, Request, StatusCode};
use bytes::Bytes;
use futures::stream::{self, Stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, http};

use crate::App;
use crate::problem::Problem;

/// How long a kubelet has to take a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long it has to begin its answer; it asks its engine first.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// What is read of an answer that says why not.
const REASON_MAX_BYTES: usize = 4096;
/// The largest message between a command and its client.
const MESSAGE_MAX_BYTES: usize = 1 << 20;

/// A WebSocket to a kubelet.
pub(crate) type KubeletSocket = WebSocketStream<TcpStream>;

/// A container, and where its kubelet is.
#[derive(Debug)]
pub(crate) struct Target {
    node: String,
    address: SocketAddr,
    pod: ObjectKey,
    container: String,
}

impl Target {
    /// Finds a container of a pod; the pod's only one where no name is given.
    pub(crate) async fn find(
        app: &App,
        pod: &ObjectKey,
        container: Option<&str>,
    ) -> Result<Self, Problem> {
        app.within(async {
            let found = app.store.api::<Pod>().get(pod).await?;
            let container = choose(&found, container)?;
            let spec = found.spec.as_ref();
            let node = spec.and_then(|spec| spec.node_name.clone());
            let node = node.filter(|node| !node.is_empty()).ok_or_else(|| {
                Problem::not_now(format!(
                    "pod {:?} has no node yet, so nothing of it runs",
                    &*pod.name
                ))
            })?;
            let Some(object) = app.store.api::<Node>().find(&ObjectKey::cluster(&node)).await?
            else {
                return Err(Problem::node_unreachable(&node, "there is no such node any more"));
            };
            let address = kubelet_address(&object).ok_or_else(|| {
                Problem::node_unreachable(&node, "it does not tell where its kubelet serves")
            })?;
            Ok(Self { node, address, pod: found.key(), container })
        })
        .await
    }

    /// The container's log, as text.
    pub(crate) async fn log(
        &self,
        options: &LogOptions,
    ) -> Result<impl Stream<Item = Result<Bytes, hyper::Error>> + Send + use<>, Problem> {
        let path = logs_path(&self.pod.namespace, &self.pod.name, &self.container);
        let target = format!("{path}?{}", options.to_query());
        let answer = timeout(ANSWER_DEADLINE, self.get(&target)).await;
        let (body, connection) = answer.unwrap_or_else(|_| Err(self.silent()))?;
        Ok(stream::unfold((body, connection), async |(mut body, connection)| {
            loop {
                match body.frame().await? {
                    Ok(frame) => {
                        // Trailers are of no interest.
                        if let Ok(data) = frame.into_data() {
                            return Some((Ok(data), (body, connection)));
                        }
                    }
                    Err(error) => return Some((Err(error), (body, connection))),
                }
            }
        }))
    }

    /// Asks the kubelet. The answer comes with the task that runs its connection.
    async fn get(&self, target: &str) -> Result<(Incoming, JoinSet<()>), Problem> {
        let io = TokioIo::new(self.connect().await?);
        let broken = |error: hyper::Error| self.unreachable(&error);
        let (mut sender, connection) = http1::handshake(io).await.map_err(broken)?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a kubelet broke");
            }
        });
        let request = Request::get(target)
            .header(HOST, self.address.to_string())
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.unreachable(&error))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let body = answer.into_body();
        if status == StatusCode::OK {
            return Ok((body, driver));
        }
        let reason = Limited::new(body, REASON_MAX_BYTES).collect().await;
        let reason = reason.map(|reason| reason.to_bytes()).unwrap_or_default();
        Err(self.refused(status, &reason))
    }

    /// A command in the container. What is spoken over the socket is told in
    /// [`api::streaming::channels`].
    pub(crate) async fn exec(&self, options: &ExecOptions) -> Result<KubeletSocket, Problem> {
        let path = exec_path(&self.pod.namespace, &self.pod.name, &self.container);
        let url = format!("ws://{}{path}?{}", self.address, options.to_query());
        let mut request = url.into_client_request().map_err(|error| self.unreachable(&error))?;
        let protocol = HeaderValue::from_static(channels::PROTOCOL);
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX_BYTES));
        let stream = self.connect().await?;
        let upgrade = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
        match timeout(ANSWER_DEADLINE, upgrade).await {
            Ok(Ok((socket, _))) => Ok(socket),
            Ok(Err(tungstenite::Error::Http(answer))) => {
                let (head, body): (http::response::Parts, _) = answer.into_parts();
                Err(self.refused(head.status, &body.unwrap_or_default()))
            }
            Ok(Err(error)) => Err(self.unreachable(&error)),
            Err(_) => Err(self.silent()),
        }
    }

    async fn connect(&self) -> Result<TcpStream, Problem> {
        let stream = timeout(CONNECT_DEADLINE, TcpStream::connect(self.address)).await;
        let stream = stream
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|error| self.unreachable(&error))?;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        Ok(stream)
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> Problem {
        let address = self.address;
        let why = format!("its kubelet does not answer at {address}: {error}");
        Problem::node_unreachable(&self.node, &why)
    }

    fn silent(&self) -> Problem {
        let why = format!("its kubelet did not answer within {ANSWER_DEADLINE:?}");
        Problem::node_unreachable(&self.node, &why)
    }

    /// The kubelet knows why not.
    fn refused(&self, status: StatusCode, reason: &[u8]) -> Problem {
        let reason = String::from_utf8_lossy(reason).trim().to_owned();
        let reason = if reason.is_empty() { status.to_string() } else { reason };
        tracing::debug!(node = self.node, pod = %self.pod, %status, reason, "a kubelet refused");
        Problem::of_kubelet(status, &self.node, reason)
    }
}

/// The container that is meant, by its name or because there is no other.
fn choose(pod: &Pod, wanted: Option<&str>) -> Result<String, Problem> {
    let spec = pod.spec.as_ref();
    let main = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let names: Vec<&str> = main.iter().chain(init).map(|container| &*container.name).collect();
    match wanted {
        Some(wanted) if names.contains(&wanted) => Ok(wanted.to_owned()),
        Some(wanted) => Err(Problem::invalid(
            "container",
            format!("{wanted:?} is none of this pod's containers; there are {}", names.join(", ")),
        )),
        None if main.len() == 1 => Ok(main[0].name.clone()),
        None => Err(Problem::invalid(
            "container",
            format!("this pod has several; name one of {}", names.join(", ")),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_is_named_or_the_only_one() {
        let pod = |main: &[&str], init: &[&str]| -> Pod {
            let containers =
                |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
            let spec = json!({"containers": containers(main), "initContainers": containers(init)});
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
        };
        let (lone, several) = (pod(&["main"], &["setup"]), pod(&["a", "b"], &[]));
        assert_eq!(choose(&lone, None).unwrap(), "main");
        assert_eq!(choose(&lone, Some("setup")).unwrap(), "setup");
        assert_eq!(choose(&several, Some("b")).unwrap(), "b");
        let problem = choose(&several, None).unwrap_err();
        assert_eq!((problem.status.as_u16(), &*problem.body.field), (400, "container"));
        assert!(problem.body.reason.contains("a, b"), "{:?}", problem.body);
        assert!(choose(&lone, Some("x")).unwrap_err().body.reason.contains("main, setup"));
    }
}
