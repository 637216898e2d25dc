//! Posts what was granted and is owed by no outbox: a trimmed or deleted outbox, a grant that a
//! repair brought back.
//!
//! *Shape*
//!
//! | step | door |
//! |---|---|
//! | 1. a page of envelopes: granted more than the books know? | `hot.view`, `ledger.envelopes` |
//! | 2. still so after [`RECONCILE_AFTER_MS`]: is it merely waiting? | `hot.owes` |
//! | 3. which grants have no claim | `hot.grants`, `ledger.claims` |
//! | 4. post them like any record | `Drain::post_records` |
//!
//! *Bounds.* A page of [`RECONCILE_PAGE_MAX`] envelopes a step; [`BEHIND_MAX`] are remembered as
//! behind. A step ends at [`RECONCILED_PER_STEP_MAX`] envelopes to mend, [`MENDED_AT_ONCE_MAX`] at a time,
//! and the next one goes on behind the last of them. A walk over 100,000 envelopes without a loss takes
//! ten seconds, so a lost debt is met within a minute up to half a million of them; what is met waits for
//! those before it, some milliseconds each.
//!
//! *Ordering.* The epoch is looked up before anything is read, and what is missing is posted under
//! it. A record that is posted here and comes out of an outbox after all is a duplicate.
//!
//! *If it crashes here.* Nothing is remembered but where the walk stands.
//!
//! *Not here.* Envelopes that the hot store does not hold in this epoch: they are repaired when they
//! are touched, and looked at after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;

use super::SettleError;
use super::drain::{Drain, Drained};
use super::lease::Lease;
use crate::domain::envelope::{BookState, Terms};
use crate::domain::grab::OutboxRecord;
use crate::domain::id::{EnvelopeId, Partition, PartitionCount, UnixMs};
use crate::domain::stripes::granted_in;
use crate::hot::{Epochs, GRANTS_PER_PAGE_MAX, GrantWalk, HotStore, HotView, VIEWS_PER_CALL_MAX};
use crate::ledger::{EnvelopeRow, Ledger, LedgerError, PAGE_ROWS_MAX, SETTLE_BATCH_MAX, Under};
use crate::telemetry::metrics;

/// Envelopes of one step of the walk.
pub const RECONCILE_PAGE_MAX: usize = 1_000;
/// How long the books may be behind the hot store before it is asked why: far above what a drain
/// takes while the ledger serves.
pub const RECONCILE_AFTER_MS: i64 = 10_000;
/// Envelopes that are remembered as behind. More are behind only while the ledger is away, and then
/// there is nothing to mend.
pub const BEHIND_MAX: usize = 100_000;
/// Envelopes that one step mends: each costs a look through an outbox.
pub const RECONCILED_PER_STEP_MAX: usize = 256;
/// Of them, at a time.
pub const MENDED_AT_ONCE_MAX: usize = 8;
/// Open letters of an envelope that are compared with its grants; where there are more, each counts as one.
const LETTERS_LOOKED_AT_MAX: usize = 100;

/// What one step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Records that were posted.
    pub posted: usize,
    /// Envelopes of which the books know less than was granted, so far as they were looked at.
    pub behind: usize,
    /// The walk goes on behind this page.
    pub more: bool,
}

/// Walks over the hot store.
pub struct Reconcile {
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    lease: Arc<Lease>,
    /// The envelope after which the walk goes on.
    after: Mutex<Option<EnvelopeId>>,
    /// Since when the books are behind.
    behind: Mutex<BTreeMap<EnvelopeId, UnixMs>>,
}

impl Reconcile {
    /// Between these doors.
    pub fn new(hot: Arc<dyn HotStore>, ledger: Arc<dyn Ledger>, lease: Arc<Lease>) -> Self {
        Self {
            hot,
            ledger,
            lease,
            after: Mutex::default(),
            behind: Mutex::default(),
        }
    }

