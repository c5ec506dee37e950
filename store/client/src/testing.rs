//! What the tests of this crate, and of those above it, stand on: a real etcd, and a network that
//! can be broken. Only there with the feature `testing`.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::{Client, ClientConfig};

/// Names a store with etcd's flags to run the tests on instead of `etcd`, such as
/// `/usr/local/bin/miniku store`.
const COMMAND_VARIABLE: &str = "STORE_UNDER_TEST";
/// How long an etcd may take to serve.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// Ports are chosen before etcd binds them, so somebody else may be quicker.
const START_TRIES: usize = 5;

/// A member of an etcd, in a process of its own that dies with this value.
#[derive(Debug)]
pub struct Etcd {
    child: Child,
    arguments: Vec<String>,
    client_port: u16,
    /// Removed with the value.
    _directory: TempDir,
}

impl Etcd {
    /// Starts an etcd of one member; none, and a line on stderr, when none is installed.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// Like [`Self::start`], with more flags.
    pub async fn start_with(flags: &[&str]) -> Option<Self> {
        Self::cluster_with(1, flags).await?.pop()
    }

    /// Starts an etcd of several members; none, and a line on stderr, when none is installed.
    pub async fn cluster(members: usize) -> Option<Vec<Self>> {
        Self::cluster_with(members, &[]).await
    }

    async fn cluster_with(members: usize, flags: &[&str]) -> Option<Vec<Self>> {
        for _ in 0..START_TRIES {
            match Self::try_cluster(members, flags) {
                Ok(mut cluster) => {
                    if serves(&mut cluster).await {
                        return Some(cluster);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let missing = "etcd is not installed (Debian's package etcd-server)";
                    assert!(std::env::var_os("MINIKU_TEST_REQUIRE_ALL").is_none(), "{missing}");
                    // Past the test runner's capture, as the test passes.
                    let _ = writeln!(io::stderr(), "skipped: {missing}");
                    return None;
                }
                Err(error) => panic!("etcd could not be started: {error}"),
            }
        }
        panic!("etcd did not serve after {START_TRIES} tries");
    }

    fn try_cluster(members: usize, flags: &[&str]) -> io::Result<Vec<Self>> {
        let ports: Vec<(u16, u16)> =
            (0..members).map(|_| Ok((free_port()?, free_port()?))).collect::<io::Result<_>>()?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> =
            ports.iter().enumerate().map(|(i, (_, peer))| format!("m{i}={}", url(*peer))).collect();
        let start = |(i, &(client, peer)): (usize, &(u16, u16))| {
            let directory = TempDir::new()?;
            let data = directory.path().join("data").to_string_lossy().into_owned();
            let arguments = [
                ("--name", format!("m{i}")),
                ("--data-dir", data),
                ("--listen-client-urls", url(client)),
                ("--advertise-client-urls", url(client)),
                ("--listen-peer-urls", url(peer)),
                ("--initial-advertise-peer-urls", url(peer)),
                ("--initial-cluster", cluster.join(",")),
                ("--heartbeat-interval", "50".to_owned()),
                ("--election-timeout", "500".to_owned()),
            ]
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .chain(flags.iter().map(|flag| (*flag).to_owned()))
            .collect::<Vec<_>>();
            let child = spawn(&arguments)?;
            Ok(Self { child, arguments, client_port: client, _directory: directory })
        };
        ports.iter().enumerate().map(start).collect()
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Where clients find it.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.client_port).into()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after [`Self::kill`], with the data it had.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.arguments).expect("etcd started before");
    }

    /// Stops it in its tracks, as `kill -STOP` does: connections stay, nothing is answered.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on after [`Self::freeze`].
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "kill {signal} failed");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(arguments: &[String]) -> io::Result<Child> {
    let command = std::env::var(COMMAND_VARIABLE).unwrap_or_else(|_| "etcd".to_owned());
    let mut words = command.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("etcd"));
    command.args(words).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

fn free_port() -> io::Result<u16> {
    Ok(StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Waits until every member answers a read; false when one of them ended.
async fn serves(cluster: &mut [Etcd]) -> bool {
    let deadline = Instant::now() + START_DEADLINE;
    for member in cluster {
        let config = ClientConfig::new(&member.url()).expect("its URL is one");
        let client = Client::new(config).expect("its URL is one");
        while client.range(crate::request::key("/")).await.is_err() {
            if member.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return false;
            }
            assert!(Instant::now() < deadline, "etcd did not serve in time");
            sleep(Duration::from_millis(20)).await;
        }
    }
    true
}

/// What a [`Proxy`] does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// They stay, and nothing gets through.
    Stall,
    /// They stay, and only what the client sends gets through.
    Mute,
    /// They break, and new ones are refused.
    Cut,
}

/// A place in the network between a client and a server, which can be broken.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Ends with the value.
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens and hands on to a server.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port 0 is free");
        let addr = listener.local_addr().expect("it is bound");
        let mode = watch::Sender::new(Mode::Pass);
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(listener, addr, server, mode.subscribe()));
        Self { addr, mode, _tasks: tasks }
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Breaks all connections and refuses new ones, as if the server had been killed.
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// Lets nothing through any more, as if the server, or the network, hung.
    pub fn stall(&self) {
        self.mode.send_replace(Mode::Stall);
    }

    /// Lets requests through, and keeps the answers.
    pub fn mute(&self) {
        self.mode.send_replace(Mode::Mute);
    }

    /// Ends [`Self::cut`], [`Self::stall`] or [`Self::mute`].
    pub fn restore(&self) {
        self.mode.send_replace(Mode::Pass);
    }
}

async fn listen(
    listener: TcpListener,
    addr: SocketAddr,
    server: SocketAddr,
    mut mode: watch::Receiver<Mode>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        if *mode.borrow_and_update() == Mode::Cut {
            listener = None;
            connections = JoinSet::new();
            if mode.changed().await.is_err() {
                return;
            }
            continue;
        }
        let listening = match &listener {
            Some(listening) => listening,
            None => match TcpListener::bind(addr).await {
                Ok(bound) => listener.insert(bound),
                Err(_) => {
                    sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
        };
        tokio::select! {
            accepted = listening.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(hand_on(client, server, mode.clone()));
                }
            }
            changed = mode.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

async fn hand_on(client: TcpStream, server: SocketAddr, mode: watch::Receiver<Mode>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    tokio::select! {
        () = copy(from_client, to_server, mode.clone(), &[Mode::Pass, Mode::Mute]) => {}
        () = copy(from_server, to_client, mode, &[Mode::Pass]) => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    while_in: &[Mode],
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        if mode.wait_for(|mode| while_in.contains(mode)).await.is_err()
            || to.write_all(&buffer[..bytes]).await.is_err()
        {
            return;
        }
    }
}
