//! Create.

use std::sync::Arc;

use super::{HOUR_MS, NOON_MS, World, assert_insufficient, draft, fund, tenant, transfer};
use crate::domain::envelope::{BookState, Draft, LeafRef, Terms};
use crate::domain::fairness::{LEAVES_PER_BATCH, leaf_hash};
use crate::domain::id::{EnvelopeId, TenantId, UnixMs};
use crate::domain::stripes::StripeCount;
use crate::ledger::{LedgerError, Transfer};

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn funding_moves_the_total_from_the_sender_into_the_escrow(world: &World) {
    world.deposit("alice", 1_000, "d1").await;
    let envelope = world.fund(draft("alice", 888, 8), "f1").await;
    assert_eq!(world.has("alice").await, (112, 888));
    assert_eq!(envelope.state, BookState::Funding);
    assert_eq!(envelope.terms.created_at, UnixMs(NOON_MS));
    assert_eq!(envelope.terms.expires_at, UnixMs(NOON_MS + HOUR_MS));
    assert_eq!(envelope.terms.draft, draft("alice", 888, 8));
    assert_eq!(envelope.id.day(), UnixMs(NOON_MS).day());
    let read = world.envelope(envelope.id).await;
    assert_eq!(read.terms, envelope.terms);
    world
        .ledger
        .mark_live(envelope.id)
        .await
        .expect("it becomes Live");
    assert_eq!(world.envelope(envelope.id).await.state, BookState::Live);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn funding_again_answers_the_same_envelope(world: &World) {
    world.deposit("alice", 1_000, "d1").await;
    let first = world.fund(draft("alice", 888, 8), "f1").await;
    // The clock goes on, and the money is spent otherwise: the answer stays.
    world.clock.advance_ms(10 * HOUR_MS);
    let again = world.ledger.fund(fund(draft("alice", 888, 8), "f1")).await;
    let again = again.expect("the same request has the same answer");
    assert!(again.replayed);
    assert_eq!(again.envelope.id, first.id);
    assert_eq!(again.envelope.terms, first.terms);
    let found = world
        .ledger
        .funded(fund(draft("alice", 888, 8), "f1"))
        .await;
    let found = found.expect("a read").expect("it stands");
    assert_eq!((found.envelope.id, found.replayed), (first.id, true));
    let other = world
        .ledger
        .funded(fund(draft("alice", 888, 9), "f1"))
        .await;
    assert!(matches!(other, Err(LedgerError::RequestIdReused)));
    let none = world.ledger.funded(fund(draft("alice", 1, 1), "f2")).await;
    assert!(none.expect("a read").is_none());
    assert_eq!(world.has("alice").await, (112, 888));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn into_how_many_stripes_an_envelope_is_dealt_stands_once_it_is_funded(world: &World) {
    world.deposit("alice", 1_000, "d1").await;
    let dealt = |count| Draft {
        stripes: StripeCount::new(count).expect("a good number"),
        ..draft("alice", 888, 8)
    };
    let first = world.fund(dealt(4), "f1").await;
    assert_eq!(first.terms.draft, dealt(4));
    assert_eq!(world.envelope(first.id).await.terms, first.terms);
    // The server would deal it otherwise by now, and it is the same request.
    let again = world.ledger.fund(fund(dealt(2), "f1")).await;
    let again = again.expect("the same request has the same answer");
    assert!(again.replayed);
    assert_eq!(again.envelope.terms, first.terms);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_same_request_id_with_another_body_is_refused(world: &World) {
    world.deposit("alice", 1_000, "d1").await;
    world.deposit("bob", 1_000, "d1").await;
    let first = world.fund(draft("alice", 100, 8), "f1").await;
    let other = world.ledger.fund(fund(draft("alice", 100, 9), "f1")).await;
    assert!(matches!(other, Err(LedgerError::RequestIdReused)));
    let of_bob = world.fund(draft("bob", 100, 8), "f1").await;
    assert_ne!(of_bob.id, first.id);
    assert_eq!(world.has("alice").await, (900, 100));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_sender_without_the_money_funds_nothing(world: &World) {
    world.deposit("alice", 99, "d1").await;
    let refused = world.ledger.fund(fund(draft("alice", 100, 8), "f1")).await;
    assert_insufficient(refused, 99, 100);
    assert_eq!(world.has("alice").await, (99, 0));
    world.deposit("alice", 1, "d2").await;
    let first = world.fund(draft("alice", 100, 8), "f1").await;
    assert_eq!(first.terms.leaf.leaf_number, 0, "a refusal uses no leaf");
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_thousand_concurrent_requests_of_one_id_make_one_debit(world: &World) {
    world.deposit("alice", 1_000_000, "d1").await;
    let calls: Vec<_> = (0..1_000)
        .map(|_| {
            let ledger = Arc::clone(&world.ledger);
            tokio::spawn(async move { ledger.fund(fund(draft("alice", 888, 8), "f1")).await })
        })
        .collect();
    let mut first = 0;
    let mut ids = Vec::new();
    for call in calls {
        let funded = call
            .await
            .expect("no panic")
            .expect("every call is answered");
        first += u32::from(!funded.replayed);
        ids.push(funded.envelope.id);
    }
    ids.dedup();
    assert_eq!((first, ids.len()), (1, 1));
    assert_eq!(world.has("alice").await, (1_000_000 - 888, 888));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_tenants_first_batch_comes_with_its_first_deposit_and_no_question_makes_one(
    world: &World,
) {
    let shop = TenantId::parse("shop").expect("a good name");
    let roots = || async {
        let asked = world.ledger.leaf_batches(shop.clone(), 10).await;
        asked.expect("roots")
    };
    assert_eq!(roots().await, []);
    assert_eq!(roots().await, []);
    let money = Transfer {
        tenant: shop.clone(),
        ..transfer("alice", 100, "d1")
    };
    world.ledger.deposit(money).await.expect("it stands");
    let published = roots().await;
    assert_eq!(published.len(), 1);
    let draft = Draft {
        tenant: shop.clone(),
        ..draft("alice", 100, 4)
    };
    let first = world.fund(draft, "f1").await.terms.leaf;
    assert_eq!(first.batch_root, published[0].batch_root);
    assert_eq!((first.leaf_number, first.batch_number), (0, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn every_envelope_uses_the_next_leaf_of_a_published_batch(world: &World) {
    let published = world
        .ledger
        .leaf_batches(tenant(), 10)
        .await
        .expect("roots");
    assert_eq!(
        published.len(),
        1,
        "the first root is there before any envelope"
    );
    world.deposit("alice", 1_000_000, "d1").await;
    let mut leaves = Vec::new();
    for index in 0..=LEAVES_PER_BATCH {
        let funded = world.fund(draft("alice", 8, 8), &format!("f{index}")).await;
        leaves.push(funded.terms.leaf);
    }
    for (number, leaf) in (0_u64..).zip(&leaves) {
        assert_eq!(leaf.leaf_number, number);
        assert_eq!(leaf.batch_number, number / u64::from(LEAVES_PER_BATCH));
    }
    assert_eq!(leaves[0].batch_root, published[0].batch_root);
    let all = world
        .ledger
        .leaf_batches(tenant(), 10)
        .await
        .expect("roots");
    let numbers: Vec<u64> = all.iter().map(|batch| batch.batch_number).collect();
    assert_eq!(numbers, [2, 1, 0], "one batch ahead, the newest first");
    assert_eq!(leaves.last().expect("many").batch_root, all[1].batch_root);
    assert_eq!(all[2], published[0]);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn the_id_and_the_commitment_follow_from_the_seed(world: &World) {
    world.deposit("alice", 1_000, "d1").await;
    let envelope = world.fund(draft("alice", 888, 8), "f1").await;
    let terms = Arc::clone(&envelope.terms);
    let seed = world.ledger.server_seed(terms).await.expect("a seed");
    let leaf = envelope.terms.leaf;
    assert_eq!(
        leaf_hash("default", leaf.leaf_number, &seed),
        leaf.leaf_hash
    );
    let random = seed.id_random("default", leaf.leaf_number);
    let day = UnixMs(NOON_MS).day();
    assert_eq!(EnvelopeId::from_parts(day, random), envelope.id);
    for change in [
        |leaf: &mut LeafRef| leaf.leaf_number += 1,
        |leaf: &mut LeafRef| leaf.leaf_hash[0] ^= 1,
        |leaf: &mut LeafRef| leaf.batch_number += 1,
        |leaf: &mut LeafRef| leaf.batch_number = u64::MAX,
    ] {
        let mut terms = Terms::clone(&envelope.terms);
        change(&mut terms.leaf);
        let other = world.ledger.server_seed(Arc::new(terms)).await;
        assert!(matches!(other, Err(LedgerError::Broken(_))), "{other:?}");
    }
}
