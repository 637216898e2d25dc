//! The last phase of settle: what a batch decided becomes claims, postings, entries and balances.
//!
//! *Shape.* Claims go in by COPY: they are almost all of a batch, and each is the entry that credits its
//! grabber. The rest is a statement a table.
//!
//! *Ordering.* Numbers of postings are given in the order of the envelopes, those of claims in the order
//! of the records: the same batch gives the same order.
//!
//! *Not here.* Decisions: `settle`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::pin;

use deadpool_postgres::Transaction;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::Type;

use crate::domain::id::UnixMs;
use crate::domain::posting::PostingKind;

use super::make_good::Payment;
use super::payees::PayeeAt;
use super::post::{Entry, Journal, Posting, Side};
use super::set_aside;
use super::settle::{Batch, Best, Escrow, Party, Sum};
use super::sql::{self, Fault, POSTING_NUMBERS, broken, int};

/// What an envelope's counts of records that were set aside move by.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub letters: i32,
    pub parked: i32,
}

/// By the envelope's row.
pub(super) type CountsOf = BTreeMap<i64, Counts>;

/// What leaves an escrow: to grabbers, or back to the sender.
struct Movement {
    escrow: usize,
    declined: bool,
    sum: Sum,
}

impl Movement {
    fn key(&self) -> (usize, bool) {
        (self.escrow, self.declined)
    }
}

/// The postings of a batch, by (envelope of the batch, declined).
type PostingOf = BTreeMap<(usize, bool), i64>;

impl Batch<'_> {
    /// Writes what was decided.
    pub async fn post(
        mut self,
        tx: &Transaction<'_>,
        now: UnixMs,
        careful: bool,
    ) -> Result<(), Fault> {
        let counts = set_aside::write(tx, now, &self.asides).await?;
        self.open_accounts(tx).await?;
        let sides = self.sides();
        let posting_rows = sql::numbers(tx, POSTING_NUMBERS, sides.len()).await?;
        let sides: Vec<(Movement, i64)> = sides.into_iter().zip(posting_rows).collect();
        let posting_of = sides.iter().map(|(side, row)| (side.key(), *row)).collect();
        let refunds = sides.iter().filter(|(side, _)| side.declined);
        let entries = sides.len() + refunds.count();
        // In a history, declined money comes back after what was paid in the same batch: the numbers of
        // claims are before those of entries.
        let mut numbers = sql::entry_numbers(tx, self.claims.len() + entries).await?;
        let claim_rows: Vec<i64> = numbers.by_ref().take(self.claims.len()).collect();
        // All is sent at once, and awaited together.
        let posted = futures_util::try_join!(
            self.write_claims_and_payments((tx, now), &posting_of, &claim_rows),
            self.write_escrows(tx, counts),
            self.payees.write(tx, careful),
        );
        match posted {
            Ok(((), (), ())) => self.journal(&sides, numbers)?.write(tx, now).await,
            // All that could be in the way was asked for.
            Err(Fault::Again(why)) if careful && is_claimed(&why) => Err(broken(why)),
            Err(fault) => Err(fault),
        }
    }

    async fn open_accounts(&mut self, tx: &Transaction<'_>) -> Result<(), Fault> {
        let parties = self.claims.iter();
        let mut wanted: Vec<PayeeAt> = parties.map(|claim| claim.grabber).collect();
        wanted.extend(self.parties.iter().flatten().filter_map(|p| p.sender));
        wanted.extend(self.payments.iter().map(Payment::grabber));
        self.payees.open(tx, wanted.into_iter()).await
    }

    /// What leaves each escrow.
    fn sides(&self) -> Vec<Movement> {
        let mut sides = Vec::new();
        for (escrow, from) in self.escrows.iter().enumerate() {
            for (declined, sum) in [(false, from.paid), (true, from.declined)] {
                if sum.count > 0 {
                    sides.push(Movement {
                        escrow,
                        declined,
                        sum,
                    });
                }
            }
        }
        sides
    }

    /// A posting a side: the escrow's debit, and for what was declined the sender's credit. The credits
    /// for shares are the claims.
    fn journal(
        &self,
        sides: &[(Movement, i64)],
        mut entry_rows: impl Iterator<Item = i64>,
    ) -> Result<Journal, Fault> {
        let mut journal = Journal::default();
        for (side, posting_row) in sides {
            let escrow = &self.escrows[side.escrow];
            journal.posting(*posting_row, posting(escrow, side));
            let mut moved = vec![(Side::Escrow(escrow.row), -side.sum.minor)];
            if side.declined {
                let sender = self.sender_row(side.escrow)?;
                moved.push((Side::Account(sender), side.sum.minor));
            }
            for (side, amount_minor) in moved {
                let entry = Entry {
                    posting_row: *posting_row,
                    side,
                    amount_minor,
                };
                let row = entry_rows.next();
                journal.entry(
                    row.ok_or_else(|| broken("there are no more numbers"))?,
                    entry,
                );
            }
        }
        Ok(journal)
    }

    fn sender_row(&self, escrow: usize) -> Result<i64, Fault> {
        let of_it = |party: &&Party| party.escrow == escrow;
        let mut parties = self.parties.iter().flatten().filter(of_it);
        let sender = parties.find_map(|party| party.sender);
        sender
            .and_then(|sender| self.payees.row(sender))
            .ok_or_else(|| broken("a sender has no account"))
    }

    /// All claims at once, unless the reserve pays something between two of them.
    async fn write_claims_and_payments(
        &self,
        (tx, now): (&Transaction<'_>, UnixMs),
        posting_of: &PostingOf,
        claim_rows: &[i64],
    ) -> Result<(), Fault> {
        let mut from = 0;
        let between = |a: &Payment<'_>, b: &Payment<'_>| a.claims_before == b.claims_before;
        for payments in self.payments.chunk_by(between) {
            let claims = from..payments[0].claims_before;
            from = claims.end;
            self.write_claims(tx, posting_of, (claims, claim_rows))
                .await?;
            self.write_payments(tx, now, payments).await?;
        }
        let rest = from..self.claims.len();
        self.write_claims(tx, posting_of, (rest, claim_rows)).await
    }

    async fn write_claims(
        &self,
        tx: &Transaction<'_>,
        posting_of: &PostingOf,
        (which, claim_rows): (Range<usize>, &[i64]),
    ) -> Result<(), Fault> {
        if which.is_empty() {
            return Ok(());
        }
        let copy = tx.prepare_cached(COPY_CLAIMS).await?;
        let sink = tx.copy_in(&copy).await?;
        let mut writer = pin!(BinaryCopyInWriter::new(sink, &CLAIM_TYPES));
        for (claim, claim_row) in self.claims[which.clone()].iter().zip(&claim_rows[which]) {
            let record = claim.record;
            let posting_row = posting_of.get(&(claim.escrow, record.declined));
            let account_row = self.payees.row(claim.grabber);
            let values: sql::Values<'_> = &[
                claim_row,
                &self.escrows[claim.escrow].row,
                &int(record.grant.share)?,
                &posting_row.ok_or_else(|| broken("a claim has no posting"))?,
                &account_row.ok_or_else(|| broken("a claim has no account"))?,
                &record.grant.amount_minor,
                &record.declined,
                &record.grant.at.0,
            ];
            writer.as_mut().write(values).await?;
        }
        writer.finish().await?;
        Ok(())
    }

    async fn write_escrows(&self, tx: &Transaction<'_>, mut counts: CountsOf) -> Result<(), Fault> {
        let mut columns = EscrowColumns::default();
        for escrow in &self.escrows {
            let moved = counts.remove(&escrow.row);
            if moved.is_none() && escrow.paid.count + escrow.declined.count == 0 {
                continue;
            }
            columns.push(
                escrow.row,
                (escrow.paid, escrow.declined),
                escrow.best,
                moved,
            )?;
        }
        // Letters of envelopes that are not of this batch.
        for (row, moved) in counts {
            columns.push(row, Default::default(), None, Some(moved))?;
        }
        columns.write(tx).await
    }
}

