//! The last phase of settle: what a batch decided becomes claims, postings, entries and balances.
//!
//! *Ordering.* Numbers are taken when all is decided, and given in the order of the records, then of
//! the envelopes: the same batch gives the same order.
//!
//! *Not here.* Decisions: `settle`.

use std::collections::{BTreeMap, BTreeSet};

use deadpool_postgres::Transaction;

use crate::domain::id::UnixMs;
use crate::domain::posting::PostingKind;

use super::post::{Entry, Journal, Posting, Side};
use super::set_aside;
use super::settle::{Batch, BestClaim, Escrow, Sum};
use super::sql::{self, ENTRY_NUMBERS, Fault, POSTING_NUMBERS, broken, int};

/// What an envelope's counts of records that were set aside move by.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub letters: i32,
    pub parked: i32,
}

/// By the envelope's row.
pub(super) type CountsOf = BTreeMap<i64, Counts>;

impl Batch<'_> {
    /// Writes what was decided.
    pub async fn post(mut self, tx: &Transaction<'_>, now: UnixMs) -> Result<(), Fault> {
        let counts = set_aside::write(tx, now, &self.asides).await?;
        let names: BTreeSet<_> = self.claims.iter().map(|c| c.account.clone()).collect();
        self.accounts.open(tx, &names).await?;
        let sums = || {
            let both = |escrow: &Escrow| [escrow.paid, escrow.declined];
            self.escrows
                .iter()
                .flat_map(both)
                .filter(|sum| sum.count > 0)
        };
        let postings = sums().count();
        let mut posting_rows = sql::numbers(tx, POSTING_NUMBERS, postings).await?;
        let entries = self.claims.len() + postings;
        let entry_rows = sql::numbers(tx, ENTRY_NUMBERS, entries).await?;
        let entry_rows: Vec<i64> = entry_rows.collect();
        let (claim_rows, escrow_rows) =
            entry_rows.split_at(self.claims.len().min(entry_rows.len()));
        let mut escrow_rows = escrow_rows.iter().copied();

        let mut journal = Journal::default();
        let mut posting_of = BTreeMap::new();
        for (at, escrow) in self.escrows.iter().enumerate() {
            let sides = [
                (PostingKind::Settle, escrow.paid, false),
                (PostingKind::Refund, escrow.declined, true),
            ];
            for (kind, sum, declined) in sides {
                if sum.count == 0 {
                    continue;
                }
                let none = || broken("there are no more numbers");
                let posting_row = posting_rows.next().ok_or_else(none)?;
                posting_of.insert((at, declined), posting_row);
                journal.posting(posting_row, posting(escrow, kind, sum));
                let debit = Entry {
                    posting_row,
                    side: Side::Escrow(escrow.row),
                    amount_minor: -sum.minor,
                    share: None,
                };
                journal.entry(escrow_rows.next().ok_or_else(none)?, debit);
            }
        }
        for (claim, row) in self.claims.iter().zip(claim_rows) {
            let record = claim.record;
            let posting_row = posting_of.get(&(claim.escrow, record.declined)).copied();
            let credit = Entry {
                posting_row: posting_row.ok_or_else(|| broken("a claim has no posting"))?,
                side: Side::Account(
                    self.accounts
                        .add(&claim.account, record.grant.amount_minor)?,
                ),
                amount_minor: record.grant.amount_minor,
                share: (!record.declined).then_some(record.grant.share),
            };
            journal.entry(*row, credit);
        }
        // Sent one after the other, awaited together.
        futures_util::try_join!(
            self.write_claims(tx, claim_rows),
            journal.write(tx, now),
            self.accounts.write(tx),
            self.write_escrows(tx, claim_rows, counts),
        )?;
        Ok(())
    }

    async fn write_claims(&self, tx: &Transaction<'_>, rows: &[i64]) -> Result<(), Fault> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut shares = Vec::with_capacity(rows.len());
        for claim in &self.claims {
            shares.push(int(claim.record.grant.share)?);
        }
        let all = || self.claims.iter();
        let envelopes: Vec<i64> = all().map(|c| self.escrows[c.escrow].row).collect();
        let grabbers: Vec<&str> = all().map(|c| c.record.grabber.as_str()).collect();
        let amounts: Vec<i64> = all().map(|c| c.record.grant.amount_minor).collect();
        let declined: Vec<bool> = all().map(|c| c.record.declined).collect();
        let granted: Vec<i64> = all().map(|c| c.record.grant.at.0).collect();
        let values: sql::Values<'_> = &[
            &rows, &envelopes, &shares, &grabbers, &amounts, &declined, &granted,
        ];
        sql::run(tx, CLAIMS, values).await?;
        Ok(())
    }

    async fn write_escrows(
        &self,
        tx: &Transaction<'_>,
        claim_rows: &[i64],
        mut counts: CountsOf,
    ) -> Result<(), Fault> {
        let mut columns = EscrowColumns::default();
        for escrow in &self.escrows {
            let moved = counts.remove(&escrow.row);
            if moved.is_none() && escrow.paid.count + escrow.declined.count == 0 {
                continue;
            }
            let best = match escrow.best.map(|best| best.claim) {
                Some(BestClaim::Stands(row)) => Some(row),
                Some(BestClaim::Made(at)) => claim_rows.get(at).copied(),
                None => None,
            };
            columns.push(escrow.row, (escrow.paid, escrow.declined), best, moved)?;
        }
        // Letters of envelopes that are not of this batch.
        for (row, moved) in counts {
            columns.push(row, Default::default(), None, Some(moved))?;
        }
        columns.write(tx).await
    }
}

