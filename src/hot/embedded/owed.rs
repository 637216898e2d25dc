//! Looks through the outbox, and brings back envelopes that are not here.
//!
//! # Bounds
//! A look takes [`PENDING_WINDOW_ENTRIES`] entries before others get their turn.

use std::sync::Arc;

use super::EmbeddedStore;
use super::writer::Desk;
use crate::domain::envelope::{HotState, LOAD_CHUNK_SHARES_MAX, shares_checksum};
use crate::domain::id::{EnvelopeId, PersonId, TenantId};
use crate::hot::{Epochs, HotError, HotStore, LoadChunk, PendingShare, Repair, VIEWS_PER_CALL_MAX};

/// [`LOAD_CHUNK_SHARES_MAX`] as a number of shares.
#[expect(clippy::cast_possible_truncation, reason = "it is 1,000")]
const CHUNK_SHARES: u32 = LOAD_CHUNK_SHARES_MAX as u32;
/// Outbox entries that a reader of all of it looks at before others get their turn: below 1 ms.
const PENDING_WINDOW_ENTRIES: usize = 4_096;

impl EmbeddedStore {
    /// What somebody won that waits for the ledger.
    pub(super) async fn waiting_for(
        &self,
        tenant: TenantId,
        grabber: PersonId,
    ) -> Result<Vec<PendingShare>, HotError> {
        let mut found = Vec::new();
        let mut after = 0;
        loop {
            let (entries, next) = self.shared.outbox.window(after, PENDING_WINDOW_ENTRIES);
            let records = entries.iter().flat_map(|entry| entry.records.iter());
            let own = records.filter(|r| r.grabber == grabber && !r.declined);
            found.extend(own.map(|record| (record.envelope, record.grant)));
            match next {
                Some(next) => after = next,
                None => break,
            }
            tokio::task::yield_now().await;
        }
        let mut pending = Vec::with_capacity(found.len());
        for some in found.chunks(VIEWS_PER_CALL_MAX) {
            let (some, tenant) = (some.to_vec(), tenant.clone());
            let terms = move |desk: &mut Desk<'_>| {
                let with_terms = |(envelope, grant): &(EnvelopeId, _)| {
                    let terms = Arc::clone(&desk.index.get(*envelope)?.terms);
                    (terms.tenant == tenant).then_some(PendingShare {
                        envelope: *envelope,
                        terms,
                        grant: *grant,
                    })
                };
                some.iter().filter_map(with_terms).collect::<Vec<_>>()
            };
            pending.extend(self.ask(VIEWS_PER_CALL_MAX, terms).await?);
        }
        Ok(pending)
    }

    /// Whether a record of this envelope waits.
    pub(super) async fn any_record_of(&self, envelope: EnvelopeId) -> bool {
        let mut after = 0;
        loop {
            let (entries, next) = self.shared.outbox.window(after, PENDING_WINDOW_ENTRIES);
            let mut records = entries.iter().flat_map(|entry| entry.records.iter());
            if records.any(|record| record.envelope == envelope) {
                return true;
            }
            match next {
                Some(next) => after = next,
                None => return false,
            }
            tokio::task::yield_now().await;
        }
    }

    /// Publishes an envelope that is not here; one that is stays.
    pub(super) async fn bring_back(
        &self,
        under: &Epochs,
        repair: Repair,
    ) -> Result<HotState, HotError> {
        Self::all_stand(under)?;
        let id = repair.envelope;
        let views = self.view(vec![id]).await?;
        if let Some(view) = views.into_iter().flatten().next()
            && view.state != HotState::Funding
        {
            return Ok(view.state);
        }
        if let Some(reason) = repair.over {
            return Ok(HotState::Over(reason));
        }
        if !repair.claims.is_empty() {
            // The file was put back to an older point than the books: half of it can't be told.
            return Err(HotError::Mismatch(
                "the hot store's file is older than the ledger's: restore both from one backup"
                    .into(),
            ));
        }
        let chunks = repair.amounts_minor.chunks(LOAD_CHUNK_SHARES_MAX);
        for (number, amounts_minor) in (0_u32..).zip(chunks) {
            let chunk = LoadChunk {
                envelope: id,
                terms: Arc::clone(&repair.terms),
                offset: number.saturating_mul(CHUNK_SHARES),
                amounts_minor: amounts_minor.to_vec(),
            };
            self.load(under, chunk).await?;
        }
        let checksum = shares_checksum(&repair.amounts_minor);
        self.open(under, id, checksum).await
    }
}
