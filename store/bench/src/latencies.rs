//! Times that something took, and their quantiles.

use std::time::Duration;

/// Times that something took.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    sorted: Vec<Duration>,
}

impl Latencies {
    /// All of them, in any order.
    #[must_use]
    pub fn new(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self { sorted: all }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The smallest one that is not below `fraction` of all; zero if there are none.
    #[must_use]
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn quantile(&self, fraction: f64) -> Duration {
        let rank = (fraction * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_times() {
        let all = Latencies::new((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!(all.count(), 200);
        assert_eq!(all.quantile(0.5), Duration::from_millis(100));
        assert_eq!(all.quantile(0.99), Duration::from_millis(198));
        assert_eq!(all.quantile(1.0), Duration::from_millis(200));
        assert_eq!(Latencies::default().quantile(0.5), Duration::ZERO);
    }
}
