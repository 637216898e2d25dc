//! Settle: escrow → grabbers, a whole batch in one transaction.
//!
//! # Shape
//! | phase | what |
//! |---|---|
//! | read (`settle_read`) | the batch's envelopes, locked; its accounts; claims that stand in its way |
//! | decide | in memory, a verdict a record, in order |
//! | post (`settle_post`) | a claim a record, by COPY; one posting a (batch, envelope) with one debit of the escrow; balances once an account |
//!
//! # Bounds
//! [`BATCH_RECORDS_MAX`] records, so as many envelopes and accounts in memory. Some ten statements,
//! however many records.
//!
//! # Ordering
//! Every transaction that claims shares of an envelope, or closes it, holds its row: so the claims that
//! were read are all there are of these shares, and what is decided stands. What a batch takes for
//! granted (that nobody in it has another share, that no account becomes too full) the unique key and
//! a look at the balances that were moved refute: then all of it is done again, *carefully*, which
//! asks first. A record that stands in the books already is a duplicate whatever else is wrong with it
//! or its envelope: settling is repeated after a crash, and the repeat must not be set aside. A record
//! that is paid, or found to be, takes its own dead letter back in the same transaction. Where something is
//! owed beside that, one more try knows what may be made good (`make_good`).
//!
//! # If it crashes here
//! All verdicts of the batch stand or none; the repeat finds duplicates.
//!
//! # Not here
//! Whether (share, amount) is what the seed says: the plan of the settle room. What becomes of records
//! that can't be paid: `set_aside`. What the reserve pays: `make_good`.

use std::sync::atomic::{AtomicBool, Ordering};

use deadpool_postgres::Transaction;
use hashbrown::{HashMap, HashSet};

use crate::domain::grab::OutboxRecord;
use crate::domain::money::Currency;
use crate::ledger::make_good::MadeGood;
use crate::ledger::{LedgerError, SETTLE_BATCH_MAX, SettleItem, Settled};

use super::Desk;
use super::make_good::{Payment, Reserve};
use super::payees::{PayeeAt, Payees};
use super::set_aside::{Key, dismissed};
use super::sql::Fault;

/// An envelope as the batch sees it: what the row says, and what the batch adds.
pub(super) struct Escrow {
    pub row: i64,
    pub tenant: String,
    pub currency: Currency,
    pub sender: String,
    pub closed: bool,
    pub frozen: bool,
    /// Something was made good of it.
    pub has_made_good: bool,
    /// It has open dead letters: one of them may be of a record that is paid now.
    pub letters: bool,
    pub share_count: u32,
    /// Funded less all that went out, less what this batch pays.
    pub left_minor: i64,
    /// Some of its shares have gone out before.
    pub has_claims: bool,
    pub best: Option<Best>,
    pub paid: Sum,
    pub declined: Sum,
}

/// The best claim so far.
#[derive(Clone, Copy)]
pub(super) struct Best {
    pub minor: i64,
    pub share: u32,
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

/// A claim that is to be made.
pub(super) struct Claim<'a> {
    pub escrow: usize,
    pub record: &'a OutboxRecord,
    pub grabber: PayeeAt,
}

/// Whom a record is about.
#[derive(Clone, Copy)]
pub(super) struct Party {
    pub escrow: usize,
    pub grabber: PayeeAt,
    /// Who takes a declined share back.
    pub sender: Option<PayeeAt>,
}

