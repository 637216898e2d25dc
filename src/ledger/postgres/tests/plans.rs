//! How PostgreSQL reaches the rows of the busiest statements.

use super::super::payees::{ADD, COUNT};
use super::super::server_under_test::Release;
use super::world_on;

/// Accounts, so many that the planner has a choice.
const ACCOUNTS: u32 = 20_000;

/// The plan that a connection of the pool keeps.
fn plan(statement: &str, values: &str) -> String {
    format!(
        "SET search_path = red_envelope; SET plan_cache_mode = force_generic_plan;
         SET enable_seqscan = off; PREPARE asked AS {statement}; EXPLAIN EXECUTE asked ({values})"
    )
}

/// A row's number is eight bytes in a small index; the names fill the largest one of the books.
async fn accounts_whose_rows_are_known_are_found_by_number(release: Release) {
    let (_world, place) = world_on(release).await;
    let sql = |statement: &str| place.server.sql(place.database(), statement);
    sql(&format!(
        "-- ledger.accounts_to_plan_for
         INSERT INTO red_envelope.account (tenant, kind, owner, currency)
         SELECT 'default', 'owner', 'grabber-' || g, 'CNY' FROM generate_series(1, {ACCOUNTS}) g"
    ));
    sql("VACUUM ANALYZE red_envelope.account");
    let added = "'{1}', '{alice}', '{1}', '{true}', 5, 'default', 'CNY'";
    let counted = "'{1}', '{alice}', 'default', 'CNY'";
    for (statement, values) in [(ADD, added), (COUNT, counted)] {
        let plan = sql(&plan(statement, values));
        let by_number = "Index Scan using account_pkey on account a";
        assert!(plan.contains(by_number), "{plan}");
        assert!(!plan.contains("account_is_one"), "{plan}");
    }
}

#[tokio::test]
async fn balances_are_moved_by_the_number_of_their_row() {
    accounts_whose_rows_are_known_are_found_by_number(Release::Debian).await;
}

#[tokio::test]
async fn balances_are_moved_by_the_number_of_their_row_on_the_newest_release() {
    accounts_whose_rows_are_known_are_found_by_number(Release::Eighteen).await;
}
