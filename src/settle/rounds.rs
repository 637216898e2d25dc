//! The rounds of the drain over the partitions of this process. One that fails or takes long keeps no
//! other one waiting.
//!
//! *Shape.* A round asks which outboxes of this process may hold something, and begins a drain of each of these partitions,
//! and of those that failed last, that is neither being drained nor resting. Where the question fails, each
//! partition finds for itself. The round ends when these have ended, or after [`STRAGGLE_MS`]: what takes longer goes on beside the next rounds. A
//! partition that failed rests by itself, is tried beside the rounds, and is in them again when it went
//! well.
//!
//! *Bounds.* [`DRAINS_IN_FLIGHT_MAX`] at once of those that went well last, and as many of those that
//! failed: neither waits for the other. What is remembered is a count and a reason a partition that
//! failed. It rests as any step that failed does (`run::backoff_ms`).
//!
//! *Ordering.* A partition is drained once at a time.
//!
//! *If it crashes here.* Nothing is lost but how often a partition has failed.
//!
//! *Not here.* What a drain does (`drain`). Whether a whole store is away: then each partition that has
//! something to settle fails.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::run::{backoff_ms, rest};
use super::{DRAINS_IN_FLIGHT_MAX, Drained, FILL_MS, IDLE_MS, STRAGGLE_MS, SettleError, Vitals};
use crate::clock::timer_now;
use crate::domain::id::{Partition, PartitionCount};
use crate::telemetry::Seldom;

/// How the drain is called in logs and in what readiness says.
const STEP: &str = "drain";

/// How the drain of a partition ended; `None`: it did not begin, since the partition is another
/// process's by now or this one ends.
type Ended = (Partition, Option<Result<Drained, SettleError>>);

/// What is drained, and how.
pub(super) struct Rounds<'a> {
    pub(super) partitions: PartitionCount,
    /// Whether a partition is this process's now.
    pub(super) has: &'a (dyn Fn(Partition) -> bool + Sync),
    /// Which outboxes of this process may hold something; `None`: nobody knows.
    pub(super) owing: &'a (dyn Fn() -> BoxFuture<'a, Option<Vec<Partition>>> + Sync),
    pub(super) drain: &'a (dyn Fn(Partition) -> BoxFuture<'a, Result<Drained, SettleError>> + Sync),
    pub(super) vitals: &'a Vitals,
}

/// A partition that failed last.
struct Failing {
    /// How often in a row.
    failures: u32,
    why: String,
}

/// What is known of the partitions between two rounds.
struct Known<'a> {
    vitals: &'a Vitals,
    failing: BTreeMap<Partition, Failing>,
    /// Being drained, or resting.
    busy: BTreeSet<Partition>,
    /// What ended since the last rest.
    sum: Drained,
    said: Seldom,
}

impl Known<'_> {
    fn take(&mut self, (partition, ended): Ended) -> Result<(), SettleError> {
        self.busy.remove(&partition);
        let error = match ended {
            None => return Ok(()),
            Some(Ok(mut drained)) => {
                let refusal = drained.refusal.take();
                self.sum.add(drained);
                refusal.map(SettleError::Broken)
            }
            Some(Err(SettleError::Stopped(why))) => {
                self.vitals.failed(STEP, why.clone());
                return Err(SettleError::Stopped(why));
            }
            Some(Err(error)) => Some(error),
        };
        match error {
            Some(error) => self.failed(partition, &error),
            None => self.went_well(partition),
        }
        Ok(())
    }

    fn failed(&mut self, partition: Partition, error: &SettleError) {
        let before = self.failing.get(&partition).map_or(0, |f| f.failures);
        let failures = before.saturating_add(1);
        if failures.is_power_of_two()
            && let Some(unsaid) = self.said.say(timer_now())
        {
            let partition = partition.index();
            tracing::warn!(step = STEP, partition, failures, unsaid, %error, "settlement failed");
        }
        let why = error.to_string();
        self.failing.insert(partition, Failing { failures, why });
        self.tell();
    }

    fn went_well(&mut self, partition: Partition) {
        if self.failing.remove(&partition).is_none() {
            return;
        }
        if self.failing.is_empty() {
            tracing::info!(step = STEP, "settlement goes on");
        }
        self.tell();
    }

    /// Forgets what failed of partitions that are another process's by now.
    fn leave_others(&mut self, has: &dyn Fn(Partition) -> bool) {
        let before = self.failing.len();
        self.failing.retain(|partition, _| has(*partition));
        if self.failing.len() < before {
            self.tell();
        }
    }

    /// Only where no partition fails has the step gone well.
    fn tell(&self) {
        match self.failing.first_key_value() {
            None => self.vitals.went_well(STEP),
            Some((partition, failing)) => {
                let why = format!("partition {}: {}", partition.index(), failing.why);
                self.vitals.failed(STEP, why);
            }
        }
    }
}

