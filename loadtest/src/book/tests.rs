//! Answers that must be flagged, and honest ones that must not.

use super::*;

fn page(share_count: u32, guests: u32) -> Page {
    Page::new(Terms {
        name: "it".into(),
        total_minor: 10 * i64::from(share_count),
        share_count,
        min_minor: 1,
        max_minor: 100,
        named_minor: None,
        guests,
    })
}

fn held(number: u32, amount_minor: i64) -> Held {
    Held {
        number,
        amount_minor,
    }
}

fn grab(page: &mut Page, guest: u32, answer: &Answer) {
    let asked_at = page.ask(Person::Guest(guest));
    page.answer(Person::Guest(guest), asked_at, false, answer);
}

fn wrongs(mut page: Page) -> Vec<String> {
    page.sum_up();
    page.take_violations().details
}

/// Two shares, three guests, one of whom repeats: all as it must be.
fn honest() -> Page {
    let mut page = page(2, 3);
    grab(&mut page, 0, &Answer::Won(held(0, 7)));
    grab(&mut page, 1, &Answer::Won(held(1, 13)));
    grab(&mut page, 0, &Answer::Already(held(0, 7)));
    grab(&mut page, 2, &Answer::Empty);
    page
}

#[test]
fn an_honest_envelope_has_no_violation() {
    assert_eq!(wrongs(honest()), Vec::<String>::new());
}

#[test]
fn the_numbers_of_an_envelope_that_is_dealt_tell_no_order_and_all_else_is_judged() {
    // Share 1 and then share 0; empty only then.
    let backwards = |above| {
        let mut page = page(2, 3);
        page.deals_above(above);
        grab(&mut page, 0, &Answer::Won(held(1, 13)));
        grab(&mut page, 1, &Answer::Won(held(0, 7)));
        grab(&mut page, 2, &Answer::Empty);
        page
    };
    assert_eq!(wrongs(backwards(1)), Vec::<String>::new());
    for not_dealt in [0, 2] {
        assert_ne!(wrongs(backwards(not_dealt)), Vec::<String>::new());
    }
    let mut early = page(2, 2);
    early.deals_above(1);
    grab(&mut early, 0, &Answer::Empty);
    grab(&mut early, 1, &Answer::Won(held(1, 13)));
    assert_ne!(wrongs(early), Vec::<String>::new());
}

#[test]
fn an_answer_that_overtakes_the_win_is_no_violation() {
    let mut page = page(1, 2);
    let asked_at = page.ask(Person::Guest(0));
    grab(&mut page, 1, &Answer::Empty);
    // The repetition left when the envelope was known to be empty; the first grab had not.
    grab(&mut page, 0, &Answer::Already(held(0, 10)));
    page.answer(Person::Guest(0), asked_at, false, &Answer::Won(held(0, 10)));
    assert_eq!(wrongs(page), Vec::<String>::new());
}

#[test]
fn a_share_shown_to_two_is_found() {
    let mut page = page(2, 2);
    grab(&mut page, 0, &Answer::Won(held(0, 10)));
    grab(&mut page, 1, &Answer::Won(held(0, 10)));
    assert!(wrongs(page)[0].contains("went to guest 0 and to guest 1"));
}

#[test]
fn a_second_win_of_one_guest_is_found() {
    let mut page = honest();
    grab(&mut page, 0, &Answer::Won(held(0, 7)));
    assert!(wrongs(page)[0].contains("WON twice"));
}

#[test]
fn another_amount_for_the_same_share_is_found() {
    let mut page = honest();
    grab(&mut page, 1, &Answer::Already(held(1, 14)));
    assert!(wrongs(page)[0].contains("after"));
}

#[test]
fn a_wrong_sum_is_found() {
    let mut page = page(2, 2);
    grab(&mut page, 0, &Answer::Won(held(0, 7)));
    grab(&mut page, 1, &Answer::Won(held(1, 12)));
    assert!(wrongs(page)[0].contains("pay 19 of 20"));
}

#[test]
fn empty_before_the_shares_were_asked_for_is_found() {
    let mut page = page(2, 3);
    grab(&mut page, 0, &Answer::Won(held(0, 10)));
    grab(&mut page, 1, &Answer::Empty);
    assert!(wrongs(page)[0].contains("EMPTY when 1 others"));
}

#[test]
fn a_win_asked_for_after_empty_is_found() {
    let mut page = page(1, 3);
    let asked_at = page.ask(Person::Guest(0));
    grab(&mut page, 1, &Answer::Empty);
    // Asked before anybody knew: fine.
    page.answer(Person::Guest(0), asked_at, false, &Answer::Won(held(0, 10)));
    let mut broken = self::page(1, 3);
    broken.ask(Person::Guest(0));
    grab(&mut broken, 1, &Answer::Empty);
    grab(&mut broken, 2, &Answer::Won(held(0, 10)));
    assert_eq!(wrongs(page), Vec::<String>::new());
    assert!(wrongs(broken)[0].contains("although it was empty"));
}

#[test]
fn shares_that_are_handed_out_backwards_are_found() {
    let mut page = page(2, 2);
    grab(&mut page, 0, &Answer::Won(held(1, 10)));
    grab(&mut page, 1, &Answer::Won(held(0, 10)));
    assert!(wrongs(page)[0].contains("no order of the grabs explains it: OutOfOrder"));
}

#[test]
fn a_lost_share_is_found_and_a_doubtful_one_is_not_called_lost() {
    let mut lost = page(2, 2);
    grab(&mut lost, 0, &Answer::Won(held(0, 10)));
    lost.ask(Person::Guest(1));
    assert!(wrongs(lost)[0].contains("1 hold a share of 2"));

    let mut doubtful = page(2, 2);
    grab(&mut doubtful, 0, &Answer::Won(held(0, 10)));
    grab(&mut doubtful, 1, &Answer::Unknown("timeout".into()));
    assert_eq!(wrongs(doubtful), Vec::<String>::new());
}

#[test]
fn a_share_of_another_name_is_found() {
    let mut page = Page::new(Terms {
        named_minor: Some(vec![4, 6]),
        total_minor: 10,
        ..page(2, 2).terms
    });
    grab(&mut page, 0, &Answer::Won(held(1, 6)));
    assert!(wrongs(page)[0].contains("not the own share"));
}

#[test]
fn an_outsider_who_learns_anything_is_found() {
    let mut page = page(1, 1);
    grab(&mut page, 0, &Answer::Won(held(0, 10)));
    for (stranger, answer) in [(0, Answer::NotFound), (1, Answer::Empty)] {
        let asked_at = page.ask(Person::Outsider(stranger));
        page.answer(Person::Outsider(stranger), asked_at, false, &answer);
    }
    assert_eq!(wrongs(page).len(), 1);
}
