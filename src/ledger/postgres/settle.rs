//! Settle: escrow → grabbers, a whole batch in one transaction.
//!
//! # Shape
//! | phase | what |
//! |---|---|
//! | read | the batch's envelopes, locked; claims that stand in its way; its accounts, locked |
//! | decide | in memory, a verdict a record, in order |
//! | post | one posting a (batch, envelope): a claim and a credit entry a record, one debit of the escrow, balances once an account: a statement each |
//!
//! # Bounds
//! [`SETTLE_BATCH_MAX`] records, so as many envelopes and accounts in memory. Some fifteen statements,
//! however many records.
//!
//! # Ordering
//! Every transaction that claims shares of an envelope, or closes it, holds its row: so the claims that
//! were read are all there are, and what is decided stands. The unique keys are the last line. A
//! record that stands in the books already is a duplicate whatever else is wrong with it or its
//! envelope: settling is repeated after a crash, and the repeat must not be set aside. A record that is
//! paid, or found to be, takes its own dead letter back in the same transaction.
//!
//! # If it crashes here
//! All verdicts of the batch stand or none; the repeat finds duplicates.
//!
//! # Not here
//! Whether (share, amount) is what the seed says: the plan of the settle room. The phase post:
//! `settle_post`. What becomes of records that can't be paid: `set_aside`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use deadpool_postgres::Transaction;
use tokio_postgres::Row;

use crate::domain::grab::OutboxRecord;
use crate::domain::id::EnvelopeId;
use crate::domain::money::{AMOUNT_MINOR_MAX, Currency};
use crate::ledger::{LedgerError, SETTLE_BATCH_MAX, SettleItem, Settled};

use super::Desk;
use super::post::{AccountName, Accounts};
use super::rows::{count, currency, envelope_id};
use super::sql::{self, Fault, broken};

/// An envelope as the batch sees it: what the row says, and what the batch adds.
pub(super) struct Escrow {
    pub row: i64,
    pub tenant: String,
    pub currency: Currency,
    sender: String,
    closed: bool,
    frozen: bool,
    /// It has open dead letters: one of them may be of a record that is paid now.
    letters: bool,
    share_count: u32,
    /// Funded less all that went out, less what this batch pays.
    left_minor: i64,
    pub best: Option<Best>,
    pub paid: Sum,
    pub declined: Sum,
}

/// The best claim so far.
#[derive(Clone, Copy)]
pub(super) struct Best {
    pub claim: BestClaim,
    minor: i64,
    share: u32,
}

/// Which claim it is.
#[derive(Clone, Copy)]
pub(super) enum BestClaim {
    /// In the books, under this row.
    Stands(i64),
    /// Of this batch, at this place.
    Made(usize),
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
    /// The grabber's, or the sender's if it was declined.
    pub account: AccountName,
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
    escrow_of: HashMap<EnvelopeId, usize>,
    /// By (envelope, share) and (envelope, grabber): what is claimed, before and by this batch.
    by_share: HashMap<(usize, u32), Claimed>,
    by_grabber: HashMap<(usize, String), Claimed>,
    pub accounts: Accounts,
    added: BTreeMap<AccountName, i64>,
    pub claims: Vec<Claim<'a>>,
    pub asides: Vec<Aside<'a>>,
}

/// A claim, to be compared with a record.
#[derive(Clone, PartialEq, Eq)]
struct Claimed {
    share: u32,
    grabber: String,
    amount_minor: i64,
    declined: bool,
}

