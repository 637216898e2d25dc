//! A batch that PostgreSQL could not order beside others is done again, all of it, for as long as tries are left.

use std::sync::Arc;

use super::super::sql::TRIES_MAX;
use super::{Place, World, open_at, world};
use crate::domain::id::EnvelopeId;
use crate::ledger::conformance::{FIRST, pay};
use crate::ledger::{Ledger as _, LedgerError, SettleItem, Settled};

/// Records of a batch.
const RECORDS: u32 = 50;
/// How often PostgreSQL refuses a batch that is paid in the end.
const REFUSALS: u32 = 3;
/// What both codes are called, and the tables that a batch writes before its claims, with them, and after them.
const CODES: [&str; 2] = ["40001", "40P01"];
const TABLES: [&str; 4] = ["account", "envelope", "claim", "entry"];

/// Has PostgreSQL refuse so many statements on this table. What a sequence counts is not rolled back.
fn refuse(place: &Place, table: &str, code: &str, refusals: u32) {
    let install = format!(
        "-- ledger.refuse_some
         SET search_path = red_envelope;
         DROP SEQUENCE IF EXISTS refused CASCADE;
         CREATE SEQUENCE refused;
         GRANT USAGE ON SEQUENCE refused TO public;
         CREATE OR REPLACE FUNCTION refuse_some() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF nextval('red_envelope.refused') <= {refusals} THEN
                 RAISE EXCEPTION 'not now' USING ERRCODE = '{code}';
             END IF;
             RETURN NULL;
         END $$;
         DROP TRIGGER IF EXISTS refuse_some ON {table};
         CREATE TRIGGER refuse_some BEFORE INSERT OR UPDATE ON {table}
             FOR EACH STATEMENT EXECUTE FUNCTION refuse_some()"
    );
    place.server.sql(place.database(), &install);
}

/// Takes it away, and answers how many statements it saw.
fn seen(place: &Place, table: &str) -> u32 {
    let taken = format!(
        "-- ledger.refuse_no_more
         DROP TRIGGER refuse_some ON red_envelope.{table};
         SELECT last_value FROM red_envelope.refused"
    );
    place.server.sql(place.database(), &taken).parse().unwrap()
}

fn batch(id: EnvelopeId) -> Vec<SettleItem> {
    let shares = 0..RECORDS;
    shares
        .map(|share| pay(id, share, &format!("g{share}"), 1))
        .collect()
}

async fn is_paid_once(world: &World, id: EnvelopeId, batches: i64) {
    for share in 0..RECORDS {
        assert_eq!(world.has(&format!("g{share}")).await, (batches, 0));
    }
    assert_eq!(world.envelope(id).await.settled_count, RECORDS);
    let again = world.settle(batch(id)).await;
    assert!(again.iter().all(|verdict| *verdict == Settled::Duplicate));
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_could_not_be_ordered_is_done_again_and_paid_once() {
    let (world, place) = world().await;
    let mut batches = 0;
    for code in CODES {
        for table in TABLES {
            let name = format!("{code}-{table}");
            let id = world.live(i64::from(RECORDS), RECORDS, &name).await;
            refuse(&place, table, code, REFUSALS);
            let verdicts = world.settle(batch(id)).await;
            assert!(verdicts.iter().all(|verdict| *verdict == Settled::Paid));
            assert!(seen(&place, table) > REFUSALS, "{name}");
            batches += 1;
            is_paid_once(&world, id, batches).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_can_never_be_ordered_is_told_so_and_leaves_nothing_behind() {
    let (world, place) = world().await;
    let mut batches = 0;
    for code in CODES {
        let id = world.live(i64::from(RECORDS), RECORDS, code).await;
        refuse(&place, "entry", code, TRIES_MAX);
        let refused = world.ledger.settle(FIRST, batch(id)).await;
        let Err(LedgerError::Unavailable(why)) = refused else {
            panic!("{refused:?}");
        };
        assert!(why.contains(code), "{why}");
        assert_eq!(world.envelope(id).await.settled_count, 0);
        assert_eq!(world.has("g7").await, (batches, 0));
        // The next round finds PostgreSQL at ease.
        let verdicts = world.settle(batch(id)).await;
        assert!(verdicts.iter().all(|verdict| *verdict == Settled::Paid));
        assert_eq!(seen(&place, "entry"), TRIES_MAX + 1);
        batches += 1;
        is_paid_once(&world, id, batches).await;
    }
}

/// How long a batch waits for a lock before it looks for a deadlock, once: time enough for the other one to come.
const LOOKS_AFTER: &str = "5s";

/// Holds the account that a batch comes to last, waits until the batch waits for it, and then asks for one that
/// the batch holds. It never looks for a deadlock itself, so it is the batch that finds one, and gives way.
const CROSS: &str = "-- ledger.cross_a_batch
    SET deadlock_timeout = '1h';
    SET search_path = red_envelope;
    BEGIN;
    SELECT FROM account WHERE owner = 'g49' FOR UPDATE;
    DO $$
    BEGIN
        WHILE NOT EXISTS (SELECT FROM pg_stat_activity
                          WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))) LOOP
            PERFORM pg_sleep(0.01);
            PERFORM pg_stat_clear_snapshot();
        END LOOP;
        BEGIN
            PERFORM FROM account WHERE owner = 'g0' FOR UPDATE NOWAIT;
            RAISE EXCEPTION 'the batch does not hold its first account';
        EXCEPTION WHEN lock_not_available THEN NULL;
        END;
    END $$;
    UPDATE account SET available_minor = available_minor WHERE owner = 'g0';
    COMMIT";
/// Whether it holds its account.
const CROSSES: &str = "-- ledger.crosses
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND query LIKE '-- ledger.cross_a_batch%' AND wait_event = 'PgSleep'";
/// Looks until it does, of some ten milliseconds each.
const LOOKS_MAX: usize = 3_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_waits_for_who_waits_for_it_gives_way_and_is_paid_once() {
    let (world, place) = world().await;
    let id = world.live(i64::from(RECORDS), RECORDS, "first").await;
    let verdicts = world.settle(batch(id)).await;
    assert!(verdicts.iter().all(|verdict| *verdict == Settled::Paid));
    let id = world.live(i64::from(RECORDS), RECORDS, "second").await;
    let patient = format!(
        "-- ledger.patient\nALTER DATABASE \"{}\" SET deadlock_timeout = '{LOOKS_AFTER}'",
        place.database()
    );
    place.server.sql(place.database(), &patient);
    let ledger = open_at(&place.url, &world.clock).await.unwrap();
    let (server, database) = (Arc::clone(&place.server), place.database().to_owned());
    let crossing = tokio::task::spawn_blocking(move || server.try_sql(&database, CROSS));
    let mut looks = 0;
    while place.server.sql(place.database(), CROSSES) != "1" {
        looks += 1;
        assert!(looks < LOOKS_MAX, "nobody crosses");
    }
    let verdicts = ledger.settle(FIRST, batch(id)).await.unwrap();
    assert!(verdicts.iter().all(|verdict| *verdict == Settled::Paid));
    crossing.await.unwrap().unwrap();
    is_paid_once(&world, id, 2).await;
}
