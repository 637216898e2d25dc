//! From the hot store's outbox into the books, and what nobody took back to the sender.
//!
//! *Shape*
//!
//! | loop of [`Settlement::run`] | step | rests |
//! |---|---|---|
//! | drain, in rounds over the partitions (`rounds`) | [`Drain::once`] | not while batches are full, [`FILL_MS`] while there is work, else [`IDLE_MS`] |
//! | measure | [`Settlement::measure_once`] | [`SWEEP_MS`] |
//! | sweep | [`Sweep::once`] | [`SWEEP_MS`] |
//! | publish | `publish::Publisher`, what the sweep found | until the sweep finds something |
//! | forget | [`Sweep::forget`] | [`SWEEP_MS`] |
//! | lease | [`Settlement::lease_once`]; [`Settlement::serve_once`] where others settle | [`LEASE_RENEW_MS`] |
//! | promises | [`Settlement::keep_promises_once`] | [`RECONCILE_MS`] |
//! | reconcile | [`Reconcile::once`](reconcile::Reconcile::once) | [`RECONCILE_MS`] after a walk, [`RECONCILE_PAGE_MS`] within it |
//!
//! *Bounds.* Each step has its own. A step that fails is repeated after [`BACKOFF_MS_MIN`], doubled
//! up to [`BACKOFF_MS_MAX`], with a jitter that the caller brings. In the drain it is the partition that
//! rests, and not the loop.
//!
//! *Ordering.* None between the loops: every step finds its work in the stores, and each is
//! idempotent.
//!
//! *If it crashes here.* See `drain`, `close`, `sweep` and `parked`: between any two calls of a door.
//!
//! *Not here.* Time, randomness, tasks: expiry is what the ledger says by its clock, the jitter
//! comes in, and the one future of [`Settlement::run`] is spawned by its caller. Only the rests
//! between steps use tokio's timer, which a test pauses and a simulation drives.

pub mod close;
mod drain;
mod gate;
mod lease;
mod marks;
mod parked;
pub mod plan;
mod promises;
mod reconcile;
mod rounds;
mod run;
mod sweep;
mod vitals;

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use drain::{Drain, Drained, REFUSALS_PER_BATCH_MAX};
pub use lease::{LEASE_MS, LEASE_RENEW_MS};
pub use marks::{MARK_PAGE_MAX, MARK_PAGES_MAX, Marked};
pub use parked::{PARKED_CALLS_MAX, PARKED_CALLS_OF_ONE_MAX, PARKED_IN_FLIGHT_MAX};
pub use promises::PROMISED_ENVELOPES_MAX;
pub use reconcile::{RECONCILE_AFTER_MS, Reconcile, Reconciled, post_missing};
pub use sweep::{
    CLOSED_KEPT_MS, CLOSES_IN_FLIGHT_MAX, FORGET_PAGE_MAX, PUBLISH_PATIENCE_MS, SWEEP_PAGE_MAX,
    SWEEP_PAGES_MAX, Sweep, Swept, UNPUBLISHED_MAX,
};
pub use vitals::{Seen, Vitals};

use crate::domain::id::{EnvelopeId, Epoch, Partition};
use crate::hot::{HotError, HotStore};
use crate::ledger::{Ledger, LedgerError};
use crate::publish::marks::MarkError;
use crate::publish::{Amounts, PublishError, Publisher};
use crate::telemetry::metrics;
use lease::Lease;

