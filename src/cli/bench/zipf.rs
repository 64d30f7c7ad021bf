//! Zipf-distributed numbers.

/// Draws ranks from 0 whose probability is proportional to `1 / (rank + 1)^exponent`.
#[derive(Debug)]
pub struct Zipf {
    /// The probability of each rank or a lower one.
    cumulative: Vec<f64>,
}

impl Zipf {
    pub fn new(ranks: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let weights = (1..=ranks).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        let mut cumulative: Vec<f64> = weights.collect();
        cumulative.iter_mut().for_each(|weight| *weight /= sum);
        Self { cumulative }
    }

    /// Returns the rank for a uniform number from 0 to 1.
    pub fn rank(&self, uniform: f64) -> usize {
        self.cumulative.partition_point(|cumulative| *cumulative <= uniform).min(self.cumulative.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_follow_the_exponent() {
        let zipf = Zipf::new(3, 1.5);
        let weights = [1.0, 2.0_f64.powf(-1.5), 3.0_f64.powf(-1.5)];
        let sum: f64 = weights.iter().sum();
        let mut random = fastrand::Rng::with_seed(1);
        let mut counts = [0.0; 3];
        for _ in 0..100_000 {
            counts[zipf.rank(random.f64())] += 1.0 / 100_000.0;
        }
        for (count, weight) in counts.iter().zip(weights) {
            assert!((count - weight / sum).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn the_ends_of_the_range_are_ranks() {
        let zipf = Zipf::new(1_000, 1.5);
        assert_eq!((zipf.rank(0.0), zipf.rank(1.0)), (0, 999));
        assert_eq!(Zipf::new(1, 1.5).rank(0.9), 0);
    }
}
