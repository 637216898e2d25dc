//! The hot store's incarnations: its layout, the epoch in which each partition stands, and which
//! process settles which.
//!
//! *Ordering.* A batch is posted in a transaction that holds its partition's advisory lock in common
//! with other batches, and compares the epoch after it has it; an advance takes the lock alone. So
//! what is posted after an advance was read after it, and batches don't keep an advance waiting
//! longer than those take that are under way (a row lock in common would: new batches pass whoever
//! waits for the row alone).
//!
//! *If it crashes here.* An epoch that was advanced and not registered belongs to nobody: the next
//! registration advances it again.

use std::collections::{BTreeMap, BTreeSet};

use deadpool_postgres::{GenericClient, Transaction};
use tokio_postgres::Row;

use crate::domain::id::{Epoch, Partition, PartitionCount};
use crate::ledger::{
    HotLayout, LedgerError, PartitionRow, Portion, RESTORE_EPOCHS_MAX, SERVER_OF_A_RESTORE,
    epochs_beyond,
};

use super::sql::{self, Fault, broken};

/// The class of advisory locks of partitions.
const LOCK_OF_PARTITION: i32 = 1;

/// Records the layout, if none is on record. Answers what is.
pub(super) async fn hot_layout(
    tx: &Transaction<'_>,
    layout: &HotLayout,
) -> Result<HotLayout, Fault> {
    sql::run(
        tx,
        "-- ledger.record_hot_layout
         INSERT INTO hot_layout (row, store, layout, partition_count)
         VALUES (1, $1, $2, $3) ON CONFLICT DO NOTHING",
        &[
            &layout.store,
            &i32::from(layout.layout),
            &i32::from(layout.partitions),
        ],
    )
    .await?;
    let found = sql::row(
        tx,
        "-- ledger.hot_layout
         SELECT store, layout, partition_count FROM hot_layout WHERE row = 1",
        &[],
    )
    .await?;
    let row = found.ok_or_else(|| broken("the layout was recorded and is not there"))?;
    let short = |column| -> Result<u16, Fault> {
        let number: i32 = row.try_get(column)?;
        u16::try_from(number).map_err(|_| broken("a number of the layout is out of range"))
    };
    Ok(HotLayout {
        store: row.try_get(0)?,
        layout: short(1)?,
        partitions: short(2)?,
    })
}

/// Every registration.
pub(super) async fn partitions(db: &impl GenericClient) -> Result<Vec<PartitionRow>, Fault> {
    let found = sql::rows(
        db,
        "-- ledger.partitions
         SELECT partition, epoch, server FROM hot_partition ORDER BY partition",
        &[],
    )
    .await?;
    found.iter().map(registration).collect()
}

/// Compare and set, pair by pair; answers the rows of these partitions as they stand then.
pub(super) async fn advance(
    tx: &Transaction<'_>,
    from: &[(Partition, Epoch)],
    server: &str,
) -> Result<Vec<PartitionRow>, Fault> {
    if from.len() > usize::from(PartitionCount::MAX) {
        let why = format!("{} are more partitions than there can be", from.len());
        return Err(LedgerError::Broken(why).into());
    }
    // In their order, so that two processes don't wait for each other.
    let wanted: BTreeMap<u16, Epoch> = from.iter().map(|(p, epoch)| (p.index(), *epoch)).collect();
    let indices: Vec<i32> = wanted.keys().map(|index| i32::from(*index)).collect();
    hold_alone(tx, &indices).await?;
    let stand: BTreeMap<u16, PartitionRow> = find(tx, &indices)
        .await?
        .into_iter()
        .map(|row| (row.partition.index(), row))
        .collect();
    for (index, epoch) in &wanted {
        let stands = stand.get(index).map_or(Epoch::FIRST, |row| row.epoch);
        if stands == *epoch {
            set(tx, *index, Epoch(epoch.0 + 1), server).await?;
        }
    }
    // A partition that has no row after this stands in the first epoch, on nobody's process.
    find(tx, &indices).await
}