fn posting(escrow: &Escrow, kind: PostingKind, sum: Sum) -> Posting {
    Posting {
        tenant: escrow.tenant.clone(),
        kind,
        currency: escrow.currency,
        envelope_row: Some(escrow.row),
        share_count: match kind {
            PostingKind::Settle => sum.count,
            _ => 0,
        },
        reference: String::new(),
    }
}

/// What envelopes move by, as the arrays that a statement takes.
#[derive(Default)]
struct EscrowColumns {
    rows: Vec<i64>,
    paid_counts: Vec<i32>,
    paid: Vec<i64>,
    declined_counts: Vec<i32>,
    declined: Vec<i64>,
    bests: Vec<Option<i64>>,
    letters: Vec<i32>,
    parked: Vec<i32>,
}

impl EscrowColumns {
    fn push(
        &mut self,
        row: i64,
        (paid, declined): (Sum, Sum),
        best: Option<i64>,
        moved: Option<Counts>,
    ) -> Result<(), Fault> {
        let moved = moved.unwrap_or_default();
        self.rows.push(row);
        self.paid_counts.push(int(paid.count)?);
        self.paid.push(paid.minor);
        self.declined_counts.push(int(declined.count)?);
        self.declined.push(declined.minor);
        self.bests.push(best);
        self.letters.push(moved.letters);
        self.parked.push(moved.parked);
        Ok(())
    }

    async fn write(&self, tx: &Transaction<'_>) -> Result<(), Fault> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let values: sql::Values<'_> = &[
            &self.rows,
            &self.paid_counts,
            &self.paid,
            &self.declined_counts,
            &self.declined,
            &self.bests,
            &self.letters,
            &self.parked,
        ];
        sql::run(tx, ESCROWS, values).await?;
        Ok(())
    }
}

/// Moves only the counts of records that were set aside.
pub(super) async fn write_counts(tx: &Transaction<'_>, counts: CountsOf) -> Result<(), Fault> {
    let mut columns = EscrowColumns::default();
    for (row, moved) in counts {
        columns.push(row, Default::default(), None, Some(moved))?;
    }
    columns.write(tx).await
}

const CLAIMS: &str = "-- ledger.claims_of_a_batch
    INSERT INTO claim (row, envelope_row, share, grabber, amount_minor, declined, granted_at)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::text[], $5::bigint[],
        $6::boolean[], $7::bigint[])";

const ESCROWS: &str = "-- ledger.escrows_of_a_batch
    UPDATE envelope n SET
        settled_count = n.settled_count + u.paid_count,
        settled_minor = n.settled_minor + u.paid_minor,
        declined_count = n.declined_count + u.declined_count,
        refunded_minor = n.refunded_minor + u.declined_minor,
        best_claim = coalesce(u.best, n.best_claim),
        dead_letter_count = n.dead_letter_count + u.letters,
        parked_count = n.parked_count + u.parked
    FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::integer[], $5::bigint[],
            $6::bigint[], $7::integer[], $8::integer[])
        u (row, paid_count, paid_minor, declined_count, declined_minor, best, letters, parked)
    WHERE n.row = u.row";
