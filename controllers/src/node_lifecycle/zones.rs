//! How fast nodes in trouble may be told to give up their pods, by how their zone fares.
//!
//! Kubernetes' rules:
//!
//! | of a zone's nodes are in trouble | nodes told to give up their pods |
//! | --- | --- |
//! | few | [`Rates::primary`] a second |
//! | more than two, and at least [`Rates::unhealthy_part`] | [`Rates::secondary`] a second; none in a zone that is not large |
//! | all | [`Rates::primary`] a second: the others can take the pods |
//! | all, in every zone | none at all, and those that were told are told otherwise: the trouble is rather ours |

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;

use super::config::NodeLifecycleConfig;

const REGION_LABEL: &str = "topology.kubernetes.io/region";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A zone's name; nodes that say nothing make up one, too.
pub(crate) type Zone = (String, String);

/// The zone that a node says it is in.
pub(crate) fn zone(node: &Node) -> Zone {
    let label = |name| {
        let labels = node.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(name)).cloned().unwrap_or_default()
    };
    (label(REGION_LABEL), label(ZONE_LABEL))
}

/// How fast, in nodes a second, and when which.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) primary: f64,
    pub(crate) secondary: f64,
    pub(crate) unhealthy_part: f64,
    /// The most nodes of a zone that is not large.
    pub(crate) small_zone_nodes: usize,
}

impl From<&NodeLifecycleConfig> for Rates {
    fn from(config: &NodeLifecycleConfig) -> Self {
        Self {
            primary: config.node_eviction_rate,
            secondary: config.secondary_node_eviction_rate,
            unhealthy_part: config.unhealthy_zone_threshold,
            small_zone_nodes: config.large_cluster_size_threshold,
        }
    }
}

/// How many nodes of a zone are ready, and how many are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) ready: usize,
    pub(crate) in_trouble: usize,
}

impl Health {
    fn is_dead(self) -> bool {
        self.ready == 0 && self.in_trouble > 0
    }

    fn rate(self, rates: &Rates) -> f64 {
        let nodes = self.ready + self.in_trouble;
        let disrupted = self.in_trouble > 2
            && self.in_trouble as f64 / nodes as f64 >= rates.unhealthy_part
            && !self.is_dead();
        match disrupted {
            false => rates.primary,
            true if nodes > rates.small_zone_nodes => rates.secondary,
            true => 0.0,
        }
    }
}

/// The zones as they are, and what each may still do.
#[derive(Debug)]
pub(crate) struct Zones {
    rates: Rates,
    limiters: HashMap<Zone, Limiter>,
    all_dead: bool,
}

impl Zones {
    pub(crate) fn new(rates: Rates) -> Self {
        Self { rates, limiters: HashMap::new(), all_dead: false }
    }

    /// Takes note of how the zones fare at a moment, given as the time since some beginning.
    pub(crate) fn observe(&mut self, zones: &HashMap<Zone, Health>, now: Duration) {
        self.all_dead = !zones.is_empty() && zones.values().all(|health| health.is_dead());
        self.limiters.retain(|zone, _| zones.contains_key(zone));
        for (zone, health) in zones {
            let rate = health.rate(&self.rates);
            let limiter = self.limiters.entry(zone.clone()).or_insert_with(|| Limiter::new(now));
            limiter.turn_to(rate, now);
        }
    }

    /// Whether every node there is looks dead.
    pub(crate) fn all_dead(&self) -> bool {
        self.all_dead
    }

    /// Whether one more node of the zone may be told at this moment, which then counts.
    pub(crate) fn take_turn(&mut self, zone: &Zone, now: Duration) -> bool {
        !self.all_dead && self.limiters.get_mut(zone).is_some_and(|limiter| limiter.take(now))
    }
}

/// Lets one through at once, and then so many a second.
#[derive(Debug)]
struct Limiter {
    rate: f64,
    tokens: f64,
    at: Duration,
}

impl Limiter {
    fn new(now: Duration) -> Self {
        Self { rate: 0.0, tokens: 1.0, at: now }
    }

    fn turn_to(&mut self, rate: f64, now: Duration) {
        self.refill(now);
        self.rate = rate;
    }

    fn refill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate).min(1.0);
        self.at = self.at.max(now);
    }

    fn take(&mut self, now: Duration) -> bool {
        self.refill(now);
        let may = self.rate > 0.0 && self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates =
        Rates { primary: 0.5, secondary: 0.1, unhealthy_part: 0.55, small_zone_nodes: 50 };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn named(zone: &str) -> Zone {
        (String::new(), zone.to_owned())
    }

    #[test]
    fn how_fast() {
        // (ready, in trouble), the rate
        let rows = [
            ((3, 0), 0.5),
            ((9, 1), 0.5),
            // Two of three: small clusters lose two nodes without a disaster.
            ((1, 2), 0.5),
            ((3, 3), 0.5),
            ((2, 3), 0.0),
            ((1, 3), 0.0),
            ((22, 28), 0.0),
            ((40, 60), 0.1),
            ((60, 40), 0.5),
            ((0, 3), 0.5),
        ];
        for ((ready, in_trouble), rate) in rows {
            let health = Health { ready, in_trouble };
            assert!((health.rate(&RATES) - rate).abs() < 1e-9, "{health:?}");
        }
    }

    #[test]
    fn one_at_once_and_then_by_the_rate() {
        let mut zones = Zones::new(RATES);
        let (zone, other) = (named("a"), named("b"));
        let fine = Health { ready: 8, in_trouble: 2 };
        let both = HashMap::from([(zone.clone(), fine), (other.clone(), fine)]);
        zones.observe(&both, at(0));
        // (second, zone, whether)
        let rows = [
            (0, &zone, true),
            (0, &zone, false),
            (0, &other, true),
            (1, &zone, false),
            (2, &zone, true),
            (100, &zone, true),
            (100, &zone, false),
        ];
        for (second, zone, expected) in rows {
            assert_eq!(zones.take_turn(zone, at(second)), expected, "{zone:?} at {second}");
        }
        assert!(!zones.take_turn(&named("unknown"), at(100)));
    }

    #[test]
    fn nothing_happens_while_every_node_looks_dead() {
        let mut zones = Zones::new(RATES);
        let dead = Health { ready: 0, in_trouble: 2 };
        let fine = Health { ready: 2, in_trouble: 0 };
        let (a, b) = (named("a"), named("b"));
        zones.observe(&HashMap::from([(a.clone(), dead), (b.clone(), dead)]), at(0));
        assert!(zones.all_dead());
        assert!(!zones.take_turn(&a, at(50)));
        // A dead zone's pods go to the others.
        zones.observe(&HashMap::from([(a.clone(), dead), (b, fine)]), at(60));
        assert!(!zones.all_dead());
        assert!(zones.take_turn(&a, at(60)));
        zones.observe(&HashMap::new(), at(70));
        assert!(!zones.all_dead(), "no nodes, no trouble");
    }

    #[test]
    fn nodes_say_where_they_are() {
        let mut node = crate::fixture::node("node-1", "True");
        assert_eq!(zone(&node), Zone::default());
        node.metadata.labels = Some([(ZONE_LABEL.to_owned(), "a".to_owned())].into());
        assert_eq!(zone(&node), named("a"));
    }
}
