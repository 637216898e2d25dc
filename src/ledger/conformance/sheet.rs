//! One envelope in the books as a page of arithmetic: the law that every ledger is held to (`model`), and
//! that the simulated one keeps (`tests/sim`).

use std::collections::BTreeMap;

use crate::domain::grab::HeldShare;
use crate::domain::id::PersonId;
use crate::ledger::Settled;

/// What the operator's money does: in all sheets of one tenant and currency, of one day.
#[derive(Clone, Debug, Default)]
pub struct Reserve {
    /// What may be made good.
    pub minor_max: i64,
    /// What was.
    pub used: i64,
    /// To whom, and from whom (negative), since somebody last looked.
    pub moved: Vec<(PersonId, i64)>,
}

/// What was put in, and who took what.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    /// All shares together.
    pub total: i64,
    /// How many.
    pub shares: u32,
    /// What was paid or declined, by share.
    pub claims: BTreeMap<u32, HeldShare>,
    /// What went back at the end.
    pub remainder: i64,
    /// Waits for the mark to go.
    pub parked: Vec<HeldShare>,
    /// Who was made good: the share and what was shown of it, and what the reserve paid.
    pub made_good: BTreeMap<PersonId, (HeldShare, i64)>,
    /// What was made good, less what went back.
    pub made_good_minor: i64,
    /// Can't be paid.
    pub letters: Vec<HeldShare>,
    /// Marked.
    pub frozen: bool,
    /// No grab any more.
    pub closing: bool,
    /// Balanced.
    pub closed: bool,
    /// Its shares are gathered in one stripe.
    pub gathered: bool,
}

impl Sheet {
    /// With everything in it.
    pub fn new(total: i64, shares: u32) -> Self {
        Self {
            total,
            shares,
            ..Self::default()
        }
    }

    /// What is in escrow.
    pub fn left(&self) -> i64 {
        let claims = self.claims.values().map(|held| held.grant.amount_minor);
        self.total - self.remainder - claims.sum::<i64>()
    }

    /// What becomes of a record that the plan would pay.
    pub fn verdict(&mut self, held: HeldShare, reserve: &mut Reserve) -> Settled {
        let share = held.grant.share;
        if self
            .claims
            .get(&share)
            .is_some_and(|claim| same(claim, &held))
        {
            return Settled::Duplicate;
        }
        let of_grabber = self.claims.values().any(|c| c.grabber == held.grabber);
        let payable = share < self.shares && held.grant.amount_minor <= self.left();
        if self.claims.contains_key(&share) || of_grabber {
            self.beaten(held, reserve)
        } else if self.closed || (!self.frozen && !payable) {
            set_aside(&mut self.letters, held);
            Settled::DeadLetter
        } else if self.frozen {
            set_aside(&mut self.parked, held);
            Settled::Parked
        } else {
            // Paid after all: then nothing is set aside any more.
            self.letters.retain(|other| !same(other, &held));
            if let Some((_, paid)) = self.made_good.get(&held.grabber)
                && !held.declined
            {
                let back = held.grant.amount_minor.min(*paid);
                self.made_good_minor -= back;
                reserve.moved.push((held.grabber.clone(), -back));
            }
            self.claims.insert(share, held);
            Settled::Paid
        }
    }

    /// What the reserve does about a record whose share or grabber has another claim: who was shown it has
    /// the larger of what he was shown and what he was paid, as far as the reserve goes, once.
    fn beaten(&mut self, held: HeldShare, reserve: &mut Reserve) -> Settled {
        let (who, shown) = (&held.grabber, held.grant.amount_minor);
        if let Some((before, _)) = self.made_good.get(who) {
            return match same(before, &held) {
                true => Settled::Duplicate,
                false => Settled::Superseded,
            };
        }
        let taken = self.claims.get(&held.grant.share);
        let taken =
            taken.filter(|claim| claim.grabber != *who && claim.grant.amount_minor == shown);
        let own = self.claims.values().find(|claim| claim.grabber == *who);
        let has = own.map_or(0, |claim| match claim.declined {
            true => shown,
            false => claim.grant.amount_minor,
        });
        if taken.is_none() || held.declined || has >= shown {
            return Settled::Superseded;
        }
        if self.frozen {
            set_aside(&mut self.parked, held);
            return Settled::Parked;
        }
        self.letters.retain(|other| !same(other, &held));
        let owed = shown - has;
        if reserve.used + owed > reserve.minor_max {
            return Settled::Capped;
        }
        reserve.used += owed;
        reserve.moved.push((who.clone(), owed));
        self.made_good_minor += owed;
        self.made_good.insert(who.clone(), (held, owed));
        Settled::MadeGood
    }

    /// Gathers what is left, for ever. While the mark is there, and when no share is granted any more, nothing
    /// changes.
    pub fn gather(&mut self) {
        self.gathered |= !self.frozen && !self.closing;
    }

    /// What comes of records that were parked, once the mark is gone: how many are paid, with what.
    pub fn settle_parked(&mut self, reserve: &mut Reserve) -> Vec<HeldShare> {
        if self.frozen {
            return Vec::new();
        }
        let parked = std::mem::take(&mut self.parked).into_iter();
        let paid = parked.filter(|held| self.verdict(held.clone(), reserve) == Settled::Paid);
        paid.collect()
    }

    /// Closes it if claims are all that was taken, or more than a store says that was `replaced`. Answers what
    /// goes back to the sender.
    pub fn finish(&mut self, taken_count: usize, replaced: bool) -> Option<i64> {
        let aside = !self.parked.is_empty() || !self.letters.is_empty();
        let claimed = self.claims.len();
        let covered = claimed == taken_count || (claimed > taken_count && replaced);
        if !covered || aside {
            return None;
        }
        let remainder = self.left();
        self.remainder += remainder;
        self.closed = true;
        Some(remainder)
    }
}

/// Records of one grant: when it was granted is not asked.
fn same(one: &HeldShare, other: &HeldShare) -> bool {
    let key = |held: &HeldShare| (held.grant.share, held.grant.amount_minor, held.declined);
    key(one) == key(other) && one.grabber == other.grabber
}

fn set_aside(list: &mut Vec<HeldShare>, held: HeldShare) {
    if !list.iter().any(|other| same(other, &held)) {
        list.push(held);
    }
}
