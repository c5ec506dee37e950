//! `miniku store snapshot …`: what can be done with a backup in a file.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, value_parser};
use tokio_util::sync::CancellationToken;

use super::restore::Restore;
use super::{Error, status};
use crate::config::{DEFAULT_PEER_URL, DEFAULT_TOKEN, InitialCluster};

/// What is to be done.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Tells what a backup holds, and whether it is whole
    #[command(after_help = "\
Examples:
  etcdctl --endpoints 127.0.0.1:2379 snapshot save backup.db
  miniku store snapshot status backup.db -w table")]
    Status {
        /// The file that `etcdctl snapshot save` made.
        file: PathBuf,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        write_out: OutputFormat,
    },

    /// Makes the data directory of one member of a new cluster from a backup, ours or etcd's
    #[command(after_help = "\
The flags are etcd's, and those that the member is started with afterwards. Each member is restored
from the same file, on its own machine. Nothing of the old cluster's members is taken over, and what
is restored never joins the old cluster again, even with the same flags.

Examples:
  miniku store snapshot restore backup.db --data-dir n1 --name n1
  miniku store --data-dir n1 --name n1
      A store of one member.
  miniku store snapshot restore backup.db --data-dir n1 --name n1 \\
      --initial-cluster n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380,n3=http://10.0.0.3:2380
      The first of three members; the others alike, with their own name.")]
    Restore(RestoreFlags),
}

/// What to restore, and whose data it is to be.
#[derive(Args, Clone, Debug)]
pub struct RestoreFlags {
    /// The file that `etcdctl snapshot save` made, from this store or from an etcd.
    file: PathBuf,

    /// Name of the member; it must be one of those in --initial-cluster.
    #[arg(long, default_value = "default")]
    name: String,

    /// Directory to make; there must be none yet [default: NAME.miniku].
    #[arg(long)]
    data_dir: Option<PathBuf>,

    /// All members of the new cluster [default: this one alone].
    #[arg(long, value_name = "NAME=URL[,NAME=URL]")]
    initial_cluster: Option<String>,

    /// Tells clusters apart.
    #[arg(long, default_value = DEFAULT_TOKEN)]
    initial_cluster_token: String,

    /// Where the other members reach this one [default: what --initial-cluster says].
    #[arg(long, value_name = "URL")]
    initial_advertise_peer_urls: Option<String>,

    /// Take a file without a checksum, or with a wrong one.
    #[arg(long)]
    skip_hash_check: bool,

    /// Take a file of an etcd with authentication, and leave the authentication out.
    #[arg(long)]
    without_auth: bool,

    /// Go on this many revisions higher, so that clients that have seen newer ones than the backup's
    /// do not see revisions go back; all before is compacted.
    #[arg(long, value_name = "N", requires = "mark_compacted", value_parser = value_parser!(i64).range(1..))]
    bump_revision: Option<i64>,

    /// Goes with --bump-revision: watches from before are told to read anew.
    #[arg(long, requires = "bump_revision")]
    mark_compacted: bool,
}

impl RestoreFlags {
    fn check(self) -> Result<Restore, Error> {
        let cluster = InitialCluster::new(
            &self.name,
            self.initial_cluster.as_deref(),
            self.initial_advertise_peer_urls.as_deref().unwrap_or(DEFAULT_PEER_URL),
            &self.initial_cluster_token,
        )?;
        if let Some(text) = self.initial_advertise_peer_urls {
            let mut urls: Vec<&str> = text.split(',').map(str::trim).collect();
            urls.sort_unstable();
            let own = cluster.members.iter().find(|member| member.id == cluster.member_id);
            if own.is_none_or(|own| own.peer_urls != urls) {
                return Err(Error::OwnUrls { urls: text, name: self.name });
            }
        }
        Ok(Restore {
            file: self.file,
            data_dir: self.data_dir.unwrap_or_else(|| format!("{}.miniku", self.name).into()),
            cluster,
            skip_hash_check: self.skip_hash_check,
            without_auth: self.without_auth,
            bump_revision: self.bump_revision,
        })
    }
}

/// etcdctl's ways to print something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Values, with commas between them.
    #[default]
    Simple,
    /// A line for each value, with its name.
    Fields,
    /// One object.
    Json,
    /// A table with a head.
    Table,
}

impl Command {
    /// Does it, and returns what is to be printed. When `stop` is cancelled it ends early, with
    /// [`Error::Stopped`], and leaves nothing behind.
    ///
    /// # Errors
    ///
    /// The file is damaged or cannot be read, the data directory is there already or cannot be made,
    /// or the flags do not fit together.
    pub async fn run(self, stop: CancellationToken) -> Result<String, Error> {
        match self {
            Self::Status { file, write_out } => {
                let status = tokio::task::spawn_blocking(move || status::status(&file, &stop));
                Ok(status.await.map_err(|_| Error::Stopped)??.print(write_out))
            }
            Self::Restore(flags) => {
                let restore = flags.check()?;
                let data_dir = restore.data_dir.clone();
                let restored = restore.run(stop).await?;
                Ok(format!(
                    "restored {}: revision {}, {} records, {} leases; member {} of cluster {}",
                    data_dir.display(),
                    restored.revision,
                    restored.records,
                    restored.leases,
                    restored.identity.member_id,
                    restored.identity.cluster_id,
                ))
            }
        }
    }
}
