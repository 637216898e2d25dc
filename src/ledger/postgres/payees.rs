//! The accounts of a batch: of those who grabbed, and of senders who take declined shares back.
//!
//! *Bounds.* As many as a batch has records, and twice that where all are declined.
//!
//! *Ordering.* They are found without a lock, most of them in memory (`known`): an account's row number
//! is for ever, and whose it is and what it has is looked at when it is moved. A careful batch asks for
//! all of them by name and locks them. Both move them in the order of their rows, as far as PostgreSQL
//! keeps to it: two batches that wait for each other are told so, and one of them is done again.

use std::borrow::Cow;

use deadpool_postgres::Transaction;
use hashbrown::HashMap;

use crate::domain::money::{AMOUNT_MINOR_MAX, Currency};

use super::known::{Known, Names};
use super::sql::{self, Fault, broken};

/// Which one of a batch.
pub(super) type PayeeAt = usize;

/// An account of a batch.
struct Payee<'a> {
    purse: usize,
    owner: Cow<'a, str>,
    row: Option<i64>,
    /// Its row is remembered from another batch: whose it is has to be looked at.
    recalled: bool,
    /// When it was read (nothing where it was recalled), and what the batch adds.
    available_minor: i64,
    added_minor: i64,
    /// What it was paid counts against the limit of an account; what comes back to a sender does not.
    bounded: bool,
    /// It was opened after what is paid was decided.
    late: bool,
}

/// See the module.
pub(super) struct Payees<'a> {
    known: &'a Known,
    /// Tenants and currencies, each with its owners.
    purses: Vec<(String, Currency, HashMap<Cow<'a, str>, PayeeAt>)>,
    all: Vec<Payee<'a>>,
    at_of_row: HashMap<i64, PayeeAt>,
}

impl<'a> Payees<'a> {
    pub fn new(known: &'a Known) -> Self {
        Self {
            known,
            purses: Vec::new(),
            all: Vec::new(),
            at_of_row: HashMap::new(),
        }
    }

    /// Adds somebody, who may have no account.
    pub fn enter(&mut self, tenant: &str, currency: Currency, owner: Cow<'a, str>) -> PayeeAt {
        let known = |(t, c, _): &(String, Currency, _)| t == tenant && *c == currency;
        let purse = self.purses.iter().position(known).unwrap_or_else(|| {
            let purse = (tenant.to_owned(), currency, HashMap::new());
            self.purses.push(purse);
            self.purses.len() - 1
        });
        let next = self.all.len();
        let at = *self.purses[purse].2.entry(owner.clone()).or_insert(next);
        if at == next {
            self.all.push(Payee {
                purse,
                owner,
                row: None,
                recalled: false,
                available_minor: 0,
                added_minor: 0,
                bounded: false,
                late: false,
            });
        }
        at
    }

    /// Finds the accounts that there are; opens none: nobody gets an account by asking. A careful batch
    /// asks for each by name and locks it.
    pub async fn find(&mut self, tx: &Transaction<'_>, careful: bool) -> Result<(), Fault> {
        if careful {
            // Also what was remembered wrongly is remembered rightly from now on.
            return self.ask(tx, LOCK, true).await;
        }
        let known = self.known;
        let mut names = self.names();
        for (at, payee) in self.all.iter_mut().enumerate() {
            payee.row = known.row(&mut names[payee.purse], &payee.owner);
            payee.recalled = payee.row.is_some();
            if let Some(row) = payee.row {
                self.at_of_row.insert(row, at);
            }
        }
        self.ask(tx, FIND, true).await
    }

    /// Asks for those whose row is not known, in the order of their names: neighbours in the index.
    async fn ask(
        &mut self,
        tx: &Transaction<'_>,
        question: &str,
        remember: bool,
    ) -> Result<(), Fault> {
        let mut names = self.names();
        for purse in self.in_order() {
            let of_it =
                |(_, payee): &(PayeeAt, &Payee<'_>)| payee.purse == purse && payee.row.is_none();
            let mut asked: Vec<(PayeeAt, &Payee<'_>)> =
                self.all.iter().enumerate().filter(of_it).collect();
            asked.sort_unstable_by(|(_, one), (_, other)| one.owner.cmp(&other.owner));
            let owners: Vec<&str> = asked.iter().map(|(_, payee)| &*payee.owner).collect();
            let at_of: Vec<PayeeAt> = asked.iter().map(|(at, _)| *at).collect();
            if owners.is_empty() {
                continue;
            }
            let (tenant, currency, _) = &self.purses[purse];
            let values: sql::Values<'_> = &[&tenant, &currency.code(), &owners];
            for row in sql::rows(tx, question, values).await? {
                let place: i64 = row.try_get(0)?;
                let at = usize::try_from(place - 1).ok().and_then(|at| at_of.get(at));
                let at = *at.ok_or_else(|| broken("an account that was not asked for"))?;
                let number = row.try_get(1)?;
                self.all[at].row = Some(number);
                self.all[at].available_minor = row.try_get(2)?;
                self.at_of_row.insert(number, at);
                if remember {
                    let owner = &self.all[at].owner;
                    self.known.note(&mut names[purse], owner, number);
                }
            }
        }
        Ok(())
    }

    /// Of each purse.
    fn names(&self) -> Vec<Names> {
        let purses = self.purses.iter();
        purses.map(|(t, c, _)| Names::of(t, *c)).collect()
    }

    /// Purses by name: two batches that wait for each other's accounts would be done again.
    fn in_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.purses.len()).collect();
        order.sort_unstable_by_key(|at| {
            let (tenant, currency, _) = &self.purses[*at];
            (tenant.as_str(), currency.code().to_owned())
        });
        order
    }

