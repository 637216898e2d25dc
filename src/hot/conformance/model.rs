//! What an envelope does, told in twenty lines a rule: the law that every store is held to.
//!
//! # Not here
//! Who plays it against a store, and what is owed: `world`.

use std::collections::BTreeMap;

use super::stage::Cast;
use crate::domain::audience::WRONG_TRIES_PER_GRABBER_MAX;
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::{GrabReply, Grant, HeldShare, Outcome, Refusal};
use crate::domain::id::{PersonId, UnixMs};
use crate::hot::{CloseReply, DeclineReply, HotView, Mark};

/// What an envelope should be.
#[derive(Clone, Debug)]
pub struct Should {
    /// Where it stands.
    pub state: HotState,
    /// Shares were put down, so it can be opened.
    pub loaded: bool,
    /// A call saw that it opened.
    pub opening_seen: bool,
    /// Nothing moves.
    pub frozen: Option<Mark>,
    /// Who has which share.
    pub held: BTreeMap<u32, HeldShare>,
    /// Wrong phrases so far.
    pub tries: BTreeMap<PersonId, u32>,
}

impl Should {
    /// Untouched, in a state.
    pub fn new(state: HotState, loaded: bool) -> Self {
        Self {
            state,
            loaded,
            opening_seen: false,
            frozen: None,
            held: BTreeMap::new(),
            tries: BTreeMap::new(),
        }
    }

    /// What somebody holds.
    pub fn of(&self, who: &PersonId) -> Option<&HeldShare> {
        self.held.values().find(|held| held.grabber == *who)
    }

    /// It ends.
    pub fn over(&mut self, reason: CloseReason) -> CloseReason {
        self.state = HotState::Over(reason);
        reason
    }

    /// Somebody gets a share.
    pub fn give(
        &mut self,
        cast: &Cast,
        share: u32,
        who: &PersonId,
        at: UnixMs,
        declined: bool,
    ) -> Grant {
        let grant = Grant {
            share,
            amount_minor: cast.amounts[share as usize],
            at,
        };
        let grabber = who.clone();
        let held = HeldShare {
            grabber,
            grant,
            declined,
        };
        assert!(self.held.insert(share, held).is_none());
        if self.held.len() == cast.amounts.len() {
            self.over(CloseReason::Empty);
        }
        grant
    }

    /// The answer to a grab.
    pub fn grab(&mut self, cast: &Cast, who: &PersonId, right: bool, now: UnixMs) -> GrabReply {
        let refused = |refusal| GrabReply::Outcome(Outcome::Refused(refusal));
        if self.frozen.is_some() {
            return GrabReply::Frozen;
        }
        if self.state == HotState::Funding {
            return GrabReply::Funding;
        }
        if let Some(held) = self.of(who) {
            return match held.declined {
                true => refused(Refusal::Declined),
                false => GrabReply::Outcome(Outcome::AlreadyGrabbed(held.grant)),
            };
        }
        if self.state == HotState::Live && now >= cast.terms.expires_at {
            self.over(CloseReason::Expired);
        }
        if let HotState::Over(reason) = self.state {
            return GrabReply::Outcome(match reason {
                CloseReason::Empty => Outcome::Empty,
                CloseReason::Expired => Outcome::Expired,
                CloseReason::Recalled => Outcome::Recalled,
            });
        }
        let named = &cast.terms.exclusive;
        let share = match named.is_empty() {
            true => self.held.len(),
            false => match named.iter().position(|share| share.grabber == *who) {
                Some(place) => place,
                None => return GrabReply::Missing,
            },
        };
        if let Some(at) = cast
            .terms
            .opens_at
            .filter(|at| !self.opening_seen && now < *at)
        {
            return GrabReply::Outcome(Outcome::NotOpenYet(at));
        }
        self.opening_seen = true;
        if cast.terms.passphrase.is_some() {
            let tries = self.tries.entry(who.clone()).or_default();
            if *tries == WRONG_TRIES_PER_GRABBER_MAX {
                return refused(Refusal::TooManyTries);
            }
            if !right {
                *tries += 1;
                return refused(Refusal::WrongPassphrase);
            }
        }
        let share = u32::try_from(share).expect("shares are counted by a u32");
        GrabReply::Outcome(Outcome::Won(self.give(cast, share, who, now, false)))
    }

    /// The answer to a decline.
    pub fn decline(&mut self, cast: &Cast, who: &PersonId, now: UnixMs) -> DeclineReply {
        let Some(share) = cast.terms.exclusive_share_of(who) else {
            return DeclineReply::Missing;
        };
        if self.frozen.is_some() {
            return DeclineReply::Frozen;
        }
        if self.state == HotState::Funding {
            return DeclineReply::Funding;
        }
        if let Some(HeldShare {
            grant, declined, ..
        }) = self.of(who).cloned()
        {
            return match declined {
                true => DeclineReply::Declined {
                    grant,
                    replayed: true,
                },
                false => DeclineReply::AlreadyGrabbed(grant),
            };
        }
        if let HotState::Over(reason) = self.state {
            return DeclineReply::Over(reason);
        }
        if now >= cast.terms.expires_at {
            return DeclineReply::Over(self.over(CloseReason::Expired));
        }
        DeclineReply::Declined {
            grant: self.give(cast, share, who, now, true),
            replayed: false,
        }
    }

    /// The answer to a close of what is over.
    pub fn close_reply(&self, reason: CloseReason) -> CloseReply {
        let amounts = self.held.values().map(|held| held.grant.amount_minor);
        CloseReply::Over {
            reason,
            taken_count: u32::try_from(self.held.len()).expect("shares are counted by a u32"),
            taken_minor: amounts.sum(),
        }
    }

    /// The best share, once it is over.
    pub fn best(&self) -> Option<HeldShare> {
        let HotState::Over(_) = self.state else {
            return None;
        };
        let kept = self.held.values().filter(|held| !held.declined);
        // The last of the largest from the back is the first from the front.
        kept.rev()
            .max_by_key(|held| held.grant.amount_minor)
            .cloned()
    }

    /// A view shows it.
    pub fn is_shown_by(&self, view: &HotView) {
        assert_eq!((view.state, view.frozen), (self.state, self.frozen));
        let amounts = self.held.values().map(|held| held.grant.amount_minor);
        assert_eq!(view.taken_minor, amounts.sum::<i64>());
        assert_eq!(view.taken_count as usize, self.held.len());
        let declined = self.held.values().filter(|held| held.declined).count();
        assert_eq!(view.declined_count as usize, declined);
        assert_eq!(view.best, self.best());
    }
}
