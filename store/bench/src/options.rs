//! What is measured, with what, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Measures the store beside etcd: three members each, on this machine, in one run, driven by the
/// same plain gRPC client, in turns. Prints a Markdown table to stdout and its progress to stderr.
///
/// Each turn starts three fresh members of one system on free ports below 32768 and an empty
/// directory, warms up, measures one row, and removes them: only the system that is measured runs.
/// Both acknowledge a write when it is synced on a quorum, on the same file system.
///
/// Clients are tasks that send their next request when the last one is answered. They share HTTP/2
/// connections: one for every 16 clients, but at least one to each member, and the same number to
/// each. Every request of a client goes to the next connection, so that each member gets a third
/// of the reads and of the writes, as with etcd's own client.
#[derive(Parser, Clone, Debug)]
#[command(name = "store-bench", version)]
pub(crate) struct Options {
    /// The command of our store; a member's flags are added to it.
    #[arg(long, default_value = "target/release/miniku store", value_name = "COMMAND")]
    pub(crate) store_under_test: String,

    /// The command of etcd; a member's flags are added to it.
    #[arg(
        long,
        default_value = "etcd --logger zap --log-level error --quota-backend-bytes 8589934592",
        value_name = "COMMAND"
    )]
    pub(crate) etcd: String,

    /// Only the rows whose names begin with one of these: puts-1, puts-64, puts-512, cas,
    /// cas-contended, gets-linearizable, gets-serializable, ranges, watch, memory, restart, kill.
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',')]
    pub(crate) rows: Vec<String>,

    /// How often each row is measured for each system; the table shows medians.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) rounds: usize,

    /// Seconds for which a row is measured.
    #[arg(long, default_value_t = 4.0, value_name = "SECONDS")]
    pub(crate) seconds: f64,

    /// Seconds of the same work before that.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    pub(crate) warm_up_seconds: f64,

    /// Bytes of every value.
    #[arg(long, default_value_t = 256, value_name = "BYTES")]
    pub(crate) value_bytes: usize,

    /// Watchers in the row `watch`, each with a stream of its own.
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub(crate) watchers: usize,

    /// Puts a second in the row `watch`.
    #[arg(long, default_value_t = 400, value_name = "N")]
    pub(crate) watch_rate: u32,

    /// Puts to different keys in the row `memory`.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub(crate) memory_puts: u64,

    /// MiB of data in the row `restart`, in values of 8 KiB.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub(crate) restart_mib: u64,

    /// How often the leader is killed in the row `kill`.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) kills: usize,

    /// Everything smaller, in under two minutes: one round, a second each, 64 MiB, three kills.
    #[arg(long)]
    pub(crate) quick: bool,

    /// Where the data directories are made [default: the system's temporary directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

impl Options {
    /// With the smaller figures of `--quick`, if that was asked for.
    pub(crate) fn effective(mut self) -> Self {
        if self.quick {
            self.rounds = 1;
            self.seconds = self.seconds.min(1.0);
            self.warm_up_seconds = self.warm_up_seconds.min(0.5);
            self.memory_puts = self.memory_puts.min(20_000);
            self.restart_mib = self.restart_mib.min(64);
            self.kills = self.kills.min(3);
        }
        self
    }

    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up_seconds)
    }

    pub(crate) fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}
