//! Debian's etcdctl, against whichever store.

use std::process::{Command, Stdio};

/// What a command said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) success: bool,
    /// The exit code.
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
    pub(crate) error: String,
}

/// Runs a command to its end.
pub(crate) fn etcdctl(endpoints: &str, arguments: &[&str]) -> Said {
    etcdctl_with_input(endpoints, arguments, "")
}

/// Runs a command to its end, with something on its standard input, as `txn` reads it.
pub(crate) fn etcdctl_with_input(endpoints: &str, arguments: &[&str], input: &str) -> Said {
    use std::io::Write as _;
    let mut child = Command::new("etcdctl")
        .arg(format!("--endpoints={endpoints}"))
        .args(arguments)
        .env("ETCDCTL_API", "3")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("etcdctl starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    // A command that reads nothing may be gone already.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("etcdctl ends");
    Said {
        success: output.status.success(),
        code: output.status.code(),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
