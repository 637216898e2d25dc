//! The one thread that writes the books, and the queue before it.
//!
//! # Shape
//! | phase | what |
//! |---|---|
//! | queue | a call waits for its turn; a full queue answers `Unavailable` at once |
//! | group | what has arrived runs in one transaction, each call in a savepoint of its own; a large call runs alone and needs none |
//! | commit | one fsync for the whole group |
//! | answer | every call hears its own result |
//!
//! # Bounds
//! [`QUEUE_CALLS_MAX`] calls wait; a group ends at [`GROUP_COST_MAX`].
//!
//! # Ordering
//! Calls take effect in the order of the queue. Nothing is answered before the commit, also no
//! refusal, because a refusal may rest on what an earlier call of the same group did.
//!
//! # If it crashes here
//! A group is there as a whole or not at all, and nobody heard of it: the repeat finds it by its
//! idempotency key. A commit that fails for another reason than a full disk stops the writer for
//! good: after a failed fsync nobody knows what the disk holds, and a restart reads the log anew.
//!
//! # Not here
//! What a call does: the other files of this room.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rand::CryptoRng;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::domain::fairness::SealKeys;
use crate::domain::id::UnixMs;
use crate::ledger::{Entropy, LedgerError};

/// Calls that wait for the writer. At about 0.1 ms a call the last of them waits half a second
/// longer than the first; more would only be answered after their callers gave up.
pub(super) const QUEUE_CALLS_MAX: usize = 4_096;

/// What one group may cost, in records posted: one full settle batch (about 60 ms) or 250 small
/// calls (about 25 ms) share an fsync; a larger group delays everybody in it and saves nothing,
/// since an fsync is about 1 ms.
const GROUP_COST_MAX: u32 = 5_000;

/// A call that costs so much runs in a transaction of its own. In a savepoint every page that it
/// touches is first copied into a journal for the savepoint, and every statement that may abort
/// (claims have a trigger) walks that journal when it ends: a third of a settle batch's time. From
/// this size on that costs more than the fsync (about 1 ms) that a shared transaction saves.
const ALONE_COST_MIN: u32 = 200;

/// What a call costs that posts no batch: it takes about as long as 20 records of a batch.
pub(super) const CALL_COST: u32 = 20;

/// What a call sees of the books while it writes.
pub(super) struct Books<'a> {
    pub db: &'a Connection,
    pub now: UnixMs,
    pub keys: &'a SealKeys,
    pub rng: &'a mut dyn CryptoRng,
}

/// Whether the books can be written, and if not, why.
#[derive(Default)]
pub(super) struct Health(Mutex<Option<String>>);

impl Health {
    pub fn check(&self) -> Result<(), String> {
        self.0.lock().clone().map_or(Ok(()), Err)
    }

    fn set(&self, trouble: Option<String>) {
        *self.0.lock() = trouble;
    }
}

/// A call in the queue.
trait Queued: Send {
    fn cost(&self) -> u32;
    /// Runs it inside its savepoint; answers whether its effects are to be kept.
    fn run(&mut self, books: &mut Books<'_>) -> bool;
    /// Tells the caller its result, or that the whole group failed.
    fn answer(self: Box<Self>, group: Result<(), LedgerError>);
}

struct Call<T, F> {
    cost: u32,
    work: Option<F>,
    result: Option<Result<T, LedgerError>>,
    reply: oneshot::Sender<Result<T, LedgerError>>,
}

impl<T, F> Queued for Call<T, F>
where
    T: Send,
    F: FnOnce(&mut Books<'_>) -> Result<T, LedgerError> + Send,
{
    fn cost(&self) -> u32 {
        self.cost
    }

    fn run(&mut self, books: &mut Books<'_>) -> bool {
        let work = self.work.take().expect("a call runs once");
        let result = work(books);
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn answer(self: Box<Self>, group: Result<(), LedgerError>) {
        let never_ran = || Err(unavailable("the call was not reached"));
        let result = match group {
            Ok(()) => self.result.unwrap_or_else(never_ran),
            Err(error) => Err(error),
        };
        // The caller may have gone: what it asked for is in the books, and its repeat finds it.
        let _gone = self.reply.send(result);
    }
}

fn unavailable(why: &str) -> LedgerError {
    LedgerError::Unavailable(why.to_owned())
}

/// The queue and its thread. Dropping it lets the thread finish what is queued and joins it.
pub(super) struct Writer {
    queue: Option<mpsc::Sender<Box<dyn Queued>>>,
    thread: Option<JoinHandle<()>>,
    health: Arc<Health>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(
        db: Connection,
        clock: Arc<dyn Clock>,
        keys: Arc<SealKeys>,
        rng: Entropy,
    ) -> std::io::Result<Self> {
        let (queue, calls) = mpsc::channel(QUEUE_CALLS_MAX);
        let health = Arc::new(Health::default());
        let desk = Desk {
            db,
            clock,
            keys,
            rng,
            health: Arc::clone(&health),
        };
        let thread = std::thread::Builder::new()
            .name("ledger-writer".to_owned())
            .spawn(move || desk.serve(calls))?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            health,
        })
    }

    /// Whether calls can be answered.
    pub fn check(&self) -> Result<(), String> {
        self.health.check()?;
        match &self.queue {
            Some(queue) if !queue.is_closed() => Ok(()),
            _ => Err("the ledger's writer has stopped: restart the process".to_owned()),
        }
    }

    /// Waits until the thread has ended by itself, and says why.
    pub async fn stopped(&self) -> String {
        let queue = self.queue.as_ref().expect("the queue lives until drop");
        queue.closed().await;
        let why = self.health.check().err();
        why.unwrap_or_else(|| "its writer has ended".to_owned())
    }

    /// Runs `work` in a transaction and answers when it is durable.
    pub async fn call<T, F>(&self, cost: u32, work: F) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Books<'_>) -> Result<T, LedgerError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let call = Call {
            cost,
            work: Some(work),
            result: None,
            reply,
        };
        let queue = self.queue.as_ref().expect("the queue lives until drop");
        queue
            .try_send(Box::new(call))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => unavailable("its queue is full"),
                mpsc::error::TrySendError::Closed(_) => unavailable("its writer has stopped"),
            })?;
        answer
            .await
            .unwrap_or_else(|_| Err(unavailable("its writer has stopped")))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has said so already; there is nothing left to save.
            let _panicked = thread.join();
        }
    }
}

