//! A few connections that read, each call in one snapshot of the books.
//!
//! *Bounds.* [`READERS`] calls read at a time, [`READS_WAITING_MAX`] wait, further ones are shed.
//!
//! *Ordering.* A snapshot holds everything that was answered before the call began.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::Semaphore;

use crate::ledger::LedgerError;

use super::open::{self, OpenError};
use super::rows::Sql;

/// Connections: reads are CPU, and the machines that run one process have a few cores.
const READERS: usize = 4;

/// Calls that wait for a connection. At about 0.2 ms a page the last waits 50 ms.
const READS_WAITING_MAX: usize = 1_024;

pub(super) struct Readers {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Counts a waiting call down, also when its future is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Readers {
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let idle: Vec<Connection> = (0..READERS)
            .map(|_| open::reading(path))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            path: path.to_owned(),
            idle: Arc::new(Mutex::new(idle)),
            free: Arc::new(Semaphore::new(READERS)),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Runs `work` on one snapshot, off the async threads.
    pub async fn read<T, F>(&self, work: F) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, LedgerError> + Send + 'static,
    {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= READS_WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(LedgerError::Unavailable("too many reads wait".to_owned()));
        }
        let waiting = Waiting(&self.waiting);
        let permit = Arc::clone(&self.free)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        drop(waiting);
        let idle = Arc::clone(&self.idle);
        let path = self.path.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            // Missing only after a read that panicked.
            let taken = idle.lock().pop();
            let db = match taken {
                Some(db) => db,
                None => open::reading(&path)
                    .map_err(|error| LedgerError::Unavailable(error.to_string()))?,
            };
            let answer = in_snapshot(&db, work);
            idle.lock().push(db);
            answer
        });
        reading
            .await
            .unwrap_or_else(|_| Err(LedgerError::Broken("a read panicked".to_owned())))
    }
}

fn in_snapshot<T>(
    db: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, LedgerError>,
) -> Result<T, LedgerError> {
    let snapshot = db.unchecked_transaction().sql()?;
    let answer = work(&snapshot);
    // Nothing was written, so ending it can't lose anything.
    snapshot.finish().sql()?;
    answer
}
