//! Commitments to seeds: batches of leaves, each with a published root and a sealed secret.
//!
//! *Ordering.* A batch is committed to before its first leaf is used: the first one when the books
//! are founded or with the tenant's first deposit, each later one when the batch before it is begun, or
//! when the books were restored: then the leaves before it are left out.
//! Who is about to use leaves of a tenant holds its lock until the end of the transaction, so leaves
//! are used one after the other, by whichever process.
//!
//! *Not here.* How a secret makes seeds: `domain::fairness`.

use std::sync::Arc;

use deadpool_postgres::{GenericClient, Transaction};

use crate::domain::envelope::{LeafRef, Terms};
use crate::domain::fairness::{
    BatchSecret, SealContext, ServerSeed, batch_after_restore, batch_of, batch_root,
    index_in_batch, leaf_after, leaf_hash,
};
use crate::domain::id::TenantId;
use crate::ledger::LeafBatch;

use super::Desk;
use super::rows::{at, hash, page};
use super::sql::{self, Fault, broken};

/// The class of advisory locks of tenants.
const LOCK_OF_TENANT: i32 = 2;

/// A leaf that an envelope is about to use.
pub(super) struct Leaf {
    pub seed: ServerSeed,
    pub reference: LeafRef,
}

/// Where a tenant's leaves go on; nobody else takes one before this transaction ends.
pub(super) async fn next_number(tx: &Transaction<'_>, tenant: &TenantId) -> Result<u64, Fault> {
    sql::row(
        tx,
        "-- ledger.lock_leaves\nSELECT pg_advisory_xact_lock($1, hashtext($2))",
        &[&LOCK_OF_TENANT, &tenant.as_str()],
    )
    .await?;
    let found = sql::row(
        tx,
        "-- ledger.next_leaf
         SELECT (SELECT max(leaf_number) FROM envelope WHERE tenant = $1),
             (SELECT coalesce(max(batch_number), 0) FROM leaf_batch WHERE tenant = $1)",
        &[&tenant.as_str()],
    )
    .await?;
    let row = found.ok_or_else(|| broken("the leaves have no end"))?;
    let (last, newest): (Option<i64>, i64) = (row.try_get(0)?, row.try_get(1)?);
    let unsigned = |n: i64| u64::try_from(n).map_err(|_| broken("a leaf number is negative"));
    Ok(leaf_after(
        last.map(unsigned).transpose()?,
        unsigned(newest)?,
    ))
}

/// Begins the leaves of every tenant anew, after the books were restored to an earlier moment. Answers
/// the first leaf of each.
pub(super) async fn begin_anew(
    tx: &Transaction<'_>,
    desk: &Desk,
) -> Result<Vec<(TenantId, u64)>, Fault> {
    let found = sql::rows(
        tx,
        "-- ledger.newest_batch_of_each
         SELECT tenant, max(batch_number) FROM leaf_batch GROUP BY tenant ORDER BY tenant",
        &[],
    )
    .await?;
    let mut begun = Vec::with_capacity(found.len());
    for row in found {
        let (name, newest): (&str, i64) = (row.try_get(0)?, row.try_get(1)?);
        let tenant = TenantId::parse(name).map_err(|error| broken(error.to_string()))?;
        let batch_number = batch_after_restore(newest.unsigned_abs(), desk.now());
        commit_to(tx, desk, &tenant, batch_number).await?;
        let first = next_number(tx, &tenant).await?;
        begun.push((tenant, first));
    }
    Ok(begun)
}

/// The leaf of a number: its batch, and the next one where it is the first of its batch, are
/// committed to. `opened` keeps the secret of the batch that was opened last.
pub(super) async fn leaf(
    tx: &Transaction<'_>,
    desk: &Desk,
    tenant: &TenantId,
    leaf_number: u64,
    opened: &mut Option<(u64, Arc<BatchSecret>, [u8; 32])>,
) -> Result<Leaf, Fault> {
    let batch_number = batch_of(leaf_number);
    let is_open = opened
        .as_ref()
        .is_some_and(|(number, _, _)| *number == batch_number);
    if !is_open {
        commit_to(tx, desk, tenant, batch_number).await?;
    }
    if index_in_batch(leaf_number) == 0 {
        commit_to(tx, desk, tenant, batch_number + 1).await?;
    }
    if !is_open {
        let (secret, root) = open_batch(tx, desk, tenant, batch_number).await?;
        *opened = Some((batch_number, secret, root));
    }
    let Some((_, secret, root)) = opened else {
        return Err(broken("a batch of leaves is missing"));
    };
    let seed = secret.server_seed(tenant.as_str(), leaf_number);
    let reference = LeafRef {
        leaf_number,
        leaf_hash: leaf_hash(tenant.as_str(), leaf_number, &seed),
        batch_number,
        batch_root: *root,
    };
    Ok(Leaf { seed, reference })
}

