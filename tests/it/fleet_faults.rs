//! Bad days of several servers on one Redis and one PostgreSQL: books that stand still over an expiry,
//! poison that outlives who found it, a server that is stopped and goes on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use red_envelope::domain::id::{EnvelopeId, Partition, PartitionCount};
use red_envelope::ledger::SETTLE_TRIES_MAX;
use red_envelope_proto::v1::{
    DiscrepancyKind, EnvelopeState, GrabOutcome, ReplayDeadLetterRequest, ReplayDeadLetterResponse,
};
use tokio::time::Instant;

use crate::harness::fleet::{Fleet, a_moment, until};
use crate::harness::server::REDIS_PARTITIONS;
use crate::harness::world::{World, grab_of};
use crate::harness::{Start, cny, equal};
use crate::redis_faults::{forged, the_outbox_of};

/// Minor units of a share, and what the sender has at first.
const SHARE: i64 = 10;
const FUNDS: i64 = 1_000_000;
/// Shares of an envelope that is not about an expiry.
const SHARES: u32 = 8;

/// How long settlement stands still after the refund is due: what the catalogue of faults names.
const STALL: Duration = Duration::from_secs(10);
/// Envelopes that expire together, and how many try to grab each of them: a thousand in all.
const EXPIRING: usize = 10;
const GRABBERS: usize = 100;
/// After so many answers the books stand still, and after so many the time is up.
const STALLED_AFTER: usize = 300;
const EXPIRED_AFTER: usize = 450;
/// When the envelopes expire, and a time after it at which nothing is turned away yet.
const EXPIRES_IN_SECONDS: i64 = 60;
const AFTER_THE_EXPIRY_MS: i64 = 61_000;

/// One envelope's grabbers in turn, each through the next process; what each was told.
async fn grabbed_in_turn(fleet: &Fleet, id: &str, answered: &AtomicUsize) -> BTreeMap<String, i64> {
    let clients = fleet.clients();
    let mut told = BTreeMap::new();
    for number in 0..GRABBERS {
        let grabber = format!("grabber-{number}");
        let mut client = clients[number % clients.len()].clone();
        let answer = fleet.record.grab(&mut client, grab_of(id, &grabber)).await;
        let answer = answer.unwrap();
        answered.fetch_add(1, Ordering::SeqCst);
        match answer.outcome() {
            GrabOutcome::Won => {
                let amount = answer.share.unwrap().amount.unwrap();
                told.insert(grabber, amount.minor_units);
            }
            GrabOutcome::Expired => {}
            other => panic!("{grabber}: {other:?}"),
        }
    }
    told
}

/// Everybody asks again, through the process that was not asked first: winners have their shares, the
/// others none.
async fn answers_stay(fleet: &Fleet, id: &str, told: &BTreeMap<String, i64>) {
    let mut clients = fleet.clients();
    clients.reverse();
    for number in 0..GRABBERS {
        let grabber = format!("grabber-{number}");
        let mut client = clients[number % clients.len()].clone();
        let answer = fleet.record.grab(&mut client, grab_of(id, &grabber)).await;
        let answer = answer.unwrap();
        let amount = |share: red_envelope_proto::v1::Share| share.amount.unwrap().minor_units;
        let same = match told.get(&grabber) {
            Some(_) => GrabOutcome::AlreadyGrabbed,
            None => GrabOutcome::Expired,
        };
        assert_eq!(answer.outcome(), same, "{grabber}");
        assert_eq!(answer.share.map(amount), told.get(&grabber).copied());
    }
}

/// What keeps settlement from its work.
#[derive(Clone, Copy)]
enum Stall {
    /// PostgreSQL is stopped, with whatever is under way.
    Stopped,
    /// The disk of the claims is full: nothing is paid, and the sweepers go on.
    Full,
}

/// Books whose claims have no room, and those that have it again.
const NO_ROOM: &str = "
    CREATE FUNCTION red_envelope.no_room() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE disk_full; END $$;
    CREATE TRIGGER no_room BEFORE INSERT ON red_envelope.claim
        FOR EACH STATEMENT EXECUTE FUNCTION red_envelope.no_room()";
const ROOM: &str = "DROP TRIGGER no_room ON red_envelope.claim";
/// How many envelopes the books are about to close.
const CLOSING: &str = "SELECT count(*) FROM red_envelope.envelope WHERE state = 'closing'";

impl Stall {
    fn begins(self, fleet: &Fleet) {
        tokio::task::block_in_place(|| match self {
            Self::Stopped => fleet.postgres.pause(),
            Self::Full => drop(fleet.ask_the_books(NO_ROOM)),
        });
    }

