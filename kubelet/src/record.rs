//! What a kubelet remembers of a pod between two looks at it.
//!
//! Nothing here is the only copy of anything that matters: restarts and crash streaks are in the
//! labels of the containers, statuses and failed attempts in the store. A kubelet that was killed
//! begins with empty records, and at worst asks a container to stop a second time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::Object;
use api::annotations::{NEXT_RETRY_AT, RETRY_COUNT};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::backoff;
use crate::plan::{CONTAINER_CREATING, Hook, Retry, StartFailure, Stopping};
use crate::{spec, status};

/// What is remembered of a pod.
#[derive(Default)]
pub(crate) struct Record {
    /// The pod these memories are of; another pod of the same name begins anew.
    uid: String,
    /// The newest version of the pod that this kubelet wrote itself: the informer may be behind.
    written: Option<Arc<Pod>>,
    /// A status that could not be written.
    pub(crate) unwritten: Option<PodStatus>,
    /// By container: the last attempt at starting it, if it failed.
    pub(crate) failures: BTreeMap<String, StartFailure>,
    /// The containers that wait for an image to be pulled, and for which.
    pub(crate) awaited: BTreeMap<String, String>,
    /// The containers to come whose image was pulled.
    pub(crate) pulled: BTreeSet<String>,
    /// The pod's volumes were made.
    pub(crate) has_volumes: bool,
    /// By engine id: the containers that were asked to end.
    pub(crate) stopping: HashMap<String, Stopping>,
}

impl Record {
    /// Turns to the pod as the informer has it, and gives back the newest version that is known.
    pub(crate) fn turn_to(&mut self, cached: Arc<Pod>) -> Arc<Pod> {
        if self.uid != cached.uid() {
            *self = Self {
                uid: cached.uid().to_owned(),
                failures: recall_failures(&cached),
                stopping: std::mem::take(&mut self.stopping),
                ..Self::default()
            };
        }
        match &self.written {
            Some(written) if written.revision() > cached.revision() => written.clone(),
            _ => cached,
        }
    }

    /// Takes note of a version of the pod that was just written.
    pub(crate) fn wrote(&mut self, pod: Pod) {
        self.unwritten = None;
        self.written = Some(Arc::new(pod));
    }

    /// The status to go on from: one that is still to be written, unless somebody else has ended
    /// the pod meanwhile; otherwise what the store has.
    pub(crate) fn previous(&self, pod: &Pod) -> PodStatus {
        let stored = pod.status.clone().unwrap_or_default();
        match &self.unwritten {
            Some(unwritten) if !status::is_terminal(&stored) => {
                let mut previous = unwritten.clone();
                status::adopt_conditions(&mut previous, &stored);
                previous
            }
            _ => stored,
        }
    }

    /// Counts a failed attempt at a container, and says when the next one is due.
    pub(crate) fn failed(
        &mut self,
        container: &str,
        reason: &str,
        message: String,
        now: Timestamp,
    ) {
        let before = self.failures.get(container).map_or(0, |failure| failure.count);
        let count = before.saturating_add(1);
        let retry_at = backoff::later(now, backoff::after_failures(count));
        tracing::warn!(container, reason, message, count, %retry_at, "cannot be started");
        let failure = StartFailure { count, reason: reason.to_owned(), message, retry_at };
        self.failures.insert(container.to_owned(), failure);
    }

    /// A pull has ended; gives back the containers that waited for it.
    pub(crate) fn pull_ended(&mut self, image: &str) -> Vec<String> {
        let waited = self.awaited.extract_if(.., |_, awaited| awaited == image);
        waited.map(|(container, _)| container).collect()
    }

    /// Takes note of preStop hooks that have ended.
    pub(crate) fn hooks_ended(&mut self, ended: impl Fn(&str) -> bool) {
        for (id, stopping) in &mut self.stopping {
            if stopping.hook == Some(Hook::Running) && ended(id) {
                stopping.hook = Some(Hook::Done);
            }
        }
    }

    /// The container runs: what was in its way is over.
    pub(crate) fn succeeded(&mut self, container: &str) {
        self.failures.remove(container);
        self.pulled.remove(container);
    }
}

/// The annotations that go with a status; see [`recall_failures`] for the way back.
pub(crate) fn annotate(
    annotations: &mut Option<BTreeMap<String, String>>,
    retry: Option<Retry>,
    restart_count: u32,
) {
    let mut wanted = BTreeMap::new();
    if let Some(retry) = retry {
        wanted.insert(NEXT_RETRY_AT, status::time(retry.at).0.to_string());
        if retry.start_failures > 0 {
            let tries = restart_count.saturating_add(retry.start_failures);
            wanted.insert(RETRY_COUNT, tries.to_string());
        }
    }
    for name in [NEXT_RETRY_AT, RETRY_COUNT] {
        match wanted.remove(name) {
            Some(value) => {
                annotations.get_or_insert_default().insert(name.to_owned(), value);
            }
            None => {
                annotations.iter_mut().for_each(|annotations| {
                    annotations.remove(name);
                });
            }
        }
    }
    annotations.take_if(|annotations| annotations.is_empty());
}