/// Takes every partition that was registered beyond its epoch, and those of `past` beyond theirs, on
/// nobody's process. Answers how many.
pub(super) async fn leave_behind(
    tx: &Transaction<'_>,
    past: &[(Partition, Epoch)],
) -> Result<usize, Fault> {
    let rows = partitions(tx).await?;
    let beyond = epochs_beyond(rows, past)?;
    let indices: Vec<i32> = beyond.keys().map(|index| i32::from(*index)).collect();
    hold_alone(tx, &indices).await?;
    let epochs: Vec<i64> = beyond.values().copied().collect();
    sql::run(
        tx,
        "-- ledger.register_for_nobody
         INSERT INTO hot_partition (partition, epoch, server)
         SELECT p, 2, $2 FROM unnest($1::integer[]) p ON CONFLICT DO NOTHING",
        &[&indices, &SERVER_OF_A_RESTORE],
    )
    .await?;
    // An epoch advances by one: the schema refuses more.
    for _ in 0..=RESTORE_EPOCHS_MAX {
        let advanced = sql::run(
            tx,
            "-- ledger.leave_epochs_behind
             UPDATE hot_partition h SET epoch = h.epoch + 1, server = $3
             FROM unnest($1::integer[], $2::bigint[]) b (partition, epoch)
             WHERE h.partition = b.partition AND h.epoch < b.epoch",
            &[&indices, &epochs, &SERVER_OF_A_RESTORE],
        )
        .await?;
        if advanced == 0 {
            return Ok(indices.len());
        }
    }
    Err(broken("the epochs don't advance"))
}

async fn hold_alone(tx: &Transaction<'_>, indices: &[i32]) -> Result<(), Fault> {
    sql::rows(
        tx,
        "-- ledger.lock_partitions_alone
         SELECT pg_advisory_xact_lock($1, p) FROM unnest($2::integer[]) p ORDER BY p",
        &[&LOCK_OF_PARTITION, &indices],
    )
    .await?;
    Ok(())
}

/// In which epochs these partitions stand, until this transaction ends.
pub(super) async fn hold(
    tx: &Transaction<'_>,
    partitions: &BTreeSet<Partition>,
) -> Result<BTreeMap<Partition, Epoch>, Fault> {
    let indices: Vec<i32> = partitions.iter().map(|p| i32::from(p.index())).collect();
    sql::rows(
        tx,
        "-- ledger.lock_partitions
         SELECT pg_advisory_xact_lock_shared($1, p) FROM unnest($2::integer[]) p ORDER BY p",
        &[&LOCK_OF_PARTITION, &indices],
    )
    .await?;
    // A statement of its own: its snapshot is taken when the locks are there.
    let found = find(tx, &indices).await?;
    let mut epochs: BTreeMap<_, _> = partitions.iter().map(|p| (*p, Epoch::FIRST)).collect();
    epochs.extend(found.into_iter().map(|row| (row.partition, row.epoch)));
    Ok(epochs)
}

/// That each of these partitions stands in the epoch that is named, until this transaction ends.
pub(super) async fn check(
    tx: &Transaction<'_>,
    under: &BTreeMap<Partition, Epoch>,
) -> Result<(), Fault> {
    let stand = hold(tx, &under.keys().copied().collect()).await?;
    let other = stand.iter().find(|(p, epoch)| under.get(p) != Some(epoch));
    match other {
        Some((_, epoch)) => Err(LedgerError::Epoch(*epoch).into()),
        None => Ok(()),
    }
}

async fn find(db: &impl GenericClient, indices: &[i32]) -> Result<Vec<PartitionRow>, Fault> {
    let found = sql::rows(
        db,
        "-- ledger.partitions_of
         SELECT partition, epoch, server FROM hot_partition
         WHERE partition = ANY ($1) ORDER BY partition",
        &[&indices],
    )
    .await?;
    found.iter().map(registration).collect()
}

