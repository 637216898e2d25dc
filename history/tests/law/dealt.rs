//! Envelopes that were dealt to stripes: what each rule flags there, and what it must not.

use red_envelope_history::{Answer, Handing, History, Home, Recorder, Rule};

use super::{already, closed, history, rules, won};

/// Who is called a… lives at stripe 0, b… at stripe 1, and so on.
fn dealt(
    stripes: u32,
    moved_at: Option<u64>,
    history: History<&'static str>,
) -> History<&'static str> {
    let home = Home::new(|name: &&str| u32::from(name.as_bytes()[0] - b'a'));
    let handing = Handing::Dealt {
        stripes,
        home,
        moved_at,
    };
    History { handing, ..history }
}

type Bad = (Rule, History<&'static str>);

/// What contradicts itself, whichever stripe answers.
fn contradictions() -> Vec<Bad> {
    let a0 = ("a1", 1, 2, Some(won(0)));
    let again = |answer| ("a1", 3, 4, Some(answer));
    let cases = vec![
        (Rule::NoSuchShare, vec![("b1", 1, 2, Some(won(4)))]),
        (Rule::TwoHolders, vec![a0, ("a2", 1, 2, Some(won(0)))]),
        (Rule::WonTwice, vec![a0, again(won(0))]),
        (Rule::AnswerChanged, vec![a0, again(already(1))]),
        (Rule::SentAway, vec![a0, again(Answer::Over)]),
        (Rule::ToldBeforeAsked, vec![("b1", 1, 2, Some(already(2)))]),
    ];
    let cases = cases.into_iter();
    cases
        .map(|(rule, calls)| (rule, dealt(2, None, history(4, &calls))))
        .collect()
}

/// What a stripe can't have handed out then.
fn disorders() -> Vec<Bad> {
    let a1 = ("a1", 1, 2, Some(won(1)));
    let strayed = ("b1", 1, 2, Some(won(0)));
    let skipped = |other| history(4, &[a1, (other, 0, 0, None)]);
    vec![
        (Rule::OutOfPlace, dealt(2, None, history(4, &[strayed]))),
        (Rule::OutOfPlace, dealt(2, Some(3), history(4, &[strayed]))),
        // Its stripe had ended before anything could move.
        (
            Rule::OutOfPlace,
            dealt(
                2,
                Some(4),
                history(
                    4,
                    &[("b1", 1, 9, Some(won(0))), ("b2", 1, 2, Some(Answer::Over))],
                ),
            ),
        ),
        (
            Rule::OutOfOrder,
            dealt(2, None, history(4, &[a1, ("a2", 3, 4, Some(won(0)))])),
        ),
        // It was gone before the move, so it can't have moved.
        (
            Rule::OutOfOrder,
            dealt(2, Some(5), history(4, &[a1, ("b1", 6, 7, Some(won(0)))])),
        ),
        (
            Rule::OutOfOrder,
            dealt(2, Some(5), history(4, &[a1, ("b1", 1, 7, Some(won(0)))])),
        ),
        (Rule::SharesSkipped, dealt(2, None, history(4, &[a1]))),
        // Nobody of another stripe can have taken what was skipped.
        (Rule::SharesSkipped, dealt(2, Some(3), skipped("b1"))),
    ]
}

/// What was answered as if the envelope were at its end.
fn ends() -> Vec<Bad> {
    let [a0, a1] = [("a1", 0), ("a2", 1)].map(|(name, share)| (name, 1, 2, Some(won(share))));
    let empty = ("a3", 3, 4, Some(Answer::Empty));
    let b2 = ("b1", 1, 2, Some(won(2)));
    let lost = ("a4", 1, 0, None);
    let end = |moved_at, calls: &[_]| dealt(2, moved_at, history(4, calls));
    let two = |calls: &[_]| dealt(2, None, history(2, calls));
    let late = ("b1", 3, 4, Some(won(1)));
    let told = |answer| ("b2", 1, 2, Some(answer));
    vec![
        // A stripe that is used up says so of itself.
        (Rule::EmptyTooEarly, end(None, &[a0, a1, empty])),
        (Rule::EmptyTooEarly, end(Some(2), &[a0, a1, empty])),
        // Who may have taken a share lives at a stripe that had none any more.
        (Rule::EmptyTooEarly, end(None, &[a0, a1, b2, lost, empty])),
        (
            Rule::EmptyTooEarly,
            end(Some(5), &[a0, a1, b2, lost, empty]),
        ),
        (Rule::GrantAfterEmpty, two(&[a0, told(Answer::Empty), late])),
        (Rule::GrantAfterClose, two(&[a0, told(Answer::Over), late])),
        (Rule::GrantAfterClose, closed(two(&[a0, late]), 2)),
    ]
}

#[test]
fn bad_histories_of_stripes_are_flagged_under_the_rule_that_they_break() {
    let bad = [contradictions(), disorders(), ends()].concat();
    assert_eq!(bad.len(), 21);
    for (rule, history) in bad {
        assert_eq!(rules(&history), [rule], "{history:?}");
    }
}

#[test]
fn what_stripes_hand_out_at_once_is_no_disorder_of_theirs() {
    let a = |from, share| ("a1", from, from + 1, Some(won(share)));
    let b = |from, share| ("b1", from, from + 1, Some(won(share)));
    let over = ("a2", 1, 2, Some(Answer::Over));
    // What one dispenser would be accused of.
    let good = [
        (
            vec![Rule::SharesSkipped],
            None,
            history(4, &[a(1, 0), b(1, 2)]),
        ),
        (
            vec![Rule::OutOfOrder],
            None,
            history(4, &[b(1, 2), a(3, 0), ("a2", 5, 6, Some(won(1)))]),
        ),
        // One stripe's end is not another's.
        (
            vec![Rule::GrantAfterClose],
            None,
            history(2, &[("a1", 0, 1, Some(won(0))), over, b(3, 1)]),
        ),
        // From the first move on each takes what is there.
        (
            vec![Rule::OutOfOrder],
            Some(5),
            history(2, &[b(6, 0), ("b2", 3, 4, Some(won(1)))]),
        ),
        (
            vec![Rule::OutOfOrder],
            Some(5),
            history(2, &[b(8, 0), ("a1", 6, 7, Some(won(1)))]),
        ),
        (vec![Rule::SharesSkipped], Some(2), history(4, &[b(1, 1)])),
        // The end of a stripe in the middle of a close, and what had moved before.
        (
            vec![Rule::OutOfOrder, Rule::GrantAfterClose],
            Some(5),
            closed(
                history(
                    4,
                    &[
                        ("b1", 6, 7, Some(won(1))),
                        ("a1", 6, 7, Some(Answer::Over)),
                        ("b2", 8, 9, Some(won(0))),
                        ("b3", 1, 2, Some(won(2))),
                    ],
                ),
                9,
            ),
        ),
    ];
    for (accused, moved_at, whole) in good {
        let mut as_one = rules(&whole);
        as_one.sort_unstable();
        let mut accused = accused;
        accused.sort_unstable();
        assert_eq!(as_one, accused, "{whole:?}");
        let history = dealt(2, moved_at, whole);
        assert_eq!(history.violations(), [], "{history:?}");
    }
}

#[test]
fn who_was_told_nothing_may_have_any_share_once_they_move() {
    let calls = [
        ("a1", 1, 2, Some(won(0))),
        ("a2", 1, 2, Some(won(1))),
        ("b1", 1, 2, Some(won(2))),
        ("a4", 1, 0, None),
        ("b3", 5, 6, Some(Answer::Empty)),
    ];
    let moved = |moved_at| rules(&dealt(2, moved_at, history(4, &calls)));
    assert_eq!(moved(Some(6)), []);
    assert_eq!(moved(Some(7)), [Rule::EmptyTooEarly]);
    // But for those whose stripe had ended.
    let over = [&calls[..], &[("a5", 2, 3, Some(Answer::Over))]].concat();
    let moved = |moved_at| rules(&dealt(2, moved_at, history(4, &over)));
    assert_eq!(moved(Some(3)), []);
    assert_eq!(moved(Some(4)), [Rule::EmptyTooEarly]);
}

#[test]
fn numbers_tell_the_order_of_a_stripe_within_one_epoch_only() {
    let calls = [("b1", 1, 2, Some(won(3))), ("b2", 5, 6, Some(won(2)))];
    let mut replaced = dealt(2, None, history(4, &calls));
    assert_eq!(rules(&replaced), [Rule::OutOfOrder]);
    replaced.replaced_at.push(4);
    assert_eq!(rules(&replaced), []);
}

#[test]
fn a_recorder_remembers_when_shares_began_to_move() {
    for moves in [false, true] {
        let recorder = Recorder::default();
        let handing = Handing::Dealt {
            stripes: 2,
            home: Home::new(|name: &&str| u32::from(name.starts_with('b'))),
            moved_at: None,
        };
        recorder.begin("dealt", 4, handing);
        recorder.begin("whole", 4, Handing::ByNumber);
        if moves {
            recorder.moved(&"dealt");
            recorder.moved(&"whole");
        }
        let asked = recorder.ask(&"dealt", "bob").unwrap();
        recorder.answer(asked, won(1));
        // A later one changes nothing.
        recorder.moved(&"dealt");
        let found = recorder.violations().into_iter();
        let found: Vec<_> = found.map(|(_, found)| found.rule).collect();
        assert_eq!(found.is_empty(), moves, "{found:?}");
        assert!(found.iter().all(|rule| *rule == Rule::OutOfPlace));
    }
}
