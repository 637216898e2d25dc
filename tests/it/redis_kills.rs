//! Acknowledged means paid on Redis: kill -9 of either process and of both, a power cut; and what the
//! level `memory` does not promise.

use std::collections::BTreeSet;

use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope_proto::v1::{EnvelopeState, GrabOutcome};

use crate::crash::{
    GRABS_BEFORE_THE_END, Promises, a_life, broken, the_rest_is_grabbed_and_all_is_paid,
    with_an_envelope, world_with_an_envelope,
};
use crate::harness::power::{self, Loss};
use crate::harness::record::Record;
use crate::harness::{Hot, Start, World};

/// Rounds of each kind of kill.
const ROUNDS: usize = 4;
/// Power cuts of Redis and the books together.
const CUTS_OF_BOTH: usize = 6;
/// Of those who lost their shares, how many ask again.
const AGAIN: usize = 30;

/// What is killed in the middle of a burst.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Redis,
    Server,
    Both,
}

fn strike(world: &mut World, victim: Victim) {
    if !matches!(victim, Victim::Redis) {
        world.server.kill();
    }
    if !matches!(victim, Victim::Server) {
        world.redis().kill();
    }
}

/// Starts again what was killed.
async fn revived(mut world: World, victim: Victim, start: Start) -> World {
    if !matches!(victim, Victim::Server) {
        world.redis().restart();
    }
    if matches!(victim, Victim::Redis) {
        world.until_ready().await;
        return world;
    }
    let world = world.restarted(start).await;
    world.until_ready().await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_redis_of_the_server_and_of_both_lose_no_acknowledged_grab() {
    let (mut world, id) = world_with_an_envelope(Start::on(Hot::Redis)).await;
    let mut promises = Promises::new();
    let victims = [Victim::Redis, Victim::Server, Victim::Both];
    for (life, victim) in victims.into_iter().cycle().take(3 * ROUNDS).enumerate() {
        promises.extend(a_life(&mut world, &id, life, |w| strike(w, victim)).await);
        world = revived(world, victim, Start::on(Hot::Redis)).await;
        let lost = broken(&mut world, &id, &promises).await;
        assert_eq!(lost, 0, "after kill {life} of {victim:?}");
        assert!(world.audit().await.clean);
    }
    assert!(promises.len() >= 3 * ROUNDS * GRABS_BEFORE_THE_END);
    the_rest_is_grabbed_and_all_is_paid(world, &id, &promises).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_of_redis_loses_no_acknowledged_grab() {
    let redis = RedisServer::start_under(Flavour::Debian, &[], |folder| {
        power::variables(folder, &folder.join("data"))
    });
    let (mut world, id) = with_an_envelope(World::over(redis, Start::default()).await).await;
    let mut promises = Promises::new();
    for life in 0..ROUNDS {
        // A torn tail is for an operator (RUNBOOK): Redis does not start on it.
        let loss = Loss::Everything;
        let mut unsynced = 0;
        let strike = |w: &mut World| {
            // It dies in a sync: something was written that nobody was told of.
            power::hang(w.redis().folder());
            w.redis().kill();
            unsynced = power::cut(&power::log(w.redis().folder()), loss);
        };
        promises.extend(a_life(&mut world, &id, life, strike).await);
        assert!(unsynced > 0, "cut {life} took nothing away");
        world.redis().restart();
        world.until_ready().await;
        let lost = broken(&mut world, &id, &promises).await;
        assert_eq!(lost, 0, "after cut {life}, {loss:?}");
        assert!(world.audit().await.clean);
    }
    assert!(promises.len() >= ROUNDS * GRABS_BEFORE_THE_END);
    the_rest_is_grabbed_and_all_is_paid(world, &id, &promises).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_of_redis_and_of_the_books_at_once_loses_no_acknowledged_grab() {
    let redis = RedisServer::start_under(Flavour::Debian, &[], |folder| {
        power::variables(folder, &folder.join("data"))
    });
    let disk = Start {
        power_cut: true,
        ..Start::default()
    };
    let (mut world, id) = with_an_envelope(World::over(redis, disk.clone()).await).await;
    let mut promises = Promises::new();
    let mut unsynced = 0;
    for life in 0..CUTS_OF_BOTH {
        // The books may keep some sectors of what was under way; for Redis see above.
        let of_books = match life % 2 {
            0 => Loss::Everything,
            _ => Loss::SomeSectors(life as u64),
        };
        let strike = |w: &mut World| {
            // Both are dead before either disk loses anything.
            strike(w, Victim::Both);
            unsynced += power::cut(&power::log(w.redis().folder()), Loss::Everything);
            unsynced += w.server.lose_power(of_books);
        };
        promises.extend(a_life(&mut world, &id, life, strike).await);
        world = revived(world, Victim::Both, disk.clone()).await;
        let lost = broken(&mut world, &id, &promises).await;
        assert_eq!(lost, 0, "after cut {life}, {of_books:?}");
        assert!(world.audit().await.clean);
    }
    assert!(unsynced > 0, "the cuts took nothing away");
    assert!(promises.len() >= CUTS_OF_BOTH * GRABS_BEFORE_THE_END);
    the_rest_is_grabbed_and_all_is_paid(world, &id, &promises).await;
}

fn forgetful() -> (RedisServer, Start) {
    let redis = RedisServer::start(Flavour::Debian, &[("appendonly", "no")]);
    let start = Start {
        flags: ["--ack", "memory"].map(str::to_owned).to_vec(),
        ..Start::default()
    };
    (redis, start)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_memory_a_server_that_lives_on_tells_redis_again_what_it_acknowledged() {
    let (redis, start) = forgetful();
    let (mut world, id) = with_an_envelope(World::over(redis, start).await).await;
    let mut promises = Promises::new();
    for life in 0..ROUNDS {
        promises.extend(a_life(&mut world, &id, life, |w| strike(w, Victim::Redis)).await);
        world.redis().restart();
        world.until_ready().await;
        let lost = broken(&mut world, &id, &promises).await;
        assert_eq!(lost, 0, "after kill {life}");
    }
    the_rest_is_grabbed_and_all_is_paid(world, &id, &promises).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_ledger_a_redis_without_a_disk_loses_no_acknowledged_grab() {
    let (redis, mut start) = forgetful();
    start.flags = ["--ack", "ledger"].map(str::to_owned).to_vec();
    let (mut world, id) = with_an_envelope(World::over(redis, start.clone()).await).await;
    let mut promises = Promises::new();
    let victims = [Victim::Both, Victim::Redis, Victim::Server];
    for (life, victim) in victims.into_iter().cycle().take(2 * ROUNDS).enumerate() {
        promises.extend(a_life(&mut world, &id, life, |w| strike(w, victim)).await);
        world = revived(world, victim, start.clone()).await;
        let lost = broken(&mut world, &id, &promises).await;
        assert_eq!(lost, 0, "after kill {life} of {victim:?}");
        assert!(world.audit().await.clean);
    }
    the_rest_is_grabbed_and_all_is_paid(world, &id, &promises).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_memory_what_both_lost_goes_on_and_nobody_is_paid_twice() {
    let (redis, start) = forgetful();
    let (mut world, id) = with_an_envelope(World::over(redis, start.clone()).await).await;
    let mut promises = Promises::new();
    for life in 0..ROUNDS {
        promises.extend(a_life(&mut world, &id, life, |w| strike(w, Victim::Both)).await);
        world = revived(world, Victim::Both, start.clone()).await;
        assert!(world.audit().await.clean);
    }
    let lost_before = broken(&mut world, &id, &promises).await;
    // In the last life nothing comes into the books: all of it is lost, and nothing else.
    let books = world.server.hold_the_books();
    let last = a_life(&mut world, &id, ROUNDS, |w| strike(w, Victim::Both)).await;
    drop(books);
    world = revived(world, Victim::Both, start.clone()).await;
    assert!(last.len() >= GRABS_BEFORE_THE_END);
    assert_eq!(broken(&mut world, &id, &last).await, last.len());
    assert_eq!(broken(&mut world, &id, &promises).await, lost_before);
    // Whoever lost a share may win another one. So this history is none that an envelope can have.
    world.record = Record::default();
    let mut again = Promises::new();
    for grabber in last.keys().take(AGAIN) {
        let answer = world.grab(&id, grabber).await;
        assert_eq!(answer.outcome(), GrabOutcome::Won, "{grabber}");
        let share = answer.share.unwrap();
        let what = (share.number, share.amount.unwrap().minor_units);
        again.insert(grabber.clone(), what);
    }
    world.audit_when_quiet().await;
    for (grabber, (_, amount)) in &again {
        assert_eq!(world.available(grabber).await, *amount, "{grabber}");
    }
    let gone = last.keys().nth(AGAIN).unwrap();
    assert_eq!(world.available(gone).await, 0);
    world.server.set_clock_ms(25 * 3_600_000);
    let closed = world.until(&id, "alice", EnvelopeState::Closed).await;
    let shares = world.shares(&id, "alice").await;
    let numbers: BTreeSet<_> = shares.iter().map(|share| share.number).collect();
    let people: BTreeSet<_> = shares.iter().map(|share| &share.grabber).collect();
    assert_eq!((numbers.len(), people.len()), (shares.len(), shares.len()));
    let progress = closed.progress.unwrap();
    let parts = [progress.settled.unwrap(), progress.refunded.unwrap()];
    assert_eq!(parts.iter().map(|m| m.minor_units).sum::<i64>(), 10_000_000);
    world.audit_when_quiet().await;
}
