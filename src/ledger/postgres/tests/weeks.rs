//! Claims have a table a week.

use std::sync::Arc;

use super::super::open::{self, MIGRATIONS};
use super::{Place, Release, open_at, shared, world, world_at};
use crate::domain::id::UnixMs;
use crate::ledger::conformance::{NOON_MS, World, draft, fund, pay, person, tenant};
use crate::ledger::{Ledger as _, Period, Settled, TOTALS_ROWS_MAX};

const DAY_MS: i64 = 86_400_000;

/// The tables of claims and how many claims each has, by name.
fn tables(place: &Place) -> Vec<(String, usize)> {
    let all = "-- ledger.tables_of_claims
        SELECT i.inhrelid::regclass, count(c.row)
        FROM pg_inherits i LEFT JOIN red_envelope.claim c ON c.tableoid = i.inhrelid
        WHERE i.inhparent = 'red_envelope.claim'::regclass GROUP BY 1";
    let told = place.server.sql(place.database(), all);
    let told = told.lines().map(|line| line.split_once('|').unwrap());
    let named = told.map(|(name, count)| {
        let name = name.trim_start_matches("red_envelope.claim_");
        (name.to_owned(), count.parse().unwrap())
    });
    let mut all: Vec<_> = named.collect();
    all.sort();
    all
}

fn counted(tables: &[(&str, usize)]) -> Vec<(String, usize)> {
    let owned = tables
        .iter()
        .map(|(name, count)| ((*name).to_owned(), *count));
    owned.collect()
}

/// What bob received, the newest first, page by page of two.
async fn received(world: &World) -> Vec<i64> {
    let (mut amounts, mut before) = (Vec::new(), None);
    loop {
        let page = world.ledger.received(tenant(), person("bob"), before, 2);
        let page = page.await.unwrap();
        let Some(last) = page.last() else {
            return amounts;
        };
        before = Some(last.row);
        amounts.extend(page.iter().map(|row| row.share.grant.amount_minor));
    }
}

#[tokio::test]
async fn a_weeks_claims_lie_in_its_own_table_and_a_history_is_of_all_weeks() {
    let (world, place) = world().await;
    let mut paid = Vec::new();
    // Day 20780 is the fifth of its week: 2026-11-19 to 2026-11-25.
    for (amount, days) in (10..).zip([0, 1, 1, 1, 7]) {
        world.clock.advance_ms(days * DAY_MS);
        let id = world.live(100, 2, &format!("e{amount}")).await;
        paid.push(pay(id, 0, "bob", amount));
        assert_eq!(
            world.settle(vec![paid[paid.len() - 1].clone()]).await,
            [Settled::Paid]
        );
    }
    let weeks = [
        ("20261119", 3),
        ("20261126", 1),
        ("20261203", 1),
        ("before", 0),
    ];
    assert_eq!(tables(&place), counted(&weeks));
    assert_eq!(received(&world).await, [14, 13, 12, 11, 10]);
    // What was settled in any week is a duplicate for ever.
    assert_eq!(world.settle(paid).await, [Settled::Duplicate; 5]);
    world.audit().await;
}

#[tokio::test]
async fn the_table_of_a_week_is_there_on_the_last_day_of_the_one_before() {
    let (world, place) = world().await;
    world.live(100, 2, "e1").await;
    assert_eq!(tables(&place), counted(&[("20261119", 0), ("before", 0)]));
    world.clock.advance_ms(2 * DAY_MS);
    world.live(100, 2, "e2").await;
    let both = [("20261119", 0), ("20261126", 0), ("before", 0)];
    assert_eq!(tables(&place), counted(&both));
}

#[tokio::test]
async fn processes_that_begin_a_week_at_the_same_instant_make_one_table() {
    let (world, place) = world().await;
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(Arc::new(open_at(&place.url, &world.clock).await.unwrap()));
    }
    world.deposit("alice", 1_000, "d1").await;
    world.clock.advance_ms(28 * DAY_MS);
    let funds = others.iter().enumerate().map(|(at, process)| {
        let asked = fund(draft("alice", 100, 2), &format!("e{at}"));
        process.fund(asked)
    });
    for funded in futures_util::future::join_all(funds).await {
        funded.unwrap();
    }
    assert_eq!(tables(&place), counted(&[("20261217", 0), ("before", 0)]));
    world.audit().await;
}

