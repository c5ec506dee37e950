//! Counts of pods per node, kept so that no decision has to walk over pods.
//!
//! - [`Selected`]: of the pods that a selector matches, for every selector that a pending pod asked
//!   about: "how many pods `app=web` are on each node?". Asking for the first time walks over all
//!   pods, once; from then on every pod that comes or goes is counted.
//! - [`Carried`]: of the pods that have a term of affinity in their spec, for every such term: "on
//!   which nodes are pods that want nobody `app=web` near them?".
//!
//! Terms and selectors are found by a label that they need, so a pod is compared with the few that
//! may concern it and not with all there are.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use super::pod_info::PodInfo;
use super::snapshot::NodeIndex;
use super::terms::{Labels, PodSelector, Term};

/// How many selectors are counted for; beyond that those that nobody asked about for longest go.
const MAX_SELECTED: usize = 4096;

/// Pods on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) all: u32,
    /// Those that are not on their way out.
    pub(crate) staying: u32,
}

pub(crate) type PerNode<C> = HashMap<NodeIndex, C>;

/// A selector that is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SelectedId(usize);

/// The pods that match selectors, per node.
#[derive(Debug, Default)]
pub(crate) struct Selected {
    entries: Entries<Arc<[PodSelector]>, SelectedPods>,
    asked: u64,
}

#[derive(Debug, Default)]
struct SelectedPods {
    per_node: PerNode<Count>,
    last_asked: u64,
}

impl Selected {
    /// Counts the pods that match all of these selectors from now on, if that is not done
    /// already; `placed` are all pods there are now.
    pub(crate) fn watch<'a>(
        &mut self,
        selectors: &Arc<[PodSelector]>,
        placed: impl Iterator<Item = (&'a PodInfo, NodeIndex)>,
    ) -> SelectedId {
        self.asked += 1;
        let id = match self.entries.find(selectors) {
            Some(id) => id,
            None => {
                if self.entries.len() >= MAX_SELECTED {
                    self.drop_older_half();
                }
                let mut per_node = PerNode::new();
                for (pod, node) in placed.filter(|(pod, _)| match_all(selectors, pod)) {
                    count(&mut per_node, pod, node);
                }
                let needed = selectors.iter().find_map(PodSelector::needed_label);
                let pods = SelectedPods { per_node, last_asked: 0 };
                self.entries.insert(selectors.clone(), needed, pods)
            }
        };
        if let Some((_, pods)) = self.entries.get_mut(id) {
            pods.last_asked = self.asked;
        }
        SelectedId(id)
    }

    fn drop_older_half(&mut self) {
        let mut ages: Vec<(u64, usize)> =
            self.entries.iter().map(|(id, (_, pods))| (pods.last_asked, id)).collect();
        ages.sort_unstable();
        for (_, id) in &ages[..ages.len() / 2] {
            self.entries
                .remove(*id, |selectors| selectors.iter().find_map(PodSelector::needed_label));
        }
    }

    /// The matching pods on each node that has any.
    pub(crate) fn per_node(&self, id: SelectedId) -> impl Iterator<Item = (NodeIndex, Count)> + '_ {
        let pods = self.entries.get(id.0).map(|(_, pods)| &pods.per_node);
        pods.into_iter().flatten().map(|(node, count)| (*node, *count))
    }

    pub(crate) fn add(&mut self, pod: &PodInfo, node: NodeIndex) {
        for id in self.entries.candidates(pod.labels.as_ref()) {
            if let Some((selectors, pods)) = self.entries.get_mut(id)
                && match_all(selectors, pod)
            {
                count(&mut pods.per_node, pod, node);
            }
        }
    }

    pub(crate) fn remove(&mut self, pod: &PodInfo, node: NodeIndex) {
        for id in self.entries.candidates(pod.labels.as_ref()) {
            if let Some((selectors, pods)) = self.entries.get_mut(id)
                && match_all(selectors, pod)
                && let Some(found) = pods.per_node.get_mut(&node)
            {
                found.all -= 1;
                found.staying -= u32::from(!pod.terminating);
                if found.all == 0 {
                    pods.per_node.remove(&node);
                }
            }
        }
    }
}

fn count(per_node: &mut PerNode<Count>, pod: &PodInfo, node: NodeIndex) {
    let count = per_node.entry(node).or_default();
    count.all += 1;
    count.staying += u32::from(!pod.terminating);
}

