//! What was granted and told of dealt envelopes, and which promise that breaks: found when it happens.

use std::collections::{BTreeMap, BTreeSet};

use red_envelope::domain::grab::HeldShare;
use red_envelope::domain::id::{EnvelopeId, Partition};

/// A grant.
pub struct Given {
    pub held: HeldShare,
    partition: Partition,
    /// No store has it any more.
    pub lost: bool,
}

#[derive(Default)]
pub struct Watch {
    given: BTreeMap<EnvelopeId, Vec<Given>>,
    /// Under which epochs, summed up, the first stripe had all shares when somebody was told that it is empty.
    empty_under: BTreeMap<EnvelopeId, u64>,
    /// Partitions that came back.
    pub losses: u64,
    /// The first promise that was broken.
    pub broken: Option<String>,
}

impl Watch {
    fn breaks(&mut self, why: String) {
        self.broken.get_or_insert(why);
    }

    /// Grants that some store has.
    pub fn standing(&self, id: EnvelopeId) -> impl Iterator<Item = &HeldShare> {
        let given = self.given.get(&id).into_iter().flatten();
        given.filter(|given| !given.lost).map(|given| &given.held)
    }

    /// Whether somebody has this share of it.
    pub fn is_given(&self, id: EnvelopeId, held: &HeldShare) -> bool {
        self.standing(id).any(|other| other == held)
    }

    /// How many shares somebody has.
    pub fn standing_count(&self, id: EnvelopeId) -> usize {
        let shares = self.standing(id).map(|held| held.grant.share);
        shares.collect::<BTreeSet<_>>().len()
    }

    /// Somebody wins. `under`: as of the first stripe that has all shares; 0 of another one.
    pub fn grant(
        &mut self,
        (id, partition): (EnvelopeId, Partition),
        held: &HeldShare,
        under: u64,
    ) {
        let share = held.grant.share;
        let twice = self.standing(id).find(|other| other.grant.share == share);
        let again = self
            .standing(id)
            .find(|other| other.grabber == held.grabber);
        let why = match (twice, again) {
            (Some(other), _) => Some(format!("has {other:?} already")),
            (None, Some(other)) => Some(format!("has won {other:?} already")),
            (None, None) => None,
        };
        if let Some(why) = why {
            self.breaks(format!("{id}: {held:?} was granted, who {why}"));
        }
        if self
            .empty_under
            .get(&id)
            .is_some_and(|empty| *empty >= under)
        {
            self.breaks(format!("{id}: {held:?} was granted after it was empty"));
        }
        let lost = false;
        let held = held.clone();
        self.given.entry(id).or_default().push(Given {
            held,
            partition,
            lost,
        });
    }

    /// Somebody is told that nothing is left.
    pub fn empty(&mut self, (id, shares): (EnvelopeId, u32), under: u64) {
        let given = self.given.get(&id).into_iter().flatten();
        let ever: BTreeSet<_> = given.map(|given| given.held.grant.share).collect();
        if ever.len() < shares as usize {
            let count = ever.len();
            self.breaks(format!(
                "{id} was called empty, and {count} of {shares} were granted"
            ));
        }
        let last = self.empty_under.entry(id).or_default();
        *last = under.max(*last);
    }

    /// Somebody has brought it back himself, nothing was lost since, and is told that nothing is left.
    pub fn empty_for_sure(&mut self, (id, shares): (EnvelopeId, u32)) {
        let count = self.standing_count(id);
        if count < shares as usize {
            self.breaks(format!(
                "{id} was brought back and called empty, and {count} of {shares} are taken"
            ));
        }
    }

    /// A partition came back without what does not survive.
    pub fn lose(
        &mut self,
        partition: Partition,
        survives: impl Fn(EnvelopeId, &HeldShare) -> bool,
    ) {
        self.losses += 1;
        for (id, given) in &mut self.given {
            for given in given.iter_mut().filter(|g| g.partition == partition) {
                given.lost |= !survives(*id, &given.held);
            }
        }
    }
}
