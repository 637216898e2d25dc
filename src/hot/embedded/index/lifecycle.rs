//! Publishes envelopes and ends them; after the end nothing is granted any more.

use std::sync::Arc;

use super::{Batch, Index};
use crate::domain::envelope::{CloseReason, HotState, LOAD_CHUNK_SHARES_MAX, Terms};
use crate::domain::id::EnvelopeId;
use crate::hot::embedded::envelope::{Broken, Envelope};
use crate::hot::embedded::record::{Change, What};
use crate::hot::{CloseReply, HotError, LoadChunk, Mark};

impl Index {
    /// Puts shares down.
    pub fn load(&mut self, batch: &mut Batch, chunk: LoadChunk) -> Result<(), HotError> {
        let mismatch = |what: &str| HotError::Mismatch(what.to_owned());
        let id = chunk.envelope;
        if chunk.amounts_minor.len() > LOAD_CHUNK_SHARES_MAX {
            return Err(mismatch("a chunk holds too many shares"));
        }
        match self.envelopes.get_mut(&id) {
            Some(envelope) if envelope.terms != chunk.terms => {
                return Err(mismatch("the envelope was begun under other terms"));
            }
            Some(envelope) if envelope.state != HotState::Funding => return Ok(()),
            _ => {}
        }
        let loaded = self.envelopes.get(&id).map_or(0, |e| e.amounts.len());
        if usize::try_from(chunk.offset).is_ok_and(|offset| offset > loaded) {
            // An earlier chunk was shed: repeating the load in order brings it.
            return Err(HotError::Unavailable(
                "the shares before these are not loaded yet".into(),
            ));
        }
        // Checked on a stranger first, so that a bad chunk leaves no envelope behind.
        let (offset, amounts_minor) = (chunk.offset, chunk.amounts_minor);
        match self.envelopes.get_mut(&id) {
            Some(envelope) => {
                let changed = envelope.put_amounts(offset, &amounts_minor);
                if !changed.map_err(mismatch)? {
                    return Ok(());
                }
            }
            None => {
                Envelope::created(Arc::clone(&chunk.terms), 0)
                    .put_amounts(offset, &amounts_minor)
                    .map_err(mismatch)?;
                self.make(batch, id, What::Created(chunk.terms))
                    .map_err(mismatch)?;
            }
        }
        let loaded = What::Loaded {
            offset,
            amounts_minor,
        };
        self.make(batch, id, loaded).map_err(mismatch)
    }

    /// Makes a loaded envelope live.
    pub fn open(
        &mut self,
        batch: &mut Batch,
        id: EnvelopeId,
        checksum: u32,
    ) -> Result<HotState, HotError> {
        let mismatch = |what: String| HotError::Mismatch(what);
        let envelope = self.envelopes.get(&id);
        let envelope = envelope.ok_or_else(|| mismatch("nothing is loaded".into()))?;
        if envelope.state != HotState::Funding {
            return Ok(envelope.state);
        }
        envelope.complete(checksum).map_err(mismatch)?;
        self.make(batch, id, What::Opened)
            .map_err(|broken| mismatch(broken.into()))?;
        Ok(HotState::Live)
    }

    /// Ends an envelope, or leaves a tombstone.
    pub fn close(
        &mut self,
        batch: &mut Batch,
        id: EnvelopeId,
        terms: Arc<Terms>,
        reason: CloseReason,
    ) -> Result<CloseReply, HotError> {
        let broken = |broken: Broken| HotError::Unavailable(broken.to_owned());
        let standing = self.envelopes.get(&id);
        if standing.is_some_and(|envelope| envelope.frozen.is_some()) {
            return Ok(CloseReply::Frozen);
        }
        if let Some(over) = standing.and_then(over_reply) {
            return Ok(over);
        }
        let expires_at = standing.map_or(terms.expires_at, |e| e.terms.expires_at);
        let reason = match reason {
            _ if batch.now >= expires_at => CloseReason::Expired,
            CloseReason::Expired => return Ok(CloseReply::NotDue(batch.now)),
            CloseReason::Empty => {
                // A full envelope ends by itself, with its last grab.
                return Err(HotError::Mismatch("not every share is taken".into()));
            }
            CloseReason::Recalled => CloseReason::Recalled,
        };
        if standing.is_none() {
            self.make(batch, id, What::Created(terms)).map_err(broken)?;
        }
        self.make(batch, id, What::Over(reason)).map_err(broken)?;
        let envelope = self.envelopes.get(&id);
        envelope
            .and_then(over_reply)
            .ok_or_else(|| broken("it was just closed"))
    }

    /// Sets the mark of the books; a heavier one stays.
    pub fn freeze(&mut self, batch: &mut Batch, id: EnvelopeId) {
        if self.envelopes.get(&id).is_some_and(|e| e.frozen.is_none()) {
            self.mark(batch, id, Some(Mark::Books));
        }
    }

    /// Takes the mark off, unless it is heavier than `upto`.
    pub fn unfreeze(&mut self, batch: &mut Batch, id: EnvelopeId, upto: Mark) {
        let mark = self.envelopes.get(&id).and_then(|e| e.frozen);
        if mark.is_some_and(|mark| mark <= upto) {
            self.mark(batch, id, None);
        }
    }

    fn mark(&mut self, batch: &mut Batch, id: EnvelopeId, mark: Option<Mark>) {
        self.make(batch, id, What::Frozen(mark))
            .expect("a mark breaks no invariant of an envelope that is here");
    }

    /// Asks for a change that no envelope allows, as a bug would.
    #[cfg(any(test, feature = "test-hooks"))]
    pub fn break_invariant(&mut self, batch: &mut Batch, id: EnvelopeId) {
        let nowhere = What::Loaded {
            offset: u32::MAX,
            amounts_minor: vec![1],
        };
        // The answer is the mark.
        let _broken = self.make(batch, id, nowhere);
    }

    /// Forgets an envelope that is over and of which every row up to `watermark` has all debts.
    pub fn remove(
        &mut self,
        batch: &mut Batch,
        id: EnvelopeId,
        watermark: u64,
    ) -> Option<Envelope> {
        let envelope = self.envelopes.get(&id)?;
        let over = matches!(envelope.state, HotState::Over(_));
        if !over || envelope.frozen.is_some() || envelope.last_debt_seq > watermark {
            return None;
        }
        batch.changes.push(Change {
            envelope: id,
            what: What::Removed,
        });
        self.forget(id)
    }
}

fn over_reply(envelope: &Envelope) -> Option<CloseReply> {
    match envelope.state {
        HotState::Over(reason) => Some(CloseReply::Over {
            reason,
            taken_count: envelope.taken_count,
            taken_minor: envelope.taken_minor,
        }),
        _ => None,
    }
}
