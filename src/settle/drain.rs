//! Moves the head of a partition's outbox into the books.
//!
//! *Shape*
//!
//! | step | door | crash point |
//! |---|---|---|
//! | 1. read | `hot.epoch`, then `hot.outbox` (or what was read ahead) | |
//! | 2. plan | `plan`, from terms and amounts | `settle::before_post`, after it |
//! | 3. post | `ledger.settle`, while `hot.outbox` reads one batch ahead | `settle::after_post`, after it |
//! | 4. delete | `hot.settled` | `settle::after_settled`, after it |
//!
//! *Bounds.* A batch has at most `SETTLE_BATCH_MAX` records where entries keep to
//! `GRABS_PER_CALL_MAX`; larger entries are posted in slices. One batch is read ahead. A refused
//! batch costs at most [`REFUSALS_PER_BATCH_MAX`] calls.
//!
//! *Ordering.* An entry is deleted only after the books gave a verdict on each of its records. The
//! queue is what has not been deleted: there is no cursor to lose or to move too far.
//! The epoch is looked up before the outbox is read, and the batch is posted and deleted under it.
//! What a store owes in an epoch agrees with the envelopes that it holds in it, whenever it was
//! granted; what was read from its predecessor may not, so it is dropped and read anew. That is no
//! refusal: no tries are counted.
//!
//! *If it crashes here.* Before 3: nothing happened. Between 3 and 4: the same records come again
//! and are duplicates by the ledger's constraints. Two drainers are two such crashes.
//!
//! *Poison.* A batch that the books refuse is halved until the refused record stands alone; the
//! others are posted. After `SETTLE_TRIES_MAX` refusals it is set aside.
//!
//! *Not here.* What a record's verdict is (`plan`, the ledger), when to drain (`settle`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::plan::{self, Known};
use super::{SettleError, crash};
use crate::domain::grab::{GRABS_PER_CALL_MAX, OutboxEntry, OutboxRecord};
use crate::domain::id::{EnvelopeId, Partition, PersonId};
use crate::hot::{HotStore, SETTLED_PER_CALL_MAX};
use crate::ledger::{
    EnvelopeRow, Ledger, LedgerError, PAGE_ROWS_MAX, SETTLE_BATCH_MAX, SETTLE_TRIES_MAX,
    SettleItem, Settled, Under,
};
use crate::publish::{Amounts, PublishError};
use crate::rules::{self, Rule};
use crate::telemetry::metrics;

/// Records at which a read of the outbox stops: the entry that reaches it brings at most
/// `GRABS_PER_CALL_MAX` more, and the batch still is one transaction.
const READ_RECORDS_MAX: usize = SETTLE_BATCH_MAX - GRABS_PER_CALL_MAX + 1;

/// Calls to the ledger that one refused batch may cost. Finding one poisoned record among 5,000
/// takes 26, so this finds about ten a round and the others in the next rounds.
pub const REFUSALS_PER_BATCH_MAX: usize = 256;

/// Refused records whose tries are counted at once: those of one batch.
const TRIES_COUNTED_MAX: usize = SETTLE_BATCH_MAX;

/// What one round did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Records that were read.
    pub records: usize,
    /// Paid by this round.
    pub paid: usize,
    /// Paid before.
    pub duplicates: usize,
    /// Paid before to another claim, and nothing is owed.
    pub superseded: usize,
    /// Paid by the reserve: the share went to somebody else.
    pub made_good: usize,
    /// Set aside since the reserve's cap is reached (part of `dead_letters`).
    pub capped: usize,
    /// Kept in the books until the envelope is unfrozen.
    pub parked: usize,
    /// Set aside.
    pub dead_letters: usize,
    /// Refused by the books and left for the next round, with the ledger's reason.
    pub refused: usize,
    /// Why, of one of them.
    pub refusal: Option<String>,
    /// More is waiting.
    pub more: bool,
}

impl Drained {
    /// Adds what another call did.
    pub(super) fn add(&mut self, other: Self) {
        self.records += other.records;
        self.paid += other.paid;
        self.duplicates += other.duplicates;
        self.superseded += other.superseded;
        self.made_good += other.made_good;
        self.capped += other.capped;
        self.parked += other.parked;
        self.dead_letters += other.dead_letters;
        self.refused += other.refused;
        self.refusal = self.refusal.take().or(other.refusal);
        self.more |= other.more;
    }

