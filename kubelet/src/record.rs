//! What a kubelet remembers of a pod between two looks at it.
//!
//! Nothing here is the only copy of anything that matters: restarts and crash streaks are in the
//! labels of the container, statuses and failed attempts in the store. A kubelet that was killed
//! begins with empty records, and at worst asks a container to stop a second time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::Object;
use api::annotations::{NEXT_RETRY_AT, RETRY_COUNT};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::backoff;
use crate::plan::{Retry, StartFailure};
use crate::status;

/// What is remembered of a pod.
#[derive(Default)]
pub(crate) struct Record {
    /// The pod these memories are of; another pod of the same name begins anew.
    uid: String,
    /// The newest version of the pod that this kubelet wrote itself: the informer may be behind.
    written: Option<Arc<Pod>>,
    /// A status that could not be written.
    pub(crate) unwritten: Option<PodStatus>,
    /// The last attempt at starting the container, if it failed.
    pub(crate) failure: Option<StartFailure>,
    /// The crash streak of the container to come, while there is none.
    pub(crate) next_streak: Option<u32>,
    /// The image was pulled for the container to come.
    pub(crate) pulled: bool,
    /// When containers, by id, were asked to stop.
    pub(crate) stop_sent_at: HashMap<String, Timestamp>,
}

impl Record {
    /// Turns to the pod as the informer has it, and gives back the newest version that is known.
    pub(crate) fn turn_to(&mut self, cached: Arc<Pod>) -> Arc<Pod> {
        if self.uid != cached.uid() {
            *self = Self {
                uid: cached.uid().to_owned(),
                failure: recall_failure(&cached),
                stop_sent_at: std::mem::take(&mut self.stop_sent_at),
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

    /// Counts a failed attempt, and says when the next one is due.
    pub(crate) fn failed(&mut self, reason: &str, message: String, now: Timestamp) {
        let count = self.failure.as_ref().map_or(0, |failure| failure.count).saturating_add(1);
        let retry_at = backoff::later(now, backoff::after_failures(count));
        tracing::warn!(reason, message, count, %retry_at, "the container could not be started");
        self.failure = Some(StartFailure { count, reason: reason.to_owned(), message, retry_at });
    }

    /// The container runs: what was in its way is over.
    pub(crate) fn succeeded(&mut self) {
        self.failure = None;
        self.next_streak = None;
        self.pulled = false;
    }
}

/// The annotations that go with a status; see [`recall_failure`] for the way back.
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
fn recall_failure(pod: &Pod) -> Option<StartFailure> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let tries: u32 = annotations.get(RETRY_COUNT)?.parse().ok()?;
    let retry_at: Timestamp = annotations.get(NEXT_RETRY_AT)?.parse().ok()?;
    let entry = status::container_entry(pod.status.as_ref()?)?;
    let waiting = entry.state.as_ref()?.waiting.as_ref()?;
    let restarts = u32::try_from(entry.restart_count).unwrap_or(0);
    let (reason, message) = crate::plan::failure_from_shown(
        pod,
        waiting.reason.as_deref()?,
        waiting.message.as_deref().unwrap_or_default(),
    );
    let count = tries.saturating_sub(restarts).max(1);
    Some(StartFailure { count, reason, message, retry_at })
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
        record.failed("ErrImagePull", "no".into(), Timestamp::UNIX_EPOCH);
        assert_eq!(record.turn_to(cached).revision(), 9);
        assert_eq!(record.turn_to(Arc::new(pod("10", "a", &json!({})))).revision(), 10);
        assert!(record.failure.is_some());
        assert_eq!(record.turn_to(Arc::new(pod("7", "b", &json!({})))).revision(), 7);
        assert!(record.failure.is_none());
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
        assert_eq!(recall_failure(&failed), Some(expected));

        annotate(&mut failed.metadata.annotations, Some(Retry { start_failures: 0, at }), 2);
        assert!(!failed.metadata.annotations.as_ref().unwrap().contains_key(RETRY_COUNT));
        assert_eq!(recall_failure(&failed), None);
        annotate(&mut failed.metadata.annotations, None, 2);
        assert_eq!(failed.metadata.annotations, None);
    }
}
