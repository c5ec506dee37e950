//! Processes that a test starts, signals, kills and starts again; none outlives it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::scratch::Scratch;
use super::wait::wait_for;

/// The binary under test.
pub(crate) const MINIKU: &str = env!("CARGO_BIN_EXE_miniku");

/// A process with its command line, so that it can be started again just so.
pub(crate) struct Process {
    pub(crate) name: String,
    program: OsString,
    arguments: Vec<OsString>,
    output: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts it. Standard output goes to `NAME.out` in the scratch directory, standard error to
    /// `NAME.log`; both are added to when it is started again.
    pub(crate) fn start<A: Into<OsString>>(
        scratch: &Scratch,
        name: &str,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut process = Self {
            name: name.to_owned(),
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            output: scratch.path(&format!("{name}.out")),
            log: scratch.path(&format!("{name}.log")),
            child: None,
        };
        process.start_again();
        process
    }

    /// Starts it with the same command line as before.
    pub(crate) fn start_again(&mut self) {
        assert!(!self.is_running(), "{} runs already", self.name);
        let append = |path: &PathBuf| {
            File::options().create(true).append(true).open(path).expect("a file for the output")
        };
        let child = Command::new(&self.program)
            .args(&self.arguments)
            // Of no meaning to others than etcdctl, which speaks an older protocol up to 3.3 unless asked.
            .env("ETCDCTL_API", "3")
            .stdin(Stdio::null())
            .stdout(append(&self.output))
            .stderr(append(&self.log))
            .spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("{:?}: {error}", self.program)));
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| {
            child.try_wait().expect("our own child can be waited for").is_none()
        })
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only when it has ended already.
            let _ = child.kill();
            child.wait().expect("our own child can be waited for");
        }
    }

    /// SIGTERM, and waits until it has ended by itself.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it was started");
        let pid = Pid::from_child(child);
        kill_process(pid, signal).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let child = self.child.as_mut().expect("it was started");
        wait_for(&format!("{name} ends"), async || {
            child.try_wait().expect("our own child can be waited for").ok_or("it still runs")
        })
        .await
    }

    /// What it wrote to standard output, over all its lives.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).expect("its output")).into_owned()
    }

    /// What it wrote to standard error, over all its lives.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).expect("its log")).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
