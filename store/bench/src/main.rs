//! Measures the store beside etcd: three members each, on one machine, in one run, with the same
//! plain gRPC client, in turns.
//!
//! A turn is one row of the table for one of the two systems: three fresh members on an empty
//! directory, the work, and away with them. Only the system that is measured runs, so that neither
//! pays for the other's heartbeats, page cache or write-back; what one round does first the next
//! one does last, so that a machine that gets slower hurts both.

mod cluster;
mod connections;
mod load;
mod options;
mod report;
mod rows;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use mimalloc::MiMalloc;
use store_bench::machine::Machine;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::System;
use crate::options::Options;
use crate::report::Table;

/// The clients' share of the machine is missing to the servers: the C library's allocator takes more.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse().effective();
    let result = tokio::select! {
        result = run(&options) => result,
        // What runs is dropped, and with it the servers and their directories.
        stopped = asked_to_stop() => stopped,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "store-bench: {error:#}");
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
    let rows = rows::selected(options)?;
    let etcd = System::new("etcd", &options.etcd)?;
    let ours = System::new("miniku", &options.store_under_test)?;
    let mut machine = Machine::look(dir.path())?;

    let mut table = Table::new(etcd.title(), ours.title());
    for row in rows {
        for round in 0..row.rounds(options) {
            let turns = if round % 2 == 0 { [&etcd, &ours] } else { [&ours, &etcd] };
            for system in turns {
                machine.measure_syncs(dir.path())?;
                let measured = row
                    .measure(system, dir.path(), options)
                    .await
                    .with_context(|| format!("{}, {}", row.title(options), system.name))?;
                progress(&row.title(options), system.name, &measured)?;
                table.add(&row.title(options), system.name == "miniku", measured);
            }
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{table}\n{machine}")?;
    Ok(())
}

/// One line for each turn, on stderr: the table is all that goes to stdout.
fn progress(row: &str, system: &str, measured: &[report::Line]) -> std::io::Result<()> {
    let figures: Vec<String> = measured.iter().map(ToString::to_string).collect();
    writeln!(std::io::stderr(), "{row:<44} {system:<7} {}", figures.join("; "))
}
