//! Writing this member's state as an etcd database, and sending it as etcd does.
//!
//! The database says in its first pages where everything is, so it can be sent only once all of it
//! is written: into a file without a name, which is gone with its last handle, however the process
//! ends. Writing goes at the disk's pace and keeps compacted records from being removed meanwhile;
//! sending goes at the client's and keeps nothing but the file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use prost::Message as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use store_proto::etcdserverpb::{AlarmMember, ResponseHeader, SnapshotResponse};
use store_proto::peer::Alarm;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::bolt::{BoltError, BoltWriter};
use super::schema;
use crate::RequestError;
use crate::engine::EngineError;
use crate::member::Member;
use crate::mvcc::{Capture, LeaseInfo, Mvcc, Revision, is_delete, kv_of};
use crate::raft::snapshot_transfer::blocking;
use crate::raft::types::MemberNode;
use crate::snapshot::{SnapshotError, SnapshotMeta};
use crate::space::RewriteRefused;

/// How many backups a member makes at a time: each takes as much of its disk as the data.
pub(crate) const BACKUPS_AT_ONCE: usize = 2;
/// A file takes up to so many times what the records do, as one page holds no part of a value.
const FILE_FACTOR: u64 = 2;
/// What one message carries.
const CHUNK_BYTES: usize = 128 << 10;
/// What is read from the file at once.
const READ_BYTES: usize = 8 * CHUNK_BYTES;
/// Messages that wait for the client.
const CHUNKS_AHEAD: usize = 4;
/// How long a client may take for one message before it is given up.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);
const WRITE_BUFFER_BYTES: usize = 256 << 10;

