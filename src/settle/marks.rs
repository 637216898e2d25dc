//! Keeps the marks of frozen envelopes alike in both stores, and counts them.
//!
//! *Shape*
//!
//! | found | what happens |
//! |---|---|
//! | in the hot store: a broken invariant that the books don't know | `publish::marks::carry` |
//! | in the hot store: a mark of the books that they don't have | `publish::marks::follow` |
//! | in the books: a mark that the hot store does not have | `publish::marks::follow` |
//!
//! *Bounds.* [`MARK_PAGES_MAX`] pages of [`MARK_PAGE_MAX`] of either store a tick; the walks go on
//! where they stopped.
//!
//! *Ordering.* What is listed may have changed since: `publish::marks` looks again before it acts.
//!
//! *If it crashes here.* The next sweep finds what is left.
//!
//! *Not here.* Why an envelope is frozen, and who may let it go on (`api`).

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::SettleError;
use crate::domain::id::EnvelopeId;
use crate::hot::{HotStore, Mark, VIEWS_PER_CALL_MAX};
use crate::ledger::Ledger;
use crate::publish::marks::{self, MarkError};
use crate::telemetry::metrics;

/// Envelopes of one page: what one look at the hot store takes.
pub const MARK_PAGE_MAX: usize = VIEWS_PER_CALL_MAX;
/// Pages of either store in one tick. Frozen envelopes are few: an alarm rings at the first.
pub const MARK_PAGES_MAX: usize = 16;

/// What one look at the marks did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// Broken invariants that the books know now.
    pub carried: usize,
    /// Envelopes of the hot store that follow the books now.
    pub followed: usize,
    /// Envelopes whose marks could not be made alike for now.
    pub failed: usize,
    /// Why, of one of them.
    pub failure: Option<String>,
}

/// Looks at the marks. Two that look are harmless.
pub(super) struct Marks {
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    /// After which the walk over the hot store's marks goes on.
    marked_after: Mutex<Option<EnvelopeId>>,
    /// The same of the books' marks, and how many were seen before it.
    frozen_after: Mutex<(i64, u64)>,
}

impl Marks {
    pub fn new(hot: Arc<dyn HotStore>, ledger: Arc<dyn Ledger>) -> Self {
        Self {
            hot,
            ledger,
            marked_after: Mutex::default(),
            frozen_after: Mutex::new((i64::MIN, 0)),
        }
    }

    /// Looks once at the marks of both stores, as far as the bounds allow.
    ///
    /// # Errors
    /// A store can't tell its marks, or the hot store has stopped. One envelope that fails is
    /// counted and does not stop the others.
    pub async fn once(&self) -> Result<Marked, SettleError> {
        let mut marked = Marked::default();
        self.of_the_hot_store(&mut marked).await?;
        self.of_the_books(&mut marked).await?;
        Ok(marked)
    }

    async fn of_the_hot_store(&self, marked: &mut Marked) -> Result<(), SettleError> {
        for _ in 0..MARK_PAGES_MAX {
            let after = *self.marked_after.lock();
            let page = self.hot.marked(after, MARK_PAGE_MAX).await?;
            let last = page.len() < MARK_PAGE_MAX;
            let next = page.last().filter(|_| !last).map(|(id, _)| *id);
            for (id, mark) in page {
                count(marked, self.compare(id, mark).await)?;
            }
            *self.marked_after.lock() = next;
            if last {
                break;
            }
        }
        Ok(())
    }

    async fn of_the_books(&self, marked: &mut Marked) -> Result<(), SettleError> {
        for _ in 0..MARK_PAGES_MAX {
            let (after, seen) = *self.frozen_after.lock();
            let page = self.ledger.frozen(after, MARK_PAGE_MAX).await?;
            let last = page.len() < MARK_PAGE_MAX;
            let seen = seen + page.len() as u64;
            let next = page.last().filter(|_| !last).map(|(row, _)| (*row, seen));
            let ids: BTreeSet<_> = page.into_iter().map(|(_, id)| id).collect();
            let views = self.hot.view(ids.into_iter().collect()).await?;
            for view in views.into_iter().flatten() {
                if view.frozen.is_none() {
                    count(marked, self.follow(view.envelope).await)?;
                }
            }
            *self.frozen_after.lock() = next.unwrap_or((i64::MIN, 0));
            if last {
                metrics::frozen(seen);
                break;
            }
        }
        Ok(())
    }

    /// One by one: a row that can't be read must not hide the others.
    async fn compare(&self, id: EnvelopeId, mark: Mark) -> Result<Marked, MarkError> {
        let row = self.ledger.envelopes(vec![id]).await?.pop().flatten();
        match mark {
            _ if row.is_none_or(|row| row.frozen) => Ok(Marked::default()),
            Mark::Broken => self.carry(id).await,
            Mark::Books => self.follow(id).await,
        }
    }

    async fn carry(&self, id: EnvelopeId) -> Result<Marked, MarkError> {
        let news = marks::carry(&*self.hot, &*self.ledger, id).await?;
        Ok(Marked {
            carried: usize::from(news),
            ..Marked::default()
        })
    }

    async fn follow(&self, id: EnvelopeId) -> Result<Marked, MarkError> {
        marks::follow(&*self.hot, &*self.ledger, id).await?;
        Ok(Marked {
            followed: 1,
            ..Marked::default()
        })
    }
}

fn count(marked: &mut Marked, done: Result<Marked, MarkError>) -> Result<(), SettleError> {
    match done {
        Ok(done) => {
            marked.carried += done.carried;
            marked.followed += done.followed;
        }
        Err(error) => match SettleError::from(error) {
            SettleError::Stopped(why) => return Err(SettleError::Stopped(why)),
            other => {
                marked.failed += 1;
                marked.failure.get_or_insert(other.to_string());
            }
        },
    }
    Ok(())
}
