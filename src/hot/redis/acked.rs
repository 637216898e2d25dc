//! What this process has acknowledged and the ledger does not have yet: a Redis that comes back with
//! less is told again.
//!
//! # Shape
//! | moment | what |
//! |---|---|
//! | a win is acknowledged | it is kept under the nonce of its outbox entry, with partition and epoch |
//! | the entry is deleted by `settled` | it leaves |
//! | a look at a partition finds that all before a moment is settled, by whichever process | what is older leaves |
//! | a partition goes to a new epoch | what is kept of older ones is orphaned: the store that held it may be gone |
//! | a partition goes to a new epoch between the reading of a reply and this | its wins are orphans at once |
//! | an envelope is repaired | its orphans join what the books and the store still know of it; those in the books leave |
//! | an orphan's share is another's in the books | it is posted (`settle::promises`), made good, and leaves |
//! | an envelope is forgotten | its orphans leave |
//!
//! # Bounds
//! [`ACKED_KEPT_MAX`] grants, and as many orphans; what is beyond is dropped, the oldest first, and
//! counted.
//!
//! # If it crashes here
//! The store has everything, or at the level `memory` what it lost is lost: nobody is paid twice and
//! what was promised to nobody in the books goes on to others or back to the sender. A promise that nobody
//! remembers can't be made good.
//!
//! # Not here
//! The debt of an adopted grant: the reconciler posts it, since no outbox owes it. A share that was
//! told only by a repetition: the reply of its win was lost between Redis and the process that sent
//! the grab, so no process kept it, and at the level `memory` it is lost with Redis alone (ADR 0005).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;

use parking_lot::Mutex;

use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, Epoch, Partition, UnixMs};
use crate::telemetry::metrics;

/// Grants that are kept: 120 bytes each, 60 MB. A drain that keeps up leaves a tenth of a second's;
/// at 60,000/s this is what eight seconds without a ledger leave.
pub const ACKED_KEPT_MAX: usize = 500_000;

/// How much older than the head of an outbox a grant must be to be behind it for certain: clocks of
/// servers are set back by less.
pub const CLOCK_STEP_MS_MAX: i64 = 5_000;

/// Nonces of settled entries that may stay in the order.
const LEFT_IN_ORDER_MAX: usize = 1_024;

/// See the module.
#[derive(Default)]
pub struct Acked {
    kept: Mutex<Kept>,
}

/// What one outbox entry owes, as far as this process was told.
struct Entry {
    partition: Partition,
    epoch: Epoch,
    /// How many entries were kept before it.
    number: u64,
    wins: Vec<(EnvelopeId, HeldShare)>,
}

/// What a look at a partition's outbox found.
#[derive(Clone, Copy, Debug)]
pub enum Head {
    /// Nothing is owed.
    Empty,
    /// The oldest entry, and when it was granted.
    At(UnixMs),
}

#[derive(Default)]
struct Kept {
    /// By the nonce of the outbox entry.
    entries: HashMap<u64, Entry>,
    /// Nonces, the oldest first; some may have left.
    order: VecDeque<u64>,
    grants: usize,
    /// Entries that were ever kept.
    numbered: u64,
    orphans: BTreeMap<EnvelopeId, Vec<HeldShare>>,
    orphaned: usize,
    /// The newest epoch of each partition that had more than one.
    newest: HashMap<Partition, Epoch>,
}

impl Acked {
    /// These were acknowledged together, in this epoch and under this nonce.
    pub fn keep(
        &self,
        (partition, epoch): (Partition, Epoch),
        nonce: u64,
        wins: Vec<(EnvelopeId, HeldShare)>,
    ) {
        if wins.is_empty() {
            return;
        }
        let mut kept = self.kept.lock();
        let mut dropped = 0;
        if kept
            .newest
            .get(&partition)
            .is_some_and(|newest| *newest > epoch)
        {
            dropped += kept.orphan(wins);
        } else {
            kept.grants += wins.len();
            kept.order.push_back(nonce);
            let number = kept.numbered;
            kept.numbered += 1;
            let entry = Entry {
                partition,
                epoch,
                number,
                wins,
            };
            kept.entries.insert(nonce, entry);
        }
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
        kept.tidy();
    }

