//! A dead letter: a record that could not be paid, what may still be owed by it, and what becomes of it.
//!
//! *Not here.* The tables: `letters` of each ledger.

use super::{CAPPED, EnvelopeRow, LedgerError, NO_ROOM, Settled};
use crate::domain::envelope::{BookState, Terms};
use crate::domain::grab::OutboxRecord;
use crate::domain::id::{TenantId, UnixMs};
use crate::domain::money::Currency;

/// A record that could not be paid.
#[derive(Clone, Debug)]
pub struct DeadLetterRow {
    /// Ascending: the key of paging.
    pub row: i64,
    /// Whose envelope; `None` where the envelope is unknown.
    pub tenant: Option<TenantId>,
    /// Currency of the envelope; `None` where it is unknown.
    pub currency: Option<Currency>,
    /// What was promised.
    pub record: OutboxRecord,
    /// Why it can't be paid. Stable.
    pub reason: String,
    /// How often it was tried.
    pub tries: u32,
    /// When it was set aside.
    pub created_at: UnixMs,
    /// When it was done with: paid, unless `reason` says why it need not be. `None`: it is open.
    pub settled_at: Option<UnixMs>,
}

/// What an operator does about a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterDeed {
    /// Has settlement try what it says.
    Replay,
    /// Has settlement try what it says, but for the amount: that is the seed's.
    Correct,
    /// Lets go of it.
    Dismiss,
}

/// What stands in the way of an envelope's close.
#[derive(Clone, Debug, Default)]
pub struct SetAside {
    /// Records that wait until it is unfrozen.
    pub parked_count: u32,
    /// A page of its open dead letters, by row.
    pub letters: Vec<DeadLetterRow>,
}

/// Why a letter is done with and was not paid: its share or its grabber was, by another claim.
pub(super) const SUPERSEDED: &str = "superseded";
/// Why a letter is done with and was not paid: an operator dismissed it.
pub(super) const DISMISSED: &str = "dismissed";
/// Why a letter is done with and was not paid as it is written: its grabber was paid what the seed says of
/// the share.
pub(super) const CORRECTED: &str = "corrected";

impl DeadLetterRow {
    /// What a try that found it so answers, and each repeat of the try that made it so: `None` where it
    /// was paid as it is written.
    pub(super) fn answer(self) -> Option<Self> {
        let is_paid_otherwise = self.reason == SUPERSEDED || self.is_corrected();
        let is_paid = self.settled_at.is_some() && !is_paid_otherwise && !self.is_dismissed();
        (!is_paid).then_some(self)
    }

    /// Whether an operator has dismissed it.
    pub fn is_dismissed(&self) -> bool {
        self.settled_at.is_some() && self.reason == DISMISSED
    }

    /// Whether its grabber was paid what the seed says, and not what it says.
    pub fn is_corrected(&self) -> bool {
        self.settled_at.is_some() && self.reason == CORRECTED
    }

    /// PURE: whether nothing can ever be owed by it as it is written. Seed and terms never change, so a
    /// record that they contradict stays wrong. `amount_minor` is what the seed says of the share, `None`
    /// where there is no such share.
    pub fn is_contradicted(&self, terms: &Terms, amount_minor: Option<i64>) -> bool {
        amount_minor != Some(self.record.grant.amount_minor) || self.refused_by(terms).is_some()
    }

    /// Whether its share is another's by a claim, and the reserve would pay it but for the cap, or for want
    /// of room.
    pub fn is_of_the_reserve(&self) -> bool {
        [CAPPED, NO_ROOM].contains(&self.reason.as_str())
    }

    /// PURE: whether an operator may let go of it: nothing can ever be owed, or its envelope owes it no more
    /// and nobody will pay it. Of one that is closed all is paid or refunded: whom it owes is paid otherwise.
    pub(super) fn may_be_dismissed(
        &self,
        envelope: &EnvelopeRow,
        amount_minor: Option<i64>,
    ) -> bool {
        self.is_of_the_reserve()
            || matches!(envelope.state, BookState::Closed(_))
            || self.is_contradicted(&envelope.terms, amount_minor)
    }

    /// PURE: whether its amount is all that is wrong with it, so that the share may have been granted to
    /// its grabber with a wrong amount.
    pub fn is_corrigible(&self, terms: &Terms, amount_minor: Option<i64>) -> bool {
        let wrong = amount_minor.is_some_and(|minor| minor != self.record.grant.amount_minor);
        wrong && self.refused_by(terms).is_none()
    }

    /// PURE: what an operator's try has settlement pay, and why it must not.
    pub(super) fn tried(
        &self,
        deed: LetterDeed,
        terms: Option<&Terms>,
        amount_minor: Option<i64>,
    ) -> (OutboxRecord, Option<&'static str>) {
        let mut record = self.record.clone();
        let corrigible = terms.is_some_and(|terms| self.is_corrigible(terms, amount_minor));
        if let (LetterDeed::Correct, true, Some(minor)) = (deed, corrigible, amount_minor) {
            record.grant.amount_minor = minor;
        }
        let aside = match amount_minor == Some(record.grant.amount_minor) {
            true => terms.and_then(|terms| self.refused_by(terms)),
            false => Some("amount_is_not_the_seeds"),
        };
        (record, aside)
    }

    /// PURE: what a try makes of it. The outer `None`: it stays open. The inner one: it was paid as it is
    /// written. A corrected record that can't be paid is an error, so that nothing of the try stays.
    pub(super) fn outcome(
        &self,
        tried: &OutboxRecord,
        verdict: Settled,
        envelope: Option<&EnvelopeRow>,
    ) -> Result<Option<Option<&'static str>>, LedgerError> {
        let corrected = tried.grant.amount_minor != self.record.grant.amount_minor;
        match (verdict, envelope) {
            (Settled::Paid | Settled::Duplicate | Settled::MadeGood, _) => {
                Ok(Some(corrected.then_some(CORRECTED)))
            }
            (Settled::Superseded, _) => Ok(Some(Some(SUPERSEDED))),
            (Settled::Parked, _) if corrected => Err(LedgerError::Frozen),
            (Settled::DeadLetter, Some(envelope)) if corrected => Err(match envelope.state {
                BookState::Closed(reason) => LedgerError::AlreadyOver(reason),
                _ => LedgerError::BalanceTooLarge,
            }),
            (Settled::Capped, _) if corrected => Err(LedgerError::MakeGoodCapped),
            (Settled::Parked | Settled::DeadLetter | Settled::Capped, _) => Ok(None),
        }
    }

    /// Why the envelope's terms say no, whatever the amount: settlement's plan asked them before it set
    /// the record aside, and an operator's second try asks them again.
    pub fn refused_by(&self, terms: &Terms) -> Option<&'static str> {
        let record = &self.record;
        terms.refuses(&record.grabber, record.grant.share, record.declined)
    }
}
