//! What operators do.

use super::{FIRST, NOON_MS, World, act, draft, fund, pay, person, record};
use crate::domain::audience::Audience;
use crate::domain::envelope::{CloseReason, Draft, ExclusiveShare, Kind};
use crate::domain::grab::OutboxRecord;
use crate::domain::id::{EnvelopeId, UnixMs};
use crate::ledger::{CAPPED, CloseProgress, LedgerError, SettleItem};

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn freezing_is_recorded_with_who_and_why(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let freeze = || world.ledger.freeze(id, act("freeze", id));
    assert!(!freeze().await.expect("is frozen"));
    assert!(freeze().await.expect("was frozen"));
    let row = world.envelope(id).await;
    assert!(row.frozen);
    let frozen = world.ledger.frozen(0, 10).await.expect("a list");
    assert_eq!(frozen, [(row.row, id)]);
    let above = world.ledger.frozen(row.row, 10).await.expect("a list");
    assert_eq!(above, []);
    world.clock.advance_ms(7);
    let unfrozen = world.ledger.unfreeze(id, act("unfreeze", id)).await;
    assert!(!unfrozen.expect("is unfrozen"));
    assert!(!world.envelope(id).await.frozen);
    assert_eq!(world.ledger.frozen(0, 10).await.expect("a list"), []);
    world
        .ledger
        .record_act(act("trace", id))
        .await
        .expect("on record");
    let acts = world.ledger.acts(Some(id), 10).await.expect("acts");
    let told: Vec<_> = acts.iter().map(|a| (a.act.as_str(), a.at)).collect();
    let (noon, later) = (UnixMs(NOON_MS), UnixMs(NOON_MS + 7));
    assert_eq!(
        told,
        [
            ("freeze", noon),
            ("freeze", noon),
            ("unfreeze", later),
            ("trace", later)
        ]
    );
    assert_eq!(acts[0].operator, person("olga"));
    assert_eq!(acts[0].reason, "a test");
    let unknown = EnvelopeId::from_parts(1, [9; 14]);
    let missing = world.ledger.freeze(unknown, act("freeze", unknown)).await;
    assert!(matches!(missing, Err(LedgerError::NotFound)));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_frozen_envelope_neither_closes_nor_is_due(world: &World) {
    let id = world.live(100, 4, "e1").await;
    world
        .ledger
        .freeze(id, act("freeze", id))
        .await
        .expect("is frozen");
    let refused = world.ledger.begin_close(id, CloseReason::Recalled).await;
    assert!(matches!(refused, Err(LedgerError::Frozen)));
    world
        .ledger
        .unfreeze(id, act("unfreeze", id))
        .await
        .expect("is unfrozen");
    let begun = world.ledger.begin_close(id, CloseReason::Recalled).await;
    begun.expect("it closes");
    world
        .ledger
        .freeze(id, act("freeze", id))
        .await
        .expect("is frozen");
    let refused = world
        .ledger
        .finish_close(vec![FIRST], id, CloseReason::Recalled, 0)
        .await;
    assert!(matches!(refused, Err(LedgerError::Frozen)));
    assert_eq!(world.ledger.due(0, 0, 10).await.expect("work").len(), 0);
    world
        .ledger
        .unfreeze(id, act("unfreeze", id))
        .await
        .expect("is unfrozen");
    assert_eq!(world.ledger.due(0, 0, 10).await.expect("work").len(), 1);
    let done = world
        .ledger
        .finish_close(vec![FIRST], id, CloseReason::Recalled, 0)
        .await;
    assert!(matches!(done, Ok(CloseProgress::Closed(_))));
    let over = world.ledger.freeze(id, act("freeze", id)).await;
    assert!(matches!(
        over,
        Err(LedgerError::AlreadyOver(CloseReason::Recalled))
    ));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_dead_letter_that_is_paid_after_all_no_longer_blocks(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let aside = |share, name: &str| SettleItem::SetAside(record(id, share, name, 20), "poison");
    world.settle(vec![aside(0, "bob")]).await;
    // In a later batch, in its own, and once more: each letter is resolved once.
    let dave = [aside(1, "dave"), pay(id, 1, "dave", 20)];
    let [bob, again] = [pay(id, 0, "bob", 20), pay(id, 0, "bob", 20)];
    world.settle([&dave[..], &[bob, again]].concat()).await;
    let letters = world.ledger.dead_letters(None, 0, 10).await;
    assert!(letters.expect("letters").is_empty());
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    let done = world
        .ledger
        .finish_close(vec![FIRST], id, CloseReason::Expired, 2)
        .await;
    assert!(matches!(done, Ok(CloseProgress::Closed(_))), "{done:?}");
    assert_eq!(world.has("bob").await, (20, 0));
    assert_eq!(world.has("alice").await, (60, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_dead_letter_whose_share_another_won_blocks_until_it_is_replayed(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let aside = |grabber: &str| SettleItem::SetAside(record(id, 0, grabber, 40), "poison");
    world.settle(vec![aside("carol")]).await;
    world.settle(vec![pay(id, 0, "bob", 40)]).await;
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    let letters = world
        .ledger
        .dead_letters(None, 0, 10)
        .await
        .expect("letters");
    assert_eq!(letters.len(), 1);
    world
        .ledger
        .freeze(id, act("freeze", id))
        .await
        .expect("is frozen");
    let replay = |row| {
        world
            .ledger
            .replay_dead_letter(row, Some(40), act("replay", id))
    };
    assert!(matches!(
        replay(letters[0].row).await,
        Err(LedgerError::Frozen)
    ));
    world
        .ledger
        .unfreeze(id, act("unfreeze", id))
        .await
        .expect("is unfrozen");
    let lost = replay(letters[0].row).await.expect("an answer");
    // The reserve has nothing for her, and that is not the envelope's matter.
    assert_eq!(lost.expect("carol is not paid").reason, CAPPED);
    assert_eq!(world.has("bob").await, (40, 0));
    assert_eq!(world.has("carol").await, (0, 0));
    let done = world
        .ledger
        .finish_close(vec![FIRST], id, CloseReason::Expired, 1)
        .await;
    assert!(matches!(done, Ok(CloseProgress::Closed(_))));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_replay_pays_nobody_to_whom_the_terms_give_nothing(world: &World) {
    world.deposit("alice", 300, "d1").await;
    let share = |name: &str, amount_minor| ExclusiveShare {
        grabber: person(name),
        amount_minor,
    };
    let named = Draft {
        kind: Kind::Exclusive,
        split: None,
        exclusive: vec![share("bob", 40), share("carol", 60)],
        audience: Audience::Named([person("bob"), person("carol")].into()),
        ..draft("alice", 100, 2)
    };
    let named = world.ledger.fund(fund(named, "named")).await;
    let named = named.expect("there is money").envelope.id;
    let lucky = world
        .ledger
        .fund(fund(draft("alice", 100, 2), "lucky"))
        .await;
    let lucky = lucky.expect("there is money").envelope.id;
    let declined = OutboxRecord {
        declined: true,
        ..record(lucky, 0, "bob", 40)
    };
    let invited = Draft {
        audience: Audience::Named([person("bob")].into()),
        ..draft("alice", 100, 2)
    };
    let invited = world.ledger.fund(fund(invited, "invited")).await;
    let invited = invited.expect("there is money").envelope.id;
    let aside = [
        (record(named, 0, "carol", 40), "wrong_grabber"),
        (declined, "not_declinable"),
        (record(invited, 0, "carol", 40), "not_in_audience"),
    ];
    let items = aside.clone().map(|(r, why)| SettleItem::SetAside(r, why));
    world.settle(items.to_vec()).await;
    let letters = world.ledger.dead_letters(None, 0, 10).await;
    for (letter, (_, why)) in letters.expect("letters").into_iter().zip(aside) {
        // The amount is right: it is all that the caller looks up.
        let act = act("replay", letter.record.envelope);
        let left = world.ledger.replay_dead_letter(letter.row, Some(40), act);
        let left = left.await.expect("an answer").expect("nobody is paid");
        assert_eq!((left.reason.as_str(), left.tries), (why, 2));
    }
    assert_eq!(world.has("carol").await, (0, 0));
    assert_eq!(world.has("alice").await, (0, 300));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn a_replay_that_settled_its_letter_answers_the_same_for_ever(world: &World) {
    let id = world.live(100, 4, "e1").await;
    let aside = |share, name: &str| SettleItem::SetAside(record(id, share, name, 20), "poison");
    let three = vec![aside(0, "bob"), aside(1, "carol"), aside(2, "dave")];
    world.settle(three).await;
    let letters = world.ledger.dead_letters(None, 0, 10).await;
    let rows: Vec<_> = letters.expect("letters").iter().map(|l| l.row).collect();
    // Carol's share is another's, and she has one as good; the outbox brings dave's again.
    let others = vec![
        pay(id, 1, "erin", 20),
        pay(id, 2, "dave", 20),
        pay(id, 3, "carol", 20),
    ];
    world.settle(others).await;
    let replay = async |row| {
        let tried = world
            .ledger
            .replay_dead_letter(row, Some(20), act("replay", id));
        let letter = tried.await.expect("an answer");
        letter.map(|letter| (letter.reason, letter.tries))
    };
    let superseded = Some(("superseded".to_owned(), 1));
    let all = async || {
        assert_eq!(replay(rows[0]).await, None);
        assert_eq!(replay(rows[1]).await, superseded);
        assert_eq!(replay(rows[2]).await, None);
    };
    all().await;
    // The answers were lost.
    all().await;
    let frozen = world.ledger.freeze(id, act("freeze", id)).await;
    assert!(!frozen.expect("is frozen"));
    all().await;
    let unfrozen = world.ledger.unfreeze(id, act("unfreeze", id)).await;
    assert!(!unfrozen.expect("is unfrozen"));
    let begun = world.ledger.begin_close(id, CloseReason::Expired).await;
    begun.expect("it closes");
    let expired = CloseReason::Expired;
    let done = world.ledger.finish_close(vec![FIRST], id, expired, 4).await;
    assert!(matches!(done, Ok(CloseProgress::Closed(_))), "{done:?}");
    all().await;
    for (name, has) in [("bob", 20), ("carol", 20), ("dave", 20), ("alice", 20)] {
        assert_eq!(world.has(name).await, (has, 0), "{name}");
    }
    let acts = world.ledger.acts(Some(id), 20).await.expect("acts");
    let results: Vec<_> = acts.iter().filter(|a| a.act == "replay").collect();
    let results: Vec<_> = results.iter().map(|a| a.result.as_str()).collect();
    assert_eq!(results, ["done", "superseded", "done"].repeat(4));
    let never = world
        .ledger
        .replay_dead_letter(rows[2] + 1_000, Some(20), act("replay", id));
    assert!(matches!(never.await, Err(LedgerError::NotFound)));
    let found = world.ledger.dead_letter(rows[1]).await.expect("a read");
    let found = found.expect("a settled letter stays");
    assert!(found.settled_at.is_some() && found.record.grabber == person("carol"));
}
