//! The end of a dealt envelope: all its stripes, for one reason, and nothing left behind.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use redis::Value;

use super::lost::lose;
use super::{
    ASKED, POLLS_MAX, STRIPES, Told, cast, dies_after, gather, grab, grants, of, people_of, played,
    repair, stage, takes_the_rest, view,
};
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::{GrabReply, HeldShare, Outcome};
use crate::domain::id::Epoch;
use crate::domain::stripes::{Stripe, dealt};
use crate::hot::conformance::stage::{Cast, one};
use crate::hot::redis::tests::{OnRedis, answered};
use crate::hot::{CloseReply, Gathered, HotError, HotStore, Repair};

/// Grabs after which the winners must have been read.
const GRABS_MAX: usize = 10_000;

async fn closed(store: &dyn HotStore, cast: &Cast, reason: CloseReason) -> CloseReply {
    let under = store.epochs();
    let close = store.close(&under, cast.id, cast.terms.clone(), reason);
    close.await.unwrap()
}

/// All that is owed is in the books.
async fn settles(store: &dyn HotStore) {
    for partition in store.partitions().all() {
        let owed = store.outbox(partition, None, 1_000).await.unwrap();
        let pairs = owed.iter().map(|entry| (entry.id, entry.nonce)).collect();
        let epoch = store.epoch(partition);
        store.settled(epoch, partition, pairs).await.unwrap();
    }
}

#[tokio::test]
async fn all_stripes_are_closed_and_leave_no_key_behind() {
    for gathered in [false, true] {
        let (stage, cast) = (stage().await, cast(16));
        let store = &*stage.store;
        cast.publish(store).await;
        let told = played(store, &cast).await;
        if gathered {
            gather(store, &cast, None).await.unwrap();
        }
        for _ in 0..2 {
            let reply = closed(store, &cast, CloseReason::Recalled).await;
            let expected = CloseReply::Over {
                reason: CloseReason::Recalled,
                taken_count: u32::try_from(told.0.len()).unwrap(),
                taken_minor: told.0.values().map(|told| told.1).sum(),
            };
            assert_eq!(reply, expected);
        }
        for stripe in 0..STRIPES {
            for name in people_of(&cast, stripe, 7) {
                let outcome = grab(store, &cast, &name, true).await.unwrap();
                let won = matches!(outcome, Outcome::AlreadyGrabbed(_));
                assert_eq!(won, told.0.contains_key(&name), "{name}: {outcome:?}");
                assert!(won || outcome == Outcome::Recalled);
            }
        }
        told.is_counted(store, &cast).await;
        assert!(store.owes(cast.id).await.unwrap());
        settles(store).await;
        assert!(!store.owes(cast.id).await.unwrap());
        assert_eq!(store.envelopes(None, 10).await.unwrap(), [cast.id]);
        store.remove(&store.epochs(), vec![cast.id]).await.unwrap();
        let printed = format!("*{}*", cast.id);
        let keys = stage.server.command(&[b"KEYS", printed.as_bytes()]);
        assert_eq!(keys, Value::Array(Vec::new()));
        assert!(store.envelopes(None, 10).await.unwrap().is_empty());
    }
}

async fn all_taken_at_home(store: &dyn HotStore, cast: &Cast) -> Told {
    cast.publish(store).await;
    let mut told = Told::default();
    for stripe in 0..STRIPES {
        for name in people_of(cast, stripe, 4) {
            told.hears(&name, grab(store, cast, &name, false).await);
        }
    }
    told
}

#[tokio::test]
async fn one_whose_shares_are_all_taken_at_home_is_closed_as_empty_without_a_gather() {
    let (stage, cast) = (stage().await, cast(16));
    let store = &*stage.store;
    let told = all_taken_at_home(store, &cast).await;
    let early = view(store, &cast).await;
    assert_eq!((early.taken_count, early.state), (16, HotState::Live));
    let reply = closed(store, &cast, CloseReason::Empty).await;
    assert!(matches!(
        reply,
        CloseReply::Over {
            reason: CloseReason::Empty,
            taken_count: 16,
            ..
        }
    ));
    told.is_counted(store, &cast).await;
    assert_eq!(grab(store, &cast, "late", true).await, Some(Outcome::Empty));
}

