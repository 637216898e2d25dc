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

/// Answers beyond this are recorded as this: five minutes.
const LATENCY_US_MAX: u64 = 300_000_000;

/// What happened on one transport.
#[derive(Clone, Debug)]
pub struct Record {
    latency_us: Histogram<u64>,
    lateness_us: Histogram<u64>,
    late_after: Duration,
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
        self.sent += 1;
        self.late += u64::from(lateness > self.late_after);
        self.lateness_us.saturating_record(micros(lateness));
    }

    /// A grab that was due at `due` had its answer at `now`, after `tries` tries.
    pub fn answered(&mut self, due: Duration, now: Duration, tries: u32, label: &'static str) {
        self.retried += u64::from(tries.saturating_sub(1));
        *self.outcomes.entry(label).or_default() += 1;
        self.latency_us
            .saturating_record(micros(now.saturating_sub(due)));
    }

    /// A grab found no place.
    pub fn given_up(&mut self) {
        self.not_sent += 1;
    }

    /// Adds what another connection recorded.
    pub fn absorb(&mut self, other: &Self) {
        let same = "two histograms of the same bounds";
        self.latency_us.add(&other.latency_us).expect(same);
        self.lateness_us.add(&other.lateness_us).expect(same);
        self.own.absorb(&other.own);
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
    fn records_of_connections_add_up() {
        let mut sum = Record::new(20 * MS);
        for tries in [1, 3] {
            let mut one = Record::new(20 * MS);
            one.left(MS, MS);
            one.given_up();
            one.answered(MS, 5 * MS, tries, "empty");
            sum.absorb(&one);
        }
        assert_eq!((sum.sent, sum.not_sent, sum.retried), (2, 2, 2));
        assert_eq!((sum.answered_count(), sum.outcomes["empty"]), (2, 2));
    }
}
