//! Cases about closing, freezing, settling, removing and looking.

use std::sync::Arc;

use super::stage::{
    Cast, EXPIRES_IN_MS, NEW_YEAR_MS, Stage, epoch, outcome, partition, person, tenant, won,
};
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::{GrabReply, Outcome};
use crate::domain::id::{EnvelopeId, UnixMs};
use crate::hot::{CloseReply, GrantWalk, HotStore, HotView, Mark};

async fn close(store: &dyn HotStore, cast: &Cast, reason: CloseReason) -> CloseReply {
    let terms = Arc::clone(&cast.terms);
    let closed = store.close(&store.epochs(), cast.id, terms, reason).await;
    closed.expect("the store serves")
}

async fn view(store: &dyn HotStore, id: EnvelopeId) -> Option<HotView> {
    let views = store.view(vec![id]).await.expect("the store serves");
    let [view] = &views[..] else {
        panic!("one id has {} views", views.len());
    };
    view.clone()
}

/// The first call that sees the expiry writes it; a clock that steps back revives nothing.
pub async fn an_envelope_expires_once_even_if_the_clock_steps_back(stage: &mut dyn Stage) {
    let cast = Cast::lucky(&[5, 7, 11]);
    cast.publish(&*stage.store()).await;
    let expires_at = cast.terms.expires_at.0;
    stage.clock().set(expires_at - 1);
    let Outcome::Won(first) = outcome(cast.grab(&*stage.store(), "ann").await) else {
        panic!("the last millisecond counts");
    };
    stage.clock().set(expires_at);
    assert_eq!(
        outcome(cast.grab(&*stage.store(), "bob").await),
        Outcome::Expired
    );
    stage.clock().set(NEW_YEAR_MS);
    assert_eq!(
        outcome(cast.grab(&*stage.store(), "bob").await),
        Outcome::Expired
    );
    cast.settle_all(&*stage.store()).await;
    stage.crash().await;
    assert_eq!(
        outcome(cast.grab(&*stage.store(), "bob").await),
        Outcome::Expired
    );
    let held = outcome(cast.grab(&*stage.store(), "ann").await);
    assert_eq!(held, Outcome::AlreadyGrabbed(first));
}

/// The store's own clock decides whether an envelope has expired.
pub async fn a_close_before_expiry_is_not_due(stage: &mut dyn Stage) {
    let (cast, missing) = (Cast::lucky(&[5, 7]), Cast::lucky(&[5]));
    cast.publish(&*stage.store()).await;
    let store = stage.store();
    let not_due = CloseReply::NotDue(UnixMs(NEW_YEAR_MS));
    assert_eq!(close(&*store, &cast, CloseReason::Expired).await, not_due);
    assert_eq!(
        close(&*store, &missing, CloseReason::Expired).await,
        not_due
    );
    assert!(view(&*store, missing.id).await.is_none());
    assert_eq!(won(cast.grab(&*store, "ann").await), (0, 5));
    stage.clock().advance_ms(EXPIRES_IN_MS);
    let over = CloseReply::Over {
        reason: CloseReason::Expired,
        taken_count: 1,
        taken_minor: 5,
    };
    assert_eq!(close(&*store, &cast, CloseReason::Expired).await, over);
    assert_eq!(outcome(cast.grab(&*store, "bob").await), Outcome::Expired);
}

/// Closing again answers the same, whatever it asks.
pub async fn the_first_reason_of_the_end_stands(stage: &mut dyn Stage) {
    let cast = Cast::lucky(&[5, 7]);
    cast.publish(&*stage.store()).await;
    won(cast.grab(&*stage.store(), "ann").await);
    let over = CloseReply::Over {
        reason: CloseReason::Recalled,
        taken_count: 1,
        taken_minor: 5,
    };
    let closed = close(&*stage.store(), &cast, CloseReason::Recalled).await;
    assert_eq!(closed, over);
    stage.crash().await;
    stage.clock().advance_ms(EXPIRES_IN_MS);
    let again = close(&*stage.store(), &cast, CloseReason::Expired).await;
    assert_eq!(again, over);
    let opened = cast.open(&*stage.store()).await.expect("it serves");
    assert_eq!(opened, HotState::Over(CloseReason::Recalled));
}

