//! The law of the dispenser.
//!
//! *Shape*
//!
//! | step | finds |
//! |---|---|
//! | 1. each grabber's answers | `WonTwice`, `AnswerChanged`, `SentAway`, `ToldBeforeAsked` |
//! | 2. grants: a share, its holder, the span in which it was handed out | `NoSuchShare`, `TwoHolders` |
//! | 3. ends: of all for who was told that nothing is left, and of a confirmed close; else of a stripe | `GrantAfterEmpty`, `GrantAfterClose` |
//! | 4. stripes: who was handed what before shares could move | `OutOfPlace` |
//! | 5. spans of a stripe in the order of their numbers | `OutOfOrder` |
//! | 6. shares that nobody was shown, and grabs that could have taken them | `SharesSkipped`, `EmptyTooEarly` |
//!
//! *Why this is exact.* Spans allow increasing instants if and only if no span ends before a span of a
//! lower number begins. A share that nobody was shown needs a grab without an answer that was asked
//! before the first sign that it was gone. Those signs come later the higher the number, so giving
//! the earliest such grab to the lowest such share finds an assignment if there is one. The test
//! `the_judge_agrees_with_trying_every_order` compares both.
//!
//! *Stripes.* A grant whose span ends before shares could move, or whose stripe ended before, was handed out
//! by number, out of what its stripe was dealt. Any other may have come after the first move, which is
//! no worse for it, and the same for all that nobody was shown: from then on each grab takes whatever share
//! is left. So numbers tell the order among the former, and a lower share of their stripe, whoever has it, was
//! gone before them; and shares of which there is no such sign are counted over the whole envelope. Grabs
//! at a stripe that ended before the first move can have taken shares of that stripe alone. The test
//! `the_judge_of_stripes_agrees_with_trying_every_order` compares both.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};

use crate::deal::Deal;
use crate::history::{Answer, Attempt, History, Share};

/// What a history may not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A share with a number that the envelope does not have.
    NoSuchShare,
    /// One share was shown to two grabbers.
    TwoHolders,
    /// One grabber was told twice that a share is new.
    WonTwice,
    /// One grabber was shown two shares, or two amounts.
    AnswerChanged,
    /// Who holds a share was told that none is left, or that it is over.
    SentAway,
    /// A share was shown that no grab of its holder could have taken.
    ToldBeforeAsked,
    /// A share of another stripe than the holder's was shown before any could have moved.
    OutOfPlace,
    /// A share was shown before a grab that took a lower one was asked.
    OutOfOrder,
    /// A share was shown before the lower ones could have been taken.
    SharesSkipped,
    /// Nothing was left before all shares could have been taken.
    EmptyTooEarly,
    /// A grab that was asked after nothing was left took a share.
    GrantAfterEmpty,
    /// A grab that was asked after the end took a share.
    GrantAfterClose,
}

/// One answer too many, or one too few.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// What happened, by numbers and stamps.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.detail)
    }
}

/// A share that was handed out in this span, which includes its ends.
struct Grant<'a, G> {
    number: u32,
    holder: &'a G,
    from: u64,
    to: u64,
    /// The stripe that the share was dealt to.
    stripe: usize,
    /// The holder's stripe is another one.
    strayed: bool,
    /// It was handed out before shares could move.
    unmoved: bool,
}

/// The sign that something was over, and when it was seen.
struct Ends {
    empty_at: u64,
    /// By stripe.
    over_at: Vec<u64>,
}

/// When people asked who were never told anything, ascending, by the stripe that serves them.
type Unknown = Vec<Vec<u64>>;

