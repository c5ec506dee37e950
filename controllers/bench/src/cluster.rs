//! The control plane as processes that end with the value that holds them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use store_bench::ports::free_ports;
use store_bench::process;
use store_client::{Client, ClientConfig, request};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::http::Http;
use crate::options::Options;
use crate::table::Cost;

/// For a part to answer after its start, and for nodes to register without a new one among them.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A cluster that runs. Its processes are killed and its data is removed when it is dropped.
pub(crate) struct Cluster {
    // Before the directory, so that nobody writes into it while it is removed.
    parts: Vec<Part>,
    dir: TempDir,
    miniku: PathBuf,
    log: String,
    store_urls: String,
    pub(crate) client: Client,
    pub(crate) api: Http,
}

struct Part {
    /// What it is in the table: several may be one there.
    title: String,
    name: String,
    log: PathBuf,
    child: Child,
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cluster {
    /// Starts the store and the apiserver, and waits until they answer. Nobody makes or runs pods yet.
    pub(crate) async fn start(options: &Options, dir: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(dir)?;
        let members = usize::from(options.members);
        let ports = free_ports(2 * members + 1)?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (clients, peers) = (&ports[..members], &ports[members..2 * members]);
        let listen = format!("127.0.0.1:{}", ports[2 * members]);
        let store_urls = clients.iter().map(|port| url(*port)).collect::<Vec<_>>().join(",");
        let mut cluster = Self {
            parts: Vec::new(),
            miniku: options.miniku.clone(),
            log: options.log.clone(),
            client: Client::new(ClientConfig::new(&store_urls)?)?,
            store_urls,
            api: Http::new(format!("http://{listen}")),
            dir,
        };
        let named = |(at, port): (usize, &u16)| format!("n{}={}", at + 1, url(*port));
        let initial_cluster = peers.iter().enumerate().map(named).collect::<Vec<_>>().join(",");
        let title = match members {
            1 => "store".to_owned(),
            _ => format!("store ({members} members)"),
        };
        for at in 0..members {
            let name = format!("n{}", at + 1);
            let data_dir = cluster.dir.path().join(&name).display().to_string();
            let flags = [
                ["--name", &name],
                ["--data-dir", &data_dir],
                ["--listen-client-urls", &url(clients[at])],
                ["--listen-peer-urls", &url(peers[at])],
                ["--initial-cluster", &initial_cluster],
                ["--auto-compaction-retention", "5m"],
            ];
            cluster.spawn(&title, &name, "store", &flags.concat())?;
        }
        let store_urls = cluster.store_urls.clone();
        cluster.spawn(
            "apiserver",
            "apiserver",
            "apiserver",
            &["--store", &store_urls, "--listen", &listen],
        )?;
        let api = cluster.api.clone();
        cluster.wait("the apiserver answers", async || Ok(api.get("/pods").await.is_ok())).await?;
        Ok(cluster)
    }

    /// Starts hollow kubelets, and waits until all have registered their nodes.
    pub(crate) async fn start_nodes(
        &mut self,
        nodes: usize,
        options: &Options,
    ) -> anyhow::Result<()> {
        let (store_urls, count) = (self.store_urls.clone(), nodes.to_string());
        let mut flags = vec!["--store", &store_urls, "--node-name", "hollow"];
        flags.extend(["--runtime", "fake", "--hollow", &count]);
        if let Some(delay) = &options.start_delay {
            flags.extend(["--fake-start-delay", delay]);
        }
        self.spawn("kubelets", "kubelets", "kubelet", &flags)?;
        let client = self.client.clone();
        let registered = async || {
            let mut range = request::prefix("/registry/nodes/".to_owned());
            range.count_only = true;
            let count = client.range(range).await?.count;
            Ok(usize::try_from(count)? >= nodes)
        };
        self.wait("all nodes are registered", registered).await
    }

    pub(crate) fn start_controllers(&mut self) -> anyhow::Result<()> {
        let store_urls = self.store_urls.clone();
        self.spawn("controllers", "controllers", "controllers", &["--store", &store_urls])
    }

    fn spawn(
        &mut self,
        title: &str,
        name: &str,
        command: &str,
        flags: &[&str],
    ) -> anyhow::Result<()> {
        let log_path = self.dir.path().join(format!("{name}.log"));
        let log = File::create(&log_path)?;
        let child = Command::new(&self.miniku)
            .args(["--log", &self.log, command])
            .args(flags)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("--miniku: cannot start {}", self.miniku.display()))?;
        let (title, name) = (title.to_owned(), name.to_owned());
        self.parts.push(Part { title, name, log: log_path, child });
        Ok(())
    }

    async fn wait(
        &mut self,
        what: &str,
        holds: impl AsyncFn() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds().await? {
            self.check()?;
            if Instant::now() > deadline {
                bail!("in vain for {PATIENCE:?}: {what}");
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Fails when a process has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for part in &mut self.parts {
            if let Some(status) = part.child.try_wait()? {
                let log = std::fs::read(&part.log).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                let mut lines: Vec<&str> = log.lines().rev().take(5).collect();
                lines.reverse();
                bail!("{} ended with {status}:\n{}", part.name, lines.join("\n"));
            }
        }
        Ok(())
    }

    /// What each process has cost since it began; the members of the store together.
    pub(crate) fn costs(&self) -> anyhow::Result<Vec<Cost>> {
        let mut costs: Vec<Cost> = Vec::new();
        for part in &self.parts {
            let pid = part.child.id();
            let (cpu, memory_bytes) = (process::cpu_time(pid)?, process::memory(pid)?.resident);
            match costs.iter_mut().find(|cost| cost.process == part.title) {
                Some(cost) => {
                    cost.cpu += cpu;
                    cost.memory_bytes += memory_bytes;
                }
                None => costs.push(Cost { process: part.title.clone(), cpu, memory_bytes }),
            }
        }
        Ok(costs)
    }

    /// The ids of the processes with their names, for whoever wants to look at them.
    pub(crate) fn processes(&self) -> String {
        let named = |part: &Part| format!("{} {}", part.name, part.child.id());
        self.parts.iter().map(named).collect::<Vec<_>>().join(", ")
    }
}
