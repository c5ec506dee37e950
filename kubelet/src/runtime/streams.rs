//! Commands in running containers, and what containers wrote: the parts of a [`Runtime`] that are
//! streams.
//!
//! ```no_run
//! # async fn example(runtime: &dyn kubelet::runtime::Runtime) -> Result<(), kubelet::runtime::RuntimeError> {
//! use kubelet::runtime::RunOutcome;
//! use std::time::Duration;
//!
//! let command = ["cat", "/etc/hostname"].map(str::to_owned);
//! match runtime.run("d803aed8…", &command, Duration::from_secs(1), 10 << 10).await? {
//!     RunOutcome::Exited { code: 0, output } => println!("{}", output.text()),
//!     RunOutcome::Exited { code, .. } => println!("failed with {code}"),
//!     RunOutcome::TimedOut { .. } => println!("it took too long and was killed"),
//! }
//! # Ok(())
//! # }
//! ```

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

#[cfg(doc)]
use super::Runtime;
use super::RuntimeError;

/// How long an engine may take to say how a command ended, once its output has.
const EXIT_CODE_DEADLINE: Duration = Duration::from_secs(5);
/// The first pause between two questions for it; each one is twice as long as that before.
const EXIT_CODE_PAUSE: Duration = Duration::from_millis(5);

/// Which of its two a process wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output; with a terminal, everything.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A command to run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// Whether the command gets an input.
    pub stdin: bool,
    /// Whether it gets a terminal, to which it writes everything.
    pub tty: bool,
}

/// Something a command wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Where it went.
    pub stream: OutputStream,
    /// What it was.
    pub bytes: Bytes,
}

/// A command's input; shutting it down is the end of the input.
pub type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// A command under way in a container. Dropping it leaves the command alone.
pub struct Execution {
    /// What it writes, until it ends. Not reading holds it up.
    pub output: BoxStream<'static, Result<Output, RuntimeError>>,
    /// Its input, if it was asked for.
    pub input: Option<Input>,
    /// The command itself.
    pub process: Arc<dyn Process>,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A command that was started in a container.
#[async_trait]
pub trait Process: Send + Sync {
    /// Its exit code; nothing while it runs. An engine that could not start it says 126 or 127, as
    /// a shell does, and why in the output.
    async fn exit_code(&self) -> Result<Option<i32>, RuntimeError>;

    /// Ends it with SIGKILL, as far as the engine can: on Docker only where the engine runs on
    /// this machine and the kubelet may. Does nothing if it has ended.
    async fn kill(&self) -> Result<(), RuntimeError>;

    /// Gives its terminal another size.
    async fn resize(&self, size: TerminalSize) -> Result<(), RuntimeError>;
}

impl Execution {
    /// The exit code of a command whose output has ended.
    ///
    /// # Errors
    /// [`RuntimeError::Deadline`] when the command goes on for seconds without its output.
    pub async fn exit_code(&self) -> Result<i32, RuntimeError> {
        exit_code(&*self.process).await
    }
}

/// The exit code of a process whose output has ended; see [`Execution::exit_code`].
pub(crate) async fn exit_code(process: &dyn Process) -> Result<i32, RuntimeError> {
    let deadline = Instant::now() + EXIT_CODE_DEADLINE;
    let mut pause = EXIT_CODE_PAUSE;
    loop {
        if let Some(code) = process.exit_code().await? {
            return Ok(code);
        }
        if Instant::now() >= deadline {
            let deadline_s = EXIT_CODE_DEADLINE.as_secs();
            return Err(RuntimeError::Deadline { call: "inspect exec", deadline_s });
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// How a command with a deadline ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// By itself.
    Exited {
        /// Its exit code.
        code: i32,
        /// The beginning of what it wrote.
        output: Captured,
    },
    /// It was still running at the deadline, and was killed.
    TimedOut {
        /// The beginning of what it wrote until then.
        output: Captured,
    },
}

/// The beginning of what a command wrote, standard output and standard error as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// At most as many bytes as were asked for.
    pub bytes: Vec<u8>,
    /// Whether there was more.
    pub truncated: bool,
}

impl Captured {
    /// As text for people.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    fn take(&mut self, bytes: &[u8], max_bytes: usize) {
        let room = max_bytes.saturating_sub(self.bytes.len());
        self.truncated |= bytes.len() > room;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// Waits for a command that was started before `deadline`; see [`Runtime::run`].
pub(crate) async fn wait(
    mut execution: Execution,
    deadline: Instant,
    output_max_bytes: usize,
) -> Result<RunOutcome, RuntimeError> {
    let mut output = Captured::default();
    let reading = async {
        while let Some(piece) = execution.output.next().await {
            output.take(&piece?.bytes, output_max_bytes);
        }
        exit_code(&*execution.process).await
    };
    if let Ok(code) = tokio::time::timeout_at(deadline, reading).await {
        return Ok(RunOutcome::Exited { code: code?, output });
    }
    // It may have ended and left its output to a child.
    if let Some(code) = execution.process.exit_code().await? {
        return Ok(RunOutcome::Exited { code, output });
    }
    execution.process.kill().await?;
    Ok(RunOutcome::TimedOut { output })
}

/// Which part of a container's log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Go on with what the container writes, until it ends.
    pub follow: bool,
    /// Begin with the last so many lines; none: with the first there is.
    pub tail: Option<u64>,
    /// Nothing that was written before.
    pub since: Option<Timestamp>,
}

/// Something a container wrote: a line with its newline, or a part of one that is very long or
/// has no newline yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// When.
    pub at: Timestamp,
    /// Where it went.
    pub stream: OutputStream,
    /// What it was.
    pub bytes: Bytes,
}

/// A container's log.
pub type Logs = BoxStream<'static, Result<LogEntry, RuntimeError>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_up_to_its_bound() {
        let mut captured = Captured::default();
        for (piece, kept, truncated) in [
            ("abc", "abc", false),
            ("de", "abcde", false),
            ("f", "abcde", true),
            ("", "abcde", true),
        ] {
            captured.take(piece.as_bytes(), 5);
            assert_eq!((&*captured.text(), captured.truncated), (kept, truncated));
        }
    }
}
