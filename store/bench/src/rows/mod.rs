//! The rows of the table: each is one kind of work on a fresh cluster.

mod kill;
mod memory;
mod reads;
mod restart;
mod watch;
mod writes;

use std::path::Path;

use anyhow::bail;
use bytes::Bytes;
use store_proto::etcdserverpb::kv_client::KvClient;
use store_proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, System};
use crate::connections::Connections;
use crate::load;
use crate::options::Options;
use crate::report::Line;

/// Keys that puts and gets choose from.
const KEYS: u64 = 10_000;
/// etcd takes 128 operations in a transaction.
const TXN_OPS: u64 = 100;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Row {
    Puts { clients: usize },
    CompareAndSwap { contended: bool },
    Gets { serializable: bool },
    Ranges,
    Watch,
    Memory,
    Restart,
    Kill,
}

const ROWS: [(&str, Row); 12] = [
    ("puts-1", Row::Puts { clients: 1 }),
    ("puts-64", Row::Puts { clients: 64 }),
    ("puts-512", Row::Puts { clients: 512 }),
    ("cas", Row::CompareAndSwap { contended: false }),
    ("cas-contended", Row::CompareAndSwap { contended: true }),
    ("gets-linearizable", Row::Gets { serializable: false }),
    ("gets-serializable", Row::Gets { serializable: true }),
    ("ranges", Row::Ranges),
    ("watch", Row::Watch),
    ("memory", Row::Memory),
    ("restart", Row::Restart),
    ("kill", Row::Kill),
];

/// The rows that were asked for.
pub(crate) fn selected(options: &Options) -> anyhow::Result<Vec<Row>> {
    if let Some(unknown) =
        options.rows.iter().find(|asked| ROWS.iter().all(|(name, _)| !name.starts_with(*asked)))
    {
        let names = ROWS.map(|(name, _)| name).join(", ");
        bail!("--rows: no row's name begins with `{unknown}`; there are {names}");
    }
    let wanted =
        |name: &str| options.rows.is_empty() || options.rows.iter().any(|asked| asked == name);
    let begins = |name: &str| {
        // A name that is complete means that row alone: `cas` is not `cas-contended`.
        options.rows.iter().any(|asked| {
            name.starts_with(asked.as_str()) && ROWS.iter().all(|(other, _)| other != asked)
        })
    };
    Ok(ROWS.iter().filter(|(name, _)| wanted(name) || begins(name)).map(|(_, row)| *row).collect())
}

impl Row {
    pub(crate) fn title(self, options: &Options) -> String {
        match self {
            Self::Puts { clients: 1 } => "puts, 1 client".into(),
            Self::Puts { clients } => format!("puts, {clients} clients"),
            Self::CompareAndSwap { contended: false } => {
                "compare-and-swap, 64 clients, a key each".into()
            }
            Self::CompareAndSwap { contended: true } => {
                "compare-and-swap, 64 clients, one key".into()
            }
            Self::Gets { serializable: false } => "linearizable gets, 64 clients".into(),
            Self::Gets { serializable: true } => "serializable gets, 64 clients".into(),
            Self::Ranges => "ranges of 500 keys, 16 clients".into(),
            Self::Watch => {
                format!("{} watchers, {} puts/s", options.watchers, options.watch_rate)
            }
            Self::Memory => format!("{} puts, each to a new key", options.memory_puts),
            Self::Restart => format!("restart with {} MiB of data", options.restart_mib),
            Self::Kill => format!("`kill -9` of the leader, {} times", options.kills),
        }
    }

    /// What takes long or is a median by itself is measured once.
    pub(crate) fn rounds(self, options: &Options) -> usize {
        match self {
            Self::Memory | Self::Restart | Self::Kill => 1,
            _ => options.rounds,
        }
    }

    /// One turn.
    pub(crate) async fn measure(
        self,
        system: &System,
        dir: &Path,
        options: &Options,
    ) -> anyhow::Result<Vec<Line>> {
        let mut cluster = Cluster::start(system, dir).await?;
        let value = value(options.value_bytes);
        match self {
            Self::Puts { clients } => {
                let work = |_| writes::Puts::new(&value);
                Ok(load::run(&cluster, clients, options, work).await?.lines())
            }
            Self::CompareAndSwap { contended } => {
                writes::compare_and_swap(&cluster, options, &value, contended).await
            }
            Self::Gets { serializable } => {
                fill(&cluster, KEYS, "bench/", &value).await?;
                let work = |_| reads::Gets::new(serializable);
                Ok(load::run(&cluster, 64, options, work).await?.lines())
            }
            Self::Ranges => {
                fill(&cluster, KEYS, "bench/", &value).await?;
                Ok(load::run(&cluster, 16, options, |_| reads::Ranges::new()).await?.lines())
            }
            Self::Watch => watch::measure(&cluster, options).await,
            Self::Memory => memory::measure(&cluster, options, &value).await,
            Self::Restart => restart::measure(&mut cluster, options).await,
            Self::Kill => kill::measure(&mut cluster, options).await,
        }
    }
}

/// Keys sort as their numbers do.
fn key(prefix: &str, number: u64) -> Bytes {
    format!("{prefix}{number:08}").into()
}

/// Bytes that no compression makes shorter.
fn value(bytes: usize) -> Bytes {
    let mut value = vec![0; bytes];
    rand::fill(&mut value[..]);
    value.into()
}

/// Puts so many keys, many in one transaction, and returns when they are there.
async fn fill(cluster: &Cluster, keys: u64, prefix: &str, value: &Bytes) -> anyhow::Result<()> {
    const AT_ONCE: usize = 8;
    let mut connections = Connections::open(cluster, AT_ONCE).await?;
    let mut under_way = JoinSet::new();
    for first in (0..keys).step_by(TXN_OPS as usize) {
        let put = |number| {
            let put = PutRequest {
                key: key(prefix, number),
                value: value.clone(),
                ..PutRequest::default()
            };
            RequestOp { request: Some(request_op::Request::RequestPut(put)) }
        };
        let success = (first..keys.min(first + TXN_OPS)).map(put).collect();
        let txn = TxnRequest { success, ..TxnRequest::default() };
        let mut kv = KvClient::new(connections.next());
        if under_way.len() >= AT_ONCE
            && let Some(done) = under_way.join_next().await
        {
            done??;
        }
        under_way.spawn(async move { kv.txn(txn).await.map(drop) });
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn titles(rows: &str) -> anyhow::Result<Vec<String>> {
        let options = Options::parse_from(["store-bench", "--rows", rows]);
        Ok(selected(&options)?.into_iter().map(|row| row.title(&options)).collect())
    }

    #[test]
    fn rows_are_named_or_begun() {
        assert_eq!(titles("cas").unwrap(), ["compare-and-swap, 64 clients, a key each"]);
        assert_eq!(titles("puts").unwrap().len(), 3);
        assert_eq!(titles("gets,kill").unwrap().len(), 3);
        assert!(titles("nonsense").unwrap_err().to_string().contains("`nonsense`"));
    }
}