#[tokio::test]
async fn one_that_is_over_is_closed_again_where_a_stripe_was_lost_since_and_counts_nothing() {
    for lost in of().all() {
        let (stage, cast) = (stage().await, cast(16));
        let store = &*stage.store;
        all_taken_at_home(store, &cast).await;
        closed(store, &cast, CloseReason::Empty).await;
        settles(store).await;
        lose(&stage, &cast, lost);
        for _ in 0..2 {
            let reply = closed(store, &cast, CloseReason::Empty).await;
            let CloseReply::Over { taken_count, .. } = reply else {
                panic!("{lost:?}: {reply:?}");
            };
            assert_eq!(taken_count, 12, "{lost:?}");
        }
    }
}

/// Everything was gathered, and all of it is taken.
async fn emptied(store: &dyn HotStore, cast: &Cast) -> Told {
    cast.publish(store).await;
    let mut told = played(store, cast).await;
    gather(store, cast, None).await.unwrap();
    takes_the_rest(store, cast, &mut told).await;
    told
}

#[tokio::test]
async fn an_empty_one_stays_so_for_who_gathers_too_late() {
    let (stage, cast) = (stage().await, cast(16));
    let store = &*stage.store;
    let told = emptied(store, &cast).await;
    // He found it standing, and is late: then he dies.
    let under = store.epochs();
    let halts = store.halt(&under, cast.id, cast.terms.clone(), Stripe::FIRST);
    let halted = halts.await.unwrap().unwrap();
    assert_eq!(halted.over, Some(CloseReason::Empty));
    let seen = view(store, &cast).await;
    assert_eq!(seen.state, HotState::Over(CloseReason::Empty));
    assert_eq!(grab(store, &cast, "late", true).await, Some(Outcome::Empty));
    told.is_counted(store, &cast).await;
}

#[tokio::test]
async fn one_that_has_shares_left_anywhere_is_not_closed_as_empty() {
    let (stage, cast) = (stage().await, cast(16));
    let store = &*stage.store;
    cast.publish(store).await;
    played(store, &cast).await;
    let under = store.epochs();
    let close = || store.close(&under, cast.id, cast.terms.clone(), CloseReason::Empty);
    assert!(matches!(close().await, Err(HotError::Mismatch(_))));
    gather(store, &cast, None).await.unwrap();
    assert!(matches!(close().await, Err(HotError::Mismatch(_))));
}

#[tokio::test]
async fn a_close_at_any_moment_of_a_gather_counts_whoever_has_a_share() {
    let stage = stage().await;
    let store = &*stage.store;
    let mut put_off = 0;
    for polls in 0..POLLS_MAX {
        let cast = cast(16);
        cast.publish(store).await;
        let told = played(store, &cast).await;
        let died = dies_after(polls, store, &cast).await;
        // What was sent before the death may still be on its way.
        store.vitals().await.unwrap();
        let under = store.epochs();
        let close = store.close(&under, cast.id, cast.terms.clone(), CloseReason::Recalled);
        if let Err(error) = close.await {
            // Half rebuilt it is not ended, with its grants, but brought back first.
            assert!(matches!(error, HotError::Unavailable(_)), "{error:?}");
            put_off += 1;
            gather(store, &cast, Some(&[])).await.unwrap();
        }
        let reply = closed(store, &cast, CloseReason::Recalled).await;
        let CloseReply::Over { taken_count, .. } = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(usize::try_from(taken_count), Ok(told.0.len()), "{polls}");
        told.is_counted(store, &cast).await;
        if !died {
            assert!(put_off > 0, "no close fell into a rebuild");
            return;
        }
    }
    panic!("a gather takes more than {POLLS_MAX} polls");
}

/// Brings a gathered envelope back that the books are ending.
async fn brought_back_to_end(store: &dyn HotStore, cast: &Cast, claims: &[HeldShare]) {
    let (under, mut all) = (store.epochs(), Gathered::default());
    let over = Some(CloseReason::Recalled);
    for stripe in of().all().skip(1) {
        let gathered = Some(Gathered::default());
        let ending = Repair {
            gathered,
            over,
            ..repair(cast, stripe, claims)
        };
        store.repair(&under, ending).await.unwrap();
        let halted = store.halt(&under, cast.id, cast.terms.clone(), stripe);
        let halted = halted.await.unwrap().unwrap();
        all.left.extend(halted.left);
        all.lacks |= halted.tombstone;
    }
    let first = Repair {
        gathered: Some(all),
        over,
        ..repair(cast, Stripe::FIRST, claims)
    };
    store.repair(&under, first).await.unwrap();
}

