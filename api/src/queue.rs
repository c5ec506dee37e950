//! Keys to be worked on, each by one worker at a time.
//!
//! A key is in the queue once, however often it is added; one that is added while it is worked on
//! is worked on again afterwards. So what a queue holds is bounded by the number of keys that
//! exist, and a reconciler sees the newest state of each at least once after its last change.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// How long a key that failed waits: `base`, doubled with each failure in a row, up to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub base: Duration,
    /// At most.
    pub max: Duration,
}

impl Default for Backoff {
    /// 10 ms to 30 s.
    fn default() -> Self {
        Self { base: Duration::from_millis(10), max: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The wait after a number of failures in a row; none for 0.
    pub fn after(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.max)
    }
}

/// A queue of keys. Clones are cheap and share the queue.
pub struct WorkQueue<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for WorkQueue<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<T> {
    backoff: Backoff,
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    /// The keys in `ready`.
    waiting: HashSet<T>,
    /// The keys in work, and whether they were added again meanwhile.
    working: HashMap<T, bool>,
    /// The keys to be added later, by time; the number tells those of one instant apart.
    delayed: BTreeMap<(Instant, u64), T>,
    due: HashMap<T, (Instant, u64)>,
    delays: u64,
    failures: HashMap<T, u32>,
}

impl<T: Clone + Eq + Hash> WorkQueue<T> {
    /// An empty queue.
    pub fn new(backoff: Backoff) -> Self {
        let state = State {
            ready: VecDeque::new(),
            waiting: HashSet::new(),
            working: HashMap::new(),
            delayed: BTreeMap::new(),
            due: HashMap::new(),
            delays: 0,
            failures: HashMap::new(),
        };
        Self {
            shared: Arc::new(Shared { backoff, state: Mutex::new(state), changed: Notify::new() }),
        }
    }

    /// Adds a key, to be worked on as soon as a worker is free.
    pub fn add(&self, key: T) {
        self.shared.state.lock().add(key);
        self.shared.changed.notify_one();
    }

    /// Adds a key after a delay. If it is to be added earlier anyway, that stands.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.shared.state.lock().delay(key, Instant::now() + delay);
        self.shared.changed.notify_one();
    }

    /// Adds a key after the backoff of one more failure, and returns how long that is.
    pub fn retry(&self, key: T) -> Duration {
        let failures = {
            let mut state = self.shared.state.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            *failures
        };
        let delay = self.shared.backoff.after(failures);
        self.add_after(key, delay);
        delay
    }

    /// Forgets a key's failures: it succeeded, or is gone.
    pub fn forget(&self, key: &T) {
        self.shared.state.lock().failures.remove(key);
    }