/// Rest of a drain that found nothing: a grab's money is in the books 20 ms later at the most, and
/// 50 looks a second at an index in memory cost nothing. On Redis each is one call.
pub const IDLE_MS: u64 = 20;
/// Rest of a drain after a batch that was not full: under load the next one is larger, so that the
/// ledger commits 200 batches a second at the most.
pub const FILL_MS: u64 = 5;
/// Rest of the sweeper: a refund is due 60 s after the expiry, and this leaves 58 of them to the
/// stores.
pub const SWEEP_MS: u64 = 1_000;
/// The rest between two walks that look for grants which nothing owes, and between two looks after promises
/// that the hot store has lost.
pub const RECONCILE_MS: u64 = 5_000;
/// The rest between two pages of such a walk.
pub const RECONCILE_PAGE_MS: u64 = 100;
/// Partitions that are drained at once: the ledger posts what arrives together in one transaction.
pub const DRAINS_IN_FLIGHT_MAX: usize = 16;
/// How long a round waits for a partition: several times what a full batch takes. One that takes longer
/// goes on beside the next rounds.
pub const STRAGGLE_MS: u64 = 250;
/// Envelopes that are published at once for their dead Create: a large one takes seconds, and the
/// others pass it.
pub const PUBLISHES_IN_FLIGHT_MAX: usize = 8;
/// The first rest after an error.
pub const BACKOFF_MS_MIN: u64 = 50;
/// The longest rest after errors: what was away is noticed within 5 s of coming back.
pub const BACKOFF_MS_MAX: u64 = 5_000;

/// Why a step came to no end. Nothing is lost: the stores know what is still to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SettleError {
    /// The partition stands in another epoch: what was read is to be read anew.
    #[error("the partition stands in epoch {0:?}")]
    Epoch(Epoch),
    /// Out of reach or too busy: repeat the step after a rest.
    #[error("{0}")]
    Unavailable(String),
    /// The books refuse what they should take: our bug or a damaged file. Repeating is safe.
    #[error("{0}")]
    Broken(String),
    /// The hot store has stopped for good: the process must end.
    #[error("{0}")]
    Stopped(String),
}

impl From<HotError> for SettleError {
    fn from(error: HotError) -> Self {
        match error {
            HotError::Stopped(_) => Self::Stopped(error.to_string()),
            HotError::Mismatch(_) => Self::Broken(error.to_string()),
            HotError::Epoch(epoch) => Self::Epoch(epoch),
            HotError::Shed | HotError::Unavailable(_) => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<LedgerError> for SettleError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Epoch(epoch) => Self::Epoch(epoch),
            LedgerError::Unavailable(_) => Self::Unavailable(error.to_string()),
            LedgerError::RequestIdReused
            | LedgerError::InsufficientFunds { .. }
            | LedgerError::BalanceTooLarge
            | LedgerError::MakeGoodCapped
            | LedgerError::NotFound
            | LedgerError::Frozen
            | LedgerError::AlreadyOver(_)
            | LedgerError::Broken(_) => Self::Broken(error.to_string()),
        }
    }
}

impl From<MarkError> for SettleError {
    fn from(error: MarkError) -> Self {
        match error {
            MarkError::Hot(error) => error.into(),
            MarkError::Ledger(error) => error.into(),
        }
    }
}

impl From<PublishError> for SettleError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Stopped(_) => Self::Stopped(error.to_string()),
            PublishError::Shed | PublishError::Unavailable(_) => {
                Self::Unavailable(error.to_string())
            }
            PublishError::NotFound | PublishError::Frozen | PublishError::Broken(_) => {
                Self::Broken(error.to_string())
            }
        }
    }
}

/// A place where a test may stop settlement. Nothing in a release build.
fn crash(point: &str) -> Result<(), SettleError> {
    fail::fail_point!(point, |_| Err(SettleError::Unavailable(format!(
        "stopped at {point}"
    ))));
    let _ = point;
    Ok(())
}

/// Settlement: the steps, and the loops that repeat them.
pub struct Settlement {
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    publisher: Arc<Publisher>,
    drain: Drain,
    sweep: Sweep,
    reconcile: Reconcile,
    lease: Arc<Lease>,
    vitals: Arc<Vitals>,
    unpublished: Mutex<Vec<EnvelopeId>>,
    found_unpublished: Notify,
    /// Behind which envelope the next look after lost promises begins.
    promised: Mutex<Option<EnvelopeId>>,
}

