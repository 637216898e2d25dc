//! The last phase of settle: what a batch decided becomes postings, entries and balances.
//!
//! *Ordering.* Accounts in the order of their first credit, postings in the order of the
//! envelopes, then one entry a claim, then what the reserve paid: the same batch gives the same rows.
//!
//! *Not here.* Decisions: `settle`.

use crate::domain::posting::PostingKind;
use crate::ledger::LedgerError;

use super::post::{self, AccountName, Posting};
use super::rows::Sql;
use super::settle::{Batch, Sum};

/// The postings of one envelope.
#[derive(Clone, Copy, Default)]
struct Made {
    settle: Option<i64>,
    refund: Option<i64>,
}

impl Batch<'_> {
    /// Writes what was decided.
    pub fn post(self) -> Result<(), LedgerError> {
        let account_rows = self.post_balances()?;
        let made = self.post_postings()?;
        let mut entry = self
            .db
            .prepare_cached(
                "-- ledger.claim_entry
                 INSERT INTO entry (row, posting_row, account_row, amount_minor, share)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )
            .sql()?;
        for claim in &self.claims {
            let made = made[claim.escrow];
            let posting_row = match claim.share {
                Some(_) => made.settle,
                None => made.refund,
            };
            entry
                .execute((
                    claim.row,
                    posting_row,
                    account_rows[claim.account],
                    claim.amount_minor,
                    claim.share,
                ))
                .sql()?;
        }
        drop(entry);
        self.post_escrows(&made)?;
        self.post_payments(&account_rows)
    }

    /// Each account once, whatever it won in this batch. Answers their rows; an account that won
    /// nothing is not opened.
    fn post_balances(&self) -> Result<Vec<Option<i64>>, LedgerError> {
        self.accounts
            .iter()
            .map(|credited| {
                if credited.added_minor == 0 {
                    return Ok(credited.account.row);
                }
                let (tenant, currency) = &self.purses[credited.purse];
                let name = AccountName {
                    tenant,
                    owner: &credited.owner,
                    currency: *currency,
                };
                let added = credited.added_minor;
                post::add_to_account(self.db, name, &credited.account, added).map(Some)
            })
            .collect()
    }

    fn post_postings(&self) -> Result<Vec<Made>, LedgerError> {
        self.escrows
            .iter()
            .map(|escrow| {
                Ok(Made {
                    settle: self.posting(
                        escrow.row,
                        escrow.purse,
                        PostingKind::Settle,
                        escrow.paid,
                    )?,
                    refund: self.posting(
                        escrow.row,
                        escrow.purse,
                        PostingKind::Refund,
                        escrow.declined,
                    )?,
                })
            })
            .collect()
    }

    fn posting(
        &self,
        envelope_row: i64,
        purse: usize,
        kind: PostingKind,
        sum: Sum,
    ) -> Result<Option<i64>, LedgerError> {
        if sum.count == 0 {
            return Ok(None);
        }
        let (tenant, currency) = &self.purses[purse];
        let posting = Posting {
            tenant,
            kind,
            currency: *currency,
            envelope_row: Some(envelope_row),
            share_count: match kind {
                PostingKind::Settle => sum.count,
                _ => 0,
            },
            reference: "",
            posted_at: self.now,
        };
        post::posting(self.db, &posting).map(Some)
    }

    /// The debits of the escrows, after the credits: claims took the rows before them.
    fn post_escrows(&self, made: &[Made]) -> Result<(), LedgerError> {
        for (escrow, made) in self.escrows.iter().zip(made) {
            let mut any = false;
            for (posting_row, sum) in [(made.settle, escrow.paid), (made.refund, escrow.declined)] {
                if let Some(posting_row) = posting_row {
                    post::escrow_entry(self.db, posting_row, escrow.row, -sum.minor)?;
                    any = true;
                }
            }
            if !any {
                continue;
            }
            self.db
                .prepare_cached(
                    "-- ledger.escrow_paid
                     UPDATE envelope SET
                         settled_count = settled_count + ?2, settled_minor = settled_minor + ?3,
                         declined_count = declined_count + ?4, refunded_minor = refunded_minor + ?5,
                         best_claim = ?6
                     WHERE row = ?1",
                )
                .and_then(|mut update| {
                    update.execute((
                        escrow.row,
                        escrow.paid.count,
                        escrow.paid.minor,
                        escrow.declined.count,
                        escrow.declined.minor,
                        escrow.best.map(|(row, _, _)| row),
                    ))
                })
                .sql()?;
        }
        Ok(())
    }
}
