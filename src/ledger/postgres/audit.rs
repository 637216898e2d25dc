//! Recomputes what the books keep: sums from entries and claims, beside the rows that state them.
//!
//! # Shape
//! | question | answer |
//! |---|---|
//! | `audit_envelopes` | a page of envelopes with the sums of their entries and claims |
//! | `audit_totals` | every posting, account, envelope, claim and payment of the reserve that contradicts its entries, every batch of leaves whose root is not that of its secret; sums a currency |
//!
//! # Bounds
//! A page, and at most `PAGE_ROWS_MAX` discrepancies of each kind. `audit_totals` reads all tables on
//! one snapshot, for as long as `AUDIT_WAIT` allows.
//!
//! # Not here
//! What the hot store knows (the audit room). An edit that keeps every sum: whoever can write the
//! tables can write all of them.

use deadpool_postgres::{GenericClient, Transaction};
use tokio_postgres::Row;

use crate::domain::books::{Discrepancy, DiscrepancyKind};
use crate::domain::fairness::LEAVES_PER_BATCH;
use crate::domain::id::TenantId;
use crate::ledger::audited::{Batch, Columns};
use crate::ledger::{AuditPage, AuditRow, AuditTotals, CurrencyTotals, LedgerError, PAGE_ROWS_MAX};

use super::Desk;
use super::rows::{
    count, currency, envelope, envelope_columns, envelope_id, long_count, page, some_envelope_id,
};
use super::sql::{self, Fault};

/// A sum that fits 64 bits, whatever somebody wrote into the rows: what is too large is wrong, and named.
macro_rules! within_bounds {
    ($sum:literal) => {
        concat!(
            "greatest(least(",
            $sum,
            ", 9223372036854775807), -9223372036854775807)::bigint"
        )
    };
}

/// Rows of envelopes with the sums of their entries and claims: those of a condition, in an order.
macro_rules! audited {
    ($which:literal) => {
        concat!(
            "-- ledger.audit_envelopes\nSELECT ",
            envelope_columns!(),
            ", (SELECT ",
            within_bounds!("coalesce(sum(amount_minor), 0)"),
            " FROM entry
                WHERE envelope_row = n.row AND amount_minor > 0),
               (SELECT ",
            within_bounds!("-coalesce(sum(amount_minor), 0)"),
            " FROM entry
                WHERE envelope_row = n.row AND amount_minor < 0),
               c.paid_count, c.paid_minor, c.declined_count, c.declined_minor,
               n.dead_letter_count + n.parked_count, n.day::bigint, n.tenant, n.sender, n.currency,
               n.leaf_number, n.share_count::bigint, n.funded_minor, n.created_at, n.expires_at,
               (SELECT batch_root FROM leaf_batch b
                WHERE b.tenant = n.tenant AND b.batch_number = n.leaf_number / $2)
             FROM envelope n CROSS JOIN LATERAL
                 (SELECT count(*) FILTER (WHERE NOT declined) AS paid_count,
                      ",
            within_bounds!("coalesce(sum(amount_minor) FILTER (WHERE NOT declined), 0)"),
            " AS paid_minor, count(*) FILTER (WHERE declined) AS declined_count,
                      ",
            within_bounds!("coalesce(sum(amount_minor) FILTER (WHERE declined), 0)"),
            " AS declined_minor
                  FROM claim WHERE envelope_row = n.row) c
             WHERE ($1::text IS NULL OR n.tenant = $1) AND ",
            $which
        )
    };
}

const AFTER: &str = audited!("n.row > $3 ORDER BY n.row LIMIT $4");
const OF: &str = audited!("n.id = ANY ($3::bytea[])");

/// Envelopes with what their entries and claims sum to.
pub(super) async fn envelopes(
    db: &impl GenericClient,
    tenant: Option<&TenantId>,
    asked: AuditPage,
) -> Result<Vec<AuditRow>, Fault> {
    let tenant = tenant.map(TenantId::as_str);
    let leaves = i64::from(LEAVES_PER_BATCH);
    let found = match asked {
        AuditPage::After(after, limit) => {
            sql::rows(db, AFTER, &[&tenant, &leaves, &after, &page(limit)]).await?
        }
        AuditPage::Of(ids) => {
            let ids: Vec<Vec<u8>> = ids.iter().map(|id| id.to_bytes().to_vec()).collect();
            sql::rows(db, OF, &[&tenant, &leaves, &ids]).await?
        }
    };
    found.iter().map(audit_row).collect()
}

