//! Load, repair, or leave alone: by what the stores say.

use std::sync::Arc;

use super::{Scripted, books};
use crate::domain::audience::Audience;
use crate::domain::envelope::{
    BookState, CloseReason, Draft, ExclusiveShare, HotState, Kind, LeafRef, Terms,
};
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, Epoch, UnixMs};
use crate::hot::HotStore;
use crate::ledger::conformance::{World, act, decline, draft, pay, person, record};
use crate::ledger::{EnvelopeRow, PAGE_ROWS_MAX, SettleItem};
use crate::publish::{Amounts, PublishError, Publisher};

struct Scene {
    hot: Arc<Scripted>,
    publisher: Publisher,
    world: World,
    _folder: tempfile::TempDir,
}

/// What a view needs: nobody looks at the terms of a scripted one.
pub(super) fn any_terms() -> Arc<Terms> {
    Arc::new(Terms {
        draft: draft("alice", 100, 4),
        created_at: UnixMs(0),
        expires_at: UnixMs(1),
        leaf: LeafRef {
            leaf_number: 0,
            batch_number: 0,
            batch_root: [0; 32],
            leaf_hash: [0; 32],
        },
    })
}

fn scene() -> Scene {
    let (world, folder) = books();
    let hot = Scripted::new(1);
    let amounts = Arc::new(Amounts::new(Arc::clone(&world.ledger)));
    let door: Arc<dyn HotStore> = Arc::clone(&hot) as _;
    let publisher = Publisher::new(door, Arc::clone(&world.ledger), amounts);
    Scene {
        hot,
        publisher,
        world,
        _folder: folder,
    }
}

impl Scene {
    async fn funded(&self) -> EnvelopeRow {
        self.world.deposit("alice", 100, "d1").await;
        self.world.fund(draft("alice", 100, 4), "e1").await
    }

    /// Pays a share and takes one back.
    async fn claimed(&self) -> EnvelopeId {
        let id = self.world.live(100, 4, "e1").await;
        let batch = vec![pay(id, 2, "bob", 40), decline(id, 0, "carol", 5)];
        self.world.settle(batch).await;
        id
    }

    fn sees(&self, state: HotState, stale: bool) {
        self.hot.said.lock().view = Some((state, stale));
    }

    async fn closing(&self, id: EnvelopeId) {
        let begun = self
            .world
            .ledger
            .begin_close(id, CloseReason::Expired)
            .await;
        begun.unwrap();
    }
}

#[tokio::test]
async fn a_new_small_envelope_is_loaded_without_a_look() {
    let scene = scene();
    let before = scene.hot.epochs();
    let row = scene.funded().await;
    let published = scene.publisher.publish_new(row, &before).await.unwrap();
    assert_eq!(published.state, HotState::Live);
    assert_eq!(published.row.state, BookState::Live);
    assert_eq!(scene.hot.calls(), ["load", "open"]);
}

#[tokio::test]
async fn a_new_envelope_is_looked_for_where_the_store_was_replaced_since_its_money_was_held() {
    let scene = scene();
    let before = scene.hot.epochs();
    let row = scene.funded().await;
    {
        let mut said = scene.hot.said.lock();
        said.stands = Epoch(2);
        said.believed = Epoch(2);
    }
    // Another process published it, somebody grabbed, and what was granted is being settled.
    scene.sees(HotState::Live, false);
    let published = scene.publisher.publish_new(row, &before).await.unwrap();
    assert_eq!(published.state, HotState::Live);
    assert_eq!(scene.hot.calls(), ["load", "view"], "nothing is opened");
}

#[tokio::test]
async fn a_new_envelope_of_many_shares_is_loaded_beside_a_backlog() {
    let scene = scene();
    scene.world.deposit("alice", 10_000, "d1").await;
    let before = scene.hot.epochs();
    let row = scene.world.fund(draft("alice", 5_000, 2_500), "e1").await;
    // What the outbox holds is none of its: it is not asked for.
    scene.hot.said.lock().owes = true;
    let published = scene.publisher.publish_new(row, &before).await.unwrap();
    assert_eq!(published.state, HotState::Live);
    assert_eq!(scene.hot.calls(), ["view", "load", "load", "load", "open"]);
}

#[tokio::test]
async fn an_envelope_whose_money_was_held_long_ago_is_looked_for() {
    let scene = scene();
    let before = scene.hot.epochs();
    let row = scene.funded().await;
    scene.world.clock.advance_ms(60_000);
    scene.publisher.publish_new(row, &before).await.unwrap();
    assert_eq!(scene.hot.calls(), ["view", "owes", "load", "open"]);
}

#[tokio::test]
async fn a_missing_envelope_that_nobody_has_a_claim_on_is_loaded_once_it_owes_nothing() {
    let scene = scene();
    let id = scene.funded().await.id;
    scene.hot.said.lock().owes = true;
    let early = scene.publisher.publish(id).await;
    assert!(
        matches!(early, Err(PublishError::Unavailable(_))),
        "{early:?}"
    );
    assert_eq!(scene.hot.calls(), ["view", "owes"]);
    scene.hot.said.lock().owes = false;
    scene.publisher.publish(id).await.unwrap();
    assert_eq!(scene.hot.calls(), ["view", "owes", "load", "open"]);
}

