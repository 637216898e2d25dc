//! What the reserve pays to who was shown a share that is somebody else's, and what goes back to it.
//!
//! *Bounds.* What was made good of a tenant and currency is counted once a batch.
//!
//! *Ordering.* A row of `made_good` is written when its record is decided, since the records behind it ask for
//! it; what goes back, before the claim that the schema lets pass for it. Entries come last (`settle_post`).
//!
//! *Not here.* How much is owed: `ledger::make_good`.

use rusqlite::{Connection, OptionalExtension};

use crate::domain::grab::OutboxRecord;
use crate::domain::id::PersonId;
use crate::domain::money::AMOUNT_MINOR_MAX;
use crate::domain::posting::PostingKind;
use crate::ledger::make_good::{
    CAPPED, InTheWay, MAKE_GOOD_MS, MadeGood, NO_ROOM, REFUSED_BY_THE_BOOKS, Used,
};
use crate::ledger::{LedgerError, Settled};

use super::post::{self, Posting};
use super::rows::Sql;
use super::set_aside;
use super::settle::Batch;

/// A posting whose entries are still to be written.
pub(super) struct Payment {
    pub posting_row: i64,
    pub account: usize,
    pub reserve_row: i64,
    /// To the grabber; negative: back.
    pub minor: i64,
    /// Of what was shown.
    pub share: u32,
}

impl Batch<'_> {
    /// What a record's grabber was made good of its envelope.
    pub fn made_good(
        &self,
        escrow: usize,
        record: &OutboxRecord,
    ) -> Result<Option<MadeGood>, LedgerError> {
        let escrow = &self.escrows[escrow];
        if !escrow.has_made_good {
            return Ok(None);
        }
        self.db
            .prepare_cached(
                "-- ledger.find_made_good
                 SELECT share, shown_minor, amount_minor FROM made_good
                 WHERE envelope_row = ?1 AND grabber = ?2 AND back = 0",
            )
            .and_then(|mut find| {
                find.query_row((escrow.row, record.grabber.as_str()), |row| {
                    Ok(MadeGood {
                        share: row.get(0)?,
                        shown_minor: row.get(1)?,
                        amount_minor: row.get(2)?,
                    })
                })
                .optional()
            })
            .sql()
    }

    /// The verdict on a record that another claim stands in the way of; `aside` is the plan's reason not to
    /// pay it.
    pub fn beaten(
        &mut self,
        (escrow, account): (usize, usize),
        record: &OutboxRecord,
        aside: Option<&'static str>,
        made_good: Option<MadeGood>,
    ) -> Result<Settled, LedgerError> {
        if let Some(made_good) = made_good {
            if !made_good.is_of(record) {
                return Ok(Settled::Superseded);
            }
            set_aside::resolve_letter(self.db, self.now, record)?;
            return Ok(Settled::Duplicate);
        }
        let row = self.escrows[escrow].row;
        let shown_minor = record.grant.amount_minor;
        let in_the_way = in_the_way(self.db, row, record)?;
        let owed = in_the_way.owed_minor(shown_minor);
        let is_refused = aside == Some(REFUSED_BY_THE_BOOKS);
        let payable = (aside.is_none() || is_refused) && !record.declined;
        let Some(owed) = owed.filter(|_| payable) else {
            return Ok(Settled::Superseded);
        };
        if set_aside::is_dismissed(self.db, record)? {
            return Ok(Settled::Superseded);
        }
        // Something is owed, and the books won't have it: that is for an operator to see.
        if is_refused {
            return self.letter_of_the_reserve(row, record, REFUSED_BY_THE_BOOKS);
        }
        if self.escrows[escrow].frozen {
            set_aside::park(self.db, row, record)?;
            return Ok(Settled::Parked);
        }
        // A letter over the reserve's money blocks nothing.
        let credited = &self.accounts[account];
        let has_minor = credited.account.available_minor + credited.added_minor;
        if has_minor > AMOUNT_MINOR_MAX - owed {
            return self.letter_of_the_reserve(row, record, NO_ROOM);
        }
        if !self.reserve_takes(escrow, owed)? {
            self.letter_of_the_reserve(row, record, CAPPED)?;
            return Ok(Settled::Capped);
        }
        self.move_reserve((escrow, account), record, (false, owed))?;
        self.escrows[escrow].has_made_good = true;
        set_aside::resolve_letter(self.db, self.now, record)?;
        Ok(Settled::MadeGood)
    }

    /// Sets aside what no escrow owes: it blocks nothing.
    fn letter_of_the_reserve(
        &self,
        envelope_row: i64,
        record: &OutboxRecord,
        reason: &'static str,
    ) -> Result<Settled, LedgerError> {
        set_aside::unblock(self.db, envelope_row, record)?;
        set_aside::dead_letter(self.db, self.now, None, record, reason)?;
        Ok(Settled::DeadLetter)
    }

    /// Back to the reserve, what a share pays now.
    pub fn take_back(
        &mut self,
        party: (usize, usize),
        record: &OutboxRecord,
        made_good: MadeGood,
    ) -> Result<(), LedgerError> {
        let back = made_good.back_minor(record.grant.amount_minor);
        self.move_reserve(party, record, (true, back))
    }

    /// Whether the cap leaves so much.
    fn reserve_takes(&mut self, escrow: usize, owed: i64) -> Result<bool, LedgerError> {
        let purse = self.escrows[escrow].purse;
        let (tenant, currency) = &self.purses[purse];
        let mut used = match self.used.get(&purse) {
            Some(used) => *used,
            None => used_lately(self.db, tenant, currency.code(), self.now.0)?,
        };
        let takes = self.cap.takes(*currency, &mut used, owed);
        self.used.insert(purse, used);
        Ok(takes)
    }

    /// From the reserve to the grabber, or back.
    fn move_reserve(
        &mut self,
        (escrow, account): (usize, usize),
        record: &OutboxRecord,
        (back, amount_minor): (bool, i64),
    ) -> Result<(), LedgerError> {
        let from = &self.escrows[escrow];
        let (tenant, currency) = &self.purses[from.purse];
        let minor = if back { -amount_minor } else { amount_minor };
        let reserve_row = add_to_reserve(self.db, tenant, currency.code(), -minor)?;
        let posting_row = post::posting(
            self.db,
            &Posting {
                tenant,
                kind: PostingKind::MakeGood,
                currency: *currency,
                envelope_row: Some(from.row),
                share_count: 0,
                reference: "",
                posted_at: self.now,
            },
        )?;
        let share = record.grant.share;
        self.db
            .prepare_cached(
                "-- ledger.make_good
                 INSERT INTO made_good (envelope_row, grabber, back, share, shown_minor, amount_minor,
                     posting_row, reserve_row, at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )
            .and_then(|mut insert| {
                insert.execute((
                    from.row,
                    record.grabber.as_str(),
                    back,
                    share,
                    record.grant.amount_minor,
                    amount_minor,
                    posting_row,
                    reserve_row,
                    self.now.0,
                ))
            })
            .sql()?;
        self.db
            .prepare_cached(
                "-- ledger.count_made_good
                 UPDATE envelope SET made_good_minor = made_good_minor + ?2 WHERE row = ?1",
            )
            .and_then(|mut update| update.execute((from.row, minor)))
            .sql()?;
        self.accounts[account].added_minor += minor;
        self.payments.push(Payment {
            posting_row,
            account,
            reserve_row,
            minor,
            share,
        });
        Ok(())
    }

    /// The entries of what the reserve paid.
    pub fn post_payments(&self, account_rows: &[Option<i64>]) -> Result<(), LedgerError> {
        for payment in &self.payments {
            // What goes back is no credit for a share.
            let share = (payment.minor > 0).then_some(payment.share);
            self.db
                .prepare_cached(
                    "-- ledger.make_good_entry
                     INSERT INTO entry (posting_row, account_row, amount_minor, share)
                     VALUES (?1, ?2, ?3, ?4)",
                )
                .and_then(|mut insert| {
                    insert.execute((
                        payment.posting_row,
                        account_rows[payment.account],
                        payment.minor,
                        share,
                    ))
                })
                .sql()?;
            let (posting_row, reserve_row) = (payment.posting_row, payment.reserve_row);
            post::account_entry(self.db, posting_row, reserve_row, -payment.minor)?;
        }
        Ok(())
    }
}

