//! What one member is started with: etcd's flag names, wherever etcd has one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::auto_compaction::{AutoCompactionMode, Retention, go_duration};
use crate::mvcc::MAX_TXN_OPS;
use crate::space::SpaceLimits;
use crate::watch::{self, WatchLimits};

/// etcd's.
const DEFAULT_QUOTA_BYTES: u64 = 2 << 30;
/// Where a member listens for the others unless it is told otherwise.
pub(crate) const DEFAULT_PEER_URL: &str = "http://127.0.0.1:2380";
pub(crate) const DEFAULT_TOKEN: &str = "miniku-cluster";

/// The upper limit of `--max-request-bytes`: half of what a message between members may hold.
const MAX_MAX_REQUEST_BYTES: usize = 32 << 20;

/// Flags of one store member.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Name of this member; it must be one of those in --initial-cluster.
    #[arg(long, default_value = "default")]
    pub name: String,

    /// Directory that holds the log, the state and the snapshots of this member.
    #[arg(long, default_value = "default.miniku")]
    pub data_dir: PathBuf,

    /// Where to listen for clients (gRPC and JSON).
    #[arg(long, default_value = "http://127.0.0.1:2379", value_name = "URL")]
    pub listen_client_urls: String,

    /// Where clients reach this member, if that is not where it listens.
    #[arg(long, value_name = "URL[,URL]")]
    pub advertise_client_urls: Option<String>,

    /// Where to listen for the other members.
    #[arg(long, default_value = DEFAULT_PEER_URL, value_name = "URL")]
    pub listen_peer_urls: String,

    /// Where the other members reach this one, if that is not where it listens.
    #[arg(long, value_name = "URL")]
    pub initial_advertise_peer_urls: Option<String>,

    /// All members of the cluster at its first start, or when this member joins it [default: this one
    /// alone].
    #[arg(long, value_name = "NAME=URL[,NAME=URL]")]
    pub initial_cluster: Option<String>,

    /// Whether this member begins a new cluster with the others in --initial-cluster, or joins one
    /// that runs and has added it (`etcdctl member add`). A member that has data takes who it is from
    /// there: with `existing`, even if --initial-cluster has changed since.
    #[arg(long, value_enum, default_value_t, value_name = "new|existing")]
    pub initial_cluster_state: ClusterState,

    /// Tells clusters apart: members with another token are strangers.
    #[arg(long, default_value = DEFAULT_TOKEN)]
    pub initial_cluster_token: String,

    /// Milliseconds between two heartbeats of the leader.
    #[arg(long, default_value_t = 100, value_name = "MS")]
    pub heartbeat_interval: u64,

    /// Milliseconds after which a silent leader is given up, at the latest.
    #[arg(long, default_value_t = 600, value_name = "MS")]
    pub election_timeout: u64,

    /// Where to serve metrics and health beside --listen-client-urls.
    #[arg(long, value_name = "URL[,URL]")]
    pub listen_metrics_urls: Option<String>,

    /// Largest request from a client, in bytes; at most 32 MiB.
    #[arg(long, default_value_t = 1_572_864, value_name = "BYTES")]
    pub max_request_bytes: usize,

    /// Operations that a transaction may have: the largest of its compares and its two branches,
    /// nested transactions counted with what is in them.
    #[arg(long, default_value_t = MAX_TXN_OPS, value_name = "N")]
    pub max_txn_ops: usize,

    /// Requests that a client may have under way at once on one connection [default: no limit].
    #[arg(long, value_name = "N")]
    pub max_concurrent_streams: Option<u32>,

    /// How often a watch that asked for it is told how far it is while nothing happens: a time such
    /// as 10m or 30s.
    #[arg(
        long,
        alias = "experimental-watch-progress-notify-interval",
        default_value = "10m",
        value_name = "TIME"
    )]
    pub watch_progress_notify_interval: String,

    /// Watch streams that may be open on this member at once.
    #[arg(long, default_value_t = watch::MAX_STREAMS, value_name = "N")]
    pub max_watch_streams: usize,

    /// Watchers that one watch stream may have.
    #[arg(long, default_value_t = watch::MAX_WATCHERS_PER_STREAM, value_name = "N")]
    pub max_watchers_per_stream: usize,

    /// Writes that may wait for an answer at once; more are refused with "too many requests".
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    pub max_proposals: usize,

    /// Bytes that these waiting writes may take together; a single one may be larger.
    #[arg(long, default_value_t = 256 << 20, value_name = "BYTES")]
    pub max_proposals_bytes: usize,

    /// Log bytes after which a snapshot is taken and the log behind it removed; half of what is in
    /// use if that is more.
    #[arg(long, default_value_t = 128 << 20, value_name = "BYTES")]
    pub snapshot_log_bytes: u64,

    /// Bytes of keys and values after which writes that need room are refused, until there is room
    /// again. 0: 2 GiB; negative: no limit.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "BYTES")]
    pub quota_backend_bytes: i64,

    /// Bytes that are left free on the disk of --data-dir, beside as many as are in use, which a
    /// snapshot takes: with less, the alarm NOSPACE is raised,
    /// with a quarter of it the member ends. 0: the disk is not looked at.
    #[arg(long, default_value_t = 128 << 20, value_name = "BYTES")]
    pub disk_reserve_bytes: u64,

    /// How --auto-compaction-retention is meant.
    #[arg(long, value_enum, default_value = "periodic", value_name = "MODE")]
    pub auto_compaction_mode: AutoCompactionMode,

    /// How much history is kept, everything older is compacted: a time such as 5m (a bare number is
    /// in hours), or with --auto-compaction-mode=revision a number of revisions. 0: all.
    #[arg(long, default_value = "0", value_name = "RETENTION")]
    pub auto_compaction_retention: String,
}

