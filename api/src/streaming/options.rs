//! What is asked of a log and of a command, as the query of a request: Kubernetes' names and rules.

use std::fmt;

use jiff::Timestamp;
use url::form_urlencoded;

use crate::Cause;

/// Which part of a container's log is wanted, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on with what the container writes, until it ends.
    pub follow: bool,
    /// The log of the container's life before this one.
    pub previous: bool,
    /// A time before each line.
    pub timestamps: bool,
    /// Begin with the last so many lines; none: with the first there is.
    pub tail_lines: Option<u64>,
    /// Nothing that was written before.
    pub since: Option<Since>,
    /// End after so many bytes.
    pub limit_bytes: Option<u64>,
}

/// Since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// So many seconds before now.
    Seconds(u32),
    /// That moment.
    Time(Timestamp),
}

/// A command to run in a container, and which of its streams are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// It gets an input.
    pub stdin: bool,
    /// Its standard output is wanted.
    pub stdout: bool,
    /// Its standard error is wanted.
    pub stderr: bool,
    /// It gets a terminal, to which it writes everything as its standard output.
    pub tty: bool,
}

impl LogOptions {
    /// Reads the parameters; those with other names are somebody else's.
    ///
    /// # Errors
    /// Which parameter is wrong and why.
    pub fn from_query<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Cause> {
        let mut options = Self::default();
        for (name, value) in pairs {
            match name {
                "follow" => options.follow = flag(name, value)?,
                "previous" => options.previous = flag(name, value)?,
                "timestamps" => options.timestamps = flag(name, value)?,
                "tailLines" => options.tail_lines = Some(number(name, value, 0)?),
                "limitBytes" => options.limit_bytes = Some(number(name, value, 1)?),
                "sinceSeconds" => {
                    options.set_since(name, Since::Seconds(number(name, value, 1)?))?;
                }
                "sinceTime" => {
                    let time = value.parse().map_err(|_| {
                        wrong(name, format!("must be an RFC 3339 time, not {value:?}"))
                    })?;
                    options.set_since(name, Since::Time(time))?;
                }
                _ => {}
            }
        }
        Ok(options)
    }

    fn set_since(&mut self, name: &str, since: Since) -> Result<(), Cause> {
        match self.since.replace(since) {
            None => Ok(()),
            Some(_) => Err(wrong(name, "only one of sinceTime and sinceSeconds may be given")),
        }
    }

    /// The query that [`from_query`](Self::from_query) reads.
    pub fn to_query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let flags =
            [("follow", self.follow), ("previous", self.previous), ("timestamps", self.timestamps)];
        for (name, _) in flags.iter().filter(|(_, set)| *set) {
            query.append_pair(name, "true");
        }
        let numbers = [("tailLines", self.tail_lines), ("limitBytes", self.limit_bytes)];
        for (name, number) in numbers {
            number.map(|number| query.append_pair(name, &number.to_string()));
        }
        match self.since {
            Some(Since::Seconds(seconds)) => {
                query.append_pair("sinceSeconds", &seconds.to_string());
            }
            Some(Since::Time(time)) => {
                query.append_pair("sinceTime", &time.to_string());
            }
            None => {}
        }
        query.finish()
    }
}

impl ExecOptions {
    /// Reads the parameters: a kubelet's (`input`, `output`, `error`) or an API server's (`stdin`,
    /// `stdout`, `stderr`). Those with other names are somebody else's.
    ///
    /// # Errors
    /// Which parameter is wrong and why.
    pub fn from_query<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Cause> {
        let mut options = Self::default();
        for (name, value) in pairs {
            match name {
                "command" => options.command.push(value.to_owned()),
                "stdin" | "input" => options.stdin = flag(name, value)?,
                "stdout" | "output" => options.stdout = flag(name, value)?,
                "stderr" | "error" => options.stderr = flag(name, value)?,
                "tty" => options.tty = flag(name, value)?,
                _ => {}
            }
        }
        if options.command.first().is_none_or(String::is_empty) {
            return Err(wrong("command", "must name the program to run"));
        }
        if !options.stdin && !options.stdout && !options.stderr {
            return Err(wrong("stdout", "at least one of stdin, stdout and stderr is needed"));
        }
        Ok(options)
    }

