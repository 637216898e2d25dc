//! Statements, and what their failures mean: SQLSTATE and names of constraints, never message text.
//!
//! *Bounds.* A call is tried [`TRIES_MAX`] times where PostgreSQL says that it could not be ordered
//! beside others, or where two callers made the same request at the same moment.

use std::error::Error as _;

use deadpool_postgres::{GenericClient, HookError, PoolError, Transaction};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};

use crate::ledger::LedgerError;

/// Deadlocks and serialization failures end with one of the two committed, so each try lets another
/// caller pass.
pub(super) const TRIES_MAX: u32 = 8;

/// How the names begin of constraints that two callers of the same thing run into together: who was second
/// finds, when he repeats, what the first one made. A week's table of claims has its own names.
const RACES: [&str; 8] = [
    "claim_of_share",
    "claim_of_grabber",
    "made_good_once",
    "request_is_made_once",
    "batch_is_committed_to_once",
    "envelope_of_leaf",
    "hot_layout_pkey",
    "hot_partition_pkey",
];

/// Why a call came to no end.
#[derive(Debug)]
pub(super) enum Fault {
    /// The same call may succeed at once.
    Again(String),
    /// For the caller.
    Told(LedgerError),
}

impl Fault {
    /// Whether it is no answer to what was asked.
    pub fn is_strange(&self) -> bool {
        let told = |error: &LedgerError| {
            matches!(error, LedgerError::Unavailable(_) | LedgerError::Broken(_))
        };
        matches!(self, Self::Told(error) if told(error))
    }
}

impl From<LedgerError> for Fault {
    fn from(error: LedgerError) -> Self {
        Self::Told(error)
    }
}

impl From<Fault> for LedgerError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Again(why) => Self::Unavailable(why),
            Fault::Told(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let Some(told) = error.as_db_error() else {
            // No word from the server: the connection was lost, or a value did not fit its column.
            let ours = error.is_closed() || error.source().is_some_and(is_io);
            let text = describe(&error);
            return Self::Told(match ours {
                true => LedgerError::Unavailable(text),
                false => LedgerError::Broken(text),
            });
        };
        let code = told.code();
        let text = match told.constraint() {
            Some(constraint) => format!("{} ({}, {constraint})", told.message(), code.code()),
            None => format!("{} ({})", told.message(), code.code()),
        };
        if *code == SqlState::T_R_SERIALIZATION_FAILURE
            || *code == SqlState::T_R_DEADLOCK_DETECTED
            // Of statements sent together, the one that failed may be heard of after the next one.
            || *code == SqlState::IN_FAILED_SQL_TRANSACTION
            || told.constraint().is_some_and(is_race)
        {
            return Self::Again(text);
        }
        // Values and constraints are about what was asked for, and another record may pass. All else is
        // about the server, the rights or the schema: the same call may succeed later.
        Self::Told(
            match ["22", "23"]
                .iter()
                .any(|class| code.code().starts_with(class))
            {
                true => LedgerError::Broken(text),
                false => LedgerError::Unavailable(text),
            },
        )
    }
}

fn is_race(constraint: &str) -> bool {
    RACES.iter().any(|race| constraint.starts_with(race))
}

impl From<PoolError> for Fault {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => match Self::from(error) {
                // Whatever a new connection says, nothing was begun on it.
                Self::Told(LedgerError::Broken(why)) | Self::Again(why) => {
                    Self::Told(LedgerError::Unavailable(why))
                }
                told => told,
            },
            PoolError::PostCreateHook(HookError::Message(why)) => {
                Self::Told(LedgerError::Unavailable(why.into_owned()))
            }
            other => Self::Told(LedgerError::Unavailable(format!(
                "PostgreSQL can't be reached: {other}"
            ))),
        }
    }
}

fn is_io(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<std::io::Error>()
}

