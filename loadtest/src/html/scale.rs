//! Where a value lies on an axis, and which values are written beside it.

use crate::text::short;

/// Numbers beside an axis, about.
const TICKS: f64 = 5.0;
/// Decades beside a logarithmic axis, at most; of more, only some are written.
const DECADES: i32 = 6;

/// One axis.
#[derive(Clone, Debug)]
pub enum Scale {
    /// From the first to the second, evenly.
    Linear(f64, f64),
    /// From the first to the second power of ten.
    Log(i32, i32),
    /// Shares of answers that are slower, as percentiles: from all of them to one of so many.
    Slower(f64),
}

impl Scale {
    /// From nought, or below it, to the largest value, or beyond it.
    pub fn linear(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = ends(values).unwrap_or((0.0, 1.0));
        let low = low.min(0.0);
        let high = if high > low { high } else { low + 1.0 };
        let step = step(low, high);
        Self::Linear((low / step).floor() * step, (high / step).ceil() * step)
    }

    /// Exactly from the first to the last value: an axis of time.
    pub fn time(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = ends(values).unwrap_or((0.0, 1.0));
        let low = low.min(0.0);
        Self::Linear(low, high.max(low + 1.0))
    }

    /// Whole decades around all values above nought.
    pub fn log(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = ends(values.filter(|value| *value > 0.0)).unwrap_or((1.0, 10.0));
        let (low, high) = (decade(low.log10().floor()), decade(high.log10().ceil()));
        Self::Log(low, high.max(low + 1))
    }

    /// Where, from 0 to 1.
    pub fn part(&self, value: f64) -> f64 {
        let part = match self {
            Self::Linear(low, high) => (value - low) / (high - low),
            Self::Log(low, high) => {
                let (low, high) = (f64::from(*low), f64::from(*high));
                (value.max(f64::MIN_POSITIVE).log10() - low) / (high - low)
            }
            Self::Slower(of) => value.max(1.0 / of).recip().log10() / of.max(10.0).log10(),
        };
        if part.is_finite() {
            part.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }

    /// Values with their words.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        match self {
            Self::Linear(low, high) => {
                let step = step(*low, *high);
                let first = (low / step - 1e-9).ceil();
                let values = (0..32).map(|n| (first + f64::from(n)) * step);
                let values = values.take_while(|value| *value <= high + step * 1e-9);
                // Minus nought is nought.
                values
                    .map(|value| (value + 0.0, short(value + 0.0)))
                    .collect()
            }
            Self::Log(low, high) => {
                let each = ((high - low) / DECADES + 1).max(1);
                let powers = (*low..=*high).filter(|power| (power - low) % each == 0);
                powers
                    .map(|power| 10_f64.powi(power))
                    .map(|value| (value, short(value)))
                    .collect()
            }
            Self::Slower(of) => {
                let slower = [0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6];
                let known = slower.into_iter().filter(|slower| slower * of >= 1.0);
                known.map(|slower| (slower, percent(slower))).collect()
            }
        }
    }

    /// A value in a table.
    pub fn word(&self, value: f64) -> String {
        match self {
            Self::Slower(_) if value == 0.0 => "slowest".into(),
            Self::Slower(_) => format!("{} %", percent(value)),
            Self::Linear(..) | Self::Log(..) => crate::text::number(value),
        }
    }
}

/// Of all answers those that were not slower: without the sign, which would not fit beside an axis six times.
fn percent(slower: f64) -> String {
    let percent = format!("{:.5}", 100.0 * (1.0 - slower));
    percent.trim_end_matches('0').trim_end_matches('.').into()
}

fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.filter(|value| value.is_finite());
    finite.fold(None, |ends, value| match ends {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

/// 1, 2 or 5 times a power of ten.
fn step(low: f64, high: f64) -> f64 {
    let rough = (high - low) / TICKS;
    let power = 10_f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 5.0].into_iter();
    let mut fitting = times.filter(|times| times * power >= rough * 0.999);
    fitting.next().unwrap_or(10.0) * power
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the logarithm of a finite float lies between -324 and 309"
)]
fn decade(power: f64) -> i32 {
    power as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(scale: &Scale) -> Vec<String> {
        scale.ticks().into_iter().map(|(_, word)| word).collect()
    }

    #[test]
    fn ticks_are_round_numbers_that_reach_beyond_the_largest_value() {
        let scale = Scale::linear([3.0, 87.0].into_iter());
        assert_eq!(words(&scale), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(scale.part(100.0), 1.0);
        let time = Scale::time([-1.2, 17.3].into_iter());
        assert_eq!(words(&time), ["0", "5", "10", "15"]);
    }

    #[test]
    fn a_logarithmic_axis_has_whole_decades() {
        let scale = Scale::log([0.4, 250.0, 0.0].into_iter());
        assert_eq!(words(&scale), ["0.1", "1", "10", "100", "1,000"]);
        assert!((scale.part(10.0) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn percentiles_reach_as_far_as_there_are_answers() {
        let scale = Scale::Slower(1_000.0);
        assert_eq!(words(&scale), ["50", "90", "99", "99.9"]);
        assert_eq!(scale.word(0.001), "99.9 %");
        assert!((scale.part(0.0) - 1.0).abs() < 1e-9);
        assert!((scale.part(1.0)).abs() < 1e-9);
    }

    #[test]
    fn nothing_and_nonsense_still_have_a_place() {
        for scale in [
            Scale::linear(std::iter::empty()),
            Scale::log([0.0].into_iter()),
            Scale::time([5.0].into_iter()),
            Scale::linear([7.0].into_iter()),
            Scale::Slower(0.0),
        ] {
            for value in [f64::NAN, f64::INFINITY, -1.0, 0.0, 7.0] {
                let part = scale.part(value);
                assert!((0.0..=1.0).contains(&part), "{scale:?} {value}: {part}");
            }
        }
    }
}
