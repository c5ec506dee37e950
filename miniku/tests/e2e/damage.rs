//! A member whose files were lost or damaged: what can be rebuilt is, without a word from anybody;
//! a damaged log is refused by name.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use store_proto::mvccpb::KeyValue;

use crate::support::scratch::Scratch;
use crate::support::store::{Kind, Member, Store};
use crate::support::wait::{holds, wait_for};

/// So little that some snapshots are taken, and log is purged behind them.
const SNAPSHOT_LOG: &str = "--snapshot-log-bytes=50000";

/// A member with snapshots and a log beyond them, killed; and what it held.
async fn killed_member(scratch: &Scratch) -> (Store, (i64, Vec<KeyValue>)) {
    let mut store = Store::start_with(scratch, Kind::Miniku, 1, &[SNAPSHOT_LOG]).await;
    let member = &store.members[0];
    for number in 0..200 {
        let value = format!("{number} {}", "x".repeat(1000));
        member.put(&format!("/key/{}", number % 150), &value).await.expect("it runs");
    }
    let snapshots = member.data_dir.join("snapshots");
    wait_for("a snapshot is taken", async || holds(!files(&snapshots).is_empty(), "there is none"))
        .await;
    member.put("/last", "behind the snapshot").await.expect("it runs");
    let before = member.everything().await.expect("it runs");
    assert_eq!(before.1.len(), 151);
    store.members[0].process.kill();
    (store, before)
}

/// All files below a directory, in the order of their names.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// The files of the state, sled's among them.
fn state_files(store: &Store) -> Vec<PathBuf> {
    let files = files(&store.members[0].data_dir.join("state"));
    assert!(files.iter().any(|path| path.ends_with("db")), "sled's files are not in {files:?}");
    files
}

async fn starts_with_everything(store: &mut Store, before: &(i64, Vec<KeyValue>)) {
    store.members[0].process.start_again();
    store.serves(0).await;
    let after = store.members[0].everything().await.expect("it serves");
    assert_eq!(after.0, before.0, "the revision is what it was");
    assert!(after.1 == before.1, "the data is what it was");
    let next = store.members[0].put("/key/after", "1").await.expect("it serves");
    assert_eq!(next, before.0 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_state_is_rebuilt_from_snapshot_and_log() {
    let scratch = Scratch::new();
    let (mut store, before) = killed_member(&scratch).await;
    state_files(&store);
    fs::remove_dir_all(store.members[0].data_dir.join("state")).expect("it was there");
    starts_with_everything(&mut store, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_cut_short_is_rebuilt_from_snapshot_and_log() {
    for keep in [|_: u64| 0, |bytes: u64| bytes / 2, |bytes: u64| bytes.saturating_sub(1)] {
        let scratch = Scratch::new();
        let (mut store, before) = killed_member(&scratch).await;
        for path in state_files(&store).iter().filter(|path| path.ends_with("db")) {
            let file = File::options().write(true).open(path).expect("it is there");
            let bytes = file.metadata().expect("it is there").len();
            file.set_len(keep(bytes)).expect("a file can be cut");
        }
        starts_with_everything(&mut store, &before).await;
    }
}

/// The files that hold the records, beside the index of them.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_damaged_are_rebuilt_from_snapshot_and_log() {
    let cut = |file: &Path| {
        let file = File::options().write(true).open(file).expect("it is there");
        let bytes = file.metadata().expect("it is there").len();
        file.set_len(bytes / 2).expect("a file can be cut");
    };
    let flip = |file: &Path| {
        let mut bytes = fs::read(file).expect("it is there");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(file, bytes).expect("it can be written");
    };
    let remove = |file: &Path| fs::remove_file(file).expect("it was there");
    let damages: [&dyn Fn(&Path); 3] = [&cut, &flip, &remove];
    for damage in damages {
        let scratch = Scratch::new();
        let (mut store, before) = killed_member(&scratch).await;
        store.members[0].process.start_again();
        store.serves(0).await;
        // Now everything is known to be in the state.
        store.members[0].process.terminate().await;
        let is_block_file =
            |path: &&PathBuf| path.parent().is_some_and(|parent| parent.ends_with("blocks"));
        let files = state_files(&store);
        damage(files.iter().rfind(is_block_file).expect("the records are somewhere"));
        starts_with_everything(&mut store, &before).await;
        let log = store.members[0].process.log();
        assert_eq!(log.matches("the state is set aside and rebuilt").count(), 1, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_the_log_is_refused_by_name() {
    let scratch = Scratch::new();
    let (mut store, before) = killed_member(&scratch).await;
    let (path, used) = newest_segment(&store);
    let flip = |at: u64| {
        let file = File::options().read(true).write(true).open(&path).expect("it is there");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("it is within");
        file.write_all_at(&[byte[0] ^ 0x40], at).expect("it is within");
    };
    for at in [used / 4, used / 2, used - used / 8] {
        flip(at);
        let process = &mut store.members[0].process;
        process.start_again();
        let status = process.ended().await;
        assert!(!status.success(), "a damaged log is refused");
        let log = process.log();
        let said = log.lines().last().unwrap_or_default();
        assert!(said.contains(path.to_str().expect("UTF-8")), "it names {path:?}: {said}");
        process.kill();
        flip(at);
    }
    starts_with_everything(&mut store, &before).await;
}

/// What a power cut leaves of writes that nobody was told of.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_of_the_log_is_cut() {
    let scratch = Scratch::new();
    let (mut store, before) = killed_member(&scratch).await;
    let (path, used) = newest_segment(&store);
    let file = File::options().write(true).open(&path).expect("it is there");
    file.write_all_at(&[0x5a; 300], used).expect("it has room");
    starts_with_everything(&mut store, &before).await;
}

/// The newest segment of the log, and where its zeros begin.
fn newest_segment(store: &Store) -> (PathBuf, u64) {
    let path = files(&store.members[0].data_dir.join("wal"))
        .into_iter()
        .rfind(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .expect("there is a log");
    let bytes = fs::read(&path).expect("it can be read");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("it is not empty") + 1;
    (path, used as u64)
}

/// The last entry in a snapshot, as its name says: `<term>-<index>.snap`, in hexadecimal.
fn entry_of(snapshot: &Path) -> u64 {
    let name = snapshot.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let index = name.split_once('-').map_or("", |(_, index)| index);
    u64::from_str_radix(index, 16).unwrap_or(0)
}

/// One of three: it takes part again, and has what was written meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_its_state_catches_up_with_the_others() {
    let scratch = Scratch::new();
    let mut store = Store::start_with(&scratch, Kind::Miniku, 3, &[SNAPSHOT_LOG]).await;
    let fill = async |store: &Store, numbers: Range<usize>| {
        for number in numbers {
            let value = format!("{number} {}", "x".repeat(1000));
            let member = &store.members[1 + number % 2];
            member.put(&format!("/key/{number}"), &value).await.expect("two of three run");
        }
    };
    fill(&store, 0..150).await;
    store.members[0].process.kill();
    fs::remove_dir_all(store.members[0].data_dir.join("state")).expect("it was there");
    // So much that the others' logs do not reach back to where it was.
    fill(&store, 150..1200).await;
    wait_for("a snapshot is taken of much more than it had", async || {
        let far = |member: &Member| {
            let snapshots = files(&member.data_dir.join("snapshots"));
            snapshots.iter().any(|path| entry_of(path) > 150 + 256 + 100)
        };
        holds(store.members[1..].iter().all(far), "there is none")
    })
    .await;
    store.members[0].process.start_again();
    store.serves(0).await;
    assert_eq!(store.agree().await.len(), 1200);
}
