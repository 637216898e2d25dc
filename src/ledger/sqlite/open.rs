//! Opens the file of the books: checks that it is ours, brings its schema up to date, sets every
//! connection up alike.
//!
//! *Ordering.* Application id, schema version, the log folded, migrations (each in one transaction together with
//! its number), partition count, seal key. Nothing is written to a file that is not understood.
//!
//! *If it crashes here.* A migration and its number commit together, so the next start goes on
//! with the first one that is missing.
//!
//! *Not here.* The lock on the data folder: who starts the process takes it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::domain::fairness::SealKeys;
use crate::domain::id::{PartitionCount, TENANT_DEFAULT, TenantId, UnixMs};
use crate::ledger::LedgerError;

use super::leaves;

/// Numbered from 1, forward only. A released file is never edited.
const MIGRATIONS: [&str; 7] = [
    include_str!("migrations/0001_books.sql"),
    include_str!("migrations/0002_frozen.sql"),
    include_str!("migrations/0003_refunds.sql"),
    include_str!("migrations/0004_hot_partitions.sql"),
    include_str!("migrations/0005_make_good.sql"),
    include_str!("migrations/0006_parked.sql"),
    include_str!("migrations/0007_gathered.sql"),
];

/// Tells our books from any other SQLite file: "RdEn".
const APPLICATION_ID: i32 = 0x5264_456e;

/// Prepared statements that a connection keeps: this room has about 80.
const STATEMENTS_KEPT: usize = 128;

/// How long a connection waits for a lock. There is one writer, so only the recovery of the log
/// after a crash holds one.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// Why the books were not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A SQLite file of another program.
    #[error("{0} is a SQLite file of another program: name another data folder")]
    NotALedger(String),
    /// Written by a later release.
    #[error(
        "the ledger has schema {found}, this release knows up to {known}: start the release that wrote it, or a later one"
    )]
    UnknownSchema {
        /// In the file.
        found: i32,
        /// The latest that is known here.
        known: i32,
    },
    /// Made for another number of partitions.
    #[error("the ledger was made for {found} partitions, not for {asked}: they never change")]
    PartitionCount {
        /// In the file.
        found: u16,
        /// Asked for.
        asked: u16,
    },
    /// A migration would leave rows that refer to nothing.
    #[error("the ledger can't be brought up to date: rows refer to others that are not there")]
    References,
    /// The file can't have a write-ahead log.
    #[error(
        "the ledger's file can't have a write-ahead log, its journal is {0:?}: move the data folder to a local disk"
    )]
    Journal(String),
    /// The seal keys do not open the newest commitment.
    #[error("the seal keys are not those of this ledger: {0}")]
    SealKeys(String),
    /// The first seeds can't be committed to.
    #[error("the first batch of seeds can't be committed to: {0}")]
    Founding(LedgerError),
    /// The file can't be opened, read or written.
    #[error("the ledger can't be opened: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// No thread for the writer.
    #[error("the ledger's writer can't be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// The latest schema that this release knows.
pub(super) fn schema_known() -> i32 {
    i32::try_from(MIGRATIONS.len()).expect("migrations are few")
}

/// The first half of the default tenant's first commitment: random, public, and never changed.
pub(super) fn identity(db: &Connection) -> Result<String, OpenError> {
    let root: [u8; 32] = db.query_row(
        "-- ledger.identity
         SELECT batch_root FROM leaf_batch WHERE tenant = ?1 AND batch_number = 0",
        [TENANT_DEFAULT],
        |row| row.get(0),
    )?;
    Ok(data_encoding::HEXLOWER.encode(&root[..16]))
}