    /// Adds what became of one record.
    pub(super) fn count(&mut self, verdict: Settled) {
        match verdict {
            Settled::Paid => self.paid += 1,
            Settled::Duplicate => self.duplicates += 1,
            Settled::Superseded => self.superseded += 1,
            Settled::MadeGood => self.made_good += 1,
            Settled::Parked => self.parked += 1,
            Settled::DeadLetter => self.dead_letters += 1,
            Settled::Capped => {
                self.dead_letters += 1;
                self.capped += 1;
            }
        }
    }

    /// For operators.
    pub(super) fn tell(&self) {
        metrics::settled(self.paid);
        metrics::superseded(self.superseded);
        metrics::set_aside(self.dead_letters);
        if self.made_good > 0 {
            let records = self.made_good;
            tracing::warn!(
                records,
                "acknowledged grabs were lost, and the reserve has made them good"
            );
            metrics::made_good(records);
        }
        if self.capped > 0 {
            let records = self.capped;
            tracing::warn!(
                records,
                "the cap of what is made good is reached: grabs were set aside"
            );
            metrics::make_good_capped(records);
        }
    }
}

/// Entries of a partition's outbox, and the epoch that was looked up before they were read.
#[derive(Debug)]
struct Batch {
    under: Under,
    entries: Vec<OutboxEntry>,
}

/// Drains partitions, one batch a call. Several may run at once, in any number of processes.
pub struct Drain {
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    amounts: Arc<Amounts>,
    /// What was read ahead, by partition: volatile, and worth nothing but time.
    ahead: Mutex<BTreeMap<Partition, Batch>>,
    /// How often the books refused a record by itself.
    tries: Mutex<BTreeMap<Refused, u32>>,
}

impl Drain {
    /// Between these doors.
    pub fn new(hot: Arc<dyn HotStore>, ledger: Arc<dyn Ledger>, amounts: Arc<Amounts>) -> Self {
        Self {
            hot,
            ledger,
            amounts,
            ahead: Mutex::default(),
            tries: Mutex::default(),
        }
    }

    /// Settles the head of a partition's outbox. May be dropped at any point and called again.
    ///
    /// # Errors
    /// A store is out of reach: what was not deleted comes again. See [`SettleError`].
    pub async fn once(&self, partition: Partition) -> Result<Drained, SettleError> {
        // 1. read
        let ahead = self.ahead.lock().remove(&partition);
        let batch = match ahead {
            Some(batch) => batch,
            None => self.read(partition, None).await?,
        };
        let Some(last) = batch.entries.last().map(|entry| entry.id) else {
            return Ok(Drained::default());
        };
        let records: usize = batch.entries.iter().map(|entry| entry.records.len()).sum();
        if records < READ_RECORDS_MAX {
            return self.settle(batch).await;
        }
        let (drained, next) = tokio::join!(self.settle(batch), self.read(partition, Some(last)));
        // Where the epoch is another one, what was read ahead goes with what was read before it.
        let mut drained = drained?;
        // What was refused is at the head again, so the head is read next.
        if let Ok(next) = next
            && !next.entries.is_empty()
            && drained.refused == 0
        {
            drained.more = true;
            self.ahead.lock().insert(partition, next);
        }
        Ok(drained)
    }

    async fn read(&self, partition: Partition, after: Option<u64>) -> Result<Batch, SettleError> {
        // First the epoch: looked up after the outbox, it could be that of a store which has lost
        // what was just read.
        let epoch = self.hot.epoch(partition);
        let entries = self.hot.outbox(partition, after, READ_RECORDS_MAX).await?;
        let under = Under { partition, epoch };
        Ok(Batch { under, entries })
    }

    /// Posts records that no outbox holds, at most `SETTLE_BATCH_MAX`, read under an epoch.
    ///
    /// # Errors
    /// As [`Drain::once`].
    pub async fn post_records(
        &self,
        under: Under,
        records: &[OutboxRecord],
    ) -> Result<Drained, SettleError> {
        Ok(self.post_now(under, records).await?.1)
    }

    /// Posts records that were granted under an epoch, whatever outbox holds them. A verdict for each;
    /// `None` where the books refused it.
    ///
    /// # Errors
    /// As [`Drain::once`].
    pub(super) async fn post_each(
        &self,
        under: Under,
        records: &[OutboxRecord],
    ) -> Result<Vec<Option<Settled>>, SettleError> {
        Ok(self.post_now(under, records).await?.0)
    }

