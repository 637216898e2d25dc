//! The hot store, as small as its law: `hot::conformance::model`, to which the real ones are held, and an
//! outbox.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;
use red_envelope::domain::envelope::{CloseReason, HotState, Terms, shares_checksum};
use red_envelope::domain::grab::{Grab, GrabReply, HeldShare, OutboxEntry, OutboxRecord, Outcome};
use red_envelope::domain::id::{EnvelopeId, Epoch, Partition, PartitionCount, UnixMs};
use red_envelope::hot::conformance::model::Should;
use red_envelope::hot::conformance::stage::Cast;
use red_envelope::hot::{
    CloseReply, HotError, HotView, HotVitals, LoadChunk, Mark, OUTBOX_RECORDS_PER_CALL_MAX, Repair,
};

/// An envelope, and what was done to it.
pub struct Kept {
    pub cast: Cast,
    pub should: Should,
}

#[derive(Default)]
pub struct Outbox {
    last: u64,
    pub entries: Vec<OutboxEntry>,
}

pub struct Hot {
    partitions: PartitionCount,
    pub envelopes: BTreeMap<EnvelopeId, Kept>,
    pub outboxes: BTreeMap<Partition, Outbox>,
    nonces: StdRng,
    /// Everything that was ever granted: what the audit remembers.
    pub granted: BTreeMap<EnvelopeId, BTreeMap<u32, HeldShare>>,
    /// What an outbox owed when it was lost.
    pub lost: BTreeSet<(EnvelopeId, u32)>,
}

impl Hot {
    pub fn new(partitions: PartitionCount, nonces: StdRng) -> Self {
        Self {
            partitions,
            envelopes: BTreeMap::new(),
            outboxes: BTreeMap::new(),
            nonces,
            granted: BTreeMap::new(),
            lost: BTreeSet::new(),
        }
    }

    fn partition(&self, id: EnvelopeId) -> Partition {
        id.partition(self.partitions)
    }

    pub fn vitals(&self) -> HotVitals {
        let entries = self.outboxes.values().flat_map(|outbox| &outbox.entries);
        let records = || entries.clone().flat_map(|entry| &entry.records);
        HotVitals {
            envelopes: self.envelopes.len() as u64,
            unsettled_records: records().count() as u64,
            oldest_unsettled_at: records().map(|record| record.grant.at).min(),
            queued_grabs: 0,
            now: None,
        }
    }

    /// `idempotent`: the rule is kept.
    pub fn load(&mut self, chunk: LoadChunk, idempotent: bool) -> Result<(), HotError> {
        let kept = self
            .envelopes
            .entry(chunk.envelope)
            .or_insert_with(|| Kept {
                cast: Cast {
                    id: chunk.envelope,
                    terms: chunk.terms,
                    amounts: Vec::new(),
                },
                should: Should::new(HotState::Funding, true),
            });
        let amounts = &mut kept.cast.amounts;
        if !idempotent {
            amounts.extend(chunk.amounts_minor);
            return Ok(());
        }
        let offset = chunk.offset as usize;
        if kept.should.state != HotState::Funding {
            return Ok(());
        }
        if offset > amounts.len() {
            let why = "the shares before these are not loaded yet";
            return Err(HotError::Unavailable(why.to_owned()));
        }
        for (place, amount) in (offset..).zip(chunk.amounts_minor) {
            match amounts.get(place) {
                Some(there) => assert_eq!(*there, amount, "a vector is the same for ever"),
                None => amounts.push(amount),
            }
        }
        Ok(())
    }

    pub fn open(&mut self, id: EnvelopeId, checksum: u32) -> Result<HotState, HotError> {
        let mismatch = |what: &str| Err(HotError::Mismatch(what.to_owned()));
        let Some(kept) = self.envelopes.get_mut(&id) else {
            return mismatch("nothing is loaded");
        };
        if kept.should.state != HotState::Funding {
            return Ok(kept.should.state);
        }
        let amounts = &kept.cast.amounts;
        if amounts.len() != kept.cast.terms.share_count as usize {
            return mismatch("shares are missing, or too many");
        }
        if shares_checksum(amounts) != checksum {
            return mismatch("the checksum is another one");
        }
        kept.should.state = HotState::Live;
        Ok(HotState::Live)
    }

    pub fn grab(&mut self, grabs: Vec<Grab>, now: UnixMs) -> Vec<GrabReply> {
        let mut owed: BTreeMap<Partition, Vec<OutboxRecord>> = BTreeMap::new();
        let mut replies = Vec::with_capacity(grabs.len());
        for grab in grabs {
            let Some(kept) = self.envelopes.get_mut(&grab.envelope) else {
                replies.push(GrabReply::Missing);
                continue;
            };
            let reply = kept.should.grab(&kept.cast, &grab.grabber, true, now);
            replies.push(reply);
            if let GrabReply::Outcome(Outcome::Won(grant)) = reply {
                let held = HeldShare {
                    grabber: grab.grabber,
                    grant,
                    declined: false,
                };
                let record = OutboxRecord {
                    envelope: grab.envelope,
                    grabber: held.grabber.clone(),
                    grant,
                    declined: false,
                };
                let granted = self.granted.entry(grab.envelope).or_default();
                granted.insert(grant.share, held);
                owed.entry(grab.partition).or_default().push(record);
            }
        }
        for (partition, records) in owed {
            let outbox = self.outboxes.entry(partition).or_default();
            outbox.last += 1;
            outbox.entries.push(OutboxEntry {
                id: outbox.last,
                nonce: self.nonces.random(),
                epoch: Epoch::FIRST,
                records,
            });
        }
        replies
    }

