//! The judge before the court: bad histories that must be flagged, good ones that must not, and every
//! order tried.
//!
//! # Shape
//! | file | what |
//! |---|---|
//! | here | histories of one dispenser, written by hand |
//! | `dealt` | the same of an envelope that was dealt to stripes |
//! | `orders` | dispensers, and whether any order of theirs gives the answers |
//! | `agreement` | random histories, before the judge and before the orders |

mod agreement;
mod dealt;
mod orders;

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
