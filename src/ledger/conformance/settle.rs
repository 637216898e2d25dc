//! Settling batches.

use super::{FIRST, World, act, decline, draft, pay, record, tenant};
use crate::domain::id::EnvelopeId;
use crate::domain::money::AMOUNT_MINOR_MAX;
use crate::ledger::{
    LedgerError, Parked, REFUSED_BY_THE_BOOKS, SETTLE_BATCH_MAX, SettleItem, Settled,
};

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_batch_pays_each_grabber_once(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let verdicts = world
        .settle(vec![pay(id, 0, "bob", 40), pay(id, 2, "carol", 25)])
        .await;
    assert_eq!(verdicts, [Settled::Paid, Settled::Paid]);
    assert_eq!(world.has("bob").await, (40, 0));
    assert_eq!(world.has("carol").await, (25, 0));
    assert_eq!(world.has("alice").await, (0, 35));
    let envelope = world.envelope(id).await;
    assert_eq!((envelope.settled_count, envelope.settled_minor), (2, 65));
    let claims = world.ledger.claims(id, 0, 10).await.expect("claims");
    let shares: Vec<_> = claims
        .iter()
        .map(|c| (c.grant.share, c.grant.amount_minor))
        .collect();
    assert_eq!(shares, [(0, 40), (2, 25)]);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_same_record_again_is_a_duplicate(world: &World) {
    let id = world.live(100, 2, "e1").await;
    let batch = vec![pay(id, 0, "bob", 40), pay(id, 1, "carol", 60)];
    assert_eq!(world.settle(batch.clone()).await, [Settled::Paid; 2]);
    // Nothing is left in the escrow, and still the repeat is a duplicate and no dead letter.
    assert_eq!(world.settle(batch).await, [Settled::Duplicate; 2]);
    let aside = SettleItem::SetAside(record(id, 0, "bob", 40), "poison");
    assert_eq!(world.settle(vec![aside]).await, [Settled::Duplicate]);
    assert_eq!(world.has("bob").await, (40, 0));
    assert_eq!(world.has("carol").await, (60, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_share_or_a_grabber_with_another_claim_is_superseded(world: &World) {
    let id = world.live(100, 4, "e1").await;
    assert_eq!(
        world.settle(vec![pay(id, 0, "bob", 40)]).await,
        [Settled::Paid]
    );
    let others = vec![
        pay(id, 0, "carol", 40),
        pay(id, 1, "bob", 10),
        pay(id, 0, "bob", 41),
        decline(id, 0, "bob", 40),
    ];
    // Nothing is owed to bob; what carol was shown is more than may be made good.
    let superseded = Settled::Superseded;
    let verdicts = [Settled::Capped, superseded, superseded, superseded];
    assert_eq!(world.settle(others).await, verdicts);
    assert_eq!(world.has("bob").await, (40, 0));
    assert_eq!(world.has("carol").await, (0, 0));
    assert_eq!(world.has("alice").await, (0, 60));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn conflicts_inside_one_batch_are_found_too(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let verdicts = world
        .settle(vec![
            pay(id, 0, "bob", 40),
            pay(id, 0, "bob", 40),
            pay(id, 0, "carol", 40),
            pay(id, 1, "bob", 10),
            pay(id, 1, "carol", 10),
            pay(id, 2, "dave", 51),
            pay(id, 3, "erin", 50),
        ])
        .await;
    assert_eq!(
        verdicts,
        [
            Settled::Paid,
            Settled::Duplicate,
            Settled::Capped,
            Settled::Superseded,
            Settled::Paid,
            Settled::DeadLetter,
            Settled::Paid,
        ]
    );
    assert_eq!(world.has("alice").await, (0, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_declined_share_goes_back_to_the_sender(world: &World) {
    let id = world.live(100, 3, "e1").await;
    let batch = vec![decline(id, 1, "bob", 30), pay(id, 0, "carol", 50)];
    assert_eq!(world.settle(batch.clone()).await, [Settled::Paid; 2]);
    assert_eq!(world.settle(batch).await, [Settled::Duplicate; 2]);
    assert_eq!(world.has("alice").await, (30, 20));
    assert_eq!(world.has("bob").await, (0, 0));
    let envelope = world.envelope(id).await;
    assert_eq!((envelope.settled_count, envelope.declined_count), (1, 1));
    assert_eq!(envelope.refunded_minor, 30);
    let best = world.ledger.best_claim(id).await.expect("a read");
    assert_eq!(best.expect("one was paid").grant.share, 0);
    let claims = world.ledger.claims(id, 1, 10).await.expect("claims");
    assert!(claims[0].declined);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn what_cannot_be_paid_is_a_dead_letter_and_the_others_settle(world: &World) {
    let id = world.live(100, 4, "e1").await;
    world.deposit("rich", AMOUNT_MINOR_MAX, "d1").await;
    let unknown = EnvelopeId::from_parts(1, [9; 14]);
    let bad = [
        (pay(unknown, 0, "bob", 1), "unknown_envelope"),
        (
            SettleItem::SetAside(record(id, 0, "bob", 7), "amount"),
            "amount",
        ),
        (pay(id, 4, "dave", 1), "no_such_share"),
        (pay(id, 1, "dave", 101), "more_than_was_funded"),
        (pay(id, 2, "dave", 0), "amount_not_positive"),
        (pay(id, 3, "rich", 1), "balance_too_large"),
    ];
    let mut batch: Vec<_> = bad.iter().map(|(item, _)| item.clone()).collect();
    batch.push(pay(id, 0, "carol", 100));
    let verdicts = world.settle(batch.clone()).await;
    assert_eq!(verdicts[..6], [Settled::DeadLetter; 6]);
    assert_eq!(verdicts[6], Settled::Paid);
    let letters = world
        .ledger
        .dead_letters(None, 0, 100)
        .await
        .expect("letters");
    let reasons: Vec<_> = letters.iter().map(|l| l.reason.as_str()).collect();
    let expected: Vec<_> = bad.iter().map(|(_, reason)| *reason).collect();
    assert_eq!(reasons, expected);
    assert_eq!(letters[0].tenant, None);
    assert_eq!(letters[1].tenant, Some(tenant()));
    // The second time only counts. "amount" lost its share to carol meanwhile.
    let again = world.settle(batch).await;
    assert_eq!(again[0], Settled::DeadLetter);
    assert_eq!(again[1], Settled::Superseded);
    assert_eq!(again[6], Settled::Duplicate);
    let letters = world
        .ledger
        .dead_letters(None, 0, 100)
        .await
        .expect("letters");
    let tries: Vec<_> = letters.iter().map(|letter| letter.tries).collect();
    assert_eq!(tries, [2, 1, 2, 2, 2, 2]);
    let ours = world
        .ledger
        .dead_letters(Some(tenant()), letters[1].row, 2)
        .await;
    assert_eq!(ours.expect("letters").len(), 2);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_grabber_of_many_envelopes_is_credited_with_all_of_them(world: &World) {
    let mut batch = Vec::new();
    for index in 0..20 {
        let id = world.live(10, 2, &format!("e{index}")).await;
        batch.push(pay(id, 0, "bob", 4));
        batch.push(decline(id, 1, "carol", 6));
    }
    assert_eq!(world.settle(batch).await, [Settled::Paid; 40]);
    assert_eq!(world.has("bob").await, (80, 0));
    assert_eq!(world.has("alice").await, (120, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_best_claim_is_the_largest_with_the_lowest_number(world: &World) {
    let id = world.live(100, 5, "e1").await;
    assert!(world.ledger.best_claim(id).await.expect("a read").is_none());
    let best = async || {
        let best = world.ledger.best_claim(id).await.expect("a read");
        let best = best.expect("something was paid");
        (best.grant.share, best.grabber.to_string())
    };
    world
        .settle(vec![pay(id, 3, "bob", 20), pay(id, 1, "carol", 10)])
        .await;
    assert_eq!(best().await, (3, "bob".to_owned()));
    world.settle(vec![pay(id, 4, "dave", 20)]).await;
    assert_eq!(best().await, (3, "bob".to_owned()));
    world
        .settle(vec![pay(id, 2, "erin", 20), pay(id, 0, "fay", 19)])
        .await;
    assert_eq!(best().await, (2, "erin".to_owned()));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_frozen_envelope_parks_until_it_is_unfrozen(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let other = world.live(100, 4, "e2").await;
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    world
        .ledger
        .freeze(id, act("freeze", id))
        .await
        .expect("is frozen");
    let batch = vec![
        pay(id, 0, "bob", 40),
        pay(id, 1, "carol", 10),
        pay(id, 0, "dave", 40),
        pay(other, 0, "carol", 7),
    ];
    let verdicts = [
        Settled::Duplicate,
        Settled::Parked,
        Settled::Parked,
        Settled::Paid,
    ];
    assert_eq!(world.settle(batch.clone()).await, verdicts);
    let repeated = world.settle(batch).await;
    assert_eq!(repeated[1], Settled::Parked);
    assert_eq!(world.unparked().await, 0);
    assert_eq!(world.has("carol").await, (7, 0));
    world
        .ledger
        .unfreeze(id, act("unfreeze", id))
        .await
        .expect("is unfrozen");
    assert_eq!(world.unparked().await, 1);
    assert_eq!(world.unparked().await, 0);
    assert_eq!(world.has("carol").await, (17, 0));
}

async fn freeze(world: &World, id: EnvelopeId) {
    let frozen = world.ledger.freeze(id, act("freeze", id)).await;
    assert!(!frozen.expect("is frozen"));
}

async fn unfreeze(world: &World, id: EnvelopeId) {
    let unfrozen = world.ledger.unfreeze(id, act("unfreeze", id)).await;
    assert!(!unfrozen.expect("is unfrozen"));
}

/// Posts these parked records, or sets them aside.
async fn post(world: &World, parked: Parked, aside: Option<&'static str>) -> Vec<Settled> {
    let posted = world.ledger.settle_parked(parked, aside).await;
    posted.expect("the batch is posted")
}

/// The first of them.
fn first_of(parked: Parked) -> Parked {
    Parked {
        last: parked.first,
        records: 1,
        ..parked
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn what_was_parked_is_posted_an_envelope_at_a_time_in_its_order(world: &World) {
    let first = world.live(100, 4, "e1").await;
    let second = world.live(100, 4, "e2").await;
    freeze(world, first).await;
    freeze(world, second).await;
    let batch = vec![
        pay(first, 1, "carol", 10),
        pay(second, 0, "bob", 7),
        pay(first, 1, "dave", 10),
        pay(second, 1, "erin", 8),
    ];
    assert_eq!(world.settle(batch).await, [Settled::Parked; 4]);
    let listed = async |after| {
        let listed = world.ledger.parked(after, 10).await;
        listed.expect("a list")
    };
    assert_eq!(listed(i64::MIN).await, []);
    let parked = world.parked(first).await.expect("it is parked");
    assert_eq!(parked.records, 2);
    assert_eq!(post(world, parked, None).await, []);

    unfreeze(world, first).await;
    assert_eq!(listed(i64::MIN).await, [(parked.envelope_row, first)]);
    assert_eq!(listed(parked.envelope_row).await, []);
    // Of two who were granted the same share the first has it, also where they are posted one by one.
    assert_eq!(post(world, first_of(parked), None).await, [Settled::Paid]);
    let rest = world.parked(first).await.expect("one is parked");
    assert_eq!((rest.first, rest.records), (parked.last, 1));
    assert_eq!(post(world, parked, None).await, [Settled::Capped]);
    assert!(world.parked(first).await.is_none());
    assert_eq!(listed(i64::MIN).await, []);
    assert_eq!(world.has("carol").await, (10, 0));
    assert_eq!(world.has("dave").await, (0, 0));

    unfreeze(world, second).await;
    let parked = world.parked(second).await.expect("it is parked");
    freeze(world, second).await;
    assert_eq!(post(world, parked, None).await, []);
    assert_eq!(world.has("bob").await, (0, 0));
    unfreeze(world, second).await;
    assert_eq!(post(world, parked, None).await, [Settled::Paid; 2]);
    assert_eq!(post(world, parked, None).await, []);
    assert_eq!(world.has("bob").await, (7, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_parked_record_may_be_set_aside_and_replayed(world: &World) {
    let id = world.live(100, 4, "e1").await;
    freeze(world, id).await;
    let batch = vec![pay(id, 0, "bob", 40), pay(id, 1, "carol", 10)];
    assert_eq!(world.settle(batch).await, [Settled::Parked; 2]);
    unfreeze(world, id).await;
    let parked = world.parked(id).await.expect("it is parked");
    let aside = post(world, first_of(parked), Some(REFUSED_BY_THE_BOOKS)).await;
    assert_eq!(aside, [Settled::DeadLetter]);
    assert_eq!(world.envelope(id).await.set_aside_count, 2);
    assert_eq!(world.unparked().await, 1);
    assert_eq!(world.has("carol").await, (10, 0));

    let letters = world.ledger.dead_letters(None, 0, 10).await;
    let letters = letters.expect("letters");
    assert_eq!(letters[0].reason, REFUSED_BY_THE_BOOKS);
    let act = act("replay_dead_letter", id);
    let replayed = world
        .ledger
        .replay_dead_letter(letters[0].row, Some(40), act)
        .await;
    assert!(replayed.expect("it is tried").is_none());
    assert_eq!(world.has("bob").await, (40, 0));
    assert_eq!(world.envelope(id).await.set_aside_count, 0);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_batch_over_the_limit_is_not_begun(world: &World) {
    world.deposit("alice", 10_000, "d1").await;
    let id = world.fund(draft("alice", 10_000, 10_000), "f1").await.id;
    let batch = (0..=u32::try_from(SETTLE_BATCH_MAX).expect("thousands"))
        .map(|share| pay(id, share, &format!("g{share}"), 1))
        .collect();
    let refused = world.ledger.settle(FIRST, batch).await;
    assert!(matches!(refused, Err(LedgerError::Broken(_))));
    assert_eq!(world.has("g0").await, (0, 0));
}