    /// The query that a kubelet reads.
    pub fn to_query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for word in &self.command {
            query.append_pair("command", word);
        }
        let flags = [
            ("input", self.stdin),
            ("output", self.stdout),
            ("error", self.stderr),
            ("tty", self.tty),
        ];
        for (name, _) in flags.iter().filter(|(_, set)| *set) {
            query.append_pair(name, "true");
        }
        query.finish()
    }
}

fn flag(name: &str, value: &str) -> Result<bool, Cause> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(wrong(name, format!("must be true or false, not {value:?}"))),
    }
}

fn number<N>(name: &str, value: &str, least: N) -> Result<N, Cause>
where
    N: std::str::FromStr + PartialOrd + Copy + fmt::Display,
{
    let read = value.parse().ok().filter(|number| *number >= least);
    read.ok_or_else(|| wrong(name, format!("must be a whole number from {least}, not {value:?}")))
}

fn wrong(name: &str, reason: impl Into<String>) -> Cause {
    Cause { field: name.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(query: &str) -> Result<LogOptions, String> {
        let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
        let pairs = pairs.iter().map(|(name, value)| (&**name, &**value));
        LogOptions::from_query(pairs).map_err(|cause| cause.field)
    }

    fn exec(query: &str) -> Result<ExecOptions, String> {
        let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
        let pairs = pairs.iter().map(|(name, value)| (&**name, &**value));
        ExecOptions::from_query(pairs).map_err(|cause| cause.field)
    }

    #[test]
    fn what_is_asked_of_a_log_comes_back_from_its_query() {
        let time = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
        let all = LogOptions {
            follow: true,
            previous: true,
            timestamps: true,
            tail_lines: Some(0),
            since: Some(Since::Time(time)),
            limit_bytes: Some(7),
        };
        let recent = LogOptions { since: Some(Since::Seconds(3)), ..LogOptions::default() };
        for options in [LogOptions::default(), all, recent] {
            assert_eq!(log(&options.to_query()), Ok(options));
        }
        assert_eq!(log("follow&container=main").map(|options| options.follow), Ok(true));
    }

    #[test]
    fn a_wrong_parameter_is_named() {
        for (query, field) in [
            ("follow=maybe", "follow"),
            ("tailLines=-1", "tailLines"),
            ("limitBytes=0", "limitBytes"),
            ("sinceSeconds=0", "sinceSeconds"),
            ("sinceTime=yesterday", "sinceTime"),
            ("sinceSeconds=1&sinceTime=2026-01-02T03:04:05Z", "sinceTime"),
        ] {
            assert_eq!(log(query), Err(field.to_owned()), "{query}");
        }
        for (query, field) in [
            ("stdout=true", "command"),
            ("command=&stdout=true", "command"),
            ("command=ls", "stdout"),
            ("command=ls&tty=2", "tty"),
        ] {
            assert_eq!(exec(query), Err(field.to_owned()), "{query}");
        }
    }

    #[test]
    fn a_command_comes_back_from_its_query_word_for_word() {
        let options = ExecOptions {
            command: ["sh", "-c", "echo \"a&b=c\" +  %20 ü"].map(str::to_owned).to_vec(),
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        };
        assert_eq!(exec(&options.to_query()), Ok(options));
        let expected = ExecOptions {
            command: vec!["ls".to_owned()],
            stdout: true,
            stderr: true,
            ..ExecOptions::default()
        };
        assert_eq!(exec("command=ls&stdout=1&stderr=true&container=x"), Ok(expected));
    }
}
