//! What was measured: how late grabs left, how long answers took, how they ended.
//!
//! Latency counts from the instant at which a grab was *due*, not from when it left: a server that
//! stalls for a second makes everybody who wanted to grab in that second wait, also those whom a
//! stalled generator could not even send. That is the coordinated omission that most load tests hide.
//!
//! **Not here**: clocks. Instants come in as durations since the start of the firing.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::generator::Own;
use crate::timeline::Timeline;

/// Shares of all answers that are slower than a point of the percentile curve. The finer ones are told
/// where so few answers exist at all.
const SLOWER: [f64; 36] = [
    0.999, 0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03,
    0.02, 0.015, 0.01, 0.007, 0.005, 0.003, 0.002, 0.001, 5e-4, 3e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5,
    5e-6, 2e-6, 1e-6, 1e-7,
];
/// Answers beyond this are recorded as this: five minutes.
const LATENCY_US_MAX: u64 = 300_000_000;

/// What happened on one transport.
#[derive(Clone, Debug)]
pub struct Record {
    latency_us: Histogram<u64>,
    lateness_us: Histogram<u64>,
    late_after: Duration,
    /// The same over time.
    pub timeline: Timeline,
    /// Left at all.
    pub sent: u64,
    /// Left later than allowed after the own instant.
    pub late: u64,
    /// Given up: no place on the connection.
    pub not_sent: u64,
    /// Tries after the first.
    pub retried: u64,
    /// Answers by label.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// What the generator itself did to these figures.
    pub own: Own,
}

impl Record {
    /// Nothing yet; a grab is late when it leaves more than `late_after` after its instant.
    pub fn new(late_after: Duration) -> Self {
        let histogram = || {
            Histogram::new_with_max(LATENCY_US_MAX, 3)
                .expect("three digits and a maximum above two are valid")
        };
        Self {
            latency_us: histogram(),
            lateness_us: histogram(),
            late_after,
            timeline: Timeline::new(),
            sent: 0,
            late: 0,
            not_sent: 0,
            retried: 0,
            outcomes: BTreeMap::new(),
            own: Own::default(),
        }
    }

    /// A grab that was due at `due` left at `now`.
    pub fn left(&mut self, due: Duration, now: Duration) {
        let lateness = now.saturating_sub(due);
        let late = lateness > self.late_after;
        self.sent += 1;
        self.late += u64::from(late);
        self.timeline.left(due, now, late);
        self.lateness_us.saturating_record(micros(lateness));
    }

    /// A grab that was due at `due` had its answer at `now`, after `tries` tries.
    pub fn answered(&mut self, due: Duration, now: Duration, tries: u32, label: &'static str) {
        self.retried += u64::from(tries.saturating_sub(1));
        *self.outcomes.entry(label).or_default() += 1;
        let latency_us = micros(now.saturating_sub(due)).min(LATENCY_US_MAX);
        self.latency_us.saturating_record(latency_us);
        self.timeline.answered(due, now, latency_us, label);
    }

    /// A grab that was due at `due` found no place.
    pub fn given_up(&mut self, due: Duration) {
        self.not_sent += 1;
        self.timeline.given_up(due);
    }

    /// Adds what another connection recorded.
    pub fn absorb(&mut self, other: &Self) {
        let same = "two histograms of the same bounds";
        self.latency_us.add(&other.latency_us).expect(same);
        self.lateness_us.add(&other.lateness_us).expect(same);
        self.own.absorb(&other.own);
        self.timeline.absorb(&other.timeline);
        self.sent += other.sent;
        self.late += other.late;
        self.not_sent += other.not_sent;
        self.retried += other.retried;
        for (label, count) in &other.outcomes {
            *self.outcomes.entry(label).or_default() += count;
        }
    }

    /// Answers that were recorded.
    pub fn answered_count(&self) -> u64 {
        self.latency_us.len()
    }

    /// So many of a thousand answers took at most this many milliseconds.
    pub fn latency_ms(&self, permille: u32) -> f64 {
        ms(&self.latency_us, permille)
    }

    /// Points of the percentile curve: the share of answers that took longer, and milliseconds. The last
    /// is the slowest answer, behind which there is none.
    pub fn latency_curve(&self) -> Vec<(f64, f64)> {
        let answers = self.latency_us.len();
        let told = |slower: &&f64| **slower * answers as f64 >= 1.0;
        let points = SLOWER.iter().filter(told).map(|slower| {
            let us = self.latency_us.value_at_quantile(1.0 - slower);
            (*slower, us as f64 / 1_000.0)
        });
        let slowest = (answers > 0).then(|| (0.0, self.latency_ms(1_000)));
        points.chain(slowest).collect()
    }

    /// So many of a thousand grabs left at most this many milliseconds after their instant.
    pub fn lateness_ms(&self, permille: u32) -> f64 {
        ms(&self.lateness_us, permille)
    }
}

fn ms(histogram: &Histogram<u64>, permille: u32) -> f64 {
    histogram.value_at_quantile(f64::from(permille) / 1_000.0) as f64 / 1_000.0
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(LATENCY_US_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn latency_counts_from_the_instant_that_was_due() {
        let mut record = Record::new(20 * MS);
        record.left(100 * MS, 600 * MS);
        record.answered(100 * MS, 601 * MS, 1, "won");
        assert!((record.latency_ms(500) - 501.0).abs() < 1.0);
    }

    #[test]
    fn a_grab_is_late_beyond_the_allowance_only() {
        let mut record = Record::new(20 * MS);
        record.left(MS, 21 * MS);
        record.left(MS, 22 * MS);
        assert_eq!((record.sent, record.late), (2, 1));
        assert!((record.lateness_ms(1_000) - 21.0).abs() < 0.1);
    }

    #[test]
    fn the_percentile_curve_ends_where_the_answers_do() {
        let mut record = Record::new(MS);
        assert!(record.latency_curve().is_empty());
        for ms in 1..=1_000 {
            record.answered(MS, (1 + ms) * MS, 1, "won");
        }
        let curve = record.latency_curve();
        let (slower, slow_ms) = curve[curve.len() - 2];
        assert!(
            slower == 0.001 && (slow_ms - 999.0).abs() < 2.0,
            "{curve:?}"
        );
        let (none, slowest_ms) = curve[curve.len() - 1];
        assert!(none == 0.0 && slowest_ms >= 1_000.0, "{curve:?}");
        assert!(curve.is_sorted_by(|a, b| a.0 > b.0 && a.1 <= b.1));
    }

    #[test]
    fn records_of_connections_add_up() {
        let mut sum = Record::new(20 * MS);
        for tries in [1, 3] {
            let mut one = Record::new(20 * MS);
            one.left(MS, MS);
            one.given_up(MS);
            one.answered(MS, 5 * MS, tries, "empty");
            sum.absorb(&one);
        }
        assert_eq!((sum.sent, sum.not_sent, sum.retried), (2, 2, 2));
        assert_eq!((sum.answered_count(), sum.outcomes["empty"]), (2, 2));
    }
}
