//! How far settlement is behind, and what stopped it last: for readiness and for operators.

use parking_lot::Mutex;

use crate::clock::timer_now;
use crate::domain::id::UnixMs;
use crate::telemetry::{Seldom, metrics};

/// Hosts that are set by one source of time differ by milliseconds; a refund may be late by a minute.
pub const CLOCKS_APART_MS_MAX: i64 = 5_000;

/// What settlement saw last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Records that wait for the ledger.
    pub unsettled_records: u64,
    /// When the oldest of them was granted.
    pub oldest_unsettled_at: Option<UnixMs>,
    /// How long it had been waiting when it was seen.
    pub oldest_age_ms: i64,
    /// By how much this process's clock was ahead of the one that dated it.
    pub clock_ahead_ms: i64,
    /// Why the last round failed; `None` if it did not.
    pub last_error: Option<String>,
}

impl Seen {
    /// How long the oldest acknowledged grab has been waiting for its money, by this process's clock; 0: none
    /// waits.
    pub fn oldest_unsettled_age_ms(&self, now: UnixMs) -> i64 {
        let by_store = now.0.saturating_sub(self.clock_ahead_ms);
        self.oldest_unsettled_at
            .map_or(0, |at| by_store.saturating_sub(at.0).max(0))
    }
}

/// What settlement saw last, shared with whoever asks whether the process is ready.
#[derive(Debug, Default)]
pub struct Vitals {
    seen: Mutex<Errors>,
    clocks_said: Seldom,
}

#[derive(Debug, Default)]
struct Errors {
    seen: Seen,
    is_blind: bool,
    /// By loop, so that one which works does not hide another which does not.
    by_loop: std::collections::BTreeMap<&'static str, String>,
}

impl Vitals {
    /// Whether the hot store could be measured at the last look.
    pub(super) fn blind(&self, blind: bool) {
        self.seen.lock().is_blind = blind;
    }

    /// Whether it could not: then nothing of it can be settled either.
    pub(super) fn is_blind(&self) -> bool {
        self.seen.lock().is_blind
    }

    /// As of the last round.
    pub fn seen(&self) -> Seen {
        let errors = self.seen.lock();
        let mut seen = errors.seen.clone();
        seen.last_error = errors
            .by_loop
            .iter()
            .next()
            .map(|(which, why)| format!("{which}: {why}"));
        seen
    }

    /// By how much this process's clock is ahead of the hot store's. Envelopes open and end by the latter.
    pub(super) fn clocks(&self, ahead_ms: i64) {
        metrics::clock_ahead(ahead_ms);
        self.seen.lock().seen.clock_ahead_ms = ahead_ms;
        if ahead_ms.abs() > CLOCKS_APART_MS_MAX
            && let Some(unsaid) = self.clocks_said.say(timer_now())
        {
            tracing::warn!(
                ahead_ms,
                unsaid,
                "this host's clock and the hot store's differ: envelopes open and end by the store's. Set both \
                 by one source of time"
            );
        }
    }

    pub(super) fn backlog(&self, unsettled_records: u64, oldest: Option<UnixMs>, now: UnixMs) {
        let mut errors = self.seen.lock();
        errors.seen.unsettled_records = unsettled_records;
        errors.seen.oldest_unsettled_at = oldest;
        errors.seen.oldest_age_ms = errors.seen.oldest_unsettled_age_ms(now);
    }

    pub(super) fn went_well(&self, which: &'static str) {
        self.seen.lock().by_loop.remove(which);
    }

    pub(super) fn failed(&self, which: &'static str, why: String) {
        self.seen.lock().by_loop.insert(which, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_works_does_not_hide_one_that_does_not() {
        let vitals = Vitals::default();
        vitals.failed("sweep", "no ledger".into());
        vitals.went_well("drain");
        assert_eq!(vitals.seen().last_error, Some("sweep: no ledger".into()));
        vitals.went_well("sweep");
        assert_eq!(vitals.seen().last_error, None);
    }

    #[test]
    fn a_clock_that_steps_back_makes_no_negative_age() {
        let seen = Seen {
            oldest_unsettled_at: Some(UnixMs(1_000)),
            ..Seen::default()
        };
        assert_eq!(seen.oldest_unsettled_age_ms(UnixMs(5_000)), 4_000);
        assert_eq!(seen.oldest_unsettled_age_ms(UnixMs(500)), 0);
        assert_eq!(Seen::default().oldest_unsettled_age_ms(UnixMs(500)), 0);
    }
}
