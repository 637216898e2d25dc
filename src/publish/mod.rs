//! Makes a funded envelope live: shares from the seed, into the hot store, open, marked.
//!
//! *Shape*
//!
//! | step | door | crash point before it |
//! |---|---|---|
//! | 1. read | `ledger.envelopes`: funded, not over, not frozen | |
//! | 2. look | `hot.view`, if it is large: loaded already? then go to 5 | |
//! | 3. load | a permit, then `ledger.envelopes` again if that took a wait; `hot.load`, chunk by chunk, from the vector of `amounts` | `publish::before_permit`, `publish::before_load`, `publish::between_chunks` |
//! | 4. open | `hot.open` compares length and checksum | `publish::before_open` |
//! | 5. mark | `ledger.mark_live` | `publish::before_mark_live` |
//! | 6. look again | `ledger.envelopes`: closed meanwhile? then close; frozen? then `marks::follow` | |
//!
//! Create's own crash points, `create::after_fund` (before the call of this room) and
//! `create::before_reply` (after it), stand in `api`.
//!
//! *Bounds.* [`LOADS_IN_FLIGHT_MAX`] chunks of `LOAD_CHUNK_SHARES_MAX` at once; `FLIGHTS_MAX`
//! envelopes at once (`flight`); vectors of envelopes beyond one chunk are limited by permits.
//!
//! *Ordering.* Every step is idempotent, so two processes may publish the same envelope. The money
//! is held before step 1; a grab is possible only after step 4. An envelope that is closed
//! meanwhile stays closed: the hot store's end (or the tombstone that a close leaves where there is
//! nothing) never goes back, whatever is loaded or opened after it. Only a publish that outlasts
//! what the hot store remembers of the end could bring it back: so a publish that waited reads
//! again, and step 6 ends what the books have closed.
//!
//! *If it crashes here.* The ledger's row stays Funding (or Live without a mark). The retry of
//! Create, a grab that meets the missing envelope, or the sweeper publishes it; at its expiry it is
//! refunded.
//!
//! *Not here.* Holding the money (`ledger.fund`), closing (`settle`).

mod amounts;
mod flight;
pub mod marks;

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::{Semaphore, SemaphorePermit};

pub use amounts::{
    AMOUNTS_CACHED_SHARES_MAX, Amounts, AmountsError, Vector, cut_aside, share_amounts,
};

use crate::domain::envelope::{
    BookState, CloseReason, HotState, LOAD_CHUNK_SHARES_MAX, SYNCHRONOUS_SHARES_MAX,
    shares_checksum,
};
use crate::domain::id::{EnvelopeId, Epoch};
use crate::hot::{CloseReply, HotError, HotStore, LoadChunk};
use crate::ledger::{EnvelopeRow, Ledger, LedgerError};

/// Chunks of one envelope that are on their way at once. The embedded store commits what arrived
/// together with one fsync and Redis hides its round trip; four chunks of 1,000 shares delay a
/// grab behind them by at most 25 ms on Redis.
pub const LOADS_IN_FLIGHT_MAX: usize = 4;

/// [`LOAD_CHUNK_SHARES_MAX`] as a number of shares.
#[expect(
    clippy::cast_possible_truncation,
    reason = "checked when it is compiled"
)]
const ONE_CHUNK_SHARES: u32 = {
    assert!(LOAD_CHUNK_SHARES_MAX <= u32::MAX as usize);
    LOAD_CHUNK_SHARES_MAX as u32
};

/// Shares of the envelopes of 1,001 to 100,000 shares that are published at once: 100 of the
/// largest, 80 MB. Smaller ones pass without a permit, so they never wait behind these.
const MIDDLE_SHARES_MAX: u32 = 10_000_000;

/// Shares of the envelopes above 100,000 that are published at once: two of the largest, 160 MB.
/// They have permits of their own, so that Create, which waits for the others, never waits for
/// these.
const LARGE_SHARES_MAX: u32 = 20_000_000;

/// How often a publish looks the epoch up again: it changes once in a failover, and the caller
/// repeats what this does not cover.
const EPOCH_TRIES_MAX: u32 = 3;

/// Why an envelope was not published.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// Not in the ledger.
    #[error("no such envelope")]
    NotFound,
    /// An operator froze it: it goes on once it is unfrozen.
    #[error("the envelope is frozen")]
    Frozen,
    /// Too many publishes at once: repeat later.
    #[error("too many envelopes are being published")]
    Shed,
    /// How far it came is unknown: repeat the call.
    #[error("publishing is unavailable: {0}")]
    Unavailable(String),
    /// The hot store has stopped for good: the process must end.
    #[error("the hot store has stopped: {0}")]
    Stopped(String),
    /// A row or a load is not what this release wrote: our bug or a damaged file.
    #[error("the envelope is broken: {0}")]
    Broken(String),
}

