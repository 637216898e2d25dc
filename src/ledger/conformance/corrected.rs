//! Dead letters of which only the amount is wrong, and what stands in the way of a close.

use super::{FIRST, World, act, draft, pay, record};
use crate::domain::envelope::{BookState, CloseReason};
use crate::domain::grab::OutboxRecord;
use crate::domain::money::AMOUNT_MINOR_MAX;
use crate::ledger::{DeadLetterRow, LedgerError, PAGE_ROWS_MAX, SettleItem, Settled};

impl World {
    /// Answers the letter's reason and whether it is open; `None`: it was paid as it is written.
    async fn correct(
        &self,
        letter: &DeadLetterRow,
        amount_minor: Option<i64>,
    ) -> Result<Option<(String, bool)>, LedgerError> {
        let act = act("correct", letter.record.envelope);
        let left = self
            .ledger
            .correct_dead_letter(letter.row, amount_minor, act);
        let told = |left: DeadLetterRow| (left.reason, left.settled_at.is_none());
        left.await.map(|left| left.map(told))
    }

    async fn replayed(&self, letter: &DeadLetterRow, amount_minor: Option<i64>) -> String {
        let act = act("replay", letter.record.envelope);
        let left = self
            .ledger
            .replay_dead_letter(letter.row, amount_minor, act);
        let left = left.await.expect("an answer");
        left.expect("not paid as it is written").reason
    }
}

fn done(reason: &str) -> Option<(String, bool)> {
    Some((reason.to_owned(), false))
}

