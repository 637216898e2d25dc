//! Dead letters: tried again, let go of, and both repeated.

use super::*;
use crate::domain::audience::Audience;
use crate::domain::envelope::{CloseReason, Draft, ExclusiveShare, Kind, Terms, shares_checksum};
use crate::hot::LoadChunk;
use crate::ledger::conformance::{self, FIRST, person, record};
use crate::publish::share_amounts;

impl World {
    /// Puts a record aside, as settlement does. Answers its letter.
    async fn set_aside(&self, record: crate::domain::grab::OutboxRecord) -> String {
        let item = SettleItem::SetAside(record, "poison");
        self.ledger.settle(FIRST, vec![item]).await.unwrap();
        let letters = self.ledger.dead_letters(None, 0, 10).await.unwrap();
        letters.last().unwrap().row.to_string()
    }

    async fn replay(&self, letter: &str) -> Result<v1::ReplayDeadLetterResponse, Status> {
        self.replay_with(letter, false).await
    }

    /// Whether it is settled now, and the reason with which it stands.
    async fn correct(&self, letter: &str) -> Result<(bool, String), Status> {
        let answer = self.replay_with(letter, true).await?;
        let reason = answer.dead_letter.map(|letter| letter.reason);
        Ok((answer.settled, reason.unwrap_or_default()))
    }

