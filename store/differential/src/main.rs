//! A differential test: random calls are made on a real etcd and on the store, and every answer,
//! error and watch event has to be the same.
//!
//! A sequence follows from its seed ([`generate`]). Calls are made one after the other, each on
//! both sides at once ([`side`]), and the answers are compared field by field ([`normal`] says
//! what is left out). What watches hear is collected and compared at certain points ([`watches`]).
//! Where the two are known to differ for a reason, [`accepted`] says so. A difference is printed
//! with the command that repeats it, made shorter first if wanted ([`shrink`]).

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a command-line tool")]

mod accepted;
mod call;
mod cluster;
mod generate;
mod leases;
mod normal;
mod run;
mod shrink;
mod side;
mod watches;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::generate::Plan;
use crate::run::{Calls, Ended, Setup};

/// Random calls on a real etcd and on the store, answers compared.
///
/// Exit code 0: no difference. 1: a difference, printed with what repeats it. 2: the comparison
/// itself failed.
#[derive(Parser)]
#[command(name = "store-differential", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one member of the store; this program starts its members so.
    #[command(hide = true)]
    Member(store::Config),
}

#[derive(Args, Clone)]
struct Options {
    /// The first seed; each seed is one sequence of calls on fresh, empty clusters.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, from --seed on.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Calls in one sequence.
    #[arg(long, default_value_t = 2000)]
    calls: usize,
    /// Members of either cluster; with several numbers, each seed runs with each of them.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    members: Vec<usize>,
    /// Sequences that run at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// On a difference, look for the fewest calls that show it.
    #[arg(long)]
    shrink: bool,
    /// Leave out these calls (what --shrink found to be of no account).
    #[arg(long, value_delimiter = ',', value_name = "N|FROM-TO")]
    without: Vec<String>,
    /// The etcd to compare with.
    #[arg(long, default_value = "etcd", value_name = "PATH")]
    etcd: PathBuf,
    /// What is compared with it: the store, or another etcd, to see that the comparison is sound.
    #[arg(long, default_value = "store", value_parser = ["store", "etcd"])]
    subject: String,
    /// Where the data directories are made [default: /dev/shm if it is there: durability is not
    /// what is tested].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print every call.
    #[arg(long)]
    verbose: bool,
    /// Go on with the other seeds after a difference.
    #[arg(long)]
    keep_going: bool,
}

const DIFFERENT: u8 = 1;
const BROKEN: u8 = 2;
/// How often a long run tells how far it is.
const PROGRESS_SEQUENCES: usize = 10;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(BROKEN);
        }
    };
    runtime.block_on(async {
        match cli.command {
            Some(Command::Member(config)) => member(config).await,
            None => tokio::select! {
                code = compare(cli.options) => code,
                // The members end with what holds them.
                () = asked_to_stop() => ExitCode::from(BROKEN),
            },
        }
    })
}

/// Returns when this process is interrupted or terminated.
async fn asked_to_stop() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        },
        Err(_) => _ = tokio::signal::ctrl_c().await,
    }
}

async fn member(config: store::Config) -> ExitCode {
    let error = match store::start(config).await {
        Ok(mut running) => running.join().await,
        Err(error) => error,
    };
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

async fn compare(options: Options) -> ExitCode {
    let setup = match Setup::from_options(&options) {
        Ok(setup) => Arc::new(setup),
        Err(reason) => {
            eprintln!("error: {reason}");
            return ExitCode::from(BROKEN);
        }
    };
    let began = Instant::now();
    let mut plans: Vec<Plan> = (options.seed..options.seed + options.seeds)
        .flat_map(|seed| options.members.iter().map(move |&members| Plan { seed, members }))
        .collect();
    plans.reverse();
    let total = plans.len();
    let calls_made = Arc::new(AtomicU64::new(0));
    let (mut running, mut done, mut worst) = (JoinSet::new(), 0, 0);
    loop {
        while running.len() < options.jobs.max(1)
            && (worst == 0 || options.keep_going)
            && let Some(plan) = plans.pop()
        {
            let (setup, options) = (Arc::clone(&setup), options.clone());
            let calls_made = Arc::clone(&calls_made);
            running.spawn(async move { sequence(plan, &setup, &options, &calls_made).await });
        }
        let Some(ended) = running.join_next().await else { break };
        done += 1;
        if done % PROGRESS_SEQUENCES == 0 && done < total {
            eprintln!("{done} of {total} sequences, {:.0} s", began.elapsed().as_secs_f64());
        }
        match ended {
            Ok(code) => worst = worst.max(code),
            Err(error) => {
                eprintln!("error: {error}");
                worst = BROKEN;
            }
        }
    }
    println!(
        "{done} of {total} sequences, {} calls, {:.1} s: {}",
        calls_made.load(Ordering::Relaxed),
        began.elapsed().as_secs_f64(),
        match worst {
            0 => "no difference",
            DIFFERENT => "different",
            _ => "failed",
        }
    );
    ExitCode::from(worst)
}

/// Runs one sequence and tells what came of it.
async fn sequence(plan: Plan, setup: &Setup, options: &Options, calls_made: &AtomicU64) -> u8 {
    let calls = match Calls::new(options.calls, &options.without) {
        Ok(calls) => calls,
        Err(reason) => {
            eprintln!("error: --without: {reason}");
            return BROKEN;
        }
    };
    let ended = run::run(plan, setup, &calls).await;
    calls_made.fetch_add(u64::try_from(calls.len()).unwrap_or(0), Ordering::Relaxed);
    match ended {
        Ended::Same => 0,
        Ended::Broken(reason) => {
            eprintln!("seed {} with {} members: {reason}", plan.seed, plan.members);
            BROKEN
        }
        Ended::Different(difference) => {
            println!("{}", difference.report(plan, &calls));
            if options.shrink {
                match shrink::shrink(plan, setup, calls.up_to(difference.number)).await {
                    Some((difference, calls)) => {
                        println!("== made shorter\n{}", difference.report(plan, &calls));
                    }
                    None => println!("== it does not show again"),
                }
            }
            DIFFERENT
        }
    }
}