impl Rounds<'_> {
    /// Drains until `shutdown`, which lets the drains under way end.
    ///
    /// # Errors
    /// The hot store has stopped for good.
    pub(super) async fn run(
        &self,
        jitter: &(impl Fn(u64) -> u64 + Sync),
        shutdown: &CancellationToken,
    ) -> Result<(), SettleError> {
        let [well, failed] = [(); 2].map(|()| Semaphore::new(DRAINS_IN_FLIGHT_MAX));
        let mut known = Known {
            vitals: self.vitals,
            failing: BTreeMap::new(),
            busy: BTreeSet::new(),
            sum: Drained::default(),
            said: Seldom::new(),
        };
        let mut under_way = FuturesUnordered::new();
        while !shutdown.is_cancelled() {
            let mut awaited = BTreeSet::new();
            known.leave_others(self.has);
            let due = self.due(&mut known, &mut under_way).await?;
            for partition in due.into_iter().filter(|p| (self.has)(*p)) {
                if !known.busy.insert(partition) {
                    continue;
                }
                let failing = known.failing.get(&partition);
                let rest_ms = failing.map(|f| backoff_ms(f.failures, jitter));
                let gate = if rest_ms.is_some() { &failed } else { &well };
                if rest_ms.is_none() {
                    awaited.insert(partition);
                }
                under_way.push(self.one(partition, rest_ms, gate, shutdown));
            }
            let mut late = std::pin::pin!(tokio::time::sleep(Duration::from_millis(STRAGGLE_MS)));
            while !awaited.is_empty() {
                tokio::select! {
                    Some(ended) = under_way.next() => {
                        awaited.remove(&ended.0);
                        known.take(ended)?;
                    }
                    () = &mut late => break,
                }
            }
            let well_ms = match std::mem::take(&mut known.sum) {
                drained if drained.more => 0,
                drained if drained.records > 0 => FILL_MS,
                _ => IDLE_MS,
            };
            let mut pause = std::pin::pin!(rest(Duration::from_millis(well_ms), shutdown));
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(ended) = under_way.next() => known.take(ended)?,
                }
                if known.sum.more {
                    break;
                }
            }
        }
        while let Some(ended) = under_way.next().await {
            known.take(ended)?;
        }
        Ok(())
    }

    /// Whose turn it is: those whose outbox may hold something, and those that failed. What is under way
    /// goes on while the question is asked: it may hold what the answer waits for.
    async fn due(
        &self,
        known: &mut Known<'_>,
        under_way: &mut FuturesUnordered<impl Future<Output = Ended>>,
    ) -> Result<BTreeSet<Partition>, SettleError> {
        let mut asked = (self.owing)();
        let owing = loop {
            tokio::select! {
                owing = &mut asked => break owing,
                Some(ended) = under_way.next() => known.take(ended)?,
            }
        };
        let mut due: BTreeSet<Partition> = match owing {
            Some(owing) => owing.into_iter().collect(),
            None => self.partitions.all().collect(),
        };
        due.extend(known.failing.keys());
        Ok(due)
    }

    /// Drains one partition after its rest, if it has failed before.
    async fn one(
        &self,
        partition: Partition,
        rest_ms: Option<u64>,
        gate: &Semaphore,
        shutdown: &CancellationToken,
    ) -> Ended {
        if let Some(rest_ms) = rest_ms {
            rest(Duration::from_millis(rest_ms), shutdown).await;
        }
        // The gate is never closed.
        let _permit = gate.acquire().await;
        if shutdown.is_cancelled() || !(self.has)(partition) {
            return (partition, None);
        }
        (partition, Some((self.drain)(partition).await))
    }
}

#[cfg(test)]
mod tests;