/// What is done about a record that is not paid, or was paid after all.
pub(super) enum Aside<'a> {
    /// Kept until the envelope, with this row, is unfrozen.
    Park(i64, &'a OutboxRecord),
    /// Set aside with a reason; it blocks the close of the envelope with this row.
    Letter(Option<i64>, &'a OutboxRecord, &'static str),
    /// It stands in the books: its letter is done.
    Resolve(&'a OutboxRecord),
}

/// A batch in the making.
pub(super) struct Batch<'a> {
    pub escrows: Vec<Escrow>,
    pub payees: Payees<'a>,
    /// Of each record; none where the envelope is unknown.
    pub parties: Vec<Option<Party>>,
    /// By (envelope, share) and (envelope, grabber): what is claimed, before and by this batch.
    pub by_share: HashMap<(usize, u32), Claimed>,
    pub by_grabber: HashMap<(usize, PayeeAt), Claimed>,
    pub claims: Vec<Claim<'a>>,
    pub asides: Vec<Aside<'a>>,
    /// What grabbers were made good, before and by this batch.
    pub made_good: HashMap<(usize, PayeeAt), MadeGood>,
    /// Records that an operator dismissed: nobody makes them good.
    pub dismissed: HashSet<Key>,
    /// From the reserve and back to it.
    pub payments: Vec<Payment<'a>>,
    /// `None`: this try makes nothing good.
    pub reserve: Option<Reserve>,
    /// Something is owed, and this try made nothing good.
    pub is_owed: bool,
}

/// A claim, to be compared with a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Claimed {
    pub share: u32,
    /// None: somebody who is not of this batch.
    pub grabber: Option<PayeeAt>,
    pub amount_minor: i64,
    pub declined: bool,
}

impl Claimed {
    fn of(record: &OutboxRecord, grabber: PayeeAt) -> Self {
        Self {
            share: record.grant.share,
            grabber: Some(grabber),
            amount_minor: record.grant.amount_minor,
            declined: record.declined,
        }
    }
}

/// What stands in a record's way.
enum Obstacle {
    Frozen,
    DeadLetter(&'static str),
}

/// What the tries of a batch so far have shown that it needs.
#[derive(Default)]
pub(super) struct Care {
    /// It is done carefully.
    careful: AtomicBool,
    /// Something is owed, so it also makes good: as the only one that does.
    makes_good: AtomicBool,
}

impl Care {
    /// From the first try on, for few records of which something is known to be wrong.
    pub fn careful() -> Self {
        Self {
            careful: true.into(),
            ..Self::default()
        }
    }
}

/// Records of one transaction: several full batches.
pub(super) const BATCH_RECORDS_MAX: usize = 4 * SETTLE_BATCH_MAX;

/// Posts a batch: one verdict a record, in order.
pub(super) async fn settle(
    tx: &Transaction<'_>,
    desk: &Desk,
    items: &[&SettleItem],
    care: &Care,
) -> Result<Vec<Settled>, Fault> {
    if items.len() > BATCH_RECORDS_MAX {
        let why = format!("{} records are more than a batch", items.len());
        return Err(LedgerError::Broken(why).into());
    }
    // Whatever ends this try, the next one is careful.
    let careful = care.careful.swap(true, Ordering::Relaxed);
    // ---- read ----
    let records: Vec<&OutboxRecord> = items.iter().map(|item| record_of(item).0).collect();
    let mut batch = Batch::read(tx, &desk.known, &records, careful).await?;
    if care.makes_good.load(Ordering::Relaxed) {
        batch.dismissed = dismissed(tx, &records).await?;
        batch.reserve = Some(Reserve::open(tx, desk).await?);
    }

    // ---- decide ----
    let mut verdicts = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let (record, aside) = record_of(item);
        verdicts.push(batch.decide(at, record, aside));
    }
    let again = |why: &str| Err(Fault::Again(why.to_owned()));
    if batch.is_owed {
        care.makes_good.store(true, Ordering::Relaxed);
        return again("something is to be made good");
    }
    let is_plain = batch.asides.is_empty() && batch.payments.is_empty();
    if !careful && (!is_plain || verdicts.contains(&Settled::Superseded)) {
        // Whoever has another share already is superseded, whatever else is wrong: that is asked first.
        return again("a record can't be paid as it stands");
    }

    // ---- post ----
    batch.post(tx, desk.now(), careful).await?;
    Ok(verdicts)
}

fn record_of(item: &SettleItem) -> (&OutboxRecord, Option<&'static str>) {
    match item {
        SettleItem::Pay(record) => (record, None),
        SettleItem::SetAside(record, reason) => (record, Some(reason)),
    }
}

