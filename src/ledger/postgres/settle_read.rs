//! The first phase of settle: the batch's envelopes, locked; its accounts; claims in its way.
//!
//! *Bounds.* Claims are looked for in runs of share numbers, whose gaps are at most [`GAP_MAX`]: so
//! fresh grabs, which take the next shares, cost one look a run, and what is found is bounded by the
//! batch. An envelope without a claim is not asked.
//!
//! *Ordering.* A batch that was not careful does not ask what else its grabbers have claimed: the
//! unique key does, and the batch is done again, carefully.

use std::borrow::Cow;
use std::collections::BTreeSet;

use deadpool_postgres::Transaction;
use hashbrown::{HashMap, HashSet};
use tokio_postgres::Row;

use crate::domain::grab::OutboxRecord;
use crate::domain::id::EnvelopeId;

use super::known::Known;
use super::payees::Payees;
use super::rows::{count, currency, envelope_id};
use super::settle::{Batch, Best, Claimed, Escrow, Party, Sum};
use super::sql::{self, Fault, broken};

/// Shares between two records of a batch that are looked at with them: reading one row more is
/// cheaper than another descent into the index.
const GAP_MAX: i32 = 8;

impl<'a> Batch<'a> {
    /// Reads what decides about these records.
    pub async fn read(
        tx: &Transaction<'_>,
        known: &'a Known,
        records: &[&'a OutboxRecord],
        careful: bool,
    ) -> Result<Self, Fault> {
        let (mut escrows, escrow_of) = read_escrows(tx, records).await?;
        let mut payees = Payees::new(known);
        let mut parties = Vec::with_capacity(records.len());
        for record in records {
            let party = escrow_of.get(&record.envelope).map(|at| {
                let escrow: &Escrow = &escrows[*at];
                let (tenant, currency) = (&escrow.tenant, escrow.currency);
                let grabber = Cow::Borrowed(record.grabber.as_str());
                let sender = || Cow::Owned(escrow.sender.clone());
                Party {
                    escrow: *at,
                    grabber: payees.enter(tenant, currency, grabber),
                    sender: record
                        .declined
                        .then(|| payees.enter(tenant, currency, sender())),
                }
            });
            parties.push(party);
        }
        futures_util::try_join!(payees.find(tx, careful), note_made_good(tx, &mut escrows),)?;
        let mut batch = Self {
            escrows,
            payees,
            parties,
            by_share: HashMap::new(),
            by_grabber: HashMap::new(),
            claims: Vec::new(),
            asides: Vec::new(),
            made_good: HashMap::new(),
            dismissed: HashSet::new(),
            payments: Vec::new(),
            reserve: None,
            is_owed: false,
        };
        batch.read_claims(tx, records, careful).await?;
        batch.read_made_good(tx).await?;
        Ok(batch)
    }

    async fn read_claims(
        &mut self,
        tx: &Transaction<'_>,
        records: &[&OutboxRecord],
        careful: bool,
    ) -> Result<(), Fault> {
        let mut wanted = Vec::new();
        let (mut rows, mut accounts) = (Vec::new(), Vec::new());
        for (record, party) in records.iter().zip(&self.parties) {
            let Some(party) = party else { continue };
            let escrow = &self.escrows[party.escrow];
            if !escrow.has_claims {
                continue;
            }
            // A number beyond the column's is nobody's share.
            wanted.extend(i32::try_from(record.grant.share).map(|share| (escrow.row, share)));
            if let (true, Some(account)) = (careful, self.payees.row(party.grabber)) {
                rows.push(escrow.row);
                accounts.push(account);
            }
        }
        if wanted.is_empty() && rows.is_empty() {
            return Ok(());
        }
        let runs = Runs::of(wanted);
        let values: sql::Values<'_> = &[&runs.rows, &runs.low, &runs.high];
        let mut found = sql::rows(tx, CLAIMS_OF_SHARES, values).await?;
        if !rows.is_empty() {
            found.extend(sql::rows(tx, CLAIMS_OF_GRABBERS, &[&rows, &accounts]).await?);
        }
        let numbered = self.escrows.iter().enumerate();
        let at_of_row: HashMap<i64, usize> = numbered.map(|(at, e)| (e.row, at)).collect();
        for row in &found {
            self.note_claim(&at_of_row, row)?;
        }
        Ok(())
    }

    fn note_claim(&mut self, at_of_row: &HashMap<i64, usize>, row: &Row) -> Result<(), Fault> {
        let at = *at_of_row
            .get(&row.try_get::<_, i64>(0)?)
            .ok_or_else(|| broken("a claim of an envelope that was not asked for"))?;
        let claimed = Claimed {
            share: count(row, 1)?,
            grabber: self.payees.of_row(row.try_get(2)?),
            amount_minor: row.try_get(3)?,
            declined: row.try_get(4)?,
        };
        self.by_share.insert((at, claimed.share), claimed);
        if let Some(grabber) = claimed.grabber {
            self.by_grabber.insert((at, grabber), claimed);
        }
        Ok(())
    }
}

/// Runs of share numbers, as the arrays that a statement takes.
#[derive(Default)]
struct Runs {
    rows: Vec<i64>,
    low: Vec<i32>,
    high: Vec<i32>,
}

impl Runs {
    fn of(mut wanted: Vec<(i64, i32)>) -> Self {
        wanted.sort_unstable();
        let mut runs = Self::default();
        for (row, share) in wanted {
            match runs.high.last_mut() {
                Some(high) if runs.rows.last() == Some(&row) && share - *high <= GAP_MAX => {
                    *high = share;
                }
                _ => {
                    runs.rows.push(row);
                    runs.low.push(share);
                    runs.high.push(share);
                }
            }
        }
        runs
    }
}

const LOCK_ESCROWS: &str = "-- ledger.lock_escrows
    SELECT n.row, n.id, n.tenant, n.currency, n.sender, n.state = 'closed', n.frozen,
        n.share_count, n.funded_minor - n.settled_minor - n.refunded_minor,
        n.dead_letter_count > 0, n.settled_count + n.declined_count > 0, n.best_share, n.best_minor
    FROM envelope n WHERE n.id = ANY ($1) ORDER BY n.row FOR NO KEY UPDATE";

type Escrows = (Vec<Escrow>, HashMap<EnvelopeId, usize>);

async fn read_escrows(tx: &Transaction<'_>, records: &[&OutboxRecord]) -> Result<Escrows, Fault> {
    let ids: BTreeSet<EnvelopeId> = records.iter().map(|record| record.envelope).collect();
    let ids: Vec<Vec<u8>> = ids.iter().map(|id| id.to_bytes().to_vec()).collect();
    let found = sql::rows(tx, LOCK_ESCROWS, &[&ids]).await?;
    let (mut escrows, mut escrow_of) = (Vec::with_capacity(found.len()), HashMap::new());
    for row in &found {
        escrow_of.insert(envelope_id(row, 1)?, escrows.len());
        escrows.push(escrow(row)?);
    }
    Ok((escrows, escrow_of))
}

/// Asked when they are locked: what the statement that waits for a row reads elsewhere is from before it waited.
async fn note_made_good(tx: &Transaction<'_>, escrows: &mut [Escrow]) -> Result<(), Fault> {
    let rows: Vec<i64> = escrows.iter().map(|escrow| escrow.row).collect();
    let found = sql::rows(
        tx,
        "-- ledger.have_made_good
         SELECT u.row FROM unnest($1::bigint[]) u (row)
         WHERE EXISTS (SELECT FROM made_good m WHERE m.envelope_row = u.row)",
        &[&rows],
    )
    .await?;
    for row in &found {
        let found = row.try_get(0)?;
        // They are read in the order of their rows.
        if let Ok(at) = escrows.binary_search_by_key(&found, |escrow| escrow.row) {
            escrows[at].has_made_good = true;
        }
    }
    Ok(())
}

fn escrow(row: &Row) -> Result<Escrow, Fault> {
    let best_minor: Option<i64> = row.try_get(12)?;
    let best = match best_minor {
        Some(minor) => Some(Best {
            minor,
            share: count(row, 11)?,
        }),
        None => None,
    };
    Ok(Escrow {
        row: row.try_get(0)?,
        tenant: row.try_get(2)?,
        currency: currency(row, 3)?,
        sender: row.try_get(4)?,
        closed: row.try_get(5)?,
        frozen: row.try_get(6)?,
        has_made_good: false,
        share_count: count(row, 7)?,
        left_minor: row.try_get(8)?,
        letters: row.try_get(9)?,
        has_claims: row.try_get(10)?,
        best,
        paid: Sum::default(),
        declined: Sum::default(),
    })
}

const CLAIMS_OF_SHARES: &str = "-- ledger.claims_of_shares
    SELECT c.envelope_row, c.share, c.account_row, c.amount_minor, c.declined
    FROM unnest($1::bigint[], $2::integer[], $3::integer[]) u (envelope_row, low, high)
        JOIN claim c ON c.envelope_row = u.envelope_row AND c.share BETWEEN u.low AND u.high";

const CLAIMS_OF_GRABBERS: &str = "-- ledger.claims_of_grabbers
    SELECT c.envelope_row, c.share, c.account_row, c.amount_minor, c.declined
    FROM unnest($1::bigint[], $2::bigint[]) u (envelope_row, account_row)
        JOIN claim c ON c.envelope_row = u.envelope_row AND c.account_row = u.account_row";
