//! Acknowledged means paid on Redis: kill -9 of either process and of both, a power cut; and what the
//! level `memory` does not promise.

use std::collections::BTreeSet;

use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope_proto::v1::EnvelopeState;

use crate::crash::{
    GRABS_BEFORE_THE_END, Promises, a_life, broken, the_rest_is_grabbed_and_all_is_paid,
    with_an_envelope, world_with_an_envelope,
};
use crate::harness::power::{self, Loss};
use crate::harness::record::Record;
use crate::harness::{Hot, Start, World};

/// Rounds of each kind of kill.
const ROUNDS: usize = 4;

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
        let strike = |w: &mut World| {
            w.redis().kill();
            power::cut(&power::log(w.redis().folder()), loss);
        };
        promises.extend(a_life(&mut world, &id, life, strike).await);
        world.redis().restart();
        world.until_ready().await;
        let lost = broken(&mut world, &id, &promises).await;
        assert_eq!(lost, 0, "after cut {life}, {loss:?}");
        assert!(world.audit().await.clean);
    }
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
    let mut lost = 0;
    for life in 0..ROUNDS {
        promises.extend(a_life(&mut world, &id, life, |w| strike(w, Victim::Both)).await);
        world = revived(world, Victim::Both, start.clone()).await;
        lost = broken(&mut world, &id, &promises).await;
        assert!(world.audit().await.clean);
    }
    // What was lost is counted here; whoever lost a share may win another one. So this history is
    // none that an envelope can have.
    println!("{lost} of {} acknowledged grabs were lost", promises.len());
    world.win(&id, "latecomer").await;
    world.record = Record::default();
    world.audit_when_quiet().await;
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
