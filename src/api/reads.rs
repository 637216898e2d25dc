//! What is read of one envelope by many at once: each kind of question is asked together.
//!
//! # Shape
//! | question | asks |
//! |---|---|
//! | [`Look`] | the hot store's view, then the books' row |
//! | [`HeldHot`] | what somebody holds, as the hot store has it and as it may be told |
//! | [`HeldInBooks`] | what somebody was paid |
//! | [`Page`] | who got what: a page of the hot store's grants and of the claims |
//!
//! # Bounds
//! Those of `together`; [`PAGES_AT_ONCE_MAX`].
//!
//! # Not here
//! What the answers come to: `look`, `list_grabs`.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::list_grabs;
use super::status::ApiError;
use super::together::{Question, Together};
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, PersonId};
use crate::hot::gate::Gated;
use crate::hot::{HotStore, HotView, VIEWS_PER_CALL_MAX};
use crate::ledger::{EnvelopeRow, Ledger};

/// Different pages that one call of `together` reads at once: each is a question to either store.
const PAGES_AT_ONCE_MAX: usize = 8;

/// What both stores have of an envelope.
pub(super) type Pair = (Option<EnvelopeRow>, Option<HotView>);

/// Shares of a page and whether each is paid, and where the next page begins, if there may be one.
pub(super) type Shares = (Vec<(HeldShare, bool)>, Option<u32>);

/// What is asked.
pub(super) struct Stores {
    /// Who may take which share.
    pub hot: Arc<dyn HotStore>,
    /// The same, for what is told of shares.
    pub gated: Arc<Gated>,
    /// The books.
    pub ledger: Arc<dyn Ledger>,
}

/// The questions.
pub(super) struct Reads {
    stores: Arc<Stores>,
    looks: Together<Look>,
    held_hot: Together<HeldHot>,
    held_in_books: Together<HeldInBooks>,
    pages: Together<Page>,
}

impl Reads {
    /// Must be called on a runtime.
    pub fn new(stores: Stores) -> Self {
        let stores = Arc::new(stores);
        Self {
            looks: Together::new(Arc::clone(&stores)),
            held_hot: Together::new(Arc::clone(&stores)),
            held_in_books: Together::new(Arc::clone(&stores)),
            pages: Together::new(Arc::clone(&stores)),
            stores,
        }
    }

    /// Looks that wait now.
    #[cfg(test)]
    pub fn looks_queued(&self) -> usize {
        self.looks.queued()
    }

    /// What both stores have of envelopes, in their order. At most [`VIEWS_PER_CALL_MAX`].
    pub async fn pairs(&self, ids: Vec<EnvelopeId>) -> Result<Vec<Pair>, ApiError> {
        match ids[..] {
            [id] => Ok(vec![self.looks.ask(Look(id)).await?]),
            _ => self.stores.pairs(ids).await,
        }
    }

    /// What somebody holds of each envelope, as far as the hot store tells it. At most [`VIEWS_PER_CALL_MAX`].
    pub async fn held_hot(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, ApiError> {
        match &whose[..] {
            [one] => Ok(vec![self.held_hot.ask(HeldHot(one.clone())).await?]),
            _ => Ok(self.stores.gated.held(whose).await?),
        }
    }

    /// What somebody was paid from, or declined of, each envelope. At most [`VIEWS_PER_CALL_MAX`].
    pub async fn held_in_books(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, ApiError> {
        match &whose[..] {
            [one] => Ok(vec![self.claim_of(one.clone()).await?]),
            _ => Ok(self.stores.ledger.claims_of(whose).await?),
        }
    }

    /// The same of one envelope.
    pub async fn claim_of(
        &self,
        whose: (EnvelopeId, PersonId),
    ) -> Result<Option<HeldShare>, ApiError> {
        self.held_in_books.ask(HeldInBooks(whose)).await
    }

    /// Shares with numbers from `from`, at most `size`.
    pub async fn page(
        &self,
        envelope: EnvelopeId,
        from: u32,
        size: usize,
    ) -> Result<Arc<Shares>, ApiError> {
        let page = Page {
            envelope,
            from,
            size,
        };
        self.pages.ask(page).await
    }
}

impl Stores {
    async fn pairs(&self, ids: Vec<EnvelopeId>) -> Result<Vec<Pair>, ApiError> {
        debug_assert!(ids.len() <= VIEWS_PER_CALL_MAX);
        let views = self.hot.view(ids.clone()).await?;
        let rows = self.ledger.envelopes(ids).await?;
        Ok(rows.into_iter().zip(views).collect())
    }
}

/// What both stores have of an envelope.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Look(EnvelopeId);

impl Question for Look {
    type Stores = Stores;
    type Answer = Pair;

    async fn ask(stores: &Stores, looks: Vec<Self>) -> Result<Vec<Pair>, ApiError> {
        let ids = looks.into_iter().map(|Self(id)| id);
        stores.pairs(ids.collect()).await
    }
}

/// What somebody holds of an envelope, by the hot store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct HeldHot((EnvelopeId, PersonId));

impl Question for HeldHot {
    type Stores = Stores;
    type Answer = Option<HeldShare>;

    async fn ask(stores: &Stores, whose: Vec<Self>) -> Result<Vec<Self::Answer>, ApiError> {
        let whose = whose.into_iter().map(|Self(whose)| whose);
        Ok(stores.gated.held(whose.collect()).await?)
    }
}

/// What somebody was paid from an envelope.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct HeldInBooks((EnvelopeId, PersonId));

impl Question for HeldInBooks {
    type Stores = Stores;
    type Answer = Option<HeldShare>;

    async fn ask(stores: &Stores, whose: Vec<Self>) -> Result<Vec<Self::Answer>, ApiError> {
        let whose = whose.into_iter().map(|Self(whose)| whose);
        Ok(stores.ledger.claims_of(whose.collect()).await?)
    }
}

/// Who got what, from a number on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Page {
    envelope: EnvelopeId,
    from: u32,
    size: usize,
}

impl Question for Page {
    type Stores = Stores;
    type Answer = Arc<Shares>;

    async fn ask(stores: &Stores, pages: Vec<Self>) -> Result<Vec<Self::Answer>, ApiError> {
        let pages = stream::iter(pages).map(async |page| {
            let (id, from, size) = (page.envelope, page.from, page.size);
            let granted = stores.gated.grants(id, from, size).await?;
            let ledger = &*stores.ledger;
            let shares = list_grabs::page_of(ledger, id, (from, size), granted).await?;
            Ok(Arc::new(shares))
        });
        pages.buffered(PAGES_AT_ONCE_MAX).try_collect().await
    }
}