fn audit_row(row: &Row) -> Result<AuditRow, Fault> {
    // What can't be read is one row's damage.
    let envelope = envelope(row).map_err(|fault| LedgerError::from(fault).to_string());
    let columns = Columns {
        day: row.try_get(21)?,
        tenant: row.try_get(22)?,
        sender: row.try_get(23)?,
        currency: row.try_get(24)?,
        leaf_number: row.try_get(25)?,
        share_count: row.try_get(26)?,
        funded_minor: row.try_get(27)?,
        created_at: row.try_get(28)?,
        expires_at: row.try_get(29)?,
        batch_root: row.try_get(30)?,
    };
    let read = envelope.as_ref().ok();
    Ok(AuditRow {
        row: row.try_get(0)?,
        id: envelope_id(row, 1).ok(),
        contradicts: read.and_then(|envelope| columns.contradict(envelope)),
        envelope,
        entries_in_minor: row.try_get(14)?,
        entries_out_minor: row.try_get(15)?,
        paid: (long_count(row, 16)?, row.try_get(17)?),
        declined: (long_count(row, 18)?, row.try_get(19)?),
        dead_letters: count(row, 20)?,
    })
}

/// Postings whose entries and claims don't sum to zero, or that have none.
const POSTINGS: &str = "-- ledger.audit_postings
    SELECT p.tenant, n.id,
        'posting ' || p.row || ' (' || p.kind || ') sums to '
            || coalesce((e.minor + coalesce(c.paid, 0))::text, 'nothing')
    FROM posting p
        LEFT JOIN (SELECT posting_row, sum(amount_minor) AS minor FROM entry GROUP BY posting_row) e
            ON e.posting_row = p.row
        LEFT JOIN (SELECT posting_row, sum(amount_minor) FILTER (WHERE NOT declined) AS paid
                   FROM claim GROUP BY posting_row) c
            ON c.posting_row = p.row
        LEFT JOIN envelope n ON n.row = p.envelope_row
    WHERE (e.minor IS NULL OR e.minor + coalesce(c.paid, 0) <> 0)
        AND ($2::text IS NULL OR p.tenant = $2) LIMIT $1";

/// Entries whose account, envelope or posting is of another tenant or currency, or missing.
const ENTRIES: &str = "-- ledger.audit_entries
    SELECT p.tenant, n.id, 'entry ' || e.row || ' of posting ' || e.posting_row
        || ' belongs to another tenant, currency or envelope'
    FROM entry e LEFT JOIN posting p ON p.row = e.posting_row
        LEFT JOIN account a ON a.row = e.account_row
        LEFT JOIN envelope n ON n.row = e.envelope_row
    WHERE ($2::text IS NULL OR p.tenant = $2) AND (p.row IS NULL
        OR (e.account_row IS NOT NULL
            AND (a.currency IS DISTINCT FROM p.currency OR a.tenant IS DISTINCT FROM p.tenant))
        OR (e.envelope_row IS NOT NULL
            AND (n.row IS DISTINCT FROM p.envelope_row OR n.currency IS DISTINCT FROM p.currency
                OR n.tenant IS DISTINCT FROM p.tenant)))
    LIMIT $1";

/// Accounts whose balance is not the sum of their entries.
const ACCOUNTS: &str = "-- ledger.audit_accounts
    SELECT a.tenant, NULL::bytea, 'account ' || a.row || ' (' || a.kind || ', ' || a.currency
        || ') has ' || a.available_minor || ', its entries sum to ' || coalesce(s.minor, 0)
    FROM account a
        LEFT JOIN (SELECT account_row, sum(amount_minor) AS minor
                   FROM (SELECT account_row, amount_minor FROM entry WHERE account_row IS NOT NULL
                         UNION ALL
                         SELECT account_row, amount_minor FROM claim WHERE NOT declined) moved
                   GROUP BY account_row) s
            ON s.account_row = a.row
    WHERE a.available_minor <> coalesce(s.minor, 0) AND ($2::text IS NULL OR a.tenant = $2)
    LIMIT $1";