    /// Ends it. What was due meanwhile had its turn, where the books let it.
    async fn ends(self, fleet: &Fleet) {
        match self {
            Self::Stopped => fleet.postgres.resume(),
            Self::Full => {
                let all = async || fleet.ask_the_books(CLOSING) == EXPIRING.to_string();
                until("every envelope is about to close", all).await;
                fleet.ask_the_books(ROOM);
            }
        }
    }
}

/// A thousand grabs by turns of both processes while settlement stands still and the time runs out; what
/// each grabber of each envelope was told, once it had stood still for so long.
async fn told_astride_the_expiry(
    fleet: &Fleet,
    ids: &[String],
    stall: Stall,
) -> Vec<BTreeMap<String, i64>> {
    let answered = AtomicUsize::new(0);
    let so_many = async |count| answered.load(Ordering::SeqCst) >= count;
    let crowd = ids.iter().map(|id| grabbed_in_turn(fleet, id, &answered));
    let strike = async {
        until("some have grabbed", || so_many(STALLED_AFTER)).await;
        stall.begins(fleet);
        until("more have grabbed", || so_many(EXPIRED_AFTER)).await;
        fleet.set_clock_ms(AFTER_THE_EXPIRY_MS);
    };
    let (told, ()) = tokio::join!(futures_util::future::join_all(crowd), strike);
    let began = Instant::now();
    for (id, told) in ids.iter().zip(&told) {
        answers_stay(fleet, id, told).await;
    }
    while began.elapsed() < STALL {
        a_moment().await;
    }
    stall.ends(fleet).await;
    told
}

