//! One envelope in memory: its shares, who holds them, and the moves that keep them unique.
//!
//! # Shape
//! Every move checks before it writes. The same moves serve the burst and the replay at start,
//! so a log that would pay a share or a grabber twice can't be loaded.
//!
//! # Bounds
//! Room for every share is reserved when the envelope opens, so that no grab in the middle of a
//! burst pays for moving ten million entries: 24 bytes a holder, about 9 for finding him, 8 the
//! amount, and his name.
//!
//! # Not here
//! Who may grab when (`index`), the disk (`log`, `snapshot`).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

use crate::domain::audience::{WRONG_TRIES_PER_ENVELOPE_MAX, WRONG_TRIES_PER_GRABBER_MAX};
use crate::domain::envelope::{CloseReason, HotState, Kind, Terms};
use crate::domain::grab::{Grant, HeldShare};
use crate::domain::id::{PersonId, UnixMs};
use crate::domain::money::AMOUNT_MINOR_MAX;
use crate::hot::Mark;

/// Who holds a share. The share's number is its place, the amount is in the amounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub grabber: PersonId,
    pub at: UnixMs,
}

/// Wrong passphrases so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Tries {
    pub total: u32,
    pub by_grabber: HashMap<PersonId, u32>,
}

/// Of the shares loaded so far, so that opening ten million of them is no work.
#[derive(Clone, Debug, Default)]
struct Loading {
    crc: crc32fast::Hasher,
    sum_minor: i64,
}

/// What of an envelope the disk has outside the log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Saved {
    pub terms: bool,
    pub amounts: usize,
    pub holders: usize,
}

/// An invariant that a move would have broken.
pub(super) type Broken = &'static str;

pub(super) struct Envelope {
    pub terms: Arc<Terms>,
    /// Names this envelope's rows on disk; unique for ever, also if the id should come back.
    pub born: u64,
    pub state: HotState,
    pub opening_seen: bool,
    pub frozen: Option<Mark>,
    pub tries: Tries,
    /// The newest row that owes something for this envelope; 0: none does.
    pub last_debt_seq: u64,
    /// The oldest row that no snapshot covers.
    pub dirty_since: Option<u64>,
    pub saved: Saved,
    /// By share number, as far as they are loaded. Untaken ones are dropped at the end.
    pub amounts: Vec<i64>,
    loading: Loading,
    /// By share number. Only EXCLUSIVE envelopes have gaps.
    pub holders: Vec<Option<Holder>>,
    seen: HashTable<u32>,
    pub declined: BTreeSet<u32>,
    pub taken_count: u32,
    pub taken_minor: i64,
    best: Option<u32>,
}

impl Envelope {
    /// Funding, without shares.
    pub fn created(terms: Arc<Terms>, born: u64) -> Self {
        let opening_seen = terms.opens_at.is_none();
        Self {
            terms,
            born,
            state: HotState::Funding,
            opening_seen,
            frozen: None,
            tries: Tries::default(),
            last_debt_seq: 0,
            dirty_since: None,
            saved: Saved::default(),
            amounts: Vec::new(),
            loading: Loading::default(),
            holders: Vec::new(),
            seen: HashTable::new(),
            declined: BTreeSet::new(),
            taken_count: 0,
            taken_minor: 0,
            best: None,
        }
    }

    pub fn exclusive(&self) -> bool {
        self.terms.kind == Kind::Exclusive
    }

    fn share_count(&self) -> usize {
        usize::try_from(self.terms.share_count).expect("usize holds a u32")
    }

