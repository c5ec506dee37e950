//! Making the data directory of a new cluster's member from a backup.
//!
//! Every member is made by itself, from the same file and with the same `--initial-cluster`, and they
//! need not know of each other for it: each begins with the same state at the same place of the log.
//!
//! ```text
//! wal/        purged up to (term 0, index 0): the log begins behind the snapshot
//! snapshots/  one, which reaches to there and names the new members: what a member's first entry
//!             would otherwise do
//! state/      the same in the engine, so that the first start is as any other
//! member.json whose it is, and its origin: the checksum of the backup
//! ```
//! The origin is part of the new cluster's id. So members that were restored never take part in the
//! cluster that the backup came from, and members restored from different files not in one, even when
//! all flags are the same: their logs would look alike and mean different things.
//!
//! The directory is made under another name beside its own, and renamed when all of it is on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use openraft::Membership;
use prost::Message as _;
use store_proto::mvccpb::KeyValue;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::file::{BackupFile, Checksum};
use super::{Error, schema};
use crate::config::InitialCluster;
use crate::identity::Identity;
use crate::mvcc::{EMPTY_REVISION, LeaseInfo, NEVER_COMPACTED, Revision, delete_event, put_event};
use crate::raft::types::{LogId, MemberNode, StoredMembership};
use crate::snapshot::SnapshotMeta;
use crate::storage::NewData;
use crate::sync_dir::sync_dir;

/// Between two lines that say how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
const LOCK: &str = "restore.lock";

/// What to make of which file.
pub(super) struct Restore {
    pub(super) file: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) cluster: InitialCluster,
    pub(super) skip_hash_check: bool,
    pub(super) without_auth: bool,
    pub(super) bump_revision: Option<i64>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) revision: i64,
    pub(super) records: u64,
    pub(super) leases: usize,
    pub(super) identity: Identity,
}

impl Restore {
    /// Does it; after an error or when `stop` is cancelled, nothing is left behind.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<Restored, Error> {
        if self.data_dir.exists() {
            return Err(Error::Exists { path: self.data_dir });
        }
        let unfinished = Unfinished::create(&self.data_dir)?;
        let path = unfinished.path.clone();
        let (restored, data) = blocking(move || self.fill(&path, &stop)).await?;
        data.begin_log().await?;
        blocking(move || {
            restored.identity.claim(&unfinished.path)?;
            unfinished.finish()?;
            Ok(restored)
        })
        .await
    }

    /// Everything but the log.
    fn fill(&self, path: &Path, stop: &CancellationToken) -> Result<(Restored, NewData), Error> {
        tracing::info!(file = %self.file.display(), "checking the backup");
        let checksum = if self.skip_hash_check { Checksum::Ignored } else { Checksum::Required };
        let file = BackupFile::open(&self.file, checksum, stop)?;
        let content = Content::read(&file)?;
        if content.has_auth && !self.without_auth {
            return Err(Error::Auth { path: self.file.clone() });
        }
        let InitialCluster { cluster_id, member_id, .. } = self.cluster;
        let mut origin: String = file.sha256().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut meta = self.meta(&content);
        if let Some(amount) = self.bump_revision {
            meta.revision = meta.revision.checked_add(amount).ok_or(Error::Bump(amount))?;
            meta.compacted = meta.revision;
            origin += &format!("+{amount}");
        }
        let identity = Identity::restored(cluster_id, member_id, origin);
        let mut records = 0;
        let data = NewData::create(path, &meta, &content.leases, |add| {
            let mut progress = Progress::new(content.revision);
            for_each_record(&file, content.compacted, &mut |revision, event| {
                if stop.is_cancelled() {
                    return Err(Error::Stopped);
                }
                records += 1;
                progress.tell(revision.main, records);
                Ok(add(revision.sub, event)?)
            })
        })?;
        let leases = content.leases.len();
        Ok((Restored { revision: meta.revision, records, leases, identity }, data))
    }

    fn meta(&self, content: &Content) -> SnapshotMeta {
        let members = &self.cluster.members;
        let voters: BTreeSet<u64> = members.iter().map(|member| member.id).collect();
        let node = |name: &str, peer_urls: &[String]| MemberNode {
            name: name.to_owned(),
            peer_urls: peer_urls.to_owned(),
            learner: false,
        };
        let nodes: BTreeMap<u64, MemberNode> = members
            .iter()
            .map(|member| (member.id, node(&member.name, &member.peer_urls)))
            .collect();
        // The place of the entry with which a cluster that is not restored begins.
        let last_log_id = LogId::new_term_index(0, 0);
        let membership = Membership::new(vec![voters], nodes)
            .expect("every voter is a node, and the member itself is one");
        SnapshotMeta {
            last_log_id,
            membership: StoredMembership::new(Some(last_log_id), membership),
            revision: content.revision,
            compacted: content.compacted,
            members: Vec::new(),
            // They are of members that are no more; the new ones find out for themselves.
            alarms: Vec::new(),
        }
    }
}

/// What a backup holds besides keys.
struct Content {
    revision: i64,
    compacted: i64,
    leases: Vec<LeaseInfo>,
    has_auth: bool,
}

