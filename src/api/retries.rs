//! A budget for asking the hot store again within one call: a tenth of what is asked for the first time.
//!
//! A grab asks again where the envelope was not there, or its partition stands in another epoch. If that were so for
//! every grab at once, each would cost three calls of a store that has just come back. Beyond the budget the caller
//! is told to repeat the call, a little later and not together with all others.
//!
//! # Source
//! "Handling Overload", in Site Reliability Engineering (Beyer et al., 2016): a per-client budget of a tenth.
//!
//! # Bounds
//! [`SAVED_MAX`] are saved while nothing has to be asked again.

use std::sync::atomic::{AtomicI64, Ordering};

/// First askings that pay for one more.
const FIRST_PER_AGAIN: i64 = 10;
/// Askings that are saved for a failover: what one stream and the queue before a store have in flight,
/// when all of them learn of a new epoch.
pub const SAVED_MAX: i64 = 65_536;

/// How many may still be asked again, in parts of [`FIRST_PER_AGAIN`].
#[derive(Debug)]
pub(super) struct Retries(AtomicI64);

impl Default for Retries {
    fn default() -> Self {
        Self(AtomicI64::new(SAVED_MAX * FIRST_PER_AGAIN))
    }
}

impl Retries {
    /// So many are asked for the first time.
    pub(super) fn first(&self, asked: usize) {
        let full = SAVED_MAX * FIRST_PER_AGAIN;
        // Almost always: nothing was spent, and nothing needs to be written.
        if self.0.load(Ordering::Relaxed) < full {
            let asked = i64::try_from(asked).unwrap_or(full);
            self.0.fetch_add(asked, Ordering::Relaxed);
        }
    }

    /// Whether one may be asked again.
    pub(super) fn again(&self) -> bool {
        let spent = self.0.fetch_sub(FIRST_PER_AGAIN, Ordering::Relaxed);
        if spent < FIRST_PER_AGAIN {
            self.0.fetch_add(FIRST_PER_AGAIN, Ordering::Relaxed);
        }
        spent >= FIRST_PER_AGAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_spent_once_and_then_a_tenth_of_the_first_askings() {
        let retries = Retries::default();
        let spent = |tries: usize| (0..tries).filter(|_| retries.again()).count();
        assert_eq!(spent(100_000), 65_536);
        retries.first(99);
        assert_eq!(spent(100), 9);
        retries.first(1);
        assert_eq!(spent(100), 1);
    }

    #[test]
    fn no_more_is_saved_than_at_first() {
        let retries = Retries::default();
        retries.first(1_000_000);
        assert!(retries.again());
        retries.first(10);
        retries.first(1_000);
        let spent = (0..100_000).filter(|_| retries.again()).count();
        assert_eq!(spent, 65_536);
    }
}
