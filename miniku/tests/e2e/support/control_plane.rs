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
        let listen = format!("127.0.0.1:{}", free_port());
        let api_url = format!("http://{listen}");
        let apiserver = Process::start(
            scratch,
            "apiserver",
            MINIKU,
            ["apiserver", "--store", store_urls, "--listen", &listen],
        );
        let controllers =
            Process::start(scratch, "controllers", MINIKU, ["controllers", "--store", store_urls]);
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

async fn node_is_ready(api: &Http, node: &str) {
    wait_for(&format!("{node} is Ready"), async || {
        let answer = api.try_send(hyper::Method::GET, &format!("/nodes/{node}"), "").await?;
        holds(answer.body.contains(r#""status":"Ready""#), answer.body)
    })
    .await;
}