    pub fn view(&self, id: EnvelopeId) -> Option<HotView> {
        let Kept { cast, should } = self.envelopes.get(&id)?;
        let amounts = should.held.values().map(|held| held.grant.amount_minor);
        let declined = should.held.values().filter(|held| held.declined);
        let count = |n: usize| u32::try_from(n).expect("cases are small");
        Some(HotView {
            envelope: id,
            terms: Arc::clone(&cast.terms),
            state: should.state,
            frozen: should.frozen,
            taken_count: count(should.held.len()),
            taken_minor: amounts.sum(),
            declined_count: count(declined.count()),
            best: should.best(),
            stale: false,
            gathered: false,
        })
    }

    /// `marked`: the rule is kept.
    pub fn close(
        &mut self,
        (id, terms): (EnvelopeId, Arc<Terms>),
        reason: CloseReason,
        (now, marked): (UnixMs, bool),
    ) -> Result<CloseReply, HotError> {
        let standing = self.envelopes.get_mut(&id);
        let state = standing.as_ref().map(|kept| kept.should.state);
        if standing
            .as_ref()
            .is_some_and(|kept| kept.should.frozen.is_some())
        {
            return Ok(CloseReply::Frozen);
        }
        let reason = match (state, reason) {
            (Some(HotState::Over(first)), _) => first,
            _ if now >= terms.expires_at => CloseReason::Expired,
            (_, CloseReason::Expired) => return Ok(CloseReply::NotDue(now)),
            (_, CloseReason::Empty) => {
                return Err(HotError::Mismatch("not every share is taken".to_owned()));
            }
            (_, CloseReason::Recalled) => CloseReason::Recalled,
        };
        let Some(kept) = standing else {
            let should = Should::new(HotState::Over(reason), false);
            let reply = should.close_reply(reason);
            let amounts = Vec::new();
            let cast = Cast { id, terms, amounts };
            if marked {
                self.envelopes.insert(id, Kept { cast, should });
            }
            return Ok(reply);
        };
        if marked {
            kept.should.over(reason);
        }
        Ok(kept.should.close_reply(reason))
    }

    pub fn marked(&self, after: Option<EnvelopeId>, limit: usize) -> Vec<(EnvelopeId, Mark)> {
        let all = self.envelopes.iter();
        let marked = all.filter_map(|(id, kept)| Some((*id, kept.should.frozen?)));
        let above = marked.filter(|(id, _)| Some(*id) > after);
        above.take(limit).collect()
    }

    pub fn outbox(
        &self,
        partition: Partition,
        after: Option<u64>,
        limit: usize,
    ) -> Vec<OutboxEntry> {
        let entries = self.outboxes.get(&partition).map(|outbox| &outbox.entries);
        let mut records = 0;
        let above = entries.into_iter().flatten();
        let above = above.filter(|entry| Some(entry.id) > after);
        let some = above.take_while(|entry| {
            let fits = records < limit.min(OUTBOX_RECORDS_PER_CALL_MAX);
            records += entry.records.len();
            fits
        });
        some.cloned().collect()
    }

    /// `by_nonce`: the rule is kept.
    pub fn settled(&mut self, partition: Partition, pairs: &[(u64, u64)], by_nonce: bool) -> u64 {
        let outbox = self.outboxes.entry(partition).or_default();
        outbox.entries.retain(|entry| {
            let named =
                |(id, nonce): &(u64, u64)| *id == entry.id && (!by_nonce || *nonce == entry.nonce);
            !pairs.iter().any(named)
        });
        let first = outbox.entries.first();
        first.map_or(outbox.last, |entry| entry.id - 1)
    }

    /// An outbox is deleted behind everybody's back: its numbers begin again.
    pub fn lose_outbox(&mut self, partition: Partition) {
        let Some(outbox) = self.outboxes.remove(&partition) else {
            return;
        };
        let records = outbox.entries.into_iter().flat_map(|entry| entry.records);
        self.lost
            .extend(records.map(|record| (record.envelope, record.grant.share)));
    }

    pub fn owes(&self, id: EnvelopeId) -> bool {
        let outbox = self.outboxes.get(&self.partition(id));
        let entries = outbox.into_iter().flat_map(|outbox| &outbox.entries);
        entries
            .flat_map(|entry| &entry.records)
            .any(|record| record.envelope == id)
    }

    pub fn remove(&mut self, ids: Vec<EnvelopeId>) {
        for id in ids {
            let owes = self.owes(id);
            let over = |kept: &Kept| matches!(kept.should.state, HotState::Over(_));
            let free = |kept: &Kept| over(kept) && kept.should.frozen.is_none();
            if !owes && self.envelopes.get(&id).is_some_and(free) {
                self.envelopes.remove(&id);
            }
        }
    }

    /// Nothing is lost here, so only what ends before it was loaded is ever rebuilt.
    pub fn repair(&mut self, repair: Repair) -> Result<HotState, HotError> {
        if let Some(kept) = self.envelopes.get(&repair.envelope) {
            return Ok(kept.should.state);
        }
        let Some(over) = repair.over else {
            return Err(HotError::Mismatch("a live envelope was lost".to_owned()));
        };
        let state = HotState::Over(over);
        let mut should = Should::new(state, true);
        let claims = repair.claims.into_iter();
        should.held = claims.map(|held| (held.grant.share, held)).collect();
        let cast = Cast {
            id: repair.envelope,
            terms: repair.terms,
            amounts: repair.amounts_minor.to_vec(),
        };
        self.envelopes
            .insert(repair.envelope, Kept { cast, should });
        Ok(state)
    }
}
