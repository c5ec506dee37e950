//! The command line.

use std::fmt;
use std::io::{self, Write};

use clap::{Args, Parser, Subcommand};

use crate::logging::Logging;
use crate::up;

/// A small Kubernetes on an etcd of its own.
#[derive(Parser, Debug)]
#[command(
    name = "miniku",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  miniku up
      Everything in one process; then talk to it with curl, etcdctl and docker ps.
  scripts/cluster start
      The same as separate processes, with three store members (from a clone of the project).

Exit codes: 0 asked to stop, 1 failed, 2 wrong usage, 3 a store member was removed from its cluster."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) logging: Logging,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands; each part's flags are declared where the part is.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Everything in one process: a store member, the API, the controllers and two nodes
    #[command(after_help = "\
Examples:
  miniku up
      API on 127.0.0.1:8080, store on 127.0.0.1:2379, data in ./miniku-data.
  miniku up --nodes 3 --data-dir /var/lib/miniku
  miniku up --runtime fake
      Pods run in memory only: no container engine is needed.
  curl 127.0.0.1:8080/replicasets -d '{\"name\":\"nginx\",\"desiredCount\":4,\"selector\":{\"app\":\"nginx\"},\"template\":{\"image\":\"nginx:latest\"}}'")]
    Up(up::Args),

    /// One member of the store, with etcd's flags
    #[command(after_help = "\
Examples:
  miniku store --name n1 --data-dir n1
      A store of one member, for clients on 127.0.0.1:2379.
  miniku store --name n1 --data-dir n1 \\
      --listen-client-urls http://10.0.0.1:2379 --listen-peer-urls http://10.0.0.1:2380 \\
      --initial-cluster n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380,n3=http://10.0.0.3:2380
      The first of three members; the others alike, with their own name and addresses.
  etcdctl --endpoints 127.0.0.1:2379 endpoint status
  curl 127.0.0.1:2379/v3/maintenance/status -d '{}'
  miniku store snapshot --help
      Backups.")]
    Store(Box<StoreArgs>),

    /// The HTTP API
    #[command(after_help = "\
Examples:
  miniku apiserver
      On 127.0.0.1:8080, with the store on 127.0.0.1:2379.
  miniku apiserver --store http://127.0.0.1:2379,http://127.0.0.1:22379,http://127.0.0.1:32379
  miniku apiserver --store http://etcd-1:2379 --listen 0.0.0.0:8080
      etcd does as a store, too.
  curl 127.0.0.1:8080/pods
  curl -N '127.0.0.1:8080/pods?watch=true'")]
    Apiserver(apiserver::Config),

    /// The controllers: replicasets, scheduler, node lifecycle, garbage collection
    #[command(after_help = "\
Examples:
  miniku controllers
      With the store on 127.0.0.1:2379.
  miniku controllers --store http://127.0.0.1:2379,http://127.0.0.1:22379,http://127.0.0.1:32379
  miniku controllers & miniku controllers &
      Two of them: one acts, the other takes over within seconds when it dies.")]
    Controllers(controllers::Config),

    /// The agent of one node: runs the containers of its pods
    #[command(after_help = "\
Examples:
  miniku kubelet --node-name node-1
      Containers on the local Docker Engine, the store on 127.0.0.1:2379.
  miniku kubelet --node-name node-2 --runtime fake
      Containers in memory only.
  miniku kubelet --node-name node-1 --store http://10.0.0.1:2379,http://10.0.0.2:2379
  miniku kubelet --node-name hollow --runtime fake --hollow 1000 --log warn
      A thousand nodes, hollow-0001 to hollow-1000, whose containers start at once and run on.
  miniku kubelet --node-name shaky --runtime fake --hollow 10 --fake-start-delay 2s --fake-exit-after 1m --fake-exit-code 1
      Ten nodes on which every container takes two seconds to start and fails after a minute.")]
    Kubelet(kubelet::Config),
}

/// A member's flags, or something else to do.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub(crate) struct StoreArgs {
    #[command(flatten)]
    pub(crate) config: store::Config,

    #[command(subcommand)]
    pub(crate) command: Option<StoreCommand>,
}

/// What can be done with the store besides running a member.
#[derive(Subcommand, Debug)]
pub(crate) enum StoreCommand {
    /// Backups: what `etcdctl snapshot save` made
    #[command(subcommand, disable_help_subcommand = true)]
    Snapshot(store::backup::Command),
}

/// Writes for a person to standard error; that nobody reads there is no reason to fail.
pub(crate) fn say_error(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes for a person to standard output.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let name = command.get_name();
            assert!(help.contains(&format!("\n  miniku {name}")), "{name}");
        }
    }

    #[test]
    fn the_log_flags_go_with_every_command() {
        for line in ["miniku --log debug up", "miniku up --log-format json --log warn"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        assert!(Cli::try_parse_from(["miniku", "up", "--log", "info,store=x"]).is_err());
    }
}