#[tokio::test]
async fn a_missing_envelope_of_which_somebody_was_told_before_the_books_called_it_live_is_repaired()
{
    let scene = scene();
    let id = scene.funded().await.id;
    scene.hot.said.lock().promised = true;
    scene.publisher.publish(id).await.unwrap();
    assert_eq!(scene.hot.calls(), ["view", "owes", "repair"]);
}

#[tokio::test]
async fn a_missing_envelope_with_claims_is_repaired_with_all_of_them() {
    let scene = scene();
    let id = scene.claimed().await;
    assert_eq!(scene.publisher.publish(id).await.unwrap(), HotState::Live);
    assert_eq!(scene.hot.calls(), ["view", "owes", "repair"]);
    let repair = scene.hot.said.lock().repairs.remove(0);
    let claims: Vec<_> = repair
        .claims
        .iter()
        .map(|held| (held.grant.share, held.grabber.as_str(), held.declined))
        .collect();
    assert_eq!(claims, [(0, "carol", true), (2, "bob", false)]);
    assert_eq!(repair.amounts_minor.iter().sum::<i64>(), 100);
    assert_eq!(repair.envelope, id);
}

#[tokio::test]
async fn a_repair_reads_every_page_of_claims() {
    let scene = scene();
    let count = u32::try_from(PAGE_ROWS_MAX).unwrap() + 7;
    let id = scene.world.live(i64::from(count), count, "e1").await;
    let batch = (0..count).map(|share| pay(id, share, &format!("g{share}"), 1));
    scene.world.settle(batch.collect()).await;
    scene.sees(HotState::Live, true);
    scene.publisher.publish(id).await.unwrap();
    let repair = scene.hot.said.lock().repairs.remove(0);
    assert_eq!(repair.claims.len(), PAGE_ROWS_MAX + 7);
    // Beyond one chunk it waited for a permit, so it looked again.
    assert_eq!(scene.hot.calls(), ["view", "view", "repair"]);
}

#[tokio::test]
async fn a_repair_under_an_older_epoch_reads_everything_again() {
    let scene = scene();
    let id = scene.claimed().await;
    scene.sees(HotState::Live, true);
    scene.hot.said.lock().stands = Epoch(2);
    scene.publisher.publish(id).await.unwrap();
    assert_eq!(scene.hot.calls(), ["view", "repair", "view", "repair"]);
    assert_eq!(scene.hot.said.lock().repairs.len(), 1);
}

#[tokio::test]
async fn what_stands_in_this_epoch_is_left_alone() {
    let scene = scene();
    let id = scene.claimed().await;
    scene.sees(HotState::Live, false);
    assert_eq!(scene.publisher.publish(id).await.unwrap(), HotState::Live);
    assert_eq!(scene.hot.calls(), ["view"]);
}

#[tokio::test]
async fn a_stale_closing_envelope_is_repaired_and_stays_over() {
    let scene = scene();
    let id = scene.claimed().await;
    scene.closing(id).await;
    let over = HotState::Over(CloseReason::Expired);
    scene.sees(over, true);
    assert_eq!(scene.publisher.publish(id).await.unwrap(), over);
    assert_eq!(scene.hot.calls(), ["view", "repair"]);
    let repair = scene.hot.said.lock().repairs.remove(0);
    assert_eq!(repair.over, Some(CloseReason::Expired));
}

#[tokio::test]
async fn a_missing_closing_envelope_is_repaired_as_over_once_it_owes_nothing() {
    let scene = scene();
    let id = scene.claimed().await;
    scene.closing(id).await;
    scene.hot.said.lock().owes = true;
    let early = scene.publisher.publish(id).await;
    assert!(
        matches!(early, Err(PublishError::Unavailable(_))),
        "{early:?}"
    );
    scene.hot.said.lock().owes = false;
    let over = HotState::Over(CloseReason::Expired);
    assert_eq!(scene.publisher.publish(id).await.unwrap(), over);
    assert_eq!(
        scene.hot.calls(),
        ["view", "owes", "view", "owes", "repair"]
    );
    let repair = scene.hot.said.lock().repairs.remove(0);
    assert_eq!(repair.over, Some(CloseReason::Expired));
}

/// An EXCLUSIVE envelope for bob (40) and carol (60), of which nobody took anything.
async fn named(scene: &Scene) -> EnvelopeId {
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
    scene.world.deposit("alice", 100, "d1").await;
    let id = scene.world.fund(named, "e1").await.id;
    scene.world.ledger.mark_live(id).await.unwrap();
    id
}

