//! The hot store's incarnations: its layout, and the epoch in which each partition stands.
//!
//! *Bounds.* At most `PartitionCount::MAX` partitions: a row of each.
//!
//! *Ordering.* A batch is posted in the transaction that compares its epoch, and there is one
//! writer: what is posted after an advance was read after it.
//!
//! *If it crashes here.* An epoch that was advanced and not registered belongs to nobody: the
//! next registration advances it again.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row};

use crate::domain::id::{Epoch, Partition, PartitionCount};
use crate::ledger::{
    HotLayout, LedgerError, PartitionRow, SERVER_OF_A_RESTORE, Under, epochs_beyond,
};

use super::rows::{Sql, strange};
use super::writer::Books;

/// Records the layout, if none is on record. Answers what is.
pub(super) fn hot_layout(books: &Books<'_>, layout: &HotLayout) -> Result<HotLayout, LedgerError> {
    books
        .db
        .prepare_cached(
            "-- ledger.record_hot_layout
             INSERT INTO hot_layout (row, store, layout, partition_count)
             VALUES (1, ?1, ?2, ?3) ON CONFLICT DO NOTHING",
        )
        .and_then(|mut insert| insert.execute((&layout.store, layout.layout, layout.partitions)))
        .sql()?;
    books
        .db
        .prepare_cached(
            "-- ledger.hot_layout
             SELECT store, layout, partition_count FROM hot_layout WHERE row = 1",
        )
        .and_then(|mut find| {
            find.query_row([], |row| {
                Ok(HotLayout {
                    store: row.get(0)?,
                    layout: row.get(1)?,
                    partitions: row.get(2)?,
                })
            })
        })
        .sql()
}

/// Every registration.
pub(super) fn partitions(db: &Connection) -> Result<Vec<PartitionRow>, LedgerError> {
    db.prepare_cached(
        "-- ledger.partitions
         SELECT partition, epoch, server FROM hot_partition ORDER BY partition",
    )
    .and_then(|mut find| find.query_map([], registration)?.collect())
    .sql()
}

/// Compare and set, pair by pair; answers the rows of these partitions as they stand then.
pub(super) fn advance(
    books: &Books<'_>,
    from: &[(Partition, Epoch)],
    server: &str,
) -> Result<Vec<PartitionRow>, LedgerError> {
    if from.len() > usize::from(PartitionCount::MAX) {
        return Err(LedgerError::Broken(format!(
            "{} are more partitions than there can be",
            from.len()
        )));
    }
    let mut rows = Vec::with_capacity(from.len());
    for (partition, epoch) in from {
        if stands_in(books.db, *partition)? == *epoch {
            set(books.db, *partition, Epoch(epoch.0 + 1), server)?;
        }
        // A partition that has no row after this stands in the first epoch, on nobody's process.
        rows.extend(find(books.db, *partition)?);
    }
    Ok(rows)
}

/// Takes every partition that was registered beyond its epoch, and those of `past` beyond theirs, on
/// nobody's process. Answers how many.
pub(super) fn leave_behind(
    books: &Books<'_>,
    past: &[(Partition, Epoch)],
) -> Result<usize, LedgerError> {
    let beyond = epochs_beyond(partitions(books.db)?, past)?;
    for (index, epoch) in &beyond {
        let partition = Partition::new(*index);
        let partition = partition.ok_or_else(|| LedgerError::Broken("no partition".to_owned()))?;
        let stands = stands_in(books.db, partition)?;
        let wanted = Epoch(epoch.unsigned_abs());
        // An epoch advances by one: the schema refuses more.
        for next in stands.0 + 1..=wanted.0 {
            set(books.db, partition, Epoch(next), SERVER_OF_A_RESTORE)?;
        }
    }
    Ok(beyond.len())
}

/// That a batch was read in the epoch in which its partition stands.
pub(super) fn check(db: &Connection, under: Under) -> Result<(), LedgerError> {
    match stands_in(db, under.partition)? {
        epoch if epoch == under.epoch => Ok(()),
        epoch => Err(LedgerError::Epoch(epoch)),
    }
}

/// That each of these partitions stands in the epoch that is named.
pub(super) fn check_all(
    db: &Connection,
    under: &BTreeMap<Partition, Epoch>,
) -> Result<(), LedgerError> {
    let mut under = under.iter();
    under.try_for_each(|(partition, epoch)| {
        let (partition, epoch) = (*partition, *epoch);
        check(db, Under { partition, epoch })
    })
}

fn stands_in(db: &Connection, partition: Partition) -> Result<Epoch, LedgerError> {
    Ok(find(db, partition)?.map_or(Epoch::FIRST, |row| row.epoch))
}

fn find(db: &Connection, partition: Partition) -> Result<Option<PartitionRow>, LedgerError> {
    db.prepare_cached(
        "-- ledger.partition
         SELECT partition, epoch, server FROM hot_partition WHERE partition = ?1",
    )
    .and_then(|mut find| find.query_row([partition.index()], registration).optional())
    .sql()
}

fn set(
    db: &Connection,
    partition: Partition,
    epoch: Epoch,
    server: &str,
) -> Result<(), LedgerError> {
    let number = i64::try_from(epoch.0)
        .map_err(|_| LedgerError::Broken("the epochs are used up".to_owned()))?;
    db.prepare_cached(
        "-- ledger.advance_epoch
         INSERT INTO hot_partition (partition, epoch, server) VALUES (?1, ?2, ?3)
         ON CONFLICT (partition) DO UPDATE SET epoch = excluded.epoch, server = excluded.server",
    )
    .and_then(|mut upsert| upsert.execute((partition.index(), number, server)))
    .sql()?;
    Ok(())
}

fn registration(row: &Row<'_>) -> rusqlite::Result<PartitionRow> {
    let epoch: i64 = row.get(1)?;
    Ok(PartitionRow {
        partition: Partition::new(row.get(0)?).ok_or_else(|| strange(0, "no partition"))?,
        epoch: Epoch(u64::try_from(epoch).map_err(|_| strange(1, "no epoch"))?),
        server: row.get(2)?,
    })
}
