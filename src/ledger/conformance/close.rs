//! The end of an envelope.

use super::partitions::advance;
use super::{FIRST, HOUR_MS, NOON_MS, World, act, decline, draft, fund, pay, record, unders};
use crate::domain::envelope::{BookState, CloseReason};
use crate::domain::id::{EnvelopeId, Epoch, UnixMs};
use crate::ledger::{
    CloseProgress, Due, EnvelopeRow, LedgerError, SettleItem, Settled, UNDERS_MAX,
};

impl World {
    async fn finish(&self, id: EnvelopeId, taken_count: u32) -> CloseProgress {
        let closing = self
            .ledger
            .finish_close(vec![FIRST], id, CloseReason::Expired, taken_count);
        closing.await.expect("an answer")
    }

    /// The same of an envelope that lies in several partitions.
    async fn finish_under(
        &self,
        epochs: &[(u16, u64)],
        id: EnvelopeId,
        taken_count: u32,
    ) -> Result<CloseProgress, LedgerError> {
        let under = unders(epochs);
        self.ledger
            .finish_close(under, id, CloseReason::Expired, taken_count)
            .await
    }

    async fn begin(&self, id: EnvelopeId, reason: CloseReason) -> EnvelopeRow {
        self.ledger
            .begin_close(id, reason)
            .await
            .expect("it closes")
    }

    async fn all_due(&self) -> Vec<Due> {
        let due = self.ledger.due(10_000, 0, 100).await.expect("work");
        due.into_iter().map(|(_, due)| due).collect()
    }
}

