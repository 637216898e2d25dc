//! Each key of an envelope lost, of another type, or half there, and then repaired from the books:
//! nobody and no share is granted twice, and what is left can be grabbed.

use super::damage::damages;
use super::mended::{KINDS, Kind, Mended, stage};
use super::{OnRedis, own_keys, store as another};
use crate::domain::audience::Audience;
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::Outcome;
use crate::domain::id::Epoch;
use crate::domain::stripes::Stripe;
use crate::hot::conformance::stage::{Cast, outcome, person, won};
use crate::hot::{CloseReply, HotStore, Repair};

fn hurt(stage: &OnRedis, key: &str, damage: &[Vec<&[u8]>]) {
    for command in damage {
        let mut words = vec![command[0], key.as_bytes()];
        words.extend(&command[1..]);
        let _nothing_to_cut = stage.server.command(&words);
    }
}

fn keys_of(stage: &OnRedis, mended: &Mended) -> [String; 5] {
    let own = own_keys(&stage.store, mended.cast.id);
    [own.grabs, own.shares, own.terms, own.list, own.phrase]
}

/// What the books know: where the grabs are hurt, everything, since nothing is repaired while
/// something of it is owed; else less than Redis does.
fn claims(key: &str, mended: &Mended) -> Vec<crate::domain::grab::HeldShare> {
    let known = if key.contains(":g:") { 3 } else { 1 };
    mended.held[..known].to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_lost_in_an_epoch_a_repair_in_it_brings_back() {
    let stage = stage().await;
    let (mut cases, mut whole) = (0, 0);
    for (kind, place) in KINDS
        .iter()
        .flat_map(|kind| (0..5).map(move |p| (*kind, p)))
    {
        for number in 0.. {
            let mended = Mended::play(&*stage.store, kind).await;
            let key = keys_of(&stage, &mended)[place].clone();
            let all = damages(&key);
            let Some(damage) = all.get(number) else { break };
            hurt(&stage, &key, damage);
            // Another process, which has not seen it before.
            let other = another(&stage.server, &stage.clock);
            stage.introduce(&other).await;
            let id = vec![mended.cast.id];
            if other.view(id).await.unwrap().pop().flatten().is_some() {
                // It stands as far as anybody can see; the next epoch looks at every grab.
                whole += 1;
                continue;
            }
            mended.mend(&*other, &claims(&key, &mended)).await;
            mended
                .holds(&*other, &format!("{kind:?} {key} {damage:?}"))
                .await;
            cases += 1;
        }
    }
    println!("{cases} repaired, {whole} stood");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_lost_before_an_epoch_a_repair_brings_back() {
    let mut stage = stage().await;
    let mut hurt_ones = Vec::new();
    for (kind, place) in KINDS
        .iter()
        .flat_map(|kind| (0..5).map(move |p| (*kind, p)))
    {
        for number in 0.. {
            let mended = Mended::play(&*stage.store, kind).await;
            let key = keys_of(&stage, &mended)[place].clone();
            let all = damages(&key);
            let Some(damage) = all.get(number) else { break };
            hurt(&stage, &key, damage);
            hurt_ones.push((key, format!("{damage:?}"), mended));
        }
    }
    stage.go_on().await;
    for (key, damage, mended) in &hurt_ones {
        let known = claims(key, mended);
        mended.mend(&*stage.store, &known).await;
        let what = format!("{:?} {key} {damage}", mended.kind);
        mended.holds(&*stage.store, &what).await;
    }
    println!("{} repaired", hurt_ones.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_stays_over_through_a_repair() {
    let mut stage = stage().await;
    let mut ended = Vec::new();
    for (kind, place) in KINDS
        .iter()
        .flat_map(|kind| (0..5).map(move |p| (*kind, p)))
    {
        let mended = Mended::play(&*stage.store, kind).await;
        close(&*stage.store, &mended).await;
        let key = keys_of(&stage, &mended)[place].clone();
        // Of the grabs one is lost: with all of them the end is forgotten, and the books know it.
        let damage: Vec<&[u8]> = match place {
            0 => vec![b"HDEL", b"bob"],
            _ => vec![b"UNLINK"],
        };
        hurt(&stage, &key, &[damage]);
        ended.push((key, mended));
    }
    for epochs in 0..2 {
        for (key, mended) in &ended {
            let known = claims(key, mended);
            let state = mended.mend(&*stage.store, &known).await;
            assert_eq!(state, HotState::Over(CloseReason::Recalled), "{key}");
            mended
                .holds(&*stage.store, &format!("{key} {epochs}"))
                .await;
        }
        stage.go_on().await;
    }
}

async fn close(store: &dyn HotStore, mended: &Mended) -> CloseReply {
    let (id, terms) = (mended.cast.id, mended.cast.terms.clone());
    let reason = CloseReason::Recalled;
    let closed = store.close(&store.epochs(), id, terms, reason).await;
    closed.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_damaged_can_be_closed_once_nothing_is_owed() {
    let stage = stage().await;
    for (kind, place) in KINDS
        .iter()
        .flat_map(|kind| (0..5).map(move |p| (*kind, p)))
    {
        for number in 0.. {
            let mended = Mended::play(&*stage.store, kind).await;
            let key = keys_of(&stage, &mended)[place].clone();
            let all = damages(&key);
            let Some(damage) = all.get(number) else { break };
            hurt(&stage, &key, damage);
            let first = close(&*stage.store, &mended).await;
            let CloseReply::Over { reason, .. } = first else {
                panic!("{key} {damage:?}: {first:?}");
            };
            assert_eq!(reason, CloseReason::Recalled);
            assert_eq!(
                close(&*stage.store, &mended).await,
                first,
                "{key} {damage:?}"
            );
            let late = mended.grab(&*stage.store, &["late"]).await;
            let what = format!("{key} {damage:?}: {late:?}");
            assert!(!format!("{late:?}").contains("Won"), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_envelope_that_owes_something_is_not_closed() {
    let stage = stage().await;
    let mended = Mended::play(&*stage.store, Kind::Lucky).await;
    mended.grab(&*stage.store, &["owed"]).await;
    let key = keys_of(&stage, &mended)[0].clone();
    hurt(&stage, &key, &[vec![b"HDEL", b"zoe"]]);
    let (id, terms) = (mended.cast.id, mended.cast.terms.clone());
    let under = stage.store.epochs();
    let closed = stage.store.close(&under, id, terms, CloseReason::Recalled);
    assert!(closed.await.is_err());
    mended.cast.settle_all(&*stage.store).await;
    close(&*stage.store, &mended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_was_deleted_is_made_up_for_when_its_envelopes_end() {
    let stage = stage().await;
    let store = &*stage.store;
    for kind in KINDS {
        let mended = Mended::play(store, kind).await;
        let id = mended.cast.id;
        let index = store.core.keys.index(id.partition(store.partitions()));
        // Before the end, and behind it: an end is asked for until the books are closed.
        for _ in 0..2 {
            stage.server.command(&[b"DEL", index.as_bytes()]);
            assert!(!store.envelopes(None, 100).await.unwrap().contains(&id));
            close(store, &mended).await;
            assert!(store.envelopes(None, 100).await.unwrap().contains(&id));
        }
        store.remove(&store.epochs(), vec![id]).await.unwrap();
        assert!(!store.envelopes(None, 100).await.unwrap().contains(&id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_keeps_no_grant_that_the_terms_refuse() {
    let mut stage = stage().await;
    let cast = Cast::lucky(&[5, 7, 9]);
    let cast = cast.with(|draft| draft.audience = Audience::Named([person("ann")].into()));
    cast.publish(&*stage.store).await;
    // The store gives to whoever asks it; the audience is the server's to ask, or was written past it.
    for name in ["ann", "eve"] {
        won(cast.grab(&*stage.store, name).await);
    }
    stage.register(Epoch(3)).await;
    stage.repair_all().await;
    let grants = stage.store.grants(cast.id, 0, 10).await.unwrap().unwrap();
    let names: Vec<_> = grants.iter().map(|held| held.grabber.as_str()).collect();
    assert_eq!(names, ["ann"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_whole_and_to_be_closed_ends_where_it_stands_without_memory() {
    let mut stage = stage().await;
    let cast = Cast::lucky(&[5, 7, 9]);
    cast.publish(&*stage.store).await;
    won(cast.grab(&*stage.store, "ann").await);
    stage.register(Epoch(3)).await;
    let memory_max = |bytes: &[u8]| {
        let words: [&[u8]; 4] = [b"CONFIG", b"SET", b"maxmemory", bytes];
        stage.server.command(&words);
    };
    memory_max(b"1");
    let repair = Repair {
        envelope: cast.id,
        terms: std::sync::Arc::clone(&cast.terms),
        amounts_minor: cast.amounts.clone().into(),
        claims: Vec::new(),
        over: Some(CloseReason::Recalled),
        stripe: Stripe::FIRST,
        gathered: None,
    };
    let over = HotState::Over(CloseReason::Recalled);
    let repaired = stage.store.repair(&stage.store.epochs(), repair).await;
    assert_eq!(repaired.unwrap(), over);
    memory_max(b"0");
    let recalled = Outcome::Recalled;
    assert_eq!(outcome(cast.grab(&*stage.store, "bob").await), recalled);
    let grants = stage.store.grants(cast.id, 0, 10).await.unwrap().unwrap();
    assert_eq!(grants.len(), 1);
}
