//! Settle: escrow → grabbers, a whole batch in one transaction.
//!
//! # Shape
//! | phase | what |
//! |---|---|
//! | read | each envelope and account of the batch at its first record |
//! | decide | a verdict a record; a payable one is claimed at once, since the constraints decide |
//! | post | one posting a (batch, envelope): a credit entry a claim, one debit of the escrow, balances once an account |
//!
//! # Bounds
//! [`SETTLE_BATCH_MAX`] records, so as many envelopes and accounts in memory.
//!
//! # Ordering
//! A record that stands in the books already is a duplicate whatever else is wrong with it or its
//! envelope: settling is repeated after a crash, and the repeat must not be set aside. A record that
//! is paid, or found to be, takes its own dead letter back in the same transaction. What is made good comes
//! last: it is owed by what the claims say.
//!
//! # If it crashes here
//! All verdicts of the batch stand or none; the repeat finds duplicates.
//!
//! # Not here
//! Whether (share, amount) is what the seed says: the plan of the settle room. What becomes of
//! records that can't be paid: `set_aside`. What the reserve pays: `make_good`. The phase post:
//! `settle_post`.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row};

use crate::domain::grab::OutboxRecord;
use crate::domain::id::{EnvelopeId, UnixMs};
use crate::domain::money::{AMOUNT_MINOR_MAX, Currency};
use crate::ledger::make_good::{MadeGood, Used};
use crate::ledger::{LedgerError, MakeGood, SETTLE_BATCH_MAX, SettleItem, Settled};

use super::make_good::Payment;
use super::post::{self, Account, AccountName};
use super::rows::{Sql, currency};
use super::set_aside;
use super::writer::Books;

/// An envelope as the batch sees it: what the row says, and what the batch adds.
pub(super) struct Escrow {
    pub row: i64,
    /// Which tenant and currency.
    pub purse: usize,
    sender: String,
    closed: bool,
    pub frozen: bool,
    /// Something was made good of it.
    pub has_made_good: bool,
    /// It has open dead letters: one of them may be of a record that is paid now.
    letters: bool,
    share_count: u32,
    /// Funded less all that went out, less what this batch pays.
    left_minor: i64,
    /// Row, amount and share of the best claim.
    pub best: Option<(i64, i64, u32)>,
    pub paid: Sum,
    pub declined: Sum,
}

/// What the batch takes out of an escrow.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    pub count: u32,
    pub minor: i64,
}

impl Sum {
    fn add(&mut self, amount_minor: i64) {
        self.count += 1;
        self.minor += amount_minor;
    }
}

/// An account that the batch credits.
pub(super) struct Credited {
    pub purse: usize,
    pub owner: String,
    pub account: Account,
    pub added_minor: i64,
}

/// A claim whose entry is still to be posted.
pub(super) struct Claimed {
    pub row: i64,
    pub escrow: usize,
    pub account: usize,
    pub amount_minor: i64,
    /// `None`: declined, so the sender is credited.
    pub share: Option<u32>,
}

/// What stands in a record's way.
enum Obstacle {
    Frozen,
    DeadLetter(&'static str),
}

/// A batch in the making.
pub(super) struct Batch<'a> {
    pub db: &'a Connection,
    pub now: UnixMs,
    /// Tenants and currencies of the batch: few, so they are searched one by one.
    pub purses: Vec<(String, Currency)>,
    pub escrows: Vec<Escrow>,
    escrow_of: HashMap<EnvelopeId, Option<usize>>,
    pub accounts: Vec<Credited>,
    account_of: HashMap<(usize, String), usize>,
    pub claims: Vec<Claimed>,
    /// How much may be made good, and what was, of each purse that was asked for.
    pub cap: MakeGood,
    pub used: HashMap<usize, Used>,
    /// From the reserve and back to it.
    pub payments: Vec<Payment>,
    /// The row of the next entry, and so of the next claim.
    next_row: i64,
}

/// Posts a batch: one verdict a record, in order.
pub(super) fn settle(
    books: &Books<'_>,
    cap: &MakeGood,
    items: &[SettleItem],
) -> Result<Vec<Settled>, LedgerError> {
    if items.len() > SETTLE_BATCH_MAX {
        return Err(LedgerError::Broken(format!(
            "{} records are more than a batch",
            items.len()
        )));
    }
    let mut batch = Batch::begin(books, cap)?;
    let verdicts = items
        .iter()
        .map(|item| match item {
            SettleItem::Pay(record) => batch.decide(record, None),
            SettleItem::SetAside(record, reason) => batch.decide(record, Some(reason)),
        })
        .collect::<Result<_, _>>()?;
    batch.post()?;
    Ok(verdicts)
}

impl<'a> Batch<'a> {
    pub fn begin(books: &Books<'a>, cap: &MakeGood) -> Result<Self, LedgerError> {
        let next_row = books
            .db
            .prepare_cached("-- ledger.next_entry\nSELECT coalesce(max(row), 0) + 1 FROM entry")
            .and_then(|mut next| next.query_row([], |row| row.get(0)))
            .sql()?;
        Ok(Self {
            db: books.db,
            now: books.now,
            purses: Vec::new(),
            escrows: Vec::new(),
            escrow_of: HashMap::new(),
            accounts: Vec::new(),
            account_of: HashMap::new(),
            claims: Vec::new(),
            cap: cap.clone(),
            used: HashMap::new(),
            payments: Vec::new(),
            next_row,
        })
    }

