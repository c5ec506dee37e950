//! A cluster of one kind, each member a process with an empty directory, ended when it is dropped.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use store_proto::etcdserverpb::cluster_client::ClusterClient;
use store_proto::etcdserverpb::kv_client::KvClient;
use store_proto::etcdserverpb::{MemberListRequest, RangeRequest};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// How long a cluster may take until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A port that was free may be taken when the process gets to it.
const ATTEMPTS: usize = 3;

/// Below the range from which systems take the ports of outgoing connections.
const FIRST_PORT: u32 = 12_000;
const PORTS: u32 = 10_000;

/// What runs as a member.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// A real etcd.
    Etcd(PathBuf),
    /// The store of this project, as it is linked into this very program.
    Store,
}

/// The members, in the order of their numbers.
pub(crate) struct Cluster {
    processes: Vec<Child>,
    pub(crate) channels: Vec<Channel>,
    dir: TempDir,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
#[error("{program} does not start: {reason}")]
pub(crate) struct StartError {
    program: &'static str,
    reason: String,
}

impl Program {
    fn name(&self) -> &'static str {
        match self {
            Self::Etcd(_) => "etcd",
            Self::Store => "the store",
        }
    }

    fn command(&self) -> std::io::Result<Command> {
        Ok(match self {
            Self::Etcd(path) => {
                let mut command = Command::new(path);
                // Its journal of everything is not looked at.
                command.args(["--logger", "zap", "--log-level", "warn"]);
                command
            }
            Self::Store => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("member");
                command
            }
        })
    }
}

impl Cluster {
    /// Starts `count` members with their data below `parent`, and waits until all of them serve.
    pub(crate) async fn start(
        program: &Program,
        count: usize,
        parent: &Path,
    ) -> Result<Self, StartError> {
        let fail = |reason: String| StartError { program: program.name(), reason };
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            let mut cluster = Self::spawn(program, count, parent)
                .await
                .map_err(|error| fail(error.to_string()))?;
            match cluster.serves(count).await {
                Ok(()) => return Ok(cluster),
                Err(reason) => last = reason,
            }
        }
        Err(fail(last))
    }

    async fn spawn(program: &Program, count: usize, parent: &Path) -> std::io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("differential-").tempdir_in(parent)?;
        let urls: Vec<[String; 2]> = (0..count).map(|_| [free_url(), free_url()]).collect();
        let members: Vec<String> =
            (1..).zip(&urls).map(|(n, [_, peer])| format!("n{n}={peer}")).collect();
        let members = members.join(",");
        let mut cluster = Self { processes: Vec::new(), channels: Vec::new(), dir };
        for (number, [client, peer]) in (1..).zip(&urls) {
            let name = format!("n{number}");
            let log = File::create(cluster.dir.path().join(format!("{name}.log")))?;
            let process = program
                .command()?
                .args(["--name", &name, "--data-dir"])
                .arg(cluster.dir.path().join(&name))
                .args(["--listen-client-urls", client, "--advertise-client-urls", client])
                .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
                .args(["--initial-cluster", &members])
                // Of two clusters that take each other's ports neither gets going.
                .args(["--initial-cluster-token", &cluster.dir.path().to_string_lossy()])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true)
                .spawn()?;
            cluster.processes.push(process);
            let endpoint = Endpoint::from_shared(client.clone())
                .map_err(std::io::Error::other)?
                .connect_timeout(Duration::from_secs(2))
                .tcp_nodelay(true);
            cluster.channels.push(endpoint.connect_lazy());
        }
        Ok(cluster)
    }

    /// Waits until every member answers linearizable reads and knows all members' names.
    async fn serves(&mut self, count: usize) -> Result<(), String> {
        let deadline = Instant::now() + START_TIMEOUT;
        for number in 0..count {
            loop {
                let why_not = match self.probe(number, count).await {
                    Ok(()) => break,
                    Err(why_not) => why_not,
                };
                if let Some(ended) = self.ended() {
                    return Err(ended);
                }
                if Instant::now() > deadline {
                    return Err(format!("n{} does not serve: {why_not}", number + 1));
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    async fn probe(&self, number: usize, count: usize) -> Result<(), String> {
        let channel = &self.channels[number];
        let list = ClusterClient::new(channel.clone())
            .member_list(MemberListRequest { linearizable: false })
            .await
            .map_err(|status| status.to_string())?
            .into_inner();
        let named = list.members.iter().filter(|member| !member.client_ur_ls.is_empty()).count();
        if named != count {
            return Err(format!("{named} members of {count} have published themselves"));
        }
        let any = RangeRequest { key: "any".into(), ..RangeRequest::default() };
        KvClient::new(channel.clone()).range(any).await.map_err(|status| status.to_string())?;
        Ok(())
    }

    /// Says so when a process has ended, which none should.
    pub(crate) fn ended(&mut self) -> Option<String> {
        for (number, process) in (1..).zip(&mut self.processes) {
            if let Ok(Some(status)) = process.try_wait() {
                let log = self.dir.path().join(format!("n{number}.log"));
                let log =
                    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
                let lines: Vec<&str> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(30)..].join("\n");
                return Some(format!("n{number} has ended, {status}; its last words:\n{end}"));
            }
        }
        None
    }
}

fn free_url() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Runs at the same time begin at different places.
    let base = std::process::id().wrapping_mul(131);
    let port = (0..PORTS)
        .map(|_| FIRST_PORT + base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS)
        .find(|port| {
            u16::try_from(*port).is_ok_and(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        });
    // Without a free port the process says that its own is taken.
    format!("http://127.0.0.1:{}", port.unwrap_or(FIRST_PORT))
}
