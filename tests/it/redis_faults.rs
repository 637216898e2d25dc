//! Bad days of a Redis that stays up: emptied, tampered with, set wrongly; settlement that dies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use red_envelope::hot::redis::server_under_test::RedisServer;
use red_envelope_proto::v1::{
    DiscrepancyKind, DismissDeadLetterRequest, EnvelopeState, GrabOutcome, RecallEnvelopeRequest,
};
use tokio::time::Instant;

use crate::fleet_faults::{SENT_MAX, partition_of};
use crate::harness::fleet::{a_moment, seen_by, until};
use crate::harness::server::Server;
use crate::harness::world::{grab_of, in_time};
use crate::harness::{Hot, Start, World, cny, equal, lucky};

/// Shares of the envelopes here, and what they are worth together: no share can be worth so much.
const SHARES: u32 = 60;
pub const ALL_OF_IT: u16 = 60_000;
/// What no outbox owes any more is in the books so long after they can be written, at the latest: the bound
/// of F18.
pub const MISSING_POSTED_WITHIN: Duration = Duration::from_secs(60);

/// A world on Redis with an envelope of which twenty have a share; share number and amount of each.
pub async fn with_twenty_winners() -> (World, String, BTreeMap<String, (u32, i64)>) {
    let mut world = World::on(Hot::Redis).await;
    world.fund("alice", cny(100_000)).await;
    let id = world
        .send(lucky("alice", cny(ALL_OF_IT.into()), SHARES))
        .await
        .envelope_id;
    let mut held = BTreeMap::new();
    for number in 0..20 {
        let grabber = format!("early-{number}");
        let answer = world.grab(&id, &grabber).await;
        assert_eq!(answer.outcome(), GrabOutcome::Won);
        let share = answer.share.unwrap();
        held.insert(grabber, (share.number, share.amount.unwrap().minor_units));
    }
    (world, id, held)
}

