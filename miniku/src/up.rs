//! `miniku up`: everything in one process.
//!
//! The parts are those of the other commands and talk to each other as those do, over the store's
//! client port; only that they share a process and start in order.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser as _;
use kubelet::RuntimeKind;

use crate::cli;
use crate::parts::Parts;

/// The member's name, and the address it is known by in its cluster of one. It is the member's
/// identity, so it stays the same whatever port it listens on.
const MEMBER: &str = "n1";
const INITIAL_CLUSTER: &str = "n1=http://127.0.0.1:2380";

/// Flags of `miniku up`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Where the data is kept, and found again
    #[arg(long, default_value = "miniku-data", value_name = "DIR")]
    data_dir: PathBuf,

    /// Where the API listens
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,

    /// Where the store listens for clients (etcdctl, curl)
    #[arg(long, default_value = "http://127.0.0.1:2379", value_name = "URL")]
    listen_client_urls: String,

    /// Where the store listens for other members
    #[arg(long, default_value = "http://127.0.0.1:2380", value_name = "URL")]
    listen_peer_urls: String,

    /// How long the store keeps old versions of objects; 0: for ever
    #[arg(long, default_value = "5m", value_name = "TIME")]
    auto_compaction_retention: String,

    /// How many nodes there are: node-1, node-2, …
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=100))]
    nodes: u16,

    /// What runs the containers [default: docker, or fake when there is no Docker Engine]
    #[arg(long, value_enum)]
    runtime: Option<RuntimeKind>,
}

/// What is running, as far as the banner tells it.
struct Up<'a> {
    api: SocketAddr,
    store: SocketAddr,
    data_dir: &'a Path,
    nodes: u16,
    runtime: RuntimeKind,
    /// Why the fake runtime was taken though nobody asked for it.
    no_engine: Option<String>,
}

/// Starts everything and says how to talk to it.
pub(crate) async fn start(args: Args, parts: &mut Parts) -> anyhow::Result<()> {
    let member = store::start(store::Config {
        name: MEMBER.to_owned(),
        data_dir: args.data_dir.join("store"),
        listen_client_urls: args.listen_client_urls,
        listen_peer_urls: args.listen_peer_urls,
        initial_cluster: Some(INITIAL_CLUSTER.to_owned()),
        auto_compaction_retention: args.auto_compaction_retention,
        ..config(&[])?
    })
    .await
    .context("the store does not start")?;
    let store_addr = member.client_addr;
    parts.add("store", member);

    let store = format!("http://{store_addr}");
    let with_store = ["--store", &store];
    let api = apiserver::Config { listen: args.listen, ..config(&with_store)? };
    let api = apiserver::start(api).await.context("the API server does not start")?;
    let api_addr = api.addr();
    parts.add("apiserver", api);

    let mut controllers: controllers::Config = config(&with_store)?;
    // There is one `up` on a data directory, so after a SIGKILL it need not wait for itself.
    controllers.election.identity = Some("miniku-up".to_owned());
    let controllers = controllers::start(controllers);
    parts.add("controllers", controllers.await.context("the controllers do not start")?);

    let mut runtime = args.runtime.unwrap_or(RuntimeKind::Docker);
    let mut no_engine = None;
    for number in 1..=args.nodes {
        let name = format!("node-{number}");
        let mut node: kubelet::Config = config(&["--store", &store, "--node-name", &name])?;
        node.runtime = runtime;
        let started = match kubelet::start(node.clone()).await {
            Err(error @ kubelet::Error::NoEngine(_)) if args.runtime.is_none() && number == 1 => {
                no_engine = Some(format!("{:#}", anyhow::Error::new(error)));
                runtime = RuntimeKind::Fake;
                kubelet::start(kubelet::Config { runtime, ..node }).await
            }
            started => started,
        };
        let kubelet = started.with_context(|| format!("{name} does not start"))?;
        parts.add(name, kubelet);
    }

    let up = Up {
        api: api_addr,
        store: store_addr,
        data_dir: &args.data_dir,
        nodes: args.nodes,
        runtime,
        no_engine,
    };
    cli::say(format_args!("{}", up.banner(std::process::id())));
    Ok(())
}

