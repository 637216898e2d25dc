//! Remembers the terms of envelopes, which never change, ids that nobody knows, and which envelopes are
//! closed for good.
//!
//! # Shape
//! | step | cost |
//! |---|---|
//! | known here | one look into a sharded cache, about 100 ns |
//! | known to be unknown | the same |
//! | else: the look-up task | one `view` of the hot store for up to 100 ids at once |
//! | not there: the task that asks the books | one statement for up to 1,000 ids at once, [`BOOKS_ASKED_APART`] |
//!
//! # Bounds
//! [`FACTS_BYTES_MAX`], [`UNKNOWN_IDS_MAX`], [`LOOK_UPS_QUEUED_MAX`] for each task. One look-up runs at a time and
//! takes what has queued up meanwhile, so a flood of random ids costs the hot store a look a hundred
//! (`random_ids_are_looked_up_by_the_hundred`), and the books 200 statements a second, however many come and however
//! (`a_million_random_ids_cost_postgresql_some_statements_a_second`). One id that nobody knows is asked for once in
//! [`UNKNOWN_FOR`], however many ask (`an_id_that_nobody_knows_is_looked_up_once_for_all_who_ask`); what does not
//! fit a queue is shed.
//! Closed envelopes: [`CLOSED_KEPT_MAX`].
//!
//! # If it crashes here
//! Nothing is kept.
//!
//! # Not here
//! States and counts, which move: `look`. Whether a caller is in the audience: `grab`, `look`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
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
use crate::ledger::{Ledger, PAGE_ROWS_MAX};
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

/// Look-ups that wait for a store: at 100 a millisecond and look the last waits 100 ms for the hot store, at 1,000 a
/// statement 50 ms for the books.
pub const LOOK_UPS_QUEUED_MAX: usize = 10_000;

/// From the end of one statement to the next one: who asks for what only the books know waits so long at the most
/// while others ask, too.
const BOOKS_ASKED_APART: Duration = Duration::from_millis(5);

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
    /// What the hot store does not have, until the books have said what they know: at most as many as wait for them.
    at_books: Mutex<HashSet<EnvelopeId>>,
}

impl Caches {
    /// What is known of an envelope: its terms, or that there is none.
    fn told(&self, id: &EnvelopeId) -> Option<Option<Arc<Terms>>> {
        match self.known.get(id) {
            Some(terms) => Some(Some(terms)),
            None => self.is_unknown(id).then_some(None),
        }
    }

    /// Each of these once of which nothing is known: who asked for the same one while the last look-up ran is
    /// answered from what it learned.
    fn news(&self, asked: &[LookUp]) -> Vec<EnvelopeId> {
        let mut ids: Vec<_> = asked.iter().map(|look_up| look_up.id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| self.known.peek(id).is_none() && !self.is_unknown(id));
        ids
    }

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
    /// Empty, over these stores. Must be called on a runtime: it starts the tasks that ask them, which
    /// end when this value is dropped.
    pub fn new(hot: Arc<dyn HotStore>, ledger: Arc<dyn Ledger>) -> Self {
        let caches = Arc::new(Caches {
            known: Cache::with_weighter(FACTS_EXPECTED, FACTS_BYTES_MAX, Weight),
            unknown: Cache::new(UNKNOWN_IDS_MAX),
            closed: Cache::new(CLOSED_KEPT_MAX),
            at_books: Mutex::default(),
        });
        let (look_ups, queue) = mpsc::channel(LOOK_UPS_QUEUED_MAX);
        let (missing, to_books) = mpsc::channel(LOOK_UPS_QUEUED_MAX);
        tokio::spawn(look_up(Arc::clone(&caches), queue, hot, missing));
        tokio::spawn(ask_the_books(Arc::clone(&caches), to_books, ledger));
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
            return Err(shed());
        }
        match found.await {
            Ok(Ok(Some(terms))) => Ok(terms),
            Ok(Ok(None)) => Err(ApiError::NotFound),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ApiError::Unavailable("the look-up task has ended".into())),
        }
    }
}

