//! Makes a funded envelope live, and brings it back where a hot store has lost some of it.
//!
//! *Shape*
//!
//! | step | door | crash point before it |
//! |---|---|---|
//! | 1. look | `hot.epochs`, then `ledger.envelopes`, then `hot.view`; after Create the epochs from before its hold, and the row that it made | |
//! | 2. decide | `revive::plan`: stands, load, repair | |
//! | 3. load | `hot.load`, chunk by chunk, from the vector of `amounts` | `publish::before_permit`, `publish::before_load`, `publish::between_chunks` |
//! | 4. open | `hot.open` compares length and checksum | `publish::before_open` |
//! | 3″. gather, where the envelope is dealt and a stripe of it is used up | `ledger.gather`, `hot.halt`, `hot.repair` (`gather`) | `gather::after_books`, `gather::between_stripes`, `gather::before_first` |
//! | 3′. repair, instead of 3 and 4 | `ledger.claims`, `hot.repair` (`revive`) | |
//! | 5. mark | `ledger.mark_live` | `publish::before_mark_live` |
//! | 6. look again | the row that it answers: closed meanwhile? then close; frozen? then `marks::follow` | |
//!
//! Create's own crash points, `create::after_fund` (before the call of this room) and
//! `create::before_reply` (after it), stand in `api`.
//!
//! *Bounds.* [`LOADS_IN_FLIGHT_MAX`] chunks of `LOAD_CHUNK_SHARES_MAX` at once; `FLIGHTS_MAX`
//! envelopes at once (`flight`); vectors and claims of envelopes beyond one chunk are limited by
//! permits. Looks: [`LOOKS_MAX`].
//!
//! *Ordering.* Every step is idempotent, so two processes may publish the same envelope. The money
//! is held before step 1, but for the epochs of a Create, which are taken before the hold; a grab is
//! possible only after step 4. An envelope that is closed
//! meanwhile stays closed: the hot store's end (or the tombstone that a close leaves where there is
//! nothing) never goes back, whatever is loaded or opened after it. Only a publish that outlasts
//! what the hot store remembers of the end could bring it back: so a publish that waited for a
//! permit looks again, and step 6 ends what the books have closed. Everything that is read is read
//! after the epochs were looked up, and what is written is written under it: where the store was
//! replaced meanwhile nothing is written, and it begins again with step 1. One write to Redis is not
//! guarded so: a repair puts down the terms first, in the epoch that it believes in. They are the same
//! in every epoch, nobody is served from them, and whoever loads or rebuilds writes them again.
//!
//! *If it crashes here.* The ledger's row stays Funding (or Live without a mark). The retry of
//! Create, a grab that meets the missing envelope, or the sweeper publishes it; at its expiry it is
//! refunded.
//!
//! *Not here.* Holding the money (`ledger.fund`), closing (`settle`).

mod amounts;
mod flight;
mod gather;
pub mod marks;
mod registrar;
mod revive;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use quick_cache::sync::Cache;
use tokio::sync::{Semaphore, SemaphorePermit};

pub use amounts::{
    AMOUNTS_CACHED_SHARES_MAX, Amounts, AmountsError, Vector, cut_aside, share_amounts,
};
pub use registrar::{RACES_MAX, Registered, Registrar, RegistrarError};
pub use revive::must_revive;

use crate::domain::envelope::{
    BookState, CloseReason, HotState, LOAD_CHUNK_SHARES_MAX, SYNCHRONOUS_SHARES_MAX,
    shares_checksum,
};
use crate::domain::id::{EnvelopeId, Epoch, UnixMs};
use crate::domain::stripes::{StripeCount, place};
use crate::hot::{CloseReply, Epochs, HotError, HotStore, LoadChunk};
use crate::ledger::{EnvelopeRow, Ledger, LedgerError};
use revive::{Look, Plan};

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

/// How long after its money was held an envelope is new: far shorter than the hot store remembers an end.
const FRESH_MS: i64 = 10_000;

/// How often a publish looks: at first, after it waited for a permit, and after the epoch changed,
/// which it does once in a failover. The caller repeats what this does not cover.
const LOOKS_MAX: u32 = 4;

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
            LedgerError::Epoch(_) => Self::Unavailable(error.to_string()),
            LedgerError::Broken(why) => Self::Broken(why),
            LedgerError::RequestIdReused
            | LedgerError::InsufficientFunds { .. }
            | LedgerError::BalanceTooLarge
            | LedgerError::MakeGoodCapped
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