    async fn replay_with(
        &self,
        letter: &str,
        correct_amount: bool,
    ) -> Result<v1::ReplayDeadLetterResponse, Status> {
        let request = v1::ReplayDeadLetterRequest {
            dead_letter_id: letter.into(),
            operator: "olga".into(),
            reason: "ticket 8".into(),
            correct_amount,
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

    /// Loads amounts, and terms, that the books don't have.
    async fn load(&self, id: EnvelopeId, terms: Arc<Terms>, amounts_minor: &[i64]) {
        let under = self.hot.epochs();
        let chunk = LoadChunk {
            envelope: id,
            terms,
            offset: 0,
            amounts_minor: amounts_minor.to_vec(),
        };
        self.hot.load(&under, chunk).await.unwrap();
        let checksum = shares_checksum(amounts_minor);
        self.hot.open(&under, id, checksum).await.unwrap();
        self.ledger.mark_live(id).await.unwrap();
    }

    /// Recalls an envelope of two shares, and says whether it can be closed.
    async fn ends(&self, id: EnvelopeId, taken_count: u32) -> bool {
        let reason = CloseReason::Recalled;
        self.ledger.begin_close(id, reason).await.unwrap();
        let closed = self
            .ledger
            .finish_close(vec![FIRST], id, reason, taken_count)
            .await;
        matches!(closed.unwrap(), CloseProgress::Closed(_))
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
    let not_held = world.set_aside(record(row.id, 1, "eve", 2_000)).await;
    assert_eq!(failure(world.dismiss(&not_held).await), stands);
    world.load(row.id, row.terms, &[99, 1]).await;
    let told = world.wins(&row.id.to_string(), "bob").await;
    let letter = world.set_aside(record(row.id, 0, "bob", told)).await;
    assert_eq!(failure(world.dismiss(&letter).await), stands);
    // Nobody was told of this one.
    assert_eq!(world.dismiss(&not_held).await.unwrap(), "dismissed");
    let acts = world.acts(&row.id.to_string()).await;
    let results: Vec<_> = acts.iter().map(|(_, result)| result.as_str()).collect();
    let both = ["DEAD_LETTER_STANDS", "DEAD_LETTER_STANDS", "done"];
    assert_eq!(results, both);
    assert!(!world.ends(row.id, 1).await);
}

#[tokio::test]
async fn who_was_told_a_wrong_amount_is_paid_what_the_seed_says_and_the_rest_goes_back() {
    let world = World::with_alice().await;
    let fund = conformance::fund(conformance::draft("alice", 100, 2), "f1");
    let row = world.ledger.fund(fund).await.unwrap().envelope;
    let seed = world.ledger.server_seed(Arc::clone(&row.terms)).await;
    let right = share_amounts(&row.terms, row.id, &seed.unwrap()).unwrap()[0];
    let forged = world.set_aside(record(row.id, 1, "eve", 2_000)).await;
    world
        .load(row.id, row.terms, &[right + 1, 99 - right])
        .await;
    let id = row.id.to_string();
    let told = world.wins(&id, "bob").await;
    assert_eq!(told, right + 1);
    let letter = world.set_aside(record(row.id, 0, "bob", told)).await;
    let wrong = world.replay(&letter).await.unwrap();
    let reason = wrong.dead_letter.unwrap().reason;
    assert_eq!(
        (wrong.settled, &*reason),
        (false, "amount_is_not_the_seeds")
    );
    // What was granted to nobody is not to be corrected.
    let not_granted = refused("DEAD_LETTER_NOT_GRANTED");
    assert_eq!(failure(world.correct(&forged).await), not_granted);
    let corrected = (true, "corrected".to_owned());
    assert_eq!(world.correct(&letter).await.unwrap(), corrected);
    // Its answer was lost, and the act is repeated, in either form.
    assert_eq!(world.correct(&letter).await.unwrap(), corrected);
    let again = world.replay(&letter).await.unwrap();
    assert_eq!(again.dead_letter.unwrap().reason, "corrected");
    assert!(again.settled);
    let settled = refused("DEAD_LETTER_SETTLED");
    assert_eq!(failure(world.dismiss(&letter).await), settled);
    assert!(!world.ends(row.id, 1).await);
    assert_eq!(world.dismiss(&forged).await.unwrap(), "dismissed");
    assert!(world.ends(row.id, 1).await);
    let left = ("dismissed".to_owned(), false);
    let after = world.correct(&forged).await.unwrap();
    assert_eq!((after.1, after.0), left);
    assert_eq!(world.balance("bob").await, (right, 0, 0));
    assert_eq!(world.balance("alice").await, (10_000 - right, 0, 0));
    let acts = world.acts(&id).await;
    let results: Vec<_> = acts.iter().map(|(_, result)| result.as_str()).collect();
    let told = [
        "amount_is_not_the_seeds",
        "DEAD_LETTER_NOT_GRANTED",
        "corrected",
        "corrected",
        "corrected",
        "DEAD_LETTER_SETTLED",
        "done",
        "dismissed",
    ];
    assert_eq!(results, told);
}

#[tokio::test]
async fn what_a_letters_share_is_worth_is_asked_of_the_books_and_not_of_the_hot_stores_terms() {
    let world = World::with_alice().await;
    let share = |name: &str, amount_minor| ExclusiveShare {
        grabber: person(name),
        amount_minor,
    };
    let draft = Draft {
        kind: Kind::Exclusive,
        split: None,
        exclusive: vec![share("bob", 40), share("carol", 60)],
        audience: Audience::Named([person("bob"), person("carol")].into()),
        ..conformance::draft("alice", 100, 2)
    };
    let fund = conformance::fund(draft, "f1");
    let row = world.ledger.fund(fund).await.unwrap().envelope;
    // Somebody has written other terms into the hot store, with a third share.
    let mut edited = Terms::clone(&row.terms);
    edited.draft.exclusive = vec![share("bob", 70), share("carol", 20), share("eve", 10)];
    edited.draft.share_count = 3;
    edited.draft.audience = Audience::Named([person("bob"), person("carol"), person("eve")].into());
    world.load(row.id, Arc::new(edited), &[70, 20, 10]).await;
    let id = row.id.to_string();
    world.get(&id, "bob").await.unwrap();
    let told = world.wins(&id, "carol").await;
    assert_eq!(told, 20);
    let by_edited_terms = world.set_aside(record(row.id, 0, "bob", 70)).await;
    let beyond = world.set_aside(record(row.id, 2, "eve", 10)).await;
    let granted = world.set_aside(record(row.id, 1, "carol", told)).await;
    let by_the_books = world.set_aside(record(row.id, 0, "bob", 40)).await;
    let stands = refused("DEAD_LETTER_STANDS");
    assert_eq!(failure(world.dismiss(&by_the_books).await), stands);
    for letter in [&by_edited_terms, &beyond] {
        assert!(!world.replay(letter).await.unwrap().settled);
        assert_eq!(world.dismiss(letter).await.unwrap(), "dismissed");
    }
    let corrected = (true, "corrected".to_owned());
    assert_eq!(world.correct(&granted).await.unwrap(), corrected);
    assert!(world.replay(&by_the_books).await.unwrap().settled);
    assert!(world.ends(row.id, 2).await);
    for (name, has) in [("bob", 40), ("carol", 60), ("alice", 9_900)] {
        assert_eq!(world.balance(name).await, (has, 0, 0), "{name}");
    }
}

#[tokio::test]
async fn a_letter_of_an_envelope_of_which_the_hot_store_has_only_the_end_is_dismissed() {
    let world = World::with_alice().await;
    let fund = conformance::fund(conformance::draft("alice", 100, 2), "f1");
    let row = world.ledger.fund(fund).await.unwrap().envelope;
    let letter = world.set_aside(record(row.id, 0, "eve", 2_000)).await;
    let stands = refused("DEAD_LETTER_STANDS");
    assert_eq!(failure(world.dismiss(&letter).await), stands);
    assert!(!world.ends(row.id, 0).await);
    let (under, reason) = (world.hot.epochs(), CloseReason::Recalled);
    let closed = world.hot.close(&under, row.id, row.terms, reason);
    closed.await.unwrap();
    let not_granted = refused("DEAD_LETTER_NOT_GRANTED");
    assert_eq!(failure(world.correct(&letter).await), not_granted);
    assert_eq!(world.dismiss(&letter).await.unwrap(), "dismissed");
    assert!(world.ends(row.id, 0).await);
    assert_eq!(world.balance("alice").await, (10_000, 0, 0));
}