impl<G: Ord + Debug> History<G> {
    /// What no envelope could have answered. Empty: there is an order in which it did.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut by_grabber: BTreeMap<&G, Vec<&Attempt<G>>> = BTreeMap::new();
        for attempt in &self.attempts {
            by_grabber
                .entry(&attempt.grabber)
                .or_default()
                .push(attempt);
        }
        let deal = Deal::of(self);
        let ends = self.ends(&deal);
        let mut grants = Vec::new();
        // A share may be theirs.
        let mut unknown: Unknown = vec![Vec::new(); deal.stripes()];
        for (holder, attempts) in by_grabber {
            let home = deal.home(holder);
            let over_at = ends.over_at[home];
            match grant(holder, &attempts, &mut found) {
                Some(grant) => grants.push(grant),
                None => unknown[home].extend(may_hold(&attempts).filter(|asked| *asked <= over_at)),
            }
        }
        for asked in &mut unknown {
            asked.sort_unstable();
        }
        grants.sort_by_key(|grant| grant.number);
        self.holders(&mut grants, &mut found);
        after_the_end(&grants, &deal, &ends, &mut found);
        out_of_place(&mut grants, &deal, &ends, &mut found);
        self.order(&grants, &mut found);
        skipped(&grants, &unknown, &deal, &mut found);
        self.too_early(&grants, &unknown, &deal, &ends, &mut found);
        found
    }

    fn ends(&self, deal: &Deal<'_, G>) -> Ends {
        let closes = self.closes.iter().filter_map(|close| close.answered_at);
        let mut ends = Ends {
            empty_at: u64::MAX,
            over_at: vec![closes.min().unwrap_or(u64::MAX); deal.stripes()],
        };
        for attempt in &self.attempts {
            match attempt.answered {
                Some((at, Answer::Empty)) => ends.empty_at = ends.empty_at.min(at),
                Some((at, Answer::Over)) => {
                    let over_at = &mut ends.over_at[deal.home(&attempt.grabber)];
                    *over_at = at.min(*over_at);
                }
                Some((_, Answer::Won(_) | Answer::Already(_))) | None => {}
            }
        }
        ends
    }

    /// Leaves one grant a share.
    fn holders(&self, grants: &mut Vec<Grant<'_, G>>, found: &mut Vec<Violation>) {
        grants.retain(|grant| {
            let (there, number) = (grant.number < self.share_count, grant.number);
            if !there {
                note(found, Rule::NoSuchShare, || {
                    let (holder, count) = (grant.holder, self.share_count);
                    format!("{holder:?} was shown share {number} of {count}")
                });
            }
            there
        });
        for pair in grants.windows(2).filter(|w| w[0].number == w[1].number) {
            note(found, Rule::TwoHolders, || {
                let (number, one, other) = (pair[0].number, pair[0].holder, pair[1].holder);
                format!("share {number} was shown to {one:?} and to {other:?}")
            });
        }
        grants.dedup_by_key(|grant| grant.number);
    }

    /// The epoch in which the whole span lies.
    fn epoch(&self, grant: &Grant<'_, G>) -> Option<usize> {
        let of = |at: u64| self.replaced_at.partition_point(|replaced| *replaced <= at);
        let epoch = of(grant.from);
        (epoch == of(grant.to)).then_some(epoch)
    }

    fn order(&self, grants: &[Grant<'_, G>], found: &mut Vec<Violation>) {
        // By stripe and epoch: the higher share that was shown first.
        let mut shown: BTreeMap<(usize, usize), &Grant<'_, G>> = BTreeMap::new();
        for grant in grants.iter().rev() {
            let Some(epoch) = self.epoch(grant) else {
                continue;
            };
            let place = (grant.stripe, epoch);
            // A share that strayed was handed out after the move.
            let late = |higher: &&&Grant<'_, G>| higher.to < grant.from || grant.strayed;
            if let Some(higher) = shown.get(&place).filter(late) {
                return note(found, Rule::OutOfOrder, || {
                    let (number, holder, from) = (grant.number, grant.holder, grant.from);
                    format!(
                        "share {number} was asked for by {holder:?} at {from}, after share {} was \
                         shown to {:?} at {}",
                        higher.number, higher.holder, higher.to
                    )
                });
            }
            if grant.unmoved && !grant.strayed {
                let first = shown.entry(place).or_insert(grant);
                if grant.to < first.to {
                    *first = grant;
                }
            }
        }
    }

    fn too_early(
        &self,
        grants: &[Grant<'_, G>],
        unknown: &Unknown,
        deal: &Deal<'_, G>,
        ends: &Ends,
        found: &mut Vec<Violation>,
    ) {
        let (at, count, shown) = (ends.empty_at, self.share_count, grants.len());
        let mut could = 0;
        for (stripe, asked) in unknown.iter().enumerate() {
            let asked = asked.partition_point(|asked| *asked <= at);
            let may_take_moved = at.min(ends.over_at[stripe]) >= deal.moved_at;
            could += match may_take_moved {
                true => asked,
                false => asked.min(missing_of(grants, stripe, deal)),
            };
        }
        if at < u64::MAX && shown + could < count as usize {
            note(found, Rule::EmptyTooEarly, || {
                format!(
                    "nothing was left at {at}, when {shown} of {count} shares were shown to \
                     somebody and {could} more grabs could have taken one"
                )
            });
        }
    }
}

/// Grants of the shares that were dealt to a stripe.
fn of_stripe<'a, 'b, G>(grants: &'a [Grant<'b, G>], stripe: usize) -> &'a [Grant<'b, G>] {
    let from = grants.partition_point(|grant| grant.stripe < stripe);
    let to = grants.partition_point(|grant| grant.stripe <= stripe);
    &grants[from..to]
}