impl From<HotError> for PublishError {
    fn from(error: HotError) -> Self {
        match error {
            HotError::Epoch(_) => Self::Unavailable(error.to_string()),
            HotError::Shed => Self::Shed,
            HotError::Unavailable(why) => Self::Unavailable(why),
            HotError::Mismatch(why) => Self::Broken(why),
            HotError::Stopped(why) => Self::Stopped(why),
        }
    }
}

impl From<LedgerError> for PublishError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::NotFound => Self::NotFound,
            LedgerError::Frozen => Self::Frozen,
            LedgerError::Unavailable(why) => Self::Unavailable(why),
            LedgerError::Broken(why) => Self::Broken(why),
            LedgerError::RequestIdReused
            | LedgerError::InsufficientFunds { .. }
            | LedgerError::BalanceTooLarge
            | LedgerError::AlreadyOver(_) => Self::Broken(error.to_string()),
        }
    }
}

impl From<marks::MarkError> for PublishError {
    fn from(error: marks::MarkError) -> Self {
        match error {
            marks::MarkError::Hot(error) => error.into(),
            marks::MarkError::Ledger(error) => error.into(),
        }
    }
}

/// Publishes envelopes: for Create, for a grab that meets a missing one, for the sweeper.
pub struct Publisher {
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    amounts: Arc<Amounts>,
    flights: flight::Flights,
    middle: Semaphore,
    large: Semaphore,
}

impl Publisher {
    /// Between these doors; `amounts` is shared with settlement, which needs the same vectors.
    pub fn new(hot: Arc<dyn HotStore>, ledger: Arc<dyn Ledger>, amounts: Arc<Amounts>) -> Self {
        let permits = |shares: u32| Semaphore::new(usize::try_from(shares).unwrap_or(usize::MAX));
        Self {
            hot,
            ledger,
            amounts,
            flights: flight::Flights::default(),
            middle: permits(MIDDLE_SHARES_MAX),
            large: permits(LARGE_SHARES_MAX),
        }
    }

    /// Makes a funded envelope live and answers where it stands now: Live, or over. Repeating it
    /// changes nothing; asking for an envelope that is being published waits for that.
    ///
    /// # Errors
    /// See [`PublishError`]: all but `NotFound` and `Broken` may be repeated.
    pub async fn publish(&self, id: EnvelopeId) -> Result<HotState, PublishError> {
        self.flights.join(id, self.publish_alone(id)).await
    }

    async fn publish_alone(&self, id: EnvelopeId) -> Result<HotState, PublishError> {
        // 1. read
        let row = self.row(id).await?;
        if let BookState::Closing(reason) | BookState::Closed(reason) = row.state {
            return Ok(HotState::Over(reason));
        }
        if row.frozen {
            return Err(PublishError::Frozen);
        }
        // 2. look: one chunk is loaded again faster than it is looked for.
        let large = row.terms.share_count > ONE_CHUNK_SHARES;
        let views = match large {
            true => self.hot.view(vec![id]).await?,
            false => Vec::new(),
        };
        let stands = views.into_iter().flatten().next().map(|view| view.state);
        // 3. load, 4. open
        let state = match stands {
            None | Some(HotState::Funding) => self.load_and_open(&row).await?,
            Some(state) => state,
        };
        // 5. mark
        crash("publish::before_mark_live")?;
        self.ledger.mark_live(id).await?;
        // 6. look again: a freeze between 1 and 4 found nothing in the hot store to mark, and a
        // close may have been forgotten there.
        let row = self.row(id).await?;
        if let BookState::Closed(reason) = row.state {
            return self.end(&row, reason).await;
        }
        if row.frozen && marks::follow(&*self.hot, &*self.ledger, id).await? {
            return Err(PublishError::Frozen);
        }
        Ok(state)
    }

    /// Ends what was made live although the books are closed. Nobody can be paid from it.
    async fn end(&self, row: &EnvelopeRow, reason: CloseReason) -> Result<HotState, PublishError> {
        // The store refuses to call empty what it holds shares of; it sees by itself what expired.
        let why = CloseReason::Recalled;
        let close = self
            .hot
            .close(self.epoch(row.id), row.id, Arc::clone(&row.terms), why);
        match close.await? {
            CloseReply::Over { .. } => Ok(HotState::Over(reason)),
            CloseReply::NotDue(_) | CloseReply::Frozen => Err(PublishError::Frozen),
        }
    }

