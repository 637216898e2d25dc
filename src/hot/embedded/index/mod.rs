//! Decides, in memory, who gets which share: the only place that says yes.
//!
//! | file | decides about |
//! |---|---|
//! | `grab` | grabs and declines |
//! | `lifecycle` | loading, opening, closing, freezing, removing |
//! | this one | how a change is made, what a look shows |
//!
//! # Shape
//! A function takes the question and the time, changes the index, pushes what it changed onto
//! the batch, and returns the answer. The answer may be told once the batch is on disk.
//! `apply` makes the same changes from the log, at start.
//!
//! # Ordering
//! Questions about one envelope are answered in the order in which they come. Two grabs of one
//! grabber, or the last share in the middle of a call, need no special case.
//!
//! # If it crashes here
//! Nothing is lost that anybody was told. The index is rebuilt from snapshots and log.
//!
//! # Not here
//! IO, the clock, locks: one thread owns the index.

mod grab;
mod lifecycle;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap};

use super::envelope::{Broken, Envelope};
use super::record::{Change, What};
use crate::domain::envelope::HotState;
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, PersonId, UnixMs};
use crate::hot::{HotView, Mark};

/// Envelopes that one row may begin: `born` is the row's number times this plus a count.
const BORN_PER_ROW: u64 = 1 << 16;

/// What a batch is: when, which row it will be, and what it has changed so far.
pub(super) struct Batch {
    pub now: UnixMs,
    pub seq: u64,
    pub changes: Vec<Change>,
    begun: u64,
}

impl Batch {
    pub fn new(seq: u64, now: UnixMs) -> Self {
        Self {
            now,
            seq,
            changes: Vec::new(),
            begun: 0,
        }
    }

    fn born(&mut self) -> u64 {
        let born = self.seq * BORN_PER_ROW + self.begun;
        self.begun += 1;
        born
    }

    /// Counts a beginning that is not applied, so that the later ones keep their names.
    pub fn skip_born(&mut self, what: &What) {
        if matches!(what, What::Created(_)) {
            self.born();
        }
    }
}

#[derive(Default)]
pub(super) struct Index {
    /// The hasher is keyed at random in each process (foldhash), since clients choose names.
    hasher: DefaultHashBuilder,
    envelopes: HashMap<EnvelopeId, Envelope>,
    /// The same ids in order, for those who walk.
    ids: BTreeSet<EnvelopeId>,
    /// By the oldest row that no snapshot covers.
    dirty: BTreeSet<(u64, EnvelopeId)>,
    /// Those that stand still: few, and settlement asks for them every second.
    marked: BTreeMap<EnvelopeId, Mark>,
}

impl Index {
    pub fn len(&self) -> usize {
        self.envelopes.len()
    }

    pub fn get(&self, id: EnvelopeId) -> Option<&Envelope> {
        self.envelopes.get(&id)
    }

    // ── change ──────────────────────────────────────────────────────────────────────────────────────

    /// Makes a change and remembers it for the log. A change that would break an invariant is
    /// our bug: the envelope is frozen, nobody is paid twice.
    fn make(&mut self, batch: &mut Batch, envelope: EnvelopeId, what: What) -> Result<(), Broken> {
        let change = Change { envelope, what };
        if let Err(broken) = self.apply(batch, &change) {
            tracing::error!(%envelope, broken, "an invariant would break: the envelope is frozen");
            let freeze = Change {
                envelope,
                what: What::Frozen(Some(Mark::Broken)),
            };
            if self.apply(batch, &freeze).is_ok() {
                batch.changes.push(freeze);
            }
            return Err(broken);
        }
        batch.changes.push(change);
        Ok(())
    }

    /// Makes a change, or none where it would break an invariant.
    pub fn apply(&mut self, batch: &mut Batch, change: &Change) -> Result<(), Broken> {
        let id = change.envelope;
        if let What::Created(terms) = &change.what {
            let envelope = Envelope::created(Arc::clone(terms), batch.born());
            if self.envelopes.contains_key(&id) {
                return Err("an envelope begins twice");
            }
            self.insert(id, envelope);
        }
        let envelope = self
            .envelopes
            .get_mut(&id)
            .ok_or("a change to an envelope that does not exist")?;
        match &change.what {
            What::Created(_) => {}
            What::Loaded {
                offset,
                amounts_minor,
            } => {
                if envelope.state != HotState::Funding {
                    return Err("shares are loaded after the envelope opened");
                }
                envelope.put_amounts(*offset, amounts_minor)?;
            }
            What::Opened => envelope.go_live()?,
            What::OpeningSeen => envelope.opening_seen = true,
            What::Over(reason) => envelope.end(*reason)?,
            What::Taken {
                grabber,
                grant,
                declined,
            } => {
                if envelope.state != HotState::Live {
                    return Err("a share is given while the envelope is not live");
                }
                envelope.give(&self.hasher, grabber, *grant, *declined)?;
                envelope.last_debt_seq = batch.seq;
            }
            What::WrongTry(grabber) => envelope.count_wrong_try(grabber),
            What::Frozen(mark) => {
                envelope.frozen = *mark;
                match mark {
                    Some(mark) => self.marked.insert(id, *mark),
                    None => self.marked.remove(&id),
                };
            }
            What::Removed => {
                self.forget(id);
                return Ok(());
            }
        }
        if envelope.dirty_since.is_none() {
            envelope.dirty_since = Some(batch.seq);
            self.dirty.insert((batch.seq, id));
        }
        Ok(())
    }