#[tokio::test]
async fn what_is_ended_at_its_first_touch_in_a_new_epoch_counts_whoever_has_a_share() {
    let (mut stage, mut epoch) = (stage().await, 2);
    let lost = of().all().map(Some).chain([None]);
    for lost in lost {
        // What is lost is in the books; of what is not, they know nothing yet.
        for settled in [false, true] {
            let cast = cast(16);
            cast.publish(&*stage.store).await;
            let mut told = played(&*stage.store, &cast).await;
            gather(&*stage.store, &cast, None).await.unwrap();
            let stranger = people_of(&cast, 1, 6).pop().unwrap();
            told.hears(&stranger, grab(&*stage.store, &cast, &stranger, true).await);
            let grants = grants(&*stage.store, &cast).await;
            let mut claims = grants.clone();
            if let Some(lost) = lost {
                lose(&stage, &cast, lost);
            } else if !settled {
                claims.clear();
            }
            epoch += 1;
            stage.register(Epoch(epoch)).await;
            let store = &*stage.store;
            brought_back_to_end(store, &cast, &claims).await;
            let reply = closed(store, &cast, CloseReason::Recalled).await;
            let CloseReply::Over { taken_count, .. } = reply else {
                panic!("{reply:?}");
            };
            assert_eq!(usize::try_from(taken_count), Ok(told.0.len()), "{lost:?}");
            assert!(!view(store, &cast).await.stale);
            told.is_counted(store, &cast).await;
        }
    }
}

#[tokio::test]
async fn what_was_removed_in_part_is_removed_as_a_whole() {
    for lost in of().all() {
        let (stage, cast) = (stage().await, cast(16));
        let store = &*stage.store;
        cast.publish(store).await;
        closed(store, &cast, CloseReason::Recalled).await;
        lose(&stage, &cast, lost);
        // And of another one the grabs alone.
        let other = of().all().find(|stripe| *stripe != lost).unwrap();
        let core = &stage.store.core;
        let own = core.own(core.place(cast.id, other, of()));
        stage.server.command(&[b"UNLINK", own.grabs.as_bytes()]);
        assert_eq!(store.envelopes(None, 10).await.unwrap(), [cast.id]);
        // As the sweep does, which has its row.
        store.learn(cast.id, &cast.terms);
        store.remove(&store.epochs(), vec![cast.id]).await.unwrap();
        let printed = format!("*{}*", cast.id);
        let keys = stage.server.command(&[b"KEYS", printed.as_bytes()]);
        assert_eq!(keys, Value::Array(Vec::new()), "{lost:?}");
    }
}

/// Gathers, and closes it after so many polls of that. Whether there were so many; and whether the close was put
/// off, since the first stripe was being rebuilt.
async fn crosses_after(polls: usize, store: &dyn HotStore, cast: &Cast) -> (bool, bool) {
    let mut gathers = pin!(gather(store, cast, None));
    for _ in 0..polls {
        let ended = std::future::poll_fn(|context| Poll::Ready(gathers.as_mut().poll(context)));
        if ended.await.is_ready() {
            return (false, false);
        }
        // What it has sent is answered.
        store.vitals().await.unwrap();
    }
    let under = store.epochs();
    let close = store.close(&under, cast.id, cast.terms.clone(), CloseReason::Recalled);
    let put_off = matches!(close.await, Err(HotError::Unavailable(_)));
    let _may_have_crossed = gathers.await;
    (true, put_off)
}

#[tokio::test]
async fn what_was_closed_while_it_was_gathered_gives_nothing_any_more() {
    let stage = stage().await;
    let store = &*stage.store;
    let mut put_off = 0;
    for polls in 0..POLLS_MAX {
        let cast = cast(16);
        cast.publish(store).await;
        let told = played(store, &cast).await;
        let (crossed, late) = crosses_after(polls, store, &cast).await;
        if !crossed {
            assert!(polls > 10 && put_off > 0, "it has many steps");
            return;
        }
        if late {
            put_off += 1;
            closed(store, &cast, CloseReason::Recalled).await;
        }
        let seen = view(store, &cast).await;
        assert_eq!(seen.state, HotState::Over(CloseReason::Recalled), "{polls}");
        for stripe in 0..STRIPES {
            for name in people_of(&cast, stripe, ASKED) {
                match grab(store, &cast, &name, true).await {
                    Some(Outcome::AlreadyGrabbed(_)) => assert!(told.0.contains_key(&name)),
                    heard => assert_eq!(heard, Some(Outcome::Recalled), "{polls}: {name}"),
                }
            }
        }
        told.is_counted(store, &cast).await;
    }
    panic!("a gather takes more than {POLLS_MAX} polls");
}