    // ---- decide ----

    /// The verdict on one record; `aside` is the plan's reason not to pay it.
    pub fn decide(
        &mut self,
        record: &OutboxRecord,
        aside: Option<&'static str>,
    ) -> Result<Settled, LedgerError> {
        let Some(escrow) = self.escrow(record.envelope)? else {
            let reason = aside.unwrap_or("unknown_envelope");
            set_aside::dead_letter(self.db, self.now, None, record, reason)?;
            return Ok(Settled::DeadLetter);
        };
        let account = self.account(escrow, record)?;
        let row = self.escrows[escrow].row;
        let made_good = self.made_good(escrow, record)?;
        let back = made_good.map_or(0, |made| made.back_minor(record.grant.amount_minor));
        let obstacle = aside
            .map(Obstacle::DeadLetter)
            .or_else(|| self.obstacle((escrow, account), record, back));
        if obstacle.is_none() && self.pay((escrow, account), record, made_good)? {
            return Ok(Settled::Paid);
        }
        if let Some(verdict) = claimed_before(self.db, row, record)? {
            if verdict == Settled::Duplicate {
                self.resolve_letter(escrow, record)?;
                return Ok(verdict);
            }
            return self.beaten((escrow, account), record, aside, made_good);
        }
        match obstacle {
            Some(Obstacle::Frozen) => {
                set_aside::park(self.db, row, record)?;
                Ok(Settled::Parked)
            }
            Some(Obstacle::DeadLetter(reason)) => {
                // A closed envelope stays as it was closed: the letter does not count in its row.
                let blocked = (!self.escrows[escrow].closed).then_some(row);
                set_aside::dead_letter(self.db, self.now, blocked, record, reason)?;
                self.escrows[escrow].letters = true;
                Ok(Settled::DeadLetter)
            }
            None => Err(LedgerError::Broken(
                "a claim was refused, and no other stands in its way".to_owned(),
            )),
        }
    }

    /// Claims the share, if nobody has it and the grabber has no other.
    fn pay(
        &mut self,
        (escrow, account): (usize, usize),
        record: &OutboxRecord,
        made_good: Option<MadeGood>,
    ) -> Result<bool, LedgerError> {
        if let Some(made_good) = made_good.filter(|_| !record.declined) {
            if claimed_before(self.db, self.escrows[escrow].row, record)?.is_some() {
                return Ok(false);
            }
            self.take_back((escrow, account), record, made_good)?;
        }
        if !self.claim(escrow, record)? {
            return Ok(false);
        }
        self.book(escrow, account, record);
        self.resolve_letter(escrow, record)?;
        Ok(true)
    }

    /// What was set aside and is paid after all no longer stands in the way of the close.
    fn resolve_letter(&self, escrow: usize, record: &OutboxRecord) -> Result<(), LedgerError> {
        match self.escrows[escrow].letters {
            true => set_aside::resolve_letter(self.db, self.now, record),
            false => Ok(()),
        }
    }

    /// `back_minor`: what leaves the account again, to the reserve.
    fn obstacle(
        &self,
        (escrow, account): (usize, usize),
        record: &OutboxRecord,
        back_minor: i64,
    ) -> Option<Obstacle> {
        let (escrow, account) = (&self.escrows[escrow], &self.accounts[account]);
        let amount_minor = record.grant.amount_minor;
        let reason = if escrow.closed {
            "envelope_closed"
        } else if escrow.frozen {
            return Some(Obstacle::Frozen);
        } else if record.grant.share >= escrow.share_count {
            "no_such_share"
        } else if amount_minor < 1 {
            "amount_not_positive"
        } else if amount_minor > escrow.left_minor {
            "more_than_was_funded"
        } else if !record.declined
            && account.account.available_minor + account.added_minor
                > AMOUNT_MINOR_MAX - amount_minor + back_minor
        {
            "balance_too_large"
        } else {
            return None;
        };
        Some(Obstacle::DeadLetter(reason))
    }

