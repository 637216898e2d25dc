//! Stripes of a dealt envelope that are lost, and come back from the books.

use redis::Value;

use super::{
    Told, cast, gather, grab, grants, of, people_of, played, repair, stage, takes_the_rest, view,
};
use crate::domain::grab::{Grant, HeldShare, Outcome};
use crate::domain::id::{Epoch, UnixMs};
use crate::domain::stripes::Stripe;
use crate::hot::conformance::stage::{Cast, NEW_YEAR_MS, person};
use crate::hot::redis::reply::Reply;
use crate::hot::redis::tests::scene::{Scene, code_of};
use crate::hot::redis::tests::{OnRedis, damage, own_keys, store as another};
use crate::hot::{Gathered, HotError, HotStore, Repair};

/// Loses what lies of an envelope in the partition of a stripe.
pub(super) fn lose(stage: &OnRedis, cast: &Cast, stripe: Stripe) {
    let core = &stage.store.core;
    let own = core.own(core.place(cast.id, stripe, of()));
    for key in [own.grabs, own.shares, own.terms, own.list, own.phrase] {
        stage.server.command(&[b"UNLINK", key.as_bytes()]);
    }
}

#[tokio::test]
async fn a_stripe_that_is_lost_comes_back_from_the_books_and_gives_nothing_twice() {
    let (mut stage, mut epoch) = (stage().await, 2);
    for lost in of().all() {
        for gathered_before in [false, true] {
            let cast = cast(16);
            cast.publish(&*stage.store).await;
            let mut told = played(&*stage.store, &cast).await;
            if gathered_before {
                gather(&*stage.store, &cast, None).await.unwrap();
                let stranger = people_of(&cast, 1, 6).pop().unwrap();
                let won = grab(&*stage.store, &cast, &stranger, true).await;
                told.hears(&stranger, won);
            }
            // All of it was settled.
            let claims = grants(&*stage.store, &cast).await;
            assert_eq!(claims.len(), told.0.len());
            lose(&stage, &cast, lost);
            let missing = stage.store.view(vec![cast.id]).await.unwrap();
            assert!(missing[0].is_none(), "a stripe is missing");
            epoch += 1;
            stage.register(Epoch(epoch)).await;
            let store = &*stage.store;
            gather(store, &cast, Some(&claims)).await.unwrap();
            assert!(!view(store, &cast).await.stale);
            told.is_counted(store, &cast).await;
            takes_the_rest(store, &cast, &mut told).await;
        }
    }
}

#[tokio::test]
async fn before_they_are_gathered_stripes_come_back_each_by_itself() {
    let (mut stage, cast) = (stage().await, cast(16));
    cast.publish(&*stage.store).await;
    let mut told = played(&*stage.store, &cast).await;
    let claims = grants(&*stage.store, &cast).await;
    let lost = of().all().nth(2).unwrap();
    lose(&stage, &cast, lost);
    stage.register(Epoch(3)).await;
    let store = &*stage.store;
    let under = store.epochs();
    for stripe in of().all() {
        store
            .repair(&under, repair(&cast, stripe, &claims))
            .await
            .unwrap();
    }
    told.is_counted(store, &cast).await;
    let view = view(store, &cast).await;
    assert_eq!((view.stale, view.gathered), (false, false));
    for name in people_of(&cast, 2, 2) {
        told.hears(&name, grab(store, &cast, &name, false).await);
    }
    gather(store, &cast, None).await.unwrap();
    takes_the_rest(store, &cast, &mut told).await;
}

#[tokio::test]
async fn a_first_stripe_that_lost_another_one_since_is_stale() {
    let (mut stage, cast) = (stage().await, cast(16));
    cast.publish(&*stage.store).await;
    let told = played(&*stage.store, &cast).await;
    gather(&*stage.store, &cast, None).await.unwrap();
    // Only the partition of the last stripe goes on.
    let core = &stage.store.core;
    let last = core
        .place(cast.id, of().all().last().unwrap(), of())
        .partition;
    let standing = stage.store.standing().await.unwrap().unwrap();
    let epochs = vec![(last, Epoch(9))];
    stage.store.register(standing, epochs).await.unwrap();
    let stale = view(&*stage.store, &cast).await;
    assert!(stale.stale && stale.gathered);
    let claims = grants_of(&told);
    gather(&*stage.store, &cast, Some(&claims)).await.unwrap();
    let view = view(&*stage.store, &cast).await;
    assert!(!view.stale && view.gathered);
    told.is_counted(&*stage.store, &cast).await;
    stage.epoch = Epoch(9);
}

