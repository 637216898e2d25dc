//! Repairs that die between any two of their steps, that meet, and that meet a load: the next one
//! ends them, and until then nobody is served. One thread plays, so that each answer of Redis is a
//! poll.

use std::pin::pin;
use std::task::Poll;

use super::mended::{KINDS, Kind, Mended, stage};
use super::{OnRedis, own_keys, store as another};
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::{GrabReply, HeldShare, Outcome};
use crate::hot::{CloseReply, HotError, HotStore};

/// Steps that a repair is given at most before it counts as whole.
const POLLS_MAX: usize = 200;

/// Repairs, and dies after so many polls: a poll is at most one answer of Redis. Whether it died.
async fn dies_after(
    polls: usize,
    store: &dyn HotStore,
    mended: &Mended,
    known: &[HeldShare],
) -> bool {
    let under = store.epochs();
    let repair = store.repair(&under, mended.repair(known));
    let mut repair = pin!(repair);
    let mut left = polls;
    let ended = std::future::poll_fn(|context| match left {
        0 => Poll::Ready(None),
        _ => {
            left -= 1;
            repair.as_mut().poll(context).map(Some)
        }
    });
    match ended.await {
        None => true,
        Some(done) => {
            done.unwrap();
            false
        }
    }
}

/// Loses a grab and the shares, so that a repair has everything to do.
fn hurt(stage: &OnRedis, mended: &Mended) {
    let own = own_keys(&stage.store, mended.cast.id);
    stage
        .server
        .command(&[b"HDEL", own.grabs.as_bytes(), b"bob"]);
    stage.server.command(&[b"UNLINK", own.shares.as_bytes()]);
}

/// What was sent before the death may still be on its way.
async fn settles_down(store: &dyn HotStore) {
    store.vitals().await.unwrap();
}

#[tokio::test]
async fn a_repair_that_dies_anywhere_is_ended_by_the_next_one() {
    let mut stage = stage().await;
    for kind in KINDS {
        for polls in 0..POLLS_MAX {
            let mended = Mended::play(&*stage.store, kind).await;
            hurt(&stage, &mended);
            let died = dies_after(polls, &*stage.store, &mended, &mended.held).await;
            settles_down(&*stage.store).await;
            if died {
                serves_nobody(&*stage.store, &mended).await;
            }
            if polls % 2 == 1 {
                stage.go_on().await;
                is_not_loaded_anew(&*stage.store, &mended).await;
            }
            mended.mend(&*stage.store, &mended.held).await;
            mended
                .holds(&*stage.store, &format!("{kind:?} {polls}"))
                .await;
            if !died {
                assert!(polls > 5, "a repair has more steps");
                break;
            }
        }
    }
}

/// Unless the repair came to its end, unheard.
async fn serves_nobody(store: &dyn HotStore, mended: &Mended) {
    let view = store.view(vec![mended.cast.id]).await.unwrap();
    let view = view.into_iter().flatten().next();
    if view.is_some_and(|view| !view.stale) {
        return;
    }
    for reply in mended.grab(store, &["ann", "zoe"]).await {
        assert_eq!(reply, GrabReply::Missing);
    }
}

/// A loader who knows of no repair neither publishes it anew nor forgets who grabbed.
async fn is_not_loaded_anew(store: &dyn HotStore, mended: &Mended) {
    let _refused = mended.cast.load(store).await;
    let opened = mended.cast.open(store).await;
    for reply in mended.grab(store, &["ann", "zoe", "bob", "yan"]).await {
        let won = matches!(reply, GrabReply::Outcome(Outcome::Won(_)));
        assert!(!won, "{:?} {opened:?}: {reply:?}", mended.kind);
    }
}