/// Who closes what is not there yet wins against whoever is still loading it.
pub async fn a_tombstone_stops_a_late_loader(stage: &mut dyn Stage) {
    let cast = Cast::lucky(&[5, 7]);
    let over = CloseReply::Over {
        reason: CloseReason::Recalled,
        taken_count: 0,
        taken_minor: 0,
    };
    let closed = close(&*stage.store(), &cast, CloseReason::Recalled).await;
    assert_eq!(closed, over);
    stage.crash().await;
    cast.load(&*stage.store())
        .await
        .expect("loading what is over changes nothing");
    let opened = cast.open(&*stage.store()).await.expect("it serves");
    assert_eq!(opened, HotState::Over(CloseReason::Recalled));
    assert_eq!(
        outcome(cast.grab(&*stage.store(), "ann").await),
        Outcome::Recalled
    );
}

/// Nothing is granted, declined or closed under the mark, and the state is found again.
pub async fn a_frozen_envelope_stands_still_until_it_is_unfrozen(stage: &mut dyn Stage) {
    let cast = Cast::exclusive(&[("ann", 5), ("bob", 7)]);
    cast.publish(&*stage.store()).await;
    let freeze = stage.store().freeze(&stage.store().epochs(), cast.id).await;
    freeze.expect("it serves");
    let nobody = Cast::lucky(&[1]).id;
    let freeze = stage.store().freeze(&stage.store().epochs(), nobody).await;
    freeze.expect("a missing envelope is no error");
    stage.crash().await;
    let store = stage.store();
    assert_eq!(cast.grab(&*store, "ann").await, GrabReply::Frozen);
    let declined = store.decline(epoch(&*store, cast.id), tenant(), cast.id, person("bob"));
    let declined = declined.await.expect("it serves");
    assert_eq!(declined, crate::hot::DeclineReply::Frozen);
    assert_eq!(
        close(&*store, &cast, CloseReason::Recalled).await,
        CloseReply::Frozen
    );
    let seen = view(&*store, cast.id).await.expect("it is there");
    assert_eq!(
        (seen.state, seen.frozen),
        (HotState::Live, Some(Mark::Books))
    );
    let marked = store.marked(None, 10).await.expect("it serves");
    assert_eq!(marked, [(cast.id, Mark::Books)]);
    let above = store.marked(Some(cast.id), 10).await.expect("it serves");
    assert_eq!(above, []);
    let unfrozen = store.unfreeze(&store.epochs(), cast.id, Mark::Books).await;
    unfrozen.expect("it serves");
    let marked = store.marked(None, 10).await.expect("it serves");
    assert_eq!(marked, []);
    assert_eq!(won(cast.grab(&*store, "ann").await), (0, 5));
}

/// Best luck is told when it can no longer change.
pub async fn the_best_share_shows_at_the_end_and_ties_go_to_the_lowest_number(
    stage: &mut dyn Stage,
) {
    let cast = Cast::lucky(&[5, 11, 11, 7]);
    cast.publish(&*stage.store()).await;
    for name in ["ann", "bob", "cat"] {
        won(cast.grab(&*stage.store(), name).await);
        let seen = view(&*stage.store(), cast.id).await.expect("it is there");
        assert_eq!(seen.best, None);
    }
    won(cast.grab(&*stage.store(), "dan").await);
    stage.crash().await;
    let seen = view(&*stage.store(), cast.id).await.expect("it is there");
    assert_eq!((seen.taken_count, seen.taken_minor), (4, 34));
    let best = seen.best.expect("it is over");
    assert_eq!((best.grabber, best.grant.share), (person("bob"), 1));
    // Of several persons at once, one of them twice.
    let elsewhere = Cast::lucky(&[1]).id;
    let asked = [
        (cast.id, "bob"),
        (elsewhere, "bob"),
        (cast.id, "dan"),
        (cast.id, "eve"),
        (cast.id, "bob"),
    ];
    let whose = asked.map(|(id, who)| (id, person(who))).to_vec();
    let held = stage.store().held(whose).await.expect("it serves");
    assert_eq!(held[0].as_ref().map(|held| held.grant), Some(best.grant));
    let dan = held[2].as_ref().expect("he won");
    assert_eq!((&dan.grabber, dan.grant.share), (&person("dan"), 3));
    assert_eq!([&held[1], &held[3]], [&None, &None]);
    assert_eq!(held[4], held[0]);
    let grants = stage
        .store()
        .grants(cast.id, 1, 2)
        .await
        .expect("it serves");
    let shares: Vec<_> = grants
        .expect("it is there")
        .iter()
        .map(|h| h.grant.share)
        .collect();
    assert_eq!(shares, [1, 2]);
    let none = stage.store().grants(Cast::lucky(&[1]).id, 0, 9).await;
    assert_eq!(none.expect("it serves"), None);
}