/// Envelopes whose columns are not the sums of their entries and claims.
const ENVELOPES: &str = "-- ledger.audit_envelope_sums
    SELECT n.tenant, n.id, 'envelope row ' || n.row || ': funded ' || n.funded_minor || ', settled '
        || n.settled_minor || ', refunded ' || n.refunded_minor || ', shares ' || n.settled_count
        || ' and ' || n.declined_count || '; its entries put in ' || coalesce(e.put_in, 0)
        || ' and took out ' || coalesce(e.taken_out, 0) || ', its claims paid '
        || coalesce(c.paid_minor, 0) || ' in ' || coalesce(c.paid_count, 0)
        || ' shares and declined ' || coalesce(c.declined_count, 0)
    FROM envelope n
        LEFT JOIN (SELECT envelope_row, sum(greatest(amount_minor, 0)) AS put_in,
                       -sum(least(amount_minor, 0)) AS taken_out
                   FROM entry WHERE envelope_row IS NOT NULL GROUP BY envelope_row) e
            ON e.envelope_row = n.row
        LEFT JOIN (SELECT envelope_row, count(*) FILTER (WHERE NOT declined) AS paid_count,
                       sum(amount_minor) FILTER (WHERE NOT declined) AS paid_minor,
                       count(*) FILTER (WHERE declined) AS declined_count
                   FROM claim GROUP BY envelope_row) c
            ON c.envelope_row = n.row
    WHERE ($2::text IS NULL OR n.tenant = $2) AND (coalesce(e.put_in, 0) <> n.funded_minor
        OR coalesce(e.taken_out, 0) <> n.settled_minor::numeric + n.refunded_minor
        OR coalesce(c.paid_minor, 0) <> n.settled_minor
        OR coalesce(c.paid_count, 0) <> n.settled_count
        OR coalesce(c.declined_count, 0) <> n.declined_count
        OR n.settled_minor::numeric + n.refunded_minor > n.funded_minor
        OR (n.state = 'closed'
            AND n.settled_minor::numeric + n.refunded_minor <> n.funded_minor))
    LIMIT $1";

/// Claims whose account or posting is of something else, or missing.
const CLAIMS: &str = "-- ledger.audit_claims
    SELECT n.tenant, n.id, 'the claim of share ' || c.share || ' over ' || c.amount_minor
        || ' belongs to another tenant, currency, envelope or posting'
    FROM claim c LEFT JOIN envelope n ON n.row = c.envelope_row
        LEFT JOIN posting p ON p.row = c.posting_row
        LEFT JOIN account a ON a.row = c.account_row
    WHERE ($2::text IS NULL OR n.tenant = $2) AND (n.row IS NULL
        OR p.envelope_row IS DISTINCT FROM c.envelope_row
        OR p.kind IS DISTINCT FROM CASE WHEN c.declined THEN 'refund' ELSE 'settle' END
        OR a.kind IS DISTINCT FROM 'owner' OR a.tenant IS DISTINCT FROM n.tenant
        OR a.currency IS DISTINCT FROM n.currency OR c.share >= n.share_count)
    LIMIT $1";