    /// Looks at the next page.
    ///
    /// # Errors
    /// A store is out of reach: the walk goes on where it stood.
    pub async fn once(&self, drain: &Drain) -> Result<Reconciled, SettleError> {
        let (late, next) = self.walk().await?;
        let posted = AtomicUsize::new(0);
        let mended = stream::iter(late).for_each_concurrent(MENDED_AT_ONCE_MAX, async |id| {
            match self.mend(drain, id).await {
                Ok(mended) => drop(posted.fetch_add(mended, Ordering::Relaxed)),
                // The others must be paid, and this one is met again.
                Err(error) => {
                    tracing::warn!(envelope = %id, %error, "grabs can't be compared yet");
                }
            }
        });
        mended.await;
        let posted = posted.into_inner();
        if posted > 0 {
            tracing::error!(
                records = posted,
                "grants that no outbox owed were posted: it was trimmed or lost"
            );
            metrics::reconciled(posted);
        }
        *self.after.lock() = next;
        let more = next.is_some();
        let behind = self.behind.lock().len();
        Ok(Reconciled {
            posted,
            behind,
            more,
        })
    }

    /// Step 1: which envelopes of the next page have been behind for long, and behind which one the walk goes
    /// on.
    async fn walk(&self) -> Result<(Vec<EnvelopeId>, Option<EnvelopeId>), SettleError> {
        let after = *self.after.lock();
        let mut page = self.hot.envelopes(after, RECONCILE_PAGE_MAX).await?;
        let more = page.len() >= RECONCILE_PAGE_MAX;
        let last = page.last().copied().filter(|_| more);
        page.retain(|id| self.lease.has_envelope(*id, self.hot.partitions()));
        let mut late = Vec::new();
        for ids in page.chunks(VIEWS_PER_CALL_MAX) {
            // The rows are read first: what the hot store grants between the two reads only makes an
            // envelope look behind, never the other way round.
            let rows = self.rows(ids).await?;
            let views = self.hot.view(ids.to_vec()).await?;
            for ((id, row), view) in ids.iter().zip(rows).zip(views) {
                match (row, view) {
                    (Some(row), Some(view)) if self.is_behind(&row, &view).await? => {
                        if self.late(*id) {
                            late.push(*id);
                        }
                    }
                    _ => drop(self.behind.lock().remove(id)),
                }
                if late.len() >= RECONCILED_PER_STEP_MAX {
                    return Ok((late, Some(*id)));
                }
            }
        }
        Ok((late, last))
    }

    /// Rows of a page, in their order; `None` where one is unknown or can't be read. A damaged row
    /// fails the whole page, so then they are read one by one.
    async fn rows(&self, ids: &[EnvelopeId]) -> Result<Vec<Option<EnvelopeRow>>, SettleError> {
        match self.ledger.envelopes(ids.to_vec()).await {
            Err(LedgerError::Broken(_)) => {}
            page => return Ok(page?),
        }
        let mut rows = Vec::with_capacity(ids.len());
        for id in ids {
            rows.push(match self.ledger.envelopes(vec![*id]).await {
                Err(LedgerError::Broken(_)) => None,
                row => row?.pop().flatten(),
            });
        }
        Ok(rows)
    }

    /// Whether the hot store gave out more than the books know.
    async fn is_behind(&self, row: &EnvelopeRow, view: &HotView) -> Result<bool, SettleError> {
        let known = row.settled_count + row.declined_count;
        let open = !matches!(row.state, BookState::Closed(_));
        if !open || view.stale || view.taken_count <= known {
            return Ok(false);
        }
        match row.set_aside_count {
            0 => Ok(true),
            _ => match self.set_aside(row).await {
                Ok(set_aside) => Ok(view.taken_count > known + set_aside),
                Err(SettleError::Stopped(why)) => Err(SettleError::Stopped(why)),
                // The others must be compared, and this one is met again.
                Err(error) => {
                    tracing::warn!(envelope = %row.id, %error, "grabs can't be compared yet");
                    Ok(false)
                }
            },
        }
    }

    /// Grants that are set aside. A letter that nobody was granted is none of them: it must not pass for the
    /// grant of somebody else, who would wait until an operator has looked at it.
    async fn set_aside(&self, row: &EnvelopeRow) -> Result<u32, SettleError> {
        let first = self
            .ledger
            .set_aside(row.id, i64::MIN, LETTERS_LOOKED_AT_MAX);
        let found = first.await?;
        if found.letters.len() >= LETTERS_LOOKED_AT_MAX {
            return Ok(row.set_aside_count);
        }
        let mut grants = found.parked_count;
        for letter in &found.letters {
            let whose = (row.id, letter.record.grabber.clone());
            let held = self.hot.held(vec![whose]).await?;
            let granted = held.iter().flatten().any(|held| letter.record.is_of(held));
            grants += u32::from(granted);
        }
        Ok(grants)
    }

