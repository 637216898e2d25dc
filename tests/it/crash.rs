//! Acknowledged means paid: after kill -9, after a power cut, after a broken disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use red_envelope_history::Rule;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::{EnvelopeState, GrabOutcome};
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;

use crate::harness::fleet::a_moment;
use crate::harness::power::Loss;
use crate::harness::world::{channel, grab_of};
use crate::harness::{Hot, Start, World, cny, lucky, on_both_stores};

on_both_stores! {
    twenty_kills_in_a_burst_lose_no_acknowledged_grab,
}

/// How often the server dies in a burst.
const KILLS: usize = 20;
/// Shares of the envelope: more than all bursts together take.
pub const SHARES: u32 = 20_000;
/// Grabbers that call at the same time.
const CALLERS: usize = 32;
/// Acknowledged grabs after which a burst is cut.
pub const GRABS_BEFORE_THE_END: usize = 150;
/// Acknowledged grabs of one life after which its callers rest: a strike that comes late must find shares that are
/// left, also for the lives that follow.
const GRABS_AT_FULL_SPEED: usize = 4 * GRABS_BEFORE_THE_END;
/// The longest that it takes to come to so many.
const BURST_MAX: Duration = Duration::from_secs(120);

/// Share number and amount, by grabber: what the callers were promised.
pub type Promises = BTreeMap<String, (u32, i64)>;

/// Callers grab under new names until there was enough and the connection breaks. Answers what was acknowledged.
async fn burst(world: &World, id: &str, life: usize, end: Arc<Notify>) -> JoinSet<Promises> {
    let promised = Arc::new(Mutex::new(0_usize));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut client = EnvelopeServiceClient::new(channel(world.server.grpc()).await);
        let (id, end, promised) = (id.to_owned(), Arc::clone(&end), Arc::clone(&promised));
        let record = world.record.clone();
        callers.spawn(async move {
            let mut mine = Promises::new();
            for n in 0.. {
                let grabber = format!("life-{life}-caller-{caller}-{n}");
                let Ok(reply) = record.grab(&mut client, grab_of(&id, &grabber)).await else {
                    // Before the end a busy machine may have given no answer.
                    if *promised.lock().await < GRABS_BEFORE_THE_END {
                        a_moment().await;
                        continue;
                    }
                    break;
                };
                assert_eq!(reply.outcome(), GrabOutcome::Won);
                let share = reply.share.unwrap();
                mine.insert(grabber, (share.number, share.amount.unwrap().minor_units));
                let promised = {
                    let mut promised = promised.lock().await;
                    *promised += 1;
                    *promised
                };
                if promised == GRABS_BEFORE_THE_END {
                    end.notify_one();
                }
                if promised >= GRABS_AT_FULL_SPEED {
                    a_moment().await;
                }
            }
            mine
        });
    }
    callers
}

/// Bursts until the end is notified, lets `end_life` strike, and collects the promises.
pub async fn a_life(
    world: &mut World,
    id: &str,
    life: usize,
    strike: impl FnOnce(&mut World),
) -> Promises {
    let end = Arc::new(Notify::new());
    let callers = burst(world, id, life, Arc::clone(&end)).await;
    let enough = tokio::time::timeout(BURST_MAX, end.notified()).await;
    enough.expect("the burst comes to its end");
    strike(world);
    callers.join_all().await.into_iter().flatten().collect()
}

/// How many promises the server no longer keeps.
pub async fn broken(world: &mut World, id: &str, promises: &Promises) -> usize {
    let held: BTreeMap<String, (u32, i64)> = world
        .shares(id, "alice")
        .await
        .into_iter()
        .map(|s| (s.grabber, (s.number, s.amount.unwrap().minor_units)))
        .collect();
    promises
        .iter()
        .filter(|(who, what)| held.get(*who) != Some(what))
        .count()
}

pub async fn world_with_an_envelope(start: Start) -> (World, String) {
    let world = World::start(start).await;
    with_an_envelope(world).await
}

/// The envelope in which the bursts take place.
pub async fn with_an_envelope(mut world: World) -> (World, String) {
    world.fund("alice", cny(10_000_000)).await;
    let id = world
        .send(lucky("alice", cny(10_000_000), SHARES))
        .await
        .envelope_id;
    (world, id)
}