fn waiting(progress: &CloseProgress) -> Option<(u32, u32)> {
    match progress {
        CloseProgress::Waiting {
            claimed_count,
            dead_letters,
        } => Some((*claimed_count, *dead_letters)),
        CloseProgress::Closed(_) => None,
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_close_waits_until_claims_cover_what_was_granted(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let early = world
        .ledger
        .finish_close(vec![FIRST], id, CloseReason::Expired, 0)
        .await;
    assert!(
        matches!(early, Err(LedgerError::Broken(_))),
        "it is not closing"
    );
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    world.begin(id, CloseReason::Expired).await;
    assert_eq!(waiting(&world.finish(id, 3).await), Some((1, 0)));
    world.settle(vec![pay(id, 1, "carol", 10)]).await;
    assert_eq!(waiting(&world.finish(id, 3).await), Some((2, 0)));
    assert_eq!(world.has("alice").await, (0, 50));
    world.settle(vec![decline(id, 2, "dave", 5)]).await;
    assert_eq!(waiting(&world.finish(id, 3).await), None);
    assert_eq!(world.has("alice").await, (50, 0));
    // Fewer granted than claimed is a contradiction of a store that was never replaced.
    let other = world.live(100, 4, "e2").await;
    world.settle(vec![pay(other, 0, "bob", 40)]).await;
    world.begin(other, CloseReason::Expired).await;
    assert_eq!(waiting(&world.finish(other, 0).await), Some((1, 0)));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_remainder_is_refunded_to_the_last_minor_unit(world: &World) {
    let id = world.live(888, 8, "e1").await;
    world
        .settle(vec![pay(id, 0, "bob", 777), decline(id, 1, "carol", 1)])
        .await;
    world.begin(id, CloseReason::Recalled).await;
    world.clock.advance_ms(5);
    let CloseProgress::Closed(closed) = world.finish(id, 2).await else {
        panic!("everything granted is settled");
    };
    assert_eq!((closed.settled_minor, closed.refunded_minor), (777, 111));
    assert_eq!(closed.closed_at, Some(UnixMs(NOON_MS + 5)));
    assert_eq!(world.has("alice").await, (111, 0));
    // Again, with whatever count: the same answer, and no second refund.
    let CloseProgress::Closed(again) = world.finish(id, 7).await else {
        panic!("closed stays closed");
    };
    assert_eq!(again.closed_at, closed.closed_at);
    assert_eq!(world.has("alice").await, (111, 0));
    // An envelope that gave everything away refunds nothing and posts nothing for it.
    let empty = world.live(10, 1, "e2").await;
    world.settle(vec![pay(empty, 0, "bob", 10)]).await;
    world.begin(empty, CloseReason::Empty).await;
    assert_eq!(waiting(&world.finish(empty, 1).await), None);
    let postings = world.ledger.postings(empty, 10).await.expect("postings");
    assert_eq!(postings.len(), 2);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn one_other_epoch_of_several_refunds_nothing(world: &World) {
    let id = world.live_in(3, (100, 4), "e1").await;
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    world.begin(id, CloseReason::Expired).await;
    advance(world, &[(5, 1)], "redis a").await;
    // Each of the three in turn is the one that stands elsewhere: behind, or ahead.
    for (epochs, stands) in [
        ([(9, 1), (5, 1), (1, 1)], 2),
        ([(9, 1), (5, 3), (1, 1)], 2),
        ([(9, 2), (5, 2), (1, 1)], 1),
        ([(9, 1), (5, 2), (1, 2)], 1),
    ] {
        let refused = world.finish_under(&epochs, id, 1).await;
        let elsewhere = matches!(refused, Err(LedgerError::Epoch(Epoch(e))) if e == stands);
        assert!(elsewhere, "{epochs:?}: {refused:?}");
        let envelope = world.envelope(id).await;
        assert_eq!(envelope.state, BookState::Closing(CloseReason::Expired));
        assert_eq!((envelope.refunded_minor, envelope.closed_at), (0, None));
        let postings = world.ledger.postings(id, 10).await.expect("postings");
        assert_eq!(postings.len(), 2);
        assert_eq!(world.has("alice").await, (0, 60));
    }
    // In whatever order they are named.
    let right = world.finish_under(&[(9, 1), (5, 2), (1, 1)], id, 1).await;
    assert_eq!(waiting(&right.expect("an answer")), None);
    assert_eq!(world.has("alice").await, (60, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_close_forgives_what_any_of_several_partitions_lost(world: &World) {
    let id = world.live_in(3, (100, 4), "e1").await;
    world
        .settle(vec![pay(id, 0, "bob", 40), pay(id, 1, "carol", 10)])
        .await;
    world.begin(id, CloseReason::Expired).await;
    let first = world.finish_under(&[(1, 1), (2, 1), (3, 1)], id, 1).await;
    assert_eq!(waiting(&first.expect("an answer")), Some((2, 0)));
    // Another partition was replaced, and none of the envelope's.
    advance(world, &[(4, 1)], "redis a").await;
    let none = world.finish_under(&[(1, 1), (2, 1), (3, 1)], id, 1).await;
    assert_eq!(waiting(&none.expect("an answer")), Some((2, 0)));
    advance(world, &[(2, 1)], "redis a").await;
    let more = world.finish_under(&[(1, 1), (2, 2), (3, 1)], id, 3).await;
    assert_eq!(waiting(&more.expect("an answer")), Some((2, 0)));
    let lost = world.finish_under(&[(1, 1), (2, 2), (3, 1)], id, 1).await;
    assert_eq!(waiting(&lost.expect("an answer")), None);
    assert_eq!(world.has("alice").await, (50, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_close_names_each_partition_of_its_envelope_once(world: &World) {
    let most = u16::try_from(UNDERS_MAX).expect("few");
    let id = world.live_in(most, (100, 100), "e1").await;
    world.begin(id, CloseReason::Expired).await;
    let all =
        |count: usize| -> Vec<(u16, u64)> { (0..).map(|index| (index, 1)).take(count).collect() };
    let twice = [all(UNDERS_MAX - 1), vec![(3, 1)]].concat();
    // None, one twice, too many for any envelope, and one too few for this one.
    for epochs in [vec![], twice, all(UNDERS_MAX + 1), all(UNDERS_MAX - 1)] {
        let refused = world.finish_under(&epochs, id, 0).await;
        assert!(
            matches!(refused, Err(LedgerError::Broken(_))),
            "{epochs:?}: {refused:?}"
        );
        assert_eq!(world.has("alice").await, (0, 100));
    }
    let most = world.finish_under(&all(UNDERS_MAX), id, 0).await;
    assert_eq!(waiting(&most.expect("an answer")), None);
    assert_eq!(world.has("alice").await, (100, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_first_reason_stands_until_the_hot_store_decides(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let first = world.begin(id, CloseReason::Recalled).await;
    assert_eq!(first.state, BookState::Closing(CloseReason::Recalled));
    let second = world.begin(id, CloseReason::Expired).await;
    assert_eq!(second.state, BookState::Closing(CloseReason::Recalled));
    let closed = world
        .ledger
        .finish_close(vec![FIRST], id, CloseReason::Empty, 0)
        .await;
    let Ok(CloseProgress::Closed(closed)) = closed else {
        panic!("nothing was granted");
    };
    assert_eq!(closed.state, BookState::Closed(CloseReason::Empty));
    let late = world.begin(id, CloseReason::Recalled).await;
    assert_eq!(late.state, BookState::Closed(CloseReason::Empty));
    world.ledger.mark_live(id).await.expect("later states stay");
    assert_eq!(world.envelope(id).await.state, late.state);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_closed_envelope_pays_nothing_more(world: &World) {
    let id = world.live(100, 4, "e1").await;
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    world.begin(id, CloseReason::Expired).await;
    assert_eq!(waiting(&world.finish(id, 1).await), None);
    let late = vec![
        pay(id, 0, "bob", 40),
        pay(id, 1, "bob", 10),
        pay(id, 1, "carol", 10),
    ];
    let verdicts = [Settled::Duplicate, Settled::Superseded, Settled::DeadLetter];
    // A dead letter of a closed envelope is on record, but its row stays as it was closed.
    assert_eq!(world.settle(late).await, verdicts);
    assert_eq!(world.has("carol").await, (0, 0));
    assert_eq!(world.has("alice").await, (60, 0));
    let letters = world
        .ledger
        .dead_letters(None, 0, 10)
        .await
        .expect("letters");
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].reason, "envelope_closed");
    let row = letters[0].row;
    let replayed = world
        .ledger
        .replay_dead_letter(row, Some(10), act("replay", id))
        .await;
    let still = replayed.expect("an answer").expect("it can't be paid");
    assert_eq!((still.reason.as_str(), still.tries), ("envelope_closed", 2));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_dead_letter_blocks_the_close_until_it_is_replayed(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let poison = SettleItem::SetAside(record(id, 0, "bob", 40), "poison");
    world.settle(vec![poison]).await;
    world.begin(id, CloseReason::Expired).await;
    assert_eq!(waiting(&world.finish(id, 1).await), Some((0, 1)));
    assert_eq!(waiting(&world.finish(id, 0).await), Some((0, 1)));
    let letters = world
        .ledger
        .dead_letters(None, 0, 10)
        .await
        .expect("letters");
    let row = letters[0].row;
    for seed_says in [None, Some(41)] {
        let wrong = world
            .ledger
            .replay_dead_letter(row, seed_says, act("replay", id))
            .await;
        let letter = wrong.expect("an answer").expect("not paid");
        assert_eq!(letter.reason, "amount_is_not_the_seeds");
    }
    let paid = world
        .ledger
        .replay_dead_letter(row, Some(40), act("replay", id))
        .await;
    assert!(paid.expect("an answer").is_none());
    assert_eq!(world.has("bob").await, (40, 0));
    assert_eq!(waiting(&world.finish(id, 1).await), None);
    assert_eq!(world.has("alice").await, (60, 0));
    let acts = world.ledger.acts(Some(id), 10).await.expect("acts");
    let results: Vec<_> = acts.iter().map(|act| act.result.as_str()).collect();
    assert_eq!(
        results,
        ["amount_is_not_the_seeds", "amount_is_not_the_seeds", "done"]
    );
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_sweeper_is_told_what_is_due_and_goes_on_above_what_is_blocked(world: &World) {
    world.deposit("alice", 1_000, "d1").await;
    let expired = world.fund(draft("alice", 10, 2), "f1").await;
    world.clock.advance_ms(HOUR_MS / 2);
    let unpublished = world.fund(draft("alice", 10, 2), "f2").await;
    let empty = world.live(10, 2, "e3").await;
    world
        .settle(vec![pay(empty, 0, "bob", 4), decline(empty, 1, "carol", 6)])
        .await;
    let closing = world.live(10, 2, "e4").await;
    world.begin(closing, CloseReason::Recalled).await;
    let quiet = world.live(10, 2, "e5").await;
    // The first is old enough to be published by the sweeper, the second is not.
    let young = [
        Due::Unpublished(expired.id),
        Due::Empty(empty),
        Due::Closing(closing),
    ];
    assert_eq!(world.all_due().await, young);
    world.clock.advance_ms(HOUR_MS / 2);
    let all = [
        Due::Expired(expired.id),
        Due::Unpublished(unpublished.id),
        Due::Empty(empty),
        Due::Closing(closing),
    ];
    assert_eq!(world.all_due().await, all);
    // Pages of one: each goes on above the last, whatever became of it.
    let mut after = 0;
    let mut paged = Vec::new();
    while let Some((row, due)) = world
        .ledger
        .due(10_000, after, 1)
        .await
        .expect("work")
        .pop()
    {
        after = row;
        paged.push(due);
    }
    assert_eq!(paged, all);
    world.clock.advance_ms(HOUR_MS / 2);
    let expired_too = world.all_due().await;
    assert_eq!(expired_too.len(), 5);
    assert!(expired_too.contains(&Due::Expired(empty)));
    assert!(expired_too.contains(&Due::Expired(quiet)));
    let funded_late = world.ledger.fund(fund(draft("alice", 10, 2), "f6")).await;
    assert!(!funded_late.expect("there is money").replayed);
    assert_eq!(world.all_due().await.len(), 5, "patience with the youngest");
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_proof_is_revealed_after_the_close_and_verifies(world: &World) {
    let id = world.live(100, 4, "e1").await;
    assert!(world.ledger.proof(id).await.expect("a read").is_none());
    world.begin(id, CloseReason::Expired).await;
    assert!(world.ledger.proof(id).await.expect("a read").is_none());
    assert_eq!(waiting(&world.finish(id, 0).await), None);
    let proof = world.ledger.proof(id).await.expect("a read");
    let proof = proof.expect("closed envelopes are proved");
    let verified = proof.verify().expect("our own proof");
    let terms = world.envelope(id).await.terms;
    assert_eq!(verified.leaf_hash, terms.leaf.leaf_hash);
    assert_eq!(verified.batch_root, terms.leaf.batch_root);
    assert_eq!(verified.amounts.iter().sum::<i64>(), 100);
    assert_eq!(proof.envelope_id, id.to_string());
    let unknown = EnvelopeId::from_parts(1, [9; 14]);
    let missing = world.ledger.proof(unknown).await;
    assert!(matches!(missing, Err(LedgerError::NotFound)));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn marks_that_arrive_together_are_each_answered_by_its_own_row(world: &World) {
    world.deposit("alice", 1_000, "d1").await;
    let mut funded = Vec::new();
    for number in 0..3 {
        let draft = draft("alice", 100, 4);
        funded.push(world.fund(draft, &format!("f{number}")).await.id);
    }
    let [new, frozen, twice] = funded[..] else {
        panic!("three were funded");
    };
    let why = act("freeze", frozen);
    world.ledger.freeze(frozen, why).await.expect("it freezes");
    let closing = world.live(100, 4, "e1").await;
    world.begin(closing, CloseReason::Recalled).await;
    let unknown = EnvelopeId::from_parts(UnixMs(NOON_MS).day(), [7; 14]);
    let asked = [unknown, twice, closing, new, twice, frozen];
    let marks = asked.map(|id| world.ledger.mark_live(id));
    let marked = futures_util::future::join_all(marks).await;
    assert!(matches!(marked[0], Err(LedgerError::NotFound)));
    for (id, row) in asked.into_iter().zip(marked).skip(1) {
        let row = row.expect("it is known");
        let live = match id == closing {
            true => BookState::Closing(CloseReason::Recalled),
            false => BookState::Live,
        };
        assert_eq!((row.id, row.state, row.frozen), (id, live, id == frozen));
        assert_eq!(world.envelope(id).await.state, live);
    }
}