impl Content {
    fn read(file: &BackupFile) -> Result<Self, Error> {
        let Some(keys) = file.bucket(schema::KEY) else {
            return Err(file.damaged("it has no bucket `key`, so it is no database of etcd"));
        };
        let mut compacted = NEVER_COMPACTED;
        let mut has_auth = false;
        let mut leases = Vec::new();
        file.walk_if_there(schema::META, |entry| {
            if entry.key == schema::FINISHED_COMPACTION || entry.key == schema::SCHEDULED_COMPACTION
            {
                let revision = schema::parse_revision_key(&entry.value);
                let (revision, _) = revision.ok_or_else(|| {
                    file.damaged_at(entry.offset, "the compacted revision is unreadable")
                })?;
                compacted = compacted.max(revision.main);
            }
            Ok(())
        })?;
        file.walk_if_there(schema::AUTH, |entry| {
            has_auth |= entry.key == schema::AUTH_ENABLED && entry.value.first() == Some(&1);
            Ok(())
        })?;
        file.walk_if_there(schema::LEASE, |entry| {
            let lease = schema::Lease::decode(entry.value).ok().filter(|lease| {
                lease.id != 0 && lease.ttl_seconds > 0 && lease.id.to_be_bytes() == *entry.key
            });
            let lease =
                lease.ok_or_else(|| file.damaged_at(entry.offset, "a lease is unreadable"))?;
            leases.push(LeaseInfo { id: lease.id, ttl_seconds: lease.ttl_seconds });
            Ok(())
        })?;
        let last = match file.last_key(keys)? {
            Some(key) => {
                schema::parse_revision_key(&key)
                    .ok_or_else(|| file.damaged(format!("{key:02x?} is no revision")))?
                    .0
                    .main
            }
            None => EMPTY_REVISION,
        };
        // A compaction may have removed the last deletions.
        let revision = last.max(compacted).max(EMPTY_REVISION);
        Ok(Self { revision, compacted, leases, has_auth })
    }
}

type Event = store_proto::mvccpb::Event;

/// Shows all writes in their order.
fn for_each_record(
    file: &BackupFile,
    compacted: i64,
    visit: &mut dyn FnMut(Revision, Event) -> Result<(), Error>,
) -> Result<(), Error> {
    file.walk_if_there(schema::KEY, |entry| {
        let unreadable = |what: &str| file.damaged_at(entry.offset, what);
        let (revision, is_tombstone) = schema::parse_revision_key(&entry.key)
            .ok_or_else(|| unreadable("a key is no revision"))?;
        if entry.value.is_empty() && revision.main <= compacted {
            // What `etcdutl snapshot restore --bump-revision` leaves.
            return Ok(());
        }
        let kv = KeyValue::decode(entry.value.clone())
            .map_err(|_| unreadable("a key-value is unreadable"))?;
        let is_whole = is_tombstone
            || (kv.mod_revision == revision.main
                && (1..=kv.mod_revision).contains(&kv.create_revision)
                && kv.version > 0);
        if kv.key.is_empty() || !is_whole {
            return Err(unreadable("a key-value does not belong to its revision"));
        }
        let event = if is_tombstone { delete_event(kv.key, revision.main) } else { put_event(kv) };
        visit(revision, event)
    })
}

/// Says now and then how far it is.
struct Progress {
    revision: i64,
    next: Instant,
}

impl Progress {
    fn new(revision: i64) -> Self {
        Self { revision, next: Instant::now() + PROGRESS_INTERVAL }
    }

    fn tell(&mut self, at: i64, records: u64) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + PROGRESS_INTERVAL;
            tracing::info!(records, revision = at, of = self.revision, "restoring");
        }
    }
}

/// A directory that is not what it is to be yet. Dropped without [`Unfinished::finish`], it is gone.
struct Unfinished {
    path: PathBuf,
    target: PathBuf,
    /// Held as long as somebody works at it, so that leftovers of a killed process can be told.
    lock: File,
    is_finished: bool,
}

impl Unfinished {
    fn create(target: &Path) -> Result<Self, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Write { path, source }
        };
        let mut name = target.file_name().map(ToOwned::to_owned).unwrap_or_default();
        name.push(".restoring");
        let path = target.with_file_name(name);
        fs::create_dir_all(&path).map_err(failed(&path))?;
        let lock = File::create(path.join(LOCK)).map_err(failed(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Busy { path });
            }
            Err(TryLockError::Error(source)) => return Err(Error::Write { path, source }),
        }
        let unfinished =
            Self { path: path.clone(), target: target.to_owned(), lock, is_finished: false };
        for entry in fs::read_dir(&path).map_err(failed(&path))? {
            let entry = entry.map_err(failed(&path))?.path();
            if entry.is_dir() {
                fs::remove_dir_all(&entry).map_err(failed(&entry))?;
            } else if !entry.ends_with(LOCK) {
                fs::remove_file(&entry).map_err(failed(&entry))?;
            }
        }
        Ok(unfinished)
    }

    /// Gives it its name, for good.
    fn finish(mut self) -> Result<(), Error> {
        let failed = |source| Error::Write { path: self.target.clone(), source };
        fs::remove_file(self.path.join(LOCK)).map_err(failed)?;
        sync_dir(&self.path).map_err(failed)?;
        // A directory that somebody made meanwhile is replaced only if it is empty.
        fs::rename(&self.path, &self.target).map_err(failed)?;
        let parent = self.target.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_dir(parent.unwrap_or(Path::new("."))).map_err(failed)?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished {
            // What cannot be removed now goes when it is tried again.
            let _ = fs::remove_dir_all(&self.path);
        }
        let _ = self.lock.unlock();
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Stopped),
    }
}
