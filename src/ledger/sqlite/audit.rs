//! Recomputes what the books keep: sums from entries and claims, beside the rows that state them.
//!
//! # Shape
//! | question | answer |
//! |---|---|
//! | `audit_envelopes` | a page of envelopes with the sums of their entries and claims |
//! | `audit_totals` | every posting, account, envelope, claim and payment of the reserve that contradicts its entries, every batch of leaves whose root is not that of its secret; sums a currency |
//!
//! # Bounds
//! A page, and at most `PAGE_ROWS_MAX` discrepancies of each kind. `audit_totals` reads the whole
//! file on one snapshot, a million entries in about two seconds, beside the writer.
//!
//! # Not here
//! What the hot store knows (the audit room). An edit that keeps every sum: whoever can write the
//! file can write all of it.

use rusqlite::{Connection, Row};

use crate::domain::books::{Discrepancy, DiscrepancyKind};
use crate::domain::fairness::{LEAVES_PER_BATCH, SealKeys};
use crate::domain::id::{EnvelopeId, TenantId};
use crate::ledger::audited::{Batch, Columns};
use crate::ledger::{AuditPage, AuditRow, AuditTotals, CurrencyTotals, LedgerError, PAGE_ROWS_MAX};

use super::rows::{ENVELOPE_COLUMNS, Sql, currency, envelope, envelope_id, page};

/// Envelopes with what their entries and claims sum to.
pub(super) fn envelopes(
    db: &Connection,
    tenant: Option<&TenantId>,
    asked: AuditPage,
) -> Result<Vec<AuditRow>, LedgerError> {
    let tenant = tenant.map(TenantId::as_str);
    let found = match asked {
        AuditPage::After(after, limit) => {
            db.prepare_cached(&audited("row > ?1"))
                .and_then(|mut find| {
                    find.query_map((after, page(limit), tenant), audit_row)?
                        .collect()
                })
        }
        AuditPage::Of(ids) => db.prepare_cached(&audited("id = ?1")).and_then(|mut find| {
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                for row in find.query_map((id.to_bytes(), 1, tenant), audit_row)? {
                    found.push(row?);
                }
            }
            Ok(found)
        }),
    };
    found.sql()
}

/// Asks for envelopes of a condition, by row, with the sums of their entries and claims.
fn audited(which: &str) -> String {
    format!(
        "-- ledger.audit_envelopes
         SELECT {ENVELOPE_COLUMNS},
             (SELECT coalesce(sum(amount_minor), 0) FROM entry
              WHERE envelope_row = n.row AND amount_minor > 0),
             (SELECT -coalesce(sum(amount_minor), 0) FROM entry
              WHERE envelope_row = n.row AND amount_minor < 0),
             coalesce(c.paid_count, 0), coalesce(c.paid_minor, 0),
             coalesce(c.declined_count, 0), coalesce(c.declined_minor, 0),
             n.dead_letter_count + n.parked_count, n.day, n.tenant, n.sender, n.currency,
             n.leaf_number, n.share_count, n.funded_minor, n.created_at, n.expires_at,
             (SELECT batch_root FROM leaf_batch b
              WHERE b.tenant = n.tenant AND b.batch_number = n.leaf_number / {LEAVES_PER_BATCH})
         FROM envelope n LEFT JOIN
             (SELECT envelope_row,
                  sum(1 - declined) AS paid_count, sum(amount_minor * (1 - declined)) AS paid_minor,
                  sum(declined) AS declined_count, sum(amount_minor * declined) AS declined_minor
              FROM claim
              WHERE envelope_row IN
                  (SELECT row FROM envelope WHERE {which} AND (?3 IS NULL OR tenant = ?3)
                   ORDER BY row LIMIT ?2)
              GROUP BY envelope_row) c ON c.envelope_row = n.row
         WHERE n.{which} AND (?3 IS NULL OR n.tenant = ?3) ORDER BY n.row LIMIT ?2"
    )
}

fn audit_row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    // What can't be read is one row's damage.
    let envelope = envelope(row).map_err(|error| error.to_string());
    let columns = Columns {
        day: row.get(21)?,
        tenant: row.get_ref(22)?.as_str()?,
        sender: row.get_ref(23)?.as_str()?,
        currency: row.get_ref(24)?.as_str()?,
        leaf_number: row.get(25)?,
        share_count: row.get(26)?,
        funded_minor: row.get(27)?,
        created_at: row.get(28)?,
        expires_at: row.get(29)?,
        batch_root: row.get_ref(30)?.as_blob_or_null()?,
    };
    let read = envelope.as_ref().ok();
    Ok(AuditRow {
        row: row.get(0)?,
        id: envelope_id(row, 1).ok(),
        contradicts: read.and_then(|envelope| columns.contradict(envelope)),
        envelope,
        entries_in_minor: row.get(14)?,
        entries_out_minor: row.get(15)?,
        paid: (row.get(16)?, row.get(17)?),
        declined: (row.get(18)?, row.get(19)?),
        dead_letters: row.get(20)?,
    })
}

