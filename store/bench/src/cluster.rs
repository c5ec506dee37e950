//! Three members of one system, as processes that end with the value that holds them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use store_bench::ports::free_ports;
use store_bench::process::{self, Memory};
use store_proto::etcdserverpb::kv_client::KvClient;
use store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use store_proto::etcdserverpb::{RangeRequest, StatusRequest, StatusResponse};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;

/// Members of a cluster.
pub(crate) const MEMBERS: usize = 3;
/// For a member to answer after its start, reading back what it holds.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// For a member to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at something that is waited for: small, as it is part of what is measured.
const POLL: Duration = Duration::from_millis(2);

/// One of the two that are compared.
pub(crate) struct System {
    pub(crate) name: &'static str,
    program: String,
    arguments: Vec<String>,
}

impl System {
    /// `command` is a program with arguments, separated by blanks.
    pub(crate) fn new(name: &'static str, command: &str) -> anyhow::Result<Self> {
        let mut words = command.split_ascii_whitespace().map(str::to_owned);
        let program = words.next().with_context(|| format!("the command for {name} is empty"))?;
        Ok(Self { name, program, arguments: words.collect() })
    }

    /// Its name, and the version that `--version` tells in the first line, if it tells one.
    pub(crate) fn title(&self) -> String {
        let told = Command::new(&self.program).arg("--version").output();
        let told = told.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let version =
            told.ok().and_then(|told| Some(told.lines().next()?.rsplit_once(' ')?.1.to_owned()));
        version.map_or_else(|| self.name.to_owned(), |version| format!("{} {version}", self.name))
    }
}

/// A cluster that runs. Its processes are killed and its data is removed when it is dropped.
pub(crate) struct Cluster {
    // Before the directory, so that nobody writes into it while it is removed.
    members: Vec<Member>,
    dir: TempDir,
}

struct Member {
    command: (String, Vec<String>),
    log: PathBuf,
    url: String,
    child: Option<Child>,
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Member {
    fn spawn(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let (program, arguments) = &self.command;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start `{program}`"))?;
        self.child = Some(child);
        Ok(())
    }

    fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.child.as_ref().context("the member does not run")?.id())
    }

    /// The last lines that it wrote, for whoever has to find out why it ended.
    fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Cluster {
    /// Starts three members with nothing in them, and waits until each answers a linearizable read.
    pub(crate) async fn start(system: &System, dir: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(dir)?;
        let ports = free_ports(2 * MEMBERS)?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (clients, peers) = ports.split_at(MEMBERS);
        let all: Vec<String> =
            peers.iter().enumerate().map(|(at, port)| format!("n{at}={}", url(*port))).collect();
        let member = |at: usize| {
            let name = format!("n{at}");
            let data_dir = dir.path().join(&name).display().to_string();
            let flags = [
                ("--name", name.clone()),
                ("--data-dir", data_dir),
                ("--listen-client-urls", url(clients[at])),
                ("--advertise-client-urls", url(clients[at])),
                ("--listen-peer-urls", url(peers[at])),
                ("--initial-advertise-peer-urls", url(peers[at])),
                ("--initial-cluster", all.join(",")),
            ];
            let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
            let arguments = system.arguments.iter().cloned().chain(flags).collect();
            Member {
                command: (system.program.clone(), arguments),
                log: dir.path().join(format!("{name}.log")),
                url: url(clients[at]),
                child: None,
            }
        };
        let mut cluster = Self { members: (0..MEMBERS).map(member).collect(), dir };
        for at in 0..MEMBERS {
            cluster.spawn(at)?;
        }
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// Where clients reach each member.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }

    /// Starts a member again, with the data that it has.
    pub(crate) fn spawn(&mut self, at: usize) -> anyhow::Result<()> {
        self.members[at].spawn()
    }

    /// SIGKILL; returns when the process is gone.
    pub(crate) fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        let mut child = self.members[at].child.take().context("the member does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM; returns when the process is gone.
    pub(crate) async fn stop(&mut self, at: usize) -> anyhow::Result<()> {
        let child = self.members[at].child.as_mut().context("the member does not run")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("no process has the id 0")?;
        kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("member n{at} did not end within {STOP_TIMEOUT:?} after SIGTERM");
            }
            sleep(POLL).await;
        }
        self.members[at].child = None;
        Ok(())
    }

    /// Waits until every member answers a linearizable read.
    pub(crate) async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        for at in 0..MEMBERS {
            self.wait_until_member_ready(at).await?;
        }
        Ok(())
    }

    /// Waits until the member answers a linearizable read. It is asked again and again, at once on
    /// a refused connection, so that the end of the wait is the time at which it could answer.
    pub(crate) async fn wait_until_member_ready(&mut self, at: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        let endpoint = Endpoint::from_shared(self.members[at].url.clone())?;
        while Instant::now() < deadline {
            if let Ok(channel) = endpoint.connect().await {
                let mut kv = KvClient::new(channel);
                let read = RangeRequest { key: "ready".into(), ..RangeRequest::default() };
                if let Ok(Ok(_)) = timeout(START_TIMEOUT, kv.range(read)).await {
                    return Ok(());
                }
            }
            let member = &mut self.members[at];
            if let Some(child) = &mut member.child
                && let Some(status) = child.try_wait()?
            {
                bail!("member n{at} ended with {status}:\n{}", member.last_words());
            }
            sleep(POLL).await;
        }
        let last_words = self.members[at].last_words();
        bail!("member n{at} gave no answer within {START_TIMEOUT:?}:\n{last_words}")
    }

    /// What a member tells about itself.
    pub(crate) async fn status(&self, at: usize) -> anyhow::Result<StatusResponse> {
        let channel = Endpoint::from_shared(self.members[at].url.clone())?.connect().await?;
        let status = MaintenanceClient::new(channel).status(StatusRequest {}).await?;
        Ok(status.into_inner())
    }

    /// The member that leads, once it says so itself.
    pub(crate) async fn leader(&self) -> anyhow::Result<usize> {
        let deadline = Instant::now() + START_TIMEOUT;
        while Instant::now() < deadline {
            for at in 0..MEMBERS {
                let status = self.status(at).await?;
                if status.leader != 0
                    && status.header.is_some_and(|header| header.member_id == status.leader)
                {
                    return Ok(at);
                }
            }
            sleep(POLL).await;
        }
        bail!("no member leads")
    }

    /// Processor time of all members together.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        self.members.iter().map(|member| process::cpu_time(member.pid()?)).sum()
    }

    /// Memory of all members together.
    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let mut sum = Memory::default();
        for member in &self.members {
            let memory = process::memory(member.pid()?)?;
            sum.resident += memory.resident;
            sum.peak += memory.peak;
        }
        Ok(sum)
    }

    /// Bytes that all members together have on disk.
    pub(crate) fn disk_bytes(&self) -> anyhow::Result<u64> {
        Ok(disk_bytes(self.dir.path())?)
    }
}

fn disk_bytes(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut sum = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        // Files come and go while this looks.
        let Ok(metadata) = entry.metadata() else { continue };
        sum += metadata.blocks() * 512;
        if metadata.is_dir() {
            sum += disk_bytes(&entry.path()).unwrap_or(0);
        }
    }
    Ok(sum)
}
