//! Writers that put all the time, each key once and each value unique, going from member to member
//! when one fails; and what they were promised. A reader beside them never sees the past.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use store_proto::etcdserverpb::kv_client::KvClient;
use store_proto::etcdserverpb::{PutRequest, RangeRequest};
use store_proto::mvccpb::KeyValue;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::store::{Store, within_deadline};
use super::wait::{holds, wait_for};

/// Where the writers' keys begin.
const PREFIX: &str = "/written/";
/// So that a test's history stays small enough to be read back at once.
const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// One put, tried once.
#[derive(Clone, Debug)]
struct Attempt {
    key: String,
    value: String,
    called: Instant,
    returned: Instant,
    /// What it was acknowledged with; without one it may have been written, or not.
    revision: Option<i64>,
}

/// Writers at work.
pub(crate) struct Writers {
    tasks: JoinSet<Vec<Attempt>>,
    stop: CancellationToken,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Progress {
    /// How many writes were acknowledged.
    acknowledged: AtomicU64,
    /// The newest revision that any of them was acknowledged with.
    newest: AtomicI64,
}

impl Writers {
    /// Starts `count` writers on all members of `store`, and a reader. A store may have one lot of
    /// them.
    pub(crate) fn start(store: &Store, count: usize) -> Self {
        let stop = CancellationToken::new();
        let progress = Arc::new(Progress::default());
        let members = || -> Vec<_> { store.members.iter().map(|member| member.kv()).collect() };
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let (members, stop, progress) = (members(), stop.clone(), Arc::clone(&progress));
            tasks.spawn(async move { write(number, members, &stop, &progress).await });
        }
        let (members, reader_stop, reader_progress) =
            (members(), stop.clone(), Arc::clone(&progress));
        tasks.spawn(async move {
            read(members, &reader_stop, &reader_progress).await;
            Vec::new()
        });
        Self { tasks, stop, progress }
    }

    /// Waits until so many more writes have been acknowledged.
    pub(crate) async fn go_on(&self, more: u64) {
        let before = self.acknowledged();
        wait_for(&format!("{more} more writes are acknowledged"), async || {
            let now = self.acknowledged() - before;
            holds(now >= more, format!("there were {now}"))
        })
        .await;
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.progress.acknowledged.load(Ordering::Relaxed)
    }

    /// Lets them finish what they are at.
    pub(crate) async fn stop(self) -> History {
        self.stop.cancel();
        let mut attempts: Vec<Attempt> =
            self.tasks.join_all().await.into_iter().flatten().collect();
        attempts.sort_by_key(|attempt| attempt.called);
        History { attempts }
    }
}