    async fn post_now(
        &self,
        under: Under,
        records: &[OutboxRecord],
    ) -> Result<(Vec<Option<Settled>>, Drained), SettleError> {
        let known = self.known(plan::shares_needed(records)).await?;
        let mut items = plan::plan(records, &known);
        self.give_up_on_the_refused(&mut items);
        let mut drained = Drained {
            records: items.len(),
            ..Drained::default()
        };
        let verdicts = self.post(under, &items, &mut drained).await?;
        drained.tell();
        Ok((verdicts, drained))
    }

    async fn settle(&self, batch: Batch) -> Result<Drained, SettleError> {
        let Batch { under, entries } = batch;
        // 2. plan
        let records = || entries.iter().flat_map(|entry| &entry.records);
        let known = self.known(plan::shares_needed(records())).await?;
        let mut items = plan::plan(records(), &known);
        self.give_up_on_the_refused(&mut items);
        crash("settle::before_post")?;
        if !rules::keeps(Rule::DeleteAfterCommit) {
            let all = entries.iter().map(|entry| (entry.id, entry.nonce));
            self.delete(under, all.collect()).await?;
        }
        // 3. post
        let mut drained = Drained {
            records: items.len(),
            ..Drained::default()
        };
        let began_at = self.ledger.now();
        let verdicts = self.post(under, &items, &mut drained).await?;
        let took_ms = self.ledger.now().0.saturating_sub(began_at.0).max(0);
        crash("settle::after_post")?;
        // 4. delete
        let mut verdicts = verdicts.into_iter();
        let mut done = Vec::with_capacity(entries.len());
        for entry in &entries {
            let of_entry = verdicts.by_ref().take(entry.records.len());
            // No shortcut: every verdict must be taken off the iterator.
            if of_entry.filter(Option::is_none).count() == 0 {
                done.push((entry.id, entry.nonce));
            }
        }
        self.delete(under, done).await?;
        crash("settle::after_settled")?;
        drained.tell();
        let seconds = f64::from(u32::try_from(took_ms).unwrap_or(u32::MAX)) / 1_000.0;
        metrics::settle_batch(drained.records, seconds);
        Ok(drained)
    }

    async fn delete(&self, under: Under, entries: Vec<(u64, u64)>) -> Result<(), SettleError> {
        for pairs in entries.chunks(SETTLED_PER_CALL_MAX) {
            let (epoch, partition) = (under.epoch, under.partition);
            self.hot.settled(epoch, partition, pairs.to_vec()).await?;
        }
        Ok(())
    }

    /// What the books know of the envelopes of a batch.
    async fn known(
        &self,
        needed: BTreeMap<EnvelopeId, BTreeSet<u32>>,
    ) -> Result<BTreeMap<EnvelopeId, Known>, SettleError> {
        let mut known = BTreeMap::new();
        let mut unseen = Vec::new();
        for (id, shares) in needed {
            match self.amounts.kept(id) {
                Some(vector) => {
                    let amounts = shares
                        .into_iter()
                        .filter_map(|share| Some((share, vector.amount_of(share)?)));
                    known.insert(id, Known::Shares(vector.terms.clone(), amounts.collect()));
                }
                None => unseen.push((id, shares)),
            }
        }
        for page in unseen.chunks(PAGE_ROWS_MAX) {
            let ids = page.iter().map(|(id, _)| *id).collect();
            for ((id, shares), row) in page.iter().zip(self.rows(ids).await?) {
                let row = match row {
                    Ok(Some(row)) => row,
                    Ok(None) => continue,
                    Err(why) => {
                        tracing::error!(envelope = %id, why, "an envelope's row can't be read");
                        known.insert(*id, Known::Broken);
                        continue;
                    }
                };
                let made = match self.amounts.of(*id, &row.terms).await {
                    Ok(vector) => {
                        let at = |share: u32| vector.get(usize::try_from(share).ok()?).copied();
                        let amounts = shares
                            .iter()
                            .filter_map(|share| Some((*share, at(*share)?)));
                        Known::Shares(row.terms, amounts.collect())
                    }
                    Err(PublishError::Broken(why)) => {
                        tracing::error!(envelope = %id, why, "an envelope's row makes no shares");
                        Known::Broken
                    }
                    Err(error) => return Err(error.into()),
                };
                known.insert(*id, made);
            }
        }
        Ok(known)
    }