/// Wrong ids and nonces are skipped, so an old drainer can't delete what it has not posted.
pub async fn the_outbox_keeps_a_debt_until_it_is_settled_by_id_and_nonce(stage: &mut dyn Stage) {
    let cast = Cast::lucky(&[5, 7]);
    cast.publish(&*stage.store()).await;
    won(cast.grab(&*stage.store(), "ann").await);
    stage.crash().await;
    let store = stage.store();
    let entries = store
        .outbox(partition(&*store, cast.id), None, 10)
        .await
        .expect("it serves");
    let [entry] = &entries[..] else {
        panic!("one batch is one entry, not {}", entries.len());
    };
    assert!(entry.epoch <= epoch(&*store, cast.id));
    let record = &entry.records[0];
    assert_eq!(
        (
            record.envelope,
            &record.grabber,
            record.grant.amount_minor,
            record.declined
        ),
        (cast.id, &person("ann"), 5, false)
    );
    let wrong = vec![(entry.id, entry.nonce ^ 1), (entry.id + 1, entry.nonce)];
    let watermark = store
        .settled(epoch(&*store, cast.id), partition(&*store, cast.id), wrong)
        .await;
    assert!(watermark.expect("it serves") < entry.id);
    assert_eq!(cast.debts(&*store).await.len(), 1);
    let vitals = store.vitals().await.expect("it serves");
    assert_eq!(vitals.unsettled_records, 1);
    assert_eq!(vitals.oldest_unsettled_at, Some(record.grant.at));
    let right = vec![(entry.id, entry.nonce)];
    let watermark = store
        .settled(
            epoch(&*store, cast.id),
            partition(&*store, cast.id),
            right.clone(),
        )
        .await;
    assert!(watermark.expect("it serves") >= entry.id);
    assert_eq!(cast.debts(&*store).await, []);
    let again = store
        .settled(epoch(&*store, cast.id), partition(&*store, cast.id), right)
        .await;
    assert!(again.expect("settling twice is harmless") >= entry.id);
    assert_eq!(
        store.vitals().await.expect("it serves").unsettled_records,
        0
    );
}

/// Entries may be settled in any order; pages go on behind the last one.
pub async fn the_watermark_stops_before_the_first_unsettled_entry(stage: &mut dyn Stage) {
    let cast = Cast::lucky(&[1, 2, 3]);
    cast.publish(&*stage.store()).await;
    let store = stage.store();
    for name in ["ann", "bob", "cat"] {
        won(cast.grab(&*store, name).await);
    }
    let entries = store
        .outbox(partition(&*store, cast.id), None, 10)
        .await
        .expect("it serves");
    let [a, b, c] = [0, 1, 2].map(|n| (entries[n].id, entries[n].nonce));
    assert!(a.0 < b.0 && b.0 < c.0);
    let page = store
        .outbox(partition(&*store, cast.id), Some(a.0), 1)
        .await
        .expect("it serves");
    assert_eq!(page.iter().map(|e| e.id).collect::<Vec<_>>(), [b.0]);
    let settle = |pairs| store.settled(epoch(&*store, cast.id), partition(&*store, cast.id), pairs);
    let watermark = settle(vec![b]).await.expect("it serves");
    assert!(watermark < a.0);
    let left = cast.debts(&*store).await;
    assert_eq!(
        left.iter().map(|r| r.grant.share).collect::<Vec<_>>(),
        [0, 2]
    );
    let watermark = settle(vec![a]).await.expect("it serves");
    assert!((b.0..c.0).contains(&watermark));
    let watermark = settle(vec![c]).await.expect("it serves");
    assert!(watermark >= c.0);
}

