//! Liveness, readiness and startup probes.
//!
//! Every probe of a running container is a task of its own, which ends with the container; so a
//! probe that hangs holds up nothing but itself. What the answers amount to is counted by a pure
//! function (`counting`), and when it changes the pod is looked at again: whether its container
//! is ready, or is to be ended and started again, is decided there like everything else.
//!
//! The rules are Kubernetes': the startup probe holds the other two back until it has succeeded; a
//! probe that could not be made at all, because the engine is away or a port has no number, says
//! nothing and counts for nothing; once liveness or startup has failed, the container is not probed
//! any more; a pod that is being deleted is asked for its readiness only.

mod checks;
mod counting;
mod http;
mod settings;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Clock, Object, ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as Declared, ContainerStatus, LifecycleHandler, Pod, Probe,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::plan::ProbeResults;
use crate::runtime::{Container, ContainerState, Runtime};
use crate::spec;

use checks::Answer;
use counting::{Counter, Verdict, apply};
use settings::{Check, Kind, Settings};

/// Something to tell people about a container under probes, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// The container's name in its pod.
    pub(crate) container: String,
    /// The reason of the event that tells of it.
    pub(crate) reason: Reason,
    /// As in `Liveness probe failed: …`.
    pub(crate) message: String,
}

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A probe failed, whether that counts already or not.
    Unhealthy,
    /// A probe cannot be made.
    ProbeError,
    /// The container is ended, because its liveness or startup probe failed too often.
    Killing,
}

/// Who wants to know.
pub(crate) trait Listener: Send + Sync + 'static {
    /// The results of one of the pod's containers are not what they were.
    fn changed(&self, pod: &ObjectKey);
    /// People may want to know.
    fn reported(&self, pod: &Pod, report: Report);
}

/// Does what a hook of a container says, which is much like a probe made once.
///
/// # Errors
/// Why it did not end well within its time.
pub(crate) async fn run_hook(
    hook: &LifecycleHandler,
    declared: &Declared,
    pod_ip: Option<&str>,
    limit: Duration,
    runtime: &dyn Runtime,
    container: &str,
) -> Result<(), String> {
    if let Some(pause) = &hook.sleep {
        let seconds = u64::try_from(pause.seconds).unwrap_or(0);
        sleep(limit.min(Duration::from_secs(seconds))).await;
        return Ok(());
    }
    let (exec, http_get) = (hook.exec.clone(), hook.http_get.clone());
    let once = Probe { exec, http_get, ..Probe::default() };
    let check = Check::of(&once, declared, pod_ip.unwrap_or_default())?;
    match checks::make(&check, limit, runtime, container).await {
        Answer::Success => Ok(()),
        Answer::Failure(why) | Answer::Unknown(why) => Err(why),
    }
}

/// The probes of all pods of a node. Dropping it ends them.
pub(crate) struct Probes {
    runtime: Arc<dyn Runtime>,
    clock: Clock,
    /// When this kubelet began: what ran before was taken over.
    since: Timestamp,
    listener: Arc<dyn Listener>,
    pods: Mutex<HashMap<ObjectKey, HashMap<String, Probed>>>,
}

/// A container under probes, by its engine id.
struct Probed {
    results: watch::Sender<ProbeResults>,
    /// Cancelled when the pod is being deleted.
    deleting: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Probes {
    pub(crate) fn new(
        runtime: Arc<dyn Runtime>,
        clock: Clock,
        listener: Arc<dyn Listener>,
    ) -> Self {
        let since = clock.now();
        Self { runtime, clock, since, listener, pods: Mutex::default() }
    }

    /// Probes these containers of the pod as far as they run, and no others of it any more; tells
    /// what has been found by engine id. Cheap where there is nothing to probe.
    pub(crate) fn follow(
        &self,
        pod: &Arc<Pod>,
        seen: &[Container],
    ) -> HashMap<String, ProbeResults> {
        let key = pod.key();
        let running = seen.iter().filter_map(|container| match container.state {
            ContainerState::Running { started_at } => Some((container, started_at)),
            _ => None,
        });
        let mut pods = self.pods.lock();
        let mut before = pods.remove(&key).unwrap_or_default();
        let mut now = HashMap::new();
        for (container, started_at) in running {
            let Some(declared) = declared(pod, &container.identity.container) else { continue };
            let ip = address(pod, seen);
            let probed = match before.remove(&container.id) {
                Some(probed) => probed,
                None => match self.begin(pod, declared, container, started_at, ip) {
                    Some(probed) => probed,
                    None => continue,
                },
            };
            now.insert(container.id.clone(), probed);
        }
        if pod.metadata.deletion_timestamp.is_some() {
            now.values().for_each(|probed| probed.deleting.cancel());
        }
        let results = now.iter().map(|(id, probed)| (id.clone(), *probed.results.borrow()));
        let results = results.collect();
        if !now.is_empty() {
            pods.insert(key, now);
        }
        results
    }

    /// Ends all probes of a pod that is gone.
    pub(crate) fn forget(&self, pod: &ObjectKey) {
        self.pods.lock().remove(pod);
    }

    /// Begins the probes of a container; none if it has none, or they cannot be made yet.
    fn begin(
        &self,
        pod: &Arc<Pod>,
        declared: &Declared,
        container: &Container,
        started_at: Timestamp,
        ip: Option<&str>,
    ) -> Option<Probed> {
        let probes: Vec<_> =
            Kind::ALL.iter().filter_map(|kind| Some((*kind, kind.of(declared)?))).collect();
        // A probe over the network has to wait for an address; a look at the pod follows its coming.
        if probes.is_empty() || probes.iter().any(|(_, probe)| probe.exec.is_none() && ip.is_none())
        {
            return None;
        }
        let had_started = known(pod, declared, container).is_some_and(|c| c.started == Some(true));
        let awaits_startup = declared.startup_probe.is_some() && !had_started;
        let started = declared.startup_probe.as_ref().map(|_| true).filter(|_| had_started);
        let results = watch::Sender::new(ProbeResults { started, ..ProbeResults::default() });
        let deleting = CancellationToken::new();
        let running_for = self.clock.now().duration_since(started_at);
        let running_for = Duration::try_from(running_for).unwrap_or(Duration::ZERO);
        let mut tasks = JoinSet::new();
        for (kind, probe) in probes {
            if kind == Kind::Startup && !awaits_startup {
                continue;
            }
            let settings = Settings::of(probe);
            let taken_over = (started_at < self.since).then(rand::random::<f64>);
            let check = match Check::of(probe, declared, ip.unwrap_or_default()) {
                Ok(check) => check,
                Err(why) => {
                    tracing::warn!(container = declared.name, why, "a probe cannot be made");
                    let message = format!("{} probe errored: {why}", kind.title());
                    let container = declared.name.clone();
                    let report = Report { container, reason: Reason::ProbeError, message };
                    self.listener.reported(pod, report);
                    continue;
                }
            };
            let worker = Worker {
                pod: pod.clone(),
                id: container.id.clone(),
                container: declared.name.clone(),
                kind,
                check,
                first_after: settings.first_after(running_for, taken_over),
                settings,
                awaits_startup: awaits_startup && kind != Kind::Startup,
                results: results.clone(),
                runtime: self.runtime.clone(),
                listener: self.listener.clone(),
            };
            let deleting = deleting.clone();
            let work = async move {
                if kind == Kind::Readiness {
                    worker.work().await;
                } else {
                    deleting.run_until_cancelled(worker.work()).await;
                }
            };
            tasks.spawn(work.in_current_span());
        }
        Some(Probed { results, deleting, _tasks: tasks })
    }
}

fn declared<'a>(pod: &'a Pod, name: &str) -> Option<&'a Declared> {
    spec::all_containers(pod).find(|container| container.name == name)
}

