//! Dispensers, one a stripe, and whether any order of what was asked gives the answers: all are tried.

use std::collections::BTreeMap;
use std::ops::Range;

use red_envelope_history::{Answer, Handing, History, Share};

use super::share;

/// The dispensers of an envelope.
#[derive(Clone, Debug)]
pub struct Dispensers {
    share_count: u32,
    holders: BTreeMap<u8, Share>,
    /// By stripe.
    over: Vec<bool>,
    /// Each may hand out whatever is left.
    moved: bool,
}

impl Dispensers {
    /// Of an envelope whose shares were dealt to so many.
    pub fn new(share_count: u32, stripes: u32) -> Self {
        Self {
            share_count,
            holders: BTreeMap::new(),
            over: vec![false; stripes as usize],
            moved: false,
        }
    }

    fn of(history: &History<u8>) -> Self {
        match &history.handing {
            Handing::ByNumber => Self::new(history.share_count, 1),
            Handing::Unordered => Self {
                moved: true,
                ..Self::new(history.share_count, 1)
            },
            Handing::Dealt { stripes, .. } => Self::new(history.share_count, *stripes),
        }
    }

    /// Where somebody is served.
    pub fn home(&self, who: u8) -> usize {
        usize::from(who) % self.over.len()
    }

    /// What a stripe was dealt.
    fn dealt(&self, stripe: usize) -> Range<u32> {
        let (of, stripes) = (self.share_count as usize, self.over.len());
        let bound = |stripe: usize| u32::try_from(stripe * of / stripes).expect("few shares");
        bound(stripe)..bound(stripe + 1)
    }

    fn is_left(&self, number: u32) -> bool {
        let mut taken = self.holders.values();
        taken.all(|share| share.number != number)
    }

    /// The shares of which somebody who has none may take one now.
    pub fn left_for(&self, who: u8) -> Vec<u32> {
        if self.over[self.home(who)] || self.holders.contains_key(&who) {
            return Vec::new();
        }
        if self.moved {
            let all = 0..self.share_count;
            return all.filter(|number| self.is_left(*number)).collect();
        }
        let mut own = self.dealt(self.home(who));
        let next = own.find(|number| self.is_left(*number));
        next.into_iter().collect()
    }

    /// A grab of somebody, at an instant, who takes the `pick`th of what is left for him. `None`: his
    /// stripe has nothing, and does not know whether others have.
    pub fn grab(&mut self, who: u8, pick: usize) -> Option<Answer> {
        if let Some(held) = self.holders.get(&who) {
            return Some(Answer::Already(*held));
        }
        if self.holders.len() == self.share_count as usize {
            return Some(Answer::Empty);
        }
        if self.over[self.home(who)] {
            return Some(Answer::Over);
        }
        let left = self.left_for(who);
        let number = left.get(pick % left.len().max(1))?;
        self.holders.insert(who, share(*number));
        Some(Answer::Won(share(*number)))
    }

    /// A stripe ends.
    pub fn end(&mut self, stripe: usize) {
        self.over[stripe] = true;
    }

    /// All end.
    pub fn close(&mut self) {
        self.over.fill(true);
    }

    /// From now on shares move.
    pub fn shares_move(&mut self) {
        self.moved = true;
    }

    /// Whether they may answer so now, and what follows. A stripe may end by itself at any instant.
    fn may(&self, who: u8, told: Answer) -> Option<Self> {
        let mut after = self.clone();
        let holds = self.holders.get(&who).copied();
        let may = match told {
            Answer::Over => {
                after.end(self.home(who));
                holds.is_none()
            }
            Answer::Already(share) => holds == Some(share),
            Answer::Empty => holds.is_none() && self.holders.len() == self.share_count as usize,
            Answer::Won(won) => {
                after.holders.insert(who, won);
                won == share(won.number) && self.left_for(who).contains(&won.number)
            }
        };
        may.then_some(after)
    }

    /// What follows of a grab whose answer nobody heard and that took something.
    fn took(&self, who: u8) -> Vec<Self> {
        let left = self.left_for(who).into_iter();
        let took = left.map(|number| {
            let mut after = self.clone();
            after.holders.insert(who, share(number));
            after
        });
        took.collect()
    }
}

/// One step of a history that is tried in every order.
#[derive(Clone, Copy, Debug)]
enum Step {
    Grab(usize),
    Close(usize),
    Move(u64),
}

/// Whether an order exists. Tries them all.
pub fn possible(history: &History<u8>) -> bool {
    let grabs = (0..history.attempts.len()).map(Step::Grab);
    let closes = (0..history.closes.len()).map(Step::Close);
    let moved_at = match &history.handing {
        Handing::Dealt { moved_at, .. } => *moved_at,
        _ => None,
    };
    let steps = grabs.chain(closes).chain(moved_at.map(Step::Move));
    try_orders(
        history,
        &Dispensers::of(history),
        &steps.collect::<Vec<_>>(),
    )
}

fn span(history: &History<u8>, step: Step) -> (u64, Option<u64>) {
    match step {
        Step::Grab(at) => {
            let attempt = &history.attempts[at];
            (attempt.asked_at, attempt.answered.map(|(to, _)| to))
        }
        Step::Close(at) => (history.closes[at].asked_at, history.closes[at].answered_at),
        Step::Move(at) => (at, Some(at)),
    }
}

fn try_orders(history: &History<u8>, now: &Dispensers, left: &[Step]) -> bool {
    let must = left.iter().filter_map(|step| span(history, *step).1).min();
    let Some(must) = must else {
        // Whoever was never answered need not have had an effect.
        return true;
    };
    left.iter().enumerate().any(|(place, step)| {
        // What was answered before this was asked has come before.
        if span(history, *step).0 > must {
            return false;
        }
        let mut rest = left.to_vec();
        rest.remove(place);
        let mut after = after(history, now, *step).into_iter();
        after.any(|after| try_orders(history, &after, &rest))
    })
}

/// What a step may make of the dispensers; nothing: it can't come now.
fn after(history: &History<u8>, now: &Dispensers, step: Step) -> Vec<Dispensers> {
    let mut after = now.clone();
    match step {
        Step::Close(_) => after.close(),
        Step::Move(_) => after.shares_move(),
        Step::Grab(at) => {
            let attempt = &history.attempts[at];
            return match attempt.answered {
                Some((_, told)) => now.may(attempt.grabber, told).into_iter().collect(),
                None => now.took(attempt.grabber),
            };
        }
    }
    vec![after]
}