/// Live, unsettled and frozen envelopes stay; the others leave nothing, also after a crash.
pub async fn only_what_is_over_and_settled_is_removed(stage: &mut dyn Stage) {
    let (live, over, frozen) = (Cast::lucky(&[5, 7]), Cast::lucky(&[5]), Cast::lucky(&[9]));
    let ids = vec![live.id, over.id, frozen.id, Cast::lucky(&[1]).id];
    for cast in [&live, &over, &frozen] {
        cast.publish(&*stage.store()).await;
        won(cast.grab(&*stage.store(), "ann").await);
    }
    let freeze = stage
        .store()
        .freeze(&stage.store().epochs(), frozen.id)
        .await;
    freeze.expect("it serves");
    let remove = stage
        .store()
        .remove(&stage.store().epochs(), ids.clone())
        .await;
    remove.expect("it serves");
    assert!(
        view(&*stage.store(), over.id).await.is_some(),
        "it is not settled"
    );
    over.settle_all(&*stage.store()).await;
    let remove = stage.store().remove(&stage.store().epochs(), ids).await;
    remove.expect("it serves");
    for _ in 0..2 {
        assert!(view(&*stage.store(), over.id).await.is_none());
        assert!(view(&*stage.store(), live.id).await.is_some());
        assert!(view(&*stage.store(), frozen.id).await.is_some());
        assert_eq!(over.grab(&*stage.store(), "ann").await, GrabReply::Missing);
        stage.crash().await;
    }
    assert_eq!(won(live.grab(&*stage.store(), "bob").await), (1, 7));
}

/// A walk pages as `grants` does, also while others grab.
pub async fn a_walk_tells_what_was_granted_when_each_page_was_asked_for(stage: &mut dyn Stage) {
    let cast = Cast::lucky(&[5, 7, 11, 13, 17]);
    cast.publish(&*stage.store()).await;
    let (mut walk, mut from, mut told) = (GrantWalk::default(), 0, Vec::new());
    for name in ["ann", "bob", "cat", "dan", "eve"] {
        won(cast.grab(&*stage.store(), name).await);
        let store = stage.store();
        let page = store.walk_grants(&mut walk, cast.id, from, 2).await;
        let page = page.expect("the store serves").expect("it is there");
        let alone = store.grants(cast.id, from, 2).await;
        assert_eq!(Some(&page), alone.expect("the store serves").as_ref());
        assert!(page.iter().any(|held| held.grabber == person(name)));
        from = page.last().map_or(from, |held| held.grant.share + 1);
        told.extend(page);
    }
    assert_eq!(told.len(), 5);
    let nobody = Cast::lucky(&[5]).id;
    let page = stage.store().walk_grants(&mut walk, nobody, 0, 2).await;
    assert_eq!(page.expect("the store serves"), None);
}

/// Pending is what a balance must not forget: won, and not in the books yet.
pub async fn what_somebody_won_is_pending_until_it_is_settled(stage: &mut dyn Stage) {
    let (cast, declined) = (Cast::lucky(&[5, 7]), Cast::exclusive(&[("ann", 11)]));
    cast.publish(&*stage.store()).await;
    declined.publish(&*stage.store()).await;
    won(cast.grab(&*stage.store(), "bob").await);
    won(cast.grab(&*stage.store(), "ann").await);
    let decline = stage
        .store()
        .decline(
            epoch(&*stage.store(), declined.id),
            tenant(),
            declined.id,
            person("ann"),
        )
        .await;
    decline.expect("it serves");
    stage.crash().await;
    let pending = stage.store().pending(tenant(), person("ann")).await;
    let pending = pending.expect("it serves");
    let [share] = &pending[..] else {
        panic!("ann has one share, not {}", pending.len());
    };
    assert_eq!((share.envelope, share.grant.amount_minor), (cast.id, 7));
    assert_eq!(share.terms, cast.terms);
    cast.settle_all(&*stage.store()).await;
    let pending = stage.store().pending(tenant(), person("ann")).await;
    assert_eq!(pending.expect("it serves"), []);
}

/// How an audit walks the store.
pub async fn envelopes_are_listed_by_pages_in_order(stage: &mut dyn Stage) {
    let casts: Vec<_> = (0..5).map(|_| Cast::lucky(&[1])).collect();
    for cast in &casts {
        cast.publish(&*stage.store()).await;
    }
    stage.crash().await;
    let store = stage.store();
    let mut expected: Vec<_> = casts.iter().map(|cast| cast.id).collect();
    expected.sort();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.envelopes(after, 2).await.expect("it serves");
        assert!(page.len() <= 2);
        let Some(last) = page.last() else { break };
        after = Some(*last);
        found.extend(page);
    }
    assert_eq!(found, expected);
    assert_eq!(store.vitals().await.expect("it serves").envelopes, 5);
}