fn open(reason: &str) -> Option<(String, bool)> {
    Some((reason.to_owned(), true))
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_letter_of_a_wrong_amount_is_corrected_to_what_the_seed_says(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let letter = world.set_aside(record(id, 0, "bob", 21)).await;
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    assert_eq!(
        world.replayed(&letter, Some(20)).await,
        "amount_is_not_the_seeds"
    );
    assert!(!world.closes(id, 1).await);
    // The answer was lost, and the act is repeated.
    for _ in 0..2 {
        let left = world.correct(&letter, Some(20)).await;
        assert_eq!(left.expect("an answer"), done("corrected"));
    }
    assert_eq!(world.replayed(&letter, Some(20)).await, "corrected");
    let left = world.dismiss(&letter, Some(20)).await;
    assert_eq!(left.expect("an answer"), ("corrected".to_owned(), false));
    // Who set it aside died before it was deleted from the outbox.
    let again = SettleItem::SetAside(record(id, 0, "bob", 21), "amount_mismatch");
    assert_eq!(world.settle(vec![again]).await, [Settled::Superseded]);
    let letters = world.ledger.dead_letters(None, 0, 10).await;
    assert!(letters.expect("letters").is_empty());
    assert!(world.closes(id, 1).await);
    assert_eq!(
        world.correct(&letter, None).await.expect("an answer"),
        done("corrected")
    );
    assert_eq!(world.has("bob").await, (20, 0));
    assert_eq!(world.has("alice").await, (80, 0));
    let acts = world.ledger.acts(Some(id), 20).await.expect("acts");
    let results: Vec<_> = acts.iter().map(|a| (&*a.act, &*a.result)).collect();
    let told = [
        ("replay", "amount_is_not_the_seeds"),
        ("correct", "corrected"),
        ("correct", "corrected"),
        ("replay", "corrected"),
        ("correct", "corrected"),
    ];
    assert_eq!(results, told);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_correction_pays_no_share_twice_and_nobody_beyond_the_terms(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let declined = OutboxRecord {
        declined: true,
        ..record(id, 1, "bob", 21)
    };
    let declined = world.set_aside(declined).await;
    let beyond = world.set_aside(record(id, 9, "bob", 21)).await;
    let dear = world.set_aside(record(id, 0, "bob", 21)).await;
    let right = world.set_aside(record(id, 2, "dave", 20)).await;
    // Only an amount is corrected.
    let left = world.correct(&declined, Some(20)).await;
    assert_eq!(left.expect("an answer"), open("amount_is_not_the_seeds"));
    let left = world.correct(&beyond, None).await;
    assert_eq!(left.expect("an answer"), open("amount_is_not_the_seeds"));
    let frozen = world.ledger.freeze(id, act("freeze", id)).await;
    assert!(!frozen.expect("is frozen"));
    let refused = world.correct(&dear, Some(20)).await;
    assert!(matches!(refused, Err(LedgerError::Frozen)), "{refused:?}");
    let unfrozen = world.ledger.unfreeze(id, act("unfreeze", id)).await;
    assert!(!unfrozen.expect("is unfrozen"));
    // Somebody else was paid the share.
    world.settle(vec![pay(id, 0, "carol", 20)]).await;
    // What the reserve would pay for it is capped here; as it is written it is owed by nobody.
    let refused = world.correct(&dear, Some(20)).await;
    assert!(
        matches!(refused, Err(LedgerError::MakeGoodCapped)),
        "{refused:?}"
    );
    assert_eq!(world.replayed(&dear, Some(20)).await, "superseded");
    let left = world.correct(&dear, Some(20)).await;
    assert_eq!(left.expect("an answer"), done("superseded"));
    // Where the amount is right there is nothing to correct.
    assert_eq!(world.correct(&right, Some(20)).await.expect("paid"), None);
    for (name, has) in [("bob", 0), ("carol", 20), ("dave", 20)] {
        assert_eq!(world.has(name).await, (has, 0), "{name}");
    }
    assert_eq!(world.envelope(id).await.set_aside_count, 2);
    let acts = world.ledger.acts(Some(id), 20).await.expect("acts");
    let acts = acts.iter().filter(|act| act.act == "correct");
    let results: Vec<_> = acts.map(|act| act.result.as_str()).collect();
    let open = "amount_is_not_the_seeds";
    assert_eq!(results, [open, open, "superseded", "done"]);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_correction_that_cannot_be_paid_changes_nothing(world: &World) {
    let id = world.live(100, 4, "e1").await;
    world.deposit("bob", AMOUNT_MINOR_MAX, "d2").await;
    let letter = world.set_aside(record(id, 0, "bob", 21)).await;
    let refused = world.correct(&letter, Some(20)).await;
    assert!(
        matches!(refused, Err(LedgerError::BalanceTooLarge)),
        "{refused:?}"
    );
    let letters = world.ledger.dead_letters(None, 0, 10).await;
    let letters = letters.expect("letters");
    let told: Vec<_> = letters.iter().map(|l| (l.row, l.tries)).collect();
    assert_eq!(told, [(letter.row, 1)]);
    assert_eq!(world.envelope(id).await.set_aside_count, 1);
    let left = world.dismiss(&letter, Some(20)).await;
    assert_eq!(left.expect("an answer"), ("dismissed".to_owned(), true));
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    assert!(world.closes(id, 0).await);
    // One that comes after the close is on record, and nothing is left to pay it with.
    let late = world.set_aside(record(id, 1, "carol", 21)).await;
    let refused = world.correct(&late, Some(20)).await;
    let expired = CloseReason::Expired;
    assert!(
        matches!(refused, Err(LedgerError::AlreadyOver(reason)) if reason == expired),
        "{refused:?}"
    );
    assert_eq!(world.envelope(id).await.state, BookState::Closed(expired));
    assert_eq!(world.has("bob").await, (AMOUNT_MINOR_MAX, 0));
    assert_eq!(world.has("carol").await, (0, 0));
    let acts = world.ledger.acts(Some(id), 20).await.expect("acts");
    assert!(acts.iter().all(|act| act.act != "correct"), "{acts:?}");
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn what_stands_in_the_way_of_a_close_is_told_page_by_page(world: &World) {
    let id = world.live(100, 4, "e1").await;
    world.deposit("alice", 100, "d2").await;
    let other = world.fund(draft("alice", 100, 4), "e2").await.id;
    let none = world.ledger.set_aside(id, 0, 10).await.expect("a read");
    assert_eq!((none.parked_count, none.letters.len()), (0, 0));
    let names = ["bob", "carol", "dave"];
    for name in names {
        world.set_aside(record(id, 0, name, 21)).await;
    }
    world.set_aside(record(other, 0, "erin", 21)).await;
    let done = world.set_aside(record(id, 1, "erin", 20)).await;
    world.settle(vec![pay(id, 1, "erin", 20)]).await;
    let frozen = world.ledger.freeze(id, act("freeze", id)).await;
    assert!(!frozen.expect("is frozen"));
    world.settle(vec![pay(id, 2, "frank", 20)]).await;
    let (mut told, mut after) = (Vec::new(), i64::MIN);
    for _ in 0..=names.len() {
        let page = world.ledger.set_aside(id, after, 1).await.expect("a read");
        assert_eq!(page.parked_count, 1);
        let Some(letter) = page.letters.into_iter().next() else {
            break;
        };
        after = letter.row;
        told.push(letter.record.grabber.as_str().to_owned());
    }
    assert_eq!(told, names);
    let all = world.ledger.set_aside(id, 0, PAGE_ROWS_MAX).await;
    let letters = all.expect("a read").letters;
    assert_eq!(letters.len(), names.len());
    assert!(letters.iter().all(|letter| letter.row != done.row));
    // One that comes after the close stands in no way.
    let begun = world.ledger.begin_close(other, CloseReason::Expired).await;
    begun.expect("it closes");
    let letter = world.ledger.set_aside(other, 0, 1).await.expect("a read");
    let left = world.dismiss(&letter.letters[0], Some(20)).await;
    assert_eq!(left.expect("an answer"), ("dismissed".to_owned(), true));
    assert!(world.closes(other, 0).await);
    let late = SettleItem::SetAside(record(other, 0, "bob", 21), "poison");
    let late = world.ledger.settle(FIRST, vec![late]).await;
    assert_eq!(late.expect("a verdict"), [Settled::DeadLetter]);
    let none = world.ledger.set_aside(other, 0, 10).await.expect("a read");
    assert_eq!(none.letters.len(), 0);
}