/// Postings that pay shares, or give declined ones back, in another number or to another sum than
/// their claims say.
const PAID: &str = "-- ledger.audit_paid
    SELECT n.tenant, n.id, 'posting ' || p.row || ' (' || p.kind || ') of ' || p.share_count
        || ' shares takes ' || coalesce(-e.minor, 0) || ' from the escrow, its claims are '
        || coalesce(c.claims, 0) || ' over ' || coalesce(c.minor, 0)
    FROM posting p
        LEFT JOIN (SELECT posting_row, count(*) AS claims, sum(amount_minor) AS minor
                   FROM claim GROUP BY posting_row) c ON c.posting_row = p.row
        LEFT JOIN (SELECT posting_row, sum(amount_minor) AS minor FROM entry
                   WHERE envelope_row IS NOT NULL GROUP BY posting_row) e ON e.posting_row = p.row
        LEFT JOIN envelope n ON n.row = p.envelope_row
    WHERE ($2::text IS NULL OR p.tenant = $2)
        AND (p.kind = 'settle' OR c.posting_row IS NOT NULL)
        AND (c.minor IS DISTINCT FROM -e.minor
            OR (p.kind = 'settle' AND c.claims IS DISTINCT FROM p.share_count))
    LIMIT $1";

/// Requests and the postings that they made: one each, of the same owner, envelope and kind. A request
/// that is gone would be done again.
const REQUESTS: &str = "-- ledger.audit_requests
    SELECT coalesce(p.tenant, i.tenant), n.id, 'posting ' || coalesce(p.row, i.posting_row) || ' ('
        || coalesce(p.kind, 'missing') || ') does not go with its request ('
        || coalesce(i.method, 'missing') || ')'
    FROM posting p FULL JOIN idempotency i ON i.posting_row = p.row
        LEFT JOIN envelope n ON n.row = coalesce(p.envelope_row, i.envelope_row)
    WHERE ($2::text IS NULL OR coalesce(p.tenant, i.tenant) = $2)
        AND (i.posting_row IS NOT NULL OR p.kind IN ('deposit', 'withdrawal', 'fund'))
        AND (p.row IS NULL OR i.posting_row IS NULL OR p.tenant <> i.tenant
            OR p.envelope_row IS DISTINCT FROM i.envelope_row
            OR p.kind <> CASE i.method WHEN 'withdraw' THEN 'withdrawal' ELSE i.method END
            OR NOT EXISTS (
                SELECT FROM entry e JOIN account a ON a.row = e.account_row
                WHERE e.posting_row = p.row AND a.kind = 'owner' AND a.owner = i.owner
                    AND (e.amount_minor > 0) = (p.kind = 'deposit')))
    LIMIT $1";

/// Money of an envelope that came from, or went back to, somebody else than its sender; and counts of what
/// was set aside that are not those of the rows.
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
        LEFT JOIN (SELECT DISTINCT p.envelope_row
                   FROM posting p JOIN entry e ON e.posting_row = p.row
                       JOIN account a ON a.row = e.account_row
                       JOIN envelope o ON o.row = p.envelope_row
                   WHERE p.kind IN ('fund', 'refund')
                       AND (a.kind <> 'owner' OR a.owner <> o.sender)) s
            ON s.envelope_row = n.row
    WHERE ($2::text IS NULL OR n.tenant = $2)
        AND (n.dead_letter_count <> coalesce(d.letters, 0)
            OR n.parked_count <> coalesce(k.parked, 0) OR s.envelope_row IS NOT NULL)
    LIMIT $1";

