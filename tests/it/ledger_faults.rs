//! What happens to PostgreSQL, and what grabs notice of it.

use std::collections::BTreeMap;
use std::time::Duration;

use red_envelope_proto::v1::GrabOutcome;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::harness::fleet::{Fleet, a_moment};
use crate::harness::world::{World, grab_of};
use crate::harness::{cny, equal};
use crate::redis_faults::MISSING_POSTED_WITHIN;

/// How long PostgreSQL hangs.
const OUTAGE: Duration = Duration::from_secs(60);
/// How long an acknowledged grab may wait before new envelopes are turned away, and how late that may be
/// noticed.
const CREATES_SHED_AFTER: Duration = Duration::from_secs(36);
/// What the sender of an envelope waits for an answer.
const CREATE_WAIT: Duration = Duration::from_secs(2);

/// What Redis may hold beyond what it holds before the outage. A grab takes 200 bytes until it is settled, and some 40
/// grabs a second are won for two minutes at the most: a megabyte.
const ROOM_BYTES: u64 = 2_000_000;

/// What Redis holds.
fn used_memory(fleet: &Fleet) -> u64 {
    let redis::Value::BulkString(text) = fleet.redis.command(&[b"INFO", b"memory"]) else {
        panic!("INFO answers a text");
    };
    let text = String::from_utf8(text).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    line.expect("Redis tells what it holds")
        .trim()
        .parse()
        .unwrap()
}

/// The memory of Redis in an outage.
struct Memory {
    before: u64,
    max: u64,
}

impl Memory {
    /// Redis refuses to hold more than what the grabs of the outage need.
    fn with_little_room(fleet: &Fleet) -> Self {
        let before = used_memory(fleet);
        let max = before + ROOM_BYTES;
        let bytes = max.to_string();
        for (setting, value) in [("maxmemory-policy", "noeviction"), ("maxmemory", &bytes)] {
            let words: [&[u8]; 4] = [b"CONFIG", b"SET", setting.as_bytes(), value.as_bytes()];
            assert_eq!(fleet.redis.command(&words), redis::Value::Okay);
        }
        Self { before, max }
    }

    /// Below 90 % of what it may hold, after all that came in.
    fn holds_at_the_end_of_the_outage(&self, fleet: &Fleet) {
        let used = used_memory(fleet);
        assert!(
            used < self.max / 10 * 9,
            "{used} of {} bytes, {} before the outage",
            self.max,
            self.before
        );
        println!(
            "Redis: {} bytes before the outage, {used} at its end, {} allowed",
            self.before, self.max
        );
    }
}

/// Tries to send an envelope, and says what came of it.
fn try_to_send(process: &World) -> JoinHandle<Result<(), Status>> {
    let mut client = process.envelopes.clone();
    let mut request = Request::new(equal("alice", cny(10), 1));
    request.set_timeout(CREATE_WAIT);
    tokio::spawn(async move { client.create_envelope(request).await.map(drop) })
}

/// Whether nobody knows what came of it: the answer came too late for its sender.
fn is_unsure(sent: &Result<(), Status>) -> bool {
    let unsure = [Code::DeadlineExceeded, Code::Cancelled];
    sent.as_ref()
        .is_err_and(|status| unsure.contains(&status.code()))
}

