//! A process that stands still between a grant and its acknowledgement, past the deadline of the call and the
//! close of the envelope.

use std::time::Duration;

use red_envelope_proto::v1::EnvelopeState;
use tokio::time::Instant;
use tonic::{Code, Request};

use crate::harness::faults::Faults;
use crate::harness::fleet::{Fleet, a_moment};
use crate::harness::world::grab_of;
use crate::harness::{cny, equal};

const FUNDS: i64 = 10_000;
const SHARE: i64 = 10;
const SHARES: u32 = 5;
/// What a grabber waits for an answer: longer than it takes to stop a process.
const GRAB_WAIT: Duration = Duration::from_secs(5);
/// Moments in which a call has certainly reached the socket of Redis.
const MOMENTS: usize = 5;
const A_DAY_LATER_MS: i64 = 25 * 3_600_000;
const CALLS: &str = "rpc_server_call_duration_seconds_count";
/// Grabs that a process has answered.
const ANSWERED: &str = "EnvelopeService/Grab\",rpc_response_status_code=\"OK\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_stopped_between_grant_and_answer_acknowledges_nothing_too_late() {
    let lasts = Faults::asked_for().pause;
    let mut fleet = Fleet::of(2).await;
    fleet.until_divided().await;
    fleet.processes[0].fund("alice", cny(FUNDS)).await;
    let sent = fleet.processes[0].send(equal("alice", cny(SHARE), SHARES));
    let id = sent.await.envelope_id;
    for place in [0, 1] {
        fleet.processes[place]
            .win(&id, &format!("first-{place}"))
            .await;
    }
    fleet.processes[0].audit_when_quiet().await;

    let server = &fleet.processes[0].server;
    let answered = server.counted_of(CALLS, ANSWERED).await;
    assert!(answered > 0.0, "nobody was answered");

    // Redis has the call in its socket when the process stops, and grants after that.
    fleet.redis.pause();
    let mut client = fleet.processes[0].envelopes.clone();
    let mut asked = Request::new(grab_of(&id, "bob"));
    asked.set_timeout(GRAB_WAIT);
    let asked_at = Instant::now();
    let call = tokio::spawn(async move { client.grab(asked).await });
    for _ in 0..MOMENTS {
        a_moment().await;
    }
    fleet.processes[0].server.pause();
    assert!(asked_at.elapsed() < GRAB_WAIT, "stopped too late");
    let stopped = Instant::now();
    fleet.redis.resume();
    fleet.processes[1].until_available("bob", SHARE).await;
    println!("granted and paid {:?} after the stop", stopped.elapsed());
    let answer = call.await.unwrap().unwrap_err();
    let unsure = [Code::DeadlineExceeded, Code::Cancelled];
    assert!(unsure.contains(&answer.code()), "{answer}");
    fleet.set_clock_ms(A_DAY_LATER_MS);
    fleet.processes[1]
        .until(&id, "alice", EnvelopeState::Closed)
        .await;
    println!("closed {:?} after the stop", stopped.elapsed());
    while stopped.elapsed() < lasts {
        a_moment().await;
    }
    fleet.processes[0].server.resume();
    println!("stopped for {:?}", stopped.elapsed());
    fleet.processes[0].until_ready().await;
    for process in &mut fleet.processes {
        for winner in ["first-0", "first-1", "bob"] {
            assert_eq!(process.available(winner).await, SHARE, "{winner}");
        }
        assert_eq!(process.available("alice").await, FUNDS - 3 * SHARE);
        process.audit_when_quiet().await;
    }
    let server = &fleet.processes[0].server;
    assert_eq!(server.counted_of(CALLS, ANSWERED).await, answered, "late");
}
