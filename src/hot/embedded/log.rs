//! The store's files: an append-only log, snapshots of envelopes, and the fsync before every
//! acknowledgement. The only room that knows these tables.
//!
//! # Shape
//! | table | a row is | lifetime |
//! |---|---|---|
//! | `log` | a batch (`record`) | until it is settled and a snapshot covers what it changed |
//! | `envelope` | the small, changing part of an envelope (`snapshot`) | until it is removed |
//! | `part` | a run of amounts or holders, never changed once covered | until its envelope is removed |
//! | `floor` | the number of the first row that must still be in the log | for ever |
//!
//! # Ordering
//! One transaction a batch: its row, a slice of snapshots, a slice of truncation. SQLite's WAL
//! with `synchronous = FULL` fsyncs at every commit; the frames carry checksums, so a torn
//! commit is found at start and dropped whole. It was not acknowledged.
//!
//! # If it crashes here
//! A commit is there or not. One that *fails* leaves memory ahead of the disk: the writer stops.
//!
//! # Not here
//! What rows mean.

use std::collections::VecDeque;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};

/// Tells the file from other SQLite files ("REHL").
const APPLICATION_ID: i32 = 0x5245_484C;
/// Layouts of the tables that this release reads: this one.
const SCHEMA_VERSION: i32 = 1;
/// A transaction is at most a row (half a MiB), a slice of snapshots and a slice of truncation,
/// so the WAL is folded back about every 20 batches: 16 MiB, some 20 ms on a common disk.
const WAL_PAGES_MAX: i32 = 4_096;
/// Bytes of log that one batch may delete: a slice of 5 ms deletes several MiB.
const SEGMENT_BYTES_MAX: u64 = 1 << 20;
/// A log is cut by at least so many steps, so that it does not shrink below what snapshots saved.
const SEGMENTS_MIN: u64 = 16;

const SCHEMA: &str = "-- hot.create
CREATE TABLE log (seq INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE envelope (
  born INTEGER PRIMARY KEY, id BLOB NOT NULL, through INTEGER NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE TABLE part (
  born INTEGER NOT NULL, kind INTEGER NOT NULL, first INTEGER NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY (born, kind, first)
) STRICT;
CREATE TABLE floor (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL) STRICT;
INSERT INTO floor VALUES (1, 1);
";

/// Why the files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has them open.
    #[error("{0} is in use by another process")]
    Busy(String),
    /// The operating system or SQLite refused.
    #[error("{path} can't be opened: {why}")]
    Io {
        /// The file.
        path: String,
        /// SQLite's words.
        why: rusqlite::Error,
    },
    /// It is another program's, or a later release's.
    #[error("{0} is not a hot store that this release reads: {1}")]
    Foreign(String, String),
    /// The content is not what was written. Restore a backup, or ask for help with the file.
    #[error("the hot store is damaged at {place}: {what}")]
    Damaged {
        /// Which row or envelope.
        place: String,
        /// What is wrong with it.
        what: String,
    },
}

impl From<rusqlite::Error> for OpenError {
    fn from(why: rusqlite::Error) -> Self {
        match why.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseCorrupt) => Self::Damaged {
                place: "the SQLite file itself".into(),
                what: why.to_string(),
            },
            _ => Self::Io {
                path: "the hot store".into(),
                why,
            },
        }
    }
}

/// What kind of run a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartKind {
    Terms = 0,
    Amounts = 1,
    Holders = 2,
}

/// The header of an envelope's snapshot as it is kept.
pub(super) struct HeaderRow {
    pub born: u64,
    pub id: [u8; 16],
    pub through: u64,
    pub body: Vec<u8>,
}

/// Rows of the log that are deleted together.
struct Segment {
    last_seq: u64,
    bytes: u64,
}

pub(super) struct Log {
    conn: Connection,
    last_seq: u64,
    segments: VecDeque<Segment>,
    segment_bytes: u64,
    bytes: u64,
}

