//! Batches of several partitions that arrive together are posted in one transaction.
//!
//! *Shape.* Each of [`SETTLERS`] tasks takes what waits, up to [`RECORDS_TOGETHER_MAX`] records, and
//! posts it; what arrives meanwhile is the next. No timer: a lone batch does not wait.
//!
//! *Bounds.* [`QUEUED_BATCHES_MAX`] wait; beyond, a caller waits for a place.
//!
//! *Ordering.* A batch that was read in an older epoch is refused by itself. Where the books refuse the
//! transaction for another reason, each batch is posted alone: whose record it was is found by halving
//! that one.
//!
//! *If it crashes here.* Each batch is posted or not, and its repetition finds which.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use crate::ledger::{LedgerError, SettleItem, Settled, Under};

use super::Books;
use super::settle::BATCH_RECORDS_MAX;
use super::sql::is_about_one;

/// Transactions at once: while one waits for its commit, the next one is planned and posted. More take
/// each other's processor time.
const SETTLERS: usize = 3;
/// Records of one transaction.
const RECORDS_TOGETHER_MAX: usize = BATCH_RECORDS_MAX;
/// Batches that wait: all partitions of a process, and what its reconciler and its gate bring.
const QUEUED_BATCHES_MAX: usize = 256;

type Answer = oneshot::Sender<Result<Vec<Settled>, LedgerError>>;

/// What one caller wants posted.
pub(super) struct Asked {
    pub under: Under,
    pub items: Vec<SettleItem>,
}

/// The queue, and its tasks.
pub(super) struct Settlements {
    queue: mpsc::Sender<(Asked, Answer)>,
    _tasks: JoinSet<()>,
    watched: Vec<AbortHandle>,
}

impl Settlements {
    pub fn start(books: &Arc<Books>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUED_BATCHES_MAX);
        let waiting = Arc::new(Mutex::new(Waiting {
            queue: waiting,
            next: None,
        }));
        let mut tasks = JoinSet::new();
        let spawn = |_| tasks.spawn(serve(Arc::clone(books), Arc::clone(&waiting)));
        let watched = (0..SETTLERS).map(spawn).collect();
        Self {
            queue,
            _tasks: tasks,
            watched,
        }
    }

    /// Whether one of the tasks serves the queue no more.
    pub fn is_over(&self) -> bool {
        self.watched.iter().any(AbortHandle::is_finished)
    }

    pub async fn settle(
        &self,
        under: Under,
        items: Vec<SettleItem>,
    ) -> Result<Vec<Settled>, LedgerError> {
        let (answer, answered) = oneshot::channel();
        let ending = || LedgerError::Unavailable("the process is ending".to_owned());
        let asked = (Asked { under, items }, answer);
        self.queue.send(asked).await.map_err(|_| ending())?;
        answered.await.unwrap_or_else(|_| Err(ending()))
    }
}

/// What waits; `next` did not fit into the transaction before it.
struct Waiting {
    queue: mpsc::Receiver<(Asked, Answer)>,
    next: Option<(Asked, Answer)>,
}

impl Waiting {
    /// What goes together now; nothing when nobody can ask any more.
    async fn take(&mut self) -> Vec<(Asked, Answer)> {
        let first = match self.next.take() {
            Some(first) => first,
            None => match self.queue.recv().await {
                Some(first) => first,
                None => return Vec::new(),
            },
        };
        let mut records = first.0.items.len();
        let mut together = vec![first];
        while let Ok(another) = self.queue.try_recv() {
            records += another.0.items.len();
            if records > RECORDS_TOGETHER_MAX {
                self.next = Some(another);
                break;
            }
            together.push(another);
        }
        together
    }
}

async fn serve(books: Arc<Books>, waiting: Arc<Mutex<Waiting>>) {
    loop {
        let together = waiting.lock().await.take().await;
        if together.is_empty() {
            return;
        }
        let (asked, answers): (Vec<Asked>, Vec<Answer>) = together.into_iter().unzip();
        let posted = match books.settle(&asked).await {
            Err(error) if asked.len() > 1 && is_about_one(&error) => {
                let mut posted = Vec::with_capacity(asked.len());
                for alone in asked.chunks(1) {
                    let done = books.settle(alone).await;
                    posted.push(done.and_then(|mut done| done.pop().unwrap_or_else(no_answer)));
                }
                posted
            }
            Ok(posted) => posted,
            Err(error) => answers.iter().map(|_| Err(error.clone())).collect(),
        };
        for (answer, posted) in answers.into_iter().zip(posted) {
            // Who went away repeats.
            let _gone = answer.send(posted);
        }
    }
}

fn no_answer<T>() -> Result<T, LedgerError> {
    Err(LedgerError::Broken("a batch has no answer".to_owned()))
}
