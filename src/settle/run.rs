//! The loops that repeat settlement's steps, in one future that the caller spawns.

use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::rounds::Rounds;
use super::{
    BACKOFF_MS_MAX, BACKOFF_MS_MIN, FORGET_PAGE_MAX, LEASE_RENEW_MS, RECONCILE_MS,
    RECONCILE_PAGE_MS, SWEEP_MS, SettleError, Settlement,
};

/// The rest after so many failures in a row: doubled each time, and half of it is the caller's
/// jitter, so that processes which failed together don't come back together.
pub(super) fn backoff_ms(failures: u32, jitter: &(impl Fn(u64) -> u64 + ?Sized)) -> u64 {
    let doubled = BACKOFF_MS_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let half = doubled.min(BACKOFF_MS_MAX) / 2;
    half + jitter(half).min(half)
}

/// How one loop has fared.
struct Pace<'a> {
    which: &'static str,
    failures: u32,
    of: &'a Settlement,
}

impl<'a> Pace<'a> {
    fn new(which: &'static str, of: &'a Settlement) -> Self {
        Self {
            which,
            failures: 0,
            of,
        }
    }

    /// How long to rest after a step that ended like this, `well_ms` if it went well. Only a hot
    /// store that has stopped ends the loop.
    fn rest(
        &mut self,
        ended: Result<(), SettleError>,
        well_ms: u64,
        jitter: &(impl Fn(u64) -> u64 + ?Sized),
    ) -> Result<Duration, SettleError> {
        match ended {
            Ok(()) => {
                if self.failures > 0 {
                    tracing::info!(step = self.which, "settlement goes on");
                }
                self.failures = 0;
                self.of.vitals.went_well(self.which);
                Ok(Duration::from_millis(well_ms))
            }
            Err(SettleError::Stopped(why)) => {
                self.of.vitals.failed(self.which, why.clone());
                Err(SettleError::Stopped(why))
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures.is_power_of_two() {
                    let failures = self.failures;
                    tracing::warn!(step = self.which, failures, %error, "settlement failed");
                }
                self.of.vitals.failed(self.which, error.to_string());
                Ok(Duration::from_millis(backoff_ms(self.failures, jitter)))
            }
        }
    }
}

impl Settlement {
    /// Runs until `shutdown`, which lets the steps under way end. `jitter(max)` answers a number
    /// from 0 to `max`.
    ///
    /// # Errors
    /// The hot store has stopped for good: the process must end.
    pub async fn run(
        &self,
        jitter: impl Fn(u64) -> u64 + Send + Sync,
        shutdown: CancellationToken,
    ) -> Result<(), SettleError> {
        tokio::try_join!(
            self.drain_loop(&jitter, &shutdown),
            self.measure_loop(&jitter, &shutdown),
            self.sweep_loop(&jitter, &shutdown),
            self.publish_loop(&shutdown),
            self.forget_loop(&jitter, &shutdown),
            self.reconcile_loop(&jitter, &shutdown),
            self.promises_loop(&jitter, &shutdown),
            self.lease_loop(&jitter, &shutdown),
        )?;
        Ok(())
    }

    /// Only measures the backlog, looks after its own lost promises and says that the books are served, until
    /// `shutdown`: other processes settle it.
    ///
    /// # Errors
    /// As [`Settlement::run`].
    pub async fn look_on(
        &self,
        jitter: impl Fn(u64) -> u64 + Send + Sync,
        shutdown: CancellationToken,
    ) -> Result<(), SettleError> {
        tokio::try_join!(
            self.measure_loop(&jitter, &shutdown),
            self.promises_loop(&jitter, &shutdown),
            self.serve_loop(&jitter, &shutdown),
        )?;
        Ok(())
    }

    async fn drain_loop(
        &self,
        jitter: &(impl Fn(u64) -> u64 + Sync),
        shutdown: &CancellationToken,
    ) -> Result<(), SettleError> {
        let rounds = Rounds {
            partitions: self.hot.partitions(),
            has: &|partition| self.lease.has(partition),
            owing: &|| async { self.owing().await.ok() }.boxed(),
            drain: &|partition| self.drain_partition(partition).boxed(),
            vitals: &self.vitals,
        };
        rounds.run(jitter, shutdown).await
    }

    async fn measure_loop(
        &self,
        jitter: &(impl Fn(u64) -> u64 + Sync),
        shutdown: &CancellationToken,
    ) -> Result<(), SettleError> {
        let mut pace = Pace::new("measure", self);
        while !shutdown.is_cancelled() {
            let measured = self.measure_once().await;
            rest(pace.rest(measured, SWEEP_MS, jitter)?, shutdown).await;
        }
        Ok(())
    }

