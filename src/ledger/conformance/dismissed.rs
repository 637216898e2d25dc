//! Dead letters that an operator lets go of.

use super::{FIRST, World, act, pay, record};
use crate::domain::envelope::CloseReason;
use crate::domain::grab::OutboxRecord;
use crate::domain::id::EnvelopeId;
use crate::ledger::{CloseProgress, DeadLetterRow, LedgerError, SettleItem, Settled};

impl World {
    pub(super) async fn set_aside(&self, record: OutboxRecord) -> DeadLetterRow {
        self.settle(vec![SettleItem::SetAside(record, "poison")])
            .await;
        let letters = self.ledger.dead_letters(None, 0, 10).await;
        letters.expect("letters").pop().expect("the newest")
    }

    /// Answers the letter's reason, and whether it is done with.
    pub(super) async fn dismiss(
        &self,
        letter: &DeadLetterRow,
        amount_minor: Option<i64>,
    ) -> Result<(String, bool), LedgerError> {
        let act = act("dismiss", letter.record.envelope);
        let left = self
            .ledger
            .dismiss_dead_letter(letter.row, amount_minor, act);
        left.await
            .map(|left| (left.reason.clone(), left.is_dismissed()))
    }

    pub(super) async fn closes(&self, id: EnvelopeId, taken_count: u32) -> bool {
        let expired = CloseReason::Expired;
        let done = self
            .ledger
            .finish_close(vec![FIRST], id, expired, taken_count);
        matches!(done.await, Ok(CloseProgress::Closed(_)))
    }
}

fn dismissed() -> (String, bool) {
    ("dismissed".to_owned(), true)
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_letter_that_can_never_be_owed_is_dismissed_and_its_envelope_closes(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let amount = world.set_aside(record(id, 0, "eve", 21)).await;
    let beyond = world.set_aside(record(id, 9, "eve", 20)).await;
    let declined = OutboxRecord {
        declined: true,
        ..record(id, 1, "eve", 20)
    };
    let declined = world.set_aside(declined).await;
    world.settle(vec![pay(id, 0, "bob", 20)]).await;
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    let says = [(&amount, Some(20)), (&beyond, None), (&declined, Some(20))];
    for (letter, seed_says) in says {
        assert!(!world.closes(id, 1).await);
        for _ in 0..2 {
            let left = world.dismiss(letter, seed_says).await;
            assert_eq!(left.expect("an answer"), dismissed());
        }
    }
    assert!(world.closes(id, 1).await);
    let left = world.dismiss(&amount, None).await;
    assert_eq!(left.expect("an answer"), dismissed());
    let replayed = world
        .ledger
        .replay_dead_letter(amount.row, Some(21), act("replay", id));
    let replayed = replayed.await.expect("an answer").expect("not paid");
    assert_eq!(replayed.reason, "dismissed");
    for (name, has) in [("bob", 20), ("eve", 0), ("alice", 80)] {
        assert_eq!(world.has(name).await, (has, 0), "{name}");
    }
    let acts = world.ledger.acts(Some(id), 20).await.expect("acts");
    let results: Vec<_> = acts.iter().map(|a| (&*a.act, &*a.result)).collect();
    assert_eq!(results[..7], [("dismiss", "done"); 7]);
    assert_eq!(results[7..], [("replay", "dismissed")]);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_letter_that_may_be_owed_is_not_dismissed(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let bobs = world.set_aside(record(id, 0, "bob", 20)).await;
    let unknown = EnvelopeId::from_parts(1, [9; 14]);
    let unknown = world.set_aside(record(unknown, 0, "bob", 20)).await;
    let poison = ("poison".to_owned(), false);
    for (letter, seed_says) in [(&bobs, Some(20)), (&unknown, None)] {
        let left = world.dismiss(letter, seed_says).await;
        assert_eq!(left.expect("an answer"), poison);
    }
    let frozen = world.ledger.freeze(id, act("freeze", id)).await;
    assert!(!frozen.expect("is frozen"));
    let refused = world.dismiss(&bobs, Some(21)).await;
    assert!(matches!(refused, Err(LedgerError::Frozen)));
    let unfrozen = world.ledger.unfreeze(id, act("unfreeze", id)).await;
    assert!(!unfrozen.expect("is unfrozen"));
    // Once it is paid, it is not dismissed either.
    world.settle(vec![pay(id, 0, "bob", 20)]).await;
    let left = world.dismiss(&bobs, Some(21)).await;
    assert_eq!(left.expect("an answer"), poison);
    let never = DeadLetterRow {
        row: unknown.row + 1_000,
        ..unknown
    };
    let never = world.dismiss(&never, None).await;
    assert!(matches!(never, Err(LedgerError::NotFound)));
    let acts = world.ledger.acts(Some(id), 20).await.expect("acts");
    assert!(acts.iter().all(|act| act.act != "dismiss"), "{acts:?}");
    assert_eq!(world.has("bob").await, (20, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_record_that_comes_again_after_its_letter_was_dismissed_is_a_letter_again(
    world: &World,
) {
    let id = world.live(100, 4, "e1").await;
    let forged = || SettleItem::SetAside(record(id, 0, "eve", 21), "amount_mismatch");
    let letter = world.set_aside(record(id, 0, "eve", 21)).await;
    let left = world.dismiss(&letter, Some(20)).await;
    assert_eq!(left.expect("an answer"), dismissed());
    // Who set it aside died before it was deleted from the outbox, or it was granted since; twice in a batch.
    world.clock.advance_ms(7);
    let verdicts = world
        .settle(vec![forged(), forged(), pay(id, 1, "bob", 20)])
        .await;
    let twice = [Settled::DeadLetter, Settled::DeadLetter, Settled::Paid];
    assert_eq!(verdicts, twice);
    world.settle(vec![forged()]).await;
    let letters = world.ledger.dead_letters(None, 0, 10).await;
    let again = letters.expect("letters").pop().expect("it is open");
    assert_eq!((again.row, again.tries), (letter.row, 3));
    assert_eq!(again.reason, "amount_mismatch");
    assert_eq!(again.created_at, letter.created_at.plus_ms(7));
    // It counts once.
    assert_eq!(world.envelope(id).await.set_aside_count, 1);
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    assert!(!world.closes(id, 1).await);
    let left = world.dismiss(&letter, Some(20)).await;
    assert_eq!(left.expect("an answer"), dismissed());
    assert!(world.closes(id, 1).await);
    // Nothing of a closed envelope moves, not even how often a letter was tried.
    world.settle(vec![forged()]).await;
    let done = world.ledger.dead_letter(letter.row).await.expect("a read");
    let done = done.expect("it stays");
    assert!(done.is_dismissed(), "{done:?}");
    assert_eq!(done.tries, 3);
    assert_eq!(world.has("eve").await, (0, 0));
    assert_eq!(world.has("alice").await, (80, 0));
}
