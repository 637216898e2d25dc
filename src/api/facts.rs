//! Remembers the terms of envelopes, which never change, ids that nobody knows, and which envelopes are
//! closed for good.
//!
//! # Shape
//! | step | cost |
//! |---|---|
//! | known here | one look into a sharded cache, about 100 ns |
//! | known to be unknown | the same |
//! | else: the look-up task | one `view` and one statement for up to 100 ids at once |
//!
//! # Bounds
//! [`FACTS_BYTES_MAX`], [`UNKNOWN_IDS_MAX`], [`LOOK_UPS_QUEUED_MAX`]. One look-up runs at a time and
//! takes what has queued up meanwhile, up to a hundred ids, so a flood of random ids costs one
//! statement a hundred, one after another (`random_ids_are_looked_up_by_the_hundred`), and one id that
//! nobody knows is asked for once in [`UNKNOWN_FOR`], however many ask
//! (`an_id_that_nobody_knows_is_looked_up_once_for_all_who_ask`); what does not fit the queue is shed.
//! Closed envelopes: [`CLOSED_KEPT_MAX`].
//!
//! # If it crashes here
//! Nothing is kept.
//!
//! # Not here
//! States and counts, which move: `look`. Whether a caller is in the audience: `grab`, `look`.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::status::{ApiError, Full};
use crate::clock::timer_now;
use crate::domain::audience::Audience;
use crate::domain::envelope::{CloseReason, Terms};
use crate::domain::id::EnvelopeId;
use crate::domain::split::Split;
use crate::hot::{HotStore, VIEWS_PER_CALL_MAX};
use crate::ledger::Ledger;
use crate::telemetry::metrics;

/// Memory for terms. Ordinary ones weigh about 1 KiB, so this is 128,000 envelopes: more than are
/// grabbed from at any one moment; those with a thousand names weigh about 100 KiB.
pub const FACTS_BYTES_MAX: u64 = 128 << 20;

/// Terms that the cache makes room for at first.
const FACTS_EXPECTED: usize = 100_000;

/// Unknown ids that are remembered, 24 bytes each and as much again for the cache: 5 MB.
pub const UNKNOWN_IDS_MAX: usize = 100_000;

/// Closed envelopes that are remembered, 24 bytes each and as much again for the cache: 5 MB. They are
/// asked for by those who come too late, for days.
pub const CLOSED_KEPT_MAX: usize = 100_000;

/// How long an id stays unknown here. An id can't be guessed before Create has answered it, so
/// this matters only to a process beside the one that created it.
pub const UNKNOWN_FOR: Duration = Duration::from_secs(2);

/// Look-ups that wait: at 100 a millisecond and statement the last waits 100 ms.
pub const LOOK_UPS_QUEUED_MAX: usize = 10_000;

/// Bytes of a name in a set, with its node and its reference count.
const NAME_BYTES: u64 = 104;
/// Bytes of terms without lists and texts.
const TERMS_BYTES: u64 = 768;

#[derive(Clone)]
struct Weight;

impl Weighter<EnvelopeId, Arc<Terms>> for Weight {
    fn weight(&self, _: &EnvelopeId, terms: &Arc<Terms>) -> u64 {
        let named = match &terms.audience {
            Audience::Named(names) => names.len(),
            Audience::Anyone | Audience::Group(_) => 0,
        };
        let tiers = match &terms.split {
            Some(Split::Tiers { tiers }) => tiers.len(),
            _ => 0,
        };
        let lists = (named + terms.exclusive.len()) as u64 * NAME_BYTES + tiers as u64 * 16;
        let labels = terms.labels.iter().map(|(k, v)| k.len() + v.len() + 64);
        TERMS_BYTES + lists + labels.sum::<usize>() as u64
    }
}

type Answer = Result<Option<Arc<Terms>>, ApiError>;

struct LookUp {
    id: EnvelopeId,
    answer: oneshot::Sender<Answer>,
}

struct Caches {
    known: Cache<EnvelopeId, Arc<Terms>, Weight>,
    unknown: Cache<EnvelopeId, Instant>,
    closed: Cache<EnvelopeId, CloseReason>,
}

impl Caches {
    /// Whether a look-up found lately that nobody knows this id.
    fn is_unknown(&self, id: &EnvelopeId) -> bool {
        let since = self.unknown.get(id);
        since.is_some_and(|since| timer_now() < since + UNKNOWN_FOR)
    }
}

