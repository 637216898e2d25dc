//! What the reserve pays to who was shown a share that is somebody else's, and what goes back to it.
//!
//! *Bounds.* None is looked for in envelopes of which nothing was made good.
//!
//! *Ordering.* A batch finds out that something is owed when it is done carefully, and does all of it once
//! more as the only one that makes anything good ([`Reserve::open`]): so what the cap leaves is known before
//! it decides. That lock is the last one it takes. Claims and what the reserve pays are written in the order
//! in which they were decided: what is made good is owed by what claims say, and a claim of who was made good
//! passes the schema for what went back.
//!
//! *Not here.* How much is owed: `ledger::make_good`.

use std::collections::BTreeMap;

use deadpool_postgres::Transaction;
use hashbrown::HashMap;

use crate::domain::grab::OutboxRecord;
use crate::domain::id::UnixMs;
use crate::domain::money::Currency;
use crate::domain::posting::PostingKind;
use crate::ledger::Settled;
use crate::ledger::make_good::{
    CAPPED, InTheWay, MAKE_GOOD_MS, MadeGood, MakeGood, NO_ROOM, REFUSED_BY_THE_BOOKS, Used,
};

use super::Desk;
use super::payees::PayeeAt;
use super::post::{Entry, Journal, Posting, Side};
use super::rows::count;
use super::set_aside::key;
use super::settle::{Aside, Batch, Party};
use super::sql::{self, Fault, POSTING_NUMBERS, broken};

/// The advisory lock of who makes good.
const LOCK_OF_MAKING_GOOD: (i32, i32) = (4, 0);

/// What the cap leaves, for the one transaction that takes of it.
pub(super) struct Reserve {
    cap: MakeGood,
    used: HashMap<(String, Currency), Used>,
}

impl Reserve {
    /// Waits for its turn, and counts what was made good lately, of every tenant and currency: they are
    /// bounded by the cap.
    pub async fn open(tx: &Transaction<'_>, desk: &Desk) -> Result<Self, Fault> {
        let (class, number) = LOCK_OF_MAKING_GOOD;
        let lock = "-- ledger.lock_reserves\nSELECT pg_advisory_xact_lock($1, $2)";
        sql::row(tx, lock, &[&class, &number]).await?;
        let since = desk.now().0 - MAKE_GOOD_MS;
        let found = sql::rows(
            tx,
            "-- ledger.made_good_lately
             SELECT a.tenant, a.currency, sum(m.amount_minor)::bigint, count(*)::integer
             FROM account a JOIN made_good m ON m.reserve_row = a.row
             WHERE NOT m.back AND m.at > $1 GROUP BY a.tenant, a.currency",
            &[&since],
        )
        .await?;
        let mut used = HashMap::new();
        for row in &found {
            let lately = Used {
                minor: row.try_get(2)?,
                records: count(row, 3)?,
            };
            used.insert((row.try_get(0)?, super::rows::currency(row, 1)?), lately);
        }
        let cap = desk.make_good.read().clone();
        Ok(Self { cap, used })
    }

    fn takes(&mut self, tenant: &str, currency: Currency, minor: i64) -> bool {
        let used = self.used.entry((tenant.to_owned(), currency)).or_default();
        self.cap.takes(currency, used, minor)
    }
}

/// From the reserve to a grabber, or back.
pub(super) struct Payment<'a> {
    escrow: usize,
    grabber: PayeeAt,
    record: &'a OutboxRecord,
    back: bool,
    amount_minor: i64,
    /// Claims of the batch that were decided before it.
    pub claims_before: usize,
}

