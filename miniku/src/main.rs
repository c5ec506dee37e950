//! The one binary: `miniku up` is everything in one process, the other commands are one part each.
//!
//! Exit codes: 0, it was asked to stop and did; 1, it failed; 2, the command line makes no sense; 3, it
//! is a store member that has been removed from its cluster, so that starting it again is of no use.

mod cli;
mod logging;
mod parts;
mod signals;
mod up;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mimalloc::MiMalloc;
use tokio_util::sync::CancellationToken;

use crate::cli::{Cli, Command, StoreCommand};
use crate::logging::Format;
use crate::parts::Parts;
use crate::signals::Signals;

/// What is still blocked in a system call after everything was stopped is not waited for.
const RUNTIME_STOP: Duration = Duration::from_secs(1);

/// With the C library's own a loaded store spends a fifth of its time on memory.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const REMOVED: u8 = 3;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    refuse_huge_pages();
    let cli = Cli::parse();
    let format = cli.logging.start();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into(), format),
    };
    // The runtime's own threads run the work; on this one it would be on a stack of another size.
    let outcome = runtime.block_on(async { run(cli.command).await });
    runtime.shutdown_timeout(RUNTIME_STOP);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, format),
    }
}

/// With huge pages under its allocator a process at rest takes three times the memory.
#[cfg(target_os = "linux")]
fn refuse_huge_pages() {
    // Where the kernel has none there is nothing to refuse.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Runs a command until it is asked to stop; `Err` when it could not start, or ended by itself.
async fn run(command: Command) -> anyhow::Result<()> {
    let mut signals = Signals::catch()?;
    let command = match command {
        Command::Store(mut args) => match args.command.take() {
            Some(StoreCommand::Snapshot(command)) => return snapshot(command, &mut signals).await,
            None => Command::Store(args),
        },
        other => other,
    };
    let mut parts = Parts::default();
    let started = tokio::select! {
        started = start(command, &mut parts) => started,
        signal = signals.next() => {
            tracing::info!(signal, "asked to stop while starting");
            parts.stop(&mut signals).await;
            return Ok(());
        }
    };
    let ended = match started {
        Ok(()) => tokio::select! {
            error = parts.ended() => Err(error),
            signal = signals.next() => {
                tracing::info!(signal, "stopping; once more to stop at once");
                Ok(())
            }
        },
        Err(error) => Err(error),
    };
    parts.stop(&mut signals).await;
    ended
}

/// Does something with a backup and prints the result. A signal ends it early but in order, a second
/// one at once.
async fn snapshot(command: store::backup::Command, signals: &mut Signals) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut work = Box::pin(command.run(stop.clone()));
    let done = tokio::select! {
        done = &mut work => done,
        _ = signals.next() => {
            stop.cancel();
            tokio::select! {
                done = work => done,
                _ = signals.next() => Err(store::backup::Error::Stopped),
            }
        }
    };
    cli::say(format_args!("{}", done?));
    Ok(())
}

async fn start(command: Command, parts: &mut Parts) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => up::start(args, parts).await?,
        Command::Store(args) => parts.add("store", store::start(args.config).await?),
        Command::Apiserver(config) => parts.add("apiserver", apiserver::start(config).await?),
        Command::Controllers(config) => parts.add("controllers", controllers::start(config).await?),
        Command::Kubelet(config) => parts.add("kubelet", kubelet::start(config).await?),
    }
    Ok(())
}

/// Says once what went wrong, with its causes.
fn fail(error: &anyhow::Error, format: Format) -> ExitCode {
    match format {
        Format::Human => cli::say_error(format_args!("error: {error:#}")),
        Format::Json => tracing::error!(error = format!("{error:#}"), "miniku failed"),
    }
    ExitCode::from(match error.downcast_ref() {
        Some(store::Error::Removed { .. }) => REMOVED,
        _ if is_usage(error) => USAGE,
        _ => FAILED,
    })
}

/// Whether the flags were at fault, though only the part that they are for could tell.
fn is_usage(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(store::Error::Config(_)))
        || matches!(
            error.downcast_ref(),
            Some(store::backup::Error::Config(_) | store::backup::Error::OwnUrls { .. })
        )
        || matches!(
            error.downcast_ref(),
            Some(kubelet::Error::NodeName { .. } | kubelet::Error::OnlyFake(_))
        )
        || matches!(error.downcast_ref(), Some(controllers::Error::Election(_)))
}
