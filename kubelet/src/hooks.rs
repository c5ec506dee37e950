//! preStop hooks under way: a container's last words before it is asked to end.
//!
//! A hook may take the whole grace period, so no pod's worker sits it out: [`Hooks::begin`] returns
//! at once, and the pod is woken when the hook has ended, well or not.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use api::ObjectKey;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::error::Chain;
use crate::runtime::Runtime;

/// What is kept of a hook's output, for the log.
const OUTPUT_MAX_BYTES: usize = 1024;

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

    /// Runs the command in the container, unless that is under way. It is ended at the deadline.
    pub(crate) fn begin(&self, id: &str, pod: ObjectKey, command: &[String], deadline: Duration) {
        if !self.running.lock().insert(id.to_owned()) {
            return;
        }
        let (runtime, wake) = (self.runtime.clone(), self.wake.clone());
        let (running, id, command) = (self.running.clone(), id.to_owned(), command.to_vec());
        let hook = async move {
            match runtime.run(&id, &command, deadline, OUTPUT_MAX_BYTES).await {
                Ok(outcome) => tracing::debug!(?outcome, "the preStop hook has ended"),
                Err(error) => tracing::warn!(error = %Chain(&error), "the preStop hook failed"),
            }
            running.lock().remove(&id);
            wake(pod);
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
