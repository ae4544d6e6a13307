//! Medians and spread.

/// The middle of a set of readings and how far they lay apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Median {
    pub(crate) value: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Median {
    /// # Panics
    /// Of no readings at all: a case that took none is a bug of this program.
    pub(crate) fn of(readings: &[f64]) -> Self {
        assert!(!readings.is_empty(), "a median needs at least one reading, got 0");
        let mut sorted = readings.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let value = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Self { value, least: sorted[0], most: sorted[sorted.len() - 1] }
    }

    /// Half the distance between least and most, in percent of the median.
    pub(crate) fn spread_percent(&self) -> f64 {
        if self.value == 0.0 { 0.0 } else { (self.most - self.least) / self.value * 50.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::Median;

    #[test]
    fn the_median_does_not_follow_one_wild_reading() {
        let median = Median::of(&[3.0, 1.0, 2.0, 1_000.0, 2.0]);
        assert_eq!((median.value, median.least, median.most), (2.0, 1.0, 1_000.0));
    }

    #[test]
    fn an_even_number_of_readings_takes_the_mean_of_the_middle_two() {
        assert_eq!(Median::of(&[4.0, 1.0, 2.0, 3.0]).value, 2.5);
    }

    #[test]
    fn spread_is_half_the_range_in_percent() {
        assert_eq!(Median::of(&[90.0, 100.0, 110.0]).spread_percent(), 10.0);
    }
}
