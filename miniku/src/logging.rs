//! What is logged, and how it looks: for a person, in colour on a terminal only, or one JSON object
//! a line. Logs go to standard error; standard output is for what a command answers.

use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Flags that every command has.
#[derive(Args, Clone, Debug)]
pub(crate) struct Logging {
    /// What to log: a level, or levels for parts, such as info,store=debug.
    #[arg(
        long,
        global = true,
        env = "RUST_LOG",
        default_value = "info,openraft=error",
        value_name = "FILTER",
        value_parser = filter,
        help_heading = "Logging"
    )]
    log: String,

    /// How a line of the log looks.
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Logging")]
    log_format: Format,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For a person.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl Logging {
    /// Logs from here on.
    pub(crate) fn start(&self) -> Format {
        let logs = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(&self.log))
            .with_writer(io::stderr);
        match self.log_format {
            Format::Human => {
                let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
                logs.with_ansi(colour).init();
            }
            Format::Json => logs.json().init(),
        }
        self.log_format
    }
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::builder().parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked_before_anything_starts() {
        for good in ["info", "off", "info,openraft=error", "store::raft=debug"] {
            assert_eq!(filter(good), Ok(good.to_owned()));
        }
        assert!(filter("info,store=verbose").is_err());
    }
}
