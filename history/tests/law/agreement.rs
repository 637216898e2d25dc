//! Random histories before the judge and before every order: both say the same.

use proptest::collection::vec;
use proptest::prelude::*;
use red_envelope_history::{Answer, Attempt, Close, Handing, History, Home};

use super::orders::{Dispensers, possible};
use super::{already, won};

/// Dealt to so many stripes, where the `n`th person lives at the `n mod S`th.
fn dealt(stripes: u32, moved_at: Option<u64>) -> Handing<u8> {
    Handing::Dealt {
        stripes,
        home: Home::new(move |who: &u8| u32::from(*who) % stripes),
        moved_at,
    }
}

/// Short histories of a few people, most of which nobody could have answered.
fn any_history(shares_max: u32) -> impl Strategy<Value = History<u8>> {
    let number = 0..shares_max;
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
    (1..=shares_max, vec(attempt, 0..6), vec(close, 0..2)).prop_map(
        |(share_count, attempts, closes)| History {
            share_count,
            attempts,
            closes,
            ..History::default()
        },
    )
}

/// The same of an envelope in stripes, or in no order.
fn any_dealt() -> impl Strategy<Value = History<u8>> {
    let moved_at = prop::option::weighted(0.7, 0..30_u64);
    (any_history(4), 0..4_u32, moved_at).prop_map(|(history, stripes, moved_at)| History {
        handing: match stripes {
            0 => Handing::Unordered,
            _ => dealt(stripes, moved_at),
        },
        ..history
    })
}

/// What happens at an instant.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// Somebody grabs, and takes one of what is left for him.
    Grab(u8, usize),
    /// Everything ends.
    Close,
    /// One stripe ends by itself.
    End(usize),
    /// Shares move from now on.
    Move,
}

/// So many grabs a close.
fn events(of_stripes: bool, grabs: u32) -> BoxedStrategy<Event> {
    let grab = (0..24_u8, 0..9_usize).prop_map(|(who, pick)| Event::Grab(who, pick));
    match of_stripes {
        false => prop_oneof![grabs => grab, 1 => Just(Event::Close)].boxed(),
        true => prop_oneof![
            grabs => grab,
            1 => Just(Event::Close),
            2 => (0..9_usize).prop_map(Event::End),
            3 => Just(Event::Move),
        ]
        .boxed(),
    }
}

/// What dispensers answer to people who ask at random: a span around each instant, and some answers
/// lost.
fn real_history(
    stripes: u32,
    (shares_max, events_max): (u32, usize),
) -> impl Strategy<Value = History<u8>> {
    let heard = prop::bool::weighted(0.85);
    let grabs = u32::try_from(events_max).expect("histories are short");
    let event = events(stripes > 1, grabs);
    let call = (event, 0..9_u64, 0..9_u64, heard);
    (0..shares_max, vec(call, 1..=events_max)).prop_map(move |(share_count, calls)| {
        let mut dispensers = Dispensers::new(share_count, stripes);
        let (mut attempts, mut closes, mut moved_at) = (Vec::new(), Vec::new(), None);
        for (place, (event, before, after, heard)) in calls.into_iter().enumerate() {
            let instant = 100 + 6 * place as u64;
            let (asked_at, to) = (instant - 4 * before, instant + 1 + 4 * after);
            match event {
                Event::Grab(grabber, pick) => {
                    let told = dispensers.grab(grabber, pick).filter(|_| heard);
                    attempts.push(Attempt {
                        grabber,
                        asked_at,
                        answered: told.map(|told| (to, told)),
                    });
                }
                Event::Close => {
                    dispensers.close();
                    closes.push(Close {
                        asked_at,
                        answered_at: heard.then_some(to),
                    });
                }
                Event::End(stripe) => dispensers.end(stripe % stripes as usize),
                Event::Move => {
                    dispensers.shares_move();
                    moved_at.get_or_insert(asked_at);
                }
            }
        }
        History {
            share_count,
            handing: match stripes {
                1 => Handing::ByNumber,
                _ => dealt(stripes, moved_at),
            },
            attempts,
            closes,
            ..History::default()
        }
    })
}

/// The same of one to three stripes.
fn short_history() -> impl Strategy<Value = History<u8>> {
    (1..4_u32).prop_flat_map(|stripes| real_history(stripes, (8, 8)))
}

/// With two answers swapped it is nearly right.
fn swapped(mut history: History<u8>, (one, other): (usize, usize)) -> History<u8> {
    let count = history.attempts.len();
    if count > 0 {
        let (one, other) = (one % count, other % count);
        let answers = [one, other].map(|at| history.attempts[at].answered.map(|(_, told)| told));
        for (at, told) in [(one, answers[1]), (other, answers[0])] {
            let to = history.attempts[at].answered.map(|(to, _)| to);
            history.attempts[at].answered = to.zip(told);
        }
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn the_judge_agrees_with_trying_every_order(history in any_history(3)) {
        let found = history.violations();
        prop_assert_eq!(found.is_empty(), possible(&history), "{:?}", found);
    }

    #[test]
    fn the_judge_of_stripes_agrees_with_trying_every_order(history in any_dealt()) {
        let found = history.violations();
        prop_assert_eq!(found.is_empty(), possible(&history), "{:?}", found);
    }

    #[test]
    fn the_judge_agrees_also_where_two_answers_were_swapped(
        history in short_history(), one in 0..8_usize, other in 0..8_usize,
    ) {
        let history = swapped(history, (one, other));
        let found = history.violations();
        prop_assert_eq!(found.is_empty(), possible(&history), "{:?}", found);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn what_a_dispenser_answers_is_never_flagged(history in real_history(1, (8, 80))) {
        prop_assert_eq!(history.violations(), []);
    }

    #[test]
    fn what_stripes_answer_is_never_flagged(
        history in (2..5_u32).prop_flat_map(|stripes| real_history(stripes, (24, 80))),
    ) {
        prop_assert_eq!(history.violations(), []);
    }
}
