//! At level `memory` a Redis loses acknowledged grabs and gives their shares to others: the reserve pays who was
//! shown them, up to the cap.

use red_envelope_proto::v1::{
    DiscrepancyKind, Entry, EntryKind, EnvelopeState, GrabOutcome, ListEntriesRequest,
    ReplayDeadLetterRequest, Share,
};

use crate::harness::fleet::{Fleet, until};
use crate::harness::record::Record;
use crate::harness::world::World;
use crate::harness::{Start, cny, equal, lucky};

/// Who was shown a share that Redis then lost.
const LOST: usize = 5;
/// Of an envelope.
const SHARES: u32 = 12;
/// Shares that others take afterwards.
const HEIRS: u32 = 10;
const A_DAY_LATER_MS: i64 = 25 * 3_600_000;

/// Two processes that only serve, at a level at which Redis may forget, and this cap.
fn forgetful(role: &str, cap: &str) -> Start {
    let mut flags = vec!["--ack", "memory", "--role", role];
    if !cap.is_empty() {
        flags.extend(["--ledger-make-good-max", cap]);
    }
    Start {
        flags: flags.into_iter().map(str::to_owned).collect(),
        ..Start::default()
    }
}

fn minor(share: &Share) -> i64 {
    share.amount.as_ref().map_or(0, |amount| amount.minor_units)
}

/// The first process has acknowledged grabs of this envelope when Redis is killed and comes back empty; while it
/// is stopped, the second one gives the shares to others, and a third one settles. Answers what the lost ones
/// were shown.
async fn a_loss(fleet: &mut Fleet, id: &str, cap: &str) -> Vec<Share> {
    let mut shown = Vec::new();
    for number in 0..LOST {
        shown.push(fleet.processes[0].win(id, &format!("lost-{number}")).await);
    }
    fleet.processes[0].server.pause();
    fleet.redis.restart_empty();
    fleet.processes[1].until_ready().await;
    let mut taken = Vec::new();
    for number in 0..HEIRS {
        let heir = format!("heir-{number}");
        let share = fleet.processes[1].win(id, &heir).await;
        taken.push((heir, share));
    }
    // Every share that was shown is somebody else's now.
    for share in &shown {
        assert!(taken.iter().any(|(_, other)| other.number == share.number));
    }
    // A history in which a share has two holders is none that an envelope can have.
    fleet.record = Record::default();
    for process in &mut fleet.processes {
        process.record = Record::default();
    }
    fleet.join_settler(forgetful("settle", cap)).await;
    for (heir, share) in &taken {
        fleet.processes[1].until_available(heir, minor(share)).await;
    }
    fleet.processes[0].server.resume();
    shown
}

async fn entries(process: &mut World, owner: &str) -> Vec<Entry> {
    let request = ListEntriesRequest {
        owner: owner.to_owned(),
        ..ListEntriesRequest::default()
    };
    let reply = process.accounts.list_entries(request).await;
    reply.unwrap().into_inner().entries
}

/// An operator tries again. Answers whether nothing is owed any more.
async fn replay(process: &mut World, letter: &str) -> bool {
    let request = ReplayDeadLetterRequest {
        dead_letter_id: letter.to_owned(),
        operator: "olga".to_owned(),
        reason: "Redis was killed".to_owned(),
        correct_amount: false,
    };
    let tried = process.admin.replay_dead_letter(request).await;
    tried.unwrap().into_inner().settled
}

/// What the reserves paid, by a clean audit.
async fn made_good(process: &mut World) -> i64 {
    let report = process.audit_when_quiet().await;
    report.totals.iter().map(|t| t.made_good_minor).sum()
}

