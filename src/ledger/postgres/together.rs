//! Calls of one kind that arrive together are one transaction.
//!
//! *Shape.* One task takes what waits, up to [`Work::TOGETHER_MAX`], and does it in one transaction; what
//! arrives meanwhile is the next one. No timer: a lone call does not wait.
//!
//! *Bounds.* [`Work::QUEUED_MAX`] wait; beyond, the caller is told to come again.
//!
//! *If it crashes here.* Each call took effect or not, and its repetition finds which.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::ledger::LedgerError;

use super::Books;
use super::sql::is_about_one;

/// A kind of call that many make at once.
pub(super) trait Work: Sized + Send + Sync + 'static {
    /// What it answers.
    type Answer: Send + 'static;
    /// Calls of one transaction.
    const TOGETHER_MAX: usize;
    /// Calls that wait.
    const QUEUED_MAX: usize;

    /// Does them all; one answer each, in order.
    fn do_all(books: &Books, calls: &[Self]) -> impl Future<Output = Answers<Self>> + Send;
}

/// An answer to each call, or why none of them took effect.
pub(super) type Answers<W> = Result<Vec<Result<<W as Work>::Answer, LedgerError>>, LedgerError>;

type Asker<W> = oneshot::Sender<Result<<W as Work>::Answer, LedgerError>>;
type Waiting<W> = (W, Asker<W>);

/// Nobody serves the queue any more.
const ENDED: &str = "the process is ending";

/// The queue, and its task.
pub(super) struct Together<W: Work> {
    queue: mpsc::Sender<Waiting<W>>,
    task: tokio::task::JoinHandle<()>,
}

impl<W: Work> Together<W> {
    pub fn start(books: Arc<Books>) -> Self {
        let (queue, waiting) = mpsc::channel(W::QUEUED_MAX);
        let task = tokio::spawn(serve(books, waiting));
        Self { queue, task }
    }

    pub async fn call(&self, call: W) -> Result<W::Answer, LedgerError> {
        let (answer, answered) = oneshot::channel();
        let busy = |why: &str| LedgerError::Unavailable(why.to_owned());
        self.queue
            .try_send((call, answer))
            .map_err(|refused| match refused {
                mpsc::error::TrySendError::Full(_) => busy("too many calls wait for the books"),
                mpsc::error::TrySendError::Closed(_) => busy(ENDED),
            })?;
        answered.await.unwrap_or_else(|_| Err(busy(ENDED)))
    }

    /// Whether nobody serves the queue any more.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

impl<W: Work> Drop for Together<W> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<W: Work>(books: Arc<Books>, mut waiting: mpsc::Receiver<Waiting<W>>) {
    let mut together = Vec::with_capacity(W::TOGETHER_MAX);
    while waiting.recv_many(&mut together, W::TOGETHER_MAX).await > 0 {
        let (calls, askers): (Vec<W>, Vec<_>) = together.drain(..).unzip();
        let answers = match W::do_all(&books, &calls).await {
            // One that the books refuse, or wait for, must not keep the others: each by itself.
            Err(error) if calls.len() > 1 && is_about_one(&error) => {
                one_by_one(&books, calls, askers).await;
                continue;
            }
            Ok(answers) => answers,
            Err(error) => calls.iter().map(|_| Err(error.clone())).collect(),
        };
        debug_assert_eq!(answers.len(), askers.len());
        for (asker, answer) in askers.into_iter().zip(answers) {
            // Who went away repeats.
            let _gone = asker.send(answer);
        }
    }
}

/// Each call by itself, and answered at once, until the books are out of reach: then the others are told so.
async fn one_by_one<W: Work>(books: &Books, calls: Vec<W>, askers: Vec<Asker<W>>) {
    let mut out_of_reach = None;
    for (call, asker) in calls.into_iter().zip(askers) {
        let answer = match &out_of_reach {
            Some(error) => Err(LedgerError::clone(error)),
            None => match W::do_all(books, std::slice::from_ref(&call)).await {
                Ok(mut answers) => answers.pop().unwrap_or_else(no_answer),
                Err(error) => {
                    if !is_about_one(&error) {
                        out_of_reach = Some(error.clone());
                    }
                    Err(error)
                }
            },
        };
        let _gone = asker.send(answer);
    }
}

fn no_answer<T>() -> Result<T, LedgerError> {
    Err(LedgerError::Broken("a call has no answer".to_owned()))
}
