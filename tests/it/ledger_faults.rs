//! What happens to PostgreSQL, and what grabs notice of it.

use std::collections::BTreeMap;
use std::time::Duration;

use red_envelope_proto::v1::GrabOutcome;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::harness::faults::Faults;
use crate::harness::fleet::{Fleet, a_moment};
use crate::harness::world::{World, grab_of};
use crate::harness::{cny, equal};
use crate::redis_faults::MISSING_POSTED_WITHIN;

/// How long an acknowledged grab may wait before new envelopes are turned away, and how late that may be
/// noticed.
const CREATES_SHED_AFTER: Duration = Duration::from_secs(36);
/// How long one may wait before grabs are turned away too, less what a machine may take to say so.
const GRABS_SERVED_FOR: Duration = Duration::from_secs(115);
/// An outage that is longer has grabs turned away.
const GRABS_SHED_FOR_CERTAIN: Duration = Duration::from_secs(130);
/// Shares of the envelope: more than people grab before they are turned away.
const SHARES: u32 = 10_000;
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

fn is_shed<Done>(sent: &Result<Done, Status>) -> bool {
    sent.as_ref().is_err_and(|status| {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str());
        let told_to_repeat = details.retry_info().is_some();
        status.code() == Code::Unavailable && reason == Some("SETTLEMENT_BEHIND") && told_to_repeat
    })
}

/// What was tried while PostgreSQL hung.
#[derive(Default)]
struct Outage {
    /// Who won, and what.
    paid: BTreeMap<String, i64>,
    last_winner: String,
    /// Who was turned away, and when the first one was.
    refused: Vec<String>,
    refused_after: Option<Duration>,
    creates: Vec<(Duration, JoinHandle<Result<(), Status>>)>,
    lasted: Duration,
}

impl Outage {
    /// People grab and send for so long.
    async fn last(&mut self, fleet: &mut Fleet, id: &str, lasts: Duration) {
        let began = Instant::now();
        let mut number = 0;
        while began.elapsed() < lasts {
            for _ in 0..10 {
                let process = &mut fleet.processes[number % 2];
                let grabber = format!("grabber-{number}");
                let at = began.elapsed();
                let answer = process.try_grab(grab_of(id, &grabber)).await;
                if at > GRABS_SERVED_FOR && is_shed(&answer) {
                    self.refused_after.get_or_insert(at);
                    self.refused.push(grabber);
                } else {
                    let outcome = answer.unwrap().outcome();
                    assert_eq!(outcome, GrabOutcome::Won, "{grabber} after {at:?}");
                    self.last_winner.clone_from(&grabber);
                    self.paid.insert(grabber, 10);
                }
                number += 1;
            }
            let sent = try_to_send(&fleet.processes[number % 2]);
            self.creates.push((began.elapsed(), sent));
            a_moment().await;
        }
        self.lasted = began.elapsed();
    }

    /// Envelopes were turned away from when they should be, and before any grab was.
    async fn creates_were_turned_away(&mut self, lasts: Duration) {
        let (mut early, mut late, mut unsure) = (0, 0, 0);
        let mut first = None;
        for (at, create) in self.creates.drain(..) {
            let sent = create.await.unwrap();
            if is_shed(&sent) {
                first.get_or_insert(at);
            }
            if at > CREATES_SHED_AFTER && at < lasts - CREATE_WAIT {
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
        let first = first.expect("envelopes were turned away");
        println!(
            "creates: shed from {first:?} on, {late} of them; {early} earlier, {unsure} unsure"
        );
        assert!(self.refused_after.is_none_or(|grabs| first < grabs));
    }

    /// Who won has the money; who was turned away has none; and nobody else has any.
    async fn everybody_has_what_he_won(&self, process: &mut World, id: &str) {
        for (grabber, amount) in &self.paid {
            assert_eq!(process.available(grabber).await, *amount, "{grabber}");
        }
        for grabber in self.refused.iter().step_by(20) {
            assert_eq!(process.available(grabber).await, 0, "{grabber}");
        }
        let progress = process.look(id, "alice").await.progress.unwrap();
        let settled = progress.settled.unwrap().minor_units;
        assert_eq!(settled, self.paid.values().sum::<i64>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_that_hangs_turns_creates_away_before_any_grab() {
    let lasts = Faults::asked_for().outage;
    let mut fleet = Fleet::of(2).await;
    fleet.processes[0].fund("alice", cny(1_000_000)).await;
    let id = fleet.processes[0]
        .send(equal("alice", cny(10), SHARES))
        .await
        .envelope_id;
    let mut outage = Outage::default();
    // Each process has met the envelope.
    for place in [0, 1] {
        let grabber = format!("first-{place}");
        fleet.processes[place].win(&id, &grabber).await;
        outage.paid.insert(grabber, 10);
    }
    fleet.processes[0].audit_when_quiet().await;
    let memory = Memory::with_little_room(&fleet);

    fleet.postgres.pause();
    outage.last(&mut fleet, &id, lasts).await;
    memory.holds_at_the_end_of_the_outage(&fleet);
    fleet.postgres.resume();
    let resumed = Instant::now();
    outage.creates_were_turned_away(lasts).await;
    let expects_refusals = lasts > GRABS_SHED_FOR_CERTAIN;
    assert_eq!(!outage.refused.is_empty(), expects_refusals);

    // Drained within twice the outage, and nobody is missing.
    let last = outage.last_winner.clone();
    fleet.processes[0].until_available(&last, 10).await;
    fleet.processes[0].audit_when_quiet().await;
    let drained = resumed.elapsed();
    let served = outage.refused_after.unwrap_or(outage.lasted);
    println!(
        "outage {:?}: {} grabs won ({:.0}/s for {served:?}), {} turned away after that; drained in {drained:?}",
        outage.lasted,
        outage.paid.len(),
        outage.paid.len() as f64 / served.as_secs_f64(),
        outage.refused.len(),
    );
    assert!(
        drained < 2 * outage.lasted,
        "{drained:?} after {:?}",
        outage.lasted
    );
    outage
        .everybody_has_what_he_won(&mut fleet.processes[1], &id)
        .await;
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