/// What was made good, beside its posting, its entries, and the claims by which it was owed; and postings of
/// which nothing is on record.
const MADE_GOOD: &str = "-- ledger.audit_made_good
    SELECT n.tenant, n.id, 'posting ' || m.posting_row || ' made good ' || m.amount_minor || ' of '
        || m.shown_minor || ' for share ' || m.share || ', which its entries or the claims contradict'
    FROM made_good m LEFT JOIN envelope n ON n.row = m.envelope_row
        LEFT JOIN posting p ON p.row = m.posting_row
        LEFT JOIN account g ON g.row = m.account_row
        LEFT JOIN account r ON r.row = m.reserve_row
        LEFT JOIN (SELECT e.posting_row, count(*) AS entries, max(e.amount_minor) AS most,
                       min(e.amount_minor) AS least,
                       max(e.account_row) FILTER (WHERE e.amount_minor > 0) AS credited,
                       max(e.account_row) FILTER (WHERE e.amount_minor < 0) AS debited
                   FROM entry e JOIN posting q ON q.row = e.posting_row
                   WHERE q.kind = 'make_good' GROUP BY e.posting_row) s
            ON s.posting_row = m.posting_row
        LEFT JOIN claim t ON t.envelope_row = m.envelope_row AND t.share = m.share
        LEFT JOIN claim o ON o.envelope_row = m.envelope_row AND o.account_row = m.account_row
        LEFT JOIN made_good b
            ON b.envelope_row = m.envelope_row AND b.account_row = m.account_row AND b.back
    WHERE ($2::text IS NULL OR n.tenant = $2) AND (n.row IS NULL OR p.kind IS DISTINCT FROM 'make_good'
        OR p.envelope_row IS DISTINCT FROM m.envelope_row
        OR g.kind IS DISTINCT FROM 'owner' OR r.kind IS DISTINCT FROM 'reserve'
        OR g.tenant IS DISTINCT FROM n.tenant OR r.tenant IS DISTINCT FROM n.tenant
        OR g.currency IS DISTINCT FROM n.currency OR r.currency IS DISTINCT FROM n.currency
        OR s.entries IS DISTINCT FROM 2 OR s.most IS DISTINCT FROM m.amount_minor
        OR s.least IS DISTINCT FROM -m.amount_minor
        OR s.credited IS DISTINCT FROM CASE WHEN m.back THEN m.reserve_row ELSE m.account_row END
        OR s.debited IS DISTINCT FROM CASE WHEN m.back THEN m.account_row ELSE m.reserve_row END
        OR t.amount_minor IS DISTINCT FROM m.shown_minor
        OR (t.account_row = m.account_row) IS DISTINCT FROM m.back
        OR m.amount_minor > m.shown_minor
        OR (NOT m.back AND b.back IS NULL AND NOT o.declined
            AND o.amount_minor::numeric + m.amount_minor <> m.shown_minor))
    UNION ALL
    SELECT p.tenant, n.id, 'posting ' || p.row || ' (make_good): what it made good is not on record'
    FROM posting p LEFT JOIN made_good m ON m.posting_row = p.row
        LEFT JOIN envelope n ON n.row = p.envelope_row
    WHERE p.kind = 'make_good' AND m.posting_row IS NULL AND ($2::text IS NULL OR p.tenant = $2)
    LIMIT $1";

/// Envelopes whose sum of what was made good is another one.
const MADE_GOOD_SUMS: &str = "-- ledger.audit_made_good_sums
    SELECT n.tenant, n.id, 'envelope row ' || n.row || ': made good ' || n.made_good_minor
        || ', on record are ' || coalesce(m.minor, 0)
    FROM envelope n
        LEFT JOIN (SELECT envelope_row,
                       sum(CASE WHEN back THEN -amount_minor ELSE amount_minor END) AS minor
                   FROM made_good GROUP BY envelope_row) m ON m.envelope_row = n.row
    WHERE n.made_good_minor <> coalesce(m.minor, 0) AND ($2::text IS NULL OR n.tenant = $2)
    LIMIT $1";

const QUESTIONS: [(DiscrepancyKind, &str); 10] = [
    (DiscrepancyKind::PostingUnbalanced, POSTINGS),
    (DiscrepancyKind::PostingUnbalanced, ENTRIES),
    (DiscrepancyKind::BalanceWrong, ACCOUNTS),
    (DiscrepancyKind::EnvelopeUnbalanced, ENVELOPES),
    (DiscrepancyKind::EnvelopeUnbalanced, CLAIMS),
    (DiscrepancyKind::EnvelopeUnbalanced, PAID),
    (DiscrepancyKind::PostingUnbalanced, REQUESTS),
    (DiscrepancyKind::EnvelopeUnbalanced, SENDERS),
    (DiscrepancyKind::EnvelopeUnbalanced, MADE_GOOD),
    (DiscrepancyKind::EnvelopeUnbalanced, MADE_GOOD_SUMS),
];