fn is_shed(sent: &Result<(), Status>) -> bool {
    sent.as_ref().is_err_and(|status| {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str());
        status.code() == Code::Unavailable && reason == Some("SETTLEMENT_BEHIND")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_that_hangs_for_a_minute_turns_creates_away_and_no_grab() {
    let mut fleet = Fleet::of(2).await;
    fleet.processes[0].fund("alice", cny(1_000_000)).await;
    let id = fleet.processes[0]
        .send(equal("alice", cny(10), 5_000))
        .await
        .envelope_id;
    let mut paid = BTreeMap::<String, i64>::new();
    // Each process has met the envelope.
    for place in [0, 1] {
        let grabber = format!("first-{place}");
        fleet.processes[place].win(&id, &grabber).await;
        paid.insert(grabber, 10);
    }
    fleet.processes[0].audit_when_quiet().await;
    let memory = Memory::with_little_room(&fleet);

    fleet.postgres.pause();
    let began = Instant::now();
    let mut creates = Vec::new();
    let mut number = 0;
    while began.elapsed() < OUTAGE {
        for _ in 0..10 {
            let process = &mut fleet.processes[number % 2];
            let grabber = format!("grabber-{number}");
            let answer = process.try_grab(grab_of(&id, &grabber)).await.unwrap();
            assert_eq!(answer.outcome(), GrabOutcome::Won, "{grabber}");
            paid.insert(grabber, 10);
            number += 1;
        }
        creates.push((began.elapsed(), try_to_send(&fleet.processes[number % 2])));
        a_moment().await;
    }
    memory.holds_at_the_end_of_the_outage(&fleet);
    fleet.postgres.resume();
    let outage = began.elapsed();
    let (mut early, mut late, mut unsure) = (0, 0, 0);
    for (at, create) in creates {
        let sent = create.await.unwrap();
        if at > CREATES_SHED_AFTER && at < OUTAGE - CREATE_WAIT {
            // A busy machine may have told some of them too late.
            assert!(is_shed(&sent) || is_unsure(&sent), "after {at:?}: {sent:?}");
            late += u32::from(is_shed(&sent));
            unsure += u32::from(is_unsure(&sent));
        } else if is_shed(&sent) {
            assert!(at > Duration::from_secs(25), "shed after {at:?} already");
        } else {
            early += 1;
        }
    }
    assert!(early > 0 && late > unsure, "{early}, {late} and {unsure}");

    // Drained within twice the outage, and nobody is missing.
    let last = format!("grabber-{}", number - 1);
    fleet.processes[0].until_available(&last, 10).await;
    fleet.processes[0].audit_when_quiet().await;
    let drained = began.elapsed() - outage;
    assert!(drained < 2 * outage, "{drained:?} after {outage:?}");
    for (at, (grabber, amount)) in paid.iter().enumerate() {
        if at % 20 == 0 {
            let has = fleet.processes[1].available(grabber).await;
            assert_eq!(has, *amount, "{grabber}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outboxes_that_are_deleted_while_the_books_are_away_are_made_up_for() {
    let mut fleet = Fleet::of(2).await;
    fleet.processes[0].fund("alice", cny(100_000)).await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        let sent = fleet.processes[0].send(equal("alice", cny(10), 20)).await;
        ids.push(sent.envelope_id);
    }
    for id in &ids {
        for place in [0, 1] {
            let grabber = format!("first-{place}");
            fleet.processes[place].win(id, &grabber).await;
        }
    }
    fleet.processes[0].audit_when_quiet().await;
    fleet.postgres.pause();
    for id in &ids {
        for number in 0..10 {
            let grabber = format!("grabber-{number}");
            fleet.processes[number % 2].win(id, &grabber).await;
        }
    }
    let redis::Value::Array(outboxes) = fleet.redis.command(&[b"KEYS", b"re1:*:outbox"]) else {
        panic!("KEYS answers a list");
    };
    assert!(!outboxes.is_empty(), "nothing was owed");
    for outbox in outboxes {
        let redis::Value::BulkString(key) = outbox else {
            panic!("a key is text");
        };
        fleet.redis.command(&[b"DEL", &key]);
    }
    fleet.postgres.resume();
    let latest = Instant::now() + MISSING_POSTED_WITHIN;
    let owed = (0..10).map(|number| (format!("grabber-{number}"), 80));
    let [one, other] = &mut fleet.processes[..] else {
        panic!("a fleet of two");
    };
    one.until_all_are_paid_by(latest, &owed.collect()).await;
    other.audit_when_quiet().await;
}