/// A process counts so many of these, a moment after the books have them, and no more.
async fn counts(process: &World, metric: &str, count: f64) {
    let counted = async || process.server.counted(metric).await >= count;
    until(metric, counted).await;
    assert_eq!(process.server.counted(metric).await, count, "{metric}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_grabs_whose_shares_went_to_others_are_paid_by_the_reserve() {
    const CAP: &str = "CNY=1000000";
    const TOTAL: i64 = 100_000;
    let mut fleet = Fleet::of(0).await;
    for _ in 0..2 {
        fleet.join(forgetful("api", CAP)).await;
    }
    fleet.processes[0].fund("alice", cny(TOTAL)).await;
    let sent = fleet.processes[0]
        .send(lucky("alice", cny(TOTAL), SHARES))
        .await;
    let id = sent.envelope_id;
    let shown = a_loss(&mut fleet, &id, CAP).await;
    let mut reserve = 0;
    for (number, share) in shown.iter().enumerate() {
        let lost = format!("lost-{number}");
        fleet.processes[1]
            .until_available(&lost, minor(share))
            .await;
        reserve += minor(share);
    }
    assert_eq!(made_good(&mut fleet.processes[1]).await, reserve);
    counts(&fleet.processes[0], "red_envelope_made_good_total", 5.0).await;
    // Who was made good sees why; the share is the other's.
    let told = entries(&mut fleet.processes[1], "lost-0").await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].kind(), EntryKind::MakeGood);
    assert_eq!(told[0].share_number, Some(shown[0].number));
    assert_eq!(told[0].envelope_id, id);
    let shares = fleet.processes[0].shares(&id, "alice").await;
    assert_eq!(shares.len(), HEIRS as usize);
    assert!(shares.iter().all(|share| share.grabber.starts_with("heir")));

    // Two shares are left. One of the lost takes one: he has the larger amount, and not the sum.
    let again = fleet.processes[0].win(&id, "lost-1").await;
    let (before, now) = (minor(&shown[1]), minor(&again));
    until("the second share was paid", async || {
        let told = entries(&mut fleet.processes[1], "lost-1").await;
        told.iter().any(|entry| entry.kind() == EntryKind::Settle)
    })
    .await;
    let has = fleet.processes[1].available("lost-1").await;
    assert_eq!(has, before.max(now), "shown {before}, then {now}");
    reserve -= before.min(now);
    assert_eq!(made_good(&mut fleet.processes[1]).await, reserve);

    // The envelope itself ends as if nothing had been.
    fleet.set_clock_ms(A_DAY_LATER_MS);
    let closed = fleet.processes[1].until(&id, "alice", EnvelopeState::Closed);
    let progress = closed.await.progress.unwrap();
    let parts = [progress.settled.unwrap(), progress.refunded.unwrap()];
    assert_eq!(parts.iter().map(|m| m.minor_units).sum::<i64>(), TOTAL);
    assert_eq!(made_good(&mut fleet.processes[1]).await, reserve);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_cap_lost_grabs_wait_for_an_operator() {
    const SHARE: i64 = 10;
    const CAP: &str = "CNY=25";
    let mut fleet = Fleet::of(0).await;
    for _ in 0..2 {
        fleet.join(forgetful("api", CAP)).await;
    }
    fleet.processes[0].fund("alice", cny(1_000)).await;
    let sent = fleet.processes[0]
        .send(equal("alice", cny(SHARE), SHARES))
        .await;
    let id = sent.envelope_id;
    a_loss(&mut fleet, &id, CAP).await;
    let mut letters = Vec::new();
    until("what is beyond the cap was set aside", async || {
        letters = fleet.processes[1].dead_letters().await;
        letters.len() == 3
    })
    .await;
    assert!(letters.iter().all(|l| l.reason == "make_good_capped"));
    let first = &fleet.processes[0];
    counts(first, "red_envelope_made_good_total", 2.0).await;
    counts(first, "red_envelope_make_good_capped_total", 3.0).await;
    let reached = "the cap of what is made good is reached";
    let said = async || first.server.log().contains(reached);
    until("it is said that the cap is reached", said).await;
    let lost = |number| format!("lost-{number}");
    let mut has = 0;
    for number in 0..LOST {
        has += fleet.processes[1].available(&lost(number)).await;
    }
    assert_eq!(has, 2 * SHARE);
    let report = fleet.processes[1].audit().await;
    let found = report.discrepancies.iter();
    let mut kinds = found.map(red_envelope_proto::v1::Discrepancy::kind);
    assert_eq!(report.discrepancies.len(), 3);
    assert!(kinds.all(|kind| kind == DiscrepancyKind::DeadLetter));

    // The operator gives more, and tries again.
    fleet.processes[0].server.kill();
    fleet.again(0, forgetful("api", "CNY=1000")).await;
    fleet.processes[0].until_ready().await;
    for letter in &letters {
        for _ in 0..2 {
            let settled = replay(&mut fleet.processes[0], &letter.dead_letter_id).await;
            assert!(settled, "{letter:?}");
        }
    }
    for number in 0..LOST {
        assert_eq!(fleet.processes[1].available(&lost(number)).await, SHARE);
    }
    // Nobody grabs twice what nobody has any more.
    for number in 0..2 {
        fleet.processes[0].win(&id, &format!("last-{number}")).await;
    }
    let late = fleet.processes[1].grab(&id, "lost-0").await;
    assert_eq!(late.outcome(), GrabOutcome::Empty);
    let reserve = i64::try_from(LOST).unwrap() * SHARE;
    assert_eq!(made_good(&mut fleet.processes[1]).await, reserve);
    fleet.processes[1]
        .until(&id, "alice", EnvelopeState::Closed)
        .await;
    assert_eq!(made_good(&mut fleet.processes[1]).await, reserve);
}
