//! What a machine may lack: then a test is left out, and says so.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Something outside the project that a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Etcd,
    Etcdctl,
    Curl,
    /// The right to mount a file system.
    Root,
    /// A running engine, its command line, and the images of `scripts/test-images`.
    Docker,
}

/// Whether all is there. What is missing is named on standard error, past the test runner's
/// capture, or fails the test when everything is required.
pub(crate) fn have(needs: &[Need]) -> bool {
    let Some(missing) = needs.iter().find_map(|need| need.missing()) else { return true };
    leave_out(missing);
    false
}

/// Tells that the present test cannot be done, past the test runner's capture, or fails it when
/// everything is required.
pub(crate) fn leave_out(reason: &str) {
    let required = std::env::var_os("MINIKU_TEST_REQUIRE_ALL").is_some();
    assert!(!required, "{reason}");
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // If nobody can read it, nobody misses it.
    let _ = writeln!(std::io::stderr(), "skipped {test}: {reason}");
}

impl Need {
    fn missing(self) -> Option<&'static str> {
        match self {
            Need::Etcd if !runs("etcd", &["--version"]) => {
                Some("etcd is not installed: apt-get install etcd-server")
            }
            Need::Etcdctl if !runs("etcdctl", &["version"]) => {
                Some("etcdctl is not installed: apt-get install etcd-client")
            }
            Need::Curl if !runs("curl", &["--version"]) => {
                Some("curl is not installed: apt-get install curl")
            }
            Need::Root if !rustix::process::geteuid().is_root() => {
                Some("only root may mount the small file systems that it needs")
            }
            Need::Docker if !runs("docker", &["version"]) => {
                Some("no Docker Engine answers: `docker version` says why")
            }
            Need::Docker
                if !runs(
                    "docker",
                    &["image", "inspect", "miniku-test/busybox", "miniku-test/nginx"],
                ) =>
            {
                Some("the test images are missing: scripts/test-images makes them")
            }
            _ => None,
        }
    }
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .env("ETCDCTL_API", "3")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