    /// Who has an account, if it is one of the batch.
    pub fn of_row(&self, row: i64) -> Option<PayeeAt> {
        self.at_of_row.get(&row).copied()
    }

    /// The account's row, if there is one.
    pub fn row(&self, at: PayeeAt) -> Option<i64> {
        self.all[at].row
    }

    /// Whether it can be paid so much more.
    pub fn has_room(&self, at: PayeeAt, amount_minor: i64) -> bool {
        let payee = &self.all[at];
        payee.available_minor + payee.added_minor <= AMOUNT_MINOR_MAX - amount_minor
    }

    /// Pays a share.
    pub fn pay(&mut self, at: PayeeAt, amount_minor: i64) {
        self.all[at].added_minor += amount_minor;
        self.all[at].bounded = true;
    }

    /// Takes back what was made good, as a share is paid.
    pub fn take_back(&mut self, at: PayeeAt, amount_minor: i64) {
        self.all[at].added_minor -= amount_minor;
    }

    /// Gives a declined share back.
    pub fn give_back(&mut self, at: PayeeAt, amount_minor: i64) {
        self.all[at].added_minor += amount_minor;
    }

    /// Opens the accounts of these that have none, in the order of their names.
    pub async fn open(
        &mut self,
        tx: &Transaction<'_>,
        claimants: impl Iterator<Item = PayeeAt>,
    ) -> Result<(), Fault> {
        let mut missing = HashMap::<usize, Vec<&str>>::new();
        for at in claimants {
            let payee = &self.all[at];
            if payee.row.is_none() {
                missing.entry(payee.purse).or_default().push(&payee.owner);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        for purse in self.in_order() {
            let Some(mut owners) = missing.remove(&purse) else {
                continue;
            };
            owners.sort_unstable();
            owners.dedup();
            let (tenant, currency, _) = &self.purses[purse];
            sql::run(tx, OPEN, &[&tenant, &currency.code(), &owners]).await?;
        }
        drop(missing);
        // Another process may have opened one: then it is there now, and nobody looked whether it has room.
        let before: Vec<bool> = self.all.iter().map(|payee| payee.row.is_some()).collect();
        // It is not remembered either: this transaction may not be committed.
        self.ask(tx, FIND, false).await?;
        for (payee, was_there) in self.all.iter_mut().zip(before) {
            payee.late = !was_there;
        }
        Ok(())
    }

    /// Moves what was added, each account once. Again, where an account would have more than the
    /// limit and the batch did not look at it under a lock, or where a row is not whose it was.
    pub async fn write(&self, tx: &Transaction<'_>, careful: bool) -> Result<(), Fault> {
        let mut too_much = 0;
        for purse in self.in_order() {
            let of_it = self.all.iter().filter(|payee| payee.purse == purse);
            let (mut moved, mut recalled) = (Moves::default(), Moves::default());
            let mut sorted: Vec<&Payee<'_>> = of_it.collect();
            sorted.sort_unstable_by_key(|payee| payee.row);
            for payee in sorted {
                match (payee.row, payee.added_minor) {
                    (None, 0) => {}
                    (None, _) => return Err(broken("an account was not opened")),
                    (Some(row), 0) if payee.recalled => recalled.push(row, payee, careful),
                    (Some(_), 0) => {}
                    (Some(row), _) => moved.push(row, payee, careful),
                }
            }
            let (tenant, currency, _) = &self.purses[purse];
            let currency = currency.code();
            if !moved.rows.is_empty() {
                let values: sql::Values<'_> = &[
                    &moved.rows,
                    &moved.owners,
                    &moved.added,
                    &moved.bounded,
                    &AMOUNT_MINOR_MAX,
                    &tenant,
                    &currency,
                ];
                let counted = sql::row(tx, ADD, values).await?;
                let counted = counted.ok_or_else(|| broken("a count has no row"))?;
                self.all_found(&moved, counted.try_get(0)?)?;
                too_much += counted.try_get::<_, i64>(1)?;
            }
            if !recalled.rows.is_empty() {
                let values: sql::Values<'_> =
                    &[&recalled.rows, &recalled.owners, &tenant, &currency];
                let counted = sql::row(tx, COUNT, values).await?;
                let counted = counted.ok_or_else(|| broken("a count has no row"))?;
                self.all_found(&recalled, counted.try_get(0)?)?;
            }
        }
        match too_much {
            0 => Ok(()),
            _ => Err(Fault::Again("an account would have too much".to_owned())),
        }
    }

    /// Whether each row was whose the batch took it to be.
    fn all_found(&self, asked: &Moves<'_>, found: i64) -> Result<(), Fault> {
        if usize::try_from(found) == Ok(asked.rows.len()) {
            return Ok(());
        }
        let mut recalled = self.all.iter().filter(|payee| payee.recalled).peekable();
        if recalled.peek().is_none() {
            return Err(broken("an account was found and is not there"));
        }
        let mut names = self.names();
        for payee in recalled {
            self.known.forget(&mut names[payee.purse], &payee.owner);
        }
        tracing::warn!(
            "accounts are not where they were: were the books restored under this process?"
        );
        Err(Fault::Again("accounts are not where they were".to_owned()))
    }
}

/// What accounts move by, as the arrays that a statement takes.
#[derive(Default)]
struct Moves<'a> {
    rows: Vec<i64>,
    owners: Vec<&'a str>,
    added: Vec<i64>,
    bounded: Vec<bool>,
}