/// Every posting, account, envelope and claim, and the sums of each currency. `tx` has one snapshot.
pub(super) async fn totals(
    tx: &Transaction<'_>,
    desk: &Desk,
    tenant: Option<&TenantId>,
) -> Result<AuditTotals, Fault> {
    let mut discrepancies = Vec::new();
    for (kind, question) in QUESTIONS {
        let values: sql::Values<'_> = &[&page(PAGE_ROWS_MAX), &tenant.map(TenantId::as_str)];
        for row in sql::rows(tx, question, values).await? {
            discrepancies.push(discrepancy(kind, &row)?);
        }
    }
    discrepancies.extend(wrong_batches(tx, desk, tenant).await?);
    let currencies = currency_totals(tx, tenant).await?;
    discrepancies.extend(currencies.iter().filter_map(CurrencyTotals::unbalanced));
    discrepancies.truncate(PAGE_ROWS_MAX);
    Ok(AuditTotals {
        currencies,
        discrepancies,
    })
}

fn discrepancy(kind: DiscrepancyKind, row: &Row) -> Result<Discrepancy, Fault> {
    let tenant: Option<&str> = row.try_get(0)?;
    Ok(Discrepancy {
        kind,
        tenant: tenant.and_then(|tenant| TenantId::parse(tenant).ok()),
        envelope: some_envelope_id(row, 1).ok().flatten(),
        detail: row.try_get(2)?,
    })
}

/// Batches of leaves whose root is not that of their secret.
async fn wrong_batches(
    tx: &Transaction<'_>,
    desk: &Desk,
    tenant: Option<&TenantId>,
) -> Result<Vec<Discrepancy>, Fault> {
    let found = sql::rows(
        tx,
        "-- ledger.audit_batches
         SELECT tenant, batch_number, batch_root, sealed FROM leaf_batch
         WHERE ($1::text IS NULL OR tenant = $1) ORDER BY tenant, batch_number",
        &[&tenant.map(TenantId::as_str)],
    )
    .await?;
    let mut wrong = Vec::new();
    for row in &found {
        let batch = Batch {
            tenant: row.try_get(0)?,
            batch_number: row.try_get(1)?,
            root: row.try_get(2)?,
            sealed: row.try_get(3)?,
        };
        wrong.extend(batch.wrong(&desk.keys));
        // A millisecond each: others have their turn.
        tokio::task::yield_now().await;
    }
    Ok(wrong)
}

async fn currency_totals(
    tx: &Transaction<'_>,
    tenant: Option<&TenantId>,
) -> Result<Vec<CurrencyTotals>, Fault> {
    let found = sql::rows(
        tx,
        concat!(
            "-- ledger.audit_currencies
         WITH held (currency, minor) AS (
             SELECT currency, sum(funded_minor::numeric - settled_minor - refunded_minor)
             FROM envelope WHERE ($1::text IS NULL OR tenant = $1) GROUP BY currency)
         SELECT a.currency,
             ",
            within_bounds!(
                "-coalesce(sum(a.available_minor) FILTER (WHERE a.kind = 'outside'), 0)"
            ),
            ",
             ",
            within_bounds!("coalesce(sum(a.available_minor) FILTER (WHERE a.kind = 'owner'), 0)"),
            ",
             ",
            within_bounds!(
                "coalesce((SELECT minor FROM held WHERE held.currency = a.currency), 0)"
            ),
            ",
             ",
            within_bounds!(
                "-coalesce(sum(a.available_minor) FILTER (WHERE a.kind = 'reserve'), 0)"
            ),
            "
         FROM account a WHERE ($1::text IS NULL OR a.tenant = $1)
         GROUP BY a.currency ORDER BY a.currency"
        ),
        &[&tenant.map(TenantId::as_str)],
    )
    .await?;
    let totals = |row: &Row| {
        Ok(CurrencyTotals {
            currency: currency(row, 0)?,
            outside_minor: row.try_get(1)?,
            available_minor: row.try_get(2)?,
            escrow_minor: row.try_get(3)?,
            made_good_minor: row.try_get(4)?,
        })
    };
    // The accounts of a currency that is none were named, since their postings are of another one.
    let is_one = |row: &&Row| currency(row, 0).is_ok();
    found.iter().filter(is_one).map(totals).collect()
}