/// Where an envelope stands after it was published.
#[derive(Clone, Debug)]
pub struct Published {
    /// In the hot store: Live, or over.
    pub state: HotState,
    /// In the books, read after that.
    pub row: EnvelopeRow,
}

/// Publishes envelopes: for Create, for a grab that meets a missing one, for the sweeper.
pub struct Publisher {
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    amounts: Arc<Amounts>,
    flights: flight::Flights<Published>,
    /// With the epochs from before it began.
    gathers: flight::Flights<(Published, Epochs)>,
    /// Of those who are to ask a first stripe next: what [`Self::gathered`] keeps of it.
    passes: flight::Flights<(StripeCount, u64)>,
    /// Dealt envelopes that are known to give from their first stripe alone, with how many stripes they have and
    /// the sum of the epochs under which that was so.
    gathered: Cache<EnvelopeId, (StripeCount, u64)>,
    /// Dealt envelopes that were seen while their first stripe was rebuilt, and when first.
    half: Cache<EnvelopeId, UnixMs>,
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
            gathers: flight::Flights::default(),
            passes: flight::Flights::default(),
            gathered: Cache::new(gather::GATHERED_KEPT_MAX),
            half: Cache::new(gather::GATHERED_KEPT_MAX),
            middle: permits(MIDDLE_SHARES_MAX),
            large: permits(LARGE_SHARES_MAX),
        }
    }

    /// Makes a funded envelope live, or brings it back after the hot store lost some of it, and
    /// answers where it stands now: Live, or over. Repeating it changes nothing; asking for an
    /// envelope that is being published waits for that.
    ///
    /// # Errors
    /// See [`PublishError`]: all but `NotFound` and `Broken` may be repeated.
    pub async fn publish(&self, id: EnvelopeId) -> Result<HotState, PublishError> {
        let flight = self.flights.join(id, self.publish_alone(id, None));
        Ok(flight.await?.state)
    }

    /// [`Publisher::publish`] for the Create that has just held the money, and was not replayed:
    /// nobody knows the envelope yet, so neither store is asked what became of it. `before` are the
    /// epochs before the money was held: a store that was replaced since may be told more than this row
    /// says, so then both are asked.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn publish_new(
        &self,
        row: EnvelopeRow,
        before: &Epochs,
    ) -> Result<Published, PublishError> {
        let id = row.id;
        let since_ms = self.ledger.now().0.saturating_sub(row.terms.created_at.0);
        let new = match since_ms < FRESH_MS {
            true => Look::of_new(before.clone(), row),
            false => None,
        };
        self.flights.join(id, self.publish_alone(id, new)).await
    }

    async fn publish_alone(
        &self,
        id: EnvelopeId,
        mut new: Option<Look>,
    ) -> Result<Published, PublishError> {
        let mut permit = None;
        let new_in = new.as_ref().map(|look| look.under.clone());
        for _ in 0..LOOKS_MAX {
            // 1. look, 2. decide
            let look = match new.take() {
                Some(look) => look,
                None => self.look(id, new_in.as_ref()).await?,
            };
            let weight = match look.plan {
                Plan::Over(reason) => return Ok(look.stands(HotState::Over(reason))),
                Plan::Frozen => return Err(PublishError::Frozen),
                Plan::Stands(state) => return self.mark(id, state).await,
                Plan::Load => 1,
                Plan::Gather => gather::WEIGHT,
                Plan::Missing | Plan::Stale => revive::WEIGHT,
            };
            match look.half {
                true if !self.is_abandoned(id) => return Err(PublishError::gathering()),
                true => {}
                false => drop(self.half.remove(&id)),
            }
            if permit.is_none() && look.row.terms.share_count > ONE_CHUNK_SHARES {
                crash("publish::before_permit")?;
                permit = Some(self.permit(look.row.terms.share_count, weight).await?);
                // It may have waited for long.
                continue;
            }
            // 3. load and 4. open, or repair
            let brought = match look.plan {
                Plan::Load => self.load_and_open(&look).await?,
                Plan::Gather => self.gather_standing(&look).await?,
                _ => self.revive(&look).await?,
            };
            if let Some(state) = brought {
                self.half.remove(&id);
                return match look.row.state {
                    BookState::Closing(_) => Ok(look.stands(state)),
                    _ => self.mark(id, state).await,
                };
            }
        }
        Err(PublishError::Unavailable("the epoch keeps changing".into()))
    }

    /// The money is held, and where the envelope stands is known.
    async fn mark(&self, id: EnvelopeId, state: HotState) -> Result<Published, PublishError> {
        // 5. mark
        crash("publish::before_mark_live")?;
        let row = self.ledger.mark_live(id).await?;
        // 6. look again: a freeze between 1 and 4 found nothing in the hot store to mark, and a
        // close may have been forgotten there.
        if let BookState::Closed(reason) = row.state {
            let state = self.end(&row, reason).await?;
            return Ok(Published { state, row });
        }
        if row.frozen && marks::follow(&*self.hot, &*self.ledger, id).await? {
            return Err(PublishError::Frozen);
        }
        Ok(Published { state, row })
    }

    /// Ends what was made live although the books are closed. Nobody can be paid from it.
    async fn end(&self, row: &EnvelopeRow, reason: CloseReason) -> Result<HotState, PublishError> {
        // The store refuses to call empty what it holds shares of; it sees by itself what expired.
        let why = CloseReason::Recalled;
        let under = self.hot.epochs();
        let close = self.hot.close(&under, row.id, Arc::clone(&row.terms), why);
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

    /// `None`: the store was replaced meanwhile, and what was loaded may be gone with it.
    async fn load_and_open(&self, look: &Look) -> Result<Option<HotState>, PublishError> {
        let row = &look.row;
        let amounts = self.amounts.of(row.id, &row.terms).await?;
        let checksum = shares_checksum(&amounts);
        let opened = match self.load(look, &amounts).await {
            Ok(()) => {
                crash("publish::before_open")?;
                self.hot.open(&look.under, row.id, checksum).await
            }
            Err(error) => Err(error),
        };
        brought(row.id, opened)
    }

    async fn load(&self, look: &Look, amounts: &[i64]) -> Result<(), HotError> {
        let (under, row) = (&look.under, &look.row);
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
                self.load_chunk(under, chunk).boxed()
            })
            .buffered(LOADS_IN_FLIGHT_MAX)
            .try_collect()
            .await
    }

    async fn load_chunk(&self, under: &Epochs, chunk: LoadChunk) -> Result<(), HotError> {
        crash_hot(match chunk.offset {
            0 => "publish::before_load",
            _ => "publish::between_chunks",
        })?;
        self.hot.load(under, chunk).await
    }

    /// Those of the partitions in which the envelope lies.
    fn own(&self, under: &Epochs, id: EnvelopeId, of: StripeCount) -> Vec<Epoch> {
        let partitions = self.hot.partitions();
        let places = of.all().map(|stripe| place(id, stripe, of, partitions));
        places.map(|partition| under.of(partition)).collect()
    }

    /// Leave to hold a vector of so many shares, which is more than one chunk; a share weighs as
    /// much as `weight` amounts.
    async fn permit(&self, shares: u32, weight: u32) -> Result<SemaphorePermit<'_>, PublishError> {
        let (permits, shares_max) = match shares <= SYNCHRONOUS_SHARES_MAX {
            true => (&self.middle, MIDDLE_SHARES_MAX),
            false => (&self.large, LARGE_SHARES_MAX),
        };
        let weighed = shares.saturating_mul(weight).min(shares_max);
        let permit = permits.acquire_many(weighed).await;
        permit.map_err(|_| PublishError::Unavailable("publishing has stopped".into()))
    }
}

/// Where an envelope stands that was brought into the hot store; `None`: the epoch is another one.
fn brought(
    id: EnvelopeId,
    answer: Result<HotState, HotError>,
) -> Result<Option<HotState>, PublishError> {
    match answer {
        Ok(HotState::Funding) => {
            let why = format!("envelope {id} was brought in and is not live");
            Err(PublishError::Broken(why))
        }
        Ok(state) => Ok(Some(state)),
        Err(HotError::Epoch(_)) => Ok(None),
        Err(error) => Err(error.into()),
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