/// Why a backup is not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    #[error("the state cannot be read")]
    Engine(#[from] EngineError),
    #[error("the backup cannot be written")]
    Bolt(#[from] BoltError),
    #[error("there is no place for the backup")]
    File(#[from] SnapshotError),
    #[error(transparent)]
    Space(#[from] RewriteRefused),
    #[error("nobody waits for it any more")]
    Cancelled,
    #[error("this member has no state yet")]
    Nothing,
}

/// Writes the present state to `file` as a whole etcd database; its size in bytes, and the revision.
/// Blocks on the disk, for long.
pub(super) fn write(
    mvcc: &Mvcc,
    file: &File,
    cancelled: &CancellationToken,
) -> Result<(u64, i64), SaveError> {
    let written = mvcc.read_all(|capture| {
        let file = BufWriter::with_capacity(WRITE_BUFFER_BYTES, file);
        let size_bytes = write_capture(capture, BoltWriter::new(file)?, cancelled)?;
        Ok::<_, SaveError>((size_bytes, capture.meta.revision))
    })?;
    written.ok_or(SaveError::Nothing)
}

fn write_capture(
    capture: &Capture,
    mut bolt: BoltWriter<BufWriter<&File>>,
    cancelled: &CancellationToken,
) -> Result<u64, SaveError> {
    // An etcd makes all of these when it starts; the version of the cluster is for it to find out.
    bolt.begin_bucket(schema::ALARM.as_bytes())?;
    for key in alarms(&capture.meta) {
        bolt.put(&key, &[])?;
    }
    for empty in [schema::AUTH, schema::AUTH_ROLES, schema::AUTH_USERS] {
        bolt.begin_bucket(empty.as_bytes())?;
    }
    bolt.begin_bucket(schema::CLUSTER.as_bytes())?;

    bolt.begin_bucket(schema::KEY.as_bytes())?;
    let mut encoded = Vec::new();
    capture.records(|revision, event| {
        if cancelled.is_cancelled() {
            return Err(SaveError::Cancelled);
        }
        let is_tombstone = is_delete(&event);
        let kv = kv_of(&event);
        if !capture.is_visible(&kv.key, revision)? {
            return Ok(());
        }
        encoded.clear();
        let encodes = if is_tombstone {
            schema::tombstone(kv).encode(&mut encoded)
        } else {
            kv.encode(&mut encoded)
        };
        encodes.expect("a Vec grows as needed");
        bolt.put(&schema::revision_key(revision, is_tombstone), &encoded)?;
        Ok(())
    })?;

    bolt.begin_bucket(schema::LEASE.as_bytes())?;
    let mut leases: Vec<&LeaseInfo> = capture.leases.iter().collect();
    // As etcd's keys they are unsigned.
    leases.sort_by_key(|lease| lease.id.to_be_bytes());
    for lease in leases {
        let record = schema::Lease {
            id: lease.id,
            ttl_seconds: lease.ttl_seconds,
            remaining_ttl_seconds: 0,
        };
        bolt.put(&lease.id.to_be_bytes(), &record.encode_to_vec())?;
    }

    bolt.begin_bucket(schema::MEMBERS.as_bytes())?;
    for (key, value) in members(&capture.meta) {
        bolt.put(key.as_bytes(), &value)?;
    }
    bolt.begin_bucket(schema::MEMBERS_REMOVED.as_bytes())?;

    bolt.begin_bucket(schema::META.as_bytes())?;
    for (key, value) in meta(&capture.meta) {
        bolt.put(key.as_bytes(), &value)?;
    }
    Ok(bolt.finish()?)
}

/// The alarms that are raised, each a key without a value.
fn alarms(meta: &SnapshotMeta) -> BTreeSet<Vec<u8>> {
    let member = |alarm: &Alarm| {
        AlarmMember { member_id: alarm.member_id, alarm: alarm.alarm }.encode_to_vec()
    };
    meta.alarms.iter().map(member).collect()
}

/// The members as etcd notes them. A restore leaves them out, but tools show them.
fn members(meta: &SnapshotMeta) -> BTreeMap<String, Vec<u8>> {
    let member = |(id, node): (&u64, &MemberNode)| {
        let told = meta.members.iter().find(|told| told.member_id == *id);
        let mut json = json!({
            "id": id,
            "peerURLs": node.peer_urls,
            "name": told.map_or(node.name.as_str(), |told| &told.name),
            "clientURLs": told.map_or(&[][..], |told| &told.client_urls),
        });
        if node.learner {
            json["isLearner"] = true.into();
        }
        (format!("{id:x}"), json.to_string().into_bytes())
    };
    meta.membership.nodes().map(member).collect()
}

fn meta(meta: &SnapshotMeta) -> BTreeMap<&'static str, Vec<u8>> {
    let voters: Vec<u64> = meta.membership.voter_ids().collect();
    let learners: Vec<u64> =
        meta.membership.nodes().map(|(id, _)| *id).filter(|id| !voters.contains(id)).collect();
    let mut conf_state = json!({ "voters": voters, "auto_leave": false });
    if !learners.is_empty() {
        conf_state["learners"] = learners.into();
    }
    let term = **meta.last_log_id.committed_leader_id();
    let mut values = BTreeMap::from([
        (schema::CONF_STATE, conf_state.to_string().into_bytes()),
        (schema::CONSISTENT_INDEX, meta.last_log_id.index().to_be_bytes().to_vec()),
        (schema::TERM, term.to_be_bytes().to_vec()),
    ]);
    if meta.compacted >= 0 {
        // What the compaction hides was left out above, so it has nothing left to do.
        let compacted = schema::revision_key(Revision::first_of(meta.compacted), false);
        values.insert(schema::FINISHED_COMPACTION, compacted.clone());
        values.insert(schema::SCHEDULED_COMPACTION, compacted);
    }
    values
}

/// Answers a Snapshot request: the database in parts, then its SHA-256.
///
/// # Errors
///
/// [`RequestError::TooManyRequests`] when [`BACKUPS_AT_ONCE`] are being made already. The stream ends
/// with an error when the backup cannot be made, or the client does not take it.
pub(crate) fn send(
    member: &Arc<Member>,
) -> Result<impl Stream<Item = Result<SnapshotResponse, Status>> + Send + 'static, Status> {
    let permit = Arc::clone(&member.backups)
        .try_acquire_owned()
        .map_err(|_| Status::from(RequestError::TooManyRequests))?;
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let member = Arc::clone(member);
    // Dropped with the stream, the task ends, and with it the file.
    let mut task = JoinSet::new();
    task.spawn(async move {
        let _permit = permit;
        tokio::select! {
            sent = make_and_send(&member, sender) => sent,
            () = member.stop.cancelled() => Err(RequestError::Stopped.into()),
        }
    });
    Ok(stream::unfold(Some((receiver, task)), |state| async {
        let (mut receiver, mut task) = state?;
        if let Some(response) = receiver.recv().await {
            return Some((Ok(response), Some((receiver, task))));
        }
        match task.join_next().await? {
            Ok(Ok(())) => None,
            Ok(Err(status)) => Some((Err(status), None)),
            Err(error) => Some((Err(Status::internal(error.to_string())), None)),
        }
    }))
}

async fn make_and_send(
    member: &Arc<Member>,
    sender: mpsc::Sender<SnapshotResponse>,
) -> Result<(), Status> {
    let began = Instant::now();
    let header = member.header();
    let (file, size_bytes, revision) = make(Arc::clone(member)).await?;
    tracing::info!(revision, size_bytes, took = ?began.elapsed(), "a backup is ready to be sent");
    let outgoing = Outgoing { file, remaining_bytes: size_bytes, sha256: Sha256::new() };
    let mut outgoing = Some(outgoing);
    let mut header = Some(ResponseHeader { revision, ..header });
    while let Some(reading) = outgoing.take() {
        let (reading, responses) = blocking(move || reading.next())
            .await
            .map_err(|error| Status::internal(format!("the backup cannot be read: {error}")))?;
        for response in responses {
            let response = SnapshotResponse { header: header.take(), ..response };
            match timeout(CHUNK_TIMEOUT, sender.send(response)).await {
                Ok(Ok(())) => {}
                // The client has gone away.
                Ok(Err(_)) => return Ok(()),
                Err(_) => {
                    tracing::warn!("a client does not take its backup: given up");
                    let text = format!("nothing was taken for {} s", CHUNK_TIMEOUT.as_secs());
                    return Err(Status::deadline_exceeded(text));
                }
            }
        }
        outgoing = reading;
    }
    tracing::info!(revision, size_bytes, took = ?began.elapsed(), "a backup was sent");
    Ok(())
}

/// Writes a backup into a file without a name; ends early when it is dropped.
async fn make(member: Arc<Member>) -> Result<(File, u64, i64), Status> {
    let cancelled = CancellationToken::new();
    let _guard = cancelled.clone().drop_guard();
    let made = tokio::task::spawn_blocking(move || {
        let needed_bytes = member.mvcc.in_use_bytes().saturating_mul(FILE_FACTOR);
        member.space.check_rewrite(needed_bytes)?;
        let mut file = member.snapshots.unnamed_file()?;
        let (size_bytes, revision) = write(&member.mvcc, &file, &cancelled)?;
        file.rewind().map_err(BoltError::from)?;
        Ok((file, size_bytes, revision))
    });
    match made.await {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(SaveError::Space(refused))) => Err(Status::resource_exhausted(refused.to_string())),
        Ok(Err(SaveError::Nothing)) => Err(RequestError::NoLeader.into()),
        Ok(Err(error)) => {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "a backup could not be made");
            let causes = std::iter::successors(Some(error), |error| error.source());
            let text: Vec<String> = causes.map(ToString::to_string).collect();
            Err(Status::internal(text.join(": ")))
        }
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

/// A backup on its way.
struct Outgoing {
    file: File,
    remaining_bytes: u64,
    sha256: Sha256,
}

impl Outgoing {
    /// The next messages, and the rest. The checksum is the last message, as etcd's.
    fn next(mut self) -> io::Result<(Option<Self>, Vec<SnapshotResponse>)> {
        if self.remaining_bytes == 0 {
            let blob = Bytes::copy_from_slice(&self.sha256.finalize());
            return Ok((None, vec![SnapshotResponse { header: None, remaining_bytes: 0, blob }]));
        }
        let bytes =
            usize::try_from(self.remaining_bytes).map_or(READ_BYTES, |rest| rest.min(READ_BYTES));
        let mut buffer = vec![0; bytes];
        self.file.read_exact(&mut buffer)?;
        self.sha256.update(&buffer);
        let mut buffer = Bytes::from(buffer);
        let mut responses = Vec::with_capacity(READ_BYTES / CHUNK_BYTES);
        while !buffer.is_empty() {
            let blob = buffer.split_to(CHUNK_BYTES.min(buffer.len()));
            self.remaining_bytes -= blob.len() as u64;
            let remaining_bytes = self.remaining_bytes;
            responses.push(SnapshotResponse { header: None, remaining_bytes, blob });
        }
        Ok((Some(self), responses))
    }
}