    /// Whether the claim is new: the constraints decide.
    fn claim(&mut self, escrow: usize, record: &OutboxRecord) -> Result<bool, LedgerError> {
        let inserted = self
            .db
            .prepare_cached(
                "-- ledger.claim
                 INSERT INTO claim
                     (row, envelope_row, share, grabber, amount_minor, declined, granted_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
            )
            .and_then(|mut insert| {
                insert.execute((
                    self.next_row,
                    self.escrows[escrow].row,
                    record.grant.share,
                    record.grabber.as_str(),
                    record.grant.amount_minor,
                    record.declined,
                    record.grant.at.0,
                ))
            })
            .sql()?;
        Ok(inserted == 1)
    }

    /// Puts a new claim into the sums.
    fn book(&mut self, escrow: usize, account: usize, record: &OutboxRecord) {
        let amount_minor = record.grant.amount_minor;
        let share = (!record.declined).then_some(record.grant.share);
        self.claims.push(Claimed {
            row: self.next_row,
            escrow,
            account,
            amount_minor,
            share,
        });
        self.accounts[account].added_minor += amount_minor;
        let escrow = &mut self.escrows[escrow];
        escrow.left_minor -= amount_minor;
        if let Some(share) = share {
            escrow.paid.add(amount_minor);
            let better = escrow.best.is_none_or(|(_, minor, number)| {
                (amount_minor, std::cmp::Reverse(share)) > (minor, std::cmp::Reverse(number))
            });
            if better {
                escrow.best = Some((self.next_row, amount_minor, share));
            }
        } else {
            escrow.declined.add(amount_minor);
        }
        self.next_row += 1;
    }

    // ---- read ----

    fn escrow(&mut self, id: EnvelopeId) -> Result<Option<usize>, LedgerError> {
        if let Some(known) = self.escrow_of.get(&id) {
            return Ok(*known);
        }
        let found = self.read_escrow(id)?.map(|escrow| {
            self.escrows.push(escrow);
            self.escrows.len() - 1
        });
        self.escrow_of.insert(id, found);
        Ok(found)
    }

    fn read_escrow(&mut self, id: EnvelopeId) -> Result<Option<Escrow>, LedgerError> {
        let purses = &mut self.purses;
        self.db
            .prepare_cached(
                "-- ledger.escrow
                 SELECT n.row, n.tenant, n.currency, n.sender, n.state = 'closed', n.frozen,
                        n.share_count, n.funded_minor - n.settled_minor - n.refunded_minor,
                        b.row, b.amount_minor, b.share, n.dead_letter_count > 0,
                        EXISTS (SELECT 1 FROM made_good m WHERE m.envelope_row = n.row)
                 FROM envelope n LEFT JOIN claim b ON b.row = n.best_claim
                 WHERE n.id = ?1",
            )
            .and_then(|mut find| {
                find.query_row([id.to_bytes()], |row| escrow(row, purses))
                    .optional()
            })
            .sql()
    }

    /// The account that a record credits: the grabber's, or the sender's if it was declined.
    fn account(&mut self, escrow: usize, record: &OutboxRecord) -> Result<usize, LedgerError> {
        let from = &self.escrows[escrow];
        let owner = if record.declined {
            from.sender.clone()
        } else {
            record.grabber.as_str().to_owned()
        };
        let key = (from.purse, owner);
        if let Some(known) = self.account_of.get(&key) {
            return Ok(*known);
        }
        let (tenant, currency) = &self.purses[key.0];
        let name = AccountName {
            tenant,
            owner: &key.1,
            currency: *currency,
        };
        let account = post::account(self.db, name)?;
        let index = self.accounts.len();
        self.accounts.push(Credited {
            purse: key.0,
            owner: key.1.clone(),
            account,
            added_minor: 0,
        });
        self.account_of.insert(key, index);
        Ok(index)
    }
}

fn escrow(row: &Row<'_>, purses: &mut Vec<(String, Currency)>) -> rusqlite::Result<Escrow> {
    let purse = (row.get::<_, String>(1)?, currency(row, 2)?);
    let known = purses.iter().position(|other| *other == purse);
    let best: Option<i64> = row.get(8)?;
    Ok(Escrow {
        row: row.get(0)?,
        purse: known.unwrap_or_else(|| {
            purses.push(purse);
            purses.len() - 1
        }),
        sender: row.get(3)?,
        closed: row.get(4)?,
        frozen: row.get(5)?,
        letters: row.get(11)?,
        has_made_good: row.get(12)?,
        share_count: row.get(6)?,
        left_minor: row.get(7)?,
        best: match best {
            Some(best) => Some((best, row.get(9)?, row.get(10)?)),
            None => None,
        },
        paid: Sum::default(),
        declined: Sum::default(),
    })
}

/// What an earlier claim of the share or of the grabber makes of a record.
fn claimed_before(
    db: &Connection,
    envelope_row: i64,
    record: &OutboxRecord,
) -> Result<Option<Settled>, LedgerError> {
    let mut earlier = db
        .prepare_cached(
            "-- ledger.claimed_before
             SELECT share = ?2 AND grabber = ?3 AND amount_minor = ?4 AND declined = ?5
             FROM claim WHERE envelope_row = ?1 AND share = ?2
             UNION ALL
             SELECT share = ?2 AND grabber = ?3 AND amount_minor = ?4 AND declined = ?5
             FROM claim WHERE envelope_row = ?1 AND grabber = ?3",
        )
        .sql()?;
    let same: Vec<bool> = earlier
        .query_map(
            (
                envelope_row,
                record.grant.share,
                record.grabber.as_str(),
                record.grant.amount_minor,
                record.declined,
            ),
            |row| row.get(0),
        )
        .and_then(Iterator::collect)
        .sql()?;
    Ok(if same.is_empty() {
        None
    } else if same.contains(&true) {
        Some(Settled::Duplicate)
    } else {
        Some(Settled::Superseded)
    })
}
