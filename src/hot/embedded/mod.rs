//! The hot store that needs nothing installed: SQLite is the durable log, memory is the index.
//!
//! # Shape
//! | file | noun |
//! |---|---|
//! | `queue` | who waits for the writer |
//! | `writer` | the one thread that decides, commits, answers |
//! | `index` | every envelope; who gets which share |
//! | `envelope` | one envelope; what keeps shares and grabbers unique |
//! | `record` | a batch as one packed row |
//! | `log` | the SQLite file |
//! | `limits` | how much may wait and grow |
//! | `snapshot` | envelopes copied out of the log, so that it can be cut |
//! | `outbox` | what the ledger does not have yet |
//! | `owed` | looks through it; envelopes that are not here |
//! | `restart` | index and outbox from the file |
//!
//! # Bounds
//! [`QUEUED_GRABS_MAX`], [`UNSETTLED_RECORDS_MAX`], [`LOG_BYTES_MAX`]; the others stand where
//! they bind.
//!
//! # Ordering
//! Every answer comes after the fsync of the batch that it was decided in. There is one
//! partition, and its epoch is the first for ever: nothing replaces the store under a process.
//!
//! # If it crashes here
//! What was acknowledged is in the file (`restart`). A write that fails stops the store
//! ([`EmbeddedStore::stopped`]); the process has to end and start again.
//!
//! # Not here
//! The lock on the data folder; audiences; the ledger.

mod envelope;
#[cfg(any(test, feature = "test-hooks"))]
mod hooks;
mod index;
mod limits;
mod log;
mod outbox;
mod owed;
mod queue;
mod record;
mod restart;
mod snapshot;
mod writer;

#[cfg(test)]
pub(super) mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

pub use self::limits::{
    LOG_BYTES_MAX, LOG_BYTES_PER_ENVELOPE, Limits, QUEUED_GRABS_MAX, UNSETTLED_RECORDS_MAX,
};
pub use self::log::OpenError;

use self::queue::{Answer, Call, GrabCall, Queue};
use self::writer::{Alarm, Desk, Shared, Writer};
use crate::clock::Clock;
use crate::domain::ack::AckLevel;
use crate::domain::envelope::{CloseReason, HotState, Terms};
use crate::domain::grab::{GRABS_PER_CALL_MAX, Grab, GrabReply, HeldShare, OutboxEntry};
use crate::domain::id::{EnvelopeId, Epoch, Partition, PartitionCount, PersonId, TenantId};
use crate::hot::{
    CloseReply, DeclineReply, Epochs, GRANTS_PER_PAGE_MAX, HotError, HotStore, HotView, HotVitals,
    LoadChunk, Mark, OUTBOX_RECORDS_PER_CALL_MAX, PendingShare, Repair, SETTLED_PER_CALL_MAX,
    Standing, VIEWS_PER_CALL_MAX,
};

/// Envelopes that one page of `envelopes` holds.
pub const ENVELOPES_PER_PAGE_MAX: usize = 1_000;
/// Envelopes that one turn removes.
const REMOVED_PER_CALL_MAX: usize = 1_000;

