//! What containers of the fake engine do, said on the command line.

use std::time::Duration;

use clap::Args;

use super::Script;

/// What every container does, unless annotations of its pod say otherwise.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "What containers of the fake engine do (a pod's annotations win)")]
pub struct FakeOptions {
    /// How long a start takes [default: no time]
    #[arg(long, value_name = "DURATION", value_parser = api::positive_duration)]
    pub fake_start_delay: Option<Duration>,
    /// No container can be started, with these words
    #[arg(long, value_name = "MESSAGE")]
    pub fake_start_error: Option<String>,
    /// Containers end by themselves after that long [default: they run until they are stopped]
    #[arg(long, value_name = "DURATION", value_parser = api::positive_duration)]
    pub fake_exit_after: Option<Duration>,
    /// With which code they end by themselves [default: 0]
    #[arg(long, value_name = "CODE", requires = "fake_exit_after")]
    pub fake_exit_code: Option<i32>,
}

impl FakeOptions {
    /// Whether anything was said.
    pub(crate) fn are_set(&self) -> bool {
        *self != Self::default()
    }

    /// The script that this amounts to.
    pub(crate) fn script(&self) -> Script {
        Script {
            start_delay: self.fake_start_delay.unwrap_or_default(),
            start_error: self.fake_start_error.clone(),
            exit_after: self.fake_exit_after.map(|after| (after, self.fake_exit_code.unwrap_or(0))),
            ..Script::default()
        }
    }
}
