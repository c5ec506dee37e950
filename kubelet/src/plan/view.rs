//! The containers of a pod as they were seen, put in order: which is whose present life, which is
//! the life before, and which are in the way.

use k8s_openapi::api::core::v1::Container as PodContainer;

use super::Input;
use crate::runtime::{Container, SANDBOX};
use crate::spec;
use crate::status::{Shown, Subject};

/// A pod's containers, seen and declared.
pub(super) struct View<'a> {
    pub(super) input: &'a Input<'a>,
    /// Whether the pod's network is held by a container of its own.
    pub(super) needs_sandbox: bool,
    /// The newest sandbox.
    pub(super) sandbox: Option<&'a Container>,
    /// What nobody needs any more: lives before the last one, and what the pod does not declare.
    pub(super) strays: Vec<&'a Container>,
    /// The init containers, then the others.
    all: Vec<Subject<'a>>,
}

impl<'a> View<'a> {
    pub(super) fn of(input: &'a Input<'a>) -> Self {
        let needs_sandbox = spec::needs_sandbox(input.pod);
        let mut newest_first: Vec<&Container> = input.seen.iter().collect();
        newest_first.sort_by_key(|container| std::cmp::Reverse(container.identity.restart_count));
        let mut strays = Vec::new();
        let mut take = |name: &str, kept: usize| {
            let of_name = |container: &mut &Container| container.identity.container == name;
            let mut found: Vec<&Container> = newest_first.extract_if(.., of_name).collect();
            strays.extend(found.drain(found.len().min(kept)..));
            found
        };
        let sandbox = take(SANDBOX, usize::from(needs_sandbox)).first().copied();
        let mut subject = |declared: &'a PodContainer, is_init| {
            let lives = take(&declared.name, 2);
            let (current, last) = (lives.first().copied(), lives.get(1).copied());
            let mut subject = Subject { declared, is_init, current, last, shown: Shown::AsBefore };
            // The life that was told of last has vanished, and what is there came before it.
            let told = subject.restarts_told(input.previous);
            if current.is_some_and(|current| current.identity.restart_count < told) {
                (subject.last, subject.current) = (subject.current, None);
            }
            subject
        };
        let mut all = Vec::new();
        all.extend(spec::init_containers(input.pod).iter().map(|one| subject(one, true)));
        all.extend(spec::containers(input.pod).iter().map(|one| subject(one, false)));
        strays.extend(newest_first);
        Self { input, needs_sandbox, sandbox, strays, all }
    }

    /// The init containers, in their order.
    pub(super) fn init(&self) -> impl Iterator<Item = Subject<'a>> {
        self.all.iter().filter(|subject| subject.is_init).cloned()
    }

    /// The other containers, in the order of the spec.
    pub(super) fn main(&self) -> impl Iterator<Item = Subject<'a>> {
        self.all.iter().filter(|subject| !subject.is_init).cloned()
    }

    /// The present lives of all containers.
    pub(super) fn containers(&self) -> impl Iterator<Item = &'a Container> {
        self.all.iter().filter_map(|subject| subject.current)
    }

    /// Whether any container of the pod was ever made, as far as anybody remembers.
    pub(super) fn ever_made(&self) -> bool {
        let previous = self.input.previous;
        let entries = previous.init_container_statuses.iter().chain(&previous.container_statuses);
        self.containers().next().is_some()
            || entries.flatten().any(|entry| entry.container_id.is_some())
    }

    /// All containers, shown in the way given.
    pub(super) fn subjects(&self, shown: impl Fn(&Subject<'a>) -> Shown<'a>) -> Vec<Subject<'a>> {
        let show = |subject: &Subject<'a>| Subject { shown: shown(subject), ..subject.clone() };
        self.all.iter().map(show).collect()
    }
}
