//! The mark of a frozen envelope, alike in both stores.
//!
//! # Shape
//! | who | what | in this order |
//! |---|---|---|
//! | an operator | [`freeze`] | the books with the act, then the hot store |
//! | an operator | [`unfreeze`] | [`carry`], the hot store, then the books with the act |
//! | the hot store, when an invariant would break | [`carry`] | its own mark stands already; then the books with an act of [`RED_ENVELOPE`] |
//! | publish, the sweeper | [`follow`] | the hot store does what the books say |
//!
//! # Bounds
//! [`FOLLOW_TRIES_MAX`] looks; [`EPOCH_TRIES_MAX`] calls, one more for each new epoch.
//!
//! # Ordering
//! *The books decide.* An envelope is frozen as long as they say so, and they say so until an act
//! is on record. The hot store keeps two marks apart: [`Mark::Books`] follows the books, and may be
//! set and lifted by anybody who has just read them. [`Mark::Broken`] is news that the books may
//! not have: only `unfreeze` lifts it, after it was carried.
//!
//! *Nothing is lifted by mistake.* `follow` reads the books again after it wrote: of two that cross,
//! the last to write agrees with the books. `carry` reads the books first and the hot store second,
//! and `unfreeze` lifts in the other order: so a mark that `carry` finds on an envelope whose books
//! were not frozen is one that nobody has lifted since.
//!
//! # If it crashes here
//! | between | stands | then |
//! |---|---|---|
//! | the two steps of `freeze` | books frozen, grabs granted and parked | the sweeper follows within a second, or the operator's repeat |
//! | the first and the last step of `unfreeze` | books frozen, hot store not | the same; the operator had no answer |
//! | the hot store's mark and `carry` | hot store frozen, books not | the sweeper carries it; a close meets the mark, and carries it too |
//! | the two steps of `follow` | a mark of the books that they don't have | the sweeper follows |
//!
//! # Not here
//! Who asks for it, and how often (`api`, `settle`); what a frozen envelope may not do (the doors).

use crate::domain::envelope::BookState;
use crate::domain::id::{EnvelopeId, PersonId, UnixMs};
use crate::hot::{Epochs, HotError, HotStore, Mark};
use crate::ledger::{AdminAct, EnvelopeRow, Ledger, LedgerError};
use crate::telemetry::metrics;

/// Looks of one [`follow`]: each further one means that an operator acted in the middle of it. The
/// sweeper goes on where this gives up.
pub const FOLLOW_TRIES_MAX: u32 = 4;
/// Calls for one mark: a partition changes its epoch once in a failover.
pub const EPOCH_TRIES_MAX: u32 = 3;

/// Who acts where no operator did: the program itself.
pub const RED_ENVELOPE: &str = "red-envelope";
/// Why it freezes an envelope. Stable.
pub const BROKEN_INVARIANT: &str = "broken_invariant";

