//! The binary as a shell meets it: exit codes, what it says when something is wrong, and `up` on
//! its own, without a container engine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// Nothing in these tests takes so long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where there is no Docker Engine.
const NO_ENGINE: &str = "unix:///nonexistent/docker.sock";

fn miniku(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_miniku"));
    command.args(line.split_whitespace()).env_remove("RUST_LOG").env("DOCKER_HOST", NO_ENGINE);
    command
}

fn run(line: &str) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = miniku(line).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn wrong_usage_is_2_and_says_what_is_wrong() {
    for (line, says) in [
        ("", "Usage: miniku"),
        ("fly", "unrecognized subcommand 'fly'"),
        ("kubelet", "--node-name"),
        ("kubelet --node-name A_b --runtime fake", "--node-name \"A_b\""),
        ("kubelet --node-name a --runtime podman", "possible values: docker, fake"),
        ("kubelet --node-name a --hollow 10", "--hollow is for containers in memory only: add"),
        ("kubelet --node-name a --hollow 0 --runtime fake", "--hollow"),
        ("kubelet --node-name a --fake-start-delay 1s", "add --runtime fake"),
        ("kubelet --node-name a --runtime fake --fake-exit-code 1", "--fake-exit-after"),
        ("apiserver --store 127.0.0.1:2379", "write http://HOST:PORT"),
        ("apiserver --listen here", "--listen"),
        ("store --listen-client-urls 2379", "--listen-client-urls"),
        ("store --name n9 --initial-cluster n1=http://127.0.0.1:1", "--name"),
        ("store snapshot status", "<FILE>"),
        ("store snapshot restore f --name n9 --initial-cluster n1=http://127.0.0.1:1", "--name"),
        ("store snapshot restore f --mark-compacted", "--bump-revision"),
        ("up --nodes 1000", "--nodes"),
        ("up --log info,store=loud", "--log"),
    ] {
        let (code, stderr) = run(line);
        assert_eq!(code, Some(2), "{line}: {stderr}");
        assert!(stderr.contains(says), "{line}: {stderr}");
    }
}

#[test]
fn help_and_version_are_answers() {
    for line in [
        "--help",
        "--version",
        "up --help",
        "store --help",
        "store snapshot restore --help",
        "kubelet -h",
    ] {
        let output = miniku(line).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{line}");
    }
}

#[test]
fn failing_is_1_and_says_once_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("apiserver --listen {}", taken.local_addr().unwrap());
    let (code, stderr) = run(&format!("{listen} --log off"));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("choose another address with --listen"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");

    let (code, stderr) = run("kubelet --node-name a --log off");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("no Docker Engine") && stderr.contains("--runtime fake"), "{stderr}");

    let (code, stderr) = run(&format!("{listen} --log-format json --log error"));
    assert_eq!(code, Some(1));
    let lines: Vec<serde_json::Value> =
        stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    assert_eq!(lines[0]["level"], "ERROR");
}

/// `miniku up` on ports of its own.
struct Up {
    child: Child,
    stdout: BufReader<ChildStdout>,
    banner: String,
}

impl Up {
    fn command(data_dir: &Path, flags: &str) -> Command {
        let any = "127.0.0.1:0";
        let mut command = miniku(&format!(
            "up --listen {any} --listen-client-urls http://{any} --listen-peer-urls http://{any} {flags}"
        ));
        command.arg("--data-dir").arg(data_dir);
        command
    }

    /// Starts it and waits for the end of its banner.
    fn start(data_dir: &Path, flags: &str) -> Self {
        let mut child = Self::command(data_dir, flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut banner = String::new();
        while !banner.contains("Ctrl-C stops it") {
            assert!(stdout.read_line(&mut banner).unwrap() > 0, "it ended: {banner}");
        }
        Self { child, stdout, banner }
    }

    /// What stands behind a word at the beginning of a line of the banner.
    fn told(&self, word: &str) -> &str {
        let mut lines = self.banner.lines();
        lines.find_map(|line| line.trim().strip_prefix(word)).unwrap_or_default().trim()
    }

    fn address(&self) -> &str {
        self.told("API").strip_prefix("http://").unwrap()
    }

    fn request(&self, request: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{request} HTTP/1.1\r\nhost: miniku\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Sends a signal and waits for the end.
    fn end(mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn up_falls_back_to_the_fake_runtime_and_finds_its_data_again() {
    const SET: &str =
        r#"{"name":"web","desiredCount":0,"selector":{"app":"web"},"template":{"image":"web"}}"#;
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), "--nodes 1");
    assert!(up.banner.contains("NO CONTAINER ENGINE"), "{}", up.banner);
    assert!(up.told("nodes").starts_with("node-1, "), "{}", up.banner);
    assert!(up.request("POST /replicasets", SET).starts_with("HTTP/1.1 201"));
    assert_eq!(up.end("-TERM").code(), Some(0));

    let up = Up::start(dir.path(), "--nodes 1");
    let found = up.request("GET /replicasets/web", "");
    assert!(found.starts_with("HTTP/1.1 200") && found.contains(r#""name":"web""#), "{found}");

    let second = Up::command(dir.path(), "--runtime fake").output().unwrap();
    let stderr = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("in use by another process"), "{stderr}");
    assert_eq!(up.end("-INT").code(), Some(0));
}

#[test]
fn up_with_docker_asked_for_does_not_fall_back() {
    let dir = tempfile::tempdir().unwrap();
    let output = Up::command(dir.path(), "--runtime docker").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("node-1 does not start: no Docker Engine"), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path(), "--runtime fake --nodes 0");
    // A request that does not come to its end holds the first signal up for a while.
    let mut request = TcpStream::connect(up.address()).unwrap();
    request
        .write_all(b"POST /pods HTTP/1.1\r\nhost: miniku\r\ncontent-length: 9\r\n\r\n{")
        .unwrap();
    assert!(up.request("GET /pods", "").starts_with("HTTP/1.1 200"));
    up.signal("-TERM");
    while TcpStream::connect(up.address()).is_ok() {
        std::thread::yield_now();
    }
    assert_eq!(up.end("-TERM").code(), Some(1));
}