/// What people were told, as the books have it.
fn grants_of(told: &Told) -> Vec<HeldShare> {
    let mut held: Vec<_> = told.0.iter().collect();
    held.sort_by_key(|(_, (share, _))| *share);
    let held = held
        .into_iter()
        .map(|(name, (share, amount_minor))| HeldShare {
            grabber: person(name),
            grant: Grant {
                share: *share,
                amount_minor: *amount_minor,
                at: UnixMs(NEW_YEAR_MS),
            },
            declined: false,
        });
    held.collect()
}

#[tokio::test]
async fn a_repair_that_found_it_standing_does_nothing_where_it_is_gone() {
    let (stage, cast) = (stage().await, cast(16));
    let store = &*stage.store;
    cast.publish(store).await;
    played(store, &cast).await;
    lose(&stage, &cast, Stripe::FIRST);
    let first = Repair {
        gathered: Some(Gathered {
            stands: true,
            ..Gathered::default()
        }),
        ..repair(&cast, Stripe::FIRST, &[])
    };
    let under = store.epochs();
    let repaired = store.repair(&under, first).await;
    assert!(
        matches!(repaired, Err(HotError::Unavailable(_))),
        "{repaired:?}"
    );
    let own = own_keys(&stage.store, cast.id);
    let there = stage.server.command(&[b"EXISTS", own.grabs.as_bytes()]);
    assert_eq!(there, Value::Int(0));
}

#[tokio::test]
async fn that_it_was_gathered_is_seen_in_what_any_gather_leaves_behind() {
    let (stage, cast) = (stage().await, cast(16));
    let store = &*stage.store;
    cast.publish(store).await;
    played(store, &cast).await;
    let (under, terms) = (store.epochs(), || cast.terms.clone());
    let was = async || store.was_gathered(cast.id, terms()).await.unwrap();
    assert!(!was().await);
    // The first step.
    let third = of().all().nth(2).unwrap();
    store.halt(&under, cast.id, terms(), third).await.unwrap();
    assert!(was().await);
    gather(store, &cast, None).await.unwrap();
    assert!(was().await);
    // A second one died.
    store
        .halt(&under, cast.id, terms(), Stripe::FIRST)
        .await
        .unwrap();
    assert!(was().await);
    for stripe in of().all().skip(1) {
        lose(&stage, &cast, stripe);
    }
    assert!(was().await);
    // Whoever has not seen it does not take it apart.
    let first = store
        .repair(&under, repair(&cast, Stripe::FIRST, &[]))
        .await;
    assert!(matches!(first, Err(HotError::Unavailable(_))), "{first:?}");
}

#[tokio::test]
async fn what_a_process_remembers_of_a_lost_store_gives_nobody_a_second_share() {
    let (mut stage, cast) = (stage().await, cast(16));
    cast.publish(&*stage.store).await;
    let [carol, bob, dave] = <[String; 3]>::try_from(people_of(&cast, 2, 3)).unwrap();
    grab(&*stage.store, &cast, &carol, false).await.unwrap();
    let won = grab(&*stage.store, &cast, &bob, false).await;
    let Some(Outcome::Won(lost)) = won else {
        panic!("{won:?}");
    };
    // Only this process remembers both.
    lose(&stage, &cast, of().all().nth(2).unwrap());
    let other = another(&stage.server, &stage.clock);
    stage.register(Epoch(3)).await;
    stage.introduce(&other).await;
    let under = other.epochs();
    for stripe in of().all() {
        let repair = repair(&cast, stripe, &[]);
        other.repair(&under, repair).await.unwrap();
    }
    // He gets another one, and the one that was his is left.
    let mut told = Told::default();
    told.hears(&bob, grab(&*other, &cast, &bob, false).await);
    assert_ne!(told.0[&bob].0, lost.share);
    // The process that remembers gathers, in this epoch and in the next one.
    for epoch in [3, 4] {
        let store = &*stage.store;
        match epoch {
            3 => gather(store, &cast, None).await.unwrap(),
            _ => gather(store, &cast, Some(&[])).await.unwrap(),
        };
        told.is_counted(store, &cast).await;
        stage.register(Epoch(epoch + 1)).await;
    }
    gather(&*stage.store, &cast, Some(&[])).await.unwrap();
    told.hears(&dave, grab(&*stage.store, &cast, &dave, true).await);
    takes_the_rest(&*stage.store, &cast, &mut told).await;
}

