//! Images on their way: each is pulled once, however many pods wait for it, and nobody else waits.
//!
//! A pull may take minutes, so no pod's worker sits it out: [`Puller::begin`] returns at once, and
//! when the pull has ended every pod that waits for it is woken and finds the outcome with
//! [`Puller::take`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use api::ObjectKey;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::runtime::{Runtime, RuntimeError};

/// Pulls at a time; further ones wait for their turn.
const PULLS_MAX: usize = 16;

/// How a pull ended, as every pod that waited for it is told.
pub(crate) type PullOutcome = Result<(), Arc<RuntimeError>>;

/// The pulls of one node.
pub(crate) struct Puller {
    runtime: Arc<dyn Runtime>,
    slots: Arc<Semaphore>,
    pulls: Arc<Mutex<Pulls>>,
    tasks: Mutex<JoinSet<()>>,
    wake: Arc<dyn Fn(ObjectKey) + Send + Sync>,
}

#[derive(Default)]
struct Pulls {
    /// Pods waiting for an image that is being pulled.
    waiting: HashMap<String, BTreeSet<ObjectKey>>,
    /// Outcomes that the pod has not looked at yet, with their images.
    ended: HashMap<ObjectKey, Vec<(String, PullOutcome)>>,
}

impl Puller {
    /// A puller that calls `wake` for each pod whose pull has ended.
    pub(crate) fn new(
        runtime: Arc<dyn Runtime>,
        wake: impl Fn(ObjectKey) + Send + Sync + 'static,
    ) -> Self {
        Self {
            runtime,
            slots: Arc::new(Semaphore::new(PULLS_MAX)),
            pulls: Arc::default(),
            tasks: Mutex::default(),
            wake: Arc::new(wake),
        }
    }

    /// Pulls the image for that pod, or waits with the others for the pull that is under way.
    pub(crate) fn begin(&self, image: &str, pod: &ObjectKey) {
        let mut pulls = self.pulls.lock();
        if let Some(waiting) = pulls.waiting.get_mut(image) {
            waiting.insert(pod.clone());
            return;
        }
        pulls.waiting.insert(image.to_owned(), BTreeSet::from([pod.clone()]));
        drop(pulls);
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        let (runtime, slots) = (self.runtime.clone(), self.slots.clone());
        let (pulls, wake, image) = (self.pulls.clone(), self.wake.clone(), image.to_owned());
        let pull = async move {
            // The semaphore is never closed; were it, the pull would go ahead all the same.
            let _slot = slots.acquire().await.ok();
            tracing::info!(image, "pulling image");
            let outcome = runtime.pull(&image).await.map_err(Arc::new);
            match &outcome {
                Ok(()) => tracing::info!(image, "image pulled"),
                Err(error) => tracing::warn!(image, %error, "image cannot be pulled"),
            }
            let woken = {
                let mut pulls = pulls.lock();
                let waiting = pulls.waiting.remove(&image).unwrap_or_default();
                for pod in &waiting {
                    let ended = pulls.ended.entry(pod.clone()).or_default();
                    ended.push((image.clone(), outcome.clone()));
                }
                waiting
            };
            woken.into_iter().for_each(|pod| wake(pod));
        };
        tasks.spawn(pull.in_current_span());
    }

    /// The images that the pod waits for.
    pub(crate) fn pulling(&self, pod: &ObjectKey) -> BTreeSet<String> {
        let pulls = self.pulls.lock();
        let waiting = pulls.waiting.iter().filter(|(_, pods)| pods.contains(pod));
        waiting.map(|(image, _)| image.clone()).collect()
    }

    /// The outcomes of the pod's pulls, each once.
    pub(crate) fn take(&self, pod: &ObjectKey) -> Vec<(String, PullOutcome)> {
        self.pulls.lock().ended.remove(pod).unwrap_or_default()
    }

    /// The pod is gone and waits for nothing.
    pub(crate) fn forget(&self, pod: &ObjectKey) {
        let mut pulls = self.pulls.lock();
        pulls.ended.remove(pod);
        pulls.waiting.values_mut().for_each(|waiting| {
            waiting.remove(pod);
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::runtime::fake::{FakeRuntime, Script};

    #[tokio::test]
    async fn all_who_wait_hear_of_the_outcome_once() {
        let runtime = FakeRuntime::new(1, 1);
        let script = Script { pull_error: Some("no such image".into()), ..Script::default() };
        runtime.script("missing", script);
        let (woken, mut wakes) = mpsc::channel(8);
        let puller = Puller::new(runtime.clone(), move |pod| woken.try_send(pod).unwrap());
        let pod = |name: &str| ObjectKey::namespaced("default", name);
        puller.begin("missing", &pod("a"));
        puller.begin("missing", &pod("b"));
        puller.begin("missing", &pod("gone"));
        assert_eq!(puller.pulling(&pod("b")), BTreeSet::from(["missing".to_owned()]));
        puller.forget(&pod("gone"));
        for name in ["a", "b"] {
            assert_eq!(wakes.recv().await.unwrap(), pod(name));
            let (image, outcome) = puller.take(&pod(name)).pop().unwrap();
            assert_eq!(image, "missing");
            assert_eq!(outcome.unwrap_err().to_string(), "no such image");
            assert!(puller.take(&pod(name)).is_empty());
        }
        assert!(puller.pulling(&pod("a")).is_empty() && puller.take(&pod("gone")).is_empty());

        puller.begin("there", &pod("a"));
        assert_eq!(wakes.recv().await.unwrap(), pod("a"));
        assert!(puller.take(&pod("a")).pop().unwrap().1.is_ok());
        assert!(runtime.has_image("there").await.unwrap());
    }
}
