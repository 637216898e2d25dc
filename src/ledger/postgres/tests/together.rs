//! Several processes on the same books at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{OpenError, Place, PostgresLedger, PostgresServer, Release, keys, open_at, world};
use crate::clock::ManualClock;
use crate::domain::envelope::BookState;
use crate::domain::id::{EnvelopeId, Epoch, Partition};
use crate::ledger::conformance::{
    FIRST, NOON_MS, World, cny, draft, fund, pay, person, tenant, transfer,
};
use crate::ledger::{Ledger, LedgerError, Portion, Settled, Under};

/// Processes that do the same at the same instant.
const PROCESSES: usize = 4;

async fn others(url: &str, clock: &ManualClock) -> Vec<Arc<PostgresLedger>> {
    let mut others = Vec::new();
    for _ in 1..PROCESSES {
        others.push(Arc::new(open_at(url, clock).await.unwrap()));
    }
    others
}

/// Calls that each of the others makes at once.
const CALLS_AT_ONCE: usize = 20;
/// Tries of one connection: each has two seconds, which a busy machine may need for something else.
const CONNECTS_MAX: usize = 60;

/// The same, each with a connection for every call that it is going to make at once: they are made one after
/// the other, so that none waits for the others.
async fn connected_others(url: &str, clock: &ManualClock) -> Vec<Arc<PostgresLedger>> {
    let others = others(url, clock).await;
    for other in &others {
        let mut held = Vec::new();
        for _ in 0..CALLS_AT_ONCE + CONNECTS_MAX {
            held.extend(other.books.pool.get().await.ok());
            if held.len() == CALLS_AT_ONCE {
                break;
            }
        }
        assert_eq!(held.len(), CALLS_AT_ONCE, "no connection");
    }
    others
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_start_at_the_same_instant_found_the_same_books() {
    let (_, place) = world().await;
    let url = place.server.database();
    let clock = ManualClock::at(NOON_MS);
    let opened = (0..PROCESSES).map(|_| open_at(&url, &clock));
    let opened = futures_util::future::join_all(opened).await;
    let ids: Vec<String> = opened
        .into_iter()
        .map(|ledger| ledger.unwrap().identity().to_owned())
        .collect();
    assert_eq!(ids[0].len(), 32);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_many_post_at_once_is_paid_once() {
    let (first, place) = world().await;
    let mut ledgers: Vec<Arc<dyn Ledger>> = vec![Arc::clone(&first.ledger)];
    for other in others(&place.url, &first.clock).await {
        ledgers.push(other);
    }
    let mut ids = Vec::new();
    for number in 0..4 {
        ids.push(first.live(10_000, 100, &format!("e{number}")).await);
    }
    // The same records, each time in another order: locks are taken in one order all the same.
    let mut posts = Vec::new();
    for (number, ledger) in ledgers.iter().enumerate() {
        let mut items = Vec::new();
        for share in 0..100 {
            for id in &ids {
                items.push(pay(*id, share, &format!("g{share}"), 100));
            }
        }
        let middle = items.len() * number / PROCESSES;
        items.rotate_left(middle);
        posts.push(ledger.settle(FIRST, items));
    }
    let posted = futures_util::future::try_join_all(posts).await.unwrap();
    let paid = posted.iter().flatten().filter(|v| **v == Settled::Paid);
    assert_eq!(paid.count(), 400);
    let rest = posted
        .iter()
        .flatten()
        .filter(|v| **v == Settled::Duplicate);
    assert_eq!(rest.count(), 400 * (PROCESSES - 1));
    assert_eq!(first.has("g7").await, (400, 0));
    first.audit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_to_many_processes_makes_one_debit() {
    let (first, place) = world().await;
    // There is enough for one: whoever is late must hear of the first one's, not of a lack of money.
    first.deposit("alice", 100, "d1").await;
    let others = connected_others(&place.url, &first.clock).await;
    let asked = || fund(draft("alice", 100, 10), "e1");
    let mut funds = Vec::new();
    for _ in 0..CALLS_AT_ONCE {
        funds.extend(others.iter().map(|ledger| ledger.fund(asked())));
    }
    let funded = futures_util::future::try_join_all(funds).await.unwrap();
    let fresh = funded.iter().filter(|funded| !funded.replayed).count();
    assert_eq!(fresh, 1);
    assert!(
        funded
            .iter()
            .all(|f| f.envelope.id == funded[0].envelope.id)
    );
    assert_eq!(first.has("alice").await, (0, 100));

    first.deposit("bob", 50, "d2").await;
    let mut withdrawals = Vec::new();
    for _ in 0..CALLS_AT_ONCE {
        let asked = || transfer("bob", 50, "w1");
        withdrawals.extend(others.iter().map(|ledger| ledger.withdraw(asked())));
    }
    let done = futures_util::future::try_join_all(withdrawals).await;
    let fresh = done.unwrap().iter().filter(|done| !done.replayed).count();
    assert_eq!((fresh, first.has("bob").await), (1, (0, 0)));
    first.audit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envelopes_of_many_processes_use_leaves_one_after_the_other() {
    let (first, place) = world().await;
    first.deposit("alice", 100_000, "d1").await;
    let others = others(&place.url, &first.clock).await;
    let mut funds = Vec::new();
    for number in 0..60 {
        let ledger = &others[number % others.len()];
        funds.push(ledger.fund(fund(draft("alice", 100, 10), &format!("e{number}"))));
    }
    let funded = futures_util::future::try_join_all(funds).await.unwrap();
    let mut leaves: Vec<u64> = funded
        .iter()
        .map(|funded| funded.envelope.terms.leaf.leaf_number)
        .collect();
    leaves.sort_unstable();
    assert_eq!(leaves, (0..60).collect::<Vec<u64>>());
    first.audit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_an_older_epoch_is_posted_beside_an_advance() {
    let (first, place) = world().await;
    let id = first.live(10_000, 100, "e1").await;
    let others = others(&place.url, &first.clock).await;
    let posts = (0..100).map(|share| {
        let ledger = &others[share as usize % others.len()];
        ledger.settle(FIRST, vec![pay(id, share, &format!("g{share}"), 100)])
    });
    let from = vec![(Partition::ZERO, Epoch::FIRST)];
    let advance = first.ledger.advance_epochs(from, "a server".to_owned());
    let (posted, advanced) = tokio::join!(futures_util::future::join_all(posts), advance);
    assert_eq!(advanced.unwrap()[0].epoch, Epoch(2));
    let mut paid = 0;
    for verdict in posted {
        match verdict {
            Ok(verdicts) => paid += u32::from(verdicts == [Settled::Paid]),
            Err(error) => assert!(matches!(error, LedgerError::Epoch(Epoch(2))), "{error:?}"),
        }
    }
    assert_eq!(first.envelope(id).await.settled_count, paid);
    let late = first
        .ledger
        .settle(FIRST, vec![pay(id, 99, "late", 100)])
        .await;
    assert!(
        matches!(late, Err(LedgerError::Epoch(Epoch(2)))),
        "{late:?}"
    );
    let under = Under {
        epoch: Epoch(2),
        ..FIRST
    };
    let again = first
        .ledger
        .settle(under, vec![pay(id, 0, "g0", 100)])
        .await
        .unwrap();
    assert!(matches!(again[0], Settled::Paid | Settled::Duplicate));
    first.audit().await;
}

impl Place {
    /// The time of this holder's lease, a minute at the most, is up by the clock that counts.
    fn runs_out(&self, table: &str, holder: &str) {
        let ends = format!(
            "-- ledger.lease_runs_out
             UPDATE red_envelope.{table} SET until = clock_timestamp()
             WHERE holder = '{holder}' AND until <= clock_timestamp() + interval '1 minute'
             RETURNING holder"
        );
        assert_eq!(self.server.sql(self.database(), &ends), holder);
    }
}

#[tokio::test]
async fn leases_divide_the_partitions_among_those_who_renew_them() {
    let (World { ledger, .. }, place) = world().await;
    let lease = |holder: &str, for_ms| ledger.lease(holder.to_owned(), for_ms);
    assert_eq!(lease("b", 60_000).await.unwrap(), Portion::ALONE);
    assert_eq!(
        lease("a", 60_000).await.unwrap(),
        Portion { rank: 0, of: 2 }
    );
    assert_eq!(
        lease("b", 60_000).await.unwrap(),
        Portion { rank: 1, of: 2 }
    );
    // One that left is not counted, one that died is until its lease has run out.
    lease("a", 0).await.unwrap();
    assert_eq!(lease("b", 60_000).await.unwrap(), Portion::ALONE);
    lease("a", 60_000).await.unwrap();
    assert_eq!(
        lease("b", 60_000).await.unwrap(),
        Portion { rank: 1, of: 2 }
    );
    place.runs_out("settle_lease", "a");
    assert_eq!(lease("b", 60_000).await.unwrap(), Portion::ALONE);
}

#[tokio::test]
async fn who_only_serves_is_seen_and_divides_nothing() {
    let (World { ledger, .. }, place) = world().await;
    let serving = |holder: &str, for_ms| ledger.serving(holder.to_owned(), for_ms);
    assert_eq!(serving("an api", 60_000).await.unwrap(), 0);
    assert_eq!(serving("an api", 60_000).await.unwrap(), 0);
    assert_eq!(serving("another", 60_000).await.unwrap(), 1);
    let settles = ledger.lease("a settler".to_owned(), 60_000).await;
    assert_eq!(settles.unwrap(), Portion::ALONE);
    // A look has no lease.
    assert_eq!(serving("restored", 0).await.unwrap(), 2);
    assert_eq!(serving("restored", 0).await.unwrap(), 2);
    assert_eq!(serving("another", 0).await.unwrap(), 1);
    // One that died is seen until its lease has run out.
    serving("an api", 60_000).await.unwrap();
    assert_eq!(serving("restored", 0).await.unwrap(), 1);
    place.runs_out("serve_lease", "an api");
    assert_eq!(serving("restored", 0).await.unwrap(), 0);
}

#[tokio::test]
async fn books_that_are_not_ours_are_refused_with_what_to_do() {
    let (world, place) = world().await;
    let rng = Box::new(<rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(1));
    let clock = Arc::new(world.clock.clone());
    let other = PostgresLedger::open(&place.url, clock, keys(8), rng).await;
    let why = other.err().unwrap();
    assert!(matches!(why, OpenError::SealKeys(_)), "{why}");
    assert!(why.to_string().contains("--data-keys"), "{why}");

    let later =
        "-- ledger.a_later_release\nINSERT INTO red_envelope.migration (number) VALUES (99)";
    place.server.sql(place.database(), later);
    let why = open_at(&place.url, &world.clock).await.err().unwrap();
    assert!(
        matches!(why, OpenError::UnknownSchema { found: 99, .. }),
        "{why}"
    );

    let forgetful = "options=-csynchronous_commit%3Doff";
    let url = format!("{}?{forgetful}", place.server.database());
    let why = open_at(&url, &world.clock).await.err().unwrap();
    assert!(matches!(why, OpenError::Forgetful(_)), "{why}");

    for (address, expected) in [
        ("postgresql://red@127.0.0.1/db?sslmode=require", "TLS"),
        ("postgresql://127.0.0.1", "name a user and a database"),
        ("postgresql://red@[::1/db", "can't be read"),
    ] {
        let why = open_at(address, &world.clock).await.err().unwrap();
        assert!(why.to_string().contains(expected), "{address}: {why}");
    }
}

/// Posts share after share until there is no answer. Answers the share that had none.
async fn post_until_unanswered(
    ledger: Arc<PostgresLedger>,
    id: EnvelopeId,
    shares: std::ops::Range<u32>,
    answered: mpsc::UnboundedSender<u32>,
) -> Option<u32> {
    for share in shares {
        let item = pay(id, share, &format!("g{share}"), 10);
        if ledger.settle(FIRST, vec![item]).await.is_err() {
            return Some(share);
        }
        answered.send(share).unwrap();
    }
    None
}

/// Tasks that post at once, and how many shares each may get to.
const POSTERS: u32 = 8;
const SHARES_EACH: u32 = 400;

/// Posts until the server dies in the middle, and starts it again. Answers which shares were answered, and
/// which were not.
async fn until_struck(
    mut server: PostgresServer,
    ledger: &Arc<PostgresLedger>,
    id: EnvelopeId,
    life: u32,
) -> (PostgresServer, BTreeSet<u32>, BTreeSet<u32>) {
    let (told, mut heard) = mpsc::unbounded_channel();
    let mut posters = Vec::new();
    for poster in 0..POSTERS {
        let from = (life * POSTERS + poster) * SHARES_EACH;
        let shares = from..from + SHARES_EACH;
        let post = post_until_unanswered(Arc::clone(ledger), id, shares, told.clone());
        posters.push(tokio::spawn(post));
    }
    drop(told);
    // It dies while they all go on.
    let (mut answered, mut unanswered) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..50 {
        answered.insert(heard.recv().await.unwrap());
    }
    let strike = move || {
        server.crash();
        server
    };
    let server = tokio::task::spawn_blocking(strike).await.unwrap();
    for poster in posters {
        unanswered.extend(poster.await.unwrap());
    }
    while let Some(share) = heard.recv().await {
        answered.insert(share);
    }
    (server, answered, unanswered)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_there_after_a_kill_in_the_middle() {
    let mut server = tokio::task::spawn_blocking(|| PostgresServer::start(Release::Debian, &[]))
        .await
        .unwrap();
    let url = server.database();
    let clock = ManualClock::at(NOON_MS);
    let ledger = Arc::new(open_at(&url, &clock).await.unwrap());
    let world = World {
        ledger: Arc::clone(&ledger) as Arc<dyn Ledger>,
        clock,
    };
    let id = world.live(100_000, 10_000, "e1").await;
    let (mut answered, mut unanswered) = (BTreeSet::new(), BTreeSet::new());
    for life in 0..3 {
        let told = until_struck(server, &ledger, id, life).await;
        server = told.0;
        answered.extend(told.1);
        unanswered.extend(told.2);
    }
    assert!(
        !unanswered.is_empty(),
        "no call was under way when the server died"
    );
    // Who had no answer repeats; who had one has the money.
    let asked: Vec<u32> = answered.union(&unanswered).copied().collect();
    let items = asked
        .iter()
        .map(|share| pay(id, *share, &format!("g{share}"), 10));
    let verdicts = world.settle(items.collect()).await;
    for (share, verdict) in asked.iter().zip(verdicts) {
        assert!(
            verdict == Settled::Duplicate || unanswered.contains(share),
            "{share}: {verdict:?}"
        );
    }
    let settled = world.envelope(id).await.settled_count;
    assert_eq!(usize::try_from(settled).unwrap(), asked.len());
    let first = format!("g{}", answered.first().unwrap());
    let (rows, _) = ledger
        .balances(tenant(), person(&first), Vec::new())
        .await
        .unwrap();
    assert_eq!(
        (rows[0].currency, rows[0].available_minor),
        (cny(0).currency, 10)
    );
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_pay_the_same_people_from_other_envelopes_all_end() {
    let (first, place) = world().await;
    let mut ledgers: Vec<Arc<dyn Ledger>> = vec![Arc::clone(&first.ledger)];
    for other in others(&place.url, &first.clock).await {
        ledgers.push(other);
    }
    for round in 0..5 {
        let mut ids = Vec::new();
        for number in 0..PROCESSES {
            ids.push(first.live(3_000, 300, &format!("e{round}-{number}")).await);
        }
        let mut posts = Vec::new();
        for (number, ledger) in ledgers.iter().enumerate() {
            // Some of them have no account yet, and each batch names them in another order.
            let mut people: Vec<u32> = (0..300).map(|person| person + round * 50).collect();
            people.rotate_left(number * 70);
            if number % 2 == 1 {
                people.reverse();
            }
            let mut items = Vec::new();
            for (share, who) in (0..).zip(people) {
                items.push(pay(ids[number], share, &format!("g{who}"), 10));
            }
            posts.push(ledger.settle(FIRST, items));
        }
        for verdicts in futures_util::future::try_join_all(posts).await.unwrap() {
            assert!(verdicts.iter().all(|verdict| *verdict == Settled::Paid));
        }
    }
    // In all five rounds, by all processes.
    let of_all_rounds = i64::try_from(PROCESSES).unwrap() * 50;
    assert_eq!(first.has("g250").await, (of_all_rounds, 0));
    first.audit().await;
}

/// Until a look at the settings has found them well, or not.
async fn until(ledger: &PostgresLedger, well: bool) {
    for _ in 0..100_000 {
        let _seen = ledger.lease("a".to_owned(), 5_000).await;
        if ledger.ready().is_ok() == well {
            return;
        }
    }
    panic!("the settings were never found to be so");
}

#[tokio::test]
async fn a_server_that_would_forget_is_written_to_no_more() {
    let server = tokio::task::spawn_blocking(|| PostgresServer::start(Release::Debian, &[]));
    let server = server.await.unwrap();
    let url = server.database();
    let clock = ManualClock::at(NOON_MS);
    let ledger = Arc::new(open_at(&url, &clock).await.unwrap());
    let world = World {
        ledger: Arc::clone(&ledger) as Arc<dyn Ledger>,
        clock,
    };
    world.deposit("alice", 100, "d1").await;
    for setting in ["synchronous_commit", "fsync", "full_page_writes"] {
        let turn = |value| {
            server.sql("postgres", &format!("ALTER SYSTEM SET {setting} = {value}"));
            server.sql("postgres", "-- ledger.reload\nSELECT pg_reload_conf()");
        };
        turn("off");
        // Sessions read the new settings before their next statement, or the one after it.
        until(&ledger, false).await;
        let why = ledger.ready().unwrap_err();
        assert!(why.contains(setting), "{why}");
        let transfer = transfer("alice", 1, setting);
        let refusal = ledger.deposit(transfer.clone()).await;
        assert!(
            matches!(&refusal, Err(LedgerError::Unavailable(told)) if *told == why),
            "{refusal:?}"
        );
        turn("on");
        until(&ledger, true).await;
        assert!(!ledger.deposit(transfer).await.unwrap().replayed);
    }
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_somebody_holds_keeps_no_envelope_from_becoming_live() {
    let (world, place) = world().await;
    world.deposit("alice", 1_000, "d").await;
    let held = world.live(100, 4, "e1").await;
    let new = world.fund(draft("alice", 100, 4), "f1").await.id;
    let (mut client, connection) = tokio_postgres::connect(&place.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    // A settler that stopped in the middle of its transaction.
    let tx = client.transaction().await.unwrap();
    let lock = "-- ledger.test_hold\nSELECT 1 FROM red_envelope.envelope WHERE id = $1 FOR UPDATE";
    tx.query_one(lock, &[&&held.to_bytes()[..]]).await.unwrap();
    let marks = [held, new].map(|id| world.ledger.mark_live(id));
    for row in futures_util::future::join_all(marks).await {
        assert_eq!(row.unwrap().state, BookState::Live);
    }
    tx.rollback().await.unwrap();
}
