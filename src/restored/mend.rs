//! Brings books and hot store together again, as far as the books know; what they don't know leaves the
//! hot store.
//!
//! *Ordering.* An entry of an outbox is deleted after the books gave a verdict on the records of envelopes
//! that they know; those of strangers were told to the operator. A stranger's debts leave before the
//! envelope, which has its grants as well; between the two the rest of the outbox is settled.
//!
//! *Bounds.* [`MENDS_IN_FLIGHT_MAX`] envelopes at once; pages of the doors. To look for what is missing
//! reads every envelope of the books, the closed ones too, [`PAGE_ROWS_MAX`] at a time: minutes for millions.
//!
//! *If it crashes here.* What is posted is a duplicate the next time; a stranger that is still there is told
//! again.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};

use super::gather::Found;
use super::report::{Left, Mended, Stranger};
use super::{Order, RestoredError};
use crate::domain::envelope::{BookState, CloseReason, HotState, Terms};
use crate::domain::grab::OutboxEntry;
use crate::domain::id::{EnvelopeId, Partition};
use crate::hot::{CloseReply, HotStore, Mark, OUTBOX_RECORDS_PER_CALL_MAX, VIEWS_PER_CALL_MAX};
use crate::ledger::{
    AuditPage, EnvelopeRow, Ledger, LedgerError, PAGE_ROWS_MAX, SETTLE_TRIES_MAX, Under,
};
use crate::publish::{Amounts, Publisher};
use crate::settle::{Drain, Drained, post_missing};

/// Envelopes that are mended at once: they share round trips and the ledger's transactions.
const MENDS_IN_FLIGHT_MAX: usize = 16;
/// Reasons that one error names: the others most likely are the same.
const WHYS_TOLD_MAX: usize = 10;

/// Open envelopes of the books that the hot store has forgotten.
#[derive(Default)]
pub(super) struct Missing {
    /// All of them: frozen ones are told again, in case the list that named them is lost.
    pub ids: Vec<EnvelopeId>,
    /// Those that are not frozen yet.
    pub moving: Vec<EnvelopeId>,
}

/// What can't leave the hot store, which keeps nothing else from leaving it.
#[derive(Default)]
struct Stuck {
    /// Strangers of which an entry stays.
    owing: BTreeSet<EnvelopeId>,
    /// Why.
    whys: Vec<String>,
}

impl Stuck {
    /// The first few reasons, and how many there are.
    fn why(&self) -> Option<String> {
        let count = self.whys.len();
        let told = &self.whys[..count.min(WHYS_TOLD_MAX)];
        (count > 0).then(|| format!("{count} can't: {}", told.join("; ")))
    }
}

/// Between the two stores.
pub(super) struct Mender {
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    publisher: Publisher,
    drain: Drain,
    order: Order,
}

impl Mender {
    pub(super) fn new(hot: Arc<dyn HotStore>, ledger: Arc<dyn Ledger>, order: Order) -> Self {
        let amounts = Arc::new(Amounts::new(Arc::clone(&ledger)));
        let (to_publish, to_drain) = (Arc::clone(&amounts), amounts);
        Self {
            publisher: Publisher::new(Arc::clone(&hot), Arc::clone(&ledger), to_publish),
            drain: Drain::new(Arc::clone(&hot), Arc::clone(&ledger), to_drain),
            hot,
            ledger,
            order,
        }
    }

    fn under_of(&self, partition: Partition) -> Under {
        let epoch = self.hot.epoch(partition);
        Under { partition, epoch }
    }

    /// Brings each of these envelopes into the epoch, posts what was granted and begins what has ended.
    /// One that can't be mended is left as it is.
    pub(super) async fn mend_all(&self, ids: &BTreeSet<EnvelopeId>) -> (Vec<Mended>, Vec<Left>) {
        let (mut mended, mut left) = (Vec::new(), Vec::new());
        let mut steps = stream::iter(ids)
            .map(|id| async { (*id, self.mend(*id).await) }.boxed())
            .buffered(MENDS_IN_FLIGHT_MAX);
        while let Some((id, done)) = steps.next().await {
            match done {
                Ok((done, unpaid)) => {
                    let is_mended = unpaid.is_none() || done.posted > 0 || done.ends.is_some();
                    left.extend(unpaid.map(|why| Left { id, why }));
                    mended.extend(is_mended.then_some(done));
                }
                Err(why) => left.push(Left { id, why }),
            }
        }
        (mended, left)
    }

