//! Looks for money that does not move by itself: expired, empty, half-created, half-closed,
//! unfrozen. No money is stuck longer than expiry + 60 s.
//!
//! *Shape*
//!
//! | found | what happens |
//! |---|---|
//! | a mark that one store has and the other has not | `marks` |
//! | parked records of an unfrozen envelope | `parked` |
//! | `Due::Unpublished` | handed to `publish`, in a loop of its own: a large one takes seconds |
//! | `Due::Expired`, `Due::Empty` | `close` |
//! | `Due::Closing` | `close::go_on` |
//! | closed longer than [`CLOSED_KEPT_MS`] and still in the hot store | `hot.remove` |
//!
//! *Bounds.* [`SWEEP_PAGES_MAX`] pages of [`SWEEP_PAGE_MAX`] a tick, [`CLOSES_IN_FLIGHT_MAX`]
//! envelopes at once. The walk goes on where it stopped and begins again at the end, so an envelope
//! that is blocked takes its place in a page and nobody else's turn.
//!
//! *If it crashes here.* The next sweep finds the same envelopes: the ledger knows them by their
//! state, and nothing is remembered here but where the walk stands.
//!
//! *Not here.* Time: due is what the ledger says by its clock, and the hot store agrees or says
//! that it is not due.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;

use super::SettleError;
use super::close::{self, Closed};
use super::lease::Lease;
use super::marks::{Marked, Marks};
use super::parked::Unpark;
use crate::domain::envelope::{BookState, CloseReason, HotState};
use crate::domain::id::EnvelopeId;
use crate::hot::{HotStore, HotView, VIEWS_PER_CALL_MAX};
use crate::ledger::{Due, Ledger};
use crate::publish::Publisher;

/// Envelopes of one page: a page is closed in about 0.1 s at 2,000 commits a second.
pub const SWEEP_PAGE_MAX: usize = 256;
/// Pages of one tick: 16,384 envelopes, so that a tick ends and its outcome is seen.
pub const SWEEP_PAGES_MAX: usize = 64;
/// Envelopes that are closed at once: they share the ledger's group commits.
pub const CLOSES_IN_FLIGHT_MAX: usize = 16;
/// How long Create may take to publish before the sweeper does it.
pub const PUBLISH_PATIENCE_MS: i64 = 5_000;
/// Unpublished envelopes that a sweep hands on; the next one finds the others.
pub const UNPUBLISHED_MAX: usize = 1_024;
/// How long the hot store keeps a closed envelope: while a chat still shows it, losers and winners
/// are answered from memory; then reads fall through to the ledger. Far longer than an audit takes
/// between its two reads of one envelope.
pub const CLOSED_KEPT_MS: i64 = 600_000;
/// Envelopes of the hot store that one step of the walk looks at. Where many are forgotten the walk
/// takes no rest, so closed ones leave as fast as they come.
pub const FORGET_PAGE_MAX: usize = 1_000;

/// What one sweep found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Envelopes whose books are balanced now.
    pub closed: usize,
    /// Envelopes that wait: for settlement, for the hot store's clock, for an operator.
    pub waiting: usize,
    /// Parked records that were posted.
    pub unparked: usize,
    /// Parked records that can't be paid: dead letters now.
    pub set_aside: usize,
    /// What was done about marks that were not alike.
    pub marked: Marked,
    /// To be published.
    pub unpublished: Vec<EnvelopeId>,
    /// Envelopes that could not be closed for now, or whose parked records could not be posted, and parked
    /// records that the books refused.
    pub failed: usize,
    /// Why, of one of them.
    pub failure: Option<String>,
    /// A walk, over what is due or over what is parked, did not come to its end.
    pub more: bool,
}

/// Sweeps the envelopes of this process's partitions. Two sweepers are harmless.
pub struct Sweep {
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    publisher: Arc<Publisher>,
    marks: Marks,
    parked: Unpark,
    lease: Arc<Lease>,
    /// The ledger's row after which the next page begins.
    due_after: Mutex<i64>,
    /// The envelope after which the walk over the hot store goes on.
    forget_after: Mutex<Option<EnvelopeId>>,
}

impl Sweep {
    /// Between these doors.
    pub fn new(
        hot: Arc<dyn HotStore>,
        ledger: Arc<dyn Ledger>,
        publisher: Arc<Publisher>,
        lease: Arc<Lease>,
    ) -> Self {
        Self {
            marks: Marks::new(Arc::clone(&hot), Arc::clone(&ledger)),
            parked: Unpark::new(Arc::clone(&ledger), Arc::clone(&lease)),
            hot,
            ledger,
            publisher,
            lease,
            due_after: Mutex::new(i64::MIN),
            forget_after: Mutex::new(None),
        }
    }

    /// Looks once over everything that is due, as far as the bounds allow.
    ///
    /// # Errors
    /// The ledger can't say what is due, or the hot store has stopped. One envelope that fails is
    /// counted and does not stop the others.
    pub async fn once(&self) -> Result<Swept, SettleError> {
        let mut swept = Swept {
            marked: self.marks.once().await?,
            ..Swept::default()
        };
        swept.failed = swept.marked.failed;
        swept.failure.clone_from(&swept.marked.failure);
        let parked_more = self.parked.once(&mut swept).await;
        swept.more = true;
        for _ in 0..SWEEP_PAGES_MAX {
            let after = *self.due_after.lock();
            let page = self
                .ledger
                .due(PUBLISH_PATIENCE_MS, after, SWEEP_PAGE_MAX)
                .await?;
            let last = page.len() < SWEEP_PAGE_MAX;
            let next = page.last().filter(|_| !last).map(|(row, _)| *row);
            self.close_page(page, &mut swept).await?;
            *self.due_after.lock() = next.unwrap_or(i64::MIN);
            if last {
                swept.more = false;
                break;
            }
        }
        swept.more |= parked_more;
        Ok(swept)
    }

