//! Which nodes can take a pod: the rules that a node must not break.
//!
//! | filter | a node is refused when |
//! | --- | --- |
//! | [`Filter::Unschedulable`] | somebody said that it gets no new pods |
//! | [`Filter::Taints`] | it has a taint that the pod does not tolerate |
//! | [`Filter::NodeAffinity`] | the pod's node selector or node affinity says so |
//! | [`Filter::Ports`] | another pod has the host port |
//! | [`Filter::Resources`] | there is not enough left of something, or there are too many pods |
//! | [`Filter::Spread`] | the pods would be spread too unevenly |
//! | [`Filter::PodAffinity`] | of what is, or is not, near it |
//!
//! They are asked in this order, and the first that refuses a node says why. A pod with a
//! `nodeName` is never asked about: it has its node.

mod neighbours;
mod node;
mod spread;

use std::fmt;
use std::sync::Arc;

use super::node_info::NodeInfo;
use super::pod_info::{PendingPod, PodInfo};
use super::snapshot::{NodeIndex, Snapshot};
use super::topology::Topology;

use neighbours::Neighbours;
pub(crate) use node::refusal as refusal_by_node;
use spread::Spread;
pub(crate) use spread::counts as counts_for_spread;

/// A rule that nodes are refused by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Filter {
    Unschedulable,
    Taints,
    NodeAffinity,
    Ports,
    Resources,
    Spread,
    PodAffinity,
}

/// Some filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filters(u8);

impl Filters {
    pub(crate) fn insert(&mut self, filter: Filter) {
        self.0 |= 1 << filter as u8;
    }

    pub(crate) fn contains(self, filter: Filter) -> bool {
        self.0 & (1 << filter as u8) != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What a node is refused for, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    Unschedulable,
    Taint {
        key: String,
        value: String,
    },
    NodeAffinity,
    Ports,
    TooManyPods,
    InsufficientCpu,
    InsufficientMemory,
    InsufficientEphemeralStorage,
    /// Of any other resource.
    Insufficient(Arc<str>),
    Spread,
    SpreadLabelMissing,
    Affinity,
    AntiAffinity,
    AntiAffinityOfOthers,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unschedulable => "node(s) were unschedulable",
            Self::Taint { key, value } => {
                return write!(f, "node(s) had untolerated taint {{{key}: {value}}}");
            }
            Self::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::TooManyPods => "Too many pods",
            Self::InsufficientCpu => "Insufficient cpu",
            Self::InsufficientMemory => "Insufficient memory",
            Self::InsufficientEphemeralStorage => "Insufficient ephemeral-storage",
            Self::Insufficient(resource) => return write!(f, "Insufficient {resource}"),
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::SpreadLabelMissing => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Self::Affinity => "node(s) didn't match pod affinity rules",
            Self::AntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::AntiAffinityOfOthers => {
                "node(s) didn't satisfy existing pods anti-affinity rules"
            }
        })
    }
}

/// That a node cannot take the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) filter: Filter,
    reason: Reason,
    /// Mostly none: in a large cluster many nodes are refused, which is to cost little.
    further_reasons: Vec<Reason>,
    /// Whether it may take it once other pods are gone from it.
    pub(crate) may_be_cured: bool,
}

impl Refusal {
    fn new(filter: Filter, reason: Reason, may_be_cured: bool) -> Self {
        Self { filter, reason, further_reasons: Vec::new(), may_be_cured }
    }

    /// Why; at least one.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = &Reason> {
        std::iter::once(&self.reason).chain(&self.further_reasons)
    }

    /// A refusal by a filter for some reasons, if there are any.
    pub(crate) fn for_reasons(
        filter: Filter,
        reasons: impl IntoIterator<Item = Reason>,
        may_be_cured: bool,
    ) -> Option<Self> {
        let mut reasons = reasons.into_iter();
        let reason = reasons.next()?;
        Some(Self { filter, reason, further_reasons: reasons.collect(), may_be_cured })
    }
}

/// A pod's questions to every node, with what depends on more than the node summed up beforehand.
#[derive(Clone, Debug)]
pub(crate) struct Checks<'a> {
    pod: &'a PendingPod,
    spread: Spread<'a>,
    neighbours: Neighbours,
}

impl<'a> Checks<'a> {
    /// Sums up what the pod's rules need. `expected` are pods without a node that may be added
    /// with [`Self::add`].
    pub(crate) fn prepare(
        pod: &'a PendingPod,
        snapshot: &mut Snapshot,
        expected: &[Arc<PodInfo>],
    ) -> Self {
        Self {
            pod,
            spread: Spread::prepare(pod, snapshot),
            neighbours: Neighbours::prepare(&pod.info, snapshot, expected),
        }
    }

    /// Why a node cannot take the pod, if it cannot.
    pub(crate) fn refusal(
        &self,
        topology: &Topology,
        index: NodeIndex,
        node: &NodeInfo,
    ) -> Option<Refusal> {
        node::refusal(self.pod, node)
            .or_else(|| self.spread.refusal(topology, index))
            .or_else(|| self.neighbours.refusal(topology, index))
    }

    /// As if that pod were on the node.
    pub(crate) fn add(
        &mut self,
        topology: &Topology,
        index: NodeIndex,
        node: &NodeInfo,
        pod: &PodInfo,
    ) {
        self.spread.adjust(topology, index, node, pod, 1);
        self.neighbours.adjust(&self.pod.info, topology, index, pod, 1);
    }

    /// As if that pod were gone from the node.
    pub(crate) fn remove(
        &mut self,
        topology: &Topology,
        index: NodeIndex,
        node: &NodeInfo,
        pod: &PodInfo,
    ) {
        self.spread.adjust(topology, index, node, pod, -1);
        self.neighbours.adjust(&self.pod.info, topology, index, pod, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_filters() {
        let mut filters = Filters::default();
        assert!(filters.is_empty());
        filters.insert(Filter::Ports);
        filters.insert(Filter::PodAffinity);
        assert!(filters.contains(Filter::Ports) && filters.contains(Filter::PodAffinity));
        assert!(!filters.contains(Filter::Unschedulable) && !filters.is_empty());
    }
}
