//! Cases about loading, opening and grabbing.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::stage::{Cast, NEW_YEAR_MS, Stage, epoch, one, outcome, partition, person, tenant, won};
use crate::domain::audience::WRONG_TRIES_PER_GRABBER_MAX;
use crate::domain::envelope::{CloseReason, HotState, LOAD_CHUNK_SHARES_MAX, shares_checksum};
use crate::domain::grab::{Grab, GrabReply, Outcome, Refusal};
use crate::domain::id::{Epoch, TenantId, UnixMs};
use crate::hot::{CloseReply, DeclineReply, Epochs, HotError, Mark};

/// Three shares, five grabs in one call: one of them twice, the last share in the middle.
pub async fn grabs_of_one_call_are_answered_in_their_order_with_duplicates_and_the_last_share(
    stage: &mut dyn Stage,
) {
    let cast = Cast::lucky(&[5, 7, 11]);
    cast.publish(&*stage.store()).await;
    let names = ["ann", "bob", "ann", "cat", "dan", "bob"];
    let grabs = names
        .map(|name| cast.grab_in(&*stage.store(), name))
        .to_vec();
    let replies = stage.store().grab(grabs).await.expect("the store serves");
    let replies: Vec<_> = replies.into_iter().map(outcome).collect();
    assert!(matches!(replies[0], Outcome::Won(g) if (g.share, g.amount_minor) == (0, 5)));
    assert!(matches!(replies[1], Outcome::Won(g) if (g.share, g.amount_minor) == (1, 7)));
    assert!(matches!(replies[2], Outcome::AlreadyGrabbed(g) if g.share == 0));
    assert!(matches!(replies[3], Outcome::Won(g) if (g.share, g.amount_minor) == (2, 11)));
    assert_eq!(replies[4], Outcome::Empty);
    assert!(matches!(replies[5], Outcome::AlreadyGrabbed(g) if g.share == 1));
    stage.crash().await;
    assert_eq!(cast.debts(&*stage.store()).await.len(), 3);
    assert_eq!(
        outcome(cast.grab(&*stage.store(), "eve").await),
        Outcome::Empty
    );
}

/// The first answer is Won, all later ones AlreadyGrabbed with the same share and instant.
pub async fn a_repeated_grab_is_answered_with_the_first_share_for_ever(stage: &mut dyn Stage) {
    let cast = Cast::lucky(&[5, 7]);
    cast.publish(&*stage.store()).await;
    let Outcome::Won(first) = outcome(cast.grab(&*stage.store(), "ann").await) else {
        panic!("the first grab wins");
    };
    stage.clock().advance_ms(1_000);
    let again = Outcome::AlreadyGrabbed(first);
    assert_eq!(outcome(cast.grab(&*stage.store(), "ann").await), again);
    stage.crash().await;
    assert_eq!(outcome(cast.grab(&*stage.store(), "ann").await), again);
    let recalled = CloseReason::Recalled;
    let store = stage.store();
    let (under, terms) = (store.epochs(), Arc::clone(&cast.terms));
    let closed = store.close(&under, cast.id, terms, recalled);
    closed.await.expect("it can be closed");
    assert_eq!(outcome(cast.grab(&*store, "ann").await), again);
    assert_eq!(outcome(cast.grab(&*store, "bob").await), Outcome::Recalled);
}

/// 10,000 calls at once; each of the 100 shares is won once, by 100 people.
pub async fn ten_thousand_grabbers_share_a_hundred_shares_and_nobody_gets_two(
    stage: &mut dyn Stage,
) {
    let amounts: Vec<i64> = (1..=100).collect();
    let cast = Cast::lucky(&amounts);
    cast.publish(&*stage.store()).await;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..10_000 {
        let (store, cast) = (stage.store(), cast.clone());
        calls.spawn(async move { outcome(cast.grab(&*store, &format!("g{number}")).await) });
    }
    let mut shares = BTreeSet::new();
    let (mut sum, mut empty) = (0, 0);
    for outcome in calls.join_all().await {
        match outcome {
            Outcome::Won(grant) => {
                assert!(
                    shares.insert(grant.share),
                    "share {} went twice",
                    grant.share
                );
                sum += grant.amount_minor;
            }
            Outcome::Empty => empty += 1,
            other => panic!("neither won nor empty: {other:?}"),
        }
    }
    assert_eq!((shares.len(), sum, empty), (100, 5_050, 9_900));
    stage.crash().await;
    let grants = stage.store().grants(cast.id, 0, 1_000).await;
    let grants = grants.expect("it serves").expect("it is there");
    let people: BTreeSet<_> = grants.iter().map(|held| &held.grabber).collect();
    assert_eq!((grants.len(), people.len()), (100, 100));
}

