//! A program that prints a stream of changes, as a person would leave running in a terminal. When
//! it ends it is started again from where it had come to.

use super::processes::Process;
use super::scratch::Scratch;

/// Such a program.
pub(crate) struct Tail {
    name: String,
    program: &'static str,
    /// The arguments that begin after a revision; without one, from now on.
    arguments: Box<dyn Fn(Option<i64>) -> Vec<String> + Send>,
    /// The revision that a line brings the reader to, if any.
    revision: fn(&str) -> Option<i64>,
    /// One process after the other.
    runs: Vec<Process>,
}

impl Tail {
    pub(crate) fn start(
        scratch: &Scratch,
        name: &str,
        program: &'static str,
        revision: fn(&str) -> Option<i64>,
        arguments: impl Fn(Option<i64>) -> Vec<String> + Send + 'static,
    ) -> Self {
        let mut tail = Self {
            name: name.to_owned(),
            program,
            arguments: Box::new(arguments),
            revision,
            runs: Vec::new(),
        };
        tail.run(scratch, None);
        tail
    }

    fn run(&mut self, scratch: &Scratch, after: Option<i64>) {
        let name = format!("{}-{}", self.name, self.runs.len());
        self.runs.push(Process::start(scratch, &name, self.program, (self.arguments)(after)));
    }

    /// Starts it again if it has ended.
    pub(crate) fn keep_going(&mut self, scratch: &Scratch) {
        let ended = self.runs.last_mut().is_some_and(|run| !run.is_running());
        if ended {
            let reached = self.reached();
            self.run(scratch, reached);
        }
    }

    /// What it printed, without a last line that broke off.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for run in &self.runs {
            let output = run.output();
            let whole = output.rfind('\n').map_or("", |end| &output[..end]);
            lines.extend(whole.lines().filter(|line| !line.is_empty()).map(str::to_owned));
        }
        lines
    }

    /// The revision up to which it has printed everything.
    pub(crate) fn reached(&self) -> Option<i64> {
        self.lines().iter().rev().find_map(|line| (self.revision)(line))
    }
}