async fn write(
    number: usize,
    mut members: Vec<KvClient<Channel>>,
    stop: &CancellationToken,
    progress: &Progress,
) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut member = number % members.len();
    while !stop.is_cancelled() {
        let key = format!("{PREFIX}{number}/{:06}", attempts.len());
        let value = format!("value {} of {number}", attempts.len());
        let put = PutRequest {
            key: key.clone().into(),
            value: value.clone().into(),
            ..Default::default()
        };
        let called = Instant::now();
        let answer = within_deadline(members[member].put(put)).await;
        let returned = Instant::now();
        let revision = answer.ok().and_then(|answer| Some(answer.into_inner().header?.revision));
        attempts.push(Attempt { key, value, called, returned, revision });
        if let Some(revision) = revision {
            progress.acknowledged.fetch_add(1, Ordering::Relaxed);
            progress.newest.fetch_max(revision, Ordering::SeqCst);
            sleep(PAUSE).await;
        } else {
            member = (member + 1) % members.len();
            sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
    attempts
}

/// Reads from one member after the other. A linearizable read shows at least what was acknowledged
/// before it was asked for, whichever member answers.
async fn read(mut members: Vec<KvClient<Channel>>, stop: &CancellationToken, progress: &Progress) {
    let mut member = 0;
    while !stop.is_cancelled() {
        let acknowledged = progress.newest.load(Ordering::SeqCst);
        let any = RangeRequest { key: "any".into(), ..Default::default() };
        if let Ok(answer) = within_deadline(members[member].range(any)).await {
            let revision = answer.into_inner().header.map_or(0, |header| header.revision);
            assert!(revision >= acknowledged, "read {revision} after a write at {acknowledged}");
        }
        member = (member + 1) % members.len();
        sleep(PAUSE).await;
    }
}

/// All that the writers tried, in the order in which they began.
pub(crate) struct History {
    attempts: Vec<Attempt>,
}

impl History {
    /// Holds what is stored against what was promised: nothing acknowledged is missing or changed,
    /// nothing was written twice or by nobody, and revisions follow real time. `everything` is all
    /// that the store holds, whoever wrote it.
    pub(crate) fn check(&self, everything: &[KeyValue]) {
        let stored: BTreeMap<&[u8], &KeyValue> = everything
            .iter()
            .filter(|pair| pair.key.starts_with(PREFIX.as_bytes()))
            .map(|pair| (pair.key.as_ref(), pair))
            .collect();
        for attempt in &self.attempts {
            let found = stored.get(attempt.key.as_bytes());
            if let Some(found) = found {
                assert_eq!(found.value, attempt.value.as_bytes(), "the value of {}", attempt.key);
                assert_eq!(found.version, 1, "{} was written more than once", attempt.key);
            }
            if let Some(revision) = attempt.revision {
                let found = found.map(|found| found.mod_revision);
                assert_eq!(found, Some(revision), "{} was acknowledged", attempt.key);
            }
        }
        let tried: HashSet<&[u8]> =
            self.attempts.iter().map(|attempt| attempt.key.as_bytes()).collect();
        let unexplained = stored.keys().find(|key| !tried.contains(*key));
        assert_eq!(unexplained, None, "nobody wrote this key");
        self.check_real_time();
    }

    /// A write's revision is above that of every write that had returned before it was called.
    fn check_real_time(&self) {
        let acknowledged =
            self.attempts.iter().filter_map(|attempt| Some((attempt, attempt.revision?)));
        let mut returned: Vec<(Instant, i64)> =
            acknowledged.clone().map(|(attempt, revision)| (attempt.returned, revision)).collect();
        returned.sort_unstable();
        let mut returned = returned.into_iter().peekable();
        let mut highest = 0;
        for (attempt, revision) in acknowledged {
            while let Some((_, earlier)) = returned.next_if(|(at, _)| *at < attempt.called) {
                highest = highest.max(earlier);
            }
            assert!(revision > highest, "{}: {revision} came after {highest}", attempt.key);
        }
    }

    /// The longest time without an acknowledged write between these two moments.
    pub(crate) fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let acknowledged = self.attempts.iter().filter(|attempt| attempt.revision.is_some());
        let mut moments: Vec<Instant> = acknowledged
            .map(|attempt| attempt.returned)
            .filter(|at| (from..to).contains(at))
            .chain([from, to])
            .collect();
        moments.sort_unstable();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

/// A check that cannot fail proves nothing.
#[test]
fn every_broken_promise_is_found() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let attempt = |key: &str, called: u64, revision: Option<i64>| Attempt {
        key: format!("{PREFIX}{key}"),
        value: key.to_owned(),
        called: at(called),
        returned: at(called + 5),
        revision,
    };
    let stored = |key: &str, value: &str, version: i64, mod_revision: i64| KeyValue {
        key: format!("{PREFIX}{key}").into(),
        value: value.to_owned().into(),
        version,
        mod_revision,
        ..Default::default()
    };
    let finds = |attempts: &[Attempt], stored: &[KeyValue]| {
        let history = History { attempts: attempts.to_vec() };
        std::panic::catch_unwind(|| history.check(stored)).is_err()
    };
    let (a, b) = (attempt("a", 0, Some(2)), attempt("b", 10, Some(3)));
    let unknown = attempt("c", 20, None);
    let good = [stored("a", "a", 1, 2), stored("b", "b", 1, 3)];
    let all = [a.clone(), b, unknown];
    assert!(!finds(&all, &good), "a write of unknown outcome may be missing");
    assert!(!finds(&all, &[&good[..], &[stored("c", "c", 1, 4)]].concat()), "or be there");

    assert!(finds(&all, &good[..1]), "lost");
    assert!(finds(&all, &[good[0].clone(), stored("b", "other", 1, 3)]), "changed");
    assert!(finds(&all, &[good[0].clone(), stored("b", "b", 2, 3)]), "written twice");
    assert!(finds(&all, &[good[0].clone(), stored("b", "b", 1, 4)]), "at another revision");
    assert!(finds(&all, &[&good[..], &[stored("z", "z", 1, 4)]].concat()), "written by nobody");
    let late = attempt("b", 10, Some(1));
    assert!(finds(&[a, late], &[good[0].clone(), stored("b", "b", 1, 1)]), "back in time");
}