/// No room for one more look-up.
fn shed() -> ApiError {
    metrics::shed(Full::LookUps.name(), 1);
    ApiError::Shed(Full::LookUps)
}

/// Asks the hot store, and passes on what it does not have.
async fn look_up(
    caches: Arc<Caches>,
    mut queue: mpsc::Receiver<LookUp>,
    hot: Arc<dyn HotStore>,
    missing: mpsc::Sender<LookUp>,
) {
    let mut asked = Vec::with_capacity(VIEWS_PER_CALL_MAX);
    while queue.recv_many(&mut asked, VIEWS_PER_CALL_MAX).await > 0 {
        let mut ids = caches.news(&asked);
        ids.retain(|id| !caches.at_books.lock().contains(id));
        let failed = see(&caches, ids, &*hot).await.err();
        for look_up in asked.drain(..) {
            let found = match (caches.told(&look_up.id), &failed) {
                (Some(told), _) => Ok(told),
                (None, Some(error)) => Err(error.clone()),
                (None, None) => {
                    let id = look_up.id;
                    caches.at_books.lock().insert(id);
                    if let Err(full) = missing.try_send(look_up) {
                        caches.at_books.lock().remove(&id);
                        let _ = full.into_inner().answer.send(Err(shed()));
                    }
                    continue;
                }
            };
            // Who stopped waiting needs no answer.
            let _ = look_up.answer.send(found);
        }
    }
}

/// The terms of these envelopes, as far as the hot store has them.
async fn see(caches: &Caches, ids: Vec<EnvelopeId>, hot: &dyn HotStore) -> Result<(), ApiError> {
    if ids.is_empty() {
        return Ok(());
    }
    for view in hot.view(ids).await?.into_iter().flatten() {
        caches.known.insert(view.envelope, view.terms);
    }
    Ok(())
}

/// Asks the books, for all who have come since they were asked last.
async fn ask_the_books(
    caches: Arc<Caches>,
    mut queue: mpsc::Receiver<LookUp>,
    ledger: Arc<dyn Ledger>,
) {
    let mut asked = Vec::with_capacity(PAGE_ROWS_MAX);
    while queue.recv_many(&mut asked, PAGE_ROWS_MAX).await > 0 {
        let ids = caches.news(&asked);
        let asks = !ids.is_empty();
        let learned = learn(&caches, ids, &*ledger).await;
        for look_up in asked.drain(..) {
            caches.at_books.lock().remove(&look_up.id);
            let found = match (caches.told(&look_up.id), &learned) {
                (Some(told), _) => Ok(told),
                (None, Err(error)) => Err(error.clone()),
                // Others have pushed it out of the memory: at once, or since it was not asked for.
                (None, Ok(learned)) => learned.get(&look_up.id).cloned().ok_or_else(shed),
            };
            // Who stopped waiting needs no answer.
            let _ = look_up.answer.send(found);
        }
        if asks {
            tokio::time::sleep(BOOKS_ASKED_APART).await;
        }
    }
}

/// What the books say of each of these.
async fn learn(
    caches: &Caches,
    ids: Vec<EnvelopeId>,
    ledger: &dyn Ledger,
) -> Result<BTreeMap<EnvelopeId, Option<Arc<Terms>>>, ApiError> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = ledger.envelopes(ids.clone()).await?;
    let (now, mut learned) = (timer_now(), BTreeMap::new());
    for (id, row) in ids.into_iter().zip(rows) {
        metrics::ledger_asked(row.is_some());
        let terms = row.map(|row| row.terms);
        match &terms {
            Some(terms) => caches.known.insert(id, Arc::clone(terms)),
            None => caches.unknown.insert(id, now),
        }
        learned.insert(id, terms);
    }
    Ok(learned)
}