/// How many shares of a stripe were shown to nobody.
fn missing_of<G>(grants: &[Grant<'_, G>], stripe: usize, deal: &Deal<'_, G>) -> usize {
    let shares = deal.first(stripe + 1) - deal.first(stripe);
    let shares = usize::try_from(shares).expect("usize holds a u32");
    shares - of_stripe(grants, stripe).len()
}

/// Notes of each grant whether it was handed out before shares could move, and finds those that only
/// a move explains.
fn out_of_place<G: Debug>(
    grants: &mut [Grant<'_, G>],
    deal: &Deal<'_, G>,
    ends: &Ends,
    found: &mut Vec<Violation>,
) {
    for grant in grants {
        let home = deal.home(grant.holder);
        let end = ends.over_at[home].min(ends.empty_at);
        grant.stripe = deal.stripe_of(grant.number);
        grant.strayed = grant.stripe != home;
        grant.unmoved = grant.to.min(end).max(grant.from) < deal.moved_at;
        if grant.strayed && grant.unmoved {
            note(found, Rule::OutOfPlace, || {
                let (number, stripe, to) = (grant.number, grant.stripe, grant.to);
                let holder = grant.holder;
                format!(
                    "share {number} of stripe {stripe} was shown at {to} to {holder:?}, whose stripe \
                     is {home}, before any had moved"
                )
            });
        }
    }
}

/// From the highest share of a stripe down: when a share was first shown, those below it were gone.
fn skipped<G>(
    grants: &[Grant<'_, G>],
    unknown: &Unknown,
    deal: &Deal<'_, G>,
    found: &mut Vec<Violation>,
) {
    for (stripe, unknown) in unknown.iter().enumerate() {
        let mut gone_at = u64::MAX;
        let numbered = of_stripe(grants, stripe).iter().enumerate();
        for (lower, grant) in numbered.rev() {
            if grant.strayed || !grant.unmoved {
                continue;
            }
            gone_at = gone_at.min(grant.to);
            let number = grant.number;
            let below = u64::from(number) - deal.first(stripe);
            let missing = usize::try_from(below).expect("usize holds a u32") - lower;
            let could = unknown.partition_point(|asked| *asked <= gone_at);
            if could < missing {
                return note(found, Rule::SharesSkipped, || {
                    format!(
                        "share {number} or a higher one was shown at {gone_at}, when {missing} \
                         lower ones were shown to nobody and {could} grabs could have taken them"
                    )
                });
            }
        }
    }
}

/// What one grabber holds, and since when.
fn grant<'a, G: Debug>(
    holder: &'a G,
    attempts: &[&'a Attempt<G>],
    found: &mut Vec<Violation>,
) -> Option<Grant<'a, G>> {
    let answers = || attempts.iter().filter_map(|attempt| attempt.answered);
    let shown = answers().filter_map(|(at, answer)| Some((at, answer.share()?)));
    let (to, share) = shown.clone().min_by_key(|(at, _)| *at)?;
    for (at, other) in shown.filter(|(_, other)| *other != share) {
        note(found, Rule::AnswerChanged, || {
            let (first, then) = (in_words(share), in_words(other));
            format!("{holder:?} was shown {first} at {to} and {then} at {at}")
        });
    }
    let wins = attempts
        .iter()
        .filter(|attempt| matches!(attempt.answered, Some((_, Answer::Won(_)))));
    if wins.clone().count() > 1 {
        note(found, Rule::WonTwice, || format!("{holder:?} won twice"));
    }
    let won = wins.map(|attempt| attempt.asked_at).min();
    let asked = won.or_else(|| may_hold(attempts).min());
    let from = asked.filter(|asked| *asked <= to);
    if from.is_none() {
        note(found, Rule::ToldBeforeAsked, || {
            let words = in_words(share);
            format!("{holder:?} was shown {words} at {to}, and no grab before it can have taken it")
        });
    }
    for (at, answer) in answers().filter(|(_, answer)| answer.share().is_none()) {
        note(found, Rule::SentAway, || {
            let words = in_words(share);
            format!("{holder:?} holds {words} and was told {answer:?} at {at}")
        });
    }
    Some(Grant {
        number: share.number,
        holder,
        from: from.unwrap_or(to),
        to,
        stripe: 0,
        strayed: false,
        unmoved: true,
    })
}

/// When the first grab was asked whose answer nobody knows, of somebody who was told nothing of an
/// end: such an answer says that no grab took anything.
fn may_hold<G>(attempts: &[&Attempt<G>]) -> impl Iterator<Item = u64> {
    let told = |answer: Option<(u64, Answer)>| answer.is_some_and(|(_, a)| a.share().is_none());
    let sent_away = attempts.iter().any(|attempt| told(attempt.answered));
    let unanswered = attempts.iter().filter(|a| a.answered.is_none());
    let first = unanswered.map(|attempt| attempt.asked_at).min();
    first.filter(|_| !sent_away).into_iter()
}

fn after_the_end<G: Debug>(
    grants: &[Grant<'_, G>],
    deal: &Deal<'_, G>,
    ends: &Ends,
    found: &mut Vec<Violation>,
) {
    for grant in grants {
        let (number, holder, from) = (grant.number, grant.holder, grant.from);
        let mut late = |rule, at: u64, what: &str| {
            if from > at {
                note(found, rule, || {
                    format!("share {number} was asked for by {holder:?} at {from}, {what} at {at}")
                });
            }
        };
        late(Rule::GrantAfterEmpty, ends.empty_at, "and nothing was left");
        let over_at = ends.over_at[deal.home(holder)];
        late(Rule::GrantAfterClose, over_at, "and it was over");
    }
}

fn in_words(share: Share) -> String {
    format!(
        "share {} of {} minor units",
        share.number, share.amount_minor
    )
}

fn note(found: &mut Vec<Violation>, rule: Rule, detail: impl FnOnce() -> String) {
    found.push(Violation {
        rule,
        detail: detail(),
    });
}