    /// Answers what was mended, and what of it the books did not pay.
    async fn mend(&self, id: EnvelopeId) -> Result<(Mended, Option<String>), String> {
        let epochs = self.hot.epochs();
        let state = self.publisher.publish(id).await.map_err(told)?;
        let ends = match state {
            HotState::Over(reason) => {
                let begun = self.ledger.begin_close(id, reason).await;
                Some(begun.map(|_| reason).map_err(told)?)
            }
            HotState::Funding | HotState::Live => None,
        };
        let (hot, ledger) = (&*self.hot, &*self.ledger);
        let posted = post_missing(hot, ledger, &self.drain, (&epochs, id));
        let posted = posted.await.map_err(told)?;
        let mended = Mended {
            id,
            posted: posted.paid,
            ends,
        };
        Ok((mended, unpaid(&posted)))
    }

    /// Which open envelopes of the books the hot store does not hold. One that went on forgets only what is
    /// closed, so they were closed after the backup, and what they paid until then nobody knows any more.
    /// To publish them again would give shares away a second time. One whose shares are all claimed has
    /// nothing to give, and closes by itself.
    pub(super) async fn missing(&self, found: &Found) -> Result<Missing, RestoredError> {
        let strangers: BTreeSet<_> = found.strangers.iter().map(|s| s.id).collect();
        let mut missing = Missing::default();
        let mut after = i64::MIN;
        loop {
            let page = AuditPage::After(after, PAGE_ROWS_MAX);
            let page = self.ledger.audit_envelopes(None, page).await?;
            let Some(last) = page.last() else {
                return Ok(missing);
            };
            after = last.row;
            let mut open = Vec::with_capacity(page.len());
            for audited in page {
                // An envelope that nobody can read might be one of those that are asked for.
                let row = audited.envelope.map_err(LedgerError::Broken)?;
                open.extend(Some(row).filter(may_grant));
            }
            for some in open.chunks(VIEWS_PER_CALL_MAX) {
                let views = self.hot.view(some.iter().map(|row| row.id).collect());
                for (row, view) in some.iter().zip(views.await?) {
                    let id = row.id;
                    if view.is_some() || strangers.contains(&id) || found.behind.contains(&id) {
                        continue;
                    }
                    missing.ids.push(id);
                    if !row.frozen {
                        missing.moving.push(id);
                    }
                }
            }
        }
    }

    /// Lets envelopes stand still, each on record.
    pub(super) async fn freeze(&self, ids: Vec<EnvelopeId>) -> Result<(), RestoredError> {
        for id in ids {
            let act = self.order.act("freeze", Some(id), "done".to_owned());
            self.ledger.freeze(id, act).await?;
        }
        Ok(())
    }

    /// Takes strangers out of the hot store, each on record. Answers how many.
    pub(super) async fn take_out(&self, strangers: &[Stranger]) -> Result<usize, RestoredError> {
        for stranger in strangers {
            let act = self.order.act(
                "give_up",
                Some(stranger.id),
                format!("not in the restored books: {}", stranger.sum()),
            );
            self.ledger.record_act(act).await?;
        }
        if strangers.is_empty() {
            return Ok(0);
        }
        let ids: BTreeSet<_> = strangers.iter().map(|stranger| stranger.id).collect();
        let mut stuck = Stuck::default();
        for partition in self.hot.partitions().all() {
            if self.forget_debts(partition, &ids, &mut stuck).await? {
                self.drain_rest(partition).await?;
            }
        }
        let mut taken = 0;
        for stranger in strangers {
            let Some(terms) = &stranger.terms else {
                continue;
            };
            if stuck.owing.contains(&stranger.id) {
                continue;
            }
            match self.remove(stranger.id, Arc::clone(terms)).await {
                Ok(()) => taken += 1,
                Err(RestoredError::Broken(why)) => stuck.whys.push(why),
                Err(away) => return Err(away),
            }
        }
        match stuck.why() {
            None => Ok(taken),
            Some(why) => Err(RestoredError::Broken(format!(
                "unknown envelopes taken out of the hot store: {taken}, but not all: {why}"
            ))),
        }
    }

