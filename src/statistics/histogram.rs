//! A concurrent histogram. Each power of two has four buckets, so that percentiles are at most a quarter too high.

use std::sync::atomic::{AtomicU64, Ordering};

/// Number of buckets for each power of two.
const STEPS: u64 = 4;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Enough for values up to 2^40 (12 days in microseconds); larger values count in the last bucket.
const BUCKETS: usize = (40 * STEPS) as usize;

/// A histogram with lock-free recording.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
}

/// The number of values above the previous bucket's `upper` and at most this `upper`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistogramBucket {
    pub upper: u64,
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS] }
    }
}

impl Histogram {
    pub fn record(&self, value: u64) {
        self.buckets[bucket_of(value)].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the non-empty buckets, lowest first.
    pub fn buckets(&self) -> Vec<HistogramBucket> {
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let bucket = |(index, count)| HistogramBucket { upper: upper_of(index), count };
        counts.enumerate().map(bucket).filter(|bucket| bucket.count > 0).collect()
    }
}

/// Returns the value that `percent` percent of all values do not exceed, or 0 without values. `buckets` must be in
/// ascending order.
pub fn percentile(buckets: &[HistogramBucket], percent: u64) -> u64 {
    let total: u64 = buckets.iter().map(|bucket| bucket.count).sum();
    let rank = (total * percent).div_ceil(100).max(1);
    let mut below = 0;
    for bucket in buckets {
        below += bucket.count;
        if below >= rank {
            return bucket.upper;
        }
    }
    0
}

fn bucket_of(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let power = value.ilog2();
    let step = (value >> (power - STEP_BITS)) - STEPS;
    // Values below `STEPS` span two powers of two and have one bucket each.
    let index = u64::from(power - STEP_BITS + 1) * STEPS + step;
    (index as usize).min(BUCKETS - 1)
}

fn upper_of(index: usize) -> u64 {
    let index = index as u64;
    if index < STEPS {
        return index;
    }
    let (shift, step) = (index / STEPS - 1, index % STEPS);
    ((STEPS + step + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_at_most_a_quarter_below_the_upper_bound_of_its_bucket() {
        let powers = (0..38).flat_map(|power| [-1, 0, 1].map(|off| (1_u64 << power).saturating_add_signed(off)));
        for value in (0..5_000).chain(powers) {
            let index = bucket_of(value);
            let upper = upper_of(index);
            assert!(value <= upper && upper - value <= value / 4, "{value} is in the bucket up to {upper}");
            assert!(index == 0 || upper_of(index - 1) < value, "{value} is not in the bucket before");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_computed_from_bucket_counts() {
        let histogram = Histogram::default();
        assert_eq!(percentile(&histogram.buckets(), 50), 0);
        (1..=3).for_each(|value| histogram.record(value));
        let percentiles = [0, 33, 34, 50, 67, 99, 100].map(|percent| percentile(&histogram.buckets(), percent));
        assert_eq!(percentiles, [1, 1, 2, 2, 3, 3, 3]);
        (0..997).for_each(|_| histogram.record(1_000));
        assert_eq!(percentile(&histogram.buckets(), 99), 1_023);
    }
}