async fn set(tx: &Transaction<'_>, index: u16, epoch: Epoch, server: &str) -> Result<(), Fault> {
    let number = i64::try_from(epoch.0).map_err(|_| broken("the epochs are used up"))?;
    sql::run(
        tx,
        "-- ledger.advance_epoch
         INSERT INTO hot_partition (partition, epoch, server) VALUES ($1, $2, $3)
         ON CONFLICT (partition) DO UPDATE SET epoch = excluded.epoch, server = excluded.server",
        &[&i32::from(index), &number, &server],
    )
    .await?;
    Ok(())
}

fn registration(row: &Row) -> Result<PartitionRow, Fault> {
    let (index, epoch): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
    let partition = u16::try_from(index).ok().and_then(Partition::new);
    let epoch = u64::try_from(epoch).map_err(|_| broken("an epoch is negative"))?;
    Ok(PartitionRow {
        partition: partition.ok_or_else(|| broken("no partition"))?,
        epoch: Epoch(epoch),
        server: row.try_get(2)?,
    })
}

/// Renews a lease, or ends it where `for_ms` is 0, and answers the holder's portion. By PostgreSQL's clock:
/// that of a host which is ahead would keep a dead process among the living.
pub(super) async fn lease(
    tx: &Transaction<'_>,
    holder: &str,
    for_ms: i64,
) -> Result<Portion, Fault> {
    // What nobody renews is taken out by the next one who does: as many rows as processes.
    sql::run(
        tx,
        "-- ledger.end_leases\nDELETE FROM settle_lease WHERE until <= clock_timestamp()",
        &[],
    )
    .await?;
    if for_ms <= 0 {
        sql::run(
            tx,
            "-- ledger.end_lease\nDELETE FROM settle_lease WHERE holder = $1",
            &[&holder],
        )
        .await?;
        return Ok(Portion::ALONE);
    }
    sql::run(
        tx,
        "-- ledger.renew_lease
         INSERT INTO settle_lease (holder, until)
         VALUES ($1, clock_timestamp() + $2::bigint * interval '1 millisecond')
         ON CONFLICT (holder) DO UPDATE SET until = excluded.until",
        &[&holder, &for_ms],
    )
    .await?;
    let found = sql::rows(
        tx,
        "-- ledger.leases
         SELECT holder FROM settle_lease WHERE until > clock_timestamp() ORDER BY holder",
        &[],
    )
    .await?;
    let mut rank = 0;
    for (place, row) in found.iter().enumerate() {
        if row.try_get::<_, &str>(0)? == holder {
            rank = place;
        }
    }
    let short = |n: usize| u16::try_from(n).map_err(|_| broken("too many processes settle"));
    Ok(Portion {
        rank: short(rank)?,
        of: short(found.len().max(1))?,
    })
}

/// Renews a lease of who only serves, or ends it where `for_ms` is 0. Answers how many others run.
pub(super) async fn serving(
    tx: &Transaction<'_>,
    holder: &str,
    for_ms: i64,
) -> Result<usize, Fault> {
    sql::run(
        tx,
        "-- ledger.end_serving
         DELETE FROM serve_lease WHERE until <= clock_timestamp() OR (holder = $1 AND $2)",
        &[&holder, &(for_ms <= 0)],
    )
    .await?;
    if for_ms > 0 {
        sql::run(
            tx,
            "-- ledger.renew_serving
             INSERT INTO serve_lease (holder, until)
             VALUES ($1, clock_timestamp() + $2::bigint * interval '1 millisecond')
             ON CONFLICT (holder) DO UPDATE SET until = excluded.until",
            &[&holder, &for_ms],
        )
        .await?;
    }
    let others = sql::rows(
        tx,
        "-- ledger.serving
         SELECT holder FROM serve_lease WHERE until > clock_timestamp() AND holder <> $1",
        &[&holder],
    )
    .await?;
    Ok(others.len())
}