/// Everybody who had a share has the same, everybody else gets another one, and it all adds up.
pub async fn nothing_is_granted_twice(
    world: &mut World,
    id: &str,
    held: &BTreeMap<String, (u32, i64)>,
) {
    for (grabber, share) in held {
        let answer = world.grab_until_answered(id, grabber).await;
        assert_eq!(answer.outcome(), GrabOutcome::AlreadyGrabbed, "{grabber}");
        let again = answer.share.unwrap();
        assert_eq!((again.number, again.amount.unwrap().minor_units), *share);
    }
    let mut taken: BTreeSet<u32> = held.values().map(|(number, _)| *number).collect();
    let left = SHARES as usize - held.len();
    for number in 0..left {
        let share = world.win(id, &format!("late-{number}")).await;
        assert!(taken.insert(share.number), "{} twice", share.number);
    }
    let none = world.grab_until_answered(id, "nobody").await;
    assert_eq!(none.outcome(), GrabOutcome::Empty);
    let closed = world.until(id, "alice", EnvelopeState::Closed).await;
    assert_eq!(
        closed.progress.unwrap().settled.unwrap().minor_units,
        i64::from(ALL_OF_IT)
    );
    for (grabber, (_, amount)) in held {
        assert_eq!(world.available(grabber).await, *amount);
    }
    world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_redis_is_repaired_from_the_books() {
    let (mut world, id, held) = with_twenty_winners().await;
    world.audit_when_quiet().await;
    world.redis().command(&[b"FLUSHALL"]);
    nothing_is_granted_twice(&mut world, &id, &held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_before_settlement_loses_nothing_that_the_server_acknowledged() {
    let (mut world, id, _) = with_twenty_winners().await;
    world.audit_when_quiet().await;
    let books = world.server.hold_the_books();
    let mut held = BTreeMap::new();
    for number in 20..30 {
        let grabber = format!("early-{number}");
        let share = world.grab(&id, &grabber).await.share.unwrap();
        held.insert(grabber, (share.number, share.amount.unwrap().minor_units));
    }
    world.redis().command(&[b"FLUSHALL"]);
    drop(books);
    let latest = Instant::now() + MISSING_POSTED_WITHIN;
    for (grabber, share) in &held {
        let answer = world.grab_until_answered(&id, grabber).await;
        assert_eq!(answer.outcome(), GrabOutcome::AlreadyGrabbed, "{grabber}");
        let again = answer.share.unwrap();
        assert_eq!((again.number, again.amount.unwrap().minor_units), *share);
    }
    // No outbox owes them any more: the reconciler posts them.
    let owed = held.into_iter().map(|(who, (_, amount))| (who, amount));
    world.until_all_are_paid_by(latest, &owed.collect()).await;
    world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_that_nobody_notices_before_the_expiry_costs_no_winner_his_share() {
    let (mut world, id, _) = with_twenty_winners().await;
    world.audit_when_quiet().await;
    let books = world.server.hold_the_books();
    let mut held = BTreeMap::new();
    for number in 20..30 {
        let grabber = format!("early-{number}");
        let share = world.grab(&id, &grabber).await.share.unwrap();
        held.insert(grabber, share.amount.unwrap().minor_units);
    }
    world.redis().command(&[b"FLUSHALL"]);
    world.server.set_clock_ms(25 * 3_600_000);
    drop(books);
    world.until(&id, "alice", EnvelopeState::Closed).await;
    for (grabber, amount) in &held {
        assert_eq!(world.available(grabber).await, *amount, "{grabber}");
    }
    world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_redis_that_is_started_anew_is_repaired_from_the_books() {
    let (mut world, id, held) = with_twenty_winners().await;
    world.audit_when_quiet().await;
    world.redis().restart_empty();
    world.until_ready().await;
    nothing_is_granted_twice(&mut world, &id, &held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outboxes_that_are_deleted_or_trimmed_are_made_up_for_by_the_reconciler() {
    // A deleted stream begins its ids anew: those of later grabs go backwards.
    for lose in [&["DEL"][..], &["XTRIM", "MAXLEN", "2"]] {
        let (mut world, id, _) = with_twenty_winners().await;
        world.audit_when_quiet().await;
        let books = world.server.hold_the_books();
        let mut owed = ten_more(&mut world, &id, 20).await;
        for key in keys_like(&mut world, "re1:*:outbox") {
            let mut words = vec![lose[0].as_bytes(), &key];
            words.extend(lose[1..].iter().map(|word| word.as_bytes()));
            world.redis().command(&words);
        }
        owed.extend(ten_more(&mut world, &id, 30).await);
        drop(books);
        let latest = Instant::now() + MISSING_POSTED_WITHIN;
        world.until_all_are_paid_by(latest, &owed).await;
        world.audit_when_quiet().await;
    }
}

/// Ten grabs of people with these numbers; what each was told.
async fn ten_more(world: &mut World, id: &str, from: u32) -> BTreeMap<String, i64> {
    let mut told = BTreeMap::new();
    for number in from..from + 10 {
        let grabber = format!("early-{number}");
        let amount = world.win(id, &grabber).await.amount.unwrap();
        told.insert(grabber, amount.minor_units);
    }
    told
}

pub fn keys_like(world: &mut World, pattern: &str) -> Vec<Vec<u8>> {
    keys_on(world.redis(), pattern)
}

fn keys_on(redis: &RedisServer, pattern: &str) -> Vec<Vec<u8>> {
    let redis::Value::Array(keys) = redis.command(&[b"KEYS", pattern.as_bytes()]) else {
        panic!("KEYS answers a list");
    };
    let bytes = |key| match key {
        redis::Value::BulkString(key) => key,
        other => panic!("a key is text: {other:?}"),
    };
    keys.into_iter().map(bytes).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_lost_while_an_envelope_closes_costs_nobody_anything() {
    for point in ["close::after_hot", "close::before_finish"] {
        let dying = Start {
            abort_at: Some(point.to_owned()),
            ..Start::on(Hot::Redis)
        };
        let mut world = World::start(dying).await;
        world.fund("alice", cny(5_000)).await;
        let id = world.send(equal("alice", cny(100), 50)).await.envelope_id;
        for number in 0..20 {
            world.grab(&id, &format!("early-{number}")).await;
        }
        world.audit_when_quiet().await;
        // Settlement may meet the crash point before the answer is sent.
        let _answer = recall(&mut world, &id).await;
        assert!(world.server.crashed().await, "{point}");
        world.redis().command(&[b"FLUSHALL"]);
        let mut world = world.restarted(Start::on(Hot::Redis)).await;
        world.until_ready().await;
        // The books were closing it: nobody gets a share of what the store forgot.
        let late = world.grab_until_answered(&id, "late").await;
        assert_eq!(late.outcome(), GrabOutcome::Recalled, "{point}");
        let closed = world.until(&id, "alice", EnvelopeState::Closed).await;
        let settled = closed.progress.unwrap().settled.unwrap();
        assert_eq!(settled.minor_units, 2_000, "{point}");
        for number in 0..20 {
            let grabber = format!("early-{number}");
            assert_eq!(world.available(&grabber).await, 100, "{point}");
            let again = world.grab_until_answered(&id, &grabber).await;
            assert_eq!(again.outcome(), GrabOutcome::AlreadyGrabbed, "{point}");
        }
        assert_eq!(world.available("alice").await, 3_000, "{point}");
        world.audit_when_quiet().await;
    }
}

/// The sender ends it.
pub async fn recall(world: &mut World, id: &str) -> Result<(), tonic::Status> {
    let request = RecallEnvelopeRequest {
        envelope_id: id.to_owned(),
        sender: "alice".to_owned(),
        request_id: "recall-1".to_owned(),
        ..RecallEnvelopeRequest::default()
    };
    world.envelopes.recall_envelope(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_record_is_set_aside_and_the_others_are_paid() {
    let (mut world, id, held) = with_twenty_winners().await;
    let other = another_of_its_partition(&mut world, &id).await;
    world.audit_when_quiet().await;
    let outbox = the_outbox_of(world.redis(), &id);
    // Bytes that nobody wrote, and an entry of the right form that promises the wrong amount.
    let redis = world.redis();
    redis.command(&[b"XADD", &outbox, b"9-*", b"r", b"garbage"]);
    let entry = forged(&id, 59, ALL_OF_IT, "mallory");
    redis.command(&[b"XADD", &outbox, b"9-*", b"r", &entry]);
    // And one of the right amount, of a share that somebody else has.
    let (number, amount) = held["early-7"];
    let entry = forged(&id, number, amount.try_into().unwrap(), "mallory");
    redis.command(&[b"XADD", &outbox, b"9-*", b"r", &entry]);
    // And one that would pay somebody a second share, worth no more than his own.
    let richest = held.iter().max_by_key(|(_, (_, amount))| *amount).unwrap();
    let (number, amount) = *held.values().min_by_key(|(_, amount)| *amount).unwrap();
    let entry = forged(&id, number, amount.try_into().unwrap(), richest.0);
    redis.command(&[b"XADD", &outbox, b"9-*", b"r", &entry]);
    let letters = until_set_aside(&mut world, 2).await;
    assert_eq!(letters, ["amount_mismatch", "make_good_capped"]);
    until_counted(&world, "red_envelope_outbox_unreadable_total", 1.0).await;
    until_counted(&world, "red_envelope_dead_letters_total", 2.0).await;
    until_counted(&world, "red_envelope_make_good_capped_total", 1.0).await;
    until_counted(&world, "red_envelope_superseded_records_total", 1.0).await;
    // The forger moved the stream's ids ahead: nothing was granted while his entries were there. Of this envelope
    // and of another one of the partition is paid what is won behind them, while they wait for an operator.
    for (envelope, grabber) in [(&id, "bob"), (&other, "carol")] {
        let share = world.win(envelope, grabber).await;
        let amount = share.amount.unwrap().minor_units;
        world.until_available(grabber, amount).await;
    }
    recall(&mut world, &id).await.unwrap();
    for (grabber, (_, amount)) in &held {
        assert_eq!(world.available(grabber).await, *amount);
    }
    assert_eq!(world.available("mallory").await, 0);
    // The close waits for an operator: the sweeper has come by, and closed another one of the partition.
    until("it is about to close", async || closing(&world) == 1).await;
    recall(&mut world, &other).await.unwrap();
    world.until(&other, "alice", EnvelopeState::Closed).await;
    let state = world.look(&id, "alice").await.state();
    assert_eq!((state, closing(&world)), (EnvelopeState::Recalled, 1));
    let report = world.audit().await;
    let kinds: Vec<_> = report.discrepancies.iter().map(|d| d.kind()).collect();
    assert_eq!(kinds, [DiscrepancyKind::DeadLetter; 2]);
    for letter in world.dead_letters().await {
        let dismiss = DismissDeadLetterRequest {
            dead_letter_id: letter.dead_letter_id,
            operator: "olga".to_owned(),
            reason: "forged".to_owned(),
        };
        let dismissed = world.admin.dismiss_dead_letter(dismiss).await.unwrap();
        let letter = dismissed.into_inner().dead_letter.unwrap();
        assert_eq!(letter.reason, "dismissed");
    }
    world.until(&id, "alice", EnvelopeState::Closed).await;
    assert_eq!(world.available("mallory").await, 0);
    world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_nobody_can_read_is_made_up_for_and_its_envelope_closes() {
    let (mut world, id, _) = with_twenty_winners().await;
    world.audit_when_quiet().await;
    let books = world.server.hold_the_books();
    let owed = ten_more(&mut world, &id, 20).await;
    let outbox = the_outbox_of(world.redis(), &id);
    let whose: red_envelope::domain::id::EnvelopeId = id.parse().unwrap();
    let junk = [&b"\x01 of "[..], &whose.to_bytes()].concat();
    let redis = world.redis();
    redis.command(&[b"XTRIM", &outbox, b"MAXLEN", b"0"]);
    redis.command(&[b"XADD", &outbox, b"9-*", b"r", &junk]);
    drop(books);
    let latest = Instant::now() + MISSING_POSTED_WITHIN;
    world.until_all_are_paid_by(latest, &owed).await;
    recall(&mut world, &id).await.unwrap();
    world.until(&id, "alice", EnvelopeState::Closed).await;
    world.audit_when_quiet().await;
    // It is kept for people, who were called once.
    assert_eq!(keys_like(&mut world, "re1:*:poison").len(), 1);
    until_counted(&world, "red_envelope_outbox_unreadable_total", 1.0).await;
}

/// An envelope that is swept together with this one.
async fn another_of_its_partition(world: &mut World, id: &str) -> String {
    for _ in 0..SENT_MAX {
        let other = world.send(equal("alice", cny(1), 2)).await.envelope_id;
        if partition_of(&other) == partition_of(id) {
            return other;
        }
    }
    panic!("no other envelope is of its partition");
}

/// Waits until the server has counted so many of these, and no more.
pub async fn until_counted(world: &World, metric: &str, count: f64) {
    until(metric, async || world.server.counted(metric).await >= count).await;
    assert!(world.server.counted(metric).await < count + 1.0, "{metric}");
}

/// How many envelopes the books are about to close.
fn closing(world: &World) -> i64 {
    let books = world.server.data_folder().join("ledger.sqlite");
    let books = rusqlite::Connection::open(books).unwrap();
    let asked = "-- it.closing\nSELECT count(*) FROM envelope WHERE state = 'closing'";
    books.query_row(asked, [], |row| row.get(0)).unwrap()
}

/// The key of the outbox of an envelope that Redis holds.
pub fn the_outbox_of(redis: &RedisServer, id: &str) -> Vec<u8> {
    let keys = keys_on(redis, &format!("re1:*:g:{id}"));
    let key = keys.first().expect("the envelope is in Redis");
    let tag_end = key.iter().position(|byte| *byte == b'}').unwrap();
    [&key[..=tag_end], b":outbox"].concat()
}

/// An outbox entry as the library would write it.
pub fn forged(id: &str, share: u32, amount: u16, grabber: &str) -> Vec<u8> {
    let id: red_envelope::domain::id::EnvelopeId = id.parse().unwrap();
    let mut entry = vec![1];
    entry.extend_from_slice(&1_700_000_000_000_u64.to_le_bytes()[..6]);
    entry.extend_from_slice(&42_u64.to_le_bytes());
    entry.extend_from_slice(&1_u32.to_le_bytes());
    entry.extend_from_slice(&id.to_bytes());
    entry.extend_from_slice(&[2, 0, 1, 0]);
    entry.extend_from_slice(&share.to_le_bytes());
    entry.extend_from_slice(&amount.to_le_bytes());
    entry.push(u8::try_from(grabber.len()).unwrap());
    entry.extend_from_slice(grabber.as_bytes());
    entry
}

/// Waits until so many letters were set aside; their reasons.
pub async fn until_set_aside(world: &mut World, count: usize) -> Vec<String> {
    seen_by(in_time(), "letters were set aside", async || {
        let letters = world.dead_letters().await.into_iter();
        let reasons: Vec<_> = letters.map(|letter| letter.reason).collect();
        (reasons.len() >= count).then_some(reasons)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_books_leave_a_redis_alone() {
    let (mut world, id, held) = with_twenty_winners().await;
    let start = Start::on(Hot::Redis).reaching(Some(world.redis()));
    let mut other = Server::start(start).await;
    until("the other one says why", async || {
        let (ready, why) = other.readiness().await;
        assert!(!ready);
        why.contains("this Redis was begun with layout 1")
    })
    .await;
    // Whose Redis it is has noticed nothing, and it is still so when the other has come and gone.
    world.until_ready().await;
    other.stop().await;
    let mut world = world.restarted(Start::default()).await;
    world.until_ready().await;
    nothing_is_granted_twice(&mut world, &id, &held).await;
}

/// Callers of a burst, grabs of each, and answers after which the time is up.
const CALLERS: usize = 10;
const GRABS_OF_A_CALLER: usize = 100;
const EXPIRED_AFTER: usize = 300;
/// When the envelope expires, and a time after it at which nothing is turned away yet.
const EXPIRES_IN_SECONDS: i64 = 60;
const AFTER_THE_EXPIRY_MS: i64 = 61_000;
/// How long settlement stands still after the refund is due: what the catalogue of faults names.
const STALL: Duration = Duration::from_secs(10);

/// Grabs by turns, of all callers: who won. Whoever hears the three hundredth answer has the time be up.
async fn grabbed_astride_the_expiry(world: &World, id: &str) -> BTreeSet<String> {
    let answered = AtomicUsize::new(0);
    let callers = (0..CALLERS).map(async |caller| {
        let mut client = world.envelopes.clone();
        let mut won = BTreeSet::new();
        for number in 0..GRABS_OF_A_CALLER {
            let grabber = format!("g{caller}-{number}");
            let grab = grab_of(id, &grabber);
            let answer = world.record.grab(&mut client, grab).await.unwrap();
            match answer.outcome() {
                GrabOutcome::Won => drop(won.insert(grabber)),
                other => assert_eq!(other, GrabOutcome::Expired),
            }
            if answered.fetch_add(1, Ordering::SeqCst) + 1 == EXPIRED_AFTER {
                world.server.set_clock_ms(AFTER_THE_EXPIRY_MS);
            }
        }
        won
    });
    let won = futures_util::future::join_all(callers).await;
    won.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_grabs_astride_the_expiry_end_well_with_settlement_stalled() {
    let mut world = World::on(Hot::Redis).await;
    world.fund("alice", cny(1_000)).await;
    let mut asked = equal("alice", cny(1), 1_000);
    asked.expires_in = Some(prost_types::Duration {
        seconds: EXPIRES_IN_SECONDS,
        nanos: 0,
    });
    let id = world.send(asked).await.envelope_id;
    let books = world.server.hold_the_books();
    let winners = grabbed_astride_the_expiry(&world, &id).await;
    let won = winners.len();
    // The expiry cut the burst: none of the others was told anything but that.
    assert!((EXPIRED_AFTER..1_000).contains(&won), "{won}");
    let told = world
        .server
        .counted_of("red_envelope_grabs_total", "expired");
    assert_eq!(format!("{:.0}", told.await), (1_000 - won).to_string());
    // The refund is due, and the money of the winners is still on its way: ten seconds of it.
    let began = Instant::now();
    while began.elapsed() < STALL {
        a_moment().await;
    }
    drop(books);
    let won = i64::try_from(won).unwrap();
    let closed = world.until(&id, "alice", EnvelopeState::Closed).await;
    let progress = closed.progress.unwrap();
    assert_eq!(progress.settled.unwrap().minor_units, won);
    assert_eq!(progress.refunded.unwrap().minor_units, 1_000 - won);
    assert_eq!(world.available("alice").await, 1_000 - won);
    for grabber in &winners {
        assert_eq!(world.available(grabber).await, 1, "{grabber}");
    }
    let report = world.audit_when_quiet().await;
    assert!(report.totals.iter().all(|sums| sums.made_good_minor == 0));
}
