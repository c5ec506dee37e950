//! preStop hooks under way: a container's last words before it is asked to end.
//!
//! A hook may take the whole grace period, so no pod's worker sits it out: [`Hooks::begin`] returns
//! at once, and the pod is woken when the hook has ended, well or not.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use api::{Object, ObjectKey};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::probe;
use crate::runtime::Runtime;

/// The hooks of one node.
pub(crate) struct Hooks {
    runtime: Arc<dyn Runtime>,
    /// The containers whose hook is under way, by their ids.
    running: Arc<Mutex<HashSet<String>>>,
    tasks: Mutex<JoinSet<()>>,
    wake: Arc<dyn Fn(ObjectKey) + Send + Sync>,
}

impl Hooks {
    /// Hooks that call `wake` for the pod whose hook has ended.
    pub(crate) fn new(
        runtime: Arc<dyn Runtime>,
        wake: impl Fn(ObjectKey) + Send + Sync + 'static,
    ) -> Self {
        let wake = Arc::new(wake);
        Self { runtime, running: Arc::default(), tasks: Mutex::default(), wake }
    }

    /// Does in the container what the hook says, unless that is under way, for no longer than
    /// `limit`. `failed` is told why if it does not end well.
    pub(crate) fn begin(
        &self,
        id: &str,
        (pod, declared): (&Pod, &Container),
        pod_ip: Option<&str>,
        hook: &LifecycleHandler,
        limit: Duration,
        failed: impl FnOnce(String) + Send + 'static,
    ) {
        if !self.running.lock().insert(id.to_owned()) {
            return;
        }
        let (runtime, wake) = (self.runtime.clone(), self.wake.clone());
        let (running, id, key) = (self.running.clone(), id.to_owned(), pod.key());
        let (hook, declared, pod_ip) = (hook.clone(), declared.clone(), pod_ip.map(str::to_owned));
        let hook = async move {
            let pod_ip = pod_ip.as_deref();
            match probe::run_hook(&hook, &declared, pod_ip, limit, &*runtime, &id).await {
                Ok(()) => tracing::debug!("the preStop hook has ended"),
                Err(why) => {
                    tracing::warn!(why, "the preStop hook failed");
                    failed(why);
                }
            }
            running.lock().remove(&id);
            wake(key);
        };
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(hook.in_current_span());
    }

    /// Whether the container's hook is under way.
    pub(crate) fn is_running(&self, id: &str) -> bool {
        self.running.lock().contains(id)
    }
}