    async fn sweep_loop(
        &self,
        jitter: &(impl Fn(u64) -> u64 + Sync),
        shutdown: &CancellationToken,
    ) -> Result<(), SettleError> {
        let mut pace = Pace::new("sweep", self);
        while !shutdown.is_cancelled() {
            let swept = self.sweep_once().await;
            let well_ms = match &swept {
                Ok(swept) if swept.more => 0,
                _ => SWEEP_MS,
            };
            let ended = swept.and_then(|swept| match swept.failure {
                Some(why) => Err(SettleError::Unavailable(why)),
                None => Ok(()),
            });
            rest(pace.rest(ended, well_ms, jitter)?, shutdown).await;
        }
        Ok(())
    }

    async fn publish_loop(&self, shutdown: &CancellationToken) -> Result<(), SettleError> {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = self.found_unpublished.notified() => {}
            }
            // A large envelope is not waited for at the end: the next process publishes it.
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                published = self.publish_once() => { published?; }
            }
        }
    }

    async fn reconcile_loop(
        &self,
        jitter: &(impl Fn(u64) -> u64 + Sync),
        shutdown: &CancellationToken,
    ) -> Result<(), SettleError> {
        let mut pace = Pace::new("reconcile", self);
        while !shutdown.is_cancelled() {
            let reconciled = self.reconcile_once().await;
            let more = matches!(reconciled, Ok(step) if step.more);
            let well_ms = if more {
                RECONCILE_PAGE_MS
            } else {
                RECONCILE_MS
            };
            let ended = reconciled.map(|_| ());
            rest(pace.rest(ended, well_ms, jitter)?, shutdown).await;
        }
        Ok(())
    }

    async fn promises_loop(
        &self,
        jitter: &(impl Fn(u64) -> u64 + Sync),
        shutdown: &CancellationToken,
    ) -> Result<(), SettleError> {
        let mut pace = Pace::new("promises", self);
        while !shutdown.is_cancelled() {
            let kept = self.keep_promises_once().await.map(|_| ());
            rest(pace.rest(kept, RECONCILE_MS, jitter)?, shutdown).await;
        }
        Ok(())
    }

    async fn lease_loop(
        &self,
        jitter: &(impl Fn(u64) -> u64 + Sync),
        shutdown: &CancellationToken,
    ) -> Result<(), SettleError> {
        let mut pace = Pace::new("lease", self);
        while !shutdown.is_cancelled() {
            let renewed = self.lease_once().await;
            rest(pace.rest(renewed, LEASE_RENEW_MS, jitter)?, shutdown).await;
        }
        Ok(())
    }

    async fn serve_loop(
        &self,
        jitter: &(impl Fn(u64) -> u64 + Sync),
        shutdown: &CancellationToken,
    ) -> Result<(), SettleError> {
        let mut pace = Pace::new("lease", self);
        while !shutdown.is_cancelled() {
            let renewed = self.serve_once().await;
            rest(pace.rest(renewed, LEASE_RENEW_MS, jitter)?, shutdown).await;
        }
        if let Err(error) = self.serve_no_more().await {
            tracing::debug!(%error, "the lease runs out by itself");
        }
        Ok(())
    }

    async fn forget_loop(
        &self,
        jitter: &(impl Fn(u64) -> u64 + Sync),
        shutdown: &CancellationToken,
    ) -> Result<(), SettleError> {
        let mut pace = Pace::new("forget", self);
        while !shutdown.is_cancelled() {
            let forgotten = self.forget_once().await;
            let many = matches!(forgotten, Ok(count) if count > FORGET_PAGE_MAX / 4);
            let well_ms = if many { 0 } else { SWEEP_MS };
            let ended = forgotten.map(|_| ());
            rest(pace.rest(ended, well_ms, jitter)?, shutdown).await;
        }
        Ok(())
    }
}

/// Rests, or ends the rest at shutdown. No rest at all still lets the other loops have their turn.
pub(super) async fn rest(how_long: Duration, shutdown: &CancellationToken) {
    if how_long.is_zero() {
        tokio::task::yield_now().await;
        return;
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(how_long) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_after_failures_grows_to_its_bound_and_no_further() {
        let least: Vec<_> = (1..40).map(|n| backoff_ms(n, &|_| 0)).collect();
        let most: Vec<_> = (1..40).map(|n| backoff_ms(n, &|max| max)).collect();
        assert_eq!((least[0], most[0]), (BACKOFF_MS_MIN / 2, BACKOFF_MS_MIN));
        assert!(least.is_sorted() && most.is_sorted());
        assert_eq!(most.last(), Some(&BACKOFF_MS_MAX));
        assert_eq!(least.last(), Some(&(BACKOFF_MS_MAX / 2)));
        // A jitter that breaks its promise breaks no bound.
        assert_eq!(backoff_ms(40, &|_| u64::MAX), BACKOFF_MS_MAX);
    }

    #[test]
    fn settlement_may_be_spawned() {
        fn sent<T: Send>(_: fn(&'static Settlement) -> T) {}
        sent(|settlement| settlement.run(|max| max, CancellationToken::new()));
    }
}