    /// Puts shares down, without a gap. Says whether that changed anything.
    pub fn put_amounts(&mut self, offset: u32, amounts_minor: &[i64]) -> Result<bool, Broken> {
        let from = usize::try_from(offset).expect("usize holds a u32");
        if from > self.amounts.len() {
            return Err("a chunk leaves a gap before it");
        }
        if from.saturating_add(amounts_minor.len()) > self.share_count() {
            return Err("a chunk reaches beyond the last share");
        }
        let (known, fresh) =
            amounts_minor.split_at(amounts_minor.len().min(self.amounts.len() - from));
        if self.amounts[from..from + known.len()] != *known {
            return Err("a share was loaded before with another amount");
        }
        if !fresh.iter().all(|a| (1..=AMOUNT_MINOR_MAX).contains(a)) {
            return Err("an amount is out of range");
        }
        if self.amounts.is_empty() {
            // Untouched memory costs nothing, and ten million amounts are never moved.
            self.amounts.reserve_exact(self.share_count());
        }
        self.amounts.extend_from_slice(fresh);
        for amount in fresh {
            self.loading.crc.update(&amount.to_le_bytes());
            self.loading.sum_minor = self.loading.sum_minor.saturating_add(*amount);
        }
        Ok(!fresh.is_empty())
    }

    /// Whether every share is there and they are those that `checksum` was taken of.
    pub fn complete(&self, checksum: u32) -> Result<(), String> {
        let count = self.share_count();
        let loaded = self.amounts.len();
        if loaded != count {
            return Err(format!("{loaded} of {count} shares are loaded"));
        }
        if self.loading.sum_minor != self.terms.total_minor {
            return Err("they don't add up to the total".into());
        }
        let named = self.terms.exclusive.iter().map(|s| s.amount_minor);
        if self.exclusive() && !named.eq(self.amounts.iter().copied()) {
            return Err("they are not those of the named grabbers".into());
        }
        if self.loading.crc.clone().finalize() != checksum {
            return Err("the checksum is another one".into());
        }
        Ok(())
    }

    /// Makes it Live and reserves room for all who may come.
    pub fn go_live(&mut self) -> Result<(), Broken> {
        if self.state != HotState::Funding || self.amounts.len() != self.share_count() {
            return Err("it opens before it is loaded, or twice");
        }
        self.state = HotState::Live;
        self.reserve();
        Ok(())
    }

    fn reserve(&mut self) {
        let count = self.share_count();
        if self.exclusive() {
            self.holders.resize(count, None);
        } else {
            self.holders.reserve_exact(count - self.holders.len());
        }
        if self.seen.is_empty() {
            self.seen = HashTable::with_capacity(count);
        }
    }

    /// Ends it. The first reason stands.
    pub fn end(&mut self, reason: CloseReason) -> Result<(), Broken> {
        if matches!(self.state, HotState::Over(_)) {
            return Err("it ends twice");
        }
        self.state = HotState::Over(reason);
        self.drop_untaken();
        Ok(())
    }

    fn drop_untaken(&mut self) {
        if !self.exclusive() {
            self.amounts.truncate(self.holders.len());
            self.amounts.shrink_to_fit();
            self.holders.shrink_to_fit();
        }
        self.loading = Loading::default();
    }

    /// The number of somebody's share.
    pub fn share_of(&self, hash: u64, grabber: &PersonId) -> Option<u32> {
        let same = |share: &u32| {
            self.holder(*share)
                .is_some_and(|h| h.grabber.as_str() == grabber.as_str())
        };
        self.seen.find(hash, same).copied()
    }

    fn holder(&self, share: u32) -> Option<&Holder> {
        let place = usize::try_from(share).expect("usize holds a u32");
        self.holders.get(place)?.as_ref()
    }

    /// What was told to the holder of a share.
    pub fn grant(&self, share: u32) -> Option<Grant> {
        let place = usize::try_from(share).expect("usize holds a u32");
        Some(Grant {
            share,
            amount_minor: *self.amounts.get(place)?,
            at: self.holder(share)?.at,
        })
    }

    /// A share that somebody holds.
    pub fn held(&self, share: u32) -> Option<HeldShare> {
        Some(HeldShare {
            grabber: self.holder(share)?.grabber.clone(),
            grant: self.grant(share)?,
            declined: self.declined.contains(&share),
        })
    }