/// All shares are taken, and Redis has said so often that whoever comes too late is answered from memory.
async fn known_as_empty() -> (OnRedis, Cast, Told) {
    let (stage, cast) = (stage().await, cast(16));
    let told = emptied(&*stage.store, &cast).await;
    until_known(&stage, &cast).await;
    (stage, cast, told)
}

/// Somebody else asks each time, for one may be taken for a winner.
async fn until_known(stage: &OnRedis, cast: &Cast) {
    let emptied = &stage.store.core.emptied;
    emptied.set(1, Duration::from_secs(3_600));
    for number in 0..GRABS_MAX {
        let heard = asks(stage, cast, &format!("late-{number}")).await;
        assert_eq!(heard.0, Some(Outcome::Empty));
        if !heard.1 {
            return;
        }
    }
    panic!("its winners are not read");
}

/// What somebody hears, and whether Redis was asked.
async fn asks(stage: &OnRedis, cast: &Cast, name: &str) -> (Option<Outcome>, bool) {
    let calls = || answered(&stage.server, "fcall");
    let before = calls();
    let heard = grab(&*stage.store, cast, name, true).await;
    (heard, calls() > before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_too_late_hears_it_from_memory_and_winners_where_their_share_stands() {
    let (stage, cast, mut told) = known_as_empty().await;
    let (mut by_memory, mut by_redis) = (0, 0);
    for stripe in 0..STRIPES {
        for name in people_of(&cast, stripe, ASKED + 50).split_off(ASKED) {
            let (heard, asked) = asks(&stage, &cast, &name).await;
            assert_eq!(heard, Some(Outcome::Empty), "{name}");
            by_memory += usize::from(!asked);
            by_redis += usize::from(asked);
        }
    }
    assert!(by_memory > 180, "{by_redis} of 200 are taken for winners");
    for name in told.0.keys().cloned().collect::<Vec<_>>() {
        let (heard, asked) = asks(&stage, &cast, &name).await;
        assert!(asked, "{name}");
        told.hears(&name, heard);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_any_of_its_partitions_goes_on_nobody_hears_from_memory_that_it_is_empty() {
    for stripe in of().all() {
        let (stage, cast, _) = known_as_empty().await;
        // What it has lost may be won again, also by somebody of another stripe.
        let other = if stripe.index() == 1 { 2 } else { 1 };
        let other = people_of(&cast, other, ASKED + 50).split_off(ASKED);
        let core = &stage.store.core;
        let mut from_memory = Vec::new();
        for name in other {
            if !asks(&stage, &cast, &name).await.1 {
                from_memory.push(name);
            }
        }
        let partition = core.place(cast.id, stripe, of()).partition;
        assert!(core.learn(partition, Epoch(core.epoch(partition).0 + 1)));
        for name in from_memory.iter().take(3) {
            let before = answered(&stage.server, "fcall");
            let at_home = cast.grab_in(&*stage.store, name);
            assert_eq!(one(&*stage.store, at_home).await, GrabReply::Dry);
            assert!(answered(&stage.server, "fcall") > before);
        }
        assert!(from_memory.len() > 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_that_stands_at_home_and_in_the_first_stripe_is_read_as_one() {
    let (mut stage, cast) = (stage().await, cast(16));
    cast.publish(&*stage.store).await;
    let mut told = played(&*stage.store, &cast).await;
    gather(&*stage.store, &cast, None).await.unwrap();
    let lost = of().all().nth(2).unwrap();
    // The first stripe gives it, until it gives one that was dealt to its winner's home.
    let mut at_home = people_of(&cast, lost.index(), ASKED).into_iter().skip(1);
    loop {
        let name = at_home.next().expect("there are enough");
        told.hears(&name, grab(&*stage.store, &cast, &name, true).await);
        let own = dealt(lost, of(), cast.terms.share_count);
        if own.contains(&told.0[&name].0) {
            break;
        }
    }
    let claims = grants(&*stage.store, &cast).await;
    lose(&stage, &cast, lost);
    stage.register(Epoch(3)).await;
    let store = &*stage.store;
    gather(store, &cast, Some(&claims)).await.unwrap();
    takes_the_rest(store, &cast, &mut told).await;
    until_known(&stage, &cast).await;
}