/// The keys must open the newest commitment, or no envelope could be created or proved.
pub(super) fn check_keys(db: &Connection, keys: &SealKeys) -> Result<(), OpenError> {
    let newest: Option<(String, i64)> = rusqlite::OptionalExtension::optional(db.query_row(
        "-- ledger.newest_commitment
         SELECT tenant, batch_number FROM leaf_batch ORDER BY tenant DESC, batch_number DESC LIMIT 1",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    ))?;
    let Some((tenant, batch_number)) = newest else {
        return Ok(());
    };
    let wrong = |error: String| OpenError::SealKeys(error);
    let tenant = TenantId::parse(&tenant).map_err(|error| wrong(error.to_string()))?;
    leaves::open_batch(db, keys, &tenant, batch_number.unsigned_abs())
        .map(|_| ())
        .map_err(|error| wrong(error.to_string()))
}

/// The connection that writes, on an up-to-date schema.
pub(super) fn writing(
    path: &Path,
    partitions: PartitionCount,
    now: UnixMs,
) -> Result<Connection, OpenError> {
    let mut db = Connection::open(path)?;
    db.busy_timeout(BUSY_WAIT)?;
    check_origin(&db, path)?;
    set_up(&db)?;
    fold(&db)?;
    migrate(&mut db, partitions, now)?;
    check_partitions(&db, partitions)?;
    Ok(db)
}

/// A connection that only reads.
pub(super) fn reading(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_WAIT)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(db)
}

fn check_origin(db: &Connection, path: &Path) -> Result<(), OpenError> {
    let application: i32 = db.query_row(
        "-- ledger.application_id\nPRAGMA application_id",
        [],
        |row| row.get(0),
    )?;
    let found: i32 = db.query_row("-- ledger.schema_version\nPRAGMA user_version", [], |row| {
        row.get(0)
    })?;
    let tables: i64 = db.query_row(
        "-- ledger.is_new\nSELECT count(*) FROM sqlite_schema",
        [],
        |row| row.get(0),
    )?;
    let new = application == 0 && found == 0 && tables == 0;
    if !new && application != APPLICATION_ID {
        return Err(OpenError::NotALedger(path.display().to_string()));
    }
    let known = schema_known();
    if !(0..=known).contains(&found) {
        return Err(OpenError::UnknownSchema { found, known });
    }
    Ok(())
}

/// Every commit is an fsync of the log (FULL); a reader never waits for the writer (WAL); deleting
/// by REPLACE fires the triggers that refuse it (recursive_triggers). 64 MiB of pages hold the hot
/// ends of the indexes of some million claims. The log is folded into the file every 8,192 pages
/// (32 MiB): a batch of 200 grabs of as many envelopes touches a thousand pages, and the same ones
/// again and again, so folding at SQLite's default of 1,000 would write each of them twice.
fn set_up(db: &Connection) -> Result<(), OpenError> {
    // SQLite answers which journal it has, and not that it could not have this one.
    let journal: String = db.query_row(
        "-- ledger.journal_mode\nPRAGMA journal_mode = WAL",
        [],
        |row| row.get(0),
    )?;
    if journal != "wal" {
        return Err(OpenError::Journal(journal));
    }
    db.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    db.execute_batch(
        "-- ledger.set_up
         PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA recursive_triggers = ON;
         PRAGMA cache_size = -65536;
         PRAGMA wal_autocheckpoint = 8192;
         PRAGMA journal_size_limit = 67108864;",
    )?;
    Ok(())
}

/// Folds the log that the last process left into the file, and syncs both.
///
/// Where a commit ended that process because its fsync failed, its frames may be in the page cache
/// only: they read back well, and the kernel does not write them again. Answers would rest on them,
/// and new frames would be appended behind them; a power cut would then break the log's chain of
/// checksums at the old frame and take every later commit with it. Folded, their pages are written
/// and synced anew, and the log begins again.
fn fold(db: &Connection) -> Result<(), OpenError> {
    let busy: bool = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        let why = "another process reads the ledger's file: end it".to_owned();
        return Err(rusqlite::Error::SqliteFailure(code, Some(why)).into());
    }
    Ok(())
}

fn migrate(db: &mut Connection, partitions: PartitionCount, now: UnixMs) -> Result<(), OpenError> {
    let found: i32 = db.query_row("-- ledger.schema_version\nPRAGMA user_version", [], |row| {
        row.get(0)
    })?;
    let done = usize::try_from(found).unwrap_or(0);
    if done == MIGRATIONS.len() {
        return Ok(());
    }
    // A migration may build a table anew: references are checked at its end, not at each step.
    db.execute_batch("-- ledger.references_off\nPRAGMA foreign_keys = OFF")?;
    for (index, sql) in MIGRATIONS.iter().enumerate().skip(done) {
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(sql)?;
        let number = index + 1;
        tx.execute_batch(&format!(
            "-- ledger.set_schema_version\nPRAGMA user_version = {number};"
        ))?;
        if index == 0 {
            tx.execute_batch(&format!(
                "-- ledger.set_application_id\nPRAGMA application_id = {APPLICATION_ID};"
            ))?;
            tx.execute(
                "-- ledger.found_books
                 INSERT INTO book (row, partition_count, created_at) VALUES (1, ?1, ?2)",
                (partitions.get(), now.0),
            )?;
        }
        check_references(&tx)?;
        tx.commit()?;
    }
    db.execute_batch("-- ledger.references_on\nPRAGMA foreign_keys = ON")?;
    Ok(())
}

fn check_references(db: &Connection) -> Result<(), OpenError> {
    let mut check = db.prepare("-- ledger.check_references\nPRAGMA foreign_key_check")?;
    match check.exists([])? {
        true => Err(OpenError::References),
        false => Ok(()),
    }
}

fn check_partitions(db: &Connection, asked: PartitionCount) -> Result<(), OpenError> {
    let found: u16 = db.query_row(
        "-- ledger.partition_count\nSELECT partition_count FROM book WHERE row = 1",
        [],
        |row| row.get(0),
    )?;
    if found != asked.get() {
        return Err(OpenError::PartitionCount {
            found,
            asked: asked.get(),
        });
    }
    Ok(())
}
