//! Commands in containers and the logs of containers, on the Docker Engine and on the fake one.

#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::StreamExt;
use kubelet::runtime::docker::DockerRuntime;
use kubelet::runtime::{ExecRequest, LogRequest, OutputStream, RunOutcome, Runtime, TerminalSize};
use tokio::io::AsyncWriteExt;

const BUSYBOX: &str = "/bin/busybox";
const PATIENCE: Duration = Duration::from_secs(60);
const OUTPUT_MAX_BYTES: usize = 1000;

/// A container with a shell, of an image of its own.
struct Sandbox {
    runtime: DockerRuntime,
    id: String,
    image: String,
}

impl Sandbox {
    /// Starts a container that runs a script; none where that cannot be done.
    async fn new(script: &str) -> Option<Self> {
        let runtime = DockerRuntime::connect().await.ok().filter(|_| Path::new(BUSYBOX).exists());
        let Some(runtime) = runtime else {
            let missing = format!("this needs a Docker Engine and {BUSYBOX}");
            assert!(std::env::var_os("MINIKU_TEST_REQUIRE_ALL").is_none(), "{missing}");
            let _ = writeln!(std::io::stderr(), "skipped: {missing}");
            return None;
        };
        static TESTS: AtomicU32 = AtomicU32::new(0);
        let number = TESTS.fetch_add(1, Ordering::Relaxed);
        let image = format!("miniku-test-streams-{}x{number}:latest", std::process::id());
        let tar = Command::new("tar").args(["-cC", "/", "bin/busybox"]).output().unwrap();
        let mut import = Command::new("docker")
            .args(["import", "-", &image])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        import.stdin.take().unwrap().write_all(&tar.stdout).unwrap();
        assert!(import.wait().unwrap().success());
        let id = docker(&["run", "-d", &image, BUSYBOX, "sh", "-c", script]);
        Some(Self { runtime, id, image })
    }

    async fn run(&self, script: &str, deadline: Duration) -> RunOutcome {
        let command = shell(script);
        self.runtime.run(&self.id, &command, deadline, OUTPUT_MAX_BYTES).await.unwrap()
    }

    async fn exec(&self, script: &str, stdin: bool, tty: bool) -> kubelet::runtime::Execution {
        let request = ExecRequest { command: shell(script), stdin, tty };
        self.runtime.exec(&self.id, &request).await.unwrap()
    }

    /// The log's lines, an `E` before those of standard error.
    async fn log(&self, request: LogRequest) -> Vec<String> {
        let entries = self.runtime.logs(&self.id, &request).await.unwrap();
        let lines = entries.map(|entry| {
            let entry = entry.unwrap();
            let mark = if entry.stream == OutputStream::Stderr { "E" } else { "" };
            format!("{mark}{}", std::str::from_utf8(&entry.bytes).unwrap().trim_end())
        });
        tokio::time::timeout(PATIENCE, lines.collect()).await.unwrap()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        docker(&["rm", "-f", &self.id]);
        docker(&["rmi", &self.image]);
    }
}

fn shell(script: &str) -> Vec<String> {
    [BUSYBOX, "sh", "-c", script].map(str::to_owned).to_vec()
}

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

macro_rules! container {
    ($script:expr) => {
        match Sandbox::new($script).await {
            Some(container) => container,
            None => return,
        }
    };
}

const SERVE: &str = "trap 'exit 0' TERM; busybox sleep 1000000 & wait";