/// What the thread owns.
struct Desk {
    db: Connection,
    clock: Arc<dyn Clock>,
    keys: Arc<SealKeys>,
    rng: Entropy,
    health: Arc<Health>,
}

impl Desk {
    fn serve(mut self, mut calls: mpsc::Receiver<Box<dyn Queued>>) {
        while let Some(first) = calls.blocking_recv() {
            let mut group = Vec::new();
            let written = self.write_group(first, &mut calls, &mut group);
            let stop = written.as_ref().err().is_some_and(|lost| !lost.passes());
            self.health.set(written.as_ref().err().map(Lost::advice));
            let outcome = written.map_err(|lost| LedgerError::Unavailable(lost.to_string()));
            for call in group {
                call.answer(outcome.clone());
            }
            if stop {
                tracing::error!("the ledger's writer stops: a commit failed");
                return;
            }
        }
    }

    /// One transaction over what has arrived. Every call that was taken is in `group` afterwards,
    /// also where the transaction failed before it was reached: it would have waited as long again.
    fn write_group(
        &mut self,
        first: Box<dyn Queued>,
        calls: &mut mpsc::Receiver<Box<dyn Queued>>,
        group: &mut Vec<Box<dyn Queued>>,
    ) -> Result<(), Lost> {
        let begun = step(&self.db, "-- ledger.begin\nBEGIN IMMEDIATE");
        let mut next = Some(first);
        let mut cost = 0;
        let mut run = begun.map_err(Lost::Failed);
        while let Some(mut call) = next.take() {
            let alone = group.is_empty() && call.cost() >= ALONE_COST_MIN;
            if run.is_ok() {
                run = match alone {
                    true => self.run_alone(call.as_mut()),
                    false => self.run_in_savepoint(call.as_mut()),
                };
            }
            cost += call.cost();
            group.push(call);
            if cost < GROUP_COST_MAX && !alone {
                next = calls.try_recv().ok();
            }
        }
        fail::fail_point!("ledger::before_commit");
        let written = run.and_then(|()| Ok(step(&self.db, "-- ledger.commit\nCOMMIT")?));
        fail::fail_point!("ledger::after_commit");
        if written.is_err() && !self.db.is_autocommit() {
            // Nothing of the group may be half there when the next one begins.
            step(&self.db, "-- ledger.rollback\nROLLBACK")?;
        }
        written
    }

    /// An error here is about the connection, not about the call: the group is lost.
    fn run_in_savepoint(&mut self, call: &mut dyn Queued) -> Result<(), Lost> {
        step(&self.db, "-- ledger.savepoint\nSAVEPOINT one_call")?;
        if !self.run(call)? {
            step(&self.db, "-- ledger.undo_call\nROLLBACK TO one_call")?;
        }
        step(&self.db, "-- ledger.release\nRELEASE one_call")?;
        Ok(())
    }

    /// The whole transaction is the call's: taking it back takes nothing of others back.
    fn run_alone(&mut self, call: &mut dyn Queued) -> Result<(), Lost> {
        if !self.run(call)? {
            step(&self.db, "-- ledger.undo_alone\nROLLBACK")?;
            step(&self.db, "-- ledger.begin\nBEGIN IMMEDIATE")?;
        }
        Ok(())
    }

    /// Whether the call's effects are to be kept.
    fn run(&mut self, call: &mut dyn Queued) -> Result<bool, Lost> {
        let mut books = Books {
            db: &self.db,
            now: self.clock.now(),
            keys: &self.keys,
            rng: &mut *self.rng,
        };
        let keep = call.run(&mut books);
        if self.db.is_autocommit() {
            return Err(Lost::RolledBack);
        }
        Ok(keep)
    }
}

fn step(db: &Connection, sql: &str) -> rusqlite::Result<()> {
    db.prepare_cached(sql)?.execute([]).map(|_| ())
}

/// Why a group had no effect.
#[derive(Debug, thiserror::Error)]
enum Lost {
    /// A statement could not be written (a full disk, an unreadable page) and SQLite took the
    /// whole transaction back by itself.
    #[error("a statement could not be written")]
    RolledBack,
    /// The transaction could not be begun, committed or taken back.
    #[error(transparent)]
    Failed(#[from] rusqlite::Error),
}

impl Lost {
    /// Whether the writer may go on: no commit was tried, or it failed before anything was synced.
    fn passes(&self) -> bool {
        match self {
            Self::RolledBack => true,
            Self::Failed(error) => matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
            ),
        }
    }

    /// What an operator has to do.
    fn advice(&self) -> String {
        match self {
            Self::RolledBack => "the ledger's disk is full or damaged: free some space".to_owned(),
            Self::Failed(error) => match error.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => {
                    "the ledger's disk is full: free some space".to_owned()
                }
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    "another process holds the ledger's file: end it".to_owned()
                }
                _ => format!(
                    "the ledger's writer has stopped ({error}): mend the disk, then restart"
                ),
            },
        }
    }
}