/// What a member finds that starts for the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ClusterState {
    /// No cluster yet: it begins one with the others.
    #[default]
    New,
    /// A cluster that runs and expects it.
    Existing,
}

/// A flag whose value cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A listening URL that is not `http://IP:PORT`.
    #[error("--{flag}: `{value}` is not of the form http://IP:PORT")]
    Url {
        /// The flag's name.
        flag: &'static str,
        /// What was given.
        value: String,
    },
    /// A part of --initial-cluster that is not `NAME=URL`.
    #[error("--initial-cluster: `{0}` is not of the form NAME=URL")]
    InitialCluster(String),
    /// A retention that cannot be read.
    #[error("--auto-compaction-retention: `{value}`: {reason}")]
    Retention {
        /// What was given.
        value: String,
        /// What would do.
        reason: &'static str,
    },
    /// A largest request that messages between members could not carry, or that nothing fits into.
    #[error(
        "--max-request-bytes: {0} is not between 1 and {max}, which is what members can hand on to \
         each other",
        max = MAX_MAX_REQUEST_BYTES
    )]
    MaxRequestBytes(usize),
    /// A limit of nothing.
    #[error("--{0}: must be at least 1")]
    Zero(&'static str),
    /// An interval that cannot be read.
    #[error("--watch-progress-notify-interval: `{0}` is no time above 0 such as 10m, 30s or 100ms")]
    ProgressInterval(String),
    /// The same name twice in --initial-cluster with different meaning, or the same URL.
    #[error("--initial-cluster: `{0}` is given twice")]
    Duplicate(String),
    /// --initial-cluster does not hold --name.
    #[error("--name: `{0}` is not one of the members in --initial-cluster")]
    NotInCluster(String),
    /// Heartbeats must be several times more frequent than elections.
    #[error(
        "--election-timeout: {election_ms} ms must be at least five heartbeats of {heartbeat_ms} ms"
    )]
    Timing {
        /// As given.
        heartbeat_ms: u64,
        /// As given.
        election_ms: u64,
    },
}

/// A member as the first start of a cluster names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InitialMember {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) peer_urls: Vec<String>,
}

/// The flags of [`Config`], checked and read.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// These two as a new cluster would have them.
    pub(crate) member_id: u64,
    pub(crate) cluster_id: u64,
    pub(crate) listen_client: SocketAddr,
    pub(crate) listen_peer: SocketAddr,
    pub(crate) initial_members: Vec<InitialMember>,
    pub(crate) space: SpaceLimits,
    pub(crate) auto_compaction: Option<Retention>,
    pub(crate) listen_metrics: Vec<SocketAddr>,
    pub(crate) watch_limits: WatchLimits,
}

