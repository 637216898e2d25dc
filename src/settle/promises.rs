//! Posts what this process acknowledged and the hot store gave to somebody else after it had lost it: the
//! books make it good.
//!
//! *Shape*
//!
//! | step | door |
//! |---|---|
//! | 1. envelopes of which something acknowledged was lost | `hot.lost_promises` |
//! | 2. their states, then who has the shares in the books | `ledger.envelopes`, `ledger.claims` |
//! | 3. somebody else: post it like any record | `Drain::post_each` |
//! | 4. answered: forget it | `hot.answered` |
//!
//! A share that nobody has in the books yet waits: a repair may still give it back to who was shown it. Where
//! the envelope is closed it went back to its sender; that is told in the log and counted, and forgotten.
//!
//! *Bounds.* [`PROMISED_ENVELOPES_MAX`] envelopes a step, and the next one goes on behind them; each is asked
//! by pages for the claims between its first lost share and its last. One that fails keeps no other one waiting.
//!
//! *Ordering.* The epoch is looked up first: what is posted is refused where it has ended.
//!
//! *If it crashes here.* What it posted stands, and a repetition is a duplicate. What the process remembered
//! goes with it, as the level `memory` says.
//!
//! *Not here.* How much is made good: `ledger::make_good`.

use std::collections::BTreeMap;

use super::reconcile::by_partition;
use super::{SettleError, Settlement};
use crate::domain::ack::AckLevel;
use crate::domain::envelope::BookState;
use crate::domain::grab::{HeldShare, OutboxRecord};
use crate::domain::id::{EnvelopeId, PersonId};
use crate::ledger::{EnvelopeRow, Ledger, PAGE_ROWS_MAX, SETTLE_BATCH_MAX, Under};
use crate::telemetry::metrics;

/// Envelopes of one step: a loss of Redis is about those that were grabbed in its last seconds.
pub const PROMISED_ENVELOPES_MAX: usize = 1_000;

impl Settlement {
    /// Looks after lost promises. Answers how many were posted.
    ///
    /// # Errors
    /// A store is out of reach: what was posted stands, and repeating goes on.
    pub async fn keep_promises_once(&self) -> Result<usize, SettleError> {
        // At level ledger nobody is told before the books have it, so nothing is owed that they don't have.
        // While no level is in force, it may be that one.
        if matches!(self.hot.ack_level(), None | Some(AckLevel::Ledger)) {
            return Ok(0);
        }
        let after = self.promised.lock().take();
        let lost = self.hot.lost_promises(after, PROMISED_ENVELOPES_MAX);
        let Some((last, _)) = lost.last() else {
            return Ok(0);
        };
        let next = Some(*last).filter(|_| lost.len() >= PROMISED_ENVELOPES_MAX);
        let mut posted = 0;
        for (id, held) in lost {
            match self.keep_promises_of(id, held).await {
                Ok(records) => posted += records,
                Err(SettleError::Stopped(why)) => return Err(SettleError::Stopped(why)),
                // So would all the others be: the next step goes on behind it.
                Err(away @ SettleError::Unavailable(_)) => {
                    *self.promised.lock() = Some(id);
                    return Err(away);
                }
                // The others must be looked after, and this one is met again.
                Err(error) => {
                    tracing::warn!(envelope = %id, %error, "lost grabs can't be looked after yet");
                }
            }
        }
        *self.promised.lock() = next;
        Ok(posted)
    }

    async fn keep_promises_of(
        &self,
        id: EnvelopeId,
        lost: Vec<HeldShare>,
    ) -> Result<usize, SettleError> {
        let epochs = self.hot.epochs();
        // The state before the claims: what is closed gets no more of them.
        let row = self.ledger.envelopes(vec![id]).await?.pop().flatten();
        let closed = |row: &EnvelopeRow| matches!(row.state, BookState::Closed(_));
        let closed = row.as_ref().is_some_and(closed);
        let holders = holders(&*self.ledger, id, &lost).await?;
        let (mut records, mut answered, mut gone) = (Vec::new(), Vec::new(), 0);
        for held in lost {
            match holders.get(&held.grant.share) {
                Some(holder) if *holder != held.grabber => records.push(record(id, held)),
                Some(_) => answered.push(held),
                None if closed => {
                    gone += 1;
                    answered.push(held);
                }
                None => {}
            }
        }
        if gone > 0 {
            tracing::warn!(envelope = %id, records = gone,
                "acknowledged grabs were lost, and their shares went back to the sender");
            metrics::acked_dropped(gone);
        }
        self.hot.answered(id, &answered);
        let count = records.len();
        let terms = row.as_ref().map(|row| &*row.terms);
        for (under, of_it) in by_partition(records, terms, (&epochs, self.hot.partitions())) {
            for some in of_it.chunks(SETTLE_BATCH_MAX) {
                self.post_promises(id, under, some).await?;
            }
        }
        Ok(count)
    }

    /// Posts records of one envelope.
    async fn post_promises(
        &self,
        id: EnvelopeId,
        under: Under,
        records: &[OutboxRecord],
    ) -> Result<(), SettleError> {
        let verdicts = self.drain.post_each(under, records).await?;
        let decided = records.iter().zip(verdicts);
        let decided = decided.filter(|(_, verdict)| verdict.is_some());
        let held = decided.map(|(record, _)| HeldShare {
            grabber: record.grabber.clone(),
            grant: record.grant,
            declined: record.declined,
        });
        self.hot.answered(id, &held.collect::<Vec<_>>());
        Ok(())
    }
}

fn record(envelope: EnvelopeId, held: HeldShare) -> OutboxRecord {
    OutboxRecord {
        envelope,
        grabber: held.grabber,
        grant: held.grant,
        declined: held.declined,
    }
}

/// Who has these shares in the books. A loss is of the last grabs, whose shares lie side by side: so what lies
/// between the first and the last one of them is read.
async fn holders(
    ledger: &dyn Ledger,
    id: EnvelopeId,
    lost: &[HeldShare],
) -> Result<BTreeMap<u32, PersonId>, SettleError> {
    let shares = || lost.iter().map(|held| held.grant.share);
    let mut holders = BTreeMap::new();
    let (Some(mut from), Some(last)) = (shares().min(), shares().max()) else {
        return Ok(holders);
    };
    // Each page moves `from`, which ends at the last of them.
    while from <= last {
        let page = ledger.claims(id, from, PAGE_ROWS_MAX).await?;
        let full = page.len() >= PAGE_ROWS_MAX;
        let next = page.last().map(|last| last.grant.share.saturating_add(1));
        holders.extend(page.into_iter().map(|c| (c.grant.share, c.grabber)));
        match next {
            Some(next) if full => from = next,
            _ => break,
        }
    }
    Ok(holders)
}
