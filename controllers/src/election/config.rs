//! What the election of a leader can be told: Kubernetes' flags, with shorter times.

use std::time::Duration;

use clap::{ArgAction, Args};

/// How one of several copies becomes the one that acts.
#[derive(Args, Clone, Debug)]
pub struct ElectionConfig {
    /// Let only one of all copies of the controllers act: the one that holds the lease
    /// kube-system/miniku-controllers.
    #[arg(
        long,
        default_value = "true",
        value_name = "true|false",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub leader_elect: bool,

    /// How long the others wait for a leader that is not heard of before one of them takes over,
    /// in whole seconds. Kubernetes: 15s.
    #[arg(long, default_value = "4s", value_name = "DURATION", value_parser = whole_seconds)]
    pub leader_elect_lease_duration: Duration,

    /// How long a leader that cannot renew its lease goes on acting; less than the lease duration.
    /// Kubernetes: 10s.
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = api::positive_duration)]
    pub leader_elect_renew_deadline: Duration,

    /// How often the leader renews its lease; less than the renew deadline. Kubernetes: 2s.
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = api::positive_duration)]
    pub leader_elect_retry_period: Duration,

    /// Who this copy is, for one that is never there twice: started again it need not wait for
    /// itself. Otherwise the name of the machine and a random number.
    #[arg(skip)]
    pub identity: Option<String>,
}

/// Times that cannot work together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--{flag} must be less than --{than}: {value:?} is not less than {limit:?}")]
pub struct InvalidTimes {
    flag: &'static str,
    than: &'static str,
    value: Duration,
    limit: Duration,
}

impl ElectionConfig {
    /// Checks that a leader renews before it gives up, and gives up before another one takes over.
    pub(crate) fn check(&self) -> Result<(), InvalidTimes> {
        let deadline = self.leader_elect_renew_deadline;
        for (flag, value, than, limit) in [
            (
                "leader-elect-renew-deadline",
                deadline,
                "leader-elect-lease-duration",
                self.leader_elect_lease_duration,
            ),
            (
                "leader-elect-retry-period",
                self.leader_elect_retry_period,
                "leader-elect-renew-deadline",
                deadline,
            ),
        ] {
            if value >= limit {
                return Err(InvalidTimes { flag, than, value, limit });
            }
        }
        Ok(())
    }
}

/// A lease says its duration in whole seconds.
fn whole_seconds(text: &str) -> Result<Duration, String> {
    let duration = api::positive_duration(text)?;
    if duration.subsec_nanos() != 0 || i32::try_from(duration.as_secs()).is_err() {
        return Err("must be in whole seconds, as in 4s".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        election: ElectionConfig,
    }

    fn parse(flags: &str) -> Result<ElectionConfig, String> {
        let line = ["controllers"].into_iter().chain(flags.split_whitespace());
        Flags::try_parse_from(line).map(|flags| flags.election).map_err(|error| error.to_string())
    }

    #[test]
    fn it_is_on_unless_switched_off() {
        for (flags, expected) in
            [("", true), ("--leader-elect", true), ("--leader-elect=false", false)]
        {
            assert_eq!(parse(flags).unwrap().leader_elect, expected, "{flags}");
        }
        assert!(parse("--leader-elect=perhaps").is_err());
        assert!(parse("--leader-elect-lease-duration 1500ms").is_err());
    }

    #[test]
    fn times_that_do_not_fit_are_refused_by_the_flag() {
        for (flags, wrong) in [
            ("", None),
            ("--leader-elect-lease-duration 15s --leader-elect-renew-deadline 10s", None),
            ("--leader-elect-lease-duration 3s", Some("leader-elect-renew-deadline")),
            ("--leader-elect-retry-period 3s", Some("leader-elect-retry-period")),
        ] {
            let checked = parse(flags).unwrap().check();
            assert_eq!(checked.err().map(|error| error.flag), wrong, "{flags}");
        }
    }
}