/// The configuration of a part as its own command makes it of these flags.
fn config<C: clap::Args>(flags: &[&str]) -> anyhow::Result<C> {
    #[derive(clap::Parser)]
    struct Line<C: clap::Args> {
        #[command(flatten)]
        config: C,
    }
    let line = ["miniku"].iter().chain(flags);
    Ok(Line::<C>::try_parse_from(line)?.config)
}

impl Up<'_> {
    /// The addresses, and the lines that a person copies.
    fn banner(&self, pid: u32) -> String {
        let Self { api, store, .. } = self;
        let data_dir = self.data_dir.display();
        let mut text = format!(
            "
miniku is up (process {pid})

  API     http://{api}
  store   http://{store}  (etcd v3)
  data    {data_dir}
  nodes   {}
",
            self.nodes_line()
        );
        if let Some(why) = &self.no_engine {
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "
  **********************************************************************
  NO CONTAINER ENGINE: pods are only pretended to run (--runtime fake).
  {why}
  **********************************************************************
"
            );
        }
        let _ = write!(
            text,
            r#"
In another terminal:

  curl -X POST {api}/replicasets -d '{{"name":"nginx","desiredCount":4,"selector":{{"app":"nginx"}},"template":{{"image":"nginx:latest"}}}}'
  curl {api}/pods
  curl -N '{api}/pods?watch=true'
  etcdctl --endpoints {store} get --prefix --keys-only /registry/
"#
        );
        if self.runtime == RuntimeKind::Docker {
            text.push_str(
                "  docker ps\n  docker kill NAME    one of the containers: it is started again\n",
            );
        }
        let _ = write!(
            text,
            "  kill -9 {pid}       this process; start it again: the same pods go on

Ctrl-C stops it."
        );
        if self.runtime == RuntimeKind::Docker {
            text.push_str(" Containers run on until the next `miniku up`; delete their replicasets first to stop them.");
        }
        text.push('\n');
        text
    }

    fn nodes_line(&self) -> String {
        let engine = match self.runtime {
            RuntimeKind::Docker => "on the Docker Engine",
            RuntimeKind::Fake => "containers in memory only (fake)",
        };
        match self.nodes {
            0 => "none".to_owned(),
            1 => format!("node-1, {engine}"),
            2 => format!("node-1 and node-2, {engine}"),
            n => format!("node-1 to node-{n}, {engine}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(runtime: RuntimeKind, no_engine: Option<&str>) -> String {
        let up = Up {
            api: "127.0.0.1:8080".parse().unwrap(),
            store: "127.0.0.1:2379".parse().unwrap(),
            data_dir: Path::new("miniku-data"),
            nodes: 2,
            runtime,
            no_engine: no_engine.map(str::to_owned),
        };
        up.banner(4711)
    }

    #[test]
    fn the_banner_has_the_lines_to_copy() {
        let banner = up(RuntimeKind::Docker, None);
        for line in [
            r#"curl -X POST 127.0.0.1:8080/replicasets -d '{"name":"nginx","desiredCount":4,"selector":{"app":"nginx"},"template":{"image":"nginx:latest"}}'"#,
            "curl 127.0.0.1:8080/pods",
            "docker ps",
            "kill -9 4711",
            "node-1 and node-2, on the Docker Engine",
        ] {
            assert!(banner.contains(line), "{line}\n{banner}");
        }
        assert!(!banner.contains("NO CONTAINER ENGINE"));
    }

    #[test]
    fn a_pretended_runtime_is_said_aloud() {
        let banner = up(RuntimeKind::Fake, Some("no Docker Engine answers"));
        assert!(banner.contains("NO CONTAINER ENGINE"));
        assert!(banner.contains("no Docker Engine answers"));
        assert!(!banner.contains("docker ps"));
    }
}