fn describe(error: &Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Whether a failure is of a wait for a lock, or of a statement, that took too long.
fn is_of_a_wait(why: &str) -> bool {
    let codes = [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED];
    codes
        .iter()
        .any(|code| why.contains(&format!("({})", code.code())))
}

/// Whether one of several that were done together may be what the others suffer from: something that the books
/// refuse, or a row that somebody holds.
pub(super) fn is_about_one(error: &LedgerError) -> bool {
    match error {
        LedgerError::Broken(_) => true,
        LedgerError::Unavailable(why) => is_of_a_wait(why),
        _ => false,
    }
}

/// Values of a statement.
pub(super) type Values<'a> = &'a [&'a (dyn ToSql + Sync)];

/// All rows of a statement, which is prepared once a connection.
pub(super) async fn rows(
    db: &impl GenericClient,
    sql: &str,
    values: Values<'_>,
) -> Result<Vec<Row>, Fault> {
    let statement = db.prepare_cached(sql).await?;
    Ok(db.query(&statement, values).await?)
}

/// The row of a statement, if there is one.
pub(super) async fn row(
    db: &impl GenericClient,
    sql: &str,
    values: Values<'_>,
) -> Result<Option<Row>, Fault> {
    let statement = db.prepare_cached(sql).await?;
    Ok(db.query_opt(&statement, values).await?)
}

/// How many rows a statement changed.
pub(super) async fn run(
    db: &impl GenericClient,
    sql: &str,
    values: Values<'_>,
) -> Result<u64, Fault> {
    let statement = db.prepare_cached(sql).await?;
    Ok(db.execute(&statement, values).await?)
}

/// The numbers of rows that are about to be inserted, ascending.
pub(super) async fn numbers(
    tx: &Transaction<'_>,
    sql: &str,
    count: usize,
) -> Result<std::vec::IntoIter<i64>, Fault> {
    if count == 0 {
        return Ok(Vec::new().into_iter());
    }
    let count = i64::try_from(count).map_err(|_| broken("more rows than numbers"))?;
    let found = rows(tx, sql, &[&count]).await?;
    let mut numbers: Vec<i64> = found.iter().map(|row| row.get(0)).collect();
    numbers.sort_unstable();
    Ok(numbers.into_iter())
}

/// Of envelopes that are made on a day, for whose claims there is a table then (migration 0004).
pub(super) async fn envelope_numbers(
    tx: &Transaction<'_>,
    day: u16,
    count: usize,
) -> Result<std::vec::IntoIter<i64>, Fault> {
    let count = i64::try_from(count).map_err(|_| broken("more rows than numbers"))?;
    let found = rows(tx, ENVELOPE_NUMBERS, &[&i32::from(day), &count]).await?;
    let numbers: Vec<i64> = found.iter().map(|row| row.get(0)).collect();
    Ok(numbers.into_iter())
}

const ENVELOPE_NUMBERS: &str = "-- ledger.envelope_numbers
    WITH opened AS MATERIALIZED (SELECT claims_of_day($1) AS first),
        drawn AS (SELECT nextval('envelope_row') AS number FROM generate_series(1, $2::bigint))
    SELECT opened.first + drawn.number FROM opened, drawn ORDER BY drawn.number";
/// Of a posting.
pub(super) const POSTING_NUMBERS: &str =
    "-- ledger.posting_numbers\nSELECT nextval('posting_row') FROM generate_series(1, $1::bigint)";

/// Numbers that one step of the sequence of entries stands for (migration 0002).
const ENTRY_BLOCK: usize = 1_024;

/// The numbers of entries and claims that are about to be inserted, ascending. Drawn in blocks: a batch of
/// thousands would else ask the sequence thousands of times. What is left of a block is not used.
pub(super) async fn entry_numbers(
    tx: &Transaction<'_>,
    count: usize,
) -> Result<std::vec::IntoIter<i64>, Fault> {
    let blocks = numbers(tx, ENTRY_BLOCKS, count.div_ceil(ENTRY_BLOCK)).await?;
    let length = i64::try_from(ENTRY_BLOCK).expect("a block is small");
    let numbers: Vec<i64> = blocks.flat_map(|first| first..first + length).collect();
    Ok(numbers.into_iter())
}

const ENTRY_BLOCKS: &str =
    "-- ledger.entry_blocks\nSELECT nextval('entry_row') FROM generate_series(1, $1::bigint)";

pub(super) fn broken(why: impl Into<String>) -> Fault {
    Fault::Told(LedgerError::Broken(why.into()))
}

/// A count as its column has it.
pub(super) fn int(count: u32) -> Result<i32, Fault> {
    i32::try_from(count).map_err(|_| broken("a count does not fit its column"))
}
