//! Measures the control plane: store members, apiserver, controllers and a process of hollow kubelets, all
//! on this machine and driven as a user would.
//!
//! Each case (so many nodes, so many pods) begins with a fresh cluster in a temporary directory and ends
//! with nothing left. What happens to pods is seen by a watch on the store, which costs less than asking
//! the apiserver and disturbs the measured processes least.

mod case;
mod cluster;
mod follow;
mod http;
mod options;
mod table;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use store_bench::machine::Machine;
use tokio::signal::unix::{SignalKind, signal};

use crate::options::Options;
use crate::table::Table;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let result = tokio::select! {
        result = run(&options) => result,
        // What runs is dropped, and with it the processes and their directories.
        stopped = asked_to_stop() => stopped,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "control-plane-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn asked_to_stop() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    bail!("stopped before the end")
}

async fn run(options: &Options) -> anyhow::Result<()> {
    let dir = match &options.dir {
        Some(dir) => tempfile::tempdir_in(dir)
            .with_context(|| format!("--dir: cannot write to {}", dir.display()))?,
        None => tempfile::tempdir().context("cannot make a temporary directory")?,
    };
    let mut machine = Machine::look(dir.path())?;
    let mut table = Table::default();
    for case in options.cases() {
        say(format_args!("{case}"));
        machine.measure_syncs(dir.path())?;
        let figures =
            case::measure(case, options, dir.path()).await.with_context(|| format!("{case}"))?;
        table.add(figures);
    }
    let mut out = std::io::stdout();
    writeln!(out, "{table}\n{machine}")?;
    Ok(())
}

/// Progress, for whoever waits.
fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{what}");
}