#[tokio::test]
async fn books_of_the_release_before_go_on_with_a_table_a_week() {
    let server = tokio::task::spawn_blocking(|| shared(Release::Debian)).await;
    let server = server.unwrap();
    let url = server.database();
    let mut client = open::connect(&open::pool(&url).unwrap()).await.unwrap();
    open::migrate_to(&mut client, &MIGRATIONS[..3])
        .await
        .unwrap();
    // That release gave rows without a day. This one works on its tables, so what it needs is there meanwhile.
    client.batch_execute(MIGRATIONS[4]).await.unwrap();
    let as_it = "-- ledger.rows_as_before
        CREATE FUNCTION claims_of_day(day integer) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint';
        INSERT INTO migration (number) VALUES (4), (5);";
    client.batch_execute(as_it).await.unwrap();
    let (before, _place) = world_at(&url, Arc::clone(&server)).await;
    let old = before.live(100, 4, "e1").await;
    let first = pay(old, 0, "bob", 10);
    assert_eq!(before.settle(vec![first.clone()]).await, [Settled::Paid]);
    drop(before);
    let no_more = "-- ledger.rows_as_now
        DROP TABLE gathered;
        DROP FUNCTION refuse_gathered;
        ALTER TABLE envelope DROP COLUMN gathered CASCADE;
        CREATE TRIGGER envelope_stays_closed BEFORE UPDATE ON envelope
            FOR EACH ROW WHEN (OLD.state = 'closed') EXECUTE FUNCTION refuse();
        DROP INDEX parked_in_order;
        DROP FUNCTION claims_of_day;
        DROP TABLE made_good;
        DROP FUNCTION refuse_made_good CASCADE;
        DROP FUNCTION refuse_claims_of_made_good CASCADE;
        DELETE FROM migration WHERE number > 3;";
    client.batch_execute(no_more).await.unwrap();

    let (world, place) = world_at(&url, server).await;
    // Envelopes of before go on in their table, and nobody is paid twice.
    let more = vec![
        first,
        pay(old, 1, "bob", 11),
        pay(old, 0, "dan", 10),
        pay(old, 2, "dan", 12),
    ];
    let verdicts = world.settle(more).await;
    use Settled::{Capped, Duplicate, Paid, Superseded};
    assert_eq!(verdicts, [Duplicate, Superseded, Capped, Paid]);
    let new = world.live(100, 4, "e2").await;
    assert_eq!(
        world.settle(vec![pay(new, 3, "bob", 13)]).await,
        [Settled::Paid]
    );
    let both = [("20261119", 1), ("before", 2)];
    assert_eq!(tables(&place), counted(&both));
    assert_eq!(received(&world).await, [13, 10]);
    world.audit().await;
}

#[tokio::test]
async fn more_claims_than_one_call_adds_up_are_not_added_up() {
    let (world, place) = world().await;
    let id = world.live(100, 2, "e1").await;
    world.settle(vec![pay(id, 0, "bob", 10)]).await;
    let day = UnixMs(NOON_MS);
    let totals = async || {
        let period = Period {
            from: day,
            to: day.plus_ms(DAY_MS),
        };
        let asked = world.ledger.totals(tenant(), person("bob"), period);
        asked.await.unwrap().map(|totals| totals[0].received_count)
    };
    assert_eq!(totals().await, Some(1));
    // Claims of envelopes of the same week that nobody made.
    let more = format!(
        "-- ledger.many_claims
         SET session_replication_role = replica;
         INSERT INTO red_envelope.claim (row, envelope_row, share, posting_row, account_row, amount_minor,
             declined, granted_at)
         SELECT -g, envelope_row + g, 0, posting_row, account_row, 1, false, granted_at
         FROM red_envelope.claim, generate_series(1, {TOTALS_ROWS_MAX}) g"
    );
    place.server.sql(place.database(), &more);
    assert_eq!(totals().await, None);
}

#[tokio::test]
async fn more_envelopes_than_one_call_adds_up_are_not_added_up() {
    let (world, place) = world().await;
    world.live(100, 2, "e1").await;
    let day = UnixMs(NOON_MS);
    let totals = async || {
        let period = Period {
            from: day,
            to: day.plus_ms(DAY_MS),
        };
        let asked = world.ledger.totals(tenant(), person("alice"), period);
        asked.await.unwrap().map(|totals| totals[0].sent_count)
    };
    assert_eq!(totals().await, Some(1));
    // Of the release before, and long ago: none of them is of the period.
    let more = format!(
        "-- ledger.many_envelopes
         SET session_replication_role = replica;
         INSERT INTO red_envelope.envelope (row, id, day, tenant, sender, currency, terms, leaf_number,
             share_count, funded_minor, state, created_at, expires_at)
         SELECT -g, decode(lpad(to_hex(g), 32, '0'), 'hex'), 1, tenant, sender, currency, terms,
             1000 + g, 1, 1, 'live', 0, 0
         FROM red_envelope.envelope, generate_series(1, {TOTALS_ROWS_MAX}) g"
    );
    place.server.sql(place.database(), &more);
    assert_eq!(totals().await, None);
}