#[tokio::test]
async fn who_is_paid_another_share_gets_none_back_that_a_process_remembers() {
    let (mut stage, cast) = (stage().await, cast(16));
    cast.publish(&*stage.store).await;
    let bob = people_of(&cast, 2, 1).remove(0);
    grab(&*stage.store, &cast, &bob, false).await.unwrap();
    let third = of().all().nth(2).unwrap();
    lose(&stage, &cast, third);
    let other = another(&stage.server, &stage.clock);
    stage.register(Epoch(3)).await;
    stage.introduce(&other).await;
    // Who gathers knows nothing of him, so he gets a share of another stripe, and is paid.
    gather(&*other, &cast, Some(&[])).await.unwrap();
    let mut told = Told::default();
    told.hears(&bob, grab(&*other, &cast, &bob, true).await);
    let claims = grants(&*other, &cast).await;
    assert_ne!(
        claims[0].grant.share / 4,
        2,
        "it is the first stripe's turn"
    );
    for stripe in of().all() {
        lose(&stage, &cast, stripe);
    }
    stage.register(Epoch(4)).await;
    gather(&*stage.store, &cast, Some(&claims)).await.unwrap();
    told.is_counted(&*stage.store, &cast).await;
    takes_the_rest(&*stage.store, &cast, &mut told).await;
}

#[tokio::test]
async fn a_share_that_was_remembered_and_given_away_stays_with_who_has_it_now() {
    let (mut stage, cast) = (stage().await, cast(16));
    cast.publish(&*stage.store).await;
    let bob = people_of(&cast, 2, 1).remove(0);
    let stranger = people_of(&cast, 1, 1).remove(0);
    grab(&*stage.store, &cast, &bob, false).await.unwrap();
    lose(&stage, &cast, of().all().nth(2).unwrap());
    let other = another(&stage.server, &stage.clock);
    stage.register(Epoch(3)).await;
    stage.introduce(&other).await;
    // Who gathers knows nothing of him, and everything that is left is given away.
    gather(&*other, &cast, Some(&[])).await.unwrap();
    let mut told = Told::default();
    told.hears(&stranger, grab(&*other, &cast, &stranger, true).await);
    for stripe in [0, 3, 1] {
        for name in people_of(&cast, stripe, 6) {
            told.hears(&name, grab(&*other, &cast, &name, true).await);
        }
    }
    stage.register(Epoch(4)).await;
    // The process that remembers him brings it back.
    gather(&*stage.store, &cast, Some(&[])).await.unwrap();
    told.is_counted(&*stage.store, &cast).await;
}

#[test]
fn a_plan_that_is_not_the_one_under_way_changes_nothing() {
    let mut scene = Scene::new(&[("appendonly", "no")]);
    for name in ["rebuild_put_2", "rebuilt_2"] {
        let staged = damage::stage(&mut scene, name, damage::Shares::ByTurn);
        let own = scene.words(name, &staged);
        let mut others = own.clone();
        let plan = others
            .iter_mut()
            .skip(4)
            .find(|word| word.len() > 55 && word[0] == 1);
        // What its shares are worth.
        plan.unwrap()[47] ^= 1;
        let before = scene.dump();
        assert_eq!(code_of(&scene.send(&others)), Some(Reply::Stale), "{name}");
        assert_eq!(scene.dump(), before, "{name}");
        assert_eq!(code_of(&scene.send(&own)), Some(Reply::Ok), "{name}");
    }
}
