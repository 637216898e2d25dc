//! Posts what was parked of envelopes that are no longer frozen.
//!
//! *Shape*
//!
//! | step | door |
//! |---|---|
//! | 1. envelopes of which something is parked | `ledger.parked` |
//! | 2. the records of one, in the order in which they were parked | `ledger.parked_of` |
//! | 3. post them, a batch a call | `ledger.settle_parked` |
//! | 4. set aside what the books refuse again and again | `ledger.settle_parked`, with a reason |
//!
//! *Bounds.* [`PARKED_IN_FLIGHT_MAX`] envelopes at once. A tick begins no further envelope after
//! [`PARKED_CALLS_MAX`] calls, and one envelope has [`PARKED_CALLS_OF_ONE_MAX`] of them. The walk goes on
//! behind the last envelope and begins again at the end, so one whose records are refused takes nobody
//! else's turn.
//!
//! *Ordering.* Of two records of an envelope that contradict each other the one that was parked first is paid,
//! unless the books refuse it.
//! There is no order between envelopes.
//!
//! *Poison.* As in `drain`: a batch that the books refuse is halved until the refused record stands alone, and
//! after `SETTLE_TRIES_MAX` refusals it is a dead letter. No envelope waits for another one's.
//!
//! *If it crashes here.* A record is no longer parked from the transaction on that settles it. Tries are
//! counted anew.
//!
//! *Not here.* Who parks a record: the ledger, when an outbox brings it.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;

use super::drain::Drained;
use super::lease::Lease;
use super::sweep::Swept;
use crate::domain::id::EnvelopeId;
use crate::ledger::{
    Ledger, LedgerError, Parked, REFUSED_BY_THE_BOOKS, SETTLE_BATCH_MAX, SETTLE_TRIES_MAX, Settled,
};

/// Envelopes whose parked records are posted at once: they share the ledger's group commits.
pub const PARKED_IN_FLIGHT_MAX: usize = 8;
/// Calls after which a tick begins no further envelope, and so envelopes that it looks at: in full batches they
/// take seconds, and a tick has other work.
pub const PARKED_CALLS_MAX: usize = 64;
/// Calls that post records of one envelope in a tick. Finding one refused record among 5,000 takes 27 at the
/// most.
pub const PARKED_CALLS_OF_ONE_MAX: usize = 32;
/// Refused records whose tries are counted at once. The others are tried as before.
const TRIES_COUNTED_MAX: usize = 1_000;

/// Posts what was parked. Two that do are harmless.
pub(super) struct Unpark {
    ledger: Arc<dyn Ledger>,
    lease: Arc<Lease>,
    /// The envelope's row after which the next tick begins.
    after: Mutex<i64>,
    /// How often the books refused a parked record by itself, by its row.
    tries: Mutex<BTreeMap<i64, u32>>,
}

/// What became of one envelope's records.
struct Posted {
    envelope_row: i64,
    drained: Drained,
    /// Why the ledger did not take them to their end.
    failure: Option<LedgerError>,
}

impl Unpark {
    pub fn new(ledger: Arc<dyn Ledger>, lease: Arc<Lease>) -> Self {
        Self {
            ledger,
            lease,
            after: Mutex::new(i64::MIN),
            tries: Mutex::default(),
        }
    }

    /// Posts what is parked, as far as the bounds allow. Answers whether more is known to wait. A failure is
    /// noted: what is parked must not keep anybody's refund.
    pub async fn once(&self, swept: &mut Swept) -> bool {
        if !self.lease.is_first() {
            return false;
        }
        let after = *self.after.lock();
        let page = match self.ledger.parked(after, PARKED_CALLS_MAX).await {
            Ok(page) => page,
            Err(error) => {
                swept.failed += 1;
                swept.failure.get_or_insert(error.to_string());
                return false;
            }
        };
        let found = page.len();
        if found == 0 && after == i64::MIN {
            // Whatever was refused is parked no more.
            self.tries.lock().clear();
        }
        let calls = AtomicUsize::new(0);
        let mut posts = stream::iter(page)
            .take_while(|_| ready(calls.load(Ordering::Relaxed) < PARKED_CALLS_MAX))
            .map(|envelope| self.envelope(envelope, &calls).boxed())
            .buffered(PARKED_IN_FLIGHT_MAX);
        let (mut looked_at, mut more) = (0, false);
        while let Some(posted) = posts.next().await {
            looked_at += 1;
            *self.after.lock() = posted.envelope_row;
            more |= posted.drained.more;
            note(posted, swept);
        }
        if looked_at < found || found == PARKED_CALLS_MAX {
            return true;
        }
        *self.after.lock() = i64::MIN;
        more
    }