    /// Deletes the entries of an outbox that owe something of strangers; what else they owe is posted.
    /// Answers whether none of them stays.
    async fn forget_debts(
        &self,
        partition: Partition,
        strangers: &BTreeSet<EnvelopeId>,
        stuck: &mut Stuck,
    ) -> Result<bool, RestoredError> {
        let (mut after, before) = (None, stuck.whys.len());
        loop {
            let limit = OUTBOX_RECORDS_PER_CALL_MAX;
            let entries = self.hot.outbox(partition, after, limit).await?;
            let Some(last) = entries.last() else {
                return Ok(stuck.whys.len() == before);
            };
            after = Some(last.id);
            for entry in entries {
                let owed = entry.records.iter().map(|record| record.envelope);
                let owed: Vec<_> = owed.filter(|id| strangers.contains(id)).collect();
                if owed.is_empty() {
                    continue;
                }
                match self.forget_entry(partition, entry, strangers).await {
                    Ok(()) => {}
                    Err(RestoredError::Broken(why)) => {
                        stuck.whys.push(why);
                        stuck.owing.extend(owed);
                    }
                    Err(away) => return Err(away),
                }
            }
        }
    }

    /// Settles what else an outbox owes: the embedded store keeps an envelope as long as an entry stays that
    /// is older than its last grant.
    async fn drain_rest(&self, partition: Partition) -> Result<(), RestoredError> {
        let mut refusals = 0;
        while refusals <= SETTLE_TRIES_MAX {
            let drained = self.drain.once(partition).await?;
            if drained.records == 0 {
                break;
            }
            refusals = match drained.refused {
                0 => 0,
                _ => refusals + 1,
            };
        }
        Ok(())
    }

    async fn forget_entry(
        &self,
        partition: Partition,
        entry: OutboxEntry,
        strangers: &BTreeSet<EnvelopeId>,
    ) -> Result<(), RestoredError> {
        let under = self.under_of(partition);
        let (id, nonce) = (entry.id, entry.nonce);
        let records = entry.records.into_iter();
        let known: Vec<_> = records
            .filter(|record| !strangers.contains(&record.envelope))
            .collect();
        // What the books refuse by itself is set aside in the end, as if it had been drained.
        let mut posted = self.drain.post_records(under, &known).await?;
        for _ in 0..SETTLE_TRIES_MAX {
            if posted.refused == 0 {
                break;
            }
            posted = self.drain.post_records(under, &known).await?;
        }
        if posted.refused > 0 {
            let why = posted.refusal.unwrap_or_default();
            return Err(RestoredError::Broken(format!(
                "an entry of the outbox of partition {} stays: {why}",
                partition.index()
            )));
        }
        self.hot
            .settled(under.epoch, partition, vec![(id, nonce)])
            .await?;
        Ok(())
    }

    async fn remove(&self, id: EnvelopeId, terms: Arc<Terms>) -> Result<(), RestoredError> {
        let under = self.hot.epochs();
        self.hot.unfreeze(&under, id, Mark::Broken).await?;
        let reason = CloseReason::Recalled;
        let reply = self.hot.close(&under, id, terms, reason).await?;
        if matches!(reply, CloseReply::Over { .. }) {
            self.hot.remove(&under, vec![id]).await?;
        }
        match self.hot.view(vec![id]).await?.pop().flatten() {
            None => Ok(()),
            Some(_) => Err(RestoredError::Broken(format!(
                "the envelope {id} can't be taken out of the hot store"
            ))),
        }
    }
}

/// Whether a share of it may be given to somebody.
fn may_grant(row: &EnvelopeRow) -> bool {
    let claimed = row.settled_count + row.declined_count;
    !matches!(row.state, BookState::Closed(_)) && claimed < row.terms.share_count
}

/// PURE: what of the records of an envelope was not paid, though somebody was told of it.
fn unpaid(posted: &Drained) -> Option<String> {
    let why = posted.refusal.as_deref().unwrap_or("it does not say why");
    let counts = [
        (posted.refused, format!("refused by the books ({why})")),
        (posted.dead_letters, "dead letters".to_owned()),
        (posted.superseded, "paid to another claim".to_owned()),
        (posted.parked, "parked, since it is frozen".to_owned()),
    ];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let words: Vec<_> = counts.map(|(n, what)| format!("{n} {what}")).collect();
    (!words.is_empty()).then(|| format!("grants that were not paid: {}", words.join(", ")))
}

fn told(error: impl ToString) -> String {
    error.to_string()
}