/// The embedded hot store. Dropping it answers who waits and ends the writer.
pub struct EmbeddedStore {
    shared: Shared,
    limits: Limits,
    stopped: watch::Receiver<Option<String>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl EmbeddedStore {
    /// Opens or creates the file at `path` and reads what it has. Blocks for a few seconds per
    /// two million grabs since the last snapshots.
    ///
    /// # Errors
    /// The file is in use, unreadable, another program's, or damaged. Nothing is served then.
    pub fn open(path: &Path, clock: Arc<dyn Clock>, limits: Limits) -> Result<Self, OpenError> {
        let mut log = log::Log::open(path, limits.log_bytes_max)?;
        let (index, outbox) = restart::restart(&mut log)?;
        Ok(Self::start(log, index, outbox, clock, limits))
    }

    fn start(
        log: log::Log,
        index: index::Index,
        outbox: outbox::Outbox,
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> Self {
        let envelopes = u64::try_from(index.len()).unwrap_or(u64::MAX);
        let shared = Shared {
            queue: Arc::new(Queue::new(limits.queued_grabs_max)),
            outbox: Arc::new(outbox),
            envelopes: Arc::new(AtomicU64::new(envelopes)),
        };
        let (ring, stopped) = watch::channel(None);
        let alarm = Alarm::new(shared.clone(), ring);
        let writer = Writer::new(log, index, shared.clone(), clock, limits);
        let thread = std::thread::Builder::new()
            .name("hot-writer".into())
            .spawn(move || writer.run(alarm))
            .expect("the system starts one thread while the server starts");
        Self {
            shared,
            limits,
            stopped,
            thread: Mutex::new(Some(thread)),
        }
    }

    /// Waits until the store has stopped by itself, and says why. The process must end then.
    pub async fn stopped(&self) -> String {
        let mut stopped = self.stopped.clone();
        loop {
            let why = stopped.borrow_and_update().clone();
            if let Some(why) = why {
                return why;
            }
            if stopped.changed().await.is_err() {
                // A clean end is not a stop.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Lets nobody in any more, answers who waits, folds the log. Returns when the file is closed.
    pub async fn shutdown(&self) {
        self.close_queue();
        let mut stopped = self.stopped.clone();
        while stopped.changed().await.is_ok() {}
        self.join();
    }

    fn close_queue(&self) {
        let why = HotError::Unavailable("the server is shutting down".into());
        self.shared.queue.close(why);
    }

    fn join(&self) {
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // Its panic has rung the alarm already.
            let _ = thread.join();
        }
    }

    fn stands(epoch: Epoch) -> Result<(), HotError> {
        match epoch == Epoch::FIRST {
            true => Ok(()),
            false => Err(HotError::Epoch(Epoch::FIRST)),
        }
    }

    /// The same of all partitions: there is one.
    fn all_stand(under: &Epochs) -> Result<(), HotError> {
        Self::stands(under.of(Partition::ZERO))
    }

    fn gone(&self) -> HotError {
        let why = self.stopped.borrow().clone();
        HotError::Stopped(why.unwrap_or_else(|| "the writer has ended".into()))
    }

    /// Has the writer do something, and waits until it is durable.
    async fn ask<T: Send + 'static>(
        &self,
        cost: usize,
        act: impl FnOnce(&mut Desk<'_>) -> T + Send + 'static,
    ) -> Result<T, HotError> {
        let (reply, answer) = oneshot::channel();
        let act = move |desk: &mut Desk<'_>| -> Answer {
            let done = act(desk);
            Box::new(move |durable| {
                // A caller who went away does not hear it.
                let _ = reply.send(durable.map(|()| done));
            })
        };
        self.shared.queue.put_call(Call {
            cost,
            act: Box::new(act),
        })?;
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.close_queue();
        self.join();
    }
}

#[async_trait]
impl HotStore for EmbeddedStore {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn ack_level(&self) -> Option<AckLevel> {
        Some(AckLevel::Embedded)
    }

    fn partitions(&self) -> PartitionCount {
        PartitionCount::ONE
    }

    fn epoch(&self, _partition: Partition) -> Epoch {
        Epoch::FIRST
    }

    fn ready(&self) -> Result<(), String> {
        let stopped = self.stopped.borrow().clone();
        if let Some(why) = stopped {
            return Err(format!("{why}; free or repair the disk, then restart"));
        }
        if self.shared.outbox.records() >= self.limits.unsettled_records_max {
            return Err("too many grabs wait for the ledger: see why it does not settle".into());
        }
        Ok(())
    }

    fn takes_at_once(&self) -> usize {
        // The turn that is committed, and the next one.
        2 * queue::TURN_GRABS_MAX
    }

    async fn vitals(&self) -> Result<HotVitals, HotError> {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Ok(HotVitals {
            envelopes: self.shared.envelopes.load(Ordering::Relaxed),
            unsettled_records: count(self.shared.outbox.records()),
            oldest_unsettled_at: self.shared.outbox.oldest_at(),
            queued_grabs: count(self.shared.queue.grabs_waiting()),
            now: None,
        })
    }

    async fn load(&self, under: &Epochs, chunk: LoadChunk) -> Result<(), HotError> {
        Self::all_stand(under)?;
        let cost = chunk.amounts_minor.len().max(1);
        let load = move |desk: &mut Desk<'_>| desk.index.load(desk.batch, chunk);
        self.ask(cost, load).await?
    }

    async fn open(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        checksum: u32,
    ) -> Result<HotState, HotError> {
        Self::all_stand(under)?;
        let open = move |desk: &mut Desk<'_>| desk.index.open(desk.batch, envelope, checksum);
        self.ask(1, open).await?
    }

    async fn grab(&self, grabs: Vec<Grab>) -> Result<Vec<GrabReply>, HotError> {
        if grabs.len() > GRABS_PER_CALL_MAX {
            let what = format!("a call takes at most {GRABS_PER_CALL_MAX} grabs");
            return Err(HotError::Mismatch(what));
        }
        if self.shared.outbox.records() >= self.limits.unsettled_records_max {
            return Err(HotError::Shed);
        }
        let (reply, answer) = oneshot::channel();
        self.shared.queue.put_grabs(GrabCall { grabs, reply })?;
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }

    async fn decline(
        &self,
        epoch: Epoch,
        tenant: TenantId,
        envelope: EnvelopeId,
        grabber: PersonId,
    ) -> Result<DeclineReply, HotError> {
        Self::stands(epoch)?;
        self.ask(1, move |desk| {
            desk.index.decline(desk.batch, &tenant, envelope, &grabber)
        })
        .await
    }

    async fn view(&self, envelopes: Vec<EnvelopeId>) -> Result<Vec<Option<HotView>>, HotError> {
        let mut views = Vec::with_capacity(envelopes.len());
        for some in envelopes.chunks(VIEWS_PER_CALL_MAX) {
            let some = some.to_vec();
            let view = move |desk: &mut Desk<'_>| {
                let ids = some.iter();
                ids.map(|id| desk.index.view(*id)).collect::<Vec<_>>()
            };
            views.extend(self.ask(VIEWS_PER_CALL_MAX, view).await?);
        }
        Ok(views)
    }

    async fn held(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, HotError> {
        let mut shares = Vec::with_capacity(whose.len());
        for some in whose.chunks(VIEWS_PER_CALL_MAX) {
            let some = some.to_vec();
            let held = move |desk: &mut Desk<'_>| {
                let held = some.iter();
                held.map(|(id, grabber)| desk.index.held(grabber, *id))
                    .collect::<Vec<_>>()
            };
            shares.extend(self.ask(VIEWS_PER_CALL_MAX, held).await?);
        }
        Ok(shares)
    }

    async fn grants(
        &self,
        envelope: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        let limit = limit.min(GRANTS_PER_PAGE_MAX);
        self.ask(limit.max(1), move |desk| {
            desk.index.grants(envelope, from, limit)
        })
        .await
    }

    async fn pending(
        &self,
        tenant: TenantId,
        grabber: PersonId,
    ) -> Result<Vec<PendingShare>, HotError> {
        self.waiting_for(tenant, grabber).await
    }

    async fn close(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        terms: Arc<Terms>,
        reason: CloseReason,
    ) -> Result<CloseReply, HotError> {
        Self::all_stand(under)?;
        self.ask(1, move |desk| {
            desk.index.close(desk.batch, envelope, terms, reason)
        })
        .await?
    }

    async fn freeze(&self, under: &Epochs, envelope: EnvelopeId) -> Result<(), HotError> {
        Self::all_stand(under)?;
        self.ask(1, move |desk| {
            desk.index.freeze(desk.batch, envelope);
        })
        .await
    }

    async fn unfreeze(
        &self,
        under: &Epochs,
        envelope: EnvelopeId,
        upto: Mark,
    ) -> Result<(), HotError> {
        Self::all_stand(under)?;
        self.ask(1, move |desk| {
            desk.index.unfreeze(desk.batch, envelope, upto);
        })
        .await
    }

    async fn marked(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<(EnvelopeId, Mark)>, HotError> {
        let limit = limit.min(VIEWS_PER_CALL_MAX);
        self.ask(1, move |desk| desk.index.marked_after(after, limit))
            .await
    }

    async fn outbox(
        &self,
        _partition: Partition,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, HotError> {
        let limit = limit.min(OUTBOX_RECORDS_PER_CALL_MAX);
        let entries = self.shared.outbox.head(after, limit);
        Ok(entries.iter().map(|entry| (**entry).clone()).collect())
    }

    async fn settled(
        &self,
        epoch: Epoch,
        _partition: Partition,
        entries: Vec<(u64, u64)>,
    ) -> Result<u64, HotError> {
        Self::stands(epoch)?;
        let mut watermark = self.shared.outbox.watermark();
        for some in entries.chunks(SETTLED_PER_CALL_MAX) {
            let some = some.to_vec();
            let settle = move |desk: &mut Desk<'_>| {
                let (mut ids, watermark) = desk.outbox.settle(&some);
                desk.settled.append(&mut ids);
                watermark
            };
            watermark = self.ask(entries.len().max(1), settle).await?;
        }
        Ok(watermark)
    }

    async fn remove(&self, under: &Epochs, envelopes: Vec<EnvelopeId>) -> Result<(), HotError> {
        Self::all_stand(under)?;
        for some in envelopes.chunks(REMOVED_PER_CALL_MAX) {
            let some = some.to_vec();
            let remove = move |desk: &mut Desk<'_>| {
                let watermark = desk.outbox.watermark();
                for id in some {
                    let removed = desk.index.remove(desk.batch, id, watermark);
                    desk.removed.extend(removed);
                }
            };
            self.ask(REMOVED_PER_CALL_MAX, remove).await?;
        }
        Ok(())
    }

    async fn standing(&self) -> Result<Option<Standing>, HotError> {
        Ok(None)
    }

    async fn register(
        &self,
        _standing: Standing,
        _epochs: Vec<(Partition, Epoch)>,
    ) -> Result<(), HotError> {
        Ok(())
    }

    async fn unregistered(&self) {
        std::future::pending().await
    }

    async fn owes(&self, envelope: EnvelopeId) -> Result<bool, HotError> {
        Ok(self.any_record_of(envelope).await)
    }

    async fn repair(&self, under: &Epochs, repair: Repair) -> Result<HotState, HotError> {
        self.bring_back(under, repair).await
    }

    async fn envelopes(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<EnvelopeId>, HotError> {
        let limit = limit.min(ENVELOPES_PER_PAGE_MAX);
        self.ask(limit.max(1), move |desk| desk.index.ids_after(after, limit))
            .await
    }
}
