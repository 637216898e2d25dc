//! Walks over all grants of envelopes that can't be paged by number: each page has what was granted before
//! it was asked for, and the hash is read once.
//!
//! # Not here
//! Walks over envelopes that can be paged: the conformance suite.

use super::mended::{Kind, Mended, stage};
use super::{OnRedis, answered, own_keys};
use crate::domain::grab::HeldShare;
use crate::hot::redis::server_under_test::RedisServer;
use crate::hot::{GrantWalk, HotStore};

/// Grants of a page.
const PAGE: usize = 100;
/// Grabbers beside the winners, before the damage.
const GRABBERS: usize = 1_200;

/// A large envelope of which much was granted, and which was rebuilt since.
async fn rebuilt(stage: &OnRedis) -> Mended {
    let mended = granted(stage).await;
    let own = own_keys(&stage.store, mended.cast.id);
    stage.server.command(&[b"UNLINK", own.shares.as_bytes()]);
    let claims = paged(&*stage.store, &mended).await;
    assert_eq!(claims.len(), GRABBERS + 3);
    mended.mend(&*stage.store, &claims).await;
    mended
}

/// A large envelope of which much was granted and settled.
async fn granted(stage: &OnRedis) -> Mended {
    let mended = Mended::play(&*stage.store, Kind::Large).await;
    come(stage, &mended, "early", GRABBERS).await;
    mended.cast.settle_all(&*stage.store).await;
    mended
}

