//! What this process has acknowledged and the ledger does not have yet: a Redis that comes back with
//! less is told again.
//!
//! # Shape
//! | moment | what |
//! |---|---|
//! | a win is acknowledged | it is kept under the nonce of its outbox entry |
//! | the entry is deleted by `settled` | it leaves |
//! | a new epoch begins | all that is kept is orphaned: the store that held it may be gone |
//! | an envelope is repaired | its orphans join what the books and the store still know of it; those in the books leave |
//! | an envelope is forgotten | its orphans leave |
//!
//! # Bounds
//! [`ACKED_KEPT_MAX`] grants, and as many orphans; what is beyond is dropped and counted.
//!
//! # If it crashes here
//! The store has everything, or at the level `memory` what it lost is lost: nobody is paid twice and
//! what was promised to nobody in the books goes on to others or back to the sender.
//!
//! # Not here
//! The debt of an adopted grant: the reconciler posts it, since no outbox owes it.

use std::collections::{HashMap, HashSet, VecDeque};

use parking_lot::Mutex;

use crate::domain::grab::HeldShare;
use crate::domain::id::EnvelopeId;
use crate::telemetry::metrics;

/// Grants that are kept: 120 bytes each, 60 MB. A drain that keeps up leaves a tenth of a second's;
/// at 60,000/s this is what eight seconds without a ledger leave.
pub const ACKED_KEPT_MAX: usize = 500_000;

/// Nonces of settled entries that may stay in the order.
const LEFT_IN_ORDER_MAX: usize = 1_024;

/// See the module.
#[derive(Default)]
pub struct Acked {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// By the nonce of the outbox entry.
    entries: HashMap<u64, Vec<(EnvelopeId, HeldShare)>>,
    /// Nonces, the oldest first; some may have left.
    order: VecDeque<u64>,
    grants: usize,
    orphans: HashMap<EnvelopeId, Vec<HeldShare>>,
    orphaned: usize,
}

impl Acked {
    /// These were acknowledged together, under this nonce.
    pub fn keep(&self, nonce: u64, wins: Vec<(EnvelopeId, HeldShare)>) {
        if wins.is_empty() {
            return;
        }
        let mut kept = self.kept.lock();
        kept.grants += wins.len();
        kept.order.push_back(nonce);
        kept.entries.insert(nonce, wins);
        let mut dropped = 0;
        while kept.grants > ACKED_KEPT_MAX
            && let Some(oldest) = kept.order.pop_front()
        {
            dropped += kept.leave(oldest);
        }
        if dropped > 0 {
            metrics::acked_dropped(dropped);
        }
    }

    /// The ledger has them.
    pub fn settled(&self, nonces: impl Iterator<Item = u64>) {
        let mut kept = self.kept.lock();
        for nonce in nonces {
            kept.leave(nonce);
        }
        // Settled nonces leave the order now and then, also behind one that never is.
        if kept.order.len() > 2 * kept.entries.len() + LEFT_IN_ORDER_MAX {
            let Kept { entries, order, .. } = &mut *kept;
            order.retain(|nonce| entries.contains_key(nonce));
        }
    }

    /// Another process of the store stands there, or the same one without its data. What earlier
    /// losses left behind was about envelopes that nobody touched since: it is about them still.
    pub fn orphan(&self) {
        let mut kept = self.kept.lock();
        let entries = std::mem::take(&mut kept.entries);
        kept.order.clear();
        kept.grants = 0;
        let mut dropped = 0;
        for (envelope, held) in entries.into_values().flatten() {
            if kept.orphaned >= ACKED_KEPT_MAX {
                dropped += 1;
                continue;
            }
            kept.orphaned += 1;
            kept.orphans.entry(envelope).or_default().push(held);
        }
        if dropped > 0 {
            metrics::acked_dropped(dropped);
        }
    }

    /// What was acknowledged of an envelope before this epoch, as far as it was not known to be in
    /// the books.
    pub fn orphans_of(&self, envelope: EnvelopeId) -> Vec<HeldShare> {
        let kept = self.kept.lock();
        kept.orphans.get(&envelope).cloned().unwrap_or_default()
    }

    /// The envelope holds them again. Those that the books have leave; the others stay, since no
    /// outbox owes them yet and the store may be lost once more.
    pub fn adopted(&self, envelope: EnvelopeId, claims: &[HeldShare]) {
        let mut kept = self.kept.lock();
        let Some(mut orphans) = kept.orphans.remove(&envelope) else {
            return;
        };
        let before = orphans.len();
        let claimed: HashSet<u32> = claims.iter().map(|claim| claim.grant.share).collect();
        orphans.retain(|held| !claimed.contains(&held.grant.share));
        kept.orphaned -= before - orphans.len();
        if !orphans.is_empty() {
            kept.orphans.insert(envelope, orphans);
        }
    }

    /// The envelope is over, in the books and forgotten.
    pub fn forgotten(&self, envelope: EnvelopeId) {
        let mut kept = self.kept.lock();
        let left = kept.orphans.remove(&envelope).map_or(0, |held| held.len());
        kept.orphaned -= left;
    }
}

impl Kept {
    /// Forgets an entry; answers how many grants it had.
    fn leave(&mut self, nonce: u64) -> usize {
        let left = self.entries.remove(&nonce).map_or(0, |wins| wins.len());
        self.grants -= left;
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grab::Grant;
    use crate::domain::id::{PersonId, UnixMs};

    fn id(n: u16) -> EnvelopeId {
        EnvelopeId::from_parts(n, [0; 14])
    }

    fn held(share: u32) -> HeldShare {
        HeldShare {
            grabber: PersonId::parse(&format!("g{share}")).unwrap(),
            grant: Grant {
                share,
                amount_minor: 1,
                at: UnixMs(0),
            },
            declined: false,
        }
    }

    #[test]
    fn what_was_not_settled_is_orphaned_by_a_new_epoch_until_the_books_have_it() {
        let acked = Acked::default();
        acked.keep(1, vec![(id(1), held(0)), (id(2), held(0))]);
        acked.keep(2, vec![(id(1), held(1))]);
        assert!(acked.orphans_of(id(1)).is_empty());
        acked.settled([1].into_iter());
        acked.orphan();
        assert_eq!(acked.orphans_of(id(1)), [held(1)]);
        assert!(acked.orphans_of(id(2)).is_empty());
        // Adopted and not in the books: the store may be lost again before they are.
        acked.adopted(id(1), &[held(0)]);
        assert_eq!(acked.orphans_of(id(1)), [held(1)]);
        acked.adopted(id(1), &[held(0), held(1)]);
        assert!(acked.orphans_of(id(1)).is_empty());
    }

    #[test]
    fn the_oldest_leave_when_too_many_are_kept() {
        let acked = Acked::default();
        let many = |from: u32| {
            let half = u32::try_from(ACKED_KEPT_MAX / 2 + 1).unwrap();
            (from..from + half)
                .map(|share| (id(1), held(share)))
                .collect()
        };
        acked.keep(1, many(0));
        acked.keep(2, many(1_000_000));
        acked.orphan();
        let left = acked.orphans_of(id(1));
        assert_eq!(left.len(), ACKED_KEPT_MAX / 2 + 1);
        assert_eq!(left[0], held(1_000_000));
    }
}