/// The failed attempts that an earlier life of this kubelet told of, so that its backoff goes on.
/// One count is kept for the whole pod: it goes for each container that waits for its next attempt.
fn recall_failures(pod: &Pod) -> BTreeMap<String, StartFailure> {
    let recall = || {
        let annotations = pod.metadata.annotations.as_ref()?;
        let tries: u32 = annotations.get(RETRY_COUNT)?.parse().ok()?;
        let retry_at: Timestamp = annotations.get(NEXT_RETRY_AT)?.parse().ok()?;
        let status = pod.status.as_ref()?;
        let count = tries.saturating_sub(told_restarts(status)).max(1);
        let entries = status.init_container_statuses.iter().chain(&status.container_statuses);
        let recalled = entries.flatten().filter_map(|entry| {
            let waiting = entry.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.as_deref()?;
            if matches!(reason, CONTAINER_CREATING | "PodInitializing" | "CrashLoopBackOff") {
                return None;
            }
            let declared = spec::all_containers(pod).find(|one| one.name == entry.name)?;
            let (reason, message) = crate::plan::failure_from_shown(
                spec::image(declared),
                reason,
                waiting.message.as_deref().unwrap_or_default(),
            );
            Some((entry.name.clone(), StartFailure { count, reason, message, retry_at }))
        });
        Some(recalled.collect())
    };
    recall().unwrap_or_default()
}

/// The restarts of the container that the pod's annotations count along with: the first.
pub(crate) fn told_restarts(status: &PodStatus) -> u32 {
    let first = status.container_statuses.iter().flatten().next();
    first.and_then(|entry| u32::try_from(entry.restart_count).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(revision: &str, uid: &str, status: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "default", "uid": uid, "resourceVersion": revision,
            },
            "spec": {"containers": [{"name": "main", "image": "nginx"}]},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn the_newest_version_wins_and_another_pod_begins_anew() {
        let mut record = Record::default();
        let cached = Arc::new(pod("5", "a", &json!({})));
        assert_eq!(record.turn_to(cached.clone()).revision(), 5);
        record.wrote(pod("9", "a", &json!({})));
        record.failed("main", "ErrImagePull", "no".into(), Timestamp::UNIX_EPOCH);
        assert_eq!(record.turn_to(cached).revision(), 9);
        assert_eq!(record.turn_to(Arc::new(pod("10", "a", &json!({})))).revision(), 10);
        assert!(record.failures.contains_key("main"));
        assert_eq!(record.turn_to(Arc::new(pod("7", "b", &json!({})))).revision(), 7);
        assert!(record.failures.is_empty());
    }

    #[test]
    fn an_unwritten_status_goes_on_unless_the_pod_was_ended() {
        let mut record = Record::default();
        let conditions = |ready: &str, weather: &str| {
            json!([
                {"type": "Ready", "status": ready},
                {"type": "example.org/weather", "status": weather},
            ])
        };
        let status = |conditions| json!({"phase": "Running", "conditions": conditions});
        record.unwritten = serde_json::from_value(status(conditions("False", "Rain"))).unwrap();
        let stored = pod("1", "a", &status(conditions("True", "Sun")));
        let expected: PodStatus =
            serde_json::from_value(status(conditions("False", "Sun"))).unwrap();
        assert_eq!(record.previous(&stored), expected);
        let failed = pod("1", "a", &json!({"phase": "Failed"}));
        assert_eq!(record.previous(&failed).phase.as_deref(), Some("Failed"));
    }

    #[test]
    fn failed_attempts_survive_in_the_annotations() {
        let at = Timestamp::from_second(70).unwrap();
        let mut failed = pod(
            "1",
            "a",
            &json!({"phase": "Pending", "containerStatuses": [{
                "name": "main", "image": "nginx", "imageID": "", "ready": false, "restartCount": 2,
                "state": {"waiting": {
                    "reason": "ImagePullBackOff",
                    "message": "Back-off pulling image \"nginx\": no route",
                }},
            }]}),
        );
        annotate(&mut failed.metadata.annotations, Some(Retry { start_failures: 3, at }), 2);
        let annotations = failed.metadata.annotations.clone().unwrap();
        assert_eq!(annotations[RETRY_COUNT], "5");
        assert_eq!(annotations[NEXT_RETRY_AT], "1970-01-01T00:01:10Z");
        let expected = StartFailure {
            count: 3,
            reason: "ErrImagePull".into(),
            message: "no route".into(),
            retry_at: at,
        };
        assert_eq!(recall_failures(&failed), BTreeMap::from([("main".to_owned(), expected)]));

        annotate(&mut failed.metadata.annotations, Some(Retry { start_failures: 0, at }), 2);
        assert!(!failed.metadata.annotations.as_ref().unwrap().contains_key(RETRY_COUNT));
        assert_eq!(recall_failures(&failed), BTreeMap::new());
        annotate(&mut failed.metadata.annotations, None, 2);
        assert_eq!(failed.metadata.annotations, None);
    }
}