/// Moves what the reserve has, which is opened if need be. Answers its row.
fn add_to_reserve(
    db: &Connection,
    tenant: &str,
    currency: &str,
    minor: i64,
) -> Result<i64, LedgerError> {
    db.prepare_cached(
        "-- ledger.add_to_reserve
         INSERT INTO account (tenant, kind, owner, currency, available_minor)
         VALUES (?1, 'reserve', '', ?2, ?3)
         ON CONFLICT (tenant, kind, owner, currency)
         DO UPDATE SET available_minor = available_minor + excluded.available_minor
         RETURNING row",
    )
    .and_then(|mut add| add.query_row((tenant, currency, minor), |row| row.get(0)))
    .sql()
}

fn used_lately(
    db: &Connection,
    tenant: &str,
    currency: &str,
    now: i64,
) -> Result<Used, LedgerError> {
    db.prepare_cached(
        "-- ledger.made_good_lately
         SELECT coalesce(sum(m.amount_minor), 0), count(*)
         FROM account a JOIN made_good m ON m.reserve_row = a.row
         WHERE a.tenant = ?1 AND a.kind = 'reserve' AND a.owner = '' AND a.currency = ?2
             AND m.back = 0 AND m.at > ?3",
    )
    .and_then(|mut count| {
        count.query_row((tenant, currency, now - MAKE_GOOD_MS), |row| {
            Ok(Used {
                minor: row.get(0)?,
                records: row.get(1)?,
            })
        })
    })
    .sql()
}

fn in_the_way(
    db: &Connection,
    envelope_row: i64,
    record: &OutboxRecord,
) -> Result<InTheWay, LedgerError> {
    let claim = |sql: &str, what: &dyn rusqlite::ToSql| {
        db.prepare_cached(sql)
            .and_then(|mut find| {
                find.query_row((envelope_row, what), |row| {
                    Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()
            })
            .sql()
    };
    let grabber: &PersonId = &record.grabber;
    let of_share: Option<(String, i64, bool)> = claim(
        "-- ledger.claim_of_share
         SELECT grabber, amount_minor, declined FROM claim WHERE envelope_row = ?1 AND share = ?2",
        &record.grant.share,
    )?;
    let own: Option<(String, i64, bool)> = claim(
        "-- ledger.claim_of_grabber
         SELECT grabber, amount_minor, declined FROM claim WHERE envelope_row = ?1 AND grabber = ?2",
        &grabber.as_str(),
    )?;
    let of_another = of_share.filter(|(who, _, _)| who != grabber.as_str());
    Ok(InTheWay {
        taken_minor: of_another.map(|(_, minor, _)| minor),
        own: own.map(|(_, minor, declined)| (minor, declined)),
    })
}