impl Config {
    /// How long a request may take before it is answered with a timeout: etcd's 5 s and two
    /// elections on top.
    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * Duration::from_millis(self.election_timeout)
    }

    /// The addresses that the member list shows to clients; `bound` stands for what was asked of
    /// the system, so that port 0 works.
    pub(crate) fn client_urls(&self, bound: SocketAddr) -> Vec<String> {
        match &self.advertise_client_urls {
            Some(urls) => urls.split(',').map(|url| url.trim().to_owned()).collect(),
            None => vec![format!("http://{bound}")],
        }
    }

    /// A leader that is silent for so long is given up.
    pub(crate) fn election_timeout(&self) -> Duration {
        Duration::from_millis(self.election_timeout)
    }

    pub(crate) fn check(&self) -> Result<Settings, ConfigError> {
        if self.election_timeout < 5 * self.heartbeat_interval || self.heartbeat_interval == 0 {
            return Err(ConfigError::Timing {
                heartbeat_ms: self.heartbeat_interval,
                election_ms: self.election_timeout,
            });
        }
        let listen_client = socket_addr("listen-client-urls", &self.listen_client_urls)?;
        let listen_peer = socket_addr("listen-peer-urls", &self.listen_peer_urls)?;
        let cluster = InitialCluster::new(
            &self.name,
            self.initial_cluster.as_deref(),
            self.initial_advertise_peer_urls.as_ref().unwrap_or(&self.listen_peer_urls),
            &self.initial_cluster_token,
        )?;
        let InitialCluster { member_id, cluster_id, members: initial_members } = cluster;
        let retention = &self.auto_compaction_retention;
        let auto_compaction = Retention::parse(self.auto_compaction_mode, retention)
            .map_err(|reason| ConfigError::Retention { value: retention.clone(), reason })?;
        if self.max_request_bytes == 0 || self.max_request_bytes > MAX_MAX_REQUEST_BYTES {
            return Err(ConfigError::MaxRequestBytes(self.max_request_bytes));
        }
        let listen_metrics = self.listen_metrics_urls.iter().flat_map(|urls| urls.split(','));
        let listen_metrics =
            listen_metrics.map(|url| socket_addr("listen-metrics-urls", url.trim()));
        Ok(Settings {
            listen_metrics: listen_metrics.collect::<Result<_, _>>()?,
            watch_limits: self.watch_limits()?,
            member_id,
            cluster_id,
            listen_client,
            listen_peer,
            initial_members,
            space: self.space_limits(),
            auto_compaction,
        })
    }

    fn watch_limits(&self) -> Result<WatchLimits, ConfigError> {
        for (flag, limit) in [
            ("max-proposals", self.max_proposals),
            ("max-proposals-bytes", self.max_proposals_bytes),
            ("max-txn-ops", self.max_txn_ops),
            ("max-watch-streams", self.max_watch_streams),
            ("max-watchers-per-stream", self.max_watchers_per_stream),
            ("max-concurrent-streams", self.max_concurrent_streams.unwrap_or(1) as usize),
        ] {
            if limit == 0 {
                return Err(ConfigError::Zero(flag));
            }
        }
        let interval = &self.watch_progress_notify_interval;
        let progress_interval = go_duration(interval)
            .filter(|interval| !interval.is_zero())
            .ok_or_else(|| ConfigError::ProgressInterval(interval.clone()))?;
        Ok(WatchLimits {
            streams: self.max_watch_streams,
            watchers_per_stream: self.max_watchers_per_stream,
            progress_interval,
            ..WatchLimits::default()
        })
    }

    fn space_limits(&self) -> SpaceLimits {
        let quota_bytes = match self.quota_backend_bytes {
            0 => Some(DEFAULT_QUOTA_BYTES),
            // Negative: no limit.
            bytes => u64::try_from(bytes).ok(),
        };
        SpaceLimits { quota_bytes, reserve_bytes: self.disk_reserve_bytes }
    }
}

/// The cluster that a member's flags describe, and which of its members it is.
#[derive(Clone, Debug)]
pub(crate) struct InitialCluster {
    pub(crate) member_id: u64,
    pub(crate) cluster_id: u64,
    pub(crate) members: Vec<InitialMember>,
}

impl InitialCluster {
    /// Without `initial_cluster` it is the member alone, under `own_url`.
    pub(crate) fn new(
        name: &str,
        initial_cluster: Option<&str>,
        own_url: &str,
        token: &str,
    ) -> Result<Self, ConfigError> {
        let members = match initial_cluster {
            Some(text) => initial_members(text, token)?,
            None => initial_members(&format!("{name}={own_url}"), token)?,
        };
        let member_id = members
            .iter()
            .find(|member| member.name == name)
            .ok_or_else(|| ConfigError::NotInCluster(name.to_owned()))?
            .id;
        let ids: Vec<String> = members.iter().map(|member| format!("{:x}", member.id)).collect();
        let cluster_id = stable_hash(&[token, &ids.join(",")]);
        Ok(Self { member_id, cluster_id, members })
    }
}