/// Postings whose entries don't sum to zero, or that have none.
const POSTINGS: &str = "-- ledger.audit_postings
    SELECT p.tenant, n.id,
        'posting ' || p.row || ' (' || p.kind || ') sums to ' || coalesce(s.minor, 'nothing')
    FROM posting p
        LEFT JOIN (SELECT posting_row, sum(amount_minor) AS minor FROM entry GROUP BY posting_row) s
            ON s.posting_row = p.row
        LEFT JOIN envelope n ON n.row = p.envelope_row
    WHERE s.minor IS NOT 0 AND (?2 IS NULL OR p.tenant = ?2) LIMIT ?1";

/// Entries whose account, envelope or posting is of another tenant or currency, or missing.
const ENTRIES: &str = "-- ledger.audit_entries
    SELECT p.tenant, n.id, 'entry ' || e.row || ' of posting ' || e.posting_row
        || ' belongs to another tenant, currency or envelope'
    FROM entry e LEFT JOIN posting p ON p.row = e.posting_row
        LEFT JOIN account a ON a.row = e.account_row
        LEFT JOIN envelope n ON n.row = e.envelope_row
    WHERE (?2 IS NULL OR p.tenant = ?2) AND (p.row IS NULL
        OR (e.account_row IS NOT NULL
            AND (a.currency IS NOT p.currency OR a.tenant IS NOT p.tenant))
        OR (e.envelope_row IS NOT NULL
            AND (n.row IS NOT p.envelope_row OR n.currency IS NOT p.currency
                OR n.tenant IS NOT p.tenant)))
    LIMIT ?1";

/// Accounts whose balance is not the sum of their entries.
const ACCOUNTS: &str = "-- ledger.audit_accounts
    SELECT a.tenant, NULL, 'account ' || a.row || ' (' || a.kind || ', ' || a.currency || ') has '
        || a.available_minor || ', its entries sum to ' || coalesce(s.minor, 0)
    FROM account a
        LEFT JOIN (SELECT account_row, sum(amount_minor) AS minor FROM entry
                   WHERE account_row IS NOT NULL GROUP BY account_row) s
            ON s.account_row = a.row
    WHERE a.available_minor <> coalesce(s.minor, 0) AND (?2 IS NULL OR a.tenant = ?2) LIMIT ?1";

/// Envelopes whose columns are not the sums of their entries and claims.
const ENVELOPES: &str = "-- ledger.audit_envelope_sums
    SELECT n.tenant, n.id, 'envelope row ' || n.row || ': funded ' || n.funded_minor || ', settled '
        || n.settled_minor || ', refunded ' || n.refunded_minor || ', shares ' || n.settled_count
        || ' and ' || n.declined_count || '; its entries put in ' || coalesce(e.put_in, 0)
        || ' and took out ' || coalesce(e.taken_out, 0) || ', its claims paid '
        || coalesce(c.paid_minor, 0) || ' in ' || coalesce(c.paid_count, 0) || ' shares and declined '
        || coalesce(c.declined_count, 0)
    FROM envelope n
        LEFT JOIN (SELECT envelope_row, sum(max(amount_minor, 0)) AS put_in,
                       -sum(min(amount_minor, 0)) AS taken_out
                   FROM entry WHERE envelope_row IS NOT NULL GROUP BY envelope_row) e
            ON e.envelope_row = n.row
        LEFT JOIN (SELECT envelope_row, sum(1 - declined) AS paid_count,
                       sum(amount_minor * (1 - declined)) AS paid_minor,
                       sum(declined) AS declined_count
                   FROM claim GROUP BY envelope_row) c
            ON c.envelope_row = n.row
    WHERE (?2 IS NULL OR n.tenant = ?2) AND (coalesce(e.put_in, 0) <> n.funded_minor
        OR coalesce(e.taken_out, 0) <> n.settled_minor + n.refunded_minor
        OR coalesce(c.paid_minor, 0) <> n.settled_minor
        OR coalesce(c.paid_count, 0) <> n.settled_count
        OR coalesce(c.declined_count, 0) <> n.declined_count
        OR n.settled_minor + n.refunded_minor > n.funded_minor
        OR (n.state = 'closed' AND n.settled_minor + n.refunded_minor <> n.funded_minor))
    LIMIT ?1";