    /// How many keys are ready and not in work.
    pub fn len(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key, which is the caller's alone until the item is dropped. Cancel safe.
    pub async fn next(&self) -> WorkItem<T> {
        loop {
            let next_due = {
                let mut state = self.shared.state.lock();
                state.take_due(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.waiting.remove(&key);
                    state.working.insert(key.clone(), false);
                    if !state.ready.is_empty() {
                        self.shared.changed.notify_one();
                    }
                    return WorkItem { queue: self.clone(), key };
                }
                state.delayed.first_key_value().map(|((at, _), _)| *at)
            };
            match next_due {
                Some(at) => tokio::select! {
                    () = self.shared.changed.notified() => {}
                    () = sleep_until(at) => {}
                },
                None => self.shared.changed.notified().await,
            }
        }
    }

    fn finish(&self, key: &T) {
        let mut state = self.shared.state.lock();
        if state.working.remove(key) == Some(true) {
            state.add(key.clone());
            self.shared.changed.notify_one();
        }
    }
}

impl<T: Clone + Eq + Hash> State<T> {
    fn add(&mut self, key: T) {
        if let Some(due) = self.due.remove(&key) {
            self.delayed.remove(&due);
        }
        if let Some(again) = self.working.get_mut(&key) {
            *again = true;
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn delay(&mut self, key: T, at: Instant) {
        if self.waiting.contains(&key) {
            return;
        }
        if let Some(due) = self.due.get(&key).copied() {
            if due.0 <= at {
                return;
            }
            self.delayed.remove(&due);
        }
        self.delays += 1;
        self.due.insert(key.clone(), (at, self.delays));
        self.delayed.insert((at, self.delays), key);
    }

    fn take_due(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
    }
}

/// A key in work. Dropping it ends the work.
pub struct WorkItem<T: Clone + Eq + Hash> {
    queue: WorkQueue<T>,
    key: T,
}

impl<T: Clone + Eq + Hash> WorkItem<T> {
    /// The key.
    pub fn key(&self) -> &T {
        &self.key
    }
}

impl<T: Clone + Eq + Hash> Drop for WorkItem<T> {
    fn drop(&mut self) {
        self.queue.finish(&self.key);
    }
}

/// What is to become of a key after it was worked on without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing, until it is added again.
    Done,
    /// It is worked on again after a delay at the latest.
    After(Duration),
}

/// Works on the keys of a queue with a number of workers, until cancelled; work that has begun is
/// then brought to its end. Dropping the future stops everything at once. A key whose work fails
/// is logged and tried again with backoff; a panic goes on to the caller.
pub async fn run_workers<T, E, F, Fut>(
    queue: WorkQueue<T>,
    workers: usize,
    cancelled: CancellationToken,
    work: F,
) where
    T: Clone + Debug + Eq + Hash + Send + Sync + 'static,
    E: Display + Send,
    F: Fn(T) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Outcome, E>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let (queue, cancelled, work) = (queue.clone(), cancelled.clone(), work.clone());
        tasks.spawn(async move {
            while let Some(item) = cancelled.run_until_cancelled(queue.next()).await {
                let key = item.key().clone();
                match work(key.clone()).await {
                    Ok(outcome) => {
                        queue.forget(&key);
                        if let Outcome::After(delay) = outcome {
                            queue.add_after(key, delay);
                        }
                    }
                    Err(error) => {
                        let again_in = queue.retry(key.clone());
                        tracing::warn!(?key, %error, ?again_in, "work failed");
                    }
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;
    use tokio::time::{sleep, timeout};

    use super::*;

    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(10) };

    fn take(queue: &WorkQueue<&'static str>) -> Option<WorkItem<&'static str>> {
        queue.next().now_or_never()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_there_once() {
        let queue = WorkQueue::new(BACKOFF);
        for key in ["a", "b", "a", "b"] {
            queue.add(key);
        }
        assert_eq!(queue.len(), 2);
        assert_eq!(*take(&queue).unwrap().key(), "a");
        assert_eq!(*take(&queue).unwrap().key(), "b");
        assert!(take(&queue).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_in_work_waits_until_it_is_finished() {
        let queue = WorkQueue::new(BACKOFF);
        queue.add("a");
        let item = take(&queue).unwrap();
        queue.add("a");
        queue.add_after("a", Duration::from_secs(1));
        sleep(Duration::from_secs(2)).await;
        assert!(take(&queue).is_none());
        drop(item);
        let again = take(&queue).unwrap();
        drop(again);
        assert!(take(&queue).is_none(), "both additions are one");
    }

    #[tokio::test(start_paused = true)]
    async fn delays_end_in_order_and_the_earlier_stands() {
        let queue = WorkQueue::new(BACKOFF);
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(1));
        queue.add_after("a", Duration::from_secs(2));
        queue.add_after("now", Duration::ZERO);
        let mut order = Vec::new();
        for _ in 0..3 {
            let item = queue.next().await;
            order.push((*item.key(), start.elapsed().as_secs()));
        }
        assert_eq!(order, [("now", 0), ("a", 1), ("late", 5)]);
        assert!(timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn adding_a_key_ends_its_delay() {
        let queue = WorkQueue::new(BACKOFF);
        queue.add_after("a", Duration::from_secs(5));
        queue.add("a");
        assert!(take(&queue).is_some());
        assert!(timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_until_one_success() {
        let queue = WorkQueue::new(BACKOFF);
        let delays: Vec<u64> = (0..6).map(|_| queue.retry("a").as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
        queue.forget(&"a");
        assert_eq!(queue.retry("a").as_secs(), 1);
    }

    #[test]
    fn a_backoff_never_overflows() {
        assert_eq!(BACKOFF.after(0), Duration::ZERO);
        assert_eq!(BACKOFF.after(1), BACKOFF.base);
        assert_eq!(BACKOFF.after(u32::MAX), BACKOFF.max);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_key_wakes_a_worker_that_waits_for_a_later_one() {
        let queue = WorkQueue::new(BACKOFF);
        queue.add_after("late", Duration::from_secs(100));
        let mut tasks = JoinSet::new();
        let waiting = queue.clone();
        tasks.spawn(async move { *waiting.next().await.key() });
        tokio::task::yield_now().await;
        queue.add_after("early", Duration::from_secs(1));
        assert_eq!(tasks.join_next().await.unwrap().unwrap(), "early");
    }

    #[tokio::test(start_paused = true)]
    async fn workers_share_the_keys_and_never_one_key() {
        let queue = WorkQueue::new(BACKOFF);
        let (busy, most, done) =
            <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let active = Arc::new(Mutex::new(HashSet::new()));
        let cancelled = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let work = {
            let (busy, most, done) = (busy.clone(), most.clone(), done.clone());
            move |key: u32| {
                let (busy, most, done, active) =
                    (busy.clone(), most.clone(), done.clone(), active.clone());
                async move {
                    assert!(active.lock().insert(key), "{key} is worked on twice at once");
                    most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    sleep(Duration::from_millis(10)).await;
                    busy.fetch_sub(1, Ordering::SeqCst);
                    active.lock().remove(&key);
                    done.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, String>(Outcome::Done)
                }
            }
        };
        tasks.spawn(run_workers(queue.clone(), 4, cancelled.clone(), work));
        for round in 0..10 {
            for key in 0..20 {
                queue.add(key);
            }
            sleep(Duration::from_millis(5 * round)).await;
        }
        while done.load(Ordering::SeqCst) < 20 || !queue.is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
        cancelled.cancel();
        tasks.join_next().await.unwrap().unwrap();
        assert_eq!(most.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_comes_again_and_work_under_way_is_finished_at_the_end() {
        let queue = WorkQueue::new(BACKOFF);
        let (tries, finished) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let cancelled = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let work = {
            let (tries, finished) = (tries.clone(), finished.clone());
            move |_: &'static str| {
                let (tries, finished) = (tries.clone(), finished.clone());
                async move {
                    let attempt = tries.fetch_add(1, Ordering::SeqCst);
                    if attempt < 2 {
                        return Err("not yet");
                    }
                    sleep(Duration::from_secs(5)).await;
                    finished.fetch_add(1, Ordering::SeqCst);
                    Ok(Outcome::After(Duration::from_secs(1)))
                }
            }
        };
        let start = Instant::now();
        tasks.spawn(run_workers(queue.clone(), 2, cancelled.clone(), work));
        queue.add("a");
        while tries.load(Ordering::SeqCst) < 3 {
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(start.elapsed().as_secs(), 3, "after 1 s and 2 s more");
        cancelled.cancel();
        tasks.join_next().await.unwrap().unwrap();
        assert_eq!(finished.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    #[should_panic(expected = "broken")]
    async fn a_panic_goes_on_to_who_runs_the_workers() {
        let queue = WorkQueue::new(BACKOFF);
        queue.add("a");
        let work = |_| async { panic!("broken") };
        run_workers::<_, String, _, _>(queue, 1, CancellationToken::new(), work).await;
    }
}
