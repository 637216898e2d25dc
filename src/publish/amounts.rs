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
//! again. Callers that need a few shares ask [`Amounts::of_shares`], so that a batch over a
//! thousand envelopes never holds a thousand vectors.
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

    /// The whole vector of an envelope.
    ///
    /// # Errors
    /// The ledger can't tell the seed now, or the row is damaged.
    pub async fn of(&self, id: EnvelopeId, terms: &Arc<Terms>) -> Result<Arc<[i64]>, PublishError> {
        if let Some(amounts) = self.kept.lock().get(id) {
            return Ok(amounts);
        }
        let amounts = self.cut(id, terms).await?;
        self.kept.lock().put(id, Arc::clone(&amounts));
        Ok(amounts)
    }

    /// What some shares are worth, in their order; `None` where there is no such share.
    ///
    /// # Errors
    /// As [`Amounts::of`].
    pub async fn of_shares(
        &self,
        id: EnvelopeId,
        terms: &Arc<Terms>,
        shares: &[u32],
    ) -> Result<Vec<Option<i64>>, PublishError> {
        let amounts = self.of(id, terms).await?;
        let at = |share: &u32| amounts.get(usize::try_from(*share).ok()?).copied();
        Ok(shares.iter().map(at).collect())
    }

    async fn cut(&self, id: EnvelopeId, terms: &Arc<Terms>) -> Result<Arc<[i64]>, PublishError> {
        let seed = self.ledger.server_seed(id).await?;
        let made = if terms.share_count <= CUT_INLINE_SHARES_MAX {
            share_amounts(terms, id, &seed)
        } else {
            let terms = Arc::clone(terms);
            tokio::task::spawn_blocking(move || share_amounts(&terms, id, &seed))
                .await
                .map_err(|_| PublishError::Unavailable("the cut was stopped".into()))?
        };
        made.map(Arc::from)
            .map_err(|why| PublishError::Broken(format!("envelope {id}: {why}")))
    }
}

/// Least recently used first out, weighed by shares.
struct Kept {
    shares_max: u64,
    shares: u64,
    /// Grows with each use.
    uses: u64,
    vectors: HashMap<EnvelopeId, (u64, Arc<[i64]>)>,
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

    fn get(&mut self, id: EnvelopeId) -> Option<Arc<[i64]>> {
        let (used, amounts) = self.vectors.get_mut(&id)?;
        self.uses += 1;
        self.order.remove(used);
        self.order.insert(self.uses, id);
        *used = self.uses;
        Some(Arc::clone(amounts))
    }

    fn put(&mut self, id: EnvelopeId, amounts: Arc<[i64]>) {
        let shares = weight(&amounts);
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
        self.vectors.insert(id, (self.uses, amounts));
    }
}

fn weight(amounts: &[i64]) -> u64 {
    // An empty vector would be free, and so without a bound.
    u64::try_from(amounts.len().max(1)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> EnvelopeId {
        EnvelopeId::from_parts(1, [n; 14])
    }

    proptest! {
        #[test]
        fn the_cache_never_holds_more_shares_than_it_may(
            steps in proptest::collection::vec((0_u8..12, 0_usize..40), 1..100),
        ) {
            let mut kept = Kept::new(100);
            for (n, shares) in steps {
                kept.put(id(n), vec![i64::from(n); shares].into());
                let held: u64 = kept.vectors.values().map(|(_, a)| weight(a)).sum();
                prop_assert_eq!(held, kept.shares);
                prop_assert!(kept.shares <= 100);
                prop_assert_eq!(kept.order.len(), kept.vectors.len());
                let found = kept.get(id(n)).expect("what was put last is kept");
                prop_assert!(found.iter().all(|a| *a == i64::from(n)));
            }
        }
    }

    #[test]
    fn the_vector_used_longest_ago_goes_first_and_a_too_large_one_is_not_kept() {
        let mut kept = Kept::new(10);
        kept.put(id(1), vec![1; 5].into());
        kept.put(id(2), vec![2; 5].into());
        assert!(kept.get(id(1)).is_some());
        kept.put(id(3), vec![3; 5].into());
        assert!(kept.get(id(2)).is_none());
        assert!(kept.get(id(1)).is_some() && kept.get(id(3)).is_some());
        kept.put(id(4), vec![4; 11].into());
        assert!(kept.get(id(4)).is_none() && kept.get(id(1)).is_some());
    }
}
