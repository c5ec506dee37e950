//! From a state to a file and back, and files that must not become a state.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::EntryPayload;
use proptest::prelude::*;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use store_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest,
};
use store_proto::mvccpb::KeyValue;
use store_proto::peer::{Command as LogCommand, command::Op};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::bolt::BoltWriter;
use super::restore::{Restore, Restored};
use super::{Error, OutputFormat, save, schema, status};
use crate::config::InitialCluster;
use crate::engine::MemoryEngine;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::mvcc::{CompactStep, LeaseInfo, Limits, Mvcc, Revision};
use crate::raft::types::{Batch, LogId};
use crate::storage::Storage;

const CLUSTER: &str = "n1=http://127.0.0.1:1,n2=http://127.0.0.1:2,n3=http://127.0.0.1:3";

fn apply(mvcc: &Mvcc, ops: Vec<Op>) {
    let commands = (1..).zip(ops).map(|(id, op)| LogCommand { id, op: Some(op) }).collect();
    let index = mvcc.applied().0.map_or(5, |applied| applied.index() + 1);
    let payload = EntryPayload::Normal(Batch::new(commands));
    for result in mvcc.apply(LogId::new_term_index(3, index), &payload).unwrap().results {
        result.unwrap();
    }
}

fn put(key: &str, value_bytes: usize, lease: i64) -> Op {
    let value = vec![b'x'; value_bytes].into();
    Op::Put(PutRequest { key: key.to_owned().into(), value, lease, ..PutRequest::default() })
}

fn delete(key: &str) -> Op {
    Op::DeleteRange(DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() })
}

/// Versions, deletions, leases and a compaction whose records are still there.
fn state() -> Mvcc {
    let mvcc = Mvcc::open(Arc::new(MemoryEngine::default()), Limits::default()).unwrap();
    apply(&mvcc, vec![Op::LeaseGrant(LeaseGrantRequest { id: 7, ttl: 70 })]);
    apply(&mvcc, vec![Op::LeaseGrant(LeaseGrantRequest { id: -9, ttl: 90 })]);
    for round in 0..50 {
        apply(&mvcc, vec![put(&format!("key/{:02}", round % 12), 10 * round, 0)]);
    }
    apply(&mvcc, vec![delete("key/03"), put("leased", 3, 7), put("large", 100_000, 0)]);
    apply(&mvcc, vec![Op::Compaction(CompactionRequest { revision: 40, physical: false })]);
    apply(&mvcc, vec![put("key/03", 1, 0), delete("key/04")]);
    mvcc
}

fn with_checksum(path: &Path) {
    let sum = Sha256::digest(fs::read(path).unwrap());
    File::options().append(true).open(path).unwrap().write_all(&sum).unwrap();
}

