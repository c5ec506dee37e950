//! What is measured, and with what.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;

/// Pods that a node takes: the default of kubelets.
const PODS_PER_NODE: usize = 110;

/// Measures how fast the control plane runs pods, on nodes that exist in memory only, and prints a
/// Markdown table to stdout and its progress to stderr.
///
/// Each case starts store members, an apiserver, controllers and one process of hollow kubelets on free
/// ports and in an empty directory, and removes them in the end. In this order:
///
/// - pods that wait for a scheduler are there before the controllers are started: how many are bound a
///   second;
/// - ReplicaSets are created: how many pods a second become Running, from the request to the last pod, and
///   for each pod the time from when it is seen to exist to when it is seen Running; what that costs each
///   process;
/// - single pods are created one after the other, beside all those: the time from the request until the pod
///   is seen Running.
#[derive(Parser, Clone, Debug)]
#[command(name = "control-plane-bench", version)]
pub(crate) struct Options {
    /// The program to measure.
    #[arg(long, default_value = "target/release/miniku", value_name = "FILE")]
    pub(crate) miniku: PathBuf,

    /// How many nodes, and how many pods on them, as in 1000:20000; at most 110 on a node.
    #[arg(
        long = "cases",
        value_name = "NODES:PODS[,…]",
        value_delimiter = ',',
        default_value = "100:5000,1000:20000,5000:50000"
    )]
    cases: Vec<Case>,

    /// ReplicaSets that the pods belong to.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub(crate) sets: usize,

    /// Members of the store: 1 or 3.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) members: u8,

    /// Single pods, one after the other.
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub(crate) lone: usize,

    /// Pods that wait for the scheduler, out of the pods of a case.
    #[arg(long, default_value_t = 2000, value_name = "N")]
    pub(crate) waiting: usize,

    /// How long a container takes to start, as in 2s [default: no time].
    #[arg(long, value_name = "DURATION")]
    pub(crate) start_delay: Option<String>,

    /// What the measured processes log, to files that go with the directory.
    #[arg(long, default_value = "warn,openraft=error", value_name = "FILTER")]
    pub(crate) log: String,

    /// One small case, in well under a minute: 100 nodes with 1,000 pods.
    #[arg(long)]
    pub(crate) quick: bool,

    /// Where the data directories are made [default: the system's temporary directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Seconds to wait, before anything is stopped, after the pods of a case run: to look at them.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub(crate) linger: u64,
}

impl Options {
    pub(crate) fn cases(&self) -> Vec<Case> {
        if self.quick { vec![Case { nodes: 100, pods: 1000 }] } else { self.cases.clone() }
    }

    /// Single pods that fit on the nodes beside all others.
    pub(crate) fn lone(&self, case: Case) -> usize {
        let lone = if self.quick { self.lone.min(50) } else { self.lone };
        lone.min((case.nodes * PODS_PER_NODE).saturating_sub(case.pods))
    }
}

/// So many nodes, and so many pods on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) nodes: usize,
    pub(crate) pods: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nodes, {} pods", self.nodes, self.pods)
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once(':').and_then(|(nodes, pods)| {
            Some(Self { nodes: nodes.parse().ok()?, pods: pods.parse().ok()? })
        });
        let case = numbers.ok_or("write NODES:PODS, as in 1000:20000")?;
        if case.nodes == 0 || case.pods == 0 {
            return Err("there must be a node and a pod at least".to_owned());
        }
        if case.pods > case.nodes * PODS_PER_NODE {
            return Err(format!(
                "{} nodes take {} pods at most",
                case.nodes,
                case.nodes * PODS_PER_NODE
            ));
        }
        Ok(case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_nodes_and_pods() {
        assert_eq!("1000:20000".parse(), Ok(Case { nodes: 1000, pods: 20_000 }));
        for wrong in ["", "1000", "x:1", "0:1", "1:0", "1:111", "1:-1"] {
            assert!(wrong.parse::<Case>().is_err(), "{wrong:?}");
        }
    }
}