/// 1,000 calls at once: one Won, 999 AlreadyGrabbed, the same share.
pub async fn a_thousand_calls_of_one_grabber_take_one_share(stage: &mut dyn Stage) {
    let cast = Cast::lucky(&[3; 50]);
    cast.publish(&*stage.store()).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let (store, cast) = (stage.store(), cast.clone());
        calls.spawn(async move { outcome(cast.grab(&*store, "ann").await) });
    }
    let outcomes = calls.join_all().await;
    let is_won = |outcome: &&Outcome| matches!(outcome, Outcome::Won(_));
    assert_eq!(outcomes.iter().filter(is_won).count(), 1);
    let shares: BTreeSet<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Won(grant) | Outcome::AlreadyGrabbed(grant) => grant.share,
            other => panic!("no share: {other:?}"),
        })
        .collect();
    assert_eq!(shares.len(), 1);
    assert_eq!(cast.debts(&*stage.store()).await.len(), 1);
}

/// Loading and opening are idempotent, also after a crash in the middle of the loading.
pub async fn a_chunk_may_be_loaded_twice_and_only_the_whole_envelope_opens(stage: &mut dyn Stage) {
    let shares = LOAD_CHUNK_SHARES_MAX + 1;
    let cast = Cast::lucky(&vec![2; shares]);
    let load = |store: Arc<dyn crate::hot::HotStore>, number| {
        let chunk = cast.chunk(number);
        async move { store.load(&store.epochs(), chunk).await }
    };
    load(stage.store(), 0)
        .await
        .expect("the first chunk is fine");
    load(stage.store(), 0)
        .await
        .expect("and so is its repetition");
    let early = cast.open(&*stage.store()).await;
    assert!(matches!(early, Err(HotError::Mismatch(_))), "{early:?}");
    assert_eq!(cast.grab(&*stage.store(), "ann").await, GrabReply::Funding);
    stage.crash().await;
    load(stage.store(), 0)
        .await
        .expect("it is the same after a crash");
    load(stage.store(), 1)
        .await
        .expect("the second chunk is fine");
    for _ in 0..2 {
        let opened = cast
            .open(&*stage.store())
            .await
            .expect("all shares are there");
        assert_eq!(opened, HotState::Live);
        stage.crash().await;
    }
    assert_eq!(won(cast.grab(&*stage.store(), "ann").await), (0, 2));
    load(stage.store(), 0)
        .await
        .expect("a late repetition changes nothing");
    assert_eq!(won(cast.grab(&*stage.store(), "bob").await), (1, 2));
}

/// Another amount, another checksum, another total, too many shares: nothing opens.
pub async fn wrong_shares_are_refused_and_nothing_is_published(stage: &mut dyn Stage) {
    let store = stage.store();
    let refused = |answer: Result<(), HotError>| {
        assert!(matches!(answer, Err(HotError::Mismatch(_))), "{answer:?}");
    };
    let cast = Cast::lucky(&[5, 7]);
    let mut beyond = cast.chunk(0);
    beyond.amounts_minor.push(1);
    refused(store.load(&store.epochs(), beyond).await);
    let mut nothing = cast.chunk(0);
    nothing.amounts_minor = vec![5, 0];
    refused(store.load(&store.epochs(), nothing).await);
    let none = store.view(vec![cast.id]).await.expect("it serves");
    assert!(none[0].is_none(), "a refused chunk leaves no envelope");

    cast.load(&*store).await.expect("these are fine");
    let mut other = cast.chunk(0);
    other.amounts_minor = vec![5, 8];
    refused(store.load(&store.epochs(), other).await);
    let checksum = shares_checksum(&[5, 8]);
    let opened = store.open(&store.epochs(), cast.id, checksum).await;
    assert!(matches!(opened, Err(HotError::Mismatch(_))), "{opened:?}");
    assert_eq!(cast.grab(&*store, "ann").await, GrabReply::Funding);

    let short = Cast::lucky(&[5, 7]).with(|draft| draft.total_minor = 13);
    short
        .load(&*store)
        .await
        .expect("chunks don't know the total");
    let opened = short.open(&*store).await;
    assert!(matches!(opened, Err(HotError::Mismatch(_))), "{opened:?}");
}