fn backup(mvcc: &Mvcc, path: &Path) {
    let file = File::create(path).unwrap();
    save::write(mvcc, &file, &CancellationToken::new()).unwrap();
    with_checksum(path);
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// A file with these buckets, which must be sorted.
fn database(path: &Path, buckets: &[(&str, Pairs)]) {
    let mut bolt = BoltWriter::new(File::create(path).unwrap()).unwrap();
    for (name, pairs) in buckets {
        bolt.begin_bucket(name.as_bytes()).unwrap();
        for (key, value) in pairs {
            bolt.put(key, value).unwrap();
        }
    }
    bolt.finish().unwrap();
    with_checksum(path);
}

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("backup.db")
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn to_restore(&self) -> Restore {
        Restore {
            file: self.file(),
            data_dir: self.data_dir(),
            cluster: InitialCluster::new("n2", Some(CLUSTER), "", "token").unwrap(),
            skip_hash_check: false,
            without_auth: false,
            bump_revision: None,
        }
    }

    async fn restore(&self) -> Result<Restored, Error> {
        self.to_restore().run(CancellationToken::new()).await
    }

    async fn open(&self) -> Storage {
        let metrics = Metrics::new().unwrap();
        // sled lets go of its directory a moment after it was dropped.
        for _ in 0..200 {
            match Storage::open(&self.data_dir(), &metrics).await {
                Ok(storage) => return storage,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
        Storage::open(&self.data_dir(), &metrics).await.unwrap()
    }

    /// Nothing but the backup itself is there.
    fn is_clean(&self) -> bool {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.collect::<Vec<_>>() == ["backup.db"]
    }
}

#[tokio::test]
async fn a_state_comes_back_in_a_new_cluster() {
    let (place, mvcc) = (Place::new(), state());
    backup(&mvcc, &place.file());
    let restored = place.restore().await.unwrap();
    assert_eq!(restored.revision, mvcc.current_revision());

    let storage = place.open().await;
    assert_eq!(storage.mvcc.hash(0).unwrap(), mvcc.hash(0).unwrap());
    assert_eq!(storage.mvcc.compacted_revision(), 40);
    assert_eq!(storage.mvcc.leases(), mvcc.leases());
    assert_eq!(storage.mvcc.lease_keys(7), ["leased"]);
    let (applied, membership) = storage.mvcc.applied();
    assert_eq!(applied, Some(LogId::new_term_index(0, 0)));
    let names: Vec<&str> = membership.nodes().map(|(_, node)| node.name.as_str()).collect();
    assert_eq!(names.len(), 3);
    assert!(membership.voter_ids().eq(membership.nodes().map(|(id, _)| *id)));
    assert!(storage.mvcc.members().is_empty());
    let identity = Identity::read(&place.data_dir()).unwrap().unwrap();
    assert_eq!(identity.cluster_id, restored.identity.cluster_id);

    assert!(matches!(place.restore().await, Err(Error::Exists { .. })));
}

#[test]
fn what_a_compaction_hides_is_left_out() {
    let place = Place::new();
    let numbers = |mvcc: &Mvcc| {
        backup(mvcc, &place.file());
        let status = status::status(&place.file(), &CancellationToken::new()).unwrap();
        status.print(OutputFormat::Json)
    };
    let mvcc = state();
    let before = numbers(&mvcc);
    mvcc.flush().unwrap();
    while mvcc.compact_step().unwrap() == CompactStep::More {}
    assert_eq!(numbers(&mvcc), before);
}

#[tokio::test]
async fn revisions_can_be_raised() {
    let (place, mvcc) = (Place::new(), state());
    backup(&mvcc, &place.file());
    let restore = Restore { bump_revision: Some(1_000_000), ..place.to_restore() };
    restore.run(CancellationToken::new()).await.unwrap();
    let storage = place.open().await;
    let revision = mvcc.current_revision() + 1_000_000;
    assert_eq!(storage.mvcc.current_revision(), revision);
    assert_eq!(storage.mvcc.compacted_revision(), revision);
    assert!(storage.mvcc.history(revision, 1000).unwrap().is_empty());
    assert!(storage.mvcc.history(revision - 1, 1000).is_err());
}

#[tokio::test]
async fn stopped_it_leaves_nothing() {
    let place = Place::new();
    backup(&state(), &place.file());
    let stop = CancellationToken::new();
    stop.cancel();
    assert!(matches!(place.to_restore().run(stop).await, Err(Error::Stopped)));
    assert!(place.is_clean());
    // What a killed one left is no hindrance.
    fs::create_dir_all(place.dir.path().join("data.restoring/state/engine-1")).unwrap();
    fs::write(place.dir.path().join("data.restoring/member.json"), "{").unwrap();
    place.restore().await.unwrap();
}

fn kv(key: &str, revision: i64, version: i64, lease: i64) -> (Vec<u8>, Vec<u8>) {
    let kv = KeyValue {
        key: key.to_owned().into(),
        create_revision: revision - version + 1,
        mod_revision: revision,
        version,
        value: "v".into(),
        lease,
    };
    (schema::revision_key(Revision::first_of(revision), false), kv.encode_to_vec())
}

fn compacted_at(revision: i64) -> Pairs {
    let key = schema::revision_key(Revision::first_of(revision), false);
    vec![(schema::SCHEDULED_COMPACTION.into(), key)]
}

/// etcd removes deletions in the compacted revision, so that of this one nothing may be left.
#[tokio::test]
async fn an_etcds_compacted_revision_may_be_gone() {
    for (keys, revision, after) in [
        (vec![kv("a", 2, 1, 0), kv("b", 4, 1, 0), kv("b", 5, 2, 0)], 5, vec![4, 5]),
        (vec![kv("a", 2, 1, 0)], 3, vec![]),
        (vec![], 3, vec![]),
    ] {
        let place = Place::new();
        database(&place.file(), &[(schema::KEY, keys), (schema::META, compacted_at(3))]);
        place.restore().await.unwrap();
        let storage = place.open().await;
        assert_eq!(storage.mvcc.current_revision(), revision);
        let history = storage.mvcc.history(3, 1 << 20).unwrap();
        let revisions: Vec<i64> = history.iter().map(|made| made.revision).collect();
        assert_eq!(revisions, after);
    }
}

#[tokio::test]
async fn a_content_that_cannot_be_is_refused() {
    let enabled = vec![(schema::AUTH_ENABLED.into(), vec![1])];
    let other_revision = vec![(kv("a", 2, 1, 0).0, kv("a", 3, 1, 0).1)];
    let nonsense = vec![(kv("a", 2, 1, 0).0, vec![0xff; 9])];
    let no_revision = vec![(b"nonsense".to_vec(), vec![1])];
    let no_lease = vec![(vec![1; 8], vec![0xff])];
    let cases = [
        (vec![(schema::META, vec![])], "it has no bucket `key`"),
        (vec![(schema::AUTH, enabled), (schema::KEY, vec![])], "--without-auth"),
        (vec![(schema::KEY, other_revision)], "does not belong to its revision (at byte"),
        (vec![(schema::KEY, nonsense)], "a key-value is unreadable (at byte"),
        (vec![(schema::KEY, no_revision)], "is no revision"),
        (vec![(schema::KEY, vec![]), (schema::LEASE, no_lease)], "a lease is unreadable (at byte"),
    ];
    for (buckets, expected) in cases {
        let place = Place::new();
        database(&place.file(), &buckets);
        let error = place.restore().await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, not {expected}");
        assert!(error.contains("backup.db"), "{error}");
        assert!(place.is_clean());
    }
    // A hole in the history, which only the state finds.
    let place = Place::new();
    database(&place.file(), &[(schema::KEY, vec![kv("a", 2, 1, 0), kv("a", 4, 2, 0)])]);
    assert!(place.restore().await.is_err());
    assert!(place.is_clean());
}

#[tokio::test]
async fn a_file_without_a_checksum_has_to_be_asked_for() {
    let (place, mvcc) = (Place::new(), state());
    backup(&mvcc, &place.file());
    let bytes = fs::read(place.file()).unwrap();
    fs::write(place.file(), &bytes[..bytes.len() - 32]).unwrap();
    let error = place.restore().await.unwrap_err().to_string();
    assert!(error.contains("--skip-hash-check"), "{error}");
    assert!(status::status(&place.file(), &CancellationToken::new()).is_ok());
    let restore = Restore { skip_hash_check: true, ..place.to_restore() };
    restore.run(CancellationToken::new()).await.unwrap();
    assert_eq!(place.open().await.mvcc.leases(), [lease(-9, 90), lease(7, 70)]);
}

fn lease(id: i64, ttl_seconds: i64) -> LeaseInfo {
    LeaseInfo { id, ttl_seconds }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// One byte is enough. And where the checksum is not looked at, what comes is a state or a
    /// refusal that leaves nothing, but no panic.
    #[test]
    fn damage_anywhere_is_found(at in any::<prop::sample::Index>(), mask in 1..=u8::MAX) {
        let place = Place::new();
        backup(&state(), &place.file());
        let mut bytes = fs::read(place.file()).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        fs::write(place.file(), bytes).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let refused = matches!(place.restore().await, Err(Error::Damaged { .. }));
            assert!(refused && place.is_clean());
            assert!(status::status(&place.file(), &CancellationToken::new()).is_err());
            let unchecked = Restore { skip_hash_check: true, ..place.to_restore() };
            let restored = unchecked.run(CancellationToken::new()).await;
            assert!(restored.is_ok() || place.is_clean());
        });
    }
}
