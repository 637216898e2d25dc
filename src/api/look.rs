//! Reads envelopes from both stores, and decides whether a caller may know that they exist.
//!
//! # Shape
//! | step | door |
//! |---|---|
//! | 1. what is grabbable | `hot.view`, up to 100 at once |
//! | 2. what the books say | `ledger.envelopes` |
//! | 3. what the hot store lost, or has of an older epoch | `Publisher`, then 1 and 2 again |
//! | 4. best luck and declined shares of closed envelopes that the hot store has forgotten | `ledger.best_claim`, `ledger.claims`, cached: they never change |
//! | of one that was just published | the row that `publish` read, then 1 |
//! | 5. what the viewer holds | `hot.held`, `ledger.claims_of` |
//!
//! # Bounds
//! [`REVIVALS_IN_FLIGHT_MAX`] envelopes of a call are repaired at once.
//!
//! # What was told once
//! Nobody is shown less than before because a hot store was replaced: an envelope that it lost, or
//! has of an older epoch, is brought back before it is shown, and where that can't be done now the
//! look fails and may be repeated. Two cases need no repair: of a closed envelope the books tell
//! all, and a frozen one, which nothing may change, is shown as both stores together have it. Who
//! watches is no reason to repair: see `watch`.
//!
//! # Not here
//! What of it a viewer may see: `sight`.

use std::collections::HashMap;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use quick_cache::sync::Cache;

use super::Api;
use super::reads::Pair;
use super::sight::{Snapshot, Viewer};
use super::status::ApiError;
use crate::domain::envelope::{BookState, EXCLUSIVE_SHARES_MAX, Terms};
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, PersonId, TenantId};
use crate::hot::HotView;
use crate::ledger::EnvelopeRow;
use crate::publish::{PublishError, Published, must_revive};

/// Closed envelopes whose best luck is remembered, about 200 bytes each: 2 MB.
const ENDINGS_MAX: usize = 10_000;

/// Envelopes that one look brings back at once: a page of a hundred small ones takes about 0.1 s.
pub const REVIVALS_IN_FLIGHT_MAX: usize = 8;

/// What remains to be told of envelopes that are closed and forgotten by the hot store.
pub type Endings = Cache<EnvelopeId, (Option<HeldShare>, i64)>;

/// An empty cache of endings.
pub fn endings() -> Endings {
    Cache::new(ENDINGS_MAX)
}

/// Whether an envelope exists for somebody: the sender, or whoever is in the audience.
pub fn admits(terms: &Terms, tenant: &TenantId, person: &PersonId, group_id: &str) -> bool {
    let group = (!group_id.is_empty()).then_some(group_id);
    terms.tenant == *tenant && (terms.sender == *person || terms.audience.admits(person, group))
}

impl Api {
    /// Envelopes in their order, `None` where one is unknown. At most 100.
    pub(super) async fn snapshots(
        &self,
        ids: Vec<EnvelopeId>,
    ) -> Result<Vec<Option<Snapshot>>, ApiError> {
        let pairs = self.revived(ids).await?;
        let mut snapshots = Vec::with_capacity(pairs.len());
        for (row, hot) in pairs {
            snapshots.push(match row {
                Some(row) => Some(self.ended_well(row, hot).await?),
                None => None,
            });
        }
        Ok(snapshots)
    }

    /// As [`Api::snapshots`], without those that would have to be brought back first.
    pub(super) async fn snapshots_at_hand(
        &self,
        ids: Vec<EnvelopeId>,
    ) -> Result<Vec<Snapshot>, ApiError> {
        let mut snapshots = Vec::with_capacity(ids.len());
        for (row, hot) in self.reads.pairs(ids).await? {
            if let Some(row) = row.filter(|row| !must_revive(row, hot.as_ref())) {
                snapshots.push(self.ended_well(row, hot).await?);
            }
        }
        Ok(snapshots)
    }

    /// Both stores' word, after what the hot store lost was brought back.
    async fn revived(&self, ids: Vec<EnvelopeId>) -> Result<Vec<Pair>, ApiError> {
        let pairs = self.reads.pairs(ids.clone()).await?;
        let lost = pairs.iter().filter_map(|(row, hot)| {
            let row = row.as_ref()?;
            must_revive(row, hot.as_ref()).then_some(row.id)
        });
        let lost: Vec<EnvelopeId> = lost.collect();
        if lost.is_empty() {
            return Ok(pairs);
        }
        let revived = stream::iter(lost).map(|id| async move {
            match self.publisher.publish(id).await {
                Ok(_) | Err(PublishError::Frozen) => Ok(()),
                Err(error) => Err(ApiError::from(error)),
            }
        });
        let revived = revived.buffer_unordered(REVIVALS_IN_FLIGHT_MAX);
        revived.try_collect::<()>().await?;
        self.reads.pairs(ids).await
    }