fn initial_members(text: &str, token: &str) -> Result<Vec<InitialMember>, ConfigError> {
    let mut urls_by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((name, url)) = part.split_once('=') else {
            return Err(ConfigError::InitialCluster(part.to_owned()));
        };
        if name.is_empty() || !url.starts_with("http://") {
            return Err(ConfigError::InitialCluster(part.to_owned()));
        }
        if urls_by_name.values().flatten().any(|known| known == url) {
            return Err(ConfigError::Duplicate(url.to_owned()));
        }
        urls_by_name.entry(name.to_owned()).or_default().push(url.to_owned());
    }
    let member = |(name, mut peer_urls): (String, Vec<String>)| {
        peer_urls.sort();
        let id = stable_hash(&[token, &name, &peer_urls.join(",")]);
        InitialMember { id, name, peer_urls }
    };
    Ok(urls_by_name.into_iter().map(member).collect())
}

/// The same number for the same words on every machine and in every version (FNV-1a); never 0,
/// which stands for "nobody".
pub(crate) fn stable_hash(words: &[&str]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in words.iter().flat_map(|word| word.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash.max(1)
}

fn socket_addr(flag: &'static str, url: &str) -> Result<SocketAddr, ConfigError> {
    let error = || ConfigError::Url { flag, value: url.to_owned() };
    let rest = url.strip_prefix("http://").ok_or_else(error)?.trim_end_matches('/');
    rest.replace("localhost", "127.0.0.1").parse().map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only what it takes to let clap read flags.
    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        config: Config,
    }

    fn three() -> Config {
        let cluster = "n1=http://127.0.0.1:1,n2=http://127.0.0.1:2,n3=http://127.0.0.1:3";
        let flags = ["store", "--name", "n2", "--initial-cluster", cluster];
        <Flags as clap::Parser>::parse_from(flags).config
    }

    #[test]
    fn members_get_the_same_ids_on_every_member() {
        let second = three().check().unwrap();
        let third = Config { name: "n3".into(), ..three() }.check().unwrap();
        assert_eq!(second.initial_members, third.initial_members);
        assert_eq!(second.cluster_id, third.cluster_id);
        assert_ne!(second.member_id, third.member_id);
    }

    #[test]
    fn another_token_is_another_cluster() {
        let other = Config { initial_cluster_token: "other".into(), ..three() };
        assert_ne!(other.check().unwrap().cluster_id, three().check().unwrap().cluster_id);
    }

    #[test]
    fn a_quota_of_0_is_the_default_and_a_negative_one_none() {
        let quota = |bytes| {
            let config = Config { quota_backend_bytes: bytes, ..three() };
            config.check().unwrap().space.quota_bytes
        };
        assert_eq!([0, -1, 7].map(quota), [Some(2 << 30), None, Some(7)]);
    }

    #[test]
    fn bad_flags_are_named() {
        let cases = [
            (Config { name: "n9".into(), ..three() }, "--name: `n9`"),
            (Config { initial_cluster: Some("n2".into()), ..three() }, "--initial-cluster: `n2`"),
            (Config { initial_cluster: Some("n2=ftp://x".into()), ..three() }, "`n2=ftp://x`"),
            (
                Config { initial_cluster: Some("n1=http://a:1,n2=http://a:1".into()), ..three() },
                "`http://a:1` is given twice",
            ),
            (Config { listen_client_urls: "2379".into(), ..three() }, "--listen-client-urls"),
            (Config { listen_peer_urls: "http://host".into(), ..three() }, "--listen-peer-urls"),
            (Config { election_timeout: 100, ..three() }, "--election-timeout"),
            (Config { max_request_bytes: (32 << 20) + 1, ..three() }, "--max-request-bytes"),
            (Config { max_request_bytes: 0, ..three() }, "--max-request-bytes"),
            (Config { max_txn_ops: 0, ..three() }, "--max-txn-ops"),
            (Config { max_concurrent_streams: Some(0), ..three() }, "--max-concurrent-streams"),
            (Config { listen_metrics_urls: Some("x".into()), ..three() }, "--listen-metrics-urls"),
            (
                Config { watch_progress_notify_interval: "soon".into(), ..three() },
                "--watch-progress-notify-interval: `soon`",
            ),
            (
                Config { auto_compaction_retention: "5y".into(), ..three() },
                "--auto-compaction-retention: `5y`",
            ),
        ];
        for (config, expected) in cases {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should name {expected}");
        }
    }
}
