//! Exec and logs of containers that only exist in memory.
//!
//! What commands do is scripted with [`FakeRuntime::script_exec`]; without a script every command
//! ends at once with 0, but `cat`, which gives back its input. What containers write is said with
//! [`FakeRuntime::log`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use super::{ContainerState, FakeRuntime, State, no_such_container};
use crate::runtime::{
    ExecRequest, Execution, LogEntry, LogRequest, Logs, Output, OutputStream, Process,
    RuntimeError, TerminalSize,
};

/// What is kept of a container's log.
const LOG_ENTRIES_MAX: usize = 1000;
/// What a command with an input reads ahead.
const INPUT_BUFFER_BYTES: usize = 4096;

/// What a command does.
#[derive(Clone, Debug, Default)]
pub struct ExecScript {
    /// It takes that long.
    pub takes: Duration,
    /// What it writes at its beginning.
    pub stdout: String,
    /// What it writes to standard error at its beginning.
    pub stderr: String,
    /// How it ends.
    pub exit_code: i32,
}

/// What the commands in containers of an image do.
pub(super) type ExecScripts = Arc<dyn Fn(&[String]) -> ExecScript + Send + Sync>;

/// The log of a container.
#[derive(Default)]
pub(super) struct Log {
    entries: VecDeque<LogEntry>,
    /// How many entries came before those that are kept.
    dropped: usize,
}

impl FakeRuntime {
    /// Says what commands do in containers of `image` from now on.
    pub fn script_exec(
        &self,
        image: &str,
        script: impl Fn(&[String]) -> ExecScript + Send + Sync + 'static,
    ) {
        self.state.lock().execs.insert(image.to_owned(), Arc::new(script));
    }

    /// The container of that name writes a line.
    pub fn log(&self, name: &str, stream: OutputStream, line: &str) {
        let mut state = self.state.lock();
        if let Some(id) = state.of_names.get(name).cloned() {
            let bytes = Bytes::from(format!("{line}\n"));
            let log = state.logs.entry(id).or_default();
            log.entries.push_back(LogEntry { at: Timestamp::now(), stream, bytes });
            if log.entries.len() > LOG_ENTRIES_MAX {
                log.entries.pop_front();
                log.dropped += 1;
            }
        }
        drop(state);
        self.wake_followers();
    }

    /// How many commands are under way.
    #[must_use]
    pub fn commands(&self) -> usize {
        self.commands.load(Ordering::Relaxed)
    }

    /// How many logs are being read.
    #[must_use]
    pub fn log_readers(&self) -> usize {
        self.changed.receiver_count()
    }

    pub(super) fn begin_exec(
        &self,
        id: &str,
        request: &ExecRequest,
    ) -> Result<Execution, RuntimeError> {
        let state = self.reachable()?;
        let container = state.get(id).ok_or_else(|| no_such_container(id))?;
        if !matches!(container.state, ContainerState::Running { .. }) {
            return Err(RuntimeError::Conflict(format!("container {id} is not running")));
        }
        let script = state.execs.get(&container.image).map(|script| script(&request.command));
        drop(state);
        let is_cat = script.is_none() && request.command.first().is_some_and(|word| word == "cat");
        let script = script.unwrap_or_default();
        let (exit, exited) = watch::channel(None);
        self.commands.fetch_add(1, Ordering::Relaxed);
        let process = Arc::new(FakeProcess { exit, commands: self.commands.clone() });
        let (input, echo) = tokio::io::duplex(INPUT_BUFFER_BYTES);
        let written =
            [(OutputStream::Stdout, script.stdout), (OutputStream::Stderr, script.stderr)];
        let written = written.into_iter().filter(|(_, text)| !text.is_empty());
        let written: Vec<_> =
            written.map(|(stream, text)| Ok(Output { stream, bytes: Bytes::from(text) })).collect();
        let echo = is_cat.then(|| (echo, exited.clone()));
        let echoing = stream::unfold(echo, |echo| async move {
            let (mut echo, mut exited) = echo?;
            let mut bytes = vec![0; INPUT_BUFFER_BYTES];
            let read = tokio::select! {
                read = echo.read(&mut bytes) => read.ok().filter(|read| *read > 0)?,
                _ = exited.wait_for(Option::is_some) => return None,
            };
            bytes.truncate(read);
            let piece = Output { stream: OutputStream::Stdout, bytes: bytes.into() };
            Some((Ok(piece), Some((echo, exited))))
        });
        let (takes, code, ending) = (script.takes, script.exit_code, process.clone());
        let mut exited = exited;
        let end = stream::once(async move {
            tokio::select! {
                () = tokio::time::sleep(takes) => ending.end(code),
                _ = exited.wait_for(Option::is_some) => {}
            }
        });
        let output = stream::iter(written).chain(echoing).map(Some).chain(end.map(|()| None));
        Ok(Execution {
            output: output.filter_map(std::future::ready).boxed(),
            input: request.stdin.then(|| Box::pin(input) as _),
            process,
        })
    }

    pub(super) fn begin_logs(&self, id: &str, request: &LogRequest) -> Result<Logs, RuntimeError> {
        let state = self.reachable()?;
        if state.get(id).is_none() {
            return Err(no_such_container(id));
        }
        let first = state.logs.get(id).map_or(0, |log| {
            let tail = request.tail.and_then(|lines| usize::try_from(lines).ok());
            log.dropped + tail.map_or(0, |lines| log.entries.len().saturating_sub(lines))
        });
        drop(state);
        let follower = Follower {
            engine: self.own.upgrade().ok_or_else(|| no_such_container(id))?,
            changed: self.changed.subscribe(),
            id: id.to_owned(),
            next: first,
            request: request.clone(),
        };
        let entries = stream::unfold(follower, |mut follower| async move {
            let entry = follower.next_entry().await?;
            Some((Ok(entry), follower))
        });
        Ok(entries.boxed())
    }
}