impl<'a> Batch<'a> {
    /// What these grabbers were made good of the batch's envelopes.
    pub async fn read_made_good(&mut self, tx: &Transaction<'_>) -> Result<(), Fault> {
        let (mut rows, mut accounts) = (Vec::new(), Vec::new());
        for party in self.parties.iter().flatten() {
            let escrow = &self.escrows[party.escrow];
            if let (true, Some(account)) = (escrow.has_made_good, self.payees.row(party.grabber)) {
                rows.push(escrow.row);
                accounts.push(account);
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let numbered = self.escrows.iter().enumerate();
        let at_of_row: HashMap<i64, usize> = numbered.map(|(at, e)| (e.row, at)).collect();
        let found = sql::rows(
            tx,
            "-- ledger.find_made_good
             SELECT DISTINCT m.envelope_row, m.account_row, m.share, m.shown_minor, m.amount_minor
             FROM unnest($1::bigint[], $2::bigint[]) u (envelope_row, account_row)
                 JOIN made_good m ON m.envelope_row = u.envelope_row
                     AND m.account_row = u.account_row AND NOT m.back",
            &[&rows, &accounts],
        )
        .await?;
        for row in &found {
            let escrow = at_of_row.get(&row.try_get::<_, i64>(0)?);
            let grabber = self.payees.of_row(row.try_get(1)?);
            let (Some(escrow), Some(grabber)) = (escrow, grabber) else {
                return Err(broken("somebody was made good who was not asked for"));
            };
            let made_good = MadeGood {
                share: count(row, 2)?,
                shown_minor: row.try_get(3)?,
                amount_minor: row.try_get(4)?,
            };
            self.made_good.insert((*escrow, grabber), made_good);
        }
        Ok(())
    }

    /// The verdict on a record that another claim stands in the way of; `aside` is the plan's reason not to
    /// pay it. Before a batch is careful it says nothing final.
    pub fn beaten(
        &mut self,
        party: Party,
        record: &'a OutboxRecord,
        aside: Option<&'static str>,
    ) -> Settled {
        let (at, grabber) = (party.escrow, party.grabber);
        if let Some(made_good) = self.made_good.get(&(at, grabber)) {
            if !made_good.is_of(record) {
                return Settled::Superseded;
            }
            self.asides.push(Aside::Resolve(record));
            return Settled::Duplicate;
        }
        let is_refused = aside == Some(REFUSED_BY_THE_BOOKS);
        if record.declined || aside.is_some() && !is_refused {
            return Settled::Superseded;
        }
        let Some(owed) = self
            .in_the_way(party, record)
            .owed_minor(record.grant.amount_minor)
        else {
            return Settled::Superseded;
        };
        if self.reserve.is_none() {
            self.is_owed = true;
            return Settled::MadeGood;
        }
        if self.dismissed.contains(&key(record)) {
            return Settled::Superseded;
        }
        // Something is owed, and the books won't have it: that is for an operator to see.
        if is_refused {
            self.asides
                .push(Aside::Letter(None, record, REFUSED_BY_THE_BOOKS));
            return Settled::DeadLetter;
        }
        let escrow = &self.escrows[at];
        if escrow.frozen {
            self.asides.push(Aside::Park(escrow.row, record));
            return Settled::Parked;
        }
        // A letter over the reserve's money blocks nothing.
        if !self.payees.has_room(grabber, owed) {
            self.asides.push(Aside::Letter(None, record, NO_ROOM));
            return Settled::DeadLetter;
        }
        let reserve = self.reserve.as_mut();
        if !reserve.is_some_and(|left| left.takes(&escrow.tenant, escrow.currency, owed)) {
            self.asides.push(Aside::Letter(None, record, CAPPED));
            return Settled::Capped;
        }
        self.payees.pay(grabber, owed);
        let made_good = MadeGood {
            share: record.grant.share,
            shown_minor: record.grant.amount_minor,
            amount_minor: owed,
        };
        self.made_good.insert((at, grabber), made_good);
        self.payments.push(Payment {
            escrow: at,
            grabber,
            record,
            back: false,
            amount_minor: owed,
            claims_before: self.claims.len(),
        });
        self.asides.push(Aside::Resolve(record));
        Settled::MadeGood
    }

    fn in_the_way(&self, party: Party, record: &OutboxRecord) -> InTheWay {
        let of_share = self.by_share.get(&(party.escrow, record.grant.share));
        let of_another = of_share.filter(|claimed| claimed.grabber != Some(party.grabber));
        let own = self.by_grabber.get(&(party.escrow, party.grabber));
        InTheWay {
            taken_minor: of_another.map(|claimed| claimed.amount_minor),
            own: own.map(|claimed| (claimed.amount_minor, claimed.declined)),
        }
    }

    /// What goes back to the reserve where a record is paid; 0: its grabber was not made good.
    pub fn back_minor(&self, party: Party, record: &OutboxRecord) -> i64 {
        let made_good = self.made_good.get(&(party.escrow, party.grabber));
        let made_good = made_good.filter(|_| !record.declined);
        made_good.map_or(0, |made| made.back_minor(record.grant.amount_minor))
    }

    /// Back to the reserve, what a share pays now.
    pub fn take_back(&mut self, party: Party, record: &'a OutboxRecord) {
        let (escrow, grabber) = (party.escrow, party.grabber);
        let amount_minor = self.back_minor(party, record);
        if amount_minor == 0 {
            return;
        }
        self.payees.take_back(grabber, amount_minor);
        self.payments.push(Payment {
            escrow,
            grabber,
            record,
            back: true,
            amount_minor,
            claims_before: self.claims.len(),
        });
    }

    /// Writes what was decided between two claims: after those before it, and before those behind it.
    pub async fn write_payments(
        &self,
        tx: &Transaction<'_>,
        now: UnixMs,
        payments: &[Payment<'_>],
    ) -> Result<(), Fault> {
        let reserves = self.add_to_reserves(tx, payments).await?;
        let mut posting_rows = sql::numbers(tx, POSTING_NUMBERS, payments.len()).await?;
        let mut entry_rows = sql::entry_numbers(tx, 2 * payments.len()).await?;
        let (mut journal, mut columns) = (Journal::default(), PaymentColumns::default());
        for payment in payments {
            let escrow = &self.escrows[payment.escrow];
            let reserve = reserves.get(&(escrow.tenant.as_str(), escrow.currency.code()));
            let reserve_row = *reserve.ok_or_else(|| broken("the reserve has no account"))?;
            let account_row = self.payees.row(payment.grabber);
            let account_row = account_row.ok_or_else(|| broken("an account was not opened"))?;
            let posting_row = posting_rows.next().ok_or_else(no_number)?;
            let posting = Posting {
                tenant: escrow.tenant.clone(),
                kind: PostingKind::MakeGood,
                currency: escrow.currency,
                envelope_row: Some(escrow.row),
                share_count: 0,
                reference: String::new(),
            };
            journal.posting(posting_row, posting);
            let minor = payment.minor();
            for (row, amount_minor) in [(account_row, minor), (reserve_row, -minor)] {
                let entry = Entry {
                    posting_row,
                    side: Side::Account(row),
                    amount_minor,
                };
                journal.entry(entry_rows.next().ok_or_else(no_number)?, entry);
            }
            let rows = [escrow.row, account_row, posting_row, reserve_row];
            columns.push(rows, payment)?;
        }
        journal.write(tx, now).await?;
        columns.write(tx, now).await
    }

    /// Moves what the reserves have, which are opened if need be. Answers their rows by tenant and currency.
    async fn add_to_reserves(
        &self,
        tx: &Transaction<'_>,
        payments: &[Payment<'_>],
    ) -> Result<BTreeMap<(&str, &str), i64>, Fault> {
        let mut moved = BTreeMap::<(&str, &str), i64>::new();
        for payment in payments {
            let escrow = &self.escrows[payment.escrow];
            let of = (escrow.tenant.as_str(), escrow.currency.code());
            *moved.entry(of).or_default() -= payment.minor();
        }
        let tenants: Vec<&str> = moved.keys().map(|(tenant, _)| *tenant).collect();
        let currencies: Vec<&str> = moved.keys().map(|(_, currency)| *currency).collect();
        let minors: Vec<i64> = moved.values().copied().collect();
        let found = sql::rows(tx, ADD_TO_RESERVES, &[&tenants, &currencies, &minors]).await?;
        for row in &found {
            let of: (&str, &str) = (row.try_get(1)?, row.try_get(2)?);
            let reserve = moved.iter_mut().find(|(name, _)| **name == of);
            let (_, reserve) = reserve.ok_or_else(|| broken("a reserve too many"))?;
            *reserve = row.try_get(0)?;
        }
        match found.len() == moved.len() {
            true => Ok(moved),
            false => Err(broken("the reserve has no account")),
        }
    }
}

/// In the order of their names. Two transactions that take back between claims may still meet in another order:
/// PostgreSQL ends one of them, and it is tried again.
const ADD_TO_RESERVES: &str = "-- ledger.add_to_reserves
    INSERT INTO account AS a (tenant, kind, owner, currency, available_minor)
    SELECT u.tenant, 'reserve', '', u.currency, u.minor
    FROM unnest($1::text[], $2::text[], $3::bigint[]) u (tenant, currency, minor)
    ON CONFLICT ON CONSTRAINT account_is_one
    DO UPDATE SET available_minor = a.available_minor + excluded.available_minor
    RETURNING a.row, a.tenant, a.currency";

/// What is made good and what goes back, as the arrays that a statement takes.
#[derive(Default)]
struct PaymentColumns {
    escrows: Vec<i64>,
    accounts: Vec<i64>,
    back: Vec<bool>,
    shares: Vec<i32>,
    shown: Vec<i64>,
    amounts: Vec<i64>,
    postings: Vec<i64>,
    reserves: Vec<i64>,
}

impl PaymentColumns {
    fn push(
        &mut self,
        [escrow, account, posting, reserve]: [i64; 4],
        payment: &Payment<'_>,
    ) -> Result<(), Fault> {
        let grant = payment.record.grant;
        self.escrows.push(escrow);
        self.accounts.push(account);
        self.back.push(payment.back);
        self.shares.push(sql::int(grant.share)?);
        self.shown.push(grant.amount_minor);
        self.amounts.push(payment.amount_minor);
        self.postings.push(posting);
        self.reserves.push(reserve);
        Ok(())
    }

    async fn write(&self, tx: &Transaction<'_>, now: UnixMs) -> Result<(), Fault> {
        let values: sql::Values<'_> = &[
            &self.escrows,
            &self.accounts,
            &self.back,
            &self.shares,
            &self.shown,
            &self.amounts,
            &self.postings,
            &self.reserves,
            &now.0,
        ];
        sql::run(tx, MAKE_GOOD, values).await?;
        Ok(())
    }
}

impl Payment<'_> {
    /// To the grabber; negative: back.
    fn minor(&self) -> i64 {
        match self.back {
            true => -self.amount_minor,
            false => self.amount_minor,
        }
    }

    /// Whose account it credits, and must be open.
    pub fn grabber(&self) -> PayeeAt {
        self.grabber
    }
}

fn no_number() -> Fault {
    broken("there are no more numbers")
}

const MAKE_GOOD: &str = "-- ledger.make_good
    WITH paid AS (
        SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::boolean[], $4::integer[], $5::bigint[],
            $6::bigint[], $7::bigint[], $8::bigint[])
            u (envelope_row, account_row, back, share, shown_minor, amount_minor, posting_row,
               reserve_row)),
    counted AS (
        UPDATE envelope n SET made_good_minor = n.made_good_minor + s.minor
        FROM (SELECT envelope_row, sum(CASE WHEN back THEN -amount_minor ELSE amount_minor END)::bigint
              FROM paid GROUP BY envelope_row) s (envelope_row, minor)
        WHERE n.row = s.envelope_row)
    INSERT INTO made_good (envelope_row, account_row, back, share, shown_minor, amount_minor,
        posting_row, reserve_row, at)
    SELECT paid.*, $9 FROM paid";
