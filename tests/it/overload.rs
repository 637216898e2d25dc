//! Overload (F20): people without end, and a hot store that takes its time for each call. What is turned away costs
//! the others nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::crowd::{Crowd, Load, Seen};
use crate::harness::fleet::{Fleet, Store};
use crate::harness::{Start, cny, lucky};

/// How long Redis takes to answer a call, as the server sees it: two calls of 512 grabs in this time are what it can do.
const SLOW: Duration = Duration::from_millis(900);
/// The calls on their way and the next one: what the server lets wait of any store.
const IN_FLIGHT: usize = 1_536;
/// What counts begins so much later than the tries.
const WARM_UP: Duration = Duration::from_secs(3);
const SPAN: Duration = Duration::from_secs(9);
/// How soon after the overload it must be as before.
const BACK_MAX: Duration = Duration::from_secs(10);
/// How often a span is tried in which the crowd itself could not keep up.
const SPANS_MAX: usize = 5;

async fn pressed(crowd: &mut Crowd, load: Load, won: &mut BTreeSet<u32>) -> Seen {
    for _ in 0..SPANS_MAX {
        let seen = crowd.press(load, WARM_UP, SPAN).await;
        assert_eq!(seen.failed, Vec::<String>::new(), "{load:?}");
        for share in &seen.won {
            assert!(won.insert(*share), "share {share} was won twice");
        }
        eprintln!(
            "{load:?}: {} sent, {} late, {} held back, {} turned away, {:.0} served/s, p50 {:?}, p99 {:?}",
            seen.sent,
            seen.late,
            seen.held_back,
            seen.turned_away,
            seen.served_per_s,
            seen.latency(500),
            seen.latency(990),
        );
        if seen.is_valid() {
            return seen;
        }
    }
    panic!("the crowd was late in every one of {SPANS_MAX} spans: {load:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_turned_away_costs_nothing_of_what_is_served() {
    let mut fleet = Fleet::on_wires_to(Store::Redis, 0).await;
    fleet
        .join(Start {
            flags: vec!["--redis-response-timeout-ms".to_owned(), "20000".to_owned()],
            ..Start::default()
        })
        .await;
    fleet.processes[0].fund("alice", cny(10_000_000)).await;
    let sent = lucky("alice", cny(1_000_000), 100_000);
    let id = fleet.processes[0].send(sent).await.envelope_id;
    let mut crowd = Crowd::new(fleet.processes[0].envelopes.clone(), &id);
    fleet.wires[0].slow_replies(SLOW);

    let mut won = BTreeSet::new();
    let peak = pressed(&mut crowd, Load::InFlight(IN_FLIGHT), &mut won).await;
    for times in [2.0, 5.0, 10.0] {
        let load = Load::PerSecond(times * peak.served_per_s);
        let seen = pressed(&mut crowd, load, &mut won).await;
        assert!(seen.turned_away > 0, "{times} times");
        let goodput = seen.served_per_s / peak.served_per_s;
        assert!(goodput >= 0.85, "{times} times: {goodput}");
        let (p99, before) = (seen.latency(990), peak.latency(990));
        assert!(p99 <= 2 * before, "{times} times: {p99:?} after {before:?}");
    }
    crowd.go_home();
    let half = Load::PerSecond(peak.served_per_s / 2.0);
    let after = pressed(&mut crowd, half, &mut won).await;
    let longest = after.longest_from(BACK_MAX);
    assert!(
        longest > Duration::ZERO && longest <= peak.latency(1_000),
        "{longest:?}"
    );

    fleet.wires[0].slow_replies(Duration::ZERO);
    let all = fleet.processes[0].look(&id, "alice").await;
    assert_eq!(
        usize::try_from(all.progress.unwrap().taken_count).unwrap(),
        won.len()
    );
    fleet.processes[0].audit_when_quiet().await;
}
