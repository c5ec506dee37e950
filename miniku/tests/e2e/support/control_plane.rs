//! The control plane as separate processes on some store.

use super::http::Http;
use super::ports::free_port;
use super::processes::{MINIKU, Process};
use super::scratch::Scratch;
use super::wait::{holds, wait_for};

/// An apiserver, controllers, and a kubelet for each node.
pub(crate) struct ControlPlane {
    pub(crate) apiserver: Process,
    pub(crate) controllers: Process,
    pub(crate) kubelets: Vec<Process>,
    /// A client of the apiserver.
    pub(crate) api: Http,
    pub(crate) api_url: String,
}

impl ControlPlane {
    /// Starts all and waits until the nodes are Ready.
    pub(crate) async fn start(
        scratch: &Scratch,
        store_urls: &str,
        runtime: &str,
        nodes: &[&str],
    ) -> Self {
        Self::start_with(scratch, store_urls, runtime, nodes, &[]).await
    }

    /// Starts all with more flags for the controllers, and waits until the nodes are Ready.
    pub(crate) async fn start_with(
        scratch: &Scratch,
        store_urls: &str,
        runtime: &str,
        nodes: &[&str],
        flags: &[&str],
    ) -> Self {
        let (apiserver, api_url) = start_apiserver(scratch, "apiserver", store_urls);
        let controllers = start_controllers(scratch, "controllers", store_urls, flags);
        let kubelet = |node: &&str| {
            let flags =
                ["kubelet", "--store", store_urls, "--node-name", node, "--runtime", runtime];
            Process::start(scratch, &format!("kubelet-{node}"), MINIKU, flags)
        };
        let kubelets = nodes.iter().map(kubelet).collect();
        let control_plane =
            Self { apiserver, controllers, kubelets, api: Http::new(&api_url), api_url };
        for node in nodes {
            node_is_ready(&control_plane.api, node).await;
        }
        control_plane
    }
}

/// Starts an apiserver, and says where it is.
pub(crate) fn start_apiserver(
    scratch: &Scratch,
    name: &str,
    store_urls: &str,
) -> (Process, String) {
    let listen = format!("127.0.0.1:{}", free_port());
    let flags = ["apiserver", "--store", store_urls, "--listen", &listen];
    (Process::start(scratch, name, MINIKU, flags), format!("http://{listen}"))
}

/// Starts a copy of the controllers.
pub(crate) fn start_controllers(
    scratch: &Scratch,
    name: &str,
    store_urls: &str,
    flags: &[&str],
) -> Process {
    let line = ["controllers", "--store", store_urls];
    Process::start(scratch, name, MINIKU, line.iter().chain(flags))
}

/// `miniku up`: everything in one process, with node-1 and node-2.
pub(crate) struct Up {
    pub(crate) process: Process,
    pub(crate) api: Http,
    pub(crate) api_url: String,
}

impl Up {
    /// Starts it and waits until both nodes are Ready.
    pub(crate) async fn start(scratch: &Scratch, runtime: &str) -> Self {
        let listen = format!("127.0.0.1:{}", free_port());
        let [client, peer] =
            [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
        let data_dir = scratch.path("data");
        let data_dir = data_dir.to_str().expect("a temporary path is UTF-8");
        let flags = ["up", "--data-dir", data_dir, "--listen", &listen, "--runtime", runtime];
        let store = ["--listen-client-urls", &client, "--listen-peer-urls", &peer];
        let process = Process::start(scratch, "up", MINIKU, flags.into_iter().chain(store));
        let api_url = format!("http://{listen}");
        let up = Self { process, api: Http::new(&api_url), api_url };
        up.is_ready().await;
        up
    }

    pub(crate) async fn is_ready(&self) {
        node_is_ready(&self.api, "node-1").await;
        node_is_ready(&self.api, "node-2").await;
    }
}

/// Waits until a node says that it takes pods.
pub(crate) async fn node_is_ready(api: &Http, node: &str) {
    wait_for(&format!("{node} is Ready"), async || {
        let answer = api.try_send(hyper::Method::GET, &format!("/nodes/{node}"), "").await?;
        holds(answer.body.contains(r#""status":"Ready""#), answer.body)
    })
    .await;
}