async fn each_is_paid_as_told(stall: Stall) {
    let mut fleet = Fleet::of(2).await;
    fleet.until_divided().await;
    fleet.processes[0].fund("alice", cny(FUNDS)).await;
    let shares = u32::try_from(GRABBERS).unwrap() + 1;
    let mut ids = Vec::new();
    for _ in 0..EXPIRING {
        let mut asked = equal("alice", cny(SHARE), shares);
        asked.expires_in = Some(prost_types::Duration {
            seconds: EXPIRES_IN_SECONDS,
            nanos: 0,
        });
        ids.push(fleet.processes[0].send(asked).await.envelope_id);
    }
    let told = told_astride_the_expiry(&fleet, &ids, stall).await;
    let won: usize = told.iter().map(BTreeMap::len).sum();
    assert!((EXPIRED_AFTER..EXPIRING * GRABBERS).contains(&won), "{won}");
    let mut paid = BTreeMap::<&String, i64>::new();
    for (at, (id, told)) in ids.iter().zip(&told).enumerate() {
        let process = &mut fleet.processes[at % 2];
        let closed = process.until(id, "alice", EnvelopeState::Closed).await;
        let given: i64 = told.values().sum();
        let progress = closed.progress.unwrap();
        assert_eq!(progress.settled.unwrap().minor_units, given);
        let rest = i64::from(shares) * SHARE - given;
        assert_eq!(progress.refunded.unwrap().minor_units, rest);
        for (grabber, amount) in told {
            *paid.entry(grabber).or_default() += amount;
        }
    }
    for (number, (grabber, amount)) in paid.iter().enumerate() {
        let process = &mut fleet.processes[number % 2];
        assert_eq!(process.available(grabber).await, *amount, "{grabber}");
    }
    let (available, _, held) = fleet.processes[0].balance("alice").await;
    assert_eq!((available, held), (FUNDS - paid.values().sum::<i64>(), 0));
    for process in &mut fleet.processes {
        let report = process.audit_when_quiet().await;
        assert!(report.totals.iter().all(|sums| sums.made_good_minor == 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_grabs_astride_the_expiry_are_paid_as_told_by_books_that_stood_still() {
    each_is_paid_as_told(Stall::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_that_is_due_while_nothing_can_be_paid_waits_for_who_won_before() {
    each_is_paid_as_told(Stall::Full).await;
}

/// Books that pay mallory nothing. They count how often she is tried alone, whatever becomes of the
/// transaction, and take their time: who kills a process at her first try is not late.
const REFUSE_MALLORY: &str = "
    CREATE SEQUENCE red_envelope.tried_alone;
    CREATE FUNCTION red_envelope.refuse_mallory() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM fresh JOIN red_envelope.account a ON a.row = fresh.account_row
                   WHERE a.owner = 'mallory') THEN
            IF (SELECT count(*) FROM fresh) = 1 THEN
                PERFORM nextval('red_envelope.tried_alone');
            END IF;
            PERFORM pg_sleep(0.5);
            RAISE check_violation USING CONSTRAINT = 'nothing_for_mallory';
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER refuse_mallory AFTER INSERT ON red_envelope.claim
        REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION red_envelope.refuse_mallory()";
/// The cause is gone.
const PAY_MALLORY: &str = "DROP TRIGGER refuse_mallory ON red_envelope.claim";
/// How often she was tried alone.
const TRIED_ALONE: &str =
    "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM red_envelope.tried_alone";
/// Envelopes that are sent at the most until two are of one partition and one is of another: by chance
/// that takes more once in 10^11 times.
pub const SENT_MAX: usize = 200;
/// What an entry promises that nobody granted: another amount than the share's.
const WRONG_AMOUNT: u16 = 7;
/// A time at which every envelope here has expired.
const A_DAY_LATER_MS: i64 = 25 * 3_600_000;

pub fn partition_of(id: &str) -> Partition {
    let id: EnvelopeId = id.parse().unwrap();
    id.partition(PartitionCount::new(REDIS_PARTITIONS).unwrap())
}

/// Two envelopes of one partition, and one that nobody is going to grab.
async fn two_of_one_partition(process: &mut World) -> ([String; 2], String) {
    let first = process.send(equal("alice", cny(SHARE), SHARES)).await;
    let first = first.envelope_id;
    let (mut second, mut other) = (None, None);
    for _ in 0..SENT_MAX {
        let id = process.send(equal("alice", cny(SHARE), SHARES)).await;
        let id = id.envelope_id;
        match partition_of(&id) == partition_of(&first) {
            true => second = Some(id),
            false => other = Some(id),
        }
        if let (Some(second), Some(other)) = (&second, &other) {
            return ([first, second.clone()], other.clone());
        }
    }
    panic!("envelopes are all of one partition");
}

/// Waits until so many records are set aside. Answers why, in order.
async fn set_aside(process: &mut World, count: usize) -> Vec<(String, String)> {
    let mut letters = Vec::new();
    until("enough was set aside", async || {
        letters = process.dead_letters().await;
        letters.len() >= count
    })
    .await;
    let told = |letter: red_envelope_proto::v1::DeadLetter| (letter.reason, letter.dead_letter_id);
    letters.into_iter().map(told).collect()
}

/// An operator tries again.
async fn replay(process: &mut World, letter: &str) -> ReplayDeadLetterResponse {
    let request = ReplayDeadLetterRequest {
        dead_letter_id: letter.to_owned(),
        operator: "olga".to_owned(),
        reason: "the cause is gone".to_owned(),
        correct_amount: false,
    };
    let tried = process.admin.replay_dead_letter(request).await;
    tried.unwrap().into_inner()
}

async fn rang(process: &World) -> bool {
    process
        .server
        .counted("red_envelope_dead_letters_total")
        .await
        > 0.0
}

/// Someone's entry in the outbox promises a share of this envelope at a wrong amount. Answers the process
/// that set it aside, and the other one.
async fn one_finds_poison(fleet: &mut Fleet, id: &str) -> (usize, usize) {
    let outbox = the_outbox_of(&fleet.redis, id);
    let entry = forged(id, SHARES - 1, WRONG_AMOUNT, "eve");
    let added = fleet
        .redis
        .command(&[b"XADD", &outbox, b"9-*", b"r", &entry]);
    assert!(matches!(added, redis::Value::BulkString(_)), "{added:?}");
    let letters = set_aside(&mut fleet.processes[0], 1).await;
    assert_eq!(letters[0].0, "amount_mismatch");
    let [one, other] = &fleet.processes[..] else {
        panic!("a fleet of two");
    };
    until("it rang", async || rang(one).await || rang(other).await).await;
    match (rang(one).await, rang(other).await) {
        (true, false) => (0, 1),
        (false, true) => (1, 0),
        both => panic!("who settles the partition? {both:?}"),
    }
}

/// Neither closes, though their time is up and the sweeper comes by.
async fn both_wait_for_an_operator(process: &mut World, ids: &[String; 2], other: &str) {
    process.until(other, "alice", EnvelopeState::Closed).await;
    for id in ids {
        let state = process.look(id, "alice").await.state();
        assert_ne!(state, EnvelopeState::Closed, "{id}");
    }
    let report = process.audit().await;
    let letter = |kind: DiscrepancyKind| kind == DiscrepancyKind::DeadLetter;
    let found = report.discrepancies.iter().filter(|d| letter(d.kind()));
    assert_eq!((report.clean, found.count()), (false, ids.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_set_aside_by_whoever_is_left_and_stands_in_the_way_until_an_operator_acts() {
    let mut fleet = Fleet::of(2).await;
    fleet.until_divided().await;
    fleet.processes[0].fund("alice", cny(FUNDS)).await;
    let (ids, other) = two_of_one_partition(&mut fleet.processes[0]).await;
    let [promised, refused] = &ids;
    let (holder, heir) = one_finds_poison(&mut fleet, promised).await;
    for number in 0..SHARES {
        let grabber = format!("paid-{number}");
        fleet.processes[heir].win(promised, &grabber).await;
        fleet.processes[heir].until_available(&grabber, SHARE).await;
    }
    // A grab that the books refuse, and who tried it first dies of it.
    fleet.ask_the_books(REFUSE_MALLORY);
    fleet.processes[heir].win(refused, "mallory").await;
    let tried = async || fleet.ask_the_books(TRIED_ALONE) != "0";
    until("mallory was tried", tried).await;
    fleet.processes[holder].server.kill();
    let process = &mut fleet.processes[heir];
    assert_eq!(set_aside(process, 1).await.len(), 1, "the kill was late");
    assert!(!rang(process).await);
    for number in 1..SHARES {
        process.win(refused, &format!("behind-{number}")).await;
    }
    let letters = set_aside(process, 2).await;
    assert_eq!(letters[1].0, "refused_by_the_books");
    until("it rang", async || rang(process).await).await;
    for number in 1..SHARES {
        let grabber = format!("behind-{number}");
        process.until_available(&grabber, SHARE).await;
    }
    let tried: u32 = fleet.ask_the_books(TRIED_ALONE).parse().unwrap();
    assert!(tried <= 2 * SETTLE_TRIES_MAX, "{tried} tries");

    fleet.set_clock_ms(A_DAY_LATER_MS);
    let both = async || fleet.ask_the_books(CLOSING) == ids.len().to_string();
    until("both are about to close", both).await;
    let process = &mut fleet.processes[heir];
    both_wait_for_an_operator(process, &ids, &other).await;
    // The share was paid to who won it; mallory's can be paid by now.
    let promise = replay(process, &letters[0].1).await;
    assert_eq!(promise.dead_letter.unwrap().reason, "superseded");
    process
        .until(promised, "alice", EnvelopeState::Closed)
        .await;
    fleet.ask_the_books(PAY_MALLORY);
    let process = &mut fleet.processes[heir];
    assert!(replay(process, &letters[1].1).await.settled);
    process.until(refused, "alice", EnvelopeState::Closed).await;
    assert_eq!(process.available("mallory").await, SHARE);
    assert_eq!(process.available("eve").await, 0);
    assert!(process.dead_letters().await.is_empty());
    process.audit_when_quiet().await;
}

/// How long a process holds its first batch between reading and posting it: long enough for everybody to grab
/// and for it to be stopped meanwhile.
const HOLD: &str = "settle::before_post=1*sleep(30000)";
/// Moments in which it has certainly read one: a few of so many.
const MOMENTS: usize = 5;
/// Envelopes that both processes settle, and grabbers of each.
const SETTLED: usize = 16;
const WINNERS: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_stopped_past_its_lease_pays_nothing_again_when_it_goes_on() {
    let mut fleet = Fleet::of(1).await;
    let late = Start {
        points: Some(HOLD.to_owned()),
        ..Start::default()
    };
    fleet.join(late).await;
    fleet.until_divided().await;
    let process = &mut fleet.processes[0];
    process.fund("alice", cny(FUNDS)).await;
    let mut ids = Vec::new();
    for _ in 0..SETTLED {
        let sent = process.send(equal("alice", cny(SHARE), SHARES)).await;
        ids.push(sent.envelope_id);
    }
    for id in &ids {
        for number in 0..WINNERS {
            process.win(id, &format!("grabber-{number}")).await;
        }
    }
    // The other one has the first records of its partitions in its hands.
    for _ in 0..MOMENTS {
        a_moment().await;
    }
    fleet.processes[1].server.pause();
    let each = i64::try_from(SETTLED).unwrap() * SHARE;
    for number in 0..WINNERS {
        let grabber = format!("grabber-{number}");
        fleet.processes[0].until_available(&grabber, each).await;
    }
    fleet.processes[1].server.resume();
    let batches = "red_envelope_settle_batch_records_count";
    let late = &fleet.processes[1].server;
    let posted = async || late.counted(batches).await > 0.0;
    until("the late batch was posted", posted).await;
    assert_eq!(
        late.counted("red_envelope_settled_records_total").await,
        0.0
    );
    for number in 0..WINNERS {
        let grabber = format!("grabber-{number}");
        assert_eq!(fleet.processes[1].available(&grabber).await, each);
        let again = fleet.processes[1].grab(&ids[0], &grabber).await;
        assert_eq!(again.outcome(), GrabOutcome::AlreadyGrabbed);
    }
    fleet.set_clock_ms(A_DAY_LATER_MS);
    for (at, id) in ids.iter().enumerate() {
        let process = &mut fleet.processes[at % 2];
        process.until(id, "alice", EnvelopeState::Closed).await;
    }
    let paid = i64::try_from(WINNERS).unwrap() * each;
    assert_eq!(fleet.processes[0].available("alice").await, FUNDS - paid);
    for process in &mut fleet.processes {
        process.audit_when_quiet().await;
    }
}
