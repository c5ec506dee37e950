//! An etcd of the test's own: a member on free ports with a temporary directory, which ends with
//! the test.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// A running etcd; dropping it kills it.
pub(crate) struct Etcd {
    process: Child,
    client_url: String,
    _data: tempfile::TempDir,
}

impl Etcd {
    /// Starts a member, or says that none is installed. Clients have to wait until it answers.
    #[expect(clippy::print_stderr, reason = "a test that is skipped must say so")]
    pub(crate) fn start() -> Option<Self> {
        let data = tempfile::tempdir().expect("a temporary directory");
        let [client_url, peer_url] = free_urls();
        let spawned = Command::new("etcd")
            .arg("--data-dir")
            .arg(data.path())
            .args(["--name", "n1", "--log-level", "error"])
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("n1={peer_url}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match spawned {
            Ok(process) => Some(Self { process, client_url, _data: data }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: etcd is not installed");
                None
            }
            Err(error) => panic!("etcd does not start: {error}"),
        }
    }

    /// Where clients find it.
    pub(crate) fn url(&self) -> &str {
        &self.client_url
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Two addresses on which nobody listens: both are held until both are known.
fn free_urls() -> [String; 2] {
    let held = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| format!("http://{}", listener.local_addr().expect("a bound address")))
}