impl<'a> Batch<'a> {
    /// The verdict on one record; `aside` is the plan's reason not to pay it.
    fn decide(
        &mut self,
        at: usize,
        record: &'a OutboxRecord,
        aside: Option<&'static str>,
    ) -> Settled {
        let Some(party) = self.parties[at] else {
            let reason = aside.unwrap_or("unknown_envelope");
            self.asides.push(Aside::Letter(None, record, reason));
            return Settled::DeadLetter;
        };
        let before = self.claimed_before(party, record);
        if let Some(verdict) = before {
            if verdict == Settled::Duplicate {
                self.resolve_letter(party.escrow, record);
                return verdict;
            }
            return self.beaten(party, record, aside);
        }
        let obstacle = aside
            .map(Obstacle::DeadLetter)
            .or_else(|| self.obstacle(party, record));
        let escrow = &mut self.escrows[party.escrow];
        match obstacle {
            None => {
                self.take_back(party, record);
                self.claim(party, record);
                self.resolve_letter(party.escrow, record);
                Settled::Paid
            }
            Some(Obstacle::Frozen) => {
                self.asides.push(Aside::Park(escrow.row, record));
                Settled::Parked
            }
            Some(Obstacle::DeadLetter(reason)) => {
                // A closed envelope stays as it was closed: the letter does not count in its row.
                let blocked = (!escrow.closed).then_some(escrow.row);
                escrow.letters = true;
                self.asides.push(Aside::Letter(blocked, record, reason));
                Settled::DeadLetter
            }
        }
    }

    /// What was set aside and is paid after all no longer stands in the way of the close.
    fn resolve_letter(&mut self, at: usize, record: &'a OutboxRecord) {
        if self.escrows[at].letters {
            self.asides.push(Aside::Resolve(record));
        }
    }

    fn obstacle(&self, party: Party, record: &OutboxRecord) -> Option<Obstacle> {
        let escrow = &self.escrows[party.escrow];
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
            && !self
                .payees
                .has_room(party.grabber, amount_minor - self.back_minor(party, record))
        {
            "balance_too_large"
        } else {
            return None;
        };
        Some(Obstacle::DeadLetter(reason))
    }

    /// What an earlier claim of the share or of the grabber makes of a record.
    fn claimed_before(&self, party: Party, record: &OutboxRecord) -> Option<Settled> {
        let share = self.by_share.get(&(party.escrow, record.grant.share));
        let grabber = self.by_grabber.get(&(party.escrow, party.grabber));
        let mut earlier = share.into_iter().chain(grabber).peekable();
        earlier.peek()?;
        let same = Claimed::of(record, party.grabber);
        Some(match earlier.any(|claimed| *claimed == same) {
            true => Settled::Duplicate,
            false => Settled::Superseded,
        })
    }

    /// Puts a new claim into the sums.
    fn claim(&mut self, party: Party, record: &'a OutboxRecord) {
        let Party {
            escrow: at,
            grabber,
            sender,
        } = party;
        let claimed = Claimed::of(record, grabber);
        self.by_grabber.insert((at, grabber), claimed);
        self.by_share.insert((at, claimed.share), claimed);
        let (amount_minor, share) = (record.grant.amount_minor, record.grant.share);
        let escrow = &mut self.escrows[at];
        escrow.left_minor -= amount_minor;
        if let Some(sender) = sender {
            escrow.declined.add(amount_minor);
            self.payees.give_back(sender, amount_minor);
        } else {
            escrow.paid.add(amount_minor);
            self.payees.pay(grabber, amount_minor);
            let better = escrow.best.is_none_or(|best| {
                (amount_minor, std::cmp::Reverse(share))
                    > (best.minor, std::cmp::Reverse(best.share))
            });
            if better {
                escrow.best = Some(Best {
                    minor: amount_minor,
                    share,
                });
            }
        }
        self.claims.push(Claim {
            escrow: at,
            record,
            grabber,
        });
    }
}