/// So many grab.
async fn come(stage: &OnRedis, mended: &Mended, who: &str, count: usize) {
    let names: Vec<String> = (0..count).map(|number| format!("{who}{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    mended.grab(&*stage.store, &names).await;
}

/// All grants, each page asked for by itself.
async fn paged(store: &dyn HotStore, mended: &Mended) -> Vec<HeldShare> {
    let mut all: Vec<HeldShare> = Vec::new();
    loop {
        let from = all.last().map_or(0, |held| held.grant.share + 1);
        let page = store.grants(mended.cast.id, from, 1_000).await.unwrap();
        match page.unwrap() {
            page if page.is_empty() => return all,
            page => all.extend(page),
        }
    }
}

/// The next page of a walk.
async fn next(
    store: &dyn HotStore,
    walk: &mut GrantWalk,
    mended: &Mended,
    from: u32,
) -> Vec<HeldShare> {
    let page = store.walk_grants(walk, mended.cast.id, from, PAGE).await;
    page.unwrap().unwrap()
}

/// The pages of a walk from there on.
async fn rest(
    store: &dyn HotStore,
    walk: &mut GrantWalk,
    mended: &Mended,
    mut from: u32,
) -> Vec<HeldShare> {
    let mut all = Vec::new();
    loop {
        let page = next(store, walk, mended, from).await;
        let Some(last) = page.last() else { return all };
        from = last.grant.share + 1;
        all.extend(page);
    }
}

/// Scans of hashes which this server has answered.
fn scans(server: &RedisServer) -> u64 {
    answered(server, "hscan")
}

/// Scans that reading everything once takes.
async fn scans_of_one_read(stage: &OnRedis, mended: &Mended) -> u64 {
    let before = scans(&stage.server);
    stage.store.grants(mended.cast.id, 0, 1).await.unwrap();
    let once = scans(&stage.server) - before;
    assert!(once > 0, "it was paged by number");
    once
}

/// From a share on, what is there now is what a walk told.
async fn tells_all(stage: &OnRedis, mended: &Mended, from: u32, told: &[HeldShare]) {
    let mut all = paged(&*stage.store, mended).await;
    all.retain(|held| held.grant.share >= from);
    assert_eq!(told, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_over_a_rebuilt_envelope_reads_it_once() {
    let stage = stage().await;
    let mended = rebuilt(&stage).await;
    let once = scans_of_one_read(&stage, &mended).await;
    let before = scans(&stage.server);
    let told = rest(&*stage.store, &mut GrantWalk::default(), &mended, 0).await;
    assert_eq!(scans(&stage.server) - before, once);
    tells_all(&stage, &mended, 0, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grabs_between_two_pages_are_in_the_next_one_and_cost_no_second_read() {
    let stage = stage().await;
    let mended = rebuilt(&stage).await;
    let mut walk = GrantWalk::default();
    let first = next(&*stage.store, &mut walk, &mended, 0).await;
    let from = first.last().unwrap().grant.share + 1;
    for came in 0..3 {
        come(&stage, &mended, &format!("late{came}x"), 50).await;
        let id = mended.cast.id;
        let under = stage.store.epochs();
        match came {
            0 => stage.store.freeze(&under, id).await.unwrap(),
            1 => {
                let upto = crate::hot::Mark::Books;
                stage.store.unfreeze(&under, id, upto).await.unwrap();
            }
            _ => {}
        }
        let before = scans(&stage.server);
        let told = rest(&*stage.store, &mut walk, &mended, from).await;
        assert_eq!(scans(&stage.server), before, "{came}");
        tells_all(&stage, &mended, from, &told).await;
    }
    let told = rest(&*stage.store, &mut walk, &mended, from).await;
    let late = told
        .iter()
        .filter(|held| held.grabber.as_str().starts_with("late"));
    assert!(late.count() > 0, "those who came are told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_whose_list_is_gone_reads_again_and_tells_no_less() {
    let stage = stage().await;
    let mended = rebuilt(&stage).await;
    let mut walk = GrantWalk::default();
    next(&*stage.store, &mut walk, &mended, 0).await;
    come(&stage, &mended, "late", 50).await;
    let own = own_keys(&stage.store, mended.cast.id);
    stage.server.command(&[b"UNLINK", own.list.as_bytes()]);
    let before = scans(&stage.server);
    let told = rest(&*stage.store, &mut walk, &mended, 0).await;
    assert!(scans(&stage.server) > before, "it was read again");
    assert_eq!(told.len(), GRABBERS + 3 + 50);
    tells_all(&stage, &mended, 0, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_envelope_without_its_list_is_read_once_while_nobody_grabs() {
    let stage = stage().await;
    let mended = granted(&stage).await;
    let own = own_keys(&stage.store, mended.cast.id);
    stage.server.command(&[b"UNLINK", own.list.as_bytes()]);
    let once = scans_of_one_read(&stage, &mended).await;
    let (before, mut walk) = (scans(&stage.server), GrantWalk::default());
    let told = rest(&*stage.store, &mut walk, &mended, 0).await;
    assert_eq!(scans(&stage.server) - before, once);
    tells_all(&stage, &mended, 0, &told).await;
    // Nobody lists who comes, so the next page reads all.
    come(&stage, &mended, "late", 50).await;
    let once = scans_of_one_read(&stage, &mended).await;
    let before = scans(&stage.server);
    let told = rest(&*stage.store, &mut walk, &mended, 0).await;
    assert_eq!(scans(&stage.server) - before, once);
    assert_eq!(told.len(), GRABBERS + 3 + 50);
    tells_all(&stage, &mended, 0, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_that_turns_to_another_envelope_tells_nothing_of_the_one_before() {
    let stage = stage().await;
    let (one, other) = (rebuilt(&stage).await, rebuilt(&stage).await);
    come(&stage, &other, "late", 7).await;
    let mut walk = GrantWalk::default();
    for mended in [&one, &other, &one] {
        let told = rest(&*stage.store, &mut walk, mended, 0).await;
        tells_all(&stage, mended, 0, &told).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_goes_on_into_the_next_epoch() {
    let mut stage = stage().await;
    let mended = rebuilt(&stage).await;
    let mut walk = GrantWalk::default();
    next(&*stage.store, &mut walk, &mended, 0).await;
    let claims = paged(&*stage.store, &mended).await;
    stage.go_on().await;
    mended.mend(&*stage.store, &claims).await;
    come(&stage, &mended, "late", 7).await;
    let told = rest(&*stage.store, &mut walk, &mended, 0).await;
    assert_eq!(told.len(), GRABBERS + 3 + 7);
    tells_all(&stage, &mended, 0, &told).await;
}