/// Claims without the entry that is their twin.
const CLAIMS: &str = "-- ledger.audit_claims
    SELECT n.tenant, n.id, 'claim ' || c.row || ' of share ' || c.share || ' says '
        || c.amount_minor || ', its entry says ' || coalesce(e.amount_minor, 'nothing')
    FROM claim c LEFT JOIN entry e ON e.row = c.row
        LEFT JOIN posting p ON p.row = e.posting_row
        LEFT JOIN account a ON a.row = e.account_row
        LEFT JOIN envelope n ON n.row = c.envelope_row
    WHERE (?2 IS NULL OR n.tenant = ?2) AND (e.amount_minor IS NOT c.amount_minor
        OR p.envelope_row IS NOT c.envelope_row
        OR p.kind IS NOT iif(c.declined, 'refund', 'settle')
        OR e.share IS NOT iif(c.declined, NULL, c.share)
        OR a.owner IS NOT iif(c.declined, n.sender, c.grabber)
        OR c.amount_minor < 1)
    LIMIT ?1";

/// Credits for shares that nobody claimed.
const UNCLAIMED: &str = "-- ledger.audit_unclaimed
    SELECT p.tenant, n.id, 'entry ' || e.row || ' pays share ' || e.share || ' without a claim'
    FROM entry e LEFT JOIN posting p ON p.row = e.posting_row
        LEFT JOIN envelope n ON n.row = p.envelope_row
        LEFT JOIN claim c ON c.row = e.row
    WHERE e.share IS NOT NULL AND p.kind IS 'settle' AND c.row IS NULL
        AND (?2 IS NULL OR p.tenant = ?2)
    LIMIT ?1";

/// Requests and the postings that they made: one each, of the same owner, envelope and kind. A request
/// that is gone would be done again.
const REQUESTS: &str = "-- ledger.audit_requests
    WITH i AS MATERIALIZED (SELECT tenant, owner, method, posting_row, envelope_row FROM idempotency)
    SELECT p.tenant, n.id, 'posting ' || p.row || ' (' || p.kind || ') does not go with its request ('
        || coalesce(i.method, 'missing') || ')'
    FROM posting p LEFT JOIN i ON i.posting_row = p.row
        LEFT JOIN (SELECT e.posting_row, max(a.owner) AS owner, max(e.amount_minor > 0) AS credited
                   FROM entry e JOIN account a ON a.row = e.account_row
                   WHERE a.kind = 'owner' AND e.share IS NULL GROUP BY e.posting_row) o
            ON o.posting_row = p.row
        LEFT JOIN envelope n ON n.row = p.envelope_row
    WHERE (?2 IS NULL OR p.tenant = ?2)
        AND (i.posting_row IS NOT NULL OR p.kind IN ('deposit', 'withdrawal', 'fund'))
        AND (i.posting_row IS NULL OR p.tenant <> i.tenant OR p.envelope_row IS NOT i.envelope_row
            OR p.kind <> iif(i.method = 'withdraw', 'withdrawal', i.method)
            OR o.owner IS NOT i.owner OR o.credited IS NOT (p.kind = 'deposit'))
    UNION ALL
    SELECT i.tenant, n.id, 'posting ' || i.posting_row || ' (missing) does not go with its request ('
        || i.method || ')'
    FROM i LEFT JOIN posting p ON p.row = i.posting_row
        LEFT JOIN envelope n ON n.row = i.envelope_row
    WHERE p.row IS NULL AND (?2 IS NULL OR i.tenant = ?2)
    LIMIT ?1";

/// Counts of what was set aside that are not those of the rows, and money of an envelope that came from,
/// or went back to, somebody else than its sender.
const SENDERS: &str = "-- ledger.audit_senders
    SELECT n.tenant, n.id, 'envelope row ' || n.row || ': money of another owner than its sender, or '
        || n.dead_letter_count || ' dead letters and ' || n.parked_count
        || ' parked records that are not there'
    FROM envelope n
        LEFT JOIN (SELECT envelope_row, count(*) AS letters FROM dead_letter
                   WHERE settled_at IS NULL AND envelope_row IS NOT NULL GROUP BY envelope_row) d
            ON d.envelope_row = n.row
        LEFT JOIN (SELECT envelope_row, count(*) AS parked FROM parked GROUP BY envelope_row) k
            ON k.envelope_row = n.row
        LEFT JOIN (SELECT p.envelope_row, max(a.owner) AS most, min(a.owner) AS least
                   FROM posting p JOIN entry e ON e.posting_row = p.row
                       JOIN account a ON a.row = e.account_row
                   WHERE p.kind IN ('fund', 'refund') GROUP BY p.envelope_row) o
            ON o.envelope_row = n.row
    WHERE (?2 IS NULL OR n.tenant = ?2) AND (
        n.dead_letter_count <> coalesce(d.letters, 0) OR n.parked_count <> coalesce(k.parked, 0)
        OR coalesce(o.most, n.sender) <> n.sender OR coalesce(o.least, n.sender) <> n.sender)
    LIMIT ?1";

