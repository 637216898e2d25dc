//! Questions of one kind that come together are one call of a store, and the same question of several is asked once.
//!
//! # Shape
//! | step | what |
//! |---|---|
//! | one of [`WORKERS`] tasks | takes what waits, up to [`QUESTIONS_TOGETHER_MAX`], and asks it at once |
//! | meanwhile | what comes waits for the next one: no timer, a lone question does not wait |
//! | an answer | was read after all who get it had asked |
//! | what failed | is asked again by each of several who asked it, apart: an envelope of which the stores can't tell keeps nobody else from an answer |
//!
//! # Bounds
//! [`QUESTIONS_QUEUED_MAX`] wait; one more is shed. Who has stopped waiting is not asked for.
//!
//! # If it crashes here
//! Nothing is kept.
//!
//! # Not here
//! Which questions there are: `reads`. Terms, which are remembered, and ids that nobody knows: `facts`.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::status::{ApiError, Full};
use crate::hot::VIEWS_PER_CALL_MAX;
use crate::telemetry::metrics;

/// Questions that are asked at once: as many envelopes as a hot store is asked for in a call.
pub const QUESTIONS_TOGETHER_MAX: usize = VIEWS_PER_CALL_MAX;

/// Questions of a kind that wait: at a hundred in a millisecond or two the last one waits 200 ms.
pub const QUESTIONS_QUEUED_MAX: usize = 10_000;

/// Calls of a kind on their way at once: while one waits for the books another is with the hot store. One was as fast
/// beside its stores, four were slower (`docs/PERFORMANCE.md`).
const WORKERS: usize = 2;

/// A kind of question that many ask at once.
pub(super) trait Question: Clone + Ord + Send + Sync + 'static {
    /// What is asked.
    type Stores: Send + Sync + 'static;
    /// The answer to one.
    type Answer: Clone + Send + 'static;

    /// An answer to each of at most [`QUESTIONS_TOGETHER_MAX`], in their order.
    fn ask(
        stores: &Self::Stores,
        questions: Vec<Self>,
    ) -> impl Future<Output = Result<Vec<Self::Answer>, ApiError>> + Send;
}

/// `None`: it failed, and was not the only question.
type Answered<Q> = Option<Result<<Q as Question>::Answer, ApiError>>;
type Asker<Q> = (Q, oneshot::Sender<Answered<Q>>);

/// The questions of a kind.
pub(super) struct Together<Q: Question> {
    stores: Arc<Q::Stores>,
    queue: mpsc::Sender<Asker<Q>>,
}

impl<Q: Question> Together<Q> {
    /// Over these stores. Must be called on a runtime: it starts the tasks that ask, which end when this value is
    /// dropped.
    pub fn new(stores: Arc<Q::Stores>) -> Self {
        let (queue, waiting) = mpsc::channel(QUESTIONS_QUEUED_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..WORKERS {
            tokio::spawn(serve(Arc::clone(&stores), Arc::clone(&waiting)));
        }
        Self { stores, queue }
    }

    /// Questions that wait now.
    #[cfg(test)]
    pub fn queued(&self) -> usize {
        QUESTIONS_QUEUED_MAX - self.queue.capacity()
    }

    /// Asks, with all who ask now.
    ///
    /// # Errors
    /// Too many wait, or what the stores say.
    pub async fn ask(&self, question: Q) -> Result<Q::Answer, ApiError> {
        let (asker, answered) = oneshot::channel();
        if self.queue.try_send((question.clone(), asker)).is_err() {
            metrics::shed(Full::Looks.name(), 1);
            return Err(ApiError::Shed(Full::Looks));
        }
        match answered.await {
            Ok(Some(answer)) => answer,
            Ok(None) => alone::<Q>(&self.stores, question).await,
            Err(_) => Err(ApiError::Unavailable("the look-up task has ended".into())),
        }
    }
}

async fn alone<Q: Question>(stores: &Q::Stores, question: Q) -> Result<Q::Answer, ApiError> {
    let mut answers = Q::ask(stores, vec![question]).await?;
    let none = || ApiError::Internal("a question has no answer".into());
    answers.pop().ok_or_else(none)
}

async fn serve<Q: Question>(stores: Arc<Q::Stores>, waiting: Arc<Mutex<mpsc::Receiver<Asker<Q>>>>) {
    let mut askers = Vec::with_capacity(QUESTIONS_TOGETHER_MAX);
    while take(&waiting, &mut askers).await {
        askers.retain(|(_, asker): &Asker<Q>| !asker.is_closed());
        let mut questions: Vec<Q> = askers.iter().map(|(asked, _)| asked.clone()).collect();
        questions.sort_unstable();
        questions.dedup();
        if questions.is_empty() {
            continue;
        }
        let found = Q::ask(&stores, questions.clone()).await;
        for (asked, asker) in askers.drain(..) {
            let place = questions.binary_search(&asked).ok();
            let answer = match &found {
                Ok(answers) => place.and_then(|place| answers.get(place).cloned()).map(Ok),
                Err(error) => (questions.len() == 1).then(|| Err(error.clone())),
            };
            // Who stopped waiting needs no answer.
            let _ = asker.send(answer);
        }
    }
}

/// Waits for the next ones. Answers whether more can come.
async fn take<T>(waiting: &Mutex<mpsc::Receiver<T>>, askers: &mut Vec<T>) -> bool {
    let mut waiting = waiting.lock().await;
    waiting.recv_many(askers, QUESTIONS_TOGETHER_MAX).await > 0
}

#[cfg(test)]
mod tests;
