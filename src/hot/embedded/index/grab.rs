//! Answers grabs and declines: who has a share keeps it, who has none may get the next.

use std::hash::BuildHasher;

use super::{Batch, Index};
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::{Grab, GrabReply, Grant, Outcome, Refusal};
use crate::domain::id::{EnvelopeId, Epoch, PersonId, TenantId};
use crate::hot::DeclineReply;
use crate::hot::embedded::envelope::{Broken, Envelope};
use crate::hot::embedded::record::What;

impl Index {
    /// Answers a grab.
    pub fn grab(&mut self, batch: &mut Batch, grab: Grab) -> GrabReply {
        if grab.epoch != Epoch::FIRST {
            return GrabReply::Epoch(Epoch::FIRST);
        }
        let Some(envelope) = self.of_tenant(grab.envelope, &grab.tenant) else {
            return GrabReply::Missing;
        };
        if envelope.frozen.is_some() {
            return GrabReply::Frozen;
        }
        if envelope.state == HotState::Funding {
            return GrabReply::Funding;
        }
        if let Some(grant) = self.seen(envelope, &grab.grabber) {
            let declined = envelope.declined.contains(&grant.share);
            return GrabReply::Outcome(match declined {
                true => Outcome::Refused(Refusal::Declined),
                false => Outcome::AlreadyGrabbed(grant),
            });
        }
        if let HotState::Over(reason) = envelope.state {
            return GrabReply::Outcome(over(reason));
        }
        let reply = self.grab_share(batch, &grab);
        reply.unwrap_or(GrabReply::Frozen)
    }

    /// Answers somebody who has no share of a live envelope.
    fn grab_share(&mut self, batch: &mut Batch, grab: &Grab) -> Result<GrabReply, Broken> {
        let id = grab.envelope;
        if self.expired(batch, id)? {
            return Ok(GrabReply::Outcome(Outcome::Expired));
        }
        let envelope = self.envelopes.get(&id).ok_or("it was here")?;
        let Some(share) = envelope.offer(&grab.grabber) else {
            // Live and without an offer: not among the named. Unknown and not invited are alike.
            return Ok(GrabReply::Missing);
        };
        let lock = envelope.terms.passphrase.as_ref().map(|l| l.digest());
        if !envelope.opening_seen {
            match envelope.terms.opens_at {
                Some(at) if batch.now < at => {
                    return Ok(GrabReply::Outcome(Outcome::NotOpenYet(at)));
                }
                _ => self.make(batch, id, What::OpeningSeen)?,
            }
        }
        if lock.is_some() {
            let envelope = self.envelopes.get(&id).ok_or("it was here")?;
            if envelope.tries_used_up(&grab.grabber) {
                return Ok(GrabReply::Outcome(Outcome::Refused(Refusal::TooManyTries)));
            }
            if grab.phrase != lock {
                self.make(batch, id, What::WrongTry(grab.grabber.clone()))?;
                return Ok(GrabReply::Outcome(Outcome::Refused(
                    Refusal::WrongPassphrase,
                )));
            }
        }
        let grant = self.take(batch, id, share, &grab.grabber, false)?;
        Ok(GrabReply::Outcome(Outcome::Won(grant)))
    }

    fn of_tenant(&self, id: EnvelopeId, tenant: &TenantId) -> Option<&Envelope> {
        self.envelopes
            .get(&id)
            .filter(|envelope| envelope.terms.tenant == *tenant)
    }

    /// What somebody was given before.
    pub(super) fn seen(&self, envelope: &Envelope, grabber: &PersonId) -> Option<Grant> {
        let hash = self.hasher.hash_one(grabber.as_str());
        envelope.grant(envelope.share_of(hash, grabber)?)
    }

    /// Whether the time of an envelope that is not over is past. The first who sees it writes it.
    fn expired(&mut self, batch: &mut Batch, id: EnvelopeId) -> Result<bool, Broken> {
        let envelope = self.envelopes.get(&id).ok_or("it was here")?;
        let expired = batch.now >= envelope.terms.expires_at;
        if expired {
            self.make(batch, id, What::Over(CloseReason::Expired))?;
        }
        Ok(expired)
    }

    /// Gives a share away; after the last one the envelope is empty.
    fn take(
        &mut self,
        batch: &mut Batch,
        id: EnvelopeId,
        share: u32,
        grabber: &PersonId,
        declined: bool,
    ) -> Result<Grant, Broken> {
        let envelope = self.envelopes.get(&id).ok_or("it was here")?;
        let place = usize::try_from(share).expect("usize holds a u32");
        let amount_minor = *envelope.amounts.get(place).ok_or("a share is not loaded")?;
        let grant = Grant {
            share,
            amount_minor,
            at: batch.now,
        };
        let taken = What::Taken {
            grabber: grabber.clone(),
            grant,
            declined,
        };
        self.make(batch, id, taken)?;
        if self.envelopes.get(&id).is_some_and(Envelope::all_taken) {
            self.make(batch, id, What::Over(CloseReason::Empty))?;
        }
        Ok(grant)
    }

    /// Answers somebody who does not want the share that is held for him.
    pub fn decline(
        &mut self,
        batch: &mut Batch,
        tenant: &TenantId,
        id: EnvelopeId,
        grabber: &PersonId,
    ) -> DeclineReply {
        let Some(envelope) = self.of_tenant(id, tenant) else {
            return DeclineReply::Missing;
        };
        let Some(share) = envelope.terms.exclusive_share_of(grabber) else {
            return DeclineReply::Missing;
        };
        if envelope.frozen.is_some() {
            return DeclineReply::Frozen;
        }
        if envelope.state == HotState::Funding {
            return DeclineReply::Funding;
        }
        if let Some(grant) = envelope.grant(share) {
            return match envelope.declined.contains(&share) {
                true => DeclineReply::Declined {
                    grant,
                    replayed: true,
                },
                false => DeclineReply::AlreadyGrabbed(grant),
            };
        }
        if let HotState::Over(reason) = envelope.state {
            return DeclineReply::Over(reason);
        }
        match self.expired(batch, id) {
            Ok(false) => {}
            Ok(true) => return DeclineReply::Over(CloseReason::Expired),
            Err(_) => return DeclineReply::Frozen,
        }
        match self.take(batch, id, share, grabber, true) {
            Ok(grant) => DeclineReply::Declined {
                grant,
                replayed: false,
            },
            Err(_) => DeclineReply::Frozen,
        }
    }
}

fn over(reason: CloseReason) -> Outcome {
    match reason {
        CloseReason::Empty => Outcome::Empty,
        CloseReason::Expired => Outcome::Expired,
        CloseReason::Recalled => Outcome::Recalled,
    }
}