fn sql(number: u64) -> i64 {
    i64::try_from(number).expect("rows are counted, not drawn: they stay below 2^63")
}

fn unsql(number: i64) -> rusqlite::Result<u64> {
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(0, number))
}

impl Log {
    /// Opens the file, or creates it, and keeps every other process out of it. The log is meant
    /// to stay near `log_bytes_max`.
    pub fn open(path: &Path, log_bytes_max: u64) -> Result<Self, OpenError> {
        let name = path.display().to_string();
        let io = |why: rusqlite::Error| match why.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                OpenError::Busy(name.clone())
            }
            Some(rusqlite::ErrorCode::NotADatabase) => {
                OpenError::Foreign(name.clone(), "it is no SQLite file".into())
            }
            _ => OpenError::Io {
                path: name.clone(),
                why,
            },
        };
        let mut conn = Connection::open(path).map_err(io)?;
        conn.set_prepared_statement_cache_capacity(32);
        // Before the WAL begins, so that its index lives in this process's memory alone.
        pragma(&conn, "locking_mode", "EXCLUSIVE").map_err(io)?;
        let (id, version) = identity(&conn).map_err(io)?;
        let tables: i64 = conn
            .query_row(
                "-- hot.tables\nSELECT count(*) FROM sqlite_schema",
                [],
                |r| r.get(0),
            )
            .map_err(io)?;
        if (id, version) != (APPLICATION_ID, SCHEMA_VERSION) {
            if tables != 0 {
                let found = format!("it says application {id:#x}, layout {version}");
                return Err(OpenError::Foreign(name.clone(), found));
            }
            create(&mut conn).map_err(io)?;
        }
        pragma(&conn, "journal_mode", "WAL").map_err(io)?;
        pragma(&conn, "synchronous", "FULL").map_err(io)?;
        conn.pragma_update(None, "wal_autocheckpoint", WAL_PAGES_MAX)
            .map_err(io)?;
        let full: i64 = conn
            .pragma_query_value(None, "synchronous", |r| r.get(0))
            .map_err(io)?;
        if full != 2 {
            return Err(OpenError::Foreign(
                name.clone(),
                "SQLite refuses synchronous = FULL".into(),
            ));
        }
        // Closing must not write: after a failed commit nothing may touch the file any more.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(io)?;
        let log = Self {
            conn,
            last_seq: 0,
            segments: VecDeque::new(),
            segment_bytes: SEGMENT_BYTES_MAX.min(log_bytes_max / SEGMENTS_MIN),
            bytes: 0,
        };
        log.fold().map_err(io)?;
        Ok(log)
    }

    /// The number of the newest row; 0: none was ever written.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Bytes of the rows in the log.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    // ── write ───────────────────────────────────────────────────────────────────────────────

    /// Begins a transaction.
    pub fn begin(&self) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("-- hot.begin\nBEGIN IMMEDIATE")?
            .execute([])?;
        Ok(())
    }

    /// Adds a row under the next number.
    pub fn append(&mut self, seq: u64, body: &[u8]) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("-- hot.append\nINSERT INTO log (seq, body) VALUES (?1, ?2)")?
            .execute(params![sql(seq), body])?;
        self.count(seq, body.len());
        Ok(())
    }

    /// Makes the transaction durable: when this returns, the disk has it.
    pub fn commit(&self) -> rusqlite::Result<()> {
        fail::fail_point!("hot::before_commit", |_| Err(disk_fault()));
        self.conn
            .prepare_cached("-- hot.commit\nCOMMIT")?
            .execute([])?;
        fail::fail_point!("hot::after_commit", |_| Err(disk_fault()));
        Ok(())
    }

    fn count(&mut self, seq: u64, body: usize) {
        let bytes = u64::try_from(body).expect("usize is at most 64 bits");
        self.last_seq = seq;
        self.bytes += bytes;
        match self.segments.back_mut() {
            Some(segment) if segment.bytes < self.segment_bytes => {
                segment.last_seq = seq;
                segment.bytes += bytes;
            }
            _ => self.segments.push_back(Segment {
                last_seq: seq,
                bytes,
            }),
        }
    }

    /// Whether rows can be deleted if those from `needed` on must stay. The newest row always
    /// stays: it holds the place from which numbers go on.
    pub fn can_truncate(&self, needed: u64) -> bool {
        let front = self.segments.front();
        front.is_some_and(|s| s.last_seq < needed.min(self.last_seq))
    }

    /// Deletes the oldest segment, in the transaction that is open.
    pub fn truncate_one(&mut self, needed: u64) -> rusqlite::Result<()> {
        if !self.can_truncate(needed) {
            return Ok(());
        }
        let Some(segment) = self.segments.pop_front() else {
            return Ok(());
        };
        self.bytes = self.bytes.saturating_sub(segment.bytes);
        self.conn
            .prepare_cached("-- hot.truncate\nDELETE FROM log WHERE seq <= ?1")?
            .execute([sql(segment.last_seq)])?;
        self.conn
            .prepare_cached("-- hot.raise_floor\nUPDATE floor SET seq = ?1")?
            .execute([sql(segment.last_seq + 1)])?;
        Ok(())
    }

    /// Writes or replaces the header of a snapshot.
    pub fn put_header(&self, row: &HeaderRow) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "-- hot.put_header\nINSERT OR REPLACE INTO envelope (born, id, through, body)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![sql(row.born), row.id, sql(row.through), row.body])?;
        Ok(())
    }

    /// Deletes the header of an envelope that is removed.
    pub fn delete_header(&self, born: u64) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("-- hot.delete_header\nDELETE FROM envelope WHERE born = ?1")?
            .execute([sql(born)])?;
        Ok(())
    }

    /// Writes or replaces a part of a snapshot.
    pub fn put_part(
        &self,
        born: u64,
        kind: PartKind,
        first: usize,
        body: &[u8],
    ) -> rusqlite::Result<()> {
        let first = i64::try_from(first).expect("a share's number is below 2^32");
        self.conn
            .prepare_cached(
                "-- hot.put_part\nINSERT OR REPLACE INTO part (born, kind, first, body)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![sql(born), kind as i64, first, body])?;
        Ok(())
    }

    /// Deletes some parts of an envelope that is removed; how many is the answer.
    pub fn delete_parts(&self, born: u64, parts_max: usize) -> rusqlite::Result<usize> {
        let limit = i64::try_from(parts_max).unwrap_or(i64::MAX);
        self.conn
            .prepare_cached(
                "-- hot.delete_parts\nDELETE FROM part WHERE rowid IN
                 (SELECT rowid FROM part WHERE born = ?1 LIMIT ?2)",
            )?
            .execute(params![sql(born), limit])
    }

    /// Folds the WAL into the file: first thing at start and last before a clean end.
    ///
    /// At start it makes durable what an fsync that failed left in the page cache only: the rows
    /// are about to be believed, and reading them back proves nothing about the disk.
    pub fn fold(&self) -> rusqlite::Result<()> {
        self.conn
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }

    // ── read, at start ──────────────────────────────────────────────────────────────────────

    /// The number of the first row that must be there.
    pub fn floor(&self) -> rusqlite::Result<u64> {
        let one = "-- hot.floor\nSELECT seq FROM floor";
        unsql(self.conn.query_row(one, [], |r| r.get(0))?)
    }

    /// Shows every row, oldest first.
    pub fn rows<E: From<rusqlite::Error>>(
        &self,
        mut show: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let all = "-- hot.rows\nSELECT seq, body FROM log ORDER BY seq";
        let mut statement = self.conn.prepare(all)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let body = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            show(unsql(row.get(0)?)?, body)?;
        }
        Ok(())
    }

    /// Counts what [`Log::rows`] showed, so that the log goes on behind it.
    pub fn found(&mut self, seq: u64, bytes: usize) {
        self.count(seq, bytes);
    }

    /// Every snapshot's header, oldest envelope first.
    pub fn headers<E: From<rusqlite::Error>>(
        &self,
        mut show: impl FnMut(HeaderRow) -> Result<(), E>,
    ) -> Result<(), E> {
        let all = "-- hot.headers\nSELECT born, id, through, body FROM envelope ORDER BY born";
        let mut statement = self.conn.prepare(all)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            show(HeaderRow {
                born: unsql(row.get(0)?)?,
                id: row.get(1)?,
                through: unsql(row.get(2)?)?,
                body: row.get(3)?,
            })?;
        }
        Ok(())
    }

    /// Shows an envelope's parts of one kind that begin below `end`, in order.
    pub fn parts<E: From<rusqlite::Error>>(
        &self,
        born: u64,
        kind: PartKind,
        end: usize,
        mut show: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let some = "-- hot.parts\nSELECT first, body FROM part
             WHERE born = ?1 AND kind = ?2 AND first < ?3 ORDER BY first";
        let end = i64::try_from(end).expect("a share's number is below 2^32");
        let mut statement = self.conn.prepare_cached(some)?;
        let mut rows = statement.query(params![sql(born), kind as i64, end])?;
        while let Some(row) = rows.next()? {
            let first: i64 = row.get(0)?;
            let first = usize::try_from(first)
                .map_err(|_| rusqlite::Error::IntegralValueOutOfRange(0, first))?;
            let body = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            show(first, body)?;
        }
        Ok(())
    }

    /// Deletes parts that no header covers: of a snapshot that was not finished, or of a removed
    /// envelope.
    pub fn delete_uncovered(&self, born: u64, kind: PartKind, end: usize) -> rusqlite::Result<()> {
        let end = i64::try_from(end).expect("a share's number is below 2^32");
        self.conn
            .prepare_cached(
                "-- hot.delete_uncovered\nDELETE FROM part
                 WHERE born = ?1 AND kind = ?2 AND first >= ?3",
            )?
            .execute(params![sql(born), kind as i64, end])?;
        Ok(())
    }

    /// Envelopes that have parts and no header.
    pub fn orphans(&self) -> rusqlite::Result<Vec<u64>> {
        let all = "-- hot.orphans\nSELECT DISTINCT born FROM part
             WHERE born NOT IN (SELECT born FROM envelope)";
        let mut statement = self.conn.prepare(all)?;
        let born = statement.query_map([], |row| row.get(0))?;
        born.map(|born| unsql(born?)).collect()
    }

    /// Lets the file grow to so many pages and no further: how tests fill the disk.
    #[cfg(test)]
    pub fn fill_disk(&self) -> rusqlite::Result<()> {
        let pages: i64 = self
            .conn
            .pragma_query_value(None, "page_count", |r| r.get(0))?;
        self.conn
            .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
    }
}

/// What a crash point returns: SQLite's error where the disk refuses an fsync.
#[cfg(feature = "test-hooks")]
fn disk_fault() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC);
    rusqlite::Error::SqliteFailure(code, None)
}

fn pragma(conn: &Connection, name: &str, value: &str) -> rusqlite::Result<()> {
    // Some pragmas answer with a row and some don't.
    conn.query_row(&format!("PRAGMA {name} = {value}"), [], |_| Ok(()))
        .optional()
        .map(|_| ())
}

fn identity(conn: &Connection) -> rusqlite::Result<(i32, i32)> {
    let id = conn.pragma_query_value(None, "application_id", |r| r.get(0))?;
    let version = conn.pragma_query_value(None, "user_version", |r| r.get(0))?;
    Ok((id, version))
}

fn create(conn: &mut Connection) -> rusqlite::Result<()> {
    let tx = conn.transaction()?;
    tx.execute_batch(SCHEMA)?;
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    tx.commit()
}