    /// How many entries were kept so far: what [`Acked::passed`] is told with a look that is begun now.
    pub fn numbered(&self) -> u64 {
        self.kept.lock().numbered
    }

    /// A look at outboxes, begun when `before` entries had been kept, found these heads: what is older
    /// was settled, by this process or another one.
    pub fn passed(&self, before: u64, heads: &HashMap<Partition, Head>) {
        let mut kept = self.kept.lock();
        let mut left = 0;
        kept.entries.retain(|_, entry| {
            let settled = entry.number < before
                && match heads.get(&entry.partition) {
                    None => false,
                    Some(Head::Empty) => true,
                    Some(Head::At(oldest)) => entry
                        .wins
                        .iter()
                        .all(|(_, held)| held.grant.at.0 < oldest.0 - CLOCK_STEP_MS_MAX),
                };
            if settled {
                left += entry.wins.len();
            }
            !settled
        });
        kept.grants -= left;
        kept.tidy();
    }

    /// A partition stands in this epoch: on another process of the store, or on the same one without
    /// its data. What earlier losses left behind was about envelopes that nobody touched since: it is
    /// about them still.
    pub fn orphan(&self, partition: Partition, epoch: Epoch) {
        let mut kept = self.kept.lock();
        let newest = kept.newest.entry(partition).or_insert(epoch);
        *newest = epoch.max(*newest);
        let Kept { entries, order, .. } = &mut *kept;
        let older = |entry: &mut Entry| entry.partition == partition && entry.epoch < epoch;
        let mut lost: HashMap<u64, Entry> = entries.extract_if(|_, entry| older(entry)).collect();
        // The newest first, so that the oldest are dropped where there are too many.
        let wins: Vec<_> = order
            .iter()
            .rev()
            .filter_map(|nonce| lost.remove(nonce))
            .flat_map(|entry| entry.wins)
            .collect();
        order.retain(|nonce| entries.contains_key(nonce));
        kept.grants -= wins.len();
        let dropped = kept.orphan(wins);
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

    /// The orphans of at most so many envelopes behind `after`, in their order.
    pub fn orphans(
        &self,
        after: Option<EnvelopeId>,
        envelopes_max: usize,
    ) -> Vec<(EnvelopeId, Vec<HeldShare>)> {
        let kept = self.kept.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = kept.orphans.range((from, Bound::Unbounded));
        let some = behind.take(envelopes_max);
        some.map(|(id, held)| (*id, held.clone())).collect()
    }

    /// The envelope holds them again. Those that the books have leave; the others stay, since no
    /// outbox owes them yet and the store may be lost once more, or their shares may be another's.
    pub fn adopted(&self, envelope: EnvelopeId, claims: &[HeldShare]) {
        let mut kept = self.kept.lock();
        let Some(mut orphans) = kept.orphans.remove(&envelope) else {
            return;
        };
        let before = orphans.len();
        let name = |held: &HeldShare| (held.grant.share, held.grabber.clone());
        let claimed: HashSet<_> = claims.iter().map(name).collect();
        orphans.retain(|held| !claimed.contains(&name(held)));
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
        let left = self.entries.remove(&nonce);
        let left = left.map_or(0, |entry| entry.wins.len());
        self.grants -= left;
        left
    }

    /// Settled nonces leave the order now and then, also behind one that never is.
    fn tidy(&mut self) {
        if self.order.len() > 2 * self.entries.len() + LEFT_IN_ORDER_MAX {
            let Self { entries, order, .. } = self;
            order.retain(|nonce| entries.contains_key(nonce));
        }
    }

    /// Nothing owes them but this process; answers how many were too many.
    fn orphan(&mut self, wins: Vec<(EnvelopeId, HeldShare)>) -> usize {
        let fit = (ACKED_KEPT_MAX - self.orphaned).min(wins.len());
        let dropped = wins.len() - fit;
        self.orphaned += fit;
        for (envelope, held) in wins.into_iter().take(fit) {
            self.orphans.entry(envelope).or_default().push(held);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grab::Grant;
    use crate::domain::id::PersonId;

    const FIRST: (Partition, Epoch) = (Partition::ZERO, Epoch(1));

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
        acked.keep(FIRST, 1, vec![(id(1), held(0)), (id(2), held(0))]);
        acked.keep(FIRST, 2, vec![(id(1), held(1))]);
        assert!(acked.orphans_of(id(1)).is_empty());
        acked.settled([1].into_iter());
        acked.orphan(FIRST.0, Epoch(2));
        assert_eq!(acked.orphans_of(id(1)), [held(1)]);
        assert!(acked.orphans_of(id(2)).is_empty());
        // Another's share: who was told of it is owed what it is worth.
        let others = HeldShare {
            grabber: PersonId::parse("another").unwrap(),
            ..held(1)
        };
        acked.adopted(id(1), &[others]);
        assert_eq!(acked.orphans(None, 1), [(id(1), vec![held(1)])]);
        assert!(acked.orphans(Some(id(1)), 1).is_empty());
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
        acked.keep(FIRST, 1, many(0));
        acked.keep(FIRST, 2, many(1_000_000));
        acked.orphan(FIRST.0, Epoch(2));
        let left = acked.orphans_of(id(1));
        assert_eq!(left.len(), ACKED_KEPT_MAX / 2 + 1);
        assert_eq!(left[0], held(1_000_000));
        // The same of orphans: of two losses at once, what was told last stays.
        let other = (Partition::new(1).unwrap(), Epoch(1));
        acked.keep(other, 3, vec![(id(2), held(0))]);
        acked.keep(other, 4, many(2_000_000));
        acked.orphan(other.0, Epoch(2));
        assert!(acked.orphans_of(id(2)).is_empty());
        assert_eq!(acked.orphans_of(id(1)).len(), ACKED_KEPT_MAX);
    }

    #[test]
    fn what_another_process_settled_leaves_when_the_outbox_is_found_empty_or_farther() {
        let acked = Acked::default();
        let at = |share, at| {
            let mut held = held(share);
            held.grant.at = UnixMs(at);
            (id(1), held)
        };
        acked.keep(FIRST, 1, vec![at(0, 1_000)]);
        acked.keep(FIRST, 2, vec![at(1, 9_000)]);
        let before = acked.numbered();
        acked.keep(FIRST, 3, vec![at(2, 9_001)]);
        // The head is younger than the first by more than a clock is set back.
        let heads = [(FIRST.0, Head::At(UnixMs(9_000)))].into();
        acked.passed(before, &heads);
        assert_eq!(acked.kept.lock().grants, 2);
        // Empty: but what was kept after the look began may have come after it.
        let other = [(Partition::new(1).unwrap(), Head::Empty)].into();
        acked.passed(before, &other);
        acked.passed(before, &[(FIRST.0, Head::Empty)].into());
        assert_eq!(acked.kept.lock().grants, 1);
        acked.orphan(FIRST.0, Epoch(2));
        assert_eq!(acked.orphans_of(id(1)), [at(2, 9_001).1]);
    }

    #[test]
    fn a_new_epoch_orphans_what_its_own_partition_was_told_in_older_ones() {
        let acked = Acked::default();
        let other = Partition::new(1).unwrap();
        acked.keep(FIRST, 1, vec![(id(1), held(0))]);
        acked.keep((other, Epoch(1)), 2, vec![(id(2), held(0))]);
        acked.orphan(FIRST.0, Epoch(2));
        assert_eq!(acked.orphans_of(id(1)), [held(0)]);
        assert!(acked.orphans_of(id(2)).is_empty());
        // A reply that was on its way when the store was lost, and one of its successor.
        acked.keep(FIRST, 3, vec![(id(3), held(0))]);
        assert_eq!(acked.orphans_of(id(3)), [held(0)]);
        acked.keep((FIRST.0, Epoch(2)), 4, vec![(id(4), held(0))]);
        assert!(acked.orphans_of(id(4)).is_empty());
        // Told again of the same epoch, nothing moves.
        acked.orphan(FIRST.0, Epoch(2));
        assert!(acked.orphans_of(id(4)).is_empty());
        acked.settled([2, 4].into_iter());
        acked.orphan(other, Epoch(2));
        acked.orphan(FIRST.0, Epoch(3));
        assert!(acked.orphans_of(id(2)).is_empty() && acked.orphans_of(id(4)).is_empty());
    }
}