/// Nothing is written under an epoch that is not the partition's; the answer names the right one.
pub async fn every_function_refuses_another_epoch(stage: &mut dyn Stage) {
    let store = stage.store();
    let cast = Cast::lucky(&[5, 7]);
    cast.publish(&*store).await;
    let (right, wrong) = (epoch(&*store, cast.id), Epoch(777));
    let all_wrong = Epochs::all(store.partitions(), wrong);
    let refused = |answer: Option<HotError>| {
        assert!(
            matches!(&answer, Some(HotError::Epoch(stands)) if *stands == right),
            "{answer:?}"
        );
    };
    let fresh = Cast::lucky(&[1]);
    refused(store.load(&all_wrong, fresh.chunk(0)).await.err());
    refused(store.open(&all_wrong, cast.id, 0).await.err());
    let grab = Grab {
        epoch: wrong,
        ..cast.grab_in(&*store, "ann")
    };
    assert_eq!(one(&*store, grab).await, GrabReply::Epoch(right));
    let decline = store.decline(wrong, tenant(), cast.id, person("ann"));
    refused(decline.await.err());
    let close = store.close(
        &all_wrong,
        cast.id,
        Arc::clone(&cast.terms),
        CloseReason::Recalled,
    );
    refused(close.await.err());
    refused(store.freeze(&all_wrong, cast.id).await.err());
    let unfreeze = store.unfreeze(&all_wrong, cast.id, Mark::Broken);
    refused(unfreeze.await.err());
    refused(
        store
            .settled(wrong, partition(&*store, cast.id), vec![])
            .await
            .err(),
    );
    refused(store.remove(&all_wrong, vec![cast.id]).await.err());
    let views = store
        .view(vec![cast.id, fresh.id])
        .await
        .expect("it serves");
    let view = views[0].as_ref().expect("it is there");
    assert_eq!(
        (view.state, view.frozen, view.taken_count),
        (HotState::Live, None, 0)
    );
    assert!(views[1].is_none());
    // In what the partitions stand in which the envelope does not lie is not asked.
    let mut own_right = all_wrong;
    own_right.0[usize::from(partition(&*store, cast.id).index())] = right;
    let close = store.close(&own_right, cast.id, cast.terms, CloseReason::Recalled);
    let closed = close.await.expect("it stands there");
    assert!(matches!(closed, CloseReply::Over { .. }), "{closed:?}");
}

/// A grab under another tenant's name finds nothing and takes nothing.
pub async fn an_envelope_of_another_tenant_is_missing(stage: &mut dyn Stage) {
    let store = stage.store();
    let cast = Cast::exclusive(&[("ann", 5)]);
    cast.publish(&*store).await;
    let shop = TenantId::parse("shop").expect("shop is a name");
    let grab = Grab {
        tenant: shop.clone(),
        ..cast.grab_in(&*store, "ann")
    };
    assert_eq!(one(&*store, grab).await, GrabReply::Missing);
    let declined = store.decline(
        epoch(&*store, cast.id),
        shop.clone(),
        cast.id,
        person("ann"),
    );
    assert_eq!(declined.await.expect("it serves"), DeclineReply::Missing);
    assert_eq!(won(cast.grab(&*store, "ann").await), (0, 5));
    let pending = store.pending(shop, person("ann")).await;
    assert_eq!(pending.expect("it serves"), []);
}