/// Which store did not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MarkError {
    /// The hot store.
    #[error(transparent)]
    Hot(#[from] HotError),
    /// The books: `NotFound`, and `AlreadyOver` where they are closed, are refusals.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Freezes an envelope by an operator's act. Answers whether it was frozen before.
///
/// # Errors
/// A refusal of the ledger; or a store is out of reach, and the outcome is learnt by a repeat.
pub async fn freeze(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    id: EnvelopeId,
    act: AdminAct,
) -> Result<bool, MarkError> {
    let replayed = ledger.freeze(id, act).await?;
    crash("marks::after_books_freeze")?;
    follow(hot, ledger, id).await?;
    Ok(replayed)
}

/// Lets an envelope go on by an operator's act. Answers whether it was not frozen.
///
/// # Errors
/// As [`freeze`].
pub async fn unfreeze(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    id: EnvelopeId,
    act: AdminAct,
) -> Result<bool, MarkError> {
    carry(hot, ledger, id).await?;
    lift(hot, id, Mark::Broken).await?;
    crash("marks::after_hot_unfreeze")?;
    let replayed = ledger.unfreeze(id, act).await?;
    crash("marks::after_books_unfreeze")?;
    // Somebody may have followed the books between the two steps, and marked it again.
    follow(hot, ledger, id).await?;
    Ok(replayed)
}

/// Has the hot store do what the books say. Answers whether they are frozen.
///
/// # Errors
/// A store is out of reach: repeat it.
pub async fn follow(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    id: EnvelopeId,
) -> Result<bool, MarkError> {
    let found = row(ledger, id).await?;
    hot.learn(id, &found.terms);
    let mut frozen = found.frozen;
    for _ in 0..FOLLOW_TRIES_MAX {
        crash("marks::between_look_and_write")?;
        if frozen {
            let set = |under: Epochs| async move { hot.freeze(&under, id).await };
            in_epochs(hot, set).await?;
        } else {
            lift(hot, id, Mark::Books).await?;
        }
        let now = row(ledger, id).await?.frozen;
        if now == frozen {
            break;
        }
        frozen = now;
    }
    Ok(frozen)
}

/// Brings the mark of a broken invariant into the books. Answers whether it was news to them.
///
/// # Errors
/// As [`follow`].
pub async fn carry(
    hot: &dyn HotStore,
    ledger: &dyn Ledger,
    id: EnvelopeId,
) -> Result<bool, MarkError> {
    let row = match row(ledger, id).await {
        Ok(row) => row,
        // Not in the books: no money, so no mark.
        Err(LedgerError::NotFound) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    hot.learn(id, &row.terms);
    let view = hot.view(vec![id]).await?.into_iter().flatten().next();
    if row.frozen || view.and_then(|view| view.frozen) != Some(Mark::Broken) {
        return Ok(false);
    }
    if matches!(row.state, BookState::Closed(_)) {
        // Nothing moves any more, and no act could free it to be forgotten.
        lift(hot, id, Mark::Broken).await?;
        return Ok(false);
    }
    let act = AdminAct {
        act: "freeze".to_owned(),
        envelope: Some(id),
        operator: PersonId::parse(RED_ENVELOPE).expect("it is a good name"),
        reason: BROKEN_INVARIANT.to_owned(),
        at: UnixMs(0),
        result: "done".to_owned(),
    };
    match ledger.freeze(id, act).await {
        Ok(_) => {}
        // Closed in between: the next look lifts the mark.
        Err(LedgerError::AlreadyOver(_)) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    metrics::broken();
    tracing::error!(envelope = %id, reason = BROKEN_INVARIANT,
        "an envelope is frozen until an operator acts");
    Ok(true)
}

async fn row(ledger: &dyn Ledger, id: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
    let rows = ledger.envelopes(vec![id]).await?;
    rows.into_iter()
        .flatten()
        .next()
        .ok_or(LedgerError::NotFound)
}

async fn lift(hot: &dyn HotStore, id: EnvelopeId, upto: Mark) -> Result<(), HotError> {
    let lift = |under: Epochs| async move { hot.unfreeze(&under, id, upto).await };
    in_epochs(hot, lift).await
}

/// Repeats a call in the epochs in which the partitions stand by then.
async fn in_epochs<Called>(
    hot: &dyn HotStore,
    call: impl Fn(Epochs) -> Called,
) -> Result<(), HotError>
where
    Called: Future<Output = Result<(), HotError>>,
{
    let mut tried = call(hot.epochs()).await;
    for _ in 1..EPOCH_TRIES_MAX {
        if !matches!(tried, Err(HotError::Epoch(_))) {
            break;
        }
        tried = call(hot.epochs()).await;
    }
    tried
}

/// A place where a test may stop an act. Nothing in a release build.
fn crash(point: &str) -> Result<(), HotError> {
    fail::fail_point!(point, |_| Err(HotError::Unavailable(format!(
        "stopped at {point}"
    ))));
    let _ = point;
    Ok(())
}