fn match_all(selectors: &[PodSelector], pod: &PodInfo) -> bool {
    selectors.iter().all(|selector| selector.matches(&pod.key.namespace, pod.labels.as_ref()))
}

/// What a term is to the pod that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// It must have such pods near.
    Required,
    /// It must not have such pods near.
    Forbidden,
    /// Having such pods near is worth that much to it.
    Preferred(i32),
}

/// The terms that pods with a node carry, with how many carry each on each node.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    entries: Entries<(Role, Arc<Term>), PerNode<u32>>,
}

/// A term and where the pods are that carry it.
#[derive(Debug)]
pub(crate) struct CarriedTerm<'a> {
    pub(crate) role: Role,
    pub(crate) term: &'a Term,
    pub(crate) per_node: &'a PerNode<u32>,
}

impl Carried {
    /// The terms that speak of a pod.
    pub(crate) fn about<'a>(&'a self, pod: &'a PodInfo) -> impl Iterator<Item = CarriedTerm<'a>> {
        let candidates = self.entries.candidates(pod.labels.as_ref());
        candidates.into_iter().filter_map(|id| self.entries.get(id)).filter_map(
            |((role, term), per_node)| {
                term.pods.matches(&pod.key.namespace, pod.labels.as_ref()).then_some(CarriedTerm {
                    role: *role,
                    term,
                    per_node,
                })
            },
        )
    }

    pub(crate) fn add(&mut self, pod: &PodInfo, node: NodeIndex) {
        for key in carried_by(pod) {
            let id = self.entries.find(&key).unwrap_or_else(|| {
                let term = key.1.clone();
                self.entries.insert(key, term.pods.needed_label(), PerNode::new())
            });
            if let Some((_, per_node)) = self.entries.get_mut(id) {
                *per_node.entry(node).or_default() += 1;
            }
        }
    }

    pub(crate) fn remove(&mut self, pod: &PodInfo, node: NodeIndex) {
        for key in carried_by(pod) {
            let Some(id) = self.entries.find(&key) else { continue };
            let Some((_, per_node)) = self.entries.get_mut(id) else { continue };
            if let Some(count) = per_node.get_mut(&node) {
                *count -= 1;
                if *count == 0 {
                    per_node.remove(&node);
                }
            }
            if per_node.is_empty() {
                self.entries.remove(id, |(_, term)| term.pods.needed_label());
            }
        }
    }
}

/// The terms of one pod, with what each is to it.
pub(crate) fn carried_by(pod: &PodInfo) -> impl Iterator<Item = (Role, Arc<Term>)> + '_ {
    let affinity = &pod.affinity;
    let required = affinity.required.iter().map(|term| (Role::Required, term.clone()));
    let forbidden = affinity.forbidden.iter().map(|term| (Role::Forbidden, term.clone()));
    let preferred = affinity.preferred.iter();
    let preferred = preferred.map(|(worth, term)| (Role::Preferred(*worth), term.clone()));
    required.chain(forbidden).chain(preferred)
}

/// Entries with a key, which can also be found by a label that they need.
#[derive(Debug)]
struct Entries<K, V> {
    entries: Vec<Option<(K, V)>>,
    free: Vec<usize>,
    by_key: HashMap<K, usize>,
    by_label: HashMap<String, HashMap<String, Vec<usize>>>,
    without_label: Vec<usize>,
}