#[tokio::test]
async fn a_command_runs_to_its_end_or_to_its_deadline() {
    let container = container!(SERVE);
    match container.run("echo out; echo err >&2; exit 3", PATIENCE).await {
        RunOutcome::Exited { code: 3, output } => {
            assert!(output.text().contains("out\n") && output.text().contains("err\n"));
        }
        other => panic!("{other:?}"),
    }
    let endless = container.run("while true; do echo much; done", Duration::from_secs(1)).await;
    let RunOutcome::TimedOut { output } = endless else { panic!("it ended") };
    assert_eq!((output.bytes.len(), output.truncated), (OUTPUT_MAX_BYTES, true));
    // Nothing of it is left.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while docker(&["top", &container.id, "-o", "args"]).contains("much") {
        assert!(tokio::time::Instant::now() < deadline, "the command was not killed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let missing = ["/bin/nope".to_owned()];
    let outcome = container.runtime.run(&container.id, &missing, PATIENCE, OUTPUT_MAX_BYTES).await;
    match outcome.unwrap() {
        RunOutcome::Exited { code: 126 | 127, output } => {
            assert!(output.text().contains("nope"), "{}", output.text());
        }
        other => panic!("{other:?}"),
    }
    let gone = container.runtime.run("nosuchcontainer", &missing, PATIENCE, OUTPUT_MAX_BYTES).await;
    assert!(matches!(gone, Err(kubelet::runtime::RuntimeError::NotFound(_))), "{gone:?}");
}

#[tokio::test]
async fn a_command_has_an_input_and_a_terminal() {
    let container = container!(SERVE);
    let mut execution =
        container.exec("while read line; do echo got $line; done; exit 7", true, false).await;
    let mut input = execution.input.take().unwrap();
    input.write_all(b"one\ntwo\n").await.unwrap();
    input.shutdown().await.unwrap();
    let mut output = Vec::new();
    while let Some(piece) = execution.output.next().await {
        output.extend_from_slice(&piece.unwrap().bytes);
    }
    assert_eq!(String::from_utf8(output).unwrap(), "got one\ngot two\n");
    assert_eq!(execution.exit_code().await.unwrap(), 7);

    let mut execution = container.exec("read line; busybox stty size", true, true).await;
    let size = TerminalSize { width: 100, height: 40 };
    execution.process.resize(size).await.unwrap();
    execution.input.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    let mut output = String::new();
    while let Some(piece) = execution.output.next().await {
        output.push_str(std::str::from_utf8(&piece.unwrap().bytes).unwrap());
    }
    assert!(output.contains("40 100"), "{output:?}");
    assert_eq!(execution.exit_code().await.unwrap(), 0);
}

#[tokio::test]
async fn a_log_is_read_whole_in_part_and_as_it_grows() {
    let container = container!(
        "echo one; echo two >&2; trap 'echo last; exit 0' TERM; busybox sleep 1000000 & wait"
    );
    let follow = LogRequest { follow: true, ..LogRequest::default() };
    let mut entries = container.runtime.logs(&container.id, &follow).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let entry = tokio::time::timeout(PATIENCE, entries.next()).await.unwrap();
        seen.push(entry.unwrap().unwrap());
    }
    let whole = container.log(LogRequest::default()).await;
    assert_eq!(whole.len(), 2, "{whole:?}");
    assert!(whole.contains(&"one".to_owned()) && whole.contains(&"Etwo".to_owned()), "{whole:?}");
    let tail = LogRequest { tail: Some(1), ..LogRequest::default() };
    assert_eq!(container.log(tail).await, whole[1..]);
    let none = LogRequest { tail: Some(0), ..LogRequest::default() };
    assert!(container.log(none).await.is_empty());
    // To the nanosecond, which the engine is not asked in.
    let after = seen[1].at + Duration::from_nanos(1);
    let since = LogRequest { since: Some(after), ..LogRequest::default() };
    assert!(container.log(since).await.is_empty());

    // What is followed ends with the container.
    docker(&["stop", &container.id]);
    let rest: Vec<_> = tokio::time::timeout(PATIENCE, entries.collect()).await.unwrap();
    let rest: Vec<_> = rest.into_iter().map(|entry| entry.unwrap().bytes).collect();
    assert_eq!(rest, ["last\n"]);
    assert_eq!(container.log(LogRequest::default()).await.len(), 3);
}
