//! Exec and logs on a Docker Engine.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use bollard::query_parameters::LogsOptionsBuilder;
use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{LONG_DEADLINE, SHORT_DEADLINE, deadline, runtime_error, within};
use crate::runtime::{
    ExecRequest, Execution, LogEntry, LogRequest, Logs, Output, OutputStream, Process,
    RuntimeError, TerminalSize,
};

/// Reading a log that is not followed fails when nothing arrives for so long.
const LOG_STALL: Duration = Duration::from_secs(30);

/// Starts a command. The engine starts it when its answer is first read.
pub(super) async fn exec(
    docker: &Docker,
    container: &str,
    request: &ExecRequest,
) -> Result<Execution, RuntimeError> {
    let options = CreateExecOptions {
        attach_stdin: Some(request.stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(request.tty),
        cmd: Some(request.command.clone()),
        ..CreateExecOptions::default()
    };
    let created = docker.create_exec(container, options);
    let exec_id = within("create exec", SHORT_DEADLINE, created).await?.id;
    let options = StartExecOptions { tty: request.tty, ..StartExecOptions::default() };
    let started = docker.start_exec(&exec_id, Some(options));
    let (output, input) = match within("start exec", LONG_DEADLINE, started).await? {
        StartExecResults::Attached { output, input } => (output, input),
        StartExecResults::Detached => {
            return Err(RuntimeError::Refused("the engine detached from the command".into()));
        }
    };
    let output = output.map(|piece| {
        let (stream, bytes) = classify(piece.map_err(runtime_error)?);
        Ok(Output { stream, bytes })
    });
    let process =
        DockerProcess { docker: docker.clone(), exec_id, container: container.to_owned() };
    Ok(Execution {
        output: output.boxed(),
        input: request.stdin.then_some(input),
        process: Arc::new(process),
    })
}

/// Reads a container's log. The engine stamps every entry, and sends each in a frame of its own.
pub(super) fn logs(docker: &Docker, container: &str, request: &LogRequest) -> Logs {
    let tail = request.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let mut options = LogsOptionsBuilder::new()
        .stdout(true)
        .stderr(true)
        .follow(request.follow)
        .timestamps(true)
        .tail(&tail);
    // The engine is asked in whole seconds; the rest is left out here.
    if let Some(since) = request.since
        && let Ok(since) = i32::try_from(since.as_second())
    {
        options = options.since(since);
    }
    let frames = docker.logs(container, Some(options.build())).boxed();
    let (since, stall) = (request.since, (!request.follow).then_some(LOG_STALL));
    let entries = stream::unfold(Some(frames), move |frames| async move {
        let mut frames = frames?;
        loop {
            let next = match stall {
                None => frames.next().await,
                Some(stall) => match tokio::time::timeout(stall, frames.next()).await {
                    Ok(next) => next,
                    Err(_) => return Some((Err(deadline("logs", stall)), None)),
                },
            };
            match next?.map_err(runtime_error).and_then(entry) {
                Ok(entry) if since.is_some_and(|since| entry.at < since) => {}
                Ok(entry) => return Some((Ok(entry), Some(frames))),
                Err(error) => return Some((Err(error), None)),
            }
        }
    });
    entries.boxed()
}

fn classify(output: LogOutput) -> (OutputStream, Bytes) {
    match output {
        LogOutput::StdErr { message } => (OutputStream::Stderr, message),
        LogOutput::StdOut { message }
        | LogOutput::StdIn { message }
        | LogOutput::Console { message } => (OutputStream::Stdout, message),
    }
}

/// `2026-01-02T03:04:05.000000006Z text` taken apart.
fn entry(frame: LogOutput) -> Result<LogEntry, RuntimeError> {
    let (stream, frame) = classify(frame);
    let stamped = frame.iter().position(|byte| *byte == b' ').and_then(|space| {
        let at: Timestamp = std::str::from_utf8(&frame[..space]).ok()?.parse().ok()?;
        Some(LogEntry { at, stream, bytes: frame.slice(space + 1..) })
    });
    stamped
        .ok_or_else(|| RuntimeError::Refused("the engine's log has a line without a time".into()))
}

/// A command on the engine.
struct DockerProcess {
    docker: Docker,
    exec_id: String,
    container: String,
}

#[async_trait]
impl Process for DockerProcess {
    async fn exit_code(&self) -> Result<Option<i32>, RuntimeError> {
        let call = self.docker.inspect_exec(&self.exec_id);
        let found = within("inspect exec", SHORT_DEADLINE, call).await?;
        let code = found.exit_code.filter(|_| found.running == Some(false));
        Ok(code.map(|code| i32::try_from(code).unwrap_or(i32::MAX)))
    }

    /// The engine has no call for this, but tells the process id. It is believed only if that
    /// process is in the container's control group here: the engine may be on another machine.
    async fn kill(&self) -> Result<(), RuntimeError> {
        let call = self.docker.inspect_exec(&self.exec_id);
        let found = within("inspect exec", SHORT_DEADLINE, call).await?;
        if found.running != Some(true) {
            return Ok(());
        }
        let pid = found.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let container = found.container_id.as_deref().unwrap_or(&self.container);
        let Some(pid) = pid else { return Ok(()) };
        if let Err(why) = kill_in_container(pid, container) {
            tracing::warn!(container, why, "a command goes on in its container");
        }
        Ok(())
    }

    async fn resize(&self, size: TerminalSize) -> Result<(), RuntimeError> {
        let size = ResizeExecOptions { width: size.width, height: size.height };
        let call = self.docker.resize_exec(&self.exec_id, size);
        within("resize exec", SHORT_DEADLINE, call).await
    }
}

/// The descriptor is taken before the process is looked at, so that both are about the same one.
fn kill_in_container(pid: Pid, container: &str) -> Result<(), String> {
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero()));
    if !groups.is_ok_and(|groups| groups.contains(container)) {
        return Err("the engine's processes are not this machine's".to_owned());
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_is_taken_apart() {
        let frame = |text: &'static str| LogOutput::StdErr { message: text.into() };
        let entry = entry(frame("2026-01-02T03:04:05.000000006Z to be or\n")).unwrap();
        assert_eq!(entry.at.to_string(), "2026-01-02T03:04:05.000000006Z");
        assert_eq!(entry.stream, OutputStream::Stderr);
        assert_eq!(entry.bytes, "to be or\n");
        let empty = super::entry(frame("2026-01-02T03:04:05.000000006Z \n")).unwrap();
        assert_eq!(empty.bytes, "\n");
        assert!(super::entry(frame("no time here\n")).is_err());
    }

    #[test]
    fn a_process_outside_the_container_is_left_alone() {
        let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(kill_in_container(own, "d803aed8c0ffee").is_err());
    }
}
