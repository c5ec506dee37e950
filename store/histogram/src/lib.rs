//! The histogram that openraft counts with, for openraft only.
//!
//! It takes the place of a crate that makes 25 MiB of tables in every process, which is more than all
//! else that a member at rest needs. Nothing here reads these counts: the store has metrics of its own.
//! So a bucket for each power of two is enough:
//!
//! ```
//! let mut batches = base2histogram::Histogram::<()>::new();
//! for size in [1, 1, 2, 100] {
//!     batches.record(size);
//! }
//! let stats = batches.percentile_stats();
//! assert_eq!((stats.samples, stats.p50, stats.p99_9), (4, 1, 64));
//! ```

use std::fmt;
use std::marker::PhantomData;

/// One for 0, and one for each power of two.
const BUCKETS: usize = 65;

/// How often values of each magnitude came. `T` is for what openraft does not use.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    of: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// One without values.
    #[must_use]
    pub fn new() -> Self {
        Self { counts: [0; BUCKETS], of: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value that came `times` times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let count = &mut self.counts[bucket(value)];
        *count = count.saturating_add(times);
    }

    /// The usual percentiles, rounded down to a power of two.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.counts.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
        PercentileStats {
            samples,
            p0_1: self.percentile(samples, 1),
            p1: self.percentile(samples, 10),
            p5: self.percentile(samples, 50),
            p10: self.percentile(samples, 100),
            p50: self.percentile(samples, 500),
            p90: self.percentile(samples, 900),
            p99: self.percentile(samples, 990),
            p99_9: self.percentile(samples, 999),
        }
    }

    /// The least value of the bucket that so many thousandths of the samples do not go beyond.
    fn percentile(&self, samples: u64, per_mille: u64) -> u64 {
        let wanted = (u128::from(samples) * u128::from(per_mille)).div_ceil(1000);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= wanted && seen > 0 {
                return least(at);
            }
        }
        0
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Histogram<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        f.debug_map().entries(counts.map(|(at, count)| (least(at), count))).finish()
    }
}

fn bucket(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()) as usize
}

fn least(bucket: usize) -> u64 {
    bucket.checked_sub(1).map_or(0, |power| 1 << power)
}

/// What most values are like.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples, p50 {}, p99 {}", self.samples, self.p50, self.p99)
    }
}

/// Histograms with their names, in a row.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart(Vec<(String, Histogram)>);

impl AsciiChart {
    /// One without histograms.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.0.push((name.into(), histogram));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_bucket_whose_least_is_no_more_than_it() {
        for value in [0, 1, 2, 3, 4, 1023, 1024, u64::MAX / 2 + 1, u64::MAX] {
            let least = least(bucket(value));
            assert!(least <= value && value / 2 <= least, "{value}: {least}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p99, 0);
        for value in 0..1000 {
            histogram.record(value);
        }
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p0_1, stats.p1), (1000, 0, 8));
        assert_eq!((stats.p50, stats.p90, stats.p99_9), (256, 512, 512));
    }
}
