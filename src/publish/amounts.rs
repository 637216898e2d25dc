//! What each share of an envelope is worth, from its seed; kept while it is needed again.
//!
//! *Shape*
//!
//! | item | what |
//! |---|---|
//! | [`share_amounts`] | PURE: terms, id and server seed make the vector |
//! | [`Amounts`] | the vectors last used, oldest out first |
//!
//! *Bounds.* The cache holds at most [`AMOUNTS_CACHED_SHARES_MAX`] shares; what does not fit is cut
//! again. A caller that works on many envelopes takes what it needs of a vector and lets it go, so
//! that a batch over a thousand envelopes never holds a thousand vectors.
//!
//! *Not here.* Whether an envelope may be published: `publish`. A vector never leaves the process
//! before the close.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::PublishError;
use crate::domain::envelope::{Kind, Terms};
use crate::domain::fairness::ServerSeed;
use crate::domain::id::EnvelopeId;
use crate::domain::split::CutError;
use crate::ledger::Ledger;

/// Shares whose amounts are kept: the largest envelope (10,000,000) and two million shares of
/// others, 96 MB. Without it every settled batch would cut its envelopes again: 18 ns a share, so
/// 0.2 s a batch for the largest.
pub const AMOUNTS_CACHED_SHARES_MAX: u64 = 12_000_000;

/// Above so many shares a cut leaves the async worker: 100,000 take 2 ms, the largest 0.5 s.
const CUT_INLINE_SHARES_MAX: u32 = 100_000;

/// Why an envelope has no vector. All mean that its row is not what this release wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountsError {
    /// The terms ask for an impossible cut.
    #[error("its cut is impossible: {0}")]
    Cut(#[from] CutError),
    /// LUCKY and EQUAL need a split.
    #[error("its terms name no split")]
    NoSplit,
    /// The list of an EXCLUSIVE envelope does not make up its total and count.
    #[error("its list of shares does not make up its total")]
    List,
}

/// The amounts of an envelope's shares, by number. PURE: the same for ever, in every process.
///
/// # Errors
/// Terms that could not have been funded.
pub fn share_amounts(
    terms: &Terms,
    id: EnvelopeId,
    seed: &ServerSeed,
) -> Result<Vec<i64>, AmountsError> {
    match terms.kind {
        Kind::Lucky | Kind::Equal => {
            let cut = terms.cut().ok_or(AmountsError::NoSplit)?;
            let split_seed = seed.split_seed(id.to_bytes(), &terms.client_nonce);
            Ok(cut.amounts(&split_seed)?)
        }
        Kind::Exclusive => {
            let amounts: Vec<i64> = terms.exclusive.iter().map(|s| s.amount_minor).collect();
            let sum: i128 = amounts.iter().copied().map(i128::from).sum();
            let counted = u32::try_from(amounts.len()) == Ok(terms.share_count);
            let whole = counted && sum == i128::from(terms.total_minor);
            whole.then_some(amounts).ok_or(AmountsError::List)
        }
    }
}

/// An envelope's terms and what each of its shares is worth, by number.
#[derive(Clone, Debug)]
pub struct Vector {
    /// The terms it lives under.
    pub terms: Arc<Terms>,
    /// Minor units.
    pub amounts: Arc<[i64]>,
}

impl Vector {
    /// What a share is worth; `None` where there is no such share.
    pub fn amount_of(&self, share: u32) -> Option<i64> {
        self.amounts.get(usize::try_from(share).ok()?).copied()
    }
}

/// The vectors last used.
pub struct Amounts {
    ledger: Arc<dyn Ledger>,
    kept: Mutex<Kept>,
}

impl Amounts {
    /// Nothing is kept yet.
    pub fn new(ledger: Arc<dyn Ledger>) -> Self {
        let kept = Mutex::new(Kept::new(AMOUNTS_CACHED_SHARES_MAX));
        Self { ledger, kept }
    }

    /// Terms and vector of an envelope, if they are at hand: neither ever changes, so settlement
    /// need not ask the ledger again.
    pub fn kept(&self, id: EnvelopeId) -> Option<Vector> {
        self.kept.lock().get(id)
    }

    /// The whole vector of an envelope.
    ///
    /// # Errors
    /// The ledger can't tell the seed now, or the row is damaged.
    pub async fn of(&self, id: EnvelopeId, terms: &Arc<Terms>) -> Result<Arc<[i64]>, PublishError> {
        if let Some(vector) = self.kept(id) {
            return Ok(vector.amounts);
        }
        let amounts = self.cut(id, terms).await?;
        let vector = Vector {
            terms: Arc::clone(terms),
            amounts: Arc::clone(&amounts),
        };
        self.kept.lock().put(id, vector);
        Ok(amounts)
    }

    async fn cut(&self, id: EnvelopeId, terms: &Arc<Terms>) -> Result<Arc<[i64]>, PublishError> {
        let seed = self.ledger.server_seed(Arc::clone(terms)).await?;
        cut_aside(terms, id, seed)
            .await?
            .map_err(|why| PublishError::Broken(format!("envelope {id}: {why}")))
    }
}

/// [`share_amounts`] for an async caller: a large cut leaves the worker to others.
///
/// # Errors
/// The process is ending. The inner error: see [`AmountsError`].
pub async fn cut_aside(
    terms: &Arc<Terms>,
    id: EnvelopeId,
    seed: ServerSeed,
) -> Result<Result<Arc<[i64]>, AmountsError>, PublishError> {
    if terms.share_count <= CUT_INLINE_SHARES_MAX {
        return Ok(share_amounts(terms, id, &seed).map(Arc::from));
    }
    let terms = Arc::clone(terms);
    tokio::task::spawn_blocking(move || share_amounts(&terms, id, &seed).map(Arc::from))
        .await
        .map_err(|_| PublishError::Unavailable("the cut was stopped".into()))
}

/// Least recently used first out, weighed by shares.
struct Kept {
    shares_max: u64,
    shares: u64,
    /// Grows with each use.
    uses: u64,
    vectors: HashMap<EnvelopeId, (u64, Vector)>,
    /// By last use.
    order: BTreeMap<u64, EnvelopeId>,
}

impl Kept {
    fn new(shares_max: u64) -> Self {
        Self {
            shares_max,
            shares: 0,
            uses: 0,
            vectors: HashMap::new(),
            order: BTreeMap::new(),
        }
    }

    fn get(&mut self, id: EnvelopeId) -> Option<Vector> {
        let (used, vector) = self.vectors.get_mut(&id)?;
        self.uses += 1;
        self.order.remove(used);
        self.order.insert(self.uses, id);
        *used = self.uses;
        Some(vector.clone())
    }

    fn put(&mut self, id: EnvelopeId, vector: Vector) {
        let shares = weight(&vector);
        if shares > self.shares_max || self.get(id).is_some() {
            return;
        }
        while self.shares + shares > self.shares_max {
            let (_, oldest) = self
                .order
                .pop_first()
                .expect("what weighs something is in the order");
            let (_, dropped) = self
                .vectors
                .remove(&oldest)
                .expect("what is in the order is kept");
            self.shares -= weight(&dropped);
        }
        self.uses += 1;
        self.shares += shares;
        self.order.insert(self.uses, id);
        self.vectors.insert(id, (self.uses, vector));
    }
}

fn weight(vector: &Vector) -> u64 {
    // An empty vector would be free, and so without a bound.
    u64::try_from(vector.amounts.len().max(1)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
