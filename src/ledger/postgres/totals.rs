//! What somebody gave and got in a period.
//!
//! *Bounds.* At most `TOTALS_ROWS_MAX` claims a currency and as many envelopes are read, those of the weeks in
//! which an envelope must have been made whose shares were grabbed in the period.

use std::collections::BTreeMap;

use deadpool_postgres::GenericClient;

use crate::domain::envelope::EXPIRES_IN_MS_MAX;
use crate::domain::id::{PersonId, TenantId, UnixMs};
use crate::ledger::{Period, PeriodTotals, TOTALS_ROWS_MAX};

use super::read::accounts_of;
use super::rows::{currency, long_count};
use super::sql::{self, Fault, broken};

// The rows of envelopes from before migration 0004 have no day, and are below all that have one.
const RECEIVED: &str = "-- ledger.received_in_period
    WITH mine AS MATERIALIZED (
        SELECT c.envelope_row, c.share, c.amount_minor, c.granted_at FROM claim c
        WHERE c.account_row = $1 AND NOT c.declined
            AND (c.envelope_row < 1::bigint << 40 OR c.envelope_row BETWEEN $4 AND $5)
        LIMIT $6)
    SELECT (SELECT count(*) FROM mine), count(*), coalesce(sum(m.amount_minor), 0)::bigint,
        count(*) FILTER (WHERE n.best_share = m.share
            AND (n.state = 'closed' OR n.settled_count + n.declined_count = n.share_count))
    FROM mine m JOIN envelope n ON n.row = m.envelope_row
    WHERE m.granted_at >= $2 AND m.granted_at < $3";

const SENT: &str = "-- ledger.sent_in_period
    WITH mine AS MATERIALIZED (
        SELECT n.currency, n.funded_minor, n.refunded_minor, n.created_at FROM envelope n
        WHERE n.tenant = $1 AND n.sender = $2
            AND (n.row < 1::bigint << 40 OR n.row BETWEEN $5 AND $6)
        LIMIT $7)
    SELECT count(*), NULL, NULL, NULL, NULL FROM mine
    UNION ALL SELECT 0, m.currency, count(*), coalesce(sum(m.funded_minor), 0)::bigint,
        coalesce(sum(m.refunded_minor), 0)::bigint
    FROM mine m WHERE m.created_at >= $3 AND m.created_at < $4 GROUP BY m.currency";

/// The rows of envelopes that were made in these days, both included.
fn rows_of_days(from: UnixMs, to: UnixMs) -> (i64, i64) {
    let first = |day: u16| i64::from(day) << 40;
    (first(from.day()), first(to.day().saturating_add(1)))
}

/// By currency; `None`: more must be read than a call may.
pub(super) async fn totals(
    db: &impl GenericClient,
    tenant: &TenantId,
    person: &PersonId,
    period: Period,
) -> Result<Option<Vec<PeriodTotals>>, Fault> {
    let most = i64::try_from(TOTALS_ROWS_MAX).map_err(|_| broken("a bound is too large"))?;
    let limit = most + 1;
    let (from, to) = (&period.from.0, &period.to.0);
    let mut totals = BTreeMap::new();
    // A share is grabbed while its envelope runs.
    let (low, high) = rows_of_days(period.from.plus_ms(-EXPIRES_IN_MS_MAX), period.to);
    for (account, currency) in accounts_of(db, tenant, person, None).await? {
        let values: sql::Values<'_> = &[&account, from, to, &low, &high, &limit];
        let Some(row) = sql::row(db, RECEIVED, values).await? else {
            continue;
        };
        if row.try_get::<_, i64>(0)? > most {
            return Ok(None);
        }
        let mut received = PeriodTotals::nothing(currency);
        received.received_count = long_count(&row, 1)?;
        received.received_minor = row.try_get(2)?;
        received.best_count = long_count(&row, 3)?;
        totals.insert(currency, received);
    }
    let (low, high) = rows_of_days(period.from, period.to);
    let (tenant, person) = (&tenant.as_str(), &person.as_str());
    let values: sql::Values<'_> = &[tenant, person, from, to, &low, &high, &limit];
    for row in sql::rows(db, SENT, values).await? {
        if row.try_get::<_, Option<&str>>(1)?.is_none() {
            // How many were read.
            if row.try_get::<_, i64>(0)? > most {
                return Ok(None);
            }
            continue;
        }
        let currency = currency(&row, 1)?;
        let sent = totals
            .entry(currency)
            .or_insert_with(|| PeriodTotals::nothing(currency));
        sent.sent_count = long_count(&row, 2)?;
        sent.sent_minor = row.try_get(3)?;
        sent.refunded_minor = row.try_get(4)?;
    }
    Ok(Some(
        totals.into_values().filter(PeriodTotals::is_any).collect(),
    ))
}