/// Whether it was a share's or a grabber's unique key that refused a batch.
fn is_claimed(why: &str) -> bool {
    why.contains("claim_of_")
}

const COPY_CLAIMS: &str = "-- ledger.copy_claims
    COPY claim (row, envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    FROM STDIN (FORMAT binary)";
const CLAIM_TYPES: [Type; 8] = [
    Type::INT8,
    Type::INT8,
    Type::INT4,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::BOOL,
    Type::INT8,
];

fn posting(escrow: &Escrow, side: &Movement) -> Posting {
    let (kind, share_count) = match side.declined {
        false => (PostingKind::Settle, side.sum.count),
        true => (PostingKind::Refund, 0),
    };
    Posting {
        tenant: escrow.tenant.clone(),
        kind,
        currency: escrow.currency,
        envelope_row: Some(escrow.row),
        share_count,
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
    best_shares: Vec<Option<i32>>,
    best_minors: Vec<Option<i64>>,
    letters: Vec<i32>,
    parked: Vec<i32>,
}

impl EscrowColumns {
    fn push(
        &mut self,
        row: i64,
        (paid, declined): (Sum, Sum),
        best: Option<Best>,
        moved: Option<Counts>,
    ) -> Result<(), Fault> {
        let moved = moved.unwrap_or_default();
        self.rows.push(row);
        self.paid_counts.push(int(paid.count)?);
        self.paid.push(paid.minor);
        self.declined_counts.push(int(declined.count)?);
        self.declined.push(declined.minor);
        self.best_shares
            .push(best.map(|best| int(best.share)).transpose()?);
        self.best_minors.push(best.map(|best| best.minor));
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
            &self.best_shares,
            &self.best_minors,
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

const ESCROWS: &str = "-- ledger.escrows_of_a_batch
    UPDATE envelope n SET
        settled_count = n.settled_count + u.paid_count,
        settled_minor = n.settled_minor + u.paid_minor,
        declined_count = n.declined_count + u.declined_count,
        refunded_minor = n.refunded_minor + u.declined_minor,
        best_share = coalesce(u.best_share, n.best_share),
        best_minor = coalesce(u.best_minor, n.best_minor),
        dead_letter_count = n.dead_letter_count + u.letters,
        parked_count = n.parked_count + u.parked
    FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::integer[], $5::bigint[],
            $6::integer[], $7::bigint[], $8::integer[], $9::integer[])
        u (row, paid_count, paid_minor, declined_count, declined_minor, best_share, best_minor,
           letters, parked)
    WHERE n.row = u.row";