impl Claimed {
    fn of(record: &OutboxRecord) -> Self {
        Self {
            share: record.grant.share,
            grabber: record.grabber.as_str().to_owned(),
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

/// Posts a batch: one verdict a record, in order.
pub(super) async fn settle(
    tx: &Transaction<'_>,
    desk: &Desk,
    items: &[SettleItem],
) -> Result<Vec<Settled>, Fault> {
    if items.len() > SETTLE_BATCH_MAX {
        let why = format!("{} records are more than a batch", items.len());
        return Err(LedgerError::Broken(why).into());
    }
    // ---- read ----
    let records: Vec<&OutboxRecord> = items.iter().map(|item| record_of(item).0).collect();
    let mut batch = Batch::read(tx, &records).await?;

    // ---- decide ----
    let mut verdicts = Vec::with_capacity(items.len());
    for item in items {
        let (record, aside) = record_of(item);
        verdicts.push(batch.decide(record, aside));
    }

    // ---- post ----
    batch.post(tx, desk.now()).await?;
    Ok(verdicts)
}

fn record_of(item: &SettleItem) -> (&OutboxRecord, Option<&'static str>) {
    match item {
        SettleItem::Pay(record) => (record, None),
        SettleItem::SetAside(record, reason) => (record, Some(reason)),
    }
}

impl<'a> Batch<'a> {
    // ---- read ----

    async fn read(tx: &Transaction<'_>, records: &[&'a OutboxRecord]) -> Result<Self, Fault> {
        let (escrows, escrow_of) = read_escrows(tx, records).await?;
        let (by_share, by_grabber) = read_claims(tx, records, &escrows, &escrow_of).await?;
        let mut names = BTreeSet::new();
        for record in records {
            if let Some(escrow) = escrow_of.get(&record.envelope) {
                names.insert(credited(&escrows[*escrow], record));
            }
        }
        Ok(Self {
            accounts: Accounts::lock_open(tx, &names).await?,
            escrows,
            escrow_of,
            by_share,
            by_grabber,
            added: BTreeMap::new(),
            claims: Vec::new(),
            asides: Vec::new(),
        })
    }

    // ---- decide ----

    /// The verdict on one record; `aside` is the plan's reason not to pay it.
    fn decide(&mut self, record: &'a OutboxRecord, aside: Option<&'static str>) -> Settled {
        let Some(at) = self.escrow_of.get(&record.envelope).copied() else {
            let reason = aside.unwrap_or("unknown_envelope");
            self.asides.push(Aside::Letter(None, record, reason));
            return Settled::DeadLetter;
        };
        let account = credited(&self.escrows[at], record);
        let obstacle = aside
            .map(Obstacle::DeadLetter)
            .or_else(|| self.obstacle(at, &account, record));
        let before = self.claimed_before(at, record);
        if obstacle.is_none() && before.is_none() {
            self.claim(at, account, record);
            self.resolve_letter(at, record);
            return Settled::Paid;
        }
        if let Some(verdict) = before {
            if verdict == Settled::Duplicate {
                self.resolve_letter(at, record);
            }
            return verdict;
        }
        let escrow = &mut self.escrows[at];
        match obstacle {
            Some(Obstacle::Frozen) => {
                self.asides.push(Aside::Park(escrow.row, record));
                Settled::Parked
            }
            // Nobody has it and nothing is in its way: that was paid above.
            Some(Obstacle::DeadLetter(_)) | None => {
                let reason = match obstacle {
                    Some(Obstacle::DeadLetter(reason)) => reason,
                    _ => "undecided",
                };
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

    fn obstacle(
        &self,
        at: usize,
        account: &AccountName,
        record: &OutboxRecord,
    ) -> Option<Obstacle> {
        let escrow = &self.escrows[at];
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
        } else if !record.declined && self.has(account) > AMOUNT_MINOR_MAX - amount_minor {
            "balance_too_large"
        } else {
            return None;
        };
        Some(Obstacle::DeadLetter(reason))
    }

    /// What an account has with what this batch credits; one that is not open has nothing.
    fn has(&self, account: &AccountName) -> i64 {
        let before = self.accounts.find(account).map_or(0, |a| a.available_minor);
        before + self.added.get(account).copied().unwrap_or(0)
    }

    /// What an earlier claim of the share or of the grabber makes of a record.
    fn claimed_before(&self, at: usize, record: &OutboxRecord) -> Option<Settled> {
        let share = self.by_share.get(&(at, record.grant.share));
        let grabber = self
            .by_grabber
            .get(&(at, record.grabber.as_str().to_owned()));
        let mut earlier = share.into_iter().chain(grabber).peekable();
        earlier.peek()?;
        let same = Claimed::of(record);
        Some(match earlier.any(|claimed| *claimed == same) {
            true => Settled::Duplicate,
            false => Settled::Superseded,
        })
    }

    /// Puts a new claim into the sums.
    fn claim(&mut self, at: usize, account: AccountName, record: &'a OutboxRecord) {
        let claimed = Claimed::of(record);
        self.by_grabber
            .insert((at, claimed.grabber.clone()), claimed.clone());
        self.by_share.insert((at, claimed.share), claimed);
        let (amount_minor, share) = (record.grant.amount_minor, record.grant.share);
        let escrow = &mut self.escrows[at];
        escrow.left_minor -= amount_minor;
        if record.declined {
            escrow.declined.add(amount_minor);
        } else {
            escrow.paid.add(amount_minor);
            let better = escrow.best.is_none_or(|best| {
                (amount_minor, std::cmp::Reverse(share))
                    > (best.minor, std::cmp::Reverse(best.share))
            });
            if better {
                escrow.best = Some(Best {
                    claim: BestClaim::Made(self.claims.len()),
                    minor: amount_minor,
                    share,
                });
            }
        }
        *self.added.entry(account.clone()).or_default() += amount_minor;
        self.claims.push(Claim {
            escrow: at,
            record,
            account,
        });
    }
}

/// The account that a record credits: the grabber's, or the sender's if it was declined.
fn credited(escrow: &Escrow, record: &OutboxRecord) -> AccountName {
    let owner = match record.declined {
        true => &escrow.sender,
        false => record.grabber.as_str(),
    };
    AccountName::of(&escrow.tenant, owner, escrow.currency)
}

const LOCK_ESCROWS: &str = "-- ledger.lock_escrows
    SELECT n.row, n.id, n.tenant, n.currency, n.sender, n.state = 'closed', n.frozen,
        n.share_count, n.funded_minor - n.settled_minor - n.refunded_minor,
        n.dead_letter_count > 0, n.best_claim
    FROM envelope n WHERE n.id = ANY ($1) ORDER BY n.row FOR NO KEY UPDATE";

const BEST_CLAIMS: &str = "-- ledger.best_claims
    SELECT row, amount_minor, share FROM claim WHERE row = ANY ($1)";

type Escrows = (Vec<Escrow>, HashMap<EnvelopeId, usize>);

async fn read_escrows(tx: &Transaction<'_>, records: &[&OutboxRecord]) -> Result<Escrows, Fault> {
    let ids: BTreeSet<EnvelopeId> = records.iter().map(|record| record.envelope).collect();
    let ids: Vec<Vec<u8>> = ids.iter().map(|id| id.to_bytes().to_vec()).collect();
    let found = sql::rows(tx, LOCK_ESCROWS, &[&ids]).await?;
    let mut bests = Vec::new();
    for row in &found {
        bests.extend(row.try_get::<_, Option<i64>>(10)?);
    }
    let mut best_of = HashMap::new();
    if !bests.is_empty() {
        // Read when the rows are locked: nobody makes a better one meanwhile.
        for row in sql::rows(tx, BEST_CLAIMS, &[&bests]).await? {
            let best = Best {
                claim: BestClaim::Stands(row.try_get(0)?),
                minor: row.try_get(1)?,
                share: count(&row, 2)?,
            };
            best_of.insert(row.try_get::<_, i64>(0)?, best);
        }
    }
    let (mut escrows, mut escrow_of) = (Vec::with_capacity(found.len()), HashMap::new());
    for row in &found {
        escrow_of.insert(envelope_id(row, 1)?, escrows.len());
        escrows.push(escrow(row, &best_of)?);
    }
    Ok((escrows, escrow_of))
}

fn escrow(row: &Row, best_of: &HashMap<i64, Best>) -> Result<Escrow, Fault> {
    let best: Option<i64> = row.try_get(10)?;
    Ok(Escrow {
        row: row.try_get(0)?,
        tenant: row.try_get(2)?,
        currency: currency(row, 3)?,
        sender: row.try_get(4)?,
        closed: row.try_get(5)?,
        frozen: row.try_get(6)?,
        share_count: count(row, 7)?,
        left_minor: row.try_get(8)?,
        letters: row.try_get(9)?,
        best: best.and_then(|row| best_of.get(&row).copied()),
        paid: Sum::default(),
        declined: Sum::default(),
    })
}

const CLAIMS_IN_THE_WAY: &str = "-- ledger.claims_in_the_way
    SELECT c.envelope_row, c.share, c.grabber, c.amount_minor, c.declined
    FROM unnest($1::bigint[], $2::integer[]) u (envelope_row, share)
        JOIN claim c ON c.envelope_row = u.envelope_row AND c.share = u.share
    UNION
    SELECT c.envelope_row, c.share, c.grabber, c.amount_minor, c.declined
    FROM unnest($1::bigint[], $3::text[]) u (envelope_row, grabber)
        JOIN claim c ON c.envelope_row = u.envelope_row AND c.grabber = u.grabber";

type Known = (
    HashMap<(usize, u32), Claimed>,
    HashMap<(usize, String), Claimed>,
);

async fn read_claims(
    tx: &Transaction<'_>,
    records: &[&OutboxRecord],
    escrows: &[Escrow],
    escrow_of: &HashMap<EnvelopeId, usize>,
) -> Result<Known, Fault> {
    let (mut rows, mut shares, mut grabbers) = (Vec::new(), Vec::new(), Vec::new());
    for record in records {
        let Some(at) = escrow_of.get(&record.envelope) else {
            continue;
        };
        rows.push(escrows[*at].row);
        // A number beyond the column's is nobody's share.
        shares.push(i32::try_from(record.grant.share).unwrap_or(-1));
        grabbers.push(record.grabber.as_str());
    }
    let at_of_row: HashMap<i64, usize> = escrows
        .iter()
        .enumerate()
        .map(|(at, escrow)| (escrow.row, at))
        .collect();
    let (mut by_share, mut by_grabber) = (HashMap::new(), HashMap::new());
    if rows.is_empty() {
        return Ok((by_share, by_grabber));
    }
    for row in sql::rows(tx, CLAIMS_IN_THE_WAY, &[&rows, &shares, &grabbers]).await? {
        let at = *at_of_row
            .get(&row.try_get::<_, i64>(0)?)
            .ok_or_else(|| broken("a claim of an envelope that was not asked for"))?;
        let claimed = Claimed {
            share: count(&row, 1)?,
            grabber: row.try_get(2)?,
            amount_minor: row.try_get(3)?,
            declined: row.try_get(4)?,
        };
        by_share.insert((at, claimed.share), claimed.clone());
        by_grabber.insert((at, claimed.grabber.clone()), claimed);
    }
    Ok((by_share, by_grabber))
}
