//! What somebody gave and got in a period.
//!
//! *Bounds.* At most `TOTALS_ROWS_MAX` shares a currency and as many envelopes are read, of all times.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::domain::id::{PersonId, TenantId};
use crate::ledger::{LedgerError, Period, PeriodTotals, TOTALS_ROWS_MAX};

use super::read::accounts_of;
use super::rows::{Sql, currency};

const RECEIVED: &str = "-- ledger.received_in_period
    WITH mine AS MATERIALIZED (
        SELECT e.row FROM entry e
        WHERE e.account_row = ?1 AND (e.share IS NOT NULL) = 1 LIMIT ?4)
    SELECT (SELECT count(*) FROM mine), count(*), coalesce(sum(c.amount_minor), 0),
        count(*) FILTER (WHERE n.best_claim = c.row
            AND (n.state = 'closed' OR n.settled_count + n.declined_count = n.share_count))
    FROM mine m JOIN claim c ON c.row = m.row JOIN envelope n ON n.row = c.envelope_row
    WHERE c.granted_at >= ?2 AND c.granted_at < ?3";

const SENT: &str = "-- ledger.sent_in_period
    WITH mine AS MATERIALIZED (
        SELECT n.currency, n.funded_minor, n.refunded_minor, n.created_at FROM envelope n
        WHERE n.tenant = ?1 AND n.sender = ?2 LIMIT ?5)
    SELECT count(*), NULL, NULL, NULL, NULL FROM mine
    UNION ALL SELECT 0, m.currency, count(*), coalesce(sum(m.funded_minor), 0),
        coalesce(sum(m.refunded_minor), 0)
    FROM mine m WHERE m.created_at >= ?3 AND m.created_at < ?4 GROUP BY m.currency";

/// By currency; `None`: more must be read than a call may.
pub(super) fn totals(
    db: &Connection,
    tenant: &TenantId,
    person: &PersonId,
    period: Period,
) -> Result<Option<Vec<PeriodTotals>>, LedgerError> {
    let limit = i64::try_from(TOTALS_ROWS_MAX + 1).expect("a bound is small");
    let (from, to) = (period.from.0, period.to.0);
    let mut totals = BTreeMap::new();
    let mut is_all = true;
    let mut find = db.prepare_cached(RECEIVED).sql()?;
    for (account, currency) in accounts_of(db, tenant, person, None)? {
        let mut received = PeriodTotals::nothing(currency);
        let read: i64 = find
            .query_row((account, from, to, limit), |row| {
                received.received_count = row.get(1)?;
                received.received_minor = row.get(2)?;
                received.best_count = row.get(3)?;
                row.get(0)
            })
            .sql()?;
        is_all &= read < limit;
        totals.insert(currency, received);
    }
    let mut find = db.prepare_cached(SENT).sql()?;
    let key = (tenant.as_str(), person.as_str(), from, to, limit);
    let mut found = find.query(key).sql()?;
    while let Some(row) = found.next().sql()? {
        if row.get::<_, Option<String>>(1).sql()?.is_none() {
            // How many were read.
            is_all &= row.get::<_, i64>(0).sql()? < limit;
            continue;
        }
        let currency = currency(row, 1).sql()?;
        let sent: &mut PeriodTotals = totals
            .entry(currency)
            .or_insert_with(|| PeriodTotals::nothing(currency));
        sent.sent_count = row.get(2).sql()?;
        sent.sent_minor = row.get(3).sql()?;
        sent.refunded_minor = row.get(4).sql()?;
    }
    let told = totals.into_values().filter(PeriodTotals::is_any);
    Ok(is_all.then(|| told.collect()))
}
