//! A fixed amount of work, and what the servers took for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use store_proto::etcdserverpb::PutRequest;
use store_proto::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinSet;

use super::key;
use crate::cluster::Cluster;
use crate::connections::Connections;
use crate::options::Options;
use crate::report::{Better, Line};

const CLIENTS: usize = 64;

#[allow(clippy::cast_precision_loss)]
pub(super) async fn measure(
    cluster: &Cluster,
    options: &Options,
    value: &Bytes,
) -> anyhow::Result<Vec<Line>> {
    let at_rest = cluster.memory()?;
    let cpu_before = cluster.cpu_time()?;
    let connections = Connections::open(cluster, CLIENTS).await?;
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let mut connections = connections.for_client(client);
        let (next, value, puts) = (Arc::clone(&next), value.clone(), options.memory_puts);
        clients.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= puts {
                    return Ok::<_, tonic::Status>(());
                }
                let (key, value) = (key("new/", number), value.clone());
                let put = PutRequest { key, value, ..PutRequest::default() };
                KvClient::new(connections.next()).put(put).await?;
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    let cpu = cluster.cpu_time()? - cpu_before;
    let after = cluster.memory()?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(vec![
        Line::new("memory before (MiB, three members)", Better::Lower, vec![mib(at_rest.resident)]),
        Line::new(
            "memory after, peak (MiB)",
            Better::Lower,
            vec![mib(after.resident), mib(after.peak)],
        ),
        Line::new("CPU s of the servers", Better::Lower, vec![cpu.as_secs_f64()]),
        Line::new("on disk after (MiB)", Better::Lower, vec![mib(cluster.disk_bytes()?)]),
    ])
}