    /// One envelope's, and what operators are told of it.
    async fn envelope(&self, (envelope_row, id): (i64, EnvelopeId), calls: &AtomicUsize) -> Posted {
        let mut drained = Drained::default();
        let failure = self.post(envelope_row, calls, &mut drained).await.err();
        if failure.as_ref().is_some_and(|why| !is_refusal(why)) {
            // The ledger is away: whoever comes next would wait for it as long.
            calls.store(PARKED_CALLS_MAX, Ordering::Relaxed);
        }
        drained.tell();
        if drained.dead_letters > 0 {
            let records = drained.dead_letters;
            tracing::error!(envelope = %id, records, "parked grabs can't be settled and were set aside");
        }
        if drained.superseded > 0 {
            let records = drained.superseded;
            tracing::error!(envelope = %id, records, "parked grabs were paid before to somebody else");
        }
        Posted {
            envelope_row,
            drained,
            failure,
        }
    }

    async fn post(
        &self,
        envelope_row: i64,
        calls: &AtomicUsize,
        drained: &mut Drained,
    ) -> Result<(), LedgerError> {
        let (mut after, mut own_calls) = (i64::MIN, 0);
        loop {
            let page = self.ledger.parked_of(envelope_row, after, SETTLE_BATCH_MAX);
            let rows = page.await?;
            // The last range is tried first, so that they go in order.
            let all = 0..rows.len();
            let mut ranges = vec![all];
            while let Some(range) = ranges.pop() {
                let Some(parked) = Parked::of(envelope_row, &rows[range.clone()]) else {
                    continue;
                };
                if own_calls == PARKED_CALLS_OF_ONE_MAX {
                    drained.more = drained.records > 0;
                    return Ok(());
                }
                own_calls += 1;
                calls.fetch_add(1, Ordering::Relaxed);
                match self.ledger.settle_parked(parked, None).await {
                    Ok(verdicts) => self.count(&rows[range], &verdicts, drained),
                    Err(why) if !is_refusal(&why) => return Err(why),
                    Err(why) if range.len() == 1 => self.refused(parked, why, drained).await?,
                    Err(_) => {
                        let middle = range.start + range.len() / 2;
                        ranges.push(middle..range.end);
                        ranges.push(range.start..middle);
                    }
                }
            }
            match rows.last() {
                Some(last) if rows.len() == SETTLE_BATCH_MAX => after = *last,
                _ => return Ok(()),
            }
        }
    }

    /// Counts a refusal of one record, and sets it aside after so many.
    async fn refused(
        &self,
        parked: Parked,
        mut why: LedgerError,
        drained: &mut Drained,
    ) -> Result<(), LedgerError> {
        if self.tried(parked.first) >= SETTLE_TRIES_MAX {
            let aside = self
                .ledger
                .settle_parked(parked, Some(REFUSED_BY_THE_BOOKS));
            match aside.await {
                Ok(verdicts) => {
                    self.count(&[parked.first], &verdicts, drained);
                    return Ok(());
                }
                Err(again) if is_refusal(&again) => why = again,
                Err(away) => return Err(away),
            }
        }
        drained.refused += 1;
        drained.refusal.get_or_insert(why.to_string());
        Ok(())
    }

    /// How often the books have refused the record in a row, with this time.
    fn tried(&self, row: i64) -> u32 {
        let mut tries = self.tries.lock();
        if tries.len() >= TRIES_COUNTED_MAX && !tries.contains_key(&row) {
            return 1;
        }
        let count = tries.entry(row).or_default();
        *count += 1;
        *count
    }

    fn count(&self, rows: &[i64], verdicts: &[Settled], drained: &mut Drained) {
        drained.records += verdicts.len();
        for verdict in verdicts {
            drained.count(*verdict);
        }
        let mut tries = self.tries.lock();
        if !tries.is_empty() {
            for row in rows {
                tries.remove(row);
            }
        }
    }
}

/// Whether it is about these records, so that others may pass.
fn is_refusal(error: &LedgerError) -> bool {
    matches!(error, LedgerError::Broken(_))
}

fn note(posted: Posted, swept: &mut Swept) {
    let Posted {
        drained, failure, ..
    } = posted;
    swept.unparked += drained.paid + drained.made_good;
    swept.set_aside += drained.dead_letters;
    swept.failed += drained.refused + usize::from(failure.is_some());
    let why = drained.refusal.or(failure.map(|why| why.to_string()));
    swept.failure = swept.failure.take().or(why);
}