#[tokio::test]
async fn an_envelope_with_grabs_set_aside_that_may_be_owed_is_not_handed_out_again() {
    let scene = scene();
    let id = named(&scene).await;
    let poison = SettleItem::SetAside(record(id, 0, "bob", 40), "poison");
    scene.world.settle(vec![poison]).await;
    for view in [None, Some((HotState::Live, true))] {
        scene.hot.said.lock().view = view;
        let refused = scene.publisher.publish(id).await;
        assert!(
            matches!(refused, Err(PublishError::Unavailable(_))),
            "{refused:?}"
        );
    }
    assert!(scene.hot.said.lock().repairs.is_empty());
    // Somebody else was paid the share, so nothing is owed by it.
    scene.world.settle(vec![pay(id, 0, "dave", 40)]).await;
    scene.publisher.publish(id).await.unwrap();
    assert_eq!(scene.hot.said.lock().repairs.len(), 1);
}

#[tokio::test]
async fn letters_that_seed_or_terms_contradict_keep_no_envelope_from_coming_back() {
    let scene = scene();
    let id = named(&scene).await;
    let wrong = [
        (0, "bob", 41),
        (9, "bob", 40),
        (0, "eve", 40),
        (1, "bob", 60),
    ];
    let aside = wrong
        .map(|(share, name, minor)| SettleItem::SetAside(record(id, share, name, minor), "poison"));
    scene.world.settle(aside.to_vec()).await;
    scene.publisher.publish(id).await.unwrap();
    assert_eq!(scene.hot.calls(), ["view", "owes", "repair"]);
    // It has the claims of the books, and nothing that a letter says.
    assert_eq!(scene.hot.said.lock().repairs.remove(0).claims, []);
    scene.sees(HotState::Live, true);
    scene.publisher.publish(id).await.unwrap();
    // Only of what differs by its amount may the store know more.
    assert_eq!(scene.hot.calls(), ["view", "grants", "repair"]);
}

#[tokio::test]
async fn a_grant_with_a_wrong_amount_is_not_dropped_before_an_operator_has_looked() {
    let scene = scene();
    let id = named(&scene).await;
    let dear = record(id, 0, "bob", 41);
    let held = HeldShare {
        grabber: dear.grabber.clone(),
        grant: dear.grant,
        declined: false,
    };
    let poison = SettleItem::SetAside(dear, "amount_mismatch");
    scene.world.settle(vec![poison]).await;
    scene.sees(HotState::Live, true);
    scene.hot.said.lock().grants = vec![held];
    let refused = scene.publisher.publish(id).await;
    assert!(
        matches!(refused, Err(PublishError::Unavailable(_))),
        "{refused:?}"
    );
    let letters = scene.world.ledger.dead_letters(None, 0, 10).await.unwrap();
    let ledger = &scene.world.ledger;
    let corrected = ledger.correct_dead_letter(letters[0].row, Some(40), act("correct", id));
    assert!(corrected.await.unwrap().unwrap().is_corrected());
    scene.publisher.publish(id).await.unwrap();
    let repair = scene.hot.said.lock().repairs.remove(0);
    let claims: Vec<_> = repair.claims.iter().map(|c| c.grant.amount_minor).collect();
    assert_eq!(claims, [40]);
}

#[tokio::test]
async fn nothing_comes_back_while_records_of_it_are_parked() {
    let scene = scene();
    let id = named(&scene).await;
    let ledger = &scene.world.ledger;
    ledger.freeze(id, act("freeze", id)).await.unwrap();
    let poison = SettleItem::SetAside(record(id, 9, "eve", 1), "poison");
    scene
        .world
        .settle(vec![pay(id, 0, "bob", 40), poison])
        .await;
    ledger.unfreeze(id, act("unfreeze", id)).await.unwrap();
    let refused = scene.publisher.publish(id).await;
    assert!(
        matches!(refused, Err(PublishError::Unavailable(_))),
        "{refused:?}"
    );
    assert_eq!(scene.world.unparked().await, 1);
    scene.publisher.publish(id).await.unwrap();
    assert_eq!(scene.hot.said.lock().repairs.len(), 1);
}

#[tokio::test]
async fn a_letter_of_an_envelope_that_was_never_marked_live_is_reason_to_repair_it() {
    let scene = scene();
    let id = scene.funded().await.id;
    let poison = SettleItem::SetAside(record(id, 9, "eve", 1), "poison");
    scene.world.settle(vec![poison]).await;
    scene.publisher.publish(id).await.unwrap();
    assert_eq!(scene.hot.calls(), ["view", "owes", "repair"]);
}

#[tokio::test]
async fn a_frozen_envelope_is_not_repaired() {
    let scene = scene();
    let id = scene.claimed().await;
    let ledger = &scene.world.ledger;
    ledger.freeze(id, act("freeze", id)).await.unwrap();
    scene.sees(HotState::Live, true);
    let refused = scene.publisher.publish(id).await;
    assert!(matches!(refused, Err(PublishError::Frozen)), "{refused:?}");
    assert_eq!(scene.hot.calls(), ["view"]);
}

/// Create spawns large publishes, and the sweeper runs many at once.
#[test]
fn a_publish_may_move_between_threads() {
    fn sent<T: Send>(_: fn(&'static Publisher, EnvelopeId) -> T) {}
    sent(|publisher, id| publisher.publish(id));
}