    async fn close_page(
        &self,
        page: Vec<(i64, Due)>,
        swept: &mut Swept,
    ) -> Result<(), SettleError> {
        let mut ending = Vec::with_capacity(page.len());
        for (_, due) in page {
            if !self
                .lease
                .has_envelope(due.envelope(), self.hot.partitions())
            {
                continue;
            }
            match due {
                Due::Unpublished(id) if swept.unpublished.len() < UNPUBLISHED_MAX => {
                    swept.unpublished.push(id);
                }
                Due::Unpublished(_) => {}
                Due::Expired(_) | Due::Empty(_) | Due::Closing(_) => ending.push(due),
            }
        }
        let mut steps = stream::iter(ending)
            .map(|due| self.close(due).boxed())
            .buffer_unordered(CLOSES_IN_FLIGHT_MAX);
        while let Some(step) = steps.next().await {
            match step {
                Ok(Closed::Now(_)) => swept.closed += 1,
                Ok(Closed::Waiting | Closed::NotDue | Closed::Frozen) => swept.waiting += 1,
                Err(SettleError::Stopped(why)) => return Err(SettleError::Stopped(why)),
                Err(error) => {
                    swept.failed += 1;
                    swept.failure.get_or_insert(error.to_string());
                }
            }
        }
        Ok(())
    }

    async fn close(&self, due: Due) -> Result<Closed, SettleError> {
        let (hot, ledger) = (&*self.hot, &*self.ledger);
        let publisher = &*self.publisher;
        match due {
            Due::Expired(id) => {
                close::close(hot, ledger, publisher, (id, CloseReason::Expired)).await
            }
            Due::Empty(id) => close::close(hot, ledger, publisher, (id, CloseReason::Empty)).await,
            // A read instead of a second begin: an envelope that waits costs no transaction a tick.
            Due::Closing(id) => match ledger.envelopes(vec![id]).await?.pop().flatten() {
                Some(row) if row.frozen => Ok(Closed::Frozen),
                Some(row) => close::go_on(hot, ledger, publisher, row).await,
                None => Err(SettleError::Broken(format!("envelope {id} has no row"))),
            },
            Due::Unpublished(id) => Err(SettleError::Broken(format!("{id} is not to be closed"))),
        }
    }

    /// Looks at the next envelopes that the hot store holds, and has it forget those that have been
    /// closed for longer than [`CLOSED_KEPT_MS`]. Answers how many.
    ///
    /// # Errors
    /// A store is out of reach: the walk begins again where it stood.
    pub async fn forget(&self) -> Result<usize, SettleError> {
        let after = *self.forget_after.lock();
        let mut page = self.hot.envelopes(after, FORGET_PAGE_MAX).await?;
        let next = page.last().copied();
        page.retain(|id| self.lease.has_envelope(*id, self.hot.partitions()));
        let before = self.ledger.now().plus_ms(-CLOSED_KEPT_MS);
        let (mut forgotten, mut failure) = (0, None);
        for ids in page.chunks(VIEWS_PER_CALL_MAX) {
            let views = self.hot.view(ids.to_vec()).await?;
            // Of one that nobody can see something is there: what was not whole when it closed, or a dealt one
            // that was forgotten in part.
            let may_go = |view: &Option<HotView>| match view {
                Some(view) => matches!(view.state, HotState::Over(_)),
                None => true,
            };
            let seen: HashSet<EnvelopeId> = views.iter().flatten().map(|v| v.envelope).collect();
            let over = ids.iter().zip(views);
            let over: Vec<_> = over
                .filter_map(|(id, view)| may_go(&view).then_some(*id))
                .collect();
            if over.is_empty() {
                continue;
            }
            let rows = self.ledger.envelopes(over).await?.into_iter().flatten();
            let closed = rows
                .filter(|row| matches!(row.state, BookState::Closed(_)))
                .filter(|row| row.closed_at.is_some_and(|at| at <= before));
            let closed = closed.map(|row| {
                self.hot.learn(row.id, &row.terms);
                row.id
            });
            // What can't be seen may not be removable either: it keeps the walk from no rest.
            forgotten += self.remove(closed.collect(), &seen, &mut failure).await;
        }
        // Those that can't be removed now keep nobody behind them: the next walk finds them again.
        *self.forget_after.lock() = next;
        failure.map_or(Ok(forgotten), Err)
    }

    /// Answers how many of those that were `seen`; the first failure is noted, and keeps no other partition's.
    async fn remove(
        &self,
        ids: Vec<EnvelopeId>,
        seen: &HashSet<EnvelopeId>,
        failure: &mut Option<SettleError>,
    ) -> usize {
        let mut removed = 0;
        let mut by_partition = std::collections::BTreeMap::<_, Vec<_>>::new();
        for id in ids {
            let partition = id.partition(self.hot.partitions());
            by_partition.entry(partition).or_default().push(id);
        }
        for ids in by_partition.into_values() {
            let count = ids.iter().filter(|id| seen.contains(id)).count();
            match self.hot.remove(&self.hot.epochs(), ids).await {
                Ok(_) => removed += count,
                Err(error) => drop(failure.get_or_insert(error.into())),
            }
        }
        removed
    }
}
