//! What a viewer may see of an envelope: both stores' word made one, then cut to the viewer.
//!
//! # Shape
//! | part | what |
//! |---|---|
//! | [`Snapshot`] | an envelope as the hot store and the ledger have it |
//! | [`Viewer`] | who looks: the sender, somebody who holds a share, or anybody admitted |
//! | `Snapshot::envelope`, `Snapshot::share` | the contract's messages, without what is hidden |
//!
//! # Ordering
//! The hot store is read before the ledger: what was granted by then is the least that is shown
//! as taken, and what was settled since can only add to it. Of an envelope that was just published it is
//! read after it: of the two counts the larger one is shown, so nothing is taken back.
//!
//! # The rules
//! The sender sees everything. A holder sees the own share. Amounts of others, and the sum that
//! would tell them, are visible to the sender; to holders at once (`AFTER_GRAB`); and to everybody
//! admitted when the envelope is Empty or Closed, whatever `reveal` says. The list of a Named
//! audience and the labels are the sender's alone.

use std::sync::Arc;

use red_envelope_proto::v1;

use super::wire;
use crate::domain::envelope::{BookState, CloseReason, HotState, Reveal, Terms};
use crate::domain::grab::HeldShare;
use crate::domain::id::PersonId;
use crate::hot::HotView;
use crate::ledger::EnvelopeRow;

/// An envelope at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// As the books have it.
    pub row: EnvelopeRow,
    /// As the hot store has it; `None`: not loaded yet, or forgotten after the close.
    pub hot: Option<HotView>,
    /// The largest share (ties: the lowest number), once the envelope is empty or closed.
    pub best: Option<HeldShare>,
    /// What declined shares are worth. Gathered where the hot store, which counts them as taken,
    /// has forgotten the envelope; else 0.
    pub declined_minor: i64,
}

/// Who looks.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// By name.
    pub person: PersonId,
    /// What they hold of this envelope.
    pub own: Option<HeldShare>,
}

impl Snapshot {
    /// The terms, which never change.
    pub fn terms(&self) -> &Arc<Terms> {
        &self.row.terms
    }

    /// Stopped by an operator or a broken invariant. Nothing is frozen once its books are closed.
    pub fn frozen(&self) -> bool {
        let marked = self.row.frozen || self.hot.as_ref().is_some_and(|hot| hot.frozen.is_some());
        marked && !self.closed()
    }

    /// Whether the books are balanced.
    pub fn closed(&self) -> bool {
        matches!(self.row.state, BookState::Closed(_))
    }

    /// Where it stands but for freezing and closing. The hot store decides what can be grabbed;
    /// without it the books tell.
    pub fn standing(&self) -> HotState {
        match (self.row.state, &self.hot) {
            (BookState::Closed(reason), _) | (BookState::Closing(reason), None) => {
                HotState::Over(reason)
            }
            (_, Some(hot)) => hot.state,
            (BookState::Funding, None) => HotState::Funding,
            (BookState::Live, None) => HotState::Live,
        }
    }

    /// As the contract names it.
    pub fn state(&self) -> v1::EnvelopeState {
        if self.closed() {
            v1::EnvelopeState::Closed
        } else if self.frozen() {
            v1::EnvelopeState::Frozen
        } else {
            wire::state(self.standing())
        }
    }

    /// Whether the amounts of all shares are everybody's who is admitted.
    pub fn ended(&self) -> bool {
        self.closed() || self.standing() == HotState::Over(CloseReason::Empty)
    }

    /// Whether a viewer may see what others got.
    pub fn shows_amounts_to(&self, viewer: &Viewer) -> bool {
        let terms = self.terms();
        terms.sender == viewer.person
            || self.ended()
            || (terms.reveal == Reveal::AfterGrab && viewer.own.is_some())
    }

    /// The envelope as a viewer may see it.
    pub fn envelope(&self, viewer: &Viewer) -> v1::Envelope {
        let terms = self.terms();
        let sender_looks = terms.sender == viewer.person;
        let close_reason = match self.standing() {
            HotState::Over(reason) => wire::close_reason(reason),
            HotState::Funding | HotState::Live => v1::CloseReason::Unspecified,
        };
        v1::Envelope {
            envelope_id: self.row.id.to_string(),
            tenant: terms.tenant.to_string(),
            sender: terms.sender.to_string(),
            kind: wire::kind(terms.kind).into(),
            state: self.state().into(),
            close_reason: close_reason.into(),
            total: Some(wire::money(terms.currency, terms.total_minor)),
            share_count: terms.share_count,
            min_share_minor: terms.min_minor,
            max_share_minor: terms.max_minor,
            split: terms.split.as_ref().map(wire::split),
            audience: Some(wire::audience(&terms.audience, sender_looks)),
            passphrase_required: terms.passphrase.is_some(),
            greeting: terms.greeting.clone(),
            cover_id: terms.cover_id.clone(),
            reveal: wire::reveal(terms.reveal).into(),
            labels: if sender_looks {
                terms.labels.clone()
            } else {
                Default::default()
            },
            create_time: Some(wire::timestamp(terms.created_at)),
            open_time: terms.opens_at.map(wire::timestamp),
            expire_time: Some(wire::timestamp(terms.expires_at)),
            close_time: self.row.closed_at.map(wire::timestamp),
            progress: Some(self.progress(viewer)),
            best_luck: self.best_luck(viewer),
            fairness: Some(wire::fairness(&terms.leaf, &terms.client_nonce)),
        }
    }

    /// Shares and money that are taken (or declined), as far as both stores know.
    fn taken(&self) -> (u32, i64) {
        let row = &self.row;
        let booked_count = row.settled_count.saturating_add(row.declined_count);
        let booked_minor = row.settled_minor.saturating_add(self.declined_minor);
        self.hot
            .as_ref()
            .map_or((booked_count, booked_minor), |hot| {
                (
                    hot.taken_count.max(booked_count),
                    hot.taken_minor.max(booked_minor),
                )
            })
    }

    fn progress(&self, viewer: &Viewer) -> v1::Progress {
        let terms = self.terms();
        let (taken_count, taken_minor) = self.taken();
        let shows = self.shows_amounts_to(viewer);
        let money = |minor| wire::money(terms.currency, minor);
        v1::Progress {
            taken_count,
            taken: shows.then(|| money(taken_minor)),
            remaining_count: terms.share_count.saturating_sub(taken_count),
            // What is settled and refunded adds up to what was taken as soon as all is settled.
            settled: shows.then(|| money(self.row.settled_minor)),
            refunded: shows.then(|| money(self.row.refunded_minor)),
        }
    }

    fn best_luck(&self, viewer: &Viewer) -> Option<v1::Share> {
        let best = self.best.as_ref().filter(|_| self.ended())?;
        Some(self.share(best, viewer))
    }

    /// A share of this envelope as a viewer may see it.
    pub fn share(&self, held: &HeldShare, viewer: &Viewer) -> v1::Share {
        let mut share = wire::share(held, self.terms().currency);
        if held.grabber != viewer.person && !self.shows_amounts_to(viewer) {
            share.amount = None;
        }
        share.best_luck = self.ended()
            && self
                .best
                .as_ref()
                .is_some_and(|best| best.grant.share == held.grant.share);
        share
    }
}

#[cfg(test)]
mod tests;
