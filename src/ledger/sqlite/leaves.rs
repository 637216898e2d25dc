//! Commitments to seeds: batches of leaves, each with a published root and a sealed secret.
//!
//! *Ordering.* A batch is committed to before its first leaf is used: the first one when the books
//! are founded or with the tenant's first deposit, each later one when the batch before it is begun, so
//! that its root can be published `LEAVES_PER_BATCH` envelopes ahead. A batch that a restore begins comes
//! out of turn, and the leaves before it are left out.
//!
//! *Not here.* How a secret makes seeds: `domain::fairness`.

use rusqlite::{Connection, OptionalExtension};

use crate::domain::envelope::LeafRef;
use crate::domain::fairness::{
    BatchSecret, SealContext, SealKeys, ServerSeed, batch_after_restore, batch_of, batch_root,
    index_in_batch, leaf_after, leaf_hash,
};
use crate::domain::id::TenantId;
use crate::ledger::{LeafBatch, LedgerError};

use super::rows::{Sql, at, page};
use super::writer::Books;

/// A leaf that an envelope is about to use.
pub(super) struct Leaf {
    pub seed: ServerSeed,
    pub reference: LeafRef,
}

/// The next leaf of a tenant. It is used by inserting the envelope that names it; the unique
/// (tenant, leaf number) keeps two from using the same.
pub(super) fn next_leaf(books: &mut Books<'_>, tenant: &TenantId) -> Result<Leaf, LedgerError> {
    let leaf_number = next_number(books.db, tenant)?;
    let batch_number = batch_of(leaf_number);
    commit_to(books, tenant, batch_number)?;
    if index_in_batch(leaf_number) == 0 {
        commit_to(books, tenant, batch_number + 1)?;
    }
    let (secret, root) = open_batch(books.db, books.keys, tenant, batch_number)?;
    let seed = secret.server_seed(tenant.as_str(), leaf_number);
    let reference = LeafRef {
        leaf_number,
        leaf_hash: leaf_hash(tenant.as_str(), leaf_number, &seed),
        batch_number,
        batch_root: root,
    };
    Ok(Leaf { seed, reference })
}

/// Where a tenant's leaves go on.
fn next_number(db: &Connection, tenant: &TenantId) -> Result<u64, LedgerError> {
    let (last, newest): (Option<i64>, i64) = db
        .prepare_cached(
            "-- ledger.next_leaf
             SELECT (SELECT max(leaf_number) FROM envelope WHERE tenant = ?1),
                 (SELECT coalesce(max(batch_number), 0) FROM leaf_batch WHERE tenant = ?1)",
        )
        .and_then(|mut next| {
            next.query_row([tenant.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        })
        .sql()?;
    let unsigned = |n: i64| u64::try_from(n).map_err(|_| broken("a leaf number is negative"));
    Ok(leaf_after(
        last.map(unsigned).transpose()?,
        unsigned(newest)?,
    ))
}

/// Begins the leaves of every tenant anew, after the books were restored to an earlier moment. Answers
/// the first leaf of each.
pub(super) fn begin_anew(books: &mut Books<'_>) -> Result<Vec<(TenantId, u64)>, LedgerError> {
    let newest: Vec<(String, i64)> = books
        .db
        .prepare_cached(
            "-- ledger.newest_batch_of_each
             SELECT tenant, max(batch_number) FROM leaf_batch GROUP BY tenant ORDER BY tenant",
        )
        .and_then(|mut find| {
            find.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
        .sql()?;
    let mut begun = Vec::with_capacity(newest.len());
    for (name, newest) in newest {
        let tenant = TenantId::parse(&name).map_err(|error| broken(&error.to_string()))?;
        let batch_number = batch_after_restore(newest.unsigned_abs(), books.now);
        commit_to(books, &tenant, batch_number)?;
        let first = next_number(books.db, &tenant)?;
        begun.push((tenant, first));
    }
    Ok(begun)
}

/// Commits to a batch, unless it stands.
pub(super) fn commit_to(
    books: &mut Books<'_>,
    tenant: &TenantId,
    batch_number: u64,
) -> Result<(), LedgerError> {
    let number = signed(batch_number)?;
    let stands = books
        .db
        .prepare_cached(
            "-- ledger.batch_stands
             SELECT 1 FROM leaf_batch WHERE tenant = ?1 AND batch_number = ?2",
        )
        .and_then(|mut find| find.exists((tenant.as_str(), number)))
        .sql()?;
    if stands {
        return Ok(());
    }
    let (mut bytes, mut nonce) = ([0; 32], [0; 12]);
    books.rng.fill_bytes(&mut bytes);
    books.rng.fill_bytes(&mut nonce);
    let secret = BatchSecret::new(bytes);
    let root = batch_root(&secret, tenant.as_str(), batch_number);
    let context = SealContext {
        tenant: tenant.as_str(),
        batch_number,
    };
    let sealed = books.keys.seal(context, nonce, &secret);
    books
        .db
        .prepare_cached(
            "-- ledger.commit_to
             INSERT INTO leaf_batch (tenant, batch_number, batch_root, sealed, committed_at)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )
        .and_then(|mut insert| insert.execute((tenant.as_str(), number, root, sealed, books.now.0)))
        .sql()?;
    Ok(())
}

/// The secret and the root of a batch that stands.
pub(super) fn open_batch(
    db: &Connection,
    keys: &SealKeys,
    tenant: &TenantId,
    batch_number: u64,
) -> Result<(BatchSecret, [u8; 32]), LedgerError> {
    let found: Option<(Vec<u8>, [u8; 32])> = db
        .prepare_cached(
            "-- ledger.open_batch
             SELECT sealed, batch_root FROM leaf_batch WHERE tenant = ?1 AND batch_number = ?2",
        )
        .and_then(|mut find| {
            find.query_row((tenant.as_str(), signed_sql(batch_number)), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
        })
        .sql()?;
    let (sealed, root) = found.ok_or_else(|| broken("a batch of leaves is missing"))?;
    let context = SealContext {
        tenant: tenant.as_str(),
        batch_number,
    };
    let secret = keys
        .open(context, &sealed)
        .map_err(|error| LedgerError::Broken(error.to_string()))?;
    Ok((secret, root))
}

/// The newest batches, the newest first.
pub(super) fn newest_batches(
    db: &Connection,
    tenant: &TenantId,
    limit: usize,
) -> Result<Vec<LeafBatch>, LedgerError> {
    let mut newest = db
        .prepare_cached(
            "-- ledger.newest_batches
             SELECT batch_number, batch_root, committed_at FROM leaf_batch
             WHERE tenant = ?1 ORDER BY batch_number DESC LIMIT ?2",
        )
        .sql()?;
    let rows = newest
        .query_map((tenant.as_str(), page(limit)), |row| {
            let number: i64 = row.get(0)?;
            Ok(LeafBatch {
                batch_number: number.unsigned_abs(),
                batch_root: row.get(1)?,
                committed_at: at(row, 2)?,
            })
        })
        .sql()?;
    rows.collect::<Result<_, _>>().sql()
}

fn signed(batch_number: u64) -> Result<i64, LedgerError> {
    i64::try_from(batch_number).map_err(|_| broken("there are no more batches"))
}

/// For look-ups: a number beyond the column's range is in no row.
fn signed_sql(batch_number: u64) -> i64 {
    i64::try_from(batch_number).unwrap_or(-1)
}

fn broken(why: &str) -> LedgerError {
    LedgerError::Broken(why.to_owned())
}