impl Settlement {
    /// Between these doors. `amounts` is the publisher's; `holder` names this process among all that
    /// settle on the same books.
    pub fn new(
        hot: Arc<dyn HotStore>,
        ledger: Arc<dyn Ledger>,
        publisher: Arc<Publisher>,
        amounts: Arc<Amounts>,
        holder: String,
    ) -> Self {
        let lease = Arc::new(Lease::new(holder));
        Self {
            drain: Drain::new(Arc::clone(&hot), Arc::clone(&ledger), amounts),
            sweep: Sweep::new(
                Arc::clone(&hot),
                Arc::clone(&ledger),
                Arc::clone(&publisher),
                Arc::clone(&lease),
            ),
            reconcile: Reconcile::new(Arc::clone(&hot), Arc::clone(&ledger), Arc::clone(&lease)),
            lease,
            hot,
            ledger,
            publisher,
            vitals: Arc::default(),
            unpublished: Mutex::default(),
            found_unpublished: Notify::new(),
            promised: Mutex::default(),
        }
    }

    /// What settlement saw last, for readiness.
    pub fn vitals(&self) -> Arc<Vitals> {
        Arc::clone(&self.vitals)
    }

    /// Renews the lease by which the partitions are divided among processes. One that can't reach the
    /// hot store settles nothing, so it leaves its partitions to those who can.
    ///
    /// # Errors
    /// The ledger is out of reach: the division stays.
    pub async fn lease_once(&self) -> Result<(), SettleError> {
        if self.vitals.is_blind() {
            return self.leave().await;
        }
        self.lease.renew(&*self.ledger).await
    }

    /// Says that these books are served by a process that settles nothing.
    ///
    /// # Errors
    /// The ledger is out of reach: the lease may run out.
    pub async fn serve_once(&self) -> Result<(), SettleError> {
        self.lease.serve(&*self.ledger).await
    }

    /// Says so no more.
    ///
    /// # Errors
    /// The ledger is out of reach: the lease runs out.
    pub async fn serve_no_more(&self) -> Result<(), SettleError> {
        self.lease.serve_no_more(&*self.ledger).await
    }

    /// Settles what waits before the process ends: all of it where no other process does, else what
    /// its own partitions have now.
    ///
    /// # Errors
    /// As [`Settlement::drain_once`]: the others, or the next start, go on.
    pub async fn finish(&self) -> Result<(), SettleError> {
        let left = self.leave().await;
        loop {
            let drained = self.drain_once().await?;
            let more = drained.more || drained.records > 0;
            if !more || !self.lease.is_alone() {
                return left;
            }
        }
    }

    /// Whether nobody else settles, as far as the last [`Settlement::lease_once`] found.
    pub fn is_alone(&self) -> bool {
        self.lease.is_alone()
    }

    /// Leaves its partitions to the other processes.
    ///
    /// # Errors
    /// The ledger is out of reach: they wait until the lease has run out.
    pub async fn leave(&self) -> Result<(), SettleError> {
        self.lease.leave(&*self.ledger).await
    }

    /// Settles one batch of each partition that is this process's and owes something. Answers whether more
    /// is known to wait.
    ///
    /// # Errors
    /// As [`Drain::once`]. A partition that fails keeps no other one waiting: the first failure is
    /// told at the end, and only a store that has stopped ends the round.
    pub async fn drain_once(&self) -> Result<Drained, SettleError> {
        let mut sum = Drained::default();
        let mut failure = None;
        let owing = self.owing().await?;
        let mut drains = stream::iter(owing)
            .map(|partition| self.drain_partition(partition).boxed())
            .buffer_unordered(DRAINS_IN_FLIGHT_MAX);
        while let Some(drained) = drains.next().await {
            let drained = match drained {
                Ok(drained) => drained,
                Err(SettleError::Stopped(why)) => return Err(SettleError::Stopped(why)),
                Err(error) => {
                    failure.get_or_insert(error);
                    continue;
                }
            };
            sum.add(drained);
        }
        failure.map_or(Ok(sum), Err)
    }