impl<'a> Moves<'a> {
    fn push(&mut self, row: i64, payee: &'a Payee<'_>, careful: bool) {
        self.rows.push(row);
        self.owners.push(&payee.owner);
        self.added.push(payee.added_minor);
        self.bounded.push(payee.bounded && (payee.late || !careful));
    }
}

// Each is looked up by itself (a join may be turned round, see `ADD`).
pub(super) const FIND: &str = "-- ledger.find_payees
    SELECT u.place, a.row, a.available_minor
    FROM unnest($3::text[]) WITH ORDINALITY u (owner, place) CROSS JOIN LATERAL (
        SELECT row, available_minor FROM account
        WHERE tenant = $1 AND kind = 'owner' AND owner = u.owner AND currency = $2 LIMIT 1) a";

pub(super) const LOCK: &str = "-- ledger.lock_payees
    SELECT u.place, a.row, a.available_minor
    FROM (SELECT u.place, a.row
        FROM unnest($3::text[]) WITH ORDINALITY u (owner, place) CROSS JOIN LATERAL (
            SELECT row FROM account
            WHERE tenant = $1 AND kind = 'owner' AND owner = u.owner AND currency = $2 LIMIT 1) a
        ORDER BY a.row) u
    CROSS JOIN LATERAL (
        SELECT row, available_minor FROM account WHERE row = u.row LIMIT 1 FOR NO KEY UPDATE) a";

const OPEN: &str = "-- ledger.open_payees
    INSERT INTO account (tenant, kind, owner, currency)
    SELECT $1, 'owner', u.owner, $2 FROM unnest($3::text[]) u (owner)
    ON CONFLICT ON CONSTRAINT account_is_one DO NOTHING";

// A row is reached by its number. Whose it is stands in a CASE, which no index serves and of which the planner
// takes nothing for granted: as conditions of their own, tenant, currency and kind told it that books which were never
// analysed have one such account, and it went through all of them for each of a batch.
pub(super) const ADD: &str = "-- ledger.add_to_payees
    WITH moved AS (
        UPDATE account a SET available_minor = a.available_minor + u.added
        FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::boolean[]) u (row, owner, added, bounded)
        WHERE a.row = u.row AND CASE WHEN a.kind = 'owner' AND a.owner = u.owner
            AND a.tenant = $6 AND a.currency = $7 THEN true ELSE false END
        RETURNING u.bounded AND a.available_minor > $5 AS is_too_much)
    SELECT count(*), count(*) FILTER (WHERE is_too_much) FROM moved";

pub(super) const COUNT: &str = "-- ledger.count_payees
    SELECT count(*) FROM unnest($1::bigint[], $2::text[]) u (row, owner)
        JOIN account a ON a.row = u.row AND CASE WHEN a.kind = 'owner' AND a.owner = u.owner
            AND a.tenant = $3 AND a.currency = $4 THEN true ELSE false END";
