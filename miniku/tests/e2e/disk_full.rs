//! A full disk: nothing that was acknowledged is lost, everybody is told, and there is service again
//! once there is room. Each member's disk is a small file system in memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::prerequisites::{Need, have};
use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Store};
use crate::support::wait::{holds, wait_for};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const DISK_BYTES: u64 = 240 << 20;
const RESERVE_BYTES: u64 = 64 << 20;
/// A small disk has room for a few segments and snapshots only.
const FLAGS: [&str; 2] = ["--disk-reserve-bytes=67108864", "--snapshot-log-bytes=8388608"];

/// A file system of its own, for as long as this lives.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir(&path).expect("a directory to mount on");
        let size = format!("size={DISK_BYTES}");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).status();
        assert!(mount.expect("mount runs").success());
        Self(path)
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).expect("it is mounted");
        stat.f_bavail * stat.f_frsize
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Fills it up to so many bytes.
    fn fill_but(&self, bytes: u64) {
        let path = self.ballast();
        let held = fs::metadata(&path).map_or(0, |file| file.len());
        let more = (self.free_bytes() + held).saturating_sub(bytes);
        fs::write(&path, vec![0; usize::try_from(more).expect("it fits into memory")])
            .expect("it has room for that");
    }

    fn empty(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A member that is killed lets go of it later: detached, it goes by then.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// What was acknowledged, and where.
#[derive(Default)]
struct Acknowledged {
    written: usize,
    revisions: BTreeMap<String, i64>,
}

impl Acknowledged {
    /// 50 kB under a key of its own.
    async fn put(&mut self, store: &Store, member: usize) -> Result<(), tonic::Status> {
        let key = format!("/key/{:05}", self.written);
        let revision = store.members[member].put(&key, &key.repeat(5_000)).await?;
        self.written += 1;
        self.revisions.insert(key, revision);
        Ok(())
    }

    /// Every one of them is there, on all members.
    async fn are_all_there(&self, store: &Store) {
        let there: BTreeMap<String, i64> = store
            .agree()
            .await
            .iter()
            .map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision))
            .collect();
        for (key, revision) in &self.revisions {
            assert_eq!(there.get(key), Some(revision), "{key} was acknowledged");
        }
    }
}

/// Waits until a member knows of so many without space.
async fn has_alarms(store: &Store, asked: usize, expected: usize) {
    wait_for(&format!("{expected} members say that they have no space"), async || {
        let status = store.members[asked].status().await.map_err(|error| error.to_string())?;
        let found = status.errors.iter().filter(|error| error.contains("alarm:NOSPACE")).count();
        holds(found == expected, format!("{found} do"))
    })
    .await;
}

fn members_on_disks(scratch: &Scratch, count: usize) -> Vec<Disk> {
    (1..=count).map(|number| Disk::mount(scratch.path(&format!("n{number}")))).collect()
}

fn says(log: &str, dir: &Path) -> bool {
    log.contains(&format!("the disk of {} is full", dir.display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_without_room_says_so_and_the_others_go_on() {
    if !have(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let disks = members_on_disks(&scratch, 3);
    let mut store = Store::start_with(&scratch, Kind::Miniku, 3, &FLAGS).await;
    let mut acknowledged = Acknowledged::default();
    for number in 0..30 {
        acknowledged.put(&store, number % 3).await.expect("there is room");
    }
    // Little room: it is told, and nothing is refused, as the others have some.
    disks[2].fill_but(RESERVE_BYTES * 3 / 4);
    has_alarms(&store, 0, 1).await;
    for number in 0..30 {
        acknowledged.put(&store, number % 3).await.expect("a quorum has room");
    }
    // Hardly any: it ends, and says what to do.
    disks[2].fill_but(RESERVE_BYTES / 16);
    assert!(!store.members[2].process.ended().await.success());
    let log = store.members[2].process.log();
    assert!(says(&log, &disks[2].0) && log.contains("make room"), "{log}");
    for number in 0..30 {
        wait_for("the others go on", async || acknowledged.put(&store, number % 2).await).await;
    }
    // So does the next one.
    store.members[2].process.start_again();
    assert!(!store.members[2].process.ended().await.success());

    disks[2].empty();
    store.members[2].process.start_again();
    store.serves(2).await;
    has_alarms(&store, 0, 0).await;
    acknowledged.are_all_there(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_on_all_members_only_what_needs_room_is_refused() {
    if !have(&[Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let disks = members_on_disks(&scratch, 3);
    let mut store = Store::start_with(&scratch, Kind::Miniku, 3, &FLAGS).await;
    let mut acknowledged = Acknowledged::default();
    let refusal = loop {
        let member = acknowledged.written % 3;
        if let Err(error) = acknowledged.put(&store, member).await {
            break error;
        }
    };
    assert_eq!(refusal.message(), NO_SPACE, "after {} writes", acknowledged.written);
    for disk in &disks {
        assert!(disk.free_bytes() > RESERVE_BYTES / 4, "the reserve is there");
    }
    acknowledged.are_all_there(&store).await;
    // Killed and started again it is no different.
    store.members[0].process.kill();
    store.members[0].process.start_again();
    store.serves(0).await;
    let refusal = acknowledged.put(&store, 0).await.expect_err("there is no more room than before");
    assert_eq!(refusal.message(), NO_SPACE);

    // Deleting makes room, and that is noticed.
    let revision = store.members[1].delete("/key/00010", "/key0").await.expect("it needs no room");
    store.members[1].compact(revision).await.expect("it needs no room");
    acknowledged.revisions.retain(|key, _| key.as_str() < "/key/00010");
    has_alarms(&store, 1, 0).await;
    for number in 0..30 {
        acknowledged.put(&store, number % 3).await.expect("there is room again");
    }
    acknowledged.are_all_there(&store).await;
}