    /// The share that somebody would get now: the next, or the one that is held for a name.
    pub fn offer(&self, grabber: &PersonId) -> Option<u32> {
        if self.exclusive() {
            return self.terms.exclusive_share_of(grabber);
        }
        let next = u32::try_from(self.holders.len()).ok()?;
        (next < self.terms.share_count).then_some(next)
    }

    /// Gives a share away. Nothing happens where it would be the second time, for the share or
    /// for the grabber.
    pub fn give(
        &mut self,
        hasher: &DefaultHashBuilder,
        grabber: &PersonId,
        grant: Grant,
        declined: bool,
    ) -> Result<(), Broken> {
        let hash = hasher.hash_one(grabber.as_str());
        let place = usize::try_from(grant.share).expect("usize holds a u32");
        if self.state == HotState::Funding {
            return Err("a share is given before the envelope is open");
        }
        if self.offer(grabber) != Some(grant.share) {
            return Err("a share is given out of its turn");
        }
        if self.amounts.get(place) != Some(&grant.amount_minor) {
            return Err("a share is given with another amount");
        }
        if self.holder(grant.share).is_some() {
            return Err("a share is given twice");
        }
        if self.share_of(hash, grabber).is_some() {
            return Err("a grabber is given two shares");
        }
        let holder = Some(Holder {
            grabber: grabber.clone(),
            at: grant.at,
        });
        match self.holders.get_mut(place) {
            Some(free) => *free = holder,
            None => self.holders.push(holder),
        }
        let holders = &self.holders;
        self.seen.insert_unique(hash, grant.share, |share| {
            let place = usize::try_from(*share).expect("usize holds a u32");
            let name = holders[place].as_ref().map(|h| h.grabber.as_str());
            hasher.hash_one(name.unwrap_or_default())
        });
        self.taken_count = self.taken_count.saturating_add(1);
        self.taken_minor = self.taken_minor.saturating_add(grant.amount_minor);
        if declined {
            self.declined.insert(grant.share);
        } else if self.beats_best(grant) {
            self.best = Some(grant.share);
        }
        Ok(())
    }

    fn beats_best(&self, grant: Grant) -> bool {
        let best = self.best.and_then(|share| self.grant(share));
        best.is_none_or(|best| {
            grant.amount_minor > best.amount_minor
                || (grant.amount_minor == best.amount_minor && grant.share < best.share)
        })
    }

    /// The largest share that was taken, once the envelope is over.
    pub fn best(&self) -> Option<HeldShare> {
        match self.state {
            HotState::Over(_) => self.held(self.best?),
            _ => None,
        }
    }

    pub fn all_taken(&self) -> bool {
        self.taken_count == self.terms.share_count
    }

    pub fn tries_used_up(&self, grabber: &PersonId) -> bool {
        let by = self.tries.by_grabber.get(grabber).copied().unwrap_or(0);
        by >= WRONG_TRIES_PER_GRABBER_MAX || self.tries.total >= WRONG_TRIES_PER_ENVELOPE_MAX
    }

    pub fn count_wrong_try(&mut self, grabber: &PersonId) {
        self.tries.total = self.tries.total.saturating_add(1);
        let by = self.tries.by_grabber.entry(grabber.clone()).or_default();
        *by = by.saturating_add(1);
    }

    /// Gives back the state that a snapshot's header names, before its holders come.
    pub fn restore(&mut self, state: HotState) {
        self.state = state;
        if state != HotState::Funding {
            self.reserve();
        }
    }

    /// Drops what an envelope that is over does not need, after its holders came back.
    pub fn restored(&mut self) {
        if matches!(self.state, HotState::Over(_)) {
            self.drop_untaken();
        }
    }

    /// Bytes on the heap, names aside: what a share costs, for the test that bounds it.
    #[cfg(test)]
    pub fn heap_bytes(&self) -> usize {
        size_of_val(self.amounts.as_slice())
            + self.holders.capacity() * size_of::<Option<Holder>>()
            + self.seen.allocation_size()
    }
}