/// What the pod's status says of this very container.
fn known<'a>(
    pod: &'a Pod,
    declared: &Declared,
    container: &Container,
) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let mut of_it = all.filter(|status| status.name == declared.name);
    of_it.find(|status| status.container_id.as_ref().is_some_and(|id| id.ends_with(&container.id)))
}

/// The pod's address: that of whichever of its containers has the network, or what is known.
pub(crate) fn address<'a>(pod: &'a Pod, seen: &'a [Container]) -> Option<&'a str> {
    let own = seen.iter().find_map(|container| container.ip.as_deref());
    own.or_else(|| pod.status.as_ref()?.pod_ip.as_deref())
}

/// One probe of one container.
struct Worker {
    pod: Arc<Pod>,
    id: String,
    container: String,
    kind: Kind,
    check: Check,
    settings: Settings,
    first_after: Duration,
    awaits_startup: bool,
    results: watch::Sender<ProbeResults>,
    runtime: Arc<dyn Runtime>,
    listener: Arc<dyn Listener>,
}

impl Worker {
    async fn work(self) {
        sleep(self.first_after).await;
        if self.awaits_startup {
            // The sender is here, so this does not fail.
            let _ = self.results.subscribe().wait_for(|now| now.started == Some(true)).await;
        }
        let mut counter = Counter::new(self.kind, &self.settings);
        let mut ticks = interval(self.settings.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let timeout = self.settings.timeout;
            let answer = checks::make(&self.check, timeout, &*self.runtime, &self.id).await;
            let verdict = match answer {
                Answer::Success => Verdict::Success,
                Answer::Failure(why) => {
                    let message = format!("{} probe failed: {why}", self.kind.title());
                    self.report(Reason::Unhealthy, message);
                    Verdict::Failure
                }
                Answer::Unknown(why) => {
                    tracing::debug!(container = self.container, why, "a probe was not made");
                    continue;
                }
            };
            if let Some(verdict) = counter.count(verdict) {
                self.conclude(verdict);
            }
            let now = *self.results.borrow();
            if now.must_restart || (self.kind == Kind::Startup && now.started == Some(true)) {
                return;
            }
        }
    }

    fn report(&self, reason: Reason, message: String) {
        tracing::debug!(container = self.container, message, "probed");
        let container = self.container.clone();
        self.listener.reported(&self.pod, Report { container, reason, message });
    }

    fn conclude(&self, verdict: Verdict) {
        let mut dies = false;
        let changed = self.results.send_if_modified(|results| {
            let mut after = apply(results, self.kind, verdict);
            dies = after.must_restart && !results.must_restart;
            if dies {
                after.grace_seconds = self.settings.grace_seconds;
            }
            std::mem::replace(results, after) != after
        });
        if dies {
            let (name, probe) = (&self.container, self.kind.title().to_ascii_lowercase());
            let message = format!("Container {name} failed {probe} probe, will be restarted");
            self.report(Reason::Killing, message);
        }
        if changed {
            let results = *self.results.borrow();
            tracing::info!(container = self.container, kind = ?self.kind, ?results, "probed");
            self.listener.changed(&self.pod.key());
        }
    }
}

#[cfg(test)]
mod tests;
