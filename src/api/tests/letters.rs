//! Dead letters: tried again, let go of, and both repeated.

use super::*;
use crate::domain::envelope::{CloseReason, shares_checksum};
use crate::hot::LoadChunk;
use crate::ledger::conformance::{self, FIRST, record};

impl World {
    /// Puts a record aside, as settlement does. Answers its letter.
    async fn set_aside(&self, record: crate::domain::grab::OutboxRecord) -> String {
        let item = SettleItem::SetAside(record, "poison");
        self.ledger.settle(FIRST, vec![item]).await.unwrap();
        let letters = self.ledger.dead_letters(None, 0, 10).await.unwrap();
        letters.last().unwrap().row.to_string()
    }

    async fn replay(&self, letter: &str) -> Result<v1::ReplayDeadLetterResponse, Status> {
        let request = v1::ReplayDeadLetterRequest {
            dead_letter_id: letter.into(),
            operator: "olga".into(),
            reason: "ticket 8".into(),
        };
        let tried = self.operators.clone().replay_dead_letter(request).await?;
        Ok(tried.into_inner())
    }

    async fn dismiss(&self, letter: &str) -> Result<String, Status> {
        let request = v1::DismissDeadLetterRequest {
            dead_letter_id: letter.into(),
            operator: "olga".into(),
            reason: "forged".into(),
        };
        let answer = self.operators.clone().dismiss_dead_letter(request).await?;
        Ok(answer.into_inner().dead_letter.unwrap().reason)
    }

    /// What stands in the record of acts on an envelope: act and result.
    async fn acts(&self, id: &str) -> Vec<(String, String)> {
        let acts = self.ledger.acts(Some(id.parse().unwrap()), 20).await;
        let told = acts.unwrap().into_iter().map(|act| (act.act, act.result));
        told.collect()
    }
}

#[tokio::test]
async fn a_replay_whose_answer_was_lost_answers_the_same_when_it_is_repeated() {
    let world = World::with_alice().await;
    let mut equal = lucky("r1", 1_000, 4);
    equal.kind = v1::EnvelopeKind::Equal.into();
    let id = world.send(equal).await;
    let envelope = id.parse().unwrap();
    let won = world.wins(&id, "bob").await;
    let letter = world.set_aside(record(envelope, 0, "bob", won)).await;
    let promised = world.set_aside(record(envelope, 0, "carol", won)).await;
    let own = SettleItem::Pay(record(envelope, 1, "carol", won));
    world.ledger.settle(FIRST, vec![own]).await.unwrap();
    let paid = v1::ReplayDeadLetterResponse {
        settled: true,
        dead_letter: None,
    };
    assert_eq!(world.replay(&letter).await.unwrap(), paid);
    assert_eq!(world.replay(&letter).await.unwrap(), paid);
    // Carol's is bob's share, and she has been paid as much; that is told again as well.
    let first = world.replay(&promised).await.unwrap();
    let told = first.dead_letter.clone().unwrap();
    assert_eq!((first.settled, &*told.reason), (false, "superseded"));
    assert_eq!(world.replay(&promised).await.unwrap(), first);
    // A repeat looks nothing up.
    world.ledger.damage_secrets().await.unwrap();
    assert_eq!(world.replay(&letter).await.unwrap(), paid);
    assert_eq!(world.replay(&promised).await.unwrap(), first);
    assert_eq!(world.balance("bob").await, (won, 0, 0));
    let act = |result: &str| ("replay_dead_letter".to_owned(), result.to_owned());
    let (done, superseded) = (act("done"), act("superseded"));
    let acts = [&done, &done, &superseded, &superseded, &done, &superseded];
    assert_eq!(world.acts(&id).await, acts.map(Clone::clone));
    let never = world.replay("5000").await;
    let told = (Code::NotFound, "DEAD_LETTER_NOT_FOUND".to_owned());
    assert_eq!(failure(never), told);
}

#[tokio::test]
async fn a_forged_letter_of_a_share_that_nobody_takes_is_dismissed_and_the_rest_goes_back() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let won = world.wins(&id, "bob").await;
    let forged = record(id.parse().unwrap(), 3, "eve", 999_999);
    let letter = world.set_aside(forged).await;
    // As it stands it can't be paid, and nobody takes the share.
    assert!(!world.replay(&letter).await.unwrap().settled);
    world.recall(&id, "alice").await.unwrap();
    assert_eq!(world.dismiss(&letter).await.unwrap(), "dismissed");
    assert_eq!(world.dismiss(&letter).await.unwrap(), "dismissed");
    world.close(&id).await;
    assert_eq!(world.dismiss(&letter).await.unwrap(), "dismissed");
    let after = world.replay(&letter).await.unwrap();
    let told = after.dead_letter.unwrap().reason;
    assert_eq!((after.settled, told.as_str()), (false, "dismissed"));
    assert_eq!(world.balance("bob").await, (won, 0, 0));
    assert_eq!(world.balance("alice").await, (10_000 - won, 0, 0));
    let acts = world.acts(&id).await;
    let done = ("dismiss_dead_letter".to_owned(), "done".to_owned());
    assert_eq!(acts.iter().filter(|act| **act == done).count(), 3);
}

#[tokio::test]
async fn what_seed_or_hot_store_say_is_not_dismissed() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let envelope = id.parse().unwrap();
    let won = world.wins(&id, "bob").await;
    let stands = refused("DEAD_LETTER_STANDS");
    // The seed says so.
    let letter = world.set_aside(record(envelope, 0, "bob", won)).await;
    assert_eq!(failure(world.dismiss(&letter).await), stands);
    // It is paid after all.
    assert!(world.replay(&letter).await.unwrap().settled);
    let settled = refused("DEAD_LETTER_SETTLED");
    assert_eq!(failure(world.dismiss(&letter).await), settled);

    // Other amounts than the seed's were loaded: bob was told of one of them.
    let fund = conformance::fund(conformance::draft("alice", 100, 2), "f1");
    let row = world.ledger.fund(fund).await.unwrap().envelope;
    let epoch = world.hot.epoch(Partition::ZERO);
    let chunk = LoadChunk {
        envelope: row.id,
        terms: row.terms,
        offset: 0,
        amounts_minor: vec![99, 1],
    };
    let not_held = world.set_aside(record(row.id, 1, "eve", 2_000)).await;
    assert_eq!(failure(world.dismiss(&not_held).await), stands);
    world.hot.load(epoch, chunk).await.unwrap();
    let checksum = shares_checksum(&[99, 1]);
    world.hot.open(epoch, row.id, checksum).await.unwrap();
    let told = world.wins(&row.id.to_string(), "bob").await;
    let letter = world.set_aside(record(row.id, 0, "bob", told)).await;
    assert_eq!(failure(world.dismiss(&letter).await), stands);
    // Nobody was told of this one.
    assert_eq!(world.dismiss(&not_held).await.unwrap(), "dismissed");
    let acts = world.acts(&row.id.to_string()).await;
    let results: Vec<_> = acts.iter().map(|(_, result)| result.as_str()).collect();
    let both = ["DEAD_LETTER_STANDS", "DEAD_LETTER_STANDS", "done"];
    assert_eq!(results, both);
    let begun = world.ledger.begin_close(row.id, CloseReason::Recalled);
    begun.await.unwrap();
    let reason = CloseReason::Recalled;
    let waits = world.ledger.finish_close(FIRST, row.id, reason, 1).await;
    assert!(
        matches!(waits, Ok(CloseProgress::Waiting { .. })),
        "{waits:?}"
    );
}