#[tokio::test]
async fn a_half_rebuilt_envelope_can_be_closed() {
    let stage = stage().await;
    for (kind, polls) in KINDS
        .iter()
        .flat_map(|kind| (0..40).map(move |p| (*kind, p)))
    {
        let mended = Mended::play(&*stage.store, kind).await;
        hurt(&stage, &mended);
        let _died = dies_after(polls, &*stage.store, &mended, &mended.held).await;
        settles_down(&*stage.store).await;
        let (id, terms) = (mended.cast.id, mended.cast.terms.clone());
        let under = stage.store.epochs();
        let closed = stage.store.close(&under, id, terms, CloseReason::Recalled);
        let closed = closed.await.unwrap();
        assert!(matches!(closed, CloseReply::Over { .. }), "{closed:?}");
        let state = mended.mend(&*stage.store, &mended.held).await;
        assert_eq!(state, HotState::Over(CloseReason::Recalled));
        for reply in mended.grab(&*stage.store, &["ann"]).await {
            let won = matches!(reply, GrabReply::Outcome(Outcome::Won(_)));
            assert!(!won, "{kind:?} {polls}");
        }
    }
}

#[tokio::test]
async fn two_repairs_at_once_end_as_one() {
    let stage = stage().await;
    let other = another(&stage.server, &stage.clock);
    stage.introduce(&other).await;
    for (kind, round) in KINDS
        .iter()
        .flat_map(|kind| (0..20).map(move |r| (*kind, r)))
    {
        let mended = Mended::play(&*stage.store, kind).await;
        hurt(&stage, &mended);
        // In half of the rounds one of them knows what the other does not know yet.
        let known = &mended.held[round % 2..];
        let lost = mended
            .held
            .iter()
            .all(|h| known.contains(h) || h.grabber.as_str() != "bob");
        let less = if lost { known } else { &mended.held };
        let (first, second) = tokio::join!(
            mended.mend(&*stage.store, &mended.held),
            mended.mend(&*other, less)
        );
        assert_eq!((first, second), (HotState::Live, HotState::Live));
        mended.holds(&*other, &format!("{kind:?} {round}")).await;
    }
}

#[tokio::test]
async fn what_another_repair_left_behind_is_thrown_away() {
    let stage = stage().await;
    for kind in [Kind::Lucky, Kind::Locked, Kind::Large] {
        for junk in [&b"\x01"[..], &[9; 70]] {
            let mended = Mended::play(&*stage.store, kind).await;
            hurt(&stage, &mended);
            let mut polls = 0;
            // Until it stands half rebuilt.
            loop {
                polls += 1;
                let died = dies_after(polls, &*stage.store, &mended, &mended.held).await;
                assert!(died, "it is never half rebuilt");
                settles_down(&*stage.store).await;
                let view = stage.store.view(vec![mended.cast.id]).await.unwrap();
                if view.into_iter().flatten().any(|view| view.stale) {
                    break;
                }
            }
            let key = own_keys(&stage.store, mended.cast.id).shares;
            stage.server.command(&[b"SET", key.as_bytes(), junk]);
            let mended_state = mended.mend(&*stage.store, &mended.held).await;
            assert_eq!(mended_state, HotState::Live);
            mended.holds(&*stage.store, &format!("{kind:?}")).await;
        }
    }
}

#[tokio::test]
async fn a_half_rebuilt_envelope_is_neither_loaded_nor_opened() {
    let stage = stage().await;
    let mended = Mended::play(&*stage.store, Kind::Named).await;
    hurt(&stage, &mended);
    for polls in 1.. {
        assert!(dies_after(polls, &*stage.store, &mended, &mended.held).await);
        settles_down(&*stage.store).await;
        let view = stage.store.view(vec![mended.cast.id]).await.unwrap();
        if view.into_iter().flatten().any(|view| view.stale) {
            break;
        }
    }
    let loaded = mended.cast.load(&*stage.store).await;
    assert!(
        matches!(loaded, Err(HotError::Unavailable(_))),
        "{loaded:?}"
    );
    assert!(mended.cast.open(&*stage.store).await.is_err());
    mended.mend(&*stage.store, &mended.held).await;
    mended.holds(&*stage.store, "after a load in between").await;
}
