//! Gathering beside whoever else writes to the same envelopes.

use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};

use super::super::open;
use super::{Place, open_at, world};
use crate::domain::envelope::{BookState, CloseReason};
use crate::domain::id::EnvelopeId;
use crate::ledger::conformance::{FIRST, act, pay};
use crate::ledger::{Ledger, Settled};

/// Nobody looks for a deadlock: who is in one waits in vain for its lock, and its call ends with an error.
const UNDETECTED: &str = "1h";
/// How often a test looks whether a call waits already, of some ten milliseconds each.
const LOOKS_MAX: usize = 3_000;

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

/// A transaction that holds what its statements locked, or wrote, until it ends.
struct Held {
    client: tokio_postgres::Client,
}

impl Held {
    /// Of an envelope's row, by SQL that names it `$1`.
    async fn by(place: &Place, id: EnvelopeId, statements: &[&str]) -> Self {
        let (client, connection) = tokio_postgres::connect(&place.url, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        let begin = "-- ledger.test_begin\nBEGIN; SET search_path = red_envelope";
        client.batch_execute(begin).await.unwrap();
        for statement in statements {
            let done = client.execute(*statement, &[&&id.to_bytes()[..]]).await;
            assert_eq!(done.unwrap(), 1, "{statement}");
        }
        Self { client }
    }

    async fn commits(self) {
        let commit = "-- ledger.test_commit\nCOMMIT";
        self.client.batch_execute(commit).await.unwrap();
    }
}

/// As settling and everything else does that changes an envelope.
const LOCK_AS_WHO_SETTLES: &str =
    "-- ledger.test_settles\nSELECT 1 FROM envelope WHERE id = $1 FOR NO KEY UPDATE";
const SETTLE: &str =
    "-- ledger.test_settle\nUPDATE envelope SET settled_count = settled_count + 1 WHERE id = $1";
/// As who begins to close, or freezes.
const LOCK_AS_WHO_ENDS: &str =
    "-- ledger.test_ends\nSELECT 1 FROM envelope WHERE id = $1 FOR UPDATE";
const GATHER: &str = "-- ledger.test_gathers
    INSERT INTO gathered (envelope_row)
    SELECT row FROM envelope WHERE id = $1 FOR KEY SHARE";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gathering_waits_for_nobody_who_settles_what_was_won() {
    let (world, place) = world().await;
    let id = world.live_in(2, (100, 4), "e1").await;
    let settling = Held::by(&place, id, &[LOCK_AS_WHO_SETTLES, SETTLE]).await;
    assert!(world.ledger.gather(id).await.unwrap().gathered);
    settling.commits().await;
    assert!(world.envelope(id).await.gathered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_to_a_gathered_envelope_waits_for_nobody_who_holds_its_row() {
    let (world, place) = world().await;
    let id = world.live_in(2, (100, 4), "e1").await;
    assert!(world.ledger.gather(id).await.unwrap().gathered);
    let ending = Held::by(&place, id, &[LOCK_AS_WHO_ENDS]).await;
    assert!(world.ledger.gather(id).await.unwrap().gathered);
    ending.commits().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_that_somebody_closes_or_freezes_first_is_not_gathered_by_who_waited() {
    let (world, place) = world().await;
    for (request, change) in [
        (
            "e1",
            "-- ledger.test_close
             UPDATE envelope SET state = 'closing', reason = 'recalled' WHERE id = $1",
        ),
        (
            "e2",
            "-- ledger.test_freeze\nUPDATE envelope SET frozen = true WHERE id = $1",
        ),
    ] {
        let id = world.live_in(2, (100, 4), request).await;
        let ending = Held::by(&place, id, &[LOCK_AS_WHO_ENDS, change]).await;
        let ledger = Arc::clone(&world.ledger);
        let waiting = tokio::spawn(async move { ledger.gather(id).await });
        until_one_waits(&place, "gather");
        ending.commits().await;
        let row = waiting.await.unwrap().unwrap();
        assert!(!row.gathered, "{row:?}");
        assert!(row.frozen || row.state == BookState::Closing(CloseReason::Recalled));
        assert!(!world.envelope(id).await.gathered);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_begins_to_close_while_somebody_gathers_waits_and_knows_of_it() {
    let (world, place) = world().await;
    let id = world.live_in(2, (100, 4), "e1").await;
    let gathering = Held::by(&place, id, &[GATHER]).await;
    let closes: Vec<_> = (0..2)
        .map(|_| {
            let ledger = Arc::clone(&world.ledger);
            tokio::spawn(async move { ledger.begin_close(id, CloseReason::Recalled).await })
        })
        .collect();
    until_one_waits(&place, "hold_envelope");
    gathering.commits().await;
    for close in closes {
        let row = close.await.unwrap().unwrap();
        let closing = BookState::Closing(CloseReason::Recalled);
        assert_eq!((row.state, row.gathered), (closing, true));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_freezes_while_somebody_gathers_waits_for_that() {
    let (world, place) = world().await;
    let id = world.live_in(2, (100, 4), "e1").await;
    let gathering = Held::by(&place, id, &[GATHER]).await;
    let ledger = Arc::clone(&world.ledger);
    let freeze = tokio::spawn(async move { ledger.freeze(id, act("freeze", id)).await });
    until_one_waits(&place, "hold_envelope");
    gathering.commits().await;
    assert!(!freeze.await.unwrap().unwrap(), "it was not frozen before");
    let row = world.envelope(id).await;
    assert!(row.frozen && row.gathered);
}

/// As the release before keeps the mark, which does not know what is recorded afterwards.
#[tokio::test]
async fn books_with_a_dealt_envelope_that_is_open_are_not_migrated_before_it_is_closed() {
    let (world, place) = world().await;
    let id = world.live_in(2, (100, 4), "e1").await;
    let row = world.envelope(id).await.row;
    place.in_books(BEFORE_0008);
    let migrates = || open::migrate(&place.url, None);
    let refused = migrates().await.unwrap_err().to_string();
    assert!(refused.contains("hot.stripe_above_shares"), "{refused}");
    place.in_books(CLOSED);
    assert_eq!(migrates().await.unwrap(), 1);
    let kept = place.in_books("-- ledger.test_kept\nSELECT envelope_row FROM gathered");
    assert_eq!(kept, row.to_string());
    assert!(world.envelope(id).await.gathered);
}

/// By a process of the release before, which deals: also where midnight has come, and with it the next day's rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_are_books_in_which_one_is_being_funded_meanwhile() {
    for midnight in [false, true] {
        let (world, place) = world().await;
        let id = world.live_in(2, (100, 4), "e1").await;
        place.in_books(BEFORE_0008);
        place.in_books(CLOSED);
        if midnight {
            place.in_books(OF_TOMORROW);
        }
        let funding = Held::by(&place, id, &[FUND_ANOTHER]).await;
        let url = place.url.clone();
        let migrates = tokio::spawn(async move { open::migrate(&url, None).await });
        until_one_waits(&place, "migrate_0008");
        funding.commits().await;
        let refused = migrates.await.unwrap().unwrap_err().to_string();
        assert!(refused.contains("hot.stripe_above_shares"), "{refused}");
    }
}

/// What the migration makes is not there, and the mark is.
const BEFORE_0008: &str = "-- ledger.test_before
    DROP TABLE gathered;
    DROP FUNCTION refuse_gathered;
    DROP TRIGGER envelope_is_gathered_elsewhere ON envelope;
    UPDATE envelope SET gathered = true;
    DELETE FROM migration WHERE number > 7;";
const CLOSED: &str = "-- ledger.test_closed
    UPDATE envelope SET state = 'closed', reason = 'recalled', closed_at = 1, refunded_minor = funded_minor;";
const OF_TOMORROW: &str = "-- ledger.test_tomorrow
    INSERT INTO envelope (row, id, day, tenant, sender, currency, terms, leaf_number, share_count, funded_minor, state,
        reason, created_at, expires_at, closed_at, refunded_minor)
    SELECT row + (1::bigint << 40), decode(repeat('02', 16), 'hex'), day, tenant, sender, currency, terms, 902,
        share_count, funded_minor, state, reason, created_at, expires_at, closed_at, refunded_minor FROM envelope";
const FUND_ANOTHER: &str = "-- ledger.test_fund
    INSERT INTO envelope (row, id, day, tenant, sender, currency, terms, leaf_number, share_count, funded_minor, state,
        created_at, expires_at)
    SELECT row + 1, decode(repeat('01', 16), 'hex'), day, tenant, sender, currency, terms, 901, share_count,
        funded_minor, 'live', created_at, expires_at FROM envelope WHERE id = $1";

fn until_one_waits(place: &Place, statement: &str) {
    let waiting = format!(
        "-- ledger.test_who_waits
         SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database()
             AND query LIKE '-- ledger.{statement}%' AND wait_event_type = 'Lock'"
    );
    let waits = || place.server.sql(place.database(), &waiting) == "t";
    assert!((0..LOOKS_MAX).any(|_| waits()), "nobody waits");
}