    /// Whether an envelope has been behind for long.
    fn late(&self, id: EnvelopeId) -> bool {
        let now = self.ledger.now();
        let mut behind = self.behind.lock();
        if behind.len() >= BEHIND_MAX && !behind.contains_key(&id) {
            return false;
        }
        let since = *behind.entry(id).or_insert(now);
        now.0.saturating_sub(since.0) >= RECONCILE_AFTER_MS
    }

    /// Steps 2 to 4 for one envelope.
    async fn mend(&self, drain: &Drain, id: EnvelopeId) -> Result<usize, SettleError> {
        let epochs = self.hot.epochs();
        if let Some(row) = self.ledger.envelopes(vec![id]).await?.pop().flatten() {
            self.hot.learn(id, &row.terms);
        }
        if self.hot.owes(id).await? {
            return Ok(0);
        }
        let posted = post_missing(&*self.hot, &*self.ledger, drain, (&epochs, id)).await?;
        self.behind.lock().remove(&id);
        Ok(posted.paid)
    }
}

/// Posts what the hot store granted of an envelope and the books have no claim of, under epochs that
/// were looked up before. Answers what became of the records.
///
/// # Errors
/// A store is out of reach: what was posted stands, and repeating goes on.
pub async fn post_missing(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    drain: &Drain,
    (epochs, id): (&Epochs, EnvelopeId),
) -> Result<Drained, SettleError> {
    let row = ledger.envelopes(vec![id]).await?.pop().flatten();
    let claimed = claimed(ledger, id).await?;
    let (mut from, mut posted) = (0, Drained::default());
    // Each page moves `from`, and an envelope has no more shares than a u32 counts.
    let mut walk = GrantWalk::default();
    while let Some(page) = hot
        .walk_grants(&mut walk, id, from, GRANTS_PER_PAGE_MAX)
        .await?
    {
        let Some(last) = page.last() else { break };
        from = last.grant.share + 1;
        let missing = page
            .iter()
            .filter(|held| !claimed.contains(&held.grant.share));
        let records: Vec<_> = missing
            .map(|held| OutboxRecord {
                envelope: id,
                grabber: held.grabber.clone(),
                grant: held.grant,
                declined: held.declined,
            })
            .collect();
        let dealt = row.as_ref().map(|row| &*row.terms);
        for (under, records) in by_partition(records, dealt, (epochs, hot.partitions())) {
            for some in records.chunks(SETTLE_BATCH_MAX) {
                posted.add(drain.post_records(under, some).await?);
            }
        }
        if page.len() < GRANTS_PER_PAGE_MAX {
            break;
        }
    }
    Ok(posted)
}

/// PURE: records of one envelope by the partition in which each was granted. Without terms: in its own.
pub(super) fn by_partition(
    records: Vec<OutboxRecord>,
    terms: Option<&Terms>,
    (epochs, partitions): (&Epochs, PartitionCount),
) -> Vec<(Under, Vec<OutboxRecord>)> {
    let mut by_partition: BTreeMap<Partition, Vec<OutboxRecord>> = BTreeMap::new();
    for record in records {
        let partition = match terms {
            Some(terms) => granted_in(
                record.envelope,
                (&record.grabber, record.grant.share),
                (terms.stripes, terms.share_count),
                partitions,
            ),
            None => record.envelope.partition(partitions),
        };
        by_partition.entry(partition).or_default().push(record);
    }
    let under = |partition| Under {
        partition,
        epoch: epochs.of(partition),
    };
    let pairs = by_partition.into_iter();
    pairs
        .map(|(partition, of_it)| (under(partition), of_it))
        .collect()
}

/// The numbers of shares with a claim.
async fn claimed(ledger: &dyn Ledger, id: EnvelopeId) -> Result<BTreeSet<u32>, SettleError> {
    let (mut claimed, mut from) = (BTreeSet::new(), 0);
    loop {
        let page = ledger.claims(id, from, PAGE_ROWS_MAX).await?;
        claimed.extend(page.iter().map(|held| held.grant.share));
        match page.last() {
            Some(last) if page.len() >= PAGE_ROWS_MAX => from = last.grant.share + 1,
            _ => return Ok(claimed),
        }
    }
}