    /// Which partitions of this process owe something. The others' are not asked for.
    async fn owing(&self) -> Result<Vec<Partition>, SettleError> {
        let all = self.hot.partitions().all();
        let own = all.filter(|partition| self.lease.has(*partition));
        Ok(self.hot.owing(own.collect()).await?)
    }

    async fn drain_partition(&self, partition: Partition) -> Result<Drained, SettleError> {
        let drained = self.drain.once(partition).await?;
        if drained.dead_letters > 0 {
            let (records, partition) = (drained.dead_letters, partition.index());
            tracing::error!(
                records,
                partition,
                "grabs can't be settled and were set aside"
            );
        }
        if drained.superseded > 0 {
            let (records, partition) = (drained.superseded, partition.index());
            tracing::error!(
                records,
                partition,
                "grabs were paid before to somebody else"
            );
        }
        Ok(drained)
    }

    /// Measures the backlog. It asks only the hot store: a ledger that hangs must not hide how far
    /// settlement is behind.
    ///
    /// # Errors
    /// The hot store is out of reach: what was measured last stands.
    pub async fn measure_once(&self) -> Result<(), SettleError> {
        let hot = self.hot.vitals().await;
        self.vitals.blind(hot.is_err());
        let hot = hot?;
        let (waiting, oldest) = (hot.unsettled_records, hot.oldest_unsettled_at);
        // How old a grab is tells the clock that dated it: two that differ would turn people away.
        let now = self.ledger.now();
        let by_store = hot.now.unwrap_or(now);
        self.vitals.clocks(now.0 - by_store.0);
        self.vitals.backlog(waiting, oldest, now);
        metrics::outbox_waiting(waiting, self.vitals.seen().oldest_age_ms);
        metrics::hot_holds(hot.envelopes, hot.queued_grabs);
        Ok(())
    }

    /// Sweeps once. What is to be published is left for [`Settlement::publish_once`].
    ///
    /// # Errors
    /// As [`Sweep::once`].
    pub async fn sweep_once(&self) -> Result<Swept, SettleError> {
        let swept = self.sweep.once().await?;
        if !swept.unpublished.is_empty() {
            // What is still listed from before is found again, if it is still due.
            self.unpublished.lock().clone_from(&swept.unpublished);
            self.found_unpublished.notify_one();
        }
        Ok(swept)
    }

    /// Publishes what the last sweep found unpublished. Answers how many are published now.
    ///
    /// # Errors
    /// Only where the hot store has stopped: an envelope that fails is due again.
    pub async fn publish_once(&self) -> Result<usize, SettleError> {
        let ids = std::mem::take(&mut *self.unpublished.lock());
        let publish = |id| async move { (id, self.publisher.publish(id).await) };
        let mut ends = stream::iter(ids)
            .map(|id| publish(id).boxed())
            .buffer_unordered(PUBLISHES_IN_FLIGHT_MAX);
        let mut published = 0;
        while let Some((id, end)) = ends.next().await {
            match end {
                Ok(_) => published += 1,
                Err(PublishError::Stopped(why)) => return Err(SettleError::Stopped(why)),
                Err(error) => {
                    tracing::warn!(envelope = %id, %error, "an envelope can't be published yet");
                }
            }
        }
        Ok(published)
    }

    /// Posts grants of a page of envelopes that nothing owes any more.
    ///
    /// # Errors
    /// As [`Reconcile::once`](reconcile::Reconcile::once).
    pub async fn reconcile_once(&self) -> Result<Reconciled, SettleError> {
        self.reconcile.once(&self.drain).await
    }

    /// Has the hot store forget a page of what has been closed long enough. Answers how many.
    ///
    /// # Errors
    /// As [`Sweep::forget`].
    pub async fn forget_once(&self) -> Result<usize, SettleError> {
        self.sweep.forget().await
    }
}
