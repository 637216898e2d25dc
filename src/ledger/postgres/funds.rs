//! Creates that arrive together are funded together.
//!
//! *Shape.* One task takes what waits, up to `FUNDS_PER_TRANSACTION_MAX`, and funds it in one
//! transaction; what arrives meanwhile is the next one. No timer: a lone Create does not wait.
//!
//! *Bounds.* [`QUEUED_FUNDS_MAX`] wait; beyond, the caller is told to come again.
//!
//! *If it crashes here.* Each request is funded or not, and its repetition finds which.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::ledger::{Fund, Funded, LedgerError};

use super::Books;
use super::fund::FUNDS_PER_TRANSACTION_MAX;

/// Creates that wait: two seconds' at 5,000/s.
pub(super) const QUEUED_FUNDS_MAX: usize = 10_000;

type Answer = oneshot::Sender<Result<Funded, LedgerError>>;

/// The queue, and its task.
pub(super) struct Funds {
    queue: mpsc::Sender<(Fund, Answer)>,
    task: tokio::task::JoinHandle<()>,
}

impl Funds {
    pub fn start(books: Arc<Books>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUED_FUNDS_MAX);
        let task = tokio::spawn(serve(books, waiting));
        Self { queue, task }
    }

    pub async fn fund(&self, fund: Fund) -> Result<Funded, LedgerError> {
        let (answer, answered) = oneshot::channel();
        let busy = |why: &str| LedgerError::Unavailable(why.to_owned());
        self.queue
            .try_send((fund, answer))
            .map_err(|_| busy("too many envelopes wait to be funded"))?;
        answered
            .await
            .unwrap_or_else(|_| Err(busy("the process is ending")))
    }
}

impl Drop for Funds {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(books: Arc<Books>, mut waiting: mpsc::Receiver<(Fund, Answer)>) {
    let mut together = Vec::with_capacity(FUNDS_PER_TRANSACTION_MAX);
    while waiting
        .recv_many(&mut together, FUNDS_PER_TRANSACTION_MAX)
        .await
        > 0
    {
        let (funds, answers): (Vec<Fund>, Vec<Answer>) = together.drain(..).unzip();
        match books.fund(&funds).await {
            Ok(made) => {
                for (answer, made) in answers.into_iter().zip(made) {
                    // Who went away repeats.
                    let _gone = answer.send(made);
                }
            }
            // One that can't be funded must not keep the others: each by itself.
            Err(LedgerError::Broken(_)) if funds.len() > 1 => {
                for (answer, fund) in answers.into_iter().zip(funds) {
                    let made = books.fund(&[fund]).await;
                    let alone = made.and_then(|made| first(made.into_iter()));
                    let _gone = answer.send(alone);
                }
            }
            Err(error) => {
                for answer in answers {
                    let _gone = answer.send(Err(error.clone()));
                }
            }
        }
    }
}

fn first(
    mut made: impl Iterator<Item = Result<Funded, LedgerError>>,
) -> Result<Funded, LedgerError> {
    let none = || LedgerError::Broken("a request has no answer".to_owned());
    made.next().unwrap_or_else(|| Err(none()))
}
