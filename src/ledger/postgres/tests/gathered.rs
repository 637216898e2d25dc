//! Gathering beside whoever else writes to the same envelopes.

use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};

use super::{open_at, world};
use crate::domain::envelope::{BookState, CloseReason};
use crate::ledger::conformance::{FIRST, act, pay};
use crate::ledger::{Ledger, Settled};

/// Nobody looks for a deadlock: who is in one waits in vain for its lock, and its call ends with an error.
const UNDETECTED: &str = "1h";
/// How often a test looks whether a call waits already, of some ten milliseconds each.
const LOOKS_MAX: usize = 3_000;
/// Calls that wait for a row that they want to gather.
const WAITING: &str = "-- ledger.gathers_wait
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND query LIKE '-- ledger.gather%' AND wait_event_type = 'Lock'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gathering_beside_closes_marks_and_batches_of_the_same_envelopes_ends_for_all() {
    let (world, place) = world().await;
    let undetected = format!(
        "-- ledger.undetected\nALTER DATABASE \"{}\" SET deadlock_timeout = '{UNDETECTED}'",
        place.database()
    );
    place.server.sql(place.database(), &undetected);
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(open_at(&place.url, &world.clock).await.unwrap());
    }
    let [gatherer, other, settler] = &processes[..] else {
        panic!("there are three");
    };
    for round in 0..4 {
        let mut ids = Vec::new();
        for number in 0..12 {
            let request = format!("e{round}-{number}");
            ids.push(world.live_in(2, (400, 40), &request).await);
        }
        let gathers = ids.iter().map(|id| gatherer.gather(*id));
        let backwards = ids.iter().rev().map(|id| other.gather(*id));
        let gathers = join_all(gathers.chain(backwards));
        let closes = ids.iter().step_by(3);
        let closes = closes.map(|id| other.begin_close(*id, CloseReason::Recalled));
        let freezes = ids.iter().skip(1).step_by(3);
        let freezes = freezes.map(|id| gatherer.freeze(*id, act("freeze", *id)));
        let batch = |share: u32| {
            let who = format!("g{share}");
            let mut items: Vec<_> = ids.iter().map(|id| pay(*id, share, &who, 10)).collect();
            items.rotate_left(share as usize);
            settler.settle(FIRST, items)
        };
        let batches = try_join_all((0..8).map(batch));
        let (answers, closed, frozen, verdicts) = tokio::join!(
            gathers,
            try_join_all(closes),
            try_join_all(freezes),
            batches
        );
        closed.unwrap();
        frozen.unwrap();
        let good = |verdict: &Settled| matches!(verdict, Settled::Paid | Settled::Parked);
        assert!(verdicts.unwrap().iter().flatten().all(good));
        for answer in answers {
            let row = answer.unwrap();
            let stands = world.envelope(row.id).await;
            assert_eq!(row.gathered, stands.gathered, "an answer stands");
            let over = matches!(row.state, BookState::Closing(_));
            assert!(row.gathered || over || row.frozen, "{row:?}");
        }
    }
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_to_a_gathered_envelope_waits_for_nobody_who_holds_its_row() {
    let (world, place) = world().await;
    let id = world.live_in(2, (100, 4), "e1").await;
    assert!(world.ledger.gather(id).await.unwrap().gathered);
    let (mut client, connection) = tokio_postgres::connect(&place.url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let tx = client.transaction().await.unwrap();
    let lock = "-- ledger.test_hold\nSELECT 1 FROM red_envelope.envelope WHERE id = $1 FOR UPDATE";
    tx.query_one(lock, &[&&id.to_bytes()[..]]).await.unwrap();
    assert!(world.ledger.gather(id).await.unwrap().gathered);
    tx.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_that_somebody_closes_or_freezes_first_is_not_gathered_by_who_waited() {
    let (world, place) = world().await;
    for (request, change) in [
        ("e1", "state = 'closing', reason = 'recalled'"),
        ("e2", "frozen = true"),
    ] {
        let id = world.live_in(2, (100, 4), request).await;
        let (mut client, connection) = tokio_postgres::connect(&place.url, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        let tx = client.transaction().await.unwrap();
        let first = format!(
            "-- ledger.test_first\nUPDATE red_envelope.envelope SET {change} WHERE id = $1"
        );
        tx.execute(&first, &[&&id.to_bytes()[..]]).await.unwrap();
        let ledger = Arc::clone(&world.ledger);
        let waiting = tokio::spawn(async move { ledger.gather(id).await });
        let mut looks = 0;
        while place.server.sql(place.database(), WAITING) != "1" {
            looks += 1;
            assert!(looks < LOOKS_MAX, "nobody waits");
        }
        tx.commit().await.unwrap();
        let row = waiting.await.unwrap().unwrap();
        assert!(!row.gathered, "{row:?}");
        assert!(row.frozen || row.state == BookState::Closing(CloseReason::Recalled));
        assert!(!world.envelope(id).await.gathered);
    }
}