/// Commits to a batch, unless it stands.
pub(super) async fn commit_to(
    tx: &Transaction<'_>,
    desk: &Desk,
    tenant: &TenantId,
    batch_number: u64,
) -> Result<(), Fault> {
    let number = signed(batch_number)?;
    let stands = sql::row(
        tx,
        "-- ledger.batch_stands
         SELECT 1 FROM leaf_batch WHERE tenant = $1 AND batch_number = $2",
        &[&tenant.as_str(), &number],
    )
    .await?;
    if stands.is_some() {
        return Ok(());
    }
    let (mut bytes, mut nonce) = ([0; 32], [0; 12]);
    {
        let mut rng = desk.rng.lock();
        rng.fill_bytes(&mut bytes);
        rng.fill_bytes(&mut nonce);
    }
    let secret = BatchSecret::new(bytes);
    let root = batch_root(&secret, tenant.as_str(), batch_number);
    let context = SealContext {
        tenant: tenant.as_str(),
        batch_number,
    };
    let sealed = desk.keys.seal(context, nonce, &secret);
    sql::run(
        tx,
        "-- ledger.commit_to
         INSERT INTO leaf_batch (tenant, batch_number, batch_root, sealed, committed_at)
         VALUES ($1, $2, $3, $4, $5)",
        &[
            &tenant.as_str(),
            &number,
            &&root[..],
            &sealed,
            &desk.now().0,
        ],
    )
    .await?;
    Ok(())
}

/// The secret and the root of a batch that stands.
pub(super) async fn open_batch(
    db: &impl GenericClient,
    desk: &Desk,
    tenant: &TenantId,
    batch_number: u64,
) -> Result<(Arc<BatchSecret>, [u8; 32]), Fault> {
    let number = i64::try_from(batch_number).unwrap_or(-1);
    let found = sql::row(
        db,
        "-- ledger.open_batch
         SELECT sealed, batch_root FROM leaf_batch WHERE tenant = $1 AND batch_number = $2",
        &[&tenant.as_str(), &number],
    )
    .await?;
    let Some(row) = found else {
        return Err(broken("a batch of leaves is missing"));
    };
    let context = SealContext {
        tenant: tenant.as_str(),
        batch_number,
    };
    let sealed: &[u8] = row.try_get(0)?;
    let secret = desk.keys.open(context, sealed);
    let secret = Arc::new(secret.map_err(|error| broken(error.to_string()))?);
    desk.secrets.keep(tenant, batch_number, Arc::clone(&secret));
    Ok((secret, hash(&row, 1)?))
}

/// The seed of an envelope, where the secret of its batch was opened before.
pub(super) fn kept_seed(desk: &Desk, terms: &Terms) -> Option<ServerSeed> {
    let secret = desk.secrets.get(&terms.tenant, terms.leaf.batch_number)?;
    secret.committed_seed(terms.tenant.as_str(), &terms.leaf)
}

/// The seed of an envelope, derived from the sealed secret of its batch.
pub(super) async fn server_seed(
    db: &impl GenericClient,
    desk: &Desk,
    terms: &Terms,
) -> Result<ServerSeed, Fault> {
    let (secret, _) = open_batch(db, desk, &terms.tenant, terms.leaf.batch_number).await?;
    secret
        .committed_seed(terms.tenant.as_str(), &terms.leaf)
        .ok_or_else(|| broken("the terms commit to another seed than their batch makes"))
}

/// The newest batches, the newest first.
pub(super) async fn newest_batches(
    db: &impl GenericClient,
    tenant: &TenantId,
    limit: usize,
) -> Result<Vec<LeafBatch>, Fault> {
    let found = sql::rows(
        db,
        "-- ledger.newest_batches
         SELECT batch_number, batch_root, committed_at FROM leaf_batch
         WHERE tenant = $1 ORDER BY batch_number DESC LIMIT $2",
        &[&tenant.as_str(), &page(limit)],
    )
    .await?;
    let batch = |row: &tokio_postgres::Row| {
        let number: i64 = row.try_get(0)?;
        Ok(LeafBatch {
            batch_number: number.unsigned_abs(),
            batch_root: hash(row, 1)?,
            committed_at: at(row, 2)?,
        })
    };
    found.iter().map(batch).collect()
}

fn signed(batch_number: u64) -> Result<i64, Fault> {
    i64::try_from(batch_number).map_err(|_| broken("there are no more batches"))
}
