//! An etcd of the test's own: members on free ports with temporary directories, which end with the
//! test and can be killed and started again before.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// A running etcd; dropping it kills its members.
pub(crate) struct Etcd {
    members: Vec<Member>,
    initial_cluster: String,
    data: tempfile::TempDir,
}

struct Member {
    name: String,
    client_url: String,
    peer_url: String,
    process: Option<Child>,
}

impl Etcd {
    /// Starts so many members, or says that no etcd is installed. Clients have to wait until it
    /// answers.
    pub(crate) fn start(members: usize) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            let missing = "etcd is not installed (Debian's package etcd-server)";
            assert!(std::env::var_os("MINIKU_TEST_REQUIRE_ALL").is_none(), "{missing}");
            // Past the test runner's capture, as the test passes.
            let _ = writeln!(std::io::stderr(), "skipped: {missing}");
            return None;
        }
        let mut urls = free_urls(2 * members).into_iter();
        let member = |number| Member {
            name: format!("n{number}"),
            client_url: urls.next().expect("two for each"),
            peer_url: urls.next().expect("two for each"),
            process: None,
        };
        let members: Vec<Member> = (1..=members).map(member).collect();
        let peers = members.iter().map(|member| format!("{}={}", member.name, member.peer_url));
        let initial_cluster = peers.collect::<Vec<_>>().join(",");
        let data = tempfile::tempdir().expect("a temporary directory");
        let mut etcd = Self { members, initial_cluster, data };
        for index in 0..etcd.members.len() {
            etcd.start_member(index);
        }
        Some(etcd)
    }

    /// Where clients find it: all members, with commas between.
    pub(crate) fn urls(&self) -> String {
        let urls: Vec<_> = self.members.iter().map(|member| member.client_url.as_str()).collect();
        urls.join(",")
    }

    /// How many members there are, dead ones included.
    pub(crate) fn members(&self) -> usize {
        self.members.len()
    }

    /// Kills a member at once.
    pub(crate) fn kill_member(&mut self, index: usize) {
        self.members[index].kill();
    }

    /// Starts a member that was killed; it finds its data again.
    pub(crate) fn start_member(&mut self, index: usize) {
        let member = &mut self.members[index];
        let (client_url, peer_url) = (&member.client_url, &member.peer_url);
        let started = Command::new("etcd")
            .arg("--data-dir")
            .arg(self.data.path().join(&member.name))
            .args(["--name", &member.name, "--log-level", "error"])
            .args(["--listen-client-urls", client_url, "--advertise-client-urls", client_url])
            .args(["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url])
            .args(["--initial-cluster", &self.initial_cluster])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        member.process = Some(started.expect("etcd starts"));
    }
}

impl Member {
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.kill();
        }
    }
}

/// Addresses on which nobody listens: all are held until all are known.
fn free_urls(count: usize) -> Vec<String> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a free port");
    let held: Vec<_> = (0..count).map(bind).collect();
    let url = |listener: &TcpListener| {
        format!("http://{}", listener.local_addr().expect("a bound address"))
    };
    held.iter().map(url).collect()
}
