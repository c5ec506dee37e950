//! What the node lifecycle controller can be told: Kubernetes' flags, with numbers for small
//! clusters.

use std::time::Duration;

use clap::Args;

/// How nodes that are in trouble are treated.
#[derive(Args, Clone, Debug)]
pub struct NodeLifecycleConfig {
    /// How long a node may be silent before it counts as NotReady, as in 15s or 1m30s. Kubelets
    /// send a heartbeat every 5 s. Kubernetes: 40s.
    #[arg(long, default_value = "15s", value_name = "DURATION", value_parser = api::positive_duration)]
    pub node_monitor_grace_period: Duration,

    /// How many nodes a second may be told to give up their pods, in each zone. Kubernetes: 0.1.
    #[arg(long, default_value_t = 1.0, value_name = "N", value_parser = rate)]
    pub node_eviction_rate: f64,

    /// The same while much of the zone is in trouble; in a small zone it is 0 then.
    #[arg(long, default_value_t = 0.01, value_name = "N", value_parser = rate)]
    pub secondary_node_eviction_rate: f64,

    /// Which part of a zone's nodes, and more than two of them, must be in trouble for that.
    #[arg(long, default_value_t = 0.55, value_name = "PART", value_parser = part)]
    pub unhealthy_zone_threshold: f64,

    /// The most nodes that a small zone has.
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub large_cluster_size_threshold: usize,

    /// How much longer than its grace period a pod that is being deleted stays in the store when
    /// its node is not heard of, and so cannot say that the containers have ended. In Kubernetes it
    /// stays until its node is back or deleted.
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = api::positive_duration)]
    pub unreachable_pod_removal_period: Duration,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("must be a number a second, 0 or above".to_owned()),
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(part) if (0.0..=1.0).contains(&part) => Ok(part),
        _ => Err("must be between 0 and 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_parts_are_sane() {
        assert_eq!(rate("0.1"), Ok(0.1));
        assert_eq!(rate("0"), Ok(0.0));
        assert_eq!(part("1"), Ok(1.0));
        for wrong in ["", "-1", "NaN", "inf", "often"] {
            assert!(rate(wrong).is_err(), "{wrong}");
            assert!(part(wrong).is_err(), "{wrong}");
        }
        assert!(part("1.1").is_err());
    }
}