    /// Rows of at most a page of envelopes, in their order, or why one can't be read. A damaged row
    /// fails the whole page, so then they are read one by one: the others must be paid.
    async fn rows(
        &self,
        ids: Vec<EnvelopeId>,
    ) -> Result<Vec<Result<Option<EnvelopeRow>, String>>, SettleError> {
        match self.ledger.envelopes(ids.clone()).await {
            Ok(rows) => return Ok(rows.into_iter().map(Ok).collect()),
            Err(LedgerError::Broken(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let mut rows = Vec::with_capacity(ids.len());
        for id in ids {
            rows.push(match self.ledger.envelopes(vec![id]).await {
                Ok(row) => Ok(row.into_iter().flatten().next()),
                Err(LedgerError::Broken(why)) => Err(why),
                Err(error) => return Err(error.into()),
            });
        }
        Ok(rows)
    }

    /// Records that the books refused `SETTLE_TRIES_MAX` times are not tried again.
    fn give_up_on_the_refused(&self, items: &mut [SettleItem]) {
        let tries = self.tries.lock();
        if tries.is_empty() {
            return;
        }
        for item in items {
            if let SettleItem::Pay(record) = item
                && tries.get(&key(record)).copied() >= Some(SETTLE_TRIES_MAX)
            {
                *item = SettleItem::SetAside(record.clone(), plan::REFUSED_BY_THE_BOOKS);
            }
        }
    }

    /// A verdict for each item, in order; `None` where the books refused it.
    async fn post(
        &self,
        under: Under,
        items: &[SettleItem],
        drained: &mut Drained,
    ) -> Result<Vec<Option<Settled>>, SettleError> {
        let mut verdicts = vec![None; items.len()];
        // The last range is tried first, so that they go in order.
        let mut ranges: Vec<_> = (0..items.len())
            .step_by(SETTLE_BATCH_MAX)
            .map(|from| from..items.len().min(from + SETTLE_BATCH_MAX))
            .rev()
            .collect();
        let mut refusals = 0;
        while let Some(range) = ranges.pop() {
            let posted = self.ledger.settle(under, items[range.clone()].to_vec());
            match posted.await {
                Ok(given) => {
                    for (index, verdict) in range.zip(given) {
                        self.count(&items[index], verdict, drained);
                        verdicts[index] = Some(verdict);
                    }
                }
                Err(LedgerError::Unavailable(why)) => return Err(SettleError::Unavailable(why)),
                Err(why @ LedgerError::Epoch(_)) => return Err(why.into()),
                Err(why) => {
                    refusals += 1;
                    if range.len() == 1 {
                        self.refused(&items[range.start], drained, &why);
                    } else {
                        let middle = range.start + range.len() / 2;
                        ranges.push(middle..range.end);
                        ranges.push(range.start..middle);
                    }
                    if refusals >= REFUSALS_PER_BATCH_MAX {
                        drained.refused += ranges.iter().map(ExactSizeIterator::len).sum::<usize>();
                        drained.refusal.get_or_insert(why.to_string());
                        break;
                    }
                }
            }
        }
        Ok(verdicts)
    }

    fn count(&self, item: &SettleItem, verdict: Settled, drained: &mut Drained) {
        let (SettleItem::Pay(record) | SettleItem::SetAside(record, _)) = item;
        let mut tries = self.tries.lock();
        if !tries.is_empty() {
            tries.remove(&key(record));
        }
        drained.count(verdict);
    }

    fn refused(&self, item: &SettleItem, drained: &mut Drained, why: &LedgerError) {
        let (SettleItem::Pay(record) | SettleItem::SetAside(record, _)) = item;
        drained.refused += 1;
        drained.refusal.get_or_insert(why.to_string());
        let mut tries = self.tries.lock();
        if tries.len() < TRIES_COUNTED_MAX || tries.contains_key(&key(record)) {
            *tries.entry(key(record)).or_default() += 1;
        }
    }
}

/// A record's name among the refused. Who was shown a share and who has it are two.
type Refused = (EnvelopeId, u32, PersonId);

fn key(record: &OutboxRecord) -> Refused {
    (record.envelope, record.grant.share, record.grabber.clone())
}