pub async fn the_rest_is_grabbed_and_all_is_paid(mut world: World, id: &str, promises: &Promises) {
    assert_eq!(
        world.grab(id, "latecomer").await.outcome(),
        GrabOutcome::Won
    );
    world.audit_when_quiet().await;
    world.server.set_clock_ms(25 * 3_600_000);
    let closed = world.until(id, "alice", EnvelopeState::Closed).await;
    for (grabber, (_, amount)) in promises.iter().step_by(promises.len() / 50 + 1) {
        assert_eq!(world.available(grabber).await, *amount);
    }
    let progress = closed.progress.unwrap();
    let parts = [progress.settled.unwrap(), progress.refunded.unwrap()];
    assert_eq!(parts.iter().map(|m| m.minor_units).sum::<i64>(), 10_000_000);
    world.audit_when_quiet().await;
}

async fn twenty_kills_in_a_burst_lose_no_acknowledged_grab(hot: Hot) {
    let (mut world, id) = world_with_an_envelope(Start::on(hot)).await;
    let mut promises = Promises::new();
    for life in 0..KILLS {
        promises.extend(a_life(&mut world, &id, life, |w| w.server.kill()).await);
        world = world.restarted(Start::on(hot)).await;
        assert_eq!(
            broken(&mut world, &id, &promises).await,
            0,
            "after kill {life}"
        );
        assert!(world.audit().await.clean);
    }
    assert!(promises.len() >= KILLS * GRABS_BEFORE_THE_END);
    the_rest_is_grabbed_and_all_is_paid(world, &id, &promises).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_no_acknowledged_grab() {
    let disk = Start {
        power_cut: true,
        ..Start::default()
    };
    let (mut world, id) = world_with_an_envelope(disk.clone()).await;
    let mut promises = Promises::new();
    for life in 0..6 {
        let loss = match life {
            0 | 1 => Loss::Everything,
            _ => Loss::SomeSectors(life as u64),
        };
        let strike = |w: &mut World| {
            w.server.lose_power(loss);
        };
        promises.extend(a_life(&mut world, &id, life, strike).await);
        world = world.restarted(disk.clone()).await;
        assert_eq!(
            broken(&mut world, &id, &promises).await,
            0,
            "after cut {life}, {loss:?}"
        );
        assert!(world.audit().await.clean);
    }
    the_rest_is_grabbed_and_all_is_paid(world, &id, &promises).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_power_cut_would_show_a_missing_sync() {
    // Everything of the set-up is synced by a clean stop on an honest disk; then the disk lies.
    let honest = Start {
        power_cut: true,
        ..Start::default()
    };
    let (mut world, id) = world_with_an_envelope(honest.clone()).await;
    assert!(world.server.stop().await.success());
    let lying = Start {
        no_sync: true,
        ..honest.clone()
    };
    let mut world = world.restarted(lying).await;
    let mut unsynced = 0;
    let strike = |w: &mut World| unsynced = w.server.lose_power(Loss::Everything);
    let promises = a_life(&mut world, &id, 0, strike).await;
    assert!(unsynced > 0);
    let mut world = world.restarted(honest).await;
    assert_eq!(broken(&mut world, &id, &promises).await, promises.len());
    // So would the history, as soon as somebody is given what was lost.
    world.win(&id, "latecomer").await;
    assert!(world.record.broken().contains(&Rule::TwoHolders));
}

/// The disk breaks under a burst: the server must stop by itself, and keep what it promised.
async fn a_broken_disk_stops_the_server(fault: &str) {
    let disk = Start {
        power_cut: true,
        ..Start::default()
    };
    let (mut world, id) = world_with_an_envelope(disk.clone()).await;
    let promises = a_life(&mut world, &id, 0, |w| w.server.break_disk(fault)).await;
    let status = world.server.ended().await;
    assert_eq!(status.code(), Some(70), "{status}\n{}", world.server.log());
    world.server.mend_disk();
    world.server.lose_power(Loss::SomeSectors(7));
    let mut world = world.restarted(disk).await;
    assert_eq!(broken(&mut world, &id, &promises).await, 0);
    the_rest_is_grabbed_and_all_is_paid(world, &id, &promises).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_error_stops_the_server_and_loses_nothing() {
    a_broken_disk_stops_the_server("write EIO").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_server_and_loses_nothing() {
    a_broken_disk_stops_the_server("write ENOSPC").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_write_stops_the_server_and_loses_nothing() {
    a_broken_disk_stops_the_server("write TORN").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_stops_the_server_and_loses_nothing() {
    a_broken_disk_stops_the_server("sync EIO").await;
}