    /// One envelope.
    pub(super) async fn snapshot(&self, id: EnvelopeId) -> Result<Snapshot, ApiError> {
        let found = self.snapshots(vec![id]).await?;
        found.into_iter().flatten().next().ok_or(ApiError::NotFound)
    }

    /// An envelope that was just published, with what the hot store has of it by now.
    pub(super) async fn snapshot_of(&self, published: Published) -> Result<Snapshot, ApiError> {
        let row = published.row;
        let view = self.hot.view(vec![row.id]).await?.pop().flatten();
        match view {
            Some(view) if !must_revive(&row, Some(&view)) => self.ended_well(row, Some(view)).await,
            // It went on, or was lost, since.
            _ => self.snapshot(row.id).await,
        }
    }

    /// Rows that were read already, with what the hot store has of them. At most 100.
    pub(super) async fn snapshots_of(
        &self,
        rows: Vec<EnvelopeRow>,
    ) -> Result<Vec<Snapshot>, ApiError> {
        let ids = rows.iter().map(|row| row.id).collect();
        let pairs = self.revived(ids).await?;
        let mut snapshots = Vec::with_capacity(rows.len());
        for (read_before, (row, hot)) in rows.into_iter().zip(pairs) {
            let row = row.unwrap_or(read_before);
            snapshots.push(self.ended_well(row, hot).await?);
        }
        Ok(snapshots)
    }

    /// Puts the two words together and adds what only the claims can tell.
    async fn ended_well(
        &self,
        row: EnvelopeRow,
        hot: Option<HotView>,
    ) -> Result<Snapshot, ApiError> {
        // Of a closed envelope an older incarnation knows no more than the books.
        let closed = matches!(row.state, BookState::Closed(_));
        let hot = hot.filter(|view| !(closed && view.stale));
        let in_books = row.settled_count + row.declined_count;
        let told = hot
            .as_ref()
            .filter(|hot| self.gated.has_passed(hot, in_books));
        let mut snapshot = Snapshot {
            best: told.and_then(|hot| hot.best.clone()),
            declined_minor: 0,
            row,
            hot,
        };
        if snapshot.hot.is_none() && snapshot.closed() {
            let (best, declined_minor) = self.ending(&snapshot.row).await?;
            snapshot.best = best;
            snapshot.declined_minor = declined_minor;
        } else if snapshot.closed() && snapshot.best.is_none() {
            snapshot.best = self.ending(&snapshot.row).await?.0;
        }
        Ok(snapshot)
    }

    async fn ending(&self, row: &EnvelopeRow) -> Result<(Option<HeldShare>, i64), ApiError> {
        if let Some(ending) = self.endings.get(&row.id) {
            return Ok(ending);
        }
        let best = self.ledger.best_claim(row.id).await?;
        let mut declined_minor = 0;
        if row.declined_count > 0 {
            let claims = self.ledger.claims(row.id, 0, EXCLUSIVE_SHARES_MAX).await?;
            let declined = claims.iter().filter(|claim| claim.declined);
            declined_minor = declined.map(|claim| claim.grant.amount_minor).sum();
        }
        self.endings.insert(row.id, (best.clone(), declined_minor));
        Ok((best, declined_minor))
    }

    /// What somebody holds of each envelope. At most 100.
    pub(super) async fn held_by(
        &self,
        person: &PersonId,
        snapshots: &[&Snapshot],
    ) -> Result<HashMap<EnvelopeId, HeldShare>, ApiError> {
        let of = |asked: fn(&Snapshot) -> bool| {
            let of = snapshots.iter().filter(|snapshot| asked(snapshot));
            let whose = of.map(|snapshot| (snapshot.row.id, person.clone()));
            whose.collect::<Vec<_>>()
        };
        let in_hot = of(|snapshot| snapshot.hot.is_some());
        // A stale view knows a part, and the books another.
        let in_books = of(|snapshot| snapshot.hot.as_ref().is_none_or(|hot| hot.stale));
        let mut held = HashMap::new();
        if !in_hot.is_empty() {
            let found = self.reads.held_hot(in_hot.clone()).await?;
            let pairs = in_hot.into_iter().zip(found);
            held.extend(pairs.filter_map(|((id, _), share)| Some((id, share?))));
        }
        if !in_books.is_empty() {
            let found = self.reads.held_in_books(in_books.clone()).await?;
            let pairs = in_books.into_iter().zip(found);
            held.extend(pairs.filter_map(|((id, _), share)| Some((id, share?))));
        }
        Ok(held)
    }

    /// Somebody who looks at one envelope, with what they hold of it.
    pub(super) async fn viewer(
        &self,
        person: PersonId,
        snapshot: &Snapshot,
    ) -> Result<Viewer, ApiError> {
        let mut held = self.held_by(&person, &[snapshot]).await?;
        let own = held.remove(&snapshot.row.id);
        Ok(Viewer { person, own })
    }
}