struct Follower {
    engine: Arc<FakeRuntime>,
    changed: watch::Receiver<u64>,
    id: String,
    /// The number of the entry to come.
    next: usize,
    request: LogRequest,
}

impl Follower {
    async fn next_entry(&mut self) -> Option<LogEntry> {
        loop {
            self.changed.borrow_and_update();
            let (entry, running) = self.engine.state.lock().entry_at(&self.id, &mut self.next);
            match entry {
                Some(entry) if self.request.since.is_some_and(|since| entry.at < since) => {}
                Some(entry) => return Some(entry),
                None if !running || !self.request.follow => return None,
                None => self.changed.changed().await.ok()?,
            }
        }
    }
}

impl State {
    /// The entry of that number or the first that is kept after it, and whether the container runs.
    fn entry_at(&self, id: &str, next: &mut usize) -> (Option<LogEntry>, bool) {
        let state = self.get(id).map(|container| &container.state);
        let running = matches!(state, Some(ContainerState::Running { .. }));
        let entry = self.logs.get(id).and_then(|log| {
            let index = next.saturating_sub(log.dropped);
            *next = log.dropped + index;
            log.entries.get(index).cloned()
        });
        *next += usize::from(entry.is_some());
        (entry, running)
    }
}

struct FakeProcess {
    exit: watch::Sender<Option<i32>>,
    /// Counts those that have not ended.
    commands: Arc<AtomicUsize>,
}

impl FakeProcess {
    fn end(&self, code: i32) {
        self.exit.send_if_modified(|exit| {
            let ends = exit.is_none();
            exit.get_or_insert(code);
            self.commands.fetch_sub(usize::from(ends), Ordering::Relaxed);
            ends
        });
    }
}

#[async_trait]
impl Process for FakeProcess {
    async fn exit_code(&self) -> Result<Option<i32>, RuntimeError> {
        Ok(*self.exit.borrow())
    }

    async fn kill(&self) -> Result<(), RuntimeError> {
        self.end(137);
        Ok(())
    }

    async fn resize(&self, _size: TerminalSize) -> Result<(), RuntimeError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::runtime::{RunOutcome, Runtime};

    /// An engine with a container of image `web` that runs.
    async fn engine() -> (Arc<FakeRuntime>, String) {
        let engine = FakeRuntime::new(1, 1);
        engine.pull("web").await.unwrap();
        let id = engine.create(&crate::runtime::fake::tests::spec("web")).await.unwrap();
        engine.start(&id).await.unwrap();
        (engine, id)
    }

    #[tokio::test(start_paused = true)]
    async fn commands_do_what_the_script_says() {
        let (engine, id) = engine().await;
        engine.script_exec("web", |command| ExecScript {
            takes: Duration::from_secs(if command.contains(&"slow".to_owned()) { 5 } else { 0 }),
            stdout: "out".into(),
            exit_code: 3,
            ..ExecScript::default()
        });
        let run = async |word: &str| {
            let command = ["check".to_owned(), word.to_owned()];
            engine.run(&id, &command, Duration::from_secs(1), 10).await.unwrap()
        };
        match run("quick").await {
            RunOutcome::Exited { code: 3, output } => assert_eq!(output.text(), "out"),
            other => panic!("{other:?}"),
        }
        let RunOutcome::TimedOut { output } = run("slow").await else { panic!("it ended") };
        assert_eq!(output.text(), "out");
        engine.kill(&id).await.unwrap();
        let stopped = engine.run(&id, &[], Duration::from_secs(1), 10).await;
        assert!(matches!(stopped, Err(RuntimeError::Conflict(_))), "{stopped:?}");
    }

    #[tokio::test]
    async fn cat_gives_back_its_input() {
        let (engine, id) = engine().await;
        let request = ExecRequest { command: vec!["cat".into()], stdin: true, tty: false };
        let mut execution = engine.exec(&id, &request).await.unwrap();
        let mut input = execution.input.take().unwrap();
        input.write_all(b"hello").await.unwrap();
        assert_eq!(execution.output.next().await.unwrap().unwrap().bytes, "hello");
        assert_eq!(execution.process.exit_code().await.unwrap(), None);
        drop(input);
        assert!(execution.output.next().await.is_none());
        assert_eq!(execution.exit_code().await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_log_is_followed_to_the_containers_end() {
        let (engine, id) = engine().await;
        let name = engine.containers()[0].name.clone();
        for line in ["one", "two"] {
            engine.log(&name, OutputStream::Stdout, line);
        }
        let request = LogRequest { follow: true, tail: Some(1), since: None };
        let mut logs = engine.logs(&id, &request).await.unwrap();
        assert_eq!(logs.next().await.unwrap().unwrap().bytes, "two\n");
        engine.log(&name, OutputStream::Stderr, "three");
        assert_eq!(logs.next().await.unwrap().unwrap().bytes, "three\n");
        engine.end(&name, 0);
        assert!(logs.next().await.is_none());
        let whole = engine.logs(&id, &LogRequest::default()).await.unwrap();
        assert_eq!(whole.count().await, 3);
    }
}