/// What was made good, beside its posting, its entries, and the claims by which it was owed; and postings of
/// which nothing is on record.
const MADE_GOOD: &str = "-- ledger.audit_made_good
    SELECT n.tenant, n.id, 'posting ' || m.posting_row || ' made good ' || m.amount_minor || ' of '
        || m.shown_minor || ' for share ' || m.share || ', which its entries or the claims contradict'
    FROM made_good m LEFT JOIN envelope n ON n.row = m.envelope_row
        LEFT JOIN posting p ON p.row = m.posting_row
        LEFT JOIN account r ON r.row = m.reserve_row
        LEFT JOIN (SELECT e.posting_row, sum(iif(a.kind = 'reserve', e.amount_minor, 0)) AS reserve,
                       sum(iif(a.kind = 'owner', e.amount_minor, 0)) AS paid,
                       max(iif(a.kind = 'owner', a.owner, NULL)) AS owner,
                       max(iif(a.kind = 'reserve', a.row, NULL)) AS reserve_row
                   FROM entry e JOIN posting q ON q.row = e.posting_row
                       JOIN account a ON a.row = e.account_row
                   WHERE q.kind = 'make_good' GROUP BY e.posting_row) s
            ON s.posting_row = m.posting_row
        LEFT JOIN claim t ON t.envelope_row = m.envelope_row AND t.share = m.share
        LEFT JOIN claim o ON o.envelope_row = m.envelope_row AND o.grabber = m.grabber
        LEFT JOIN made_good b
            ON b.envelope_row = m.envelope_row AND b.grabber = m.grabber AND b.back = 1
    WHERE (?2 IS NULL OR n.tenant = ?2) AND (n.row IS NULL OR p.kind IS NOT 'make_good'
        OR p.envelope_row IS NOT m.envelope_row
        OR s.owner IS NOT m.grabber OR s.reserve_row IS NOT m.reserve_row
        OR r.tenant IS NOT n.tenant OR r.currency IS NOT n.currency
        OR s.paid IS NOT iif(m.back, -m.amount_minor, m.amount_minor) OR s.paid IS NOT -s.reserve
        OR t.amount_minor IS NOT m.shown_minor OR (t.grabber IS m.grabber) <> m.back
        OR m.amount_minor > m.shown_minor
        OR (m.back = 0 AND b.back IS NULL AND o.declined IS 0
            AND o.amount_minor + m.amount_minor <> m.shown_minor))
    UNION ALL
    SELECT p.tenant, n.id, 'posting ' || p.row || ' (make_good): what it made good is not on record'
    FROM posting p LEFT JOIN made_good m ON m.posting_row = p.row
        LEFT JOIN envelope n ON n.row = p.envelope_row
    WHERE p.kind = 'make_good' AND m.posting_row IS NULL AND (?2 IS NULL OR p.tenant = ?2)
    LIMIT ?1";

/// Envelopes whose sum of what was made good is another one.
const MADE_GOOD_SUMS: &str = "-- ledger.audit_made_good_sums
    SELECT n.tenant, n.id, 'envelope row ' || n.row || ': made good ' || n.made_good_minor
        || ', on record are ' || coalesce(m.minor, 0)
    FROM envelope n
        LEFT JOIN (SELECT envelope_row, sum(iif(back, -amount_minor, amount_minor)) AS minor
                   FROM made_good GROUP BY envelope_row) m ON m.envelope_row = n.row
    WHERE n.made_good_minor <> coalesce(m.minor, 0) AND (?2 IS NULL OR n.tenant = ?2)
    LIMIT ?1";