    /// Takes an envelope in, from a snapshot or newly begun.
    pub fn insert(&mut self, id: EnvelopeId, envelope: Envelope) {
        self.ids.insert(id);
        if let Some(mark) = envelope.frozen {
            self.marked.insert(id, mark);
        }
        self.envelopes.insert(id, envelope);
    }

    fn forget(&mut self, id: EnvelopeId) -> Option<Envelope> {
        self.ids.remove(&id);
        self.marked.remove(&id);
        let envelope = self.envelopes.remove(&id)?;
        if let Some(since) = envelope.dirty_since {
            self.dirty.remove(&(since, id));
        }
        Some(envelope)
    }

    /// The hasher that finds grabbers; a snapshot's holders come back through it.
    pub fn hasher(&self) -> &DefaultHashBuilder {
        &self.hasher
    }

    // ── snapshots ───────────────────────────────────────────────────────────────────────────────────

    /// The oldest row that some envelope still needs.
    pub fn oldest_dirty(&self) -> Option<u64> {
        self.dirty.first().map(|(seq, _)| *seq)
    }

    /// The envelope that needs the oldest row.
    pub fn dirtiest(&mut self) -> Option<(EnvelopeId, &mut Envelope)> {
        let (_, id) = self.dirty.first()?;
        Some((*id, self.envelopes.get_mut(id)?))
    }

    /// A snapshot covers the envelope.
    pub fn cleaned(&mut self, id: EnvelopeId) {
        let since = self
            .envelopes
            .get_mut(&id)
            .and_then(|e| e.dirty_since.take());
        if let Some(since) = since {
            self.dirty.remove(&(since, id));
        }
    }

    // ── reads ───────────────────────────────────────────────────────────────────────────────────────

    /// How far an envelope is.
    pub fn view(&self, id: EnvelopeId) -> Option<HotView> {
        let envelope = self.envelopes.get(&id)?;
        Some(HotView {
            envelope: id,
            terms: Arc::clone(&envelope.terms),
            state: envelope.state,
            frozen: envelope.frozen,
            taken_count: envelope.taken_count,
            taken_minor: envelope.taken_minor,
            declined_count: u32::try_from(envelope.declined.len()).unwrap_or(u32::MAX),
            best: envelope.best(),
            stale: false,
            gathered: false,
        })
    }

    /// What somebody holds of an envelope.
    pub fn held(&self, grabber: &PersonId, id: EnvelopeId) -> Option<HeldShare> {
        let envelope = self.envelopes.get(&id)?;
        envelope.held(self.seen(envelope, grabber)?.share)
    }

    /// Shares from a number on.
    pub fn grants(&self, id: EnvelopeId, from: u32, limit: usize) -> Option<Vec<HeldShare>> {
        let envelope = self.envelopes.get(&id)?;
        let end = u32::try_from(envelope.holders.len()).unwrap_or(u32::MAX);
        let held = (from..end).filter_map(|share| envelope.held(share));
        Some(held.take(limit).collect())
    }

    /// Marked envelopes above one, ascending.
    pub fn marked_after(&self, after: Option<EnvelopeId>, limit: usize) -> Vec<(EnvelopeId, Mark)> {
        let from = after.map_or(Unbounded, Excluded);
        let marked = self.marked.range((from, Unbounded));
        marked.take(limit).map(|(id, mark)| (*id, *mark)).collect()
    }

    /// Ids above one, ascending.
    pub fn ids_after(&self, after: Option<EnvelopeId>, limit: usize) -> Vec<EnvelopeId> {
        let from = after.map_or(Unbounded, Excluded);
        let ids = self.ids.range((from, Unbounded));
        ids.take(limit).copied().collect()
    }
}
