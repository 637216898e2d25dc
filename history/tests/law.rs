//! The judge before the court: bad histories that must be flagged, good ones that must not, and every
//! order tried.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use red_envelope_history::{Answer, Attempt, Close, Handing, History, Recorder, Rule, Share};

const fn share(number: u32) -> Share {
    Share {
        number,
        amount_minor: 10 + number as i64,
    }
}

const fn won(number: u32) -> Answer {
    Answer::Won(share(number))
}

const fn already(number: u32) -> Answer {
    Answer::Already(share(number))
}

/// By grabber, from and to; `None`: nobody heard the answer.
fn history(
    share_count: u32,
    calls: &[(&'static str, u64, u64, Option<Answer>)],
) -> History<&'static str> {
    let attempts = calls.iter().map(|(grabber, asked_at, to, answer)| Attempt {
        grabber: *grabber,
        asked_at: *asked_at,
        answered: answer.map(|answer| (*to, answer)),
    });
    History {
        share_count,
        attempts: attempts.collect(),
        ..History::default()
    }
}

fn rules<G: Ord + std::fmt::Debug>(history: &History<G>) -> Vec<Rule> {
    let mut rules: Vec<_> = history.violations().iter().map(|v| v.rule).collect();
    rules.dedup();
    rules
}

/// The end was confirmed at an instant.
fn closed(mut history: History<&'static str>, at: u64) -> History<&'static str> {
    history.closes.push(Close {
        asked_at: 0,
        answered_at: Some(at),
    });
    history
}

type Bad = (Rule, History<&'static str>);

/// Answers that contradict each other, whenever they came.
fn contradictions() -> Vec<Bad> {
    let less = Share {
        amount_minor: 9,
        ..share(0)
    };
    let [a0, a1] = [0, 1].map(|number| ("a", 1, 2, Some(won(number))));
    let again = |answer| ("a", 3, 4, Some(answer));
    let first = |answer| ("a", 1, 2, Some(answer));
    let c2 = ("c", 3, 4, Some(won(2)));
    vec![
        (
            Rule::NoSuchShare,
            history(2, &[a0, ("b", 1, 2, Some(won(1))), c2]),
        ),
        (
            Rule::TwoHolders,
            history(2, &[a0, ("b", 1, 3, Some(won(0)))]),
        ),
        (Rule::WonTwice, history(2, &[a0, again(won(0))])),
        (Rule::AnswerChanged, history(2, &[a0, again(already(1))])),
        (
            Rule::AnswerChanged,
            history(2, &[a0, again(Answer::Already(less))]),
        ),
        (Rule::SentAway, history(1, &[a0, again(Answer::Empty)])),
        (Rule::SentAway, history(2, &[a0, again(Answer::Over)])),
        (Rule::ToldBeforeAsked, history(2, &[first(already(0))])),
        (
            Rule::ToldBeforeAsked,
            history(2, &[first(already(0)), again(won(0))]),
        ),
        (Rule::SharesSkipped, history(3, &[a1])),
    ]
}

/// Answers that came in an order which none can have.
fn disorders() -> Vec<Bad> {
    let late = ("a", 3, 4, Some(won(0)));
    let lost = ("b", 3, 4, None);
    let [empty, over] = [Answer::Empty, Answer::Over].map(|told| ("b", 1, 2, Some(told)));
    let [a0, a1] = [0, 1].map(|number| ("a", 1, 2, Some(won(number))));
    vec![
        (
            Rule::OutOfOrder,
            history(2, &[("b", 1, 2, Some(won(1))), late]),
        ),
        (Rule::SharesSkipped, history(3, &[a1, lost])),
        (
            Rule::EmptyTooEarly,
            history(2, &[a0, ("b", 3, 4, Some(Answer::Empty))]),
        ),
        (
            Rule::EmptyTooEarly,
            history(1, &[("a", 1, 2, Some(Answer::Empty)), lost]),
        ),
        (Rule::GrantAfterEmpty, history(1, &[empty, late])),
        (Rule::GrantAfterClose, closed(history(1, &[late]), 2)),
        (Rule::GrantAfterClose, history(2, &[over, late])),
    ]
}

#[test]
fn bad_histories_are_flagged_under_the_rule_that_they_break() {
    let bad = [contradictions(), disorders()].concat();
    assert_eq!(bad.len(), 17);
    for (rule, history) in bad {
        assert_eq!(rules(&history), [rule], "{history:?}");
    }
}

#[test]
fn what_overlaps_may_have_gone_either_way() {
    let good = [
        history(2, &[("a", 1, 4, Some(won(1))), ("b", 2, 3, Some(won(0)))]),
        // The repetition overtakes the win.
        history(
            1,
            &[
                ("a", 1, 6, Some(won(0))),
                ("a", 2, 3, Some(already(0))),
                ("b", 4, 5, Some(Answer::Empty)),
            ],
        ),
        // Whoever got no answer may have taken what is missing, and hears of it later.
        history(
            2,
            &[
                ("a", 1, 0, None),
                ("b", 2, 3, Some(won(1))),
                ("c", 4, 5, Some(Answer::Empty)),
            ],
        ),
        history(
            2,
            &[
                ("a", 1, 0, None),
                ("b", 2, 3, Some(won(1))),
                ("a", 4, 5, Some(already(0))),
            ],
        ),
        closed(
            history(
                2,
                &[("a", 1, 9, Some(won(0))), ("b", 3, 4, Some(Answer::Over))],
            ),
            2,
        ),
    ];
    for history in good {
        assert_eq!(history.violations(), [], "{history:?}");
    }
}

#[test]
fn numbers_tell_the_order_within_one_epoch_only() {
    let mut replaced = history(
        3,
        &[
            ("a", 1, 2, Some(won(1))),
            ("c", 1, 2, None),
            ("b", 5, 6, Some(won(0))),
        ],
    );
    assert_eq!(rules(&replaced), [Rule::OutOfOrder]);
    replaced.replaced_at.push(4);
    assert_eq!(rules(&replaced), []);
    replaced.replaced_at = vec![9];
    assert_eq!(rules(&replaced), [Rule::OutOfOrder]);
    replaced.handing = Handing::Unordered;
    assert_eq!(rules(&replaced), []);
}

#[test]
fn a_recorder_keeps_the_envelopes_apart() {
    let recorder = Recorder::default();
    recorder.begin("one", 1, Handing::ByNumber);
    recorder.begin("other", 1, Handing::ByNumber);
    assert!(recorder.ask(&"unknown", "ann").is_none());
    for envelope in ["one", "other"] {
        let asked = recorder.ask(&envelope, "ann").unwrap();
        recorder.answer(asked, won(0));
    }
    assert_eq!(recorder.violations(), []);
    let end = recorder.close(&"other").unwrap();
    recorder.closed(end);
    let late = recorder.ask(&"other", "bob").unwrap();
    recorder.answer(late, won(0));
    let found = recorder.violations();
    assert_eq!(recorder.attempts(), 3);
    assert!(
        found.iter().all(|(envelope, _)| *envelope == "other"),
        "{found:?}"
    );
    let rules: Vec<_> = found.iter().map(|(_, found)| found.rule).collect();
    assert_eq!(rules, [Rule::TwoHolders]);
    recorder.replaced();
    assert_eq!(recorder.violations().len(), 1);
}

/// The dispenser itself.
#[derive(Clone, Debug, Default)]
struct Dispenser {
    holders: BTreeMap<u8, Share>,
    over: bool,
}

impl Dispenser {
    fn next(&self) -> u32 {
        u32::try_from(self.holders.len()).expect("few hold a share")
    }

    /// A grab of somebody, at an instant.
    fn grab(&mut self, shares: u32, who: u8) -> Answer {
        if let Some(held) = self.holders.get(&who) {
            return Answer::Already(*held);
        }
        if self.next() == shares {
            return Answer::Empty;
        }
        if self.over {
            return Answer::Over;
        }
        let new = share(self.next());
        self.holders.insert(who, new);
        Answer::Won(new)
    }

    /// Whether it may answer so now, and what follows. It may end by itself at any instant.
    fn may(&self, shares: u32, who: u8, told: Answer) -> Option<Self> {
        let mut after = self.clone();
        if told == Answer::Over {
            after.over = true;
            return (!self.holders.contains_key(&who)).then_some(after);
        }
        (after.grab(shares, who) == told).then_some(after)
    }
}

/// One step of a history that is tried in every order.
#[derive(Clone, Copy, Debug)]
enum Step {
    Grab(usize),
    Close(usize),
}

/// Whether an order exists. Tries them all.
fn possible(history: &History<u8>) -> bool {
    let grabs = (0..history.attempts.len()).map(Step::Grab);
    let steps = grabs.chain((0..history.closes.len()).map(Step::Close));
    try_orders(history, &Dispenser::default(), &steps.collect::<Vec<_>>())
}

fn span(history: &History<u8>, step: Step) -> (u64, Option<u64>) {
    match step {
        Step::Grab(at) => {
            let attempt = &history.attempts[at];
            (attempt.asked_at, attempt.answered.map(|(to, _)| to))
        }
        Step::Close(at) => (history.closes[at].asked_at, history.closes[at].answered_at),
    }
}

fn try_orders(history: &History<u8>, now: &Dispenser, left: &[Step]) -> bool {
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
        let after = match step {
            Step::Close(_) => Some(Dispenser {
                over: true,
                ..now.clone()
            }),
            Step::Grab(at) => {
                let attempt = &history.attempts[*at];
                match attempt.answered {
                    Some((_, told)) => now.may(history.share_count, attempt.grabber, told),
                    None => {
                        let mut after = now.clone();
                        after.grab(history.share_count, attempt.grabber);
                        Some(after)
                    }
                }
            }
        };
        after.is_some_and(|after| try_orders(history, &after, &rest))
    })
}

/// Short histories of a few people, most of which nobody could have answered.
fn any_history() -> impl Strategy<Value = History<u8>> {
    let number = 0..3_u32;
    let answer = prop_oneof![
        4 => number.clone().prop_map(won),
        2 => number.prop_map(already),
        1 => Just(Answer::Empty),
        1 => Just(Answer::Over),
    ];
    let attempt = (
        0..4_u8,
        0..12_u64,
        0..6_u64,
        prop::option::weighted(0.8, answer),
    )
        .prop_map(|(grabber, asked_at, took, answer)| Attempt {
            grabber,
            asked_at: 2 * asked_at,
            answered: answer.map(|answer| (2 * (asked_at + took) + 1, answer)),
        });
    let close = (0..12_u64, 0..6_u64, any::<bool>()).prop_map(|(asked_at, took, told)| Close {
        asked_at: 2 * asked_at,
        answered_at: told.then_some(2 * (asked_at + took) + 1),
    });
    (1..4_u32, vec(attempt, 0..6), vec(close, 0..2)).prop_map(|(share_count, attempts, closes)| {
        History {
            share_count,
            attempts,
            closes,
            ..History::default()
        }
    })
}

/// What a dispenser answers to people who ask at random: a span around each instant, and some answers
/// lost. With two of them swapped now and then, it is nearly right.
fn real_history(grabs_max: usize) -> impl Strategy<Value = History<u8>> {
    let call = (0..24_u8, 0..9_u64, 0..9_u64, prop::bool::weighted(0.85));
    let end = prop::option::weighted(0.3, 0..grabs_max);
    (0..8_u32, vec(call, 1..=grabs_max), end).prop_map(|(share_count, calls, end)| {
        let mut dispenser = Dispenser::default();
        let mut history = History {
            share_count,
            ..History::default()
        };
        for (place, (grabber, before, after, heard)) in calls.into_iter().enumerate() {
            let instant = 100 + 6 * place as u64;
            let (asked_at, to) = (instant - 4 * before, instant + 1 + 4 * after);
            if end == Some(place) {
                dispenser.over = true;
                let answered_at = heard.then_some(to);
                history.closes.push(Close {
                    asked_at,
                    answered_at,
                });
                continue;
            }
            let told = dispenser.grab(share_count, grabber);
            history.attempts.push(Attempt {
                grabber,
                asked_at,
                answered: heard.then_some((to, told)),
            });
        }
        history
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn the_judge_agrees_with_trying_every_order(history in any_history()) {
        let found = history.violations();
        prop_assert_eq!(found.is_empty(), possible(&history), "{:?}", found);
    }

    #[test]
    fn the_judge_agrees_also_where_two_answers_were_swapped(
        history in real_history(6), one in 0..6_usize, other in 0..6_usize,
    ) {
        let mut history = history;
        let count = history.attempts.len();
        if count > 0 {
            let (one, other) = (one % count, other % count);
            let answers = [one, other].map(|at| history.attempts[at].answered.map(|(_, told)| told));
            for (at, told) in [(one, answers[1]), (other, answers[0])] {
                let to = history.attempts[at].answered.map(|(to, _)| to);
                history.attempts[at].answered = to.zip(told);
            }
        }
        let found = history.violations();
        prop_assert_eq!(found.is_empty(), possible(&history), "{:?}", found);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn what_a_dispenser_answers_is_never_flagged(history in real_history(80)) {
        prop_assert_eq!(history.violations(), []);
    }
}