const QUESTIONS: [(DiscrepancyKind, &str); 10] = [
    (DiscrepancyKind::PostingUnbalanced, POSTINGS),
    (DiscrepancyKind::PostingUnbalanced, ENTRIES),
    (DiscrepancyKind::BalanceWrong, ACCOUNTS),
    (DiscrepancyKind::EnvelopeUnbalanced, ENVELOPES),
    (DiscrepancyKind::EnvelopeUnbalanced, CLAIMS),
    (DiscrepancyKind::EnvelopeUnbalanced, UNCLAIMED),
    (DiscrepancyKind::PostingUnbalanced, REQUESTS),
    (DiscrepancyKind::EnvelopeUnbalanced, SENDERS),
    (DiscrepancyKind::EnvelopeUnbalanced, MADE_GOOD),
    (DiscrepancyKind::EnvelopeUnbalanced, MADE_GOOD_SUMS),
];

/// Every posting, account, envelope and claim, and the sums of each currency.
pub(super) fn totals(
    db: &Connection,
    keys: &SealKeys,
    tenant: Option<&TenantId>,
) -> Result<AuditTotals, LedgerError> {
    let mut discrepancies = Vec::new();
    for (kind, sql) in QUESTIONS {
        let mut find = db.prepare_cached(sql).sql()?;
        let found = find
            .query_map((page(PAGE_ROWS_MAX), tenant.map(TenantId::as_str)), |row| {
                discrepancy(kind, row)
            })
            .sql()?;
        for row in found {
            discrepancies.push(row.sql()?);
        }
    }
    discrepancies.extend(wrong_batches(db, keys, tenant)?);
    let currencies = currency_totals(db, tenant)?;
    discrepancies.extend(currencies.iter().filter_map(CurrencyTotals::unbalanced));
    discrepancies.truncate(PAGE_ROWS_MAX);
    Ok(AuditTotals {
        currencies,
        discrepancies,
    })
}

fn discrepancy(kind: DiscrepancyKind, row: &Row<'_>) -> rusqlite::Result<Discrepancy> {
    let tenant = row.get_ref(0)?.as_str_or_null()?;
    Ok(Discrepancy {
        kind,
        tenant: tenant.and_then(|tenant| TenantId::parse(tenant).ok()),
        envelope: row
            .get::<_, Option<[u8; 16]>>(1)
            .ok()
            .flatten()
            .map(EnvelopeId::from_bytes),
        detail: row.get(2)?,
    })
}

/// Batches of leaves whose root is not that of their secret.
fn wrong_batches(
    db: &Connection,
    keys: &SealKeys,
    tenant: Option<&TenantId>,
) -> Result<Vec<Discrepancy>, LedgerError> {
    db.prepare_cached(
        "-- ledger.audit_batches
         SELECT tenant, batch_number, batch_root, sealed FROM leaf_batch
         WHERE (?1 IS NULL OR tenant = ?1) ORDER BY tenant, batch_number",
    )
    .and_then(|mut find| {
        let mut found = find.query([tenant.map(TenantId::as_str)])?;
        let mut wrong = Vec::new();
        while let Some(row) = found.next()? {
            let batch = Batch {
                tenant: row.get_ref(0)?.as_str()?,
                batch_number: row.get(1)?,
                root: row.get_ref(2)?.as_blob()?,
                sealed: row.get_ref(3)?.as_blob()?,
            };
            wrong.extend(batch.wrong(keys));
        }
        Ok(wrong)
    })
    .sql()
}

fn currency_totals(
    db: &Connection,
    tenant: Option<&TenantId>,
) -> Result<Vec<CurrencyTotals>, LedgerError> {
    db.prepare_cached(
        "-- ledger.audit_currencies
         WITH held (currency, minor) AS (
             SELECT currency, sum(funded_minor - settled_minor - refunded_minor)
             FROM envelope WHERE (?1 IS NULL OR tenant = ?1) GROUP BY currency)
         SELECT a.currency, -sum(iif(a.kind = 'outside', a.available_minor, 0)),
             sum(iif(a.kind = 'owner', a.available_minor, 0)),
             coalesce((SELECT minor FROM held WHERE currency = a.currency), 0),
             -sum(iif(a.kind = 'reserve', a.available_minor, 0))
         FROM account a WHERE (?1 IS NULL OR a.tenant = ?1)
         GROUP BY a.currency ORDER BY a.currency",
    )
    .and_then(|mut find| {
        let mut found = find.query([tenant.map(TenantId::as_str)])?;
        let mut totals = Vec::new();
        while let Some(row) = found.next()? {
            // The accounts of a currency that is none were named, since their postings are of another one.
            let Ok(currency) = currency(row, 0) else {
                continue;
            };
            totals.push(CurrencyTotals {
                currency,
                outside_minor: row.get(1)?,
                available_minor: row.get(2)?,
                escrow_minor: row.get(3)?,
                made_good_minor: row.get(4)?,
            });
        }
        Ok(totals)
    })
    .sql()
}