impl<K, V> Default for Entries<K, V> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            by_label: HashMap::new(),
            without_label: Vec::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, V> Entries<K, V> {
    fn len(&self) -> usize {
        self.by_key.len()
    }

    fn find(&self, key: &K) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    fn get(&self, id: usize) -> Option<&(K, V)> {
        self.entries.get(id)?.as_ref()
    }

    fn get_mut(&mut self, id: usize) -> Option<&mut (K, V)> {
        self.entries.get_mut(id)?.as_mut()
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &(K, V))> {
        self.entries.iter().enumerate().filter_map(|(id, entry)| Some((id, entry.as_ref()?)))
    }

    fn insert(&mut self, key: K, needed: Option<(&str, &str)>, value: V) -> usize {
        let id = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.by_key.insert(key.clone(), id);
        self.entries[id] = Some((key, value));
        match needed {
            Some((label, wanted)) => {
                let values = self.by_label.entry(label.to_owned()).or_default();
                values.entry(wanted.to_owned()).or_default().push(id);
            }
            None => self.without_label.push(id),
        }
        id
    }

    fn remove(&mut self, id: usize, needed: impl Fn(&K) -> Option<(&str, &str)>) {
        let Some((key, _)) = self.entries.get_mut(id).and_then(Option::take) else { return };
        self.by_key.remove(&key);
        self.free.push(id);
        let Some((label, wanted)) = needed(&key) else {
            return self.without_label.retain(|other| *other != id);
        };
        let Some(values) = self.by_label.get_mut(label) else { return };
        if let Some(ids) = values.get_mut(wanted) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                values.remove(wanted);
            }
        }
        if values.is_empty() {
            self.by_label.remove(label);
        }
    }

    /// The entries that may match something with these labels.
    fn candidates(&self, labels: Option<&Labels>) -> Vec<usize> {
        let mut found = self.without_label.clone();
        if !self.by_label.is_empty() {
            let of_label =
                |(label, value): (&String, &String)| self.by_label.get(label)?.get(value);
            found.extend(labels.into_iter().flatten().filter_map(of_label).flatten());
        }
        found
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::needless_pass_by_value, reason = "tables of json!() read better")]

    use serde_json::json;

    use super::*;
    use crate::fixture;
    use crate::scheduler::priority::Priority;
    use crate::scheduler::terms::SpreadRule;

    fn selectors(rule: serde_json::Value) -> Arc<[PodSelector]> {
        let spec = json!({ "containers": [], "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": rule,
        }] });
        let spec = serde_json::from_value(spec).unwrap();
        let rule = SpreadRule::read_all(&spec, "default", None).unwrap().remove(0);
        [(*rule.pods).clone()].into()
    }

    fn labelled(app: &str) -> PodInfo {
        PodInfo::read(&fixture::pod("a").label("app", app).build(), Priority::default())
    }

    fn found(selected: &Selected, id: SelectedId) -> Vec<(u32, u32, u32)> {
        let mut found: Vec<_> =
            selected.per_node(id).map(|(node, count)| (node.0, count.all, count.staying)).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn pods_are_counted_from_the_first_question_on() {
        let [one, two] = [1, 2].map(NodeIndex);
        let mut selected = Selected::default();
        let (web, db) = (labelled("web"), labelled("db"));
        let going = PodInfo::read(
            &fixture::pod("a").label("app", "web").terminating().build(),
            Priority::default(),
        );
        let is_web = selectors(json!({ "matchLabels": { "app": "web" } }));
        let id = selected.watch(&is_web, [(&web, one), (&db, one)].into_iter());
        assert_eq!(found(&selected, id), [(1, 1, 1)]);
        selected.add(&going, one);
        selected.add(&web, two);
        selected.add(&db, two);
        assert_eq!(selected.watch(&is_web, std::iter::empty()), id, "asked before");
        assert_eq!(found(&selected, id), [(1, 2, 1), (2, 1, 1)]);

        let other = selectors(
            json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["db"] }] }),
        );
        let other = selected.watch(&other, [(&web, one), (&db, two)].into_iter());
        assert_eq!(found(&selected, other), [(1, 1, 1)]);
        selected.remove(&web, one);
        assert_eq!(found(&selected, other), []);
        assert_eq!(found(&selected, id), [(1, 1, 0), (2, 1, 1)]);
    }

    #[test]
    fn what_nobody_asks_about_is_forgotten() {
        let mut selected = Selected::default();
        let web = labelled("web");
        let watch = |selected: &mut Selected, number: usize| {
            let selector = selectors(json!({ "matchLabels": { "n": number.to_string() } }));
            selected.watch(&selector, std::iter::empty())
        };
        for number in 0..MAX_SELECTED * 2 {
            watch(&mut selected, number);
            watch(&mut selected, 0);
        }
        assert!(selected.entries.len() <= MAX_SELECTED);
        assert!(selected.entries.by_label["n"].contains_key("0"), "this one was asked about");
        assert_eq!(selected.entries.by_label["n"].len(), selected.entries.len());
        selected.add(&web, NodeIndex(1));
    }
}
