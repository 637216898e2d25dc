//! Dead letters: seen, tried again, and repeated.

use super::*;
use crate::ledger::conformance::{FIRST, record};

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
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let envelope = id.parse().unwrap();
    let won = world.wins(&id, "bob").await;
    let letter = world.set_aside(record(envelope, 0, "bob", won)).await;
    let promised = world.set_aside(record(envelope, 0, "carol", won)).await;
    let paid = v1::ReplayDeadLetterResponse {
        settled: true,
        dead_letter: None,
    };
    assert_eq!(world.replay(&letter).await.unwrap(), paid);
    assert_eq!(world.replay(&letter).await.unwrap(), paid);
    // Carol's is bob's share, and that is told again as well.
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