    async fn row(&self, id: EnvelopeId) -> Result<EnvelopeRow, PublishError> {
        let rows = self.ledger.envelopes(vec![id]).await?;
        rows.into_iter()
            .flatten()
            .next()
            .ok_or(PublishError::NotFound)
    }

    async fn load_and_open(&self, row: &EnvelopeRow) -> Result<HotState, PublishError> {
        crash("publish::before_permit")?;
        let permit = self.permit(row.terms.share_count).await?;
        if permit.is_some()
            && let BookState::Closing(reason) | BookState::Closed(reason) =
                self.row(row.id).await?.state
        {
            return Ok(HotState::Over(reason));
        }
        let amounts = self.amounts.of(row.id, &row.terms).await?;
        let checksum = shares_checksum(&amounts);
        for _ in 0..EPOCH_TRIES_MAX {
            let loaded = self.load(row, &amounts).await;
            let opened = match loaded {
                Ok(()) => {
                    crash("publish::before_open")?;
                    let epoch = self.epoch(row.id);
                    self.hot.open(epoch, row.id, checksum).await
                }
                Err(error) => Err(error),
            };
            match opened {
                Ok(HotState::Funding) => {
                    let why = format!("envelope {} was opened and is not live", row.id);
                    return Err(PublishError::Broken(why));
                }
                Ok(state) => return Ok(state),
                // The store was replaced meanwhile: what was loaded may be gone with it.
                Err(HotError::Epoch(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PublishError::Unavailable("the epoch keeps changing".into()))
    }

    async fn load(&self, row: &EnvelopeRow, amounts: &[i64]) -> Result<(), HotError> {
        let epoch = self.epoch(row.id);
        let chunks = amounts.len().div_ceil(LOAD_CHUNK_SHARES_MAX);
        stream::iter((0..chunks).zip(0_u32..))
            .map(|(index, number)| {
                let from = index * LOAD_CHUNK_SHARES_MAX;
                let to = amounts.len().min(from + LOAD_CHUNK_SHARES_MAX);
                let chunk = LoadChunk {
                    envelope: row.id,
                    terms: Arc::clone(&row.terms),
                    offset: number * ONE_CHUNK_SHARES,
                    amounts_minor: amounts[from..to].to_vec(),
                };
                self.load_chunk(epoch, chunk).boxed()
            })
            .buffered(LOADS_IN_FLIGHT_MAX)
            .try_collect()
            .await
    }

    async fn load_chunk(&self, epoch: Epoch, chunk: LoadChunk) -> Result<(), HotError> {
        crash_hot(match chunk.offset {
            0 => "publish::before_load",
            _ => "publish::between_chunks",
        })?;
        self.hot.load(epoch, chunk).await
    }

    fn epoch(&self, id: EnvelopeId) -> Epoch {
        self.hot.epoch(id.partition(self.hot.partitions()))
    }

    /// Leave to hold a vector of so many shares.
    async fn permit(&self, shares: u32) -> Result<Option<SemaphorePermit<'_>>, PublishError> {
        let (permits, shares_max) = match shares {
            ..=ONE_CHUNK_SHARES => return Ok(None),
            _ if shares <= SYNCHRONOUS_SHARES_MAX => (&self.middle, MIDDLE_SHARES_MAX),
            _ => (&self.large, LARGE_SHARES_MAX),
        };
        let permit = permits.acquire_many(shares.min(shares_max)).await;
        permit
            .map(Some)
            .map_err(|_| PublishError::Unavailable("publishing has stopped".into()))
    }
}

/// A place where a test may stop a publish. Nothing in a release build.
fn crash(point: &str) -> Result<(), PublishError> {
    fail::fail_point!(point, |_| Err(PublishError::Unavailable(format!(
        "stopped at {point}"
    ))));
    let _ = point;
    Ok(())
}

fn crash_hot(point: &str) -> Result<(), HotError> {
    fail::fail_point!(point, |_| Err(HotError::Unavailable(format!(
        "stopped at {point}"
    ))));
    let _ = point;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Create spawns large publishes, and the sweeper runs many at once.
    #[test]
    fn a_publish_may_move_between_threads() {
        fn sent<T: Send>(_: fn(&'static Publisher, EnvelopeId) -> T) {}
        sent(|publisher, id| publisher.publish(id));
    }
}