/// The terms of envelopes, by id.
pub struct Facts {
    caches: Arc<Caches>,
    look_ups: mpsc::Sender<LookUp>,
}

impl Facts {
    /// Empty, over these stores. Must be called on a runtime: it starts the look-up task, which
    /// ends when this value is dropped.
    pub fn new(hot: Arc<dyn HotStore>, ledger: Arc<dyn Ledger>) -> Self {
        let caches = Arc::new(Caches {
            known: Cache::with_weighter(FACTS_EXPECTED, FACTS_BYTES_MAX, Weight),
            unknown: Cache::new(UNKNOWN_IDS_MAX),
            closed: Cache::new(CLOSED_KEPT_MAX),
        });
        let (look_ups, queue) = mpsc::channel(LOOK_UPS_QUEUED_MAX);
        tokio::spawn(look_up(Arc::clone(&caches), queue, hot, ledger));
        Self { caches, look_ups }
    }

    /// Look-ups that wait now.
    #[cfg(test)]
    pub fn queued(&self) -> usize {
        LOOK_UPS_QUEUED_MAX - self.look_ups.capacity()
    }

    /// The terms, if they are remembered.
    pub fn known(&self, id: &EnvelopeId) -> Option<Arc<Terms>> {
        self.caches.known.get(id)
    }

    /// Remembers terms.
    pub fn learn(&self, id: EnvelopeId, terms: Arc<Terms>) {
        self.caches.known.insert(id, terms);
    }

    /// Why an envelope is over, where its books are known to be closed.
    pub fn closed(&self, id: &EnvelopeId) -> Option<CloseReason> {
        self.caches.closed.get(id)
    }

    /// Remembers that the books of an envelope are closed: that is its last state.
    pub fn learn_closed(&self, id: EnvelopeId, reason: CloseReason) {
        self.caches.closed.insert(id, reason);
    }

    /// The terms, wherever they are.
    ///
    /// # Errors
    /// No such envelope, too many look-ups, or a store that is out of reach.
    pub async fn find(&self, id: EnvelopeId) -> Result<Arc<Terms>, ApiError> {
        if let Some(terms) = self.known(&id) {
            return Ok(terms);
        }
        if self.caches.is_unknown(&id) {
            return Err(ApiError::NotFound);
        }
        let (answer, found) = oneshot::channel();
        if self.look_ups.try_send(LookUp { id, answer }).is_err() {
            metrics::shed(Full::LookUps.name(), 1);
            return Err(ApiError::Shed(Full::LookUps));
        }
        match found.await {
            Ok(Ok(Some(terms))) => Ok(terms),
            Ok(Ok(None)) => Err(ApiError::NotFound),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ApiError::Unavailable("the look-up task has ended".into())),
        }
    }
}

async fn look_up(
    caches: Arc<Caches>,
    mut queue: mpsc::Receiver<LookUp>,
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
) {
    let mut asked = Vec::with_capacity(VIEWS_PER_CALL_MAX);
    while queue.recv_many(&mut asked, VIEWS_PER_CALL_MAX).await > 0 {
        // Who asked for the same id while the last look-up ran is answered from what it learned.
        let mut ids: Vec<_> = asked.iter().map(|look_up| look_up.id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| caches.known.peek(id).is_none() && !caches.is_unknown(id));
        let failed = learn(&caches, ids, &*hot, &*ledger).await.err();
        for look_up in asked.drain(..) {
            let found = match (caches.known.get(&look_up.id), &failed) {
                (None, Some(error)) if !caches.is_unknown(&look_up.id) => Err(error.clone()),
                (found, _) => Ok(found),
            };
            // Who stopped waiting needs no answer.
            let _ = look_up.answer.send(found);
        }
    }
}

async fn learn(
    caches: &Caches,
    ids: Vec<EnvelopeId>,
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
) -> Result<(), ApiError> {
    if ids.is_empty() {
        return Ok(());
    }
    let views = hot.view(ids.clone()).await?;
    let mut missing = Vec::new();
    for (id, view) in ids.into_iter().zip(views) {
        match view {
            Some(view) => caches.known.insert(id, view.terms),
            None => missing.push(id),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let rows = ledger.envelopes(missing.clone()).await?;
    let now = timer_now();
    for (id, row) in missing.into_iter().zip(rows) {
        metrics::ledger_asked(row.is_some());
        match row {
            Some(row) => caches.known.insert(id, row.terms),
            None => caches.unknown.insert(id, now),
        }
    }
    Ok(())
}