/// Names take or decline their own share, in any order, once; strangers find nothing.
pub async fn an_exclusive_share_goes_to_its_name_or_back_to_the_sender(stage: &mut dyn Stage) {
    let cast = Cast::exclusive(&[("ann", 5), ("bob", 7), ("cat", 11)]);
    cast.publish(&*stage.store()).await;
    let store = stage.store();
    let decline =
        |name: &str| store.decline(epoch(&*store, cast.id), tenant(), cast.id, person(name));
    assert_eq!(cast.grab(&*store, "eve").await, GrabReply::Missing);
    assert_eq!(won(cast.grab(&*store, "cat").await), (2, 11));
    assert_eq!(
        decline("eve").await.expect("it serves"),
        DeclineReply::Missing
    );
    let DeclineReply::Declined { grant, replayed } = decline("bob").await.expect("it serves")
    else {
        panic!("bob's share is there to be declined");
    };
    assert_eq!((grant.share, grant.amount_minor, replayed), (1, 7, false));
    drop(store);
    stage.crash().await;
    let store = stage.store();
    let decline =
        |name: &str| store.decline(epoch(&*store, cast.id), tenant(), cast.id, person(name));
    let again = DeclineReply::Declined {
        grant,
        replayed: true,
    };
    assert_eq!(decline("bob").await.expect("it serves"), again);
    let refused = Outcome::Refused(Refusal::Declined);
    assert_eq!(outcome(cast.grab(&*store, "bob").await), refused);
    let taken = decline("cat").await.expect("it serves");
    assert!(
        matches!(taken, DeclineReply::AlreadyGrabbed(g) if g.share == 2),
        "{taken:?}"
    );
    let debts = cast.debts(&*store).await;
    let owed: Vec<_> = debts.iter().map(|d| (d.grant.share, d.declined)).collect();
    assert_eq!(owed, [(2, false), (1, true)]);
    assert_eq!(won(cast.grab(&*store, "ann").await), (0, 5));
    let views = store.view(vec![cast.id]).await.expect("it serves");
    let view = views[0].as_ref().expect("it is there");
    assert_eq!(view.state, HotState::Over(CloseReason::Empty));
    assert_eq!(
        (view.taken_count, view.taken_minor, view.declined_count),
        (3, 23, 1)
    );
}

/// The first call that sees `opens_at` passed opens it; a clock that steps back closes nothing.
pub async fn an_envelope_opens_once_even_if_the_clock_steps_back(stage: &mut dyn Stage) {
    let opens_at = UnixMs(NEW_YEAR_MS + 1_000);
    let cast = Cast::lucky(&[5, 7, 11]).with(|draft| draft.opens_at = Some(opens_at));
    cast.publish(&*stage.store()).await;
    let early = outcome(cast.grab(&*stage.store(), "ann").await);
    assert_eq!(early, Outcome::NotOpenYet(opens_at));
    stage.clock().set(opens_at.0);
    assert_eq!(won(cast.grab(&*stage.store(), "ann").await), (0, 5));
    stage.clock().set(NEW_YEAR_MS);
    assert_eq!(won(cast.grab(&*stage.store(), "bob").await), (1, 7));
    // A store may forget how it got here once it is settled, but not where it stands.
    cast.settle_all(&*stage.store()).await;
    stage.crash().await;
    assert_eq!(won(cast.grab(&*stage.store(), "cat").await), (2, 11));
}

/// Five wrong tries and the grabber is out, also after a crash and with the right phrase.
pub async fn wrong_passphrases_are_counted_for_ever(stage: &mut dyn Stage) {
    let cast = Cast::locked(&[5, 7]);
    cast.publish(&*stage.store()).await;
    let wrong = Outcome::Refused(Refusal::WrongPassphrase);
    assert_eq!(outcome(cast.grab(&*stage.store(), "ann").await), wrong);
    for _ in 1..WRONG_TRIES_PER_GRABBER_MAX {
        stage.crash().await;
        let reply = cast.grab_with(&*stage.store(), "ann", "abracadabra").await;
        assert_eq!(outcome(reply), wrong);
    }
    stage.crash().await;
    let reply = cast.grab_with(&*stage.store(), "ann", "open sesame").await;
    assert_eq!(outcome(reply), Outcome::Refused(Refusal::TooManyTries));
    let reply = cast.grab_with(&*stage.store(), "bob", "open sesame").await;
    assert_eq!(won(reply), (0, 5));
    // Who holds a share is not asked again.
    let again = outcome(cast.grab(&*stage.store(), "bob").await);
    assert!(matches!(again, Outcome::AlreadyGrabbed(g) if g.share == 0));
}
