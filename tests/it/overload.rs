//! Overload (F20): people without end, and a hot store that takes its time for each call. What is turned away costs
//! the others nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::crowd::{Crowd, Load, Seen};
use crate::harness::fleet::{Fleet, Store};
use crate::harness::{Start, cny, lucky};

/// How long Redis takes to answer a call, as the server sees it: two calls of 512 grabs in this time are what it can do.
const SLOW: Duration = Duration::from_millis(900);
/// The calls on their way and as many again: what the server lets wait of any Redis.
const IN_FLIGHT: usize = 2_048;
/// What counts begins so much later than the tries.
const WARM_UP: Duration = Duration::from_secs(3);
const SPAN: Duration = Duration::from_secs(9);
/// How soon after the overload it must be as before: what counts begins then, and no later than in ten seconds.
const BACK_MAX: Duration = Duration::from_secs(5);
/// Shares of an envelope, each span on one of its own: for all that is served if every try of a span but the last is void.
const SHARES: u32 = 100_000;
/// How often a span is tried in which the crowd itself could not keep up.
const SPANS_MAX: usize = 5;

/// A span on a new envelope. No share is won twice, and no win is told that is none.
async fn pressed(fleet: &mut Fleet, load: Load, warm_up: Duration) -> Seen {
    fleet.wires[0].slow_replies(Duration::ZERO);
    let process = &mut fleet.processes[0];
    let sent = lucky("alice", cny(10 * i64::from(SHARES)), SHARES);
    let id = process.send(sent).await.envelope_id;
    let mut crowd = Crowd::new(process.envelopes.clone(), &id);
    let mut won = BTreeSet::new();
    for _ in 0..SPANS_MAX {
        fleet.wires[0].slow_replies(SLOW);
        let seen = crowd.press(load, warm_up, SPAN).await;
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
            fleet.wires[0].slow_replies(Duration::ZERO);
            let told = fleet.processes[0].look(&id, "alice").await.progress;
            let taken = told.unwrap().taken_count;
            assert_eq!(usize::try_from(taken).unwrap(), won.len());
            return seen;
        }
    }
    panic!("the crowd was late in every one of {SPANS_MAX} spans: {load:?}");
}

/// Neither an answer nor a connection that takes a second is given up.
fn slow_is_not_dead() -> Vec<String> {
    let flags = [
        "--redis-response-timeout-ms",
        "20000",
        "--redis-connect-timeout-ms",
        "20000",
    ];
    flags.map(str::to_owned).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_turned_away_costs_nothing_of_what_is_served() {
    let mut fleet = Fleet::on_wires_to(Store::Redis, 0).await;
    let start = Start {
        flags: slow_is_not_dead(),
        ..Start::default()
    };
    fleet.join(start).await;
    fleet.processes[0].fund("alice", cny(10_000_000)).await;

    let peak = pressed(&mut fleet, Load::InFlight(IN_FLIGHT), WARM_UP).await;
    let (peak_per_s, peak_p99) = (peak.served_per_s, peak.latency(990));
    for times in [2.0, 5.0, 10.0] {
        let load = Load::PerSecond(times * peak_per_s);
        let seen = pressed(&mut fleet, load, WARM_UP).await;
        assert!(seen.turned_away > 0, "{times} times");
        let goodput = seen.served_per_s / peak_per_s;
        assert!(goodput >= 0.85, "{times} times: {goodput}");
        let p99 = seen.latency(990);
        assert!(
            p99 <= 2 * peak_p99,
            "{times} times: {p99:?} after {peak_p99:?}"
        );
    }
    let half = Load::PerSecond(peak_per_s / 2.0);
    let after = pressed(&mut fleet, half, BACK_MAX).await;
    assert_eq!(after.turned_away, 0);
    let p99 = after.latency(990);
    assert!(
        Duration::ZERO < p99 && p99 <= peak_p99,
        "{p99:?} after {peak_p99:?}"
    );

    fleet.processes[0].audit_when_quiet().await;
}
