//! Dead letters that an operator lets go of.

use super::{FIRST, World, act, pay, record};
use crate::domain::envelope::CloseReason;
use crate::domain::grab::OutboxRecord;
use crate::domain::id::EnvelopeId;
use crate::ledger::{CloseProgress, DeadLetterRow, LedgerError, SettleItem, Settled};

impl World {
    async fn set_aside(&self, record: OutboxRecord) -> DeadLetterRow {
        self.settle(vec![SettleItem::SetAside(record, "poison")])
            .await;
        let letters = self.ledger.dead_letters(None, 0, 10).await;
        letters.expect("letters").pop().expect("the newest")
    }

    /// Answers the letter's reason, and whether it is done with.
    async fn dismiss(
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

    async fn closes(&self, id: EnvelopeId, taken_count: u32) -> bool {
        let expired = CloseReason::Expired;
        let done = self.ledger.finish_close(FIRST, id, expired, taken_count);
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
pub async fn a_record_that_comes_again_stays_dismissed(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let forged = || record(id, 0, "eve", 21);
    let letter = world.set_aside(forged()).await;
    let left = world.dismiss(&letter, Some(20)).await;
    assert_eq!(left.expect("an answer"), dismissed());
    // Who set it aside died before it was deleted from the outbox.
    let again = SettleItem::SetAside(forged(), "amount_mismatch");
    let verdicts = world.settle(vec![again, pay(id, 0, "bob", 20)]).await;
    assert_eq!(verdicts, [Settled::DeadLetter, Settled::Paid]);
    let letters = world.ledger.dead_letters(None, 0, 10).await;
    assert!(letters.expect("letters").is_empty());
    let left = world.dismiss(&letter, Some(20)).await;
    assert_eq!(left.expect("an answer"), dismissed());
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    assert!(world.closes(id, 1).await);
    assert_eq!(world.has("eve").await, (0, 0));
}
