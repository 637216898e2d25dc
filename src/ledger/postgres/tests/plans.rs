//! How PostgreSQL reaches the accounts of a batch.
//!
//! *Bounds.* A batch has some thousand accounts and the books have millions: each is reached by itself, also
//! by plans that a connection made when the books were new and nothing had analysed them.

use super::super::payees::{ADD, COUNT, FIND, LOCK};
use super::super::server_under_test::Release;
use super::world_on;

/// Accounts, and whether they were analysed: as on the day when books are opened, as in the first burst, and as
/// ever after. (Where three of three were analysed, all three are read, until they are analysed again.)
const BOOKS: [(u32, bool); 3] = [(3, false), (20_000, false), (20_000, true)];

/// What the index of all names must be asked for, to be asked for one account.
const BY_NAME: &str =
    "((owner = u.owner) AND (currency = $2) AND (tenant = $1) AND (kind = 'owner'::text))";
/// The same of the index of numbers, which is the smallest.
const BY_NUMBER: &str = "(\"row\" = u.\"row\")";
/// The same, for a row that was found before.
const FOUND_BY_NUMBER: &str = "(\"row\" = account.\"row\")";

/// The plan that a connection of the pool keeps.
fn plan(statement: &str, values: &str) -> String {
    format!(
        "SET search_path = red_envelope; SET plan_cache_mode = force_generic_plan;
         SET enable_seqscan = off; PREPARE asked AS {statement}; EXPLAIN EXECUTE asked ({values})"
    )
}

async fn accounts_are_reached_one_by_one(release: Release) {
    let (_world, place) = world_on(release).await;
    let sql = |statement: &str| place.server.sql(place.database(), statement);
    for (accounts, analysed) in BOOKS {
        sql(&format!(
            "-- ledger.accounts_to_plan_for
             INSERT INTO red_envelope.account (tenant, kind, owner, currency)
             SELECT 'default', 'owner', 'grabber-' || g, 'CNY'
             FROM generate_series(1, {accounts}) g ON CONFLICT DO NOTHING"
        ));
        if analysed {
            sql("VACUUM ANALYZE red_envelope.account");
        }
        let named = "'default', 'CNY', '{alice}'";
        let added = "'{1}', '{alice}', '{1}', '{true}', 5, 'default', 'CNY'";
        let counted = "'{1}', '{alice}', 'default', 'CNY'";
        let asked = [
            (FIND, named, vec![BY_NAME]),
            (LOCK, named, vec![FOUND_BY_NUMBER, BY_NAME]),
            (ADD, added, vec![BY_NUMBER]),
            (COUNT, counted, vec![BY_NUMBER]),
        ];
        for (statement, values, conditions) in asked {
            let plan = sql(&plan(statement, values));
            let mut reached: Vec<&str> = plan
                .lines()
                .filter_map(|line| line.trim().strip_prefix("Index Cond: "))
                .collect();
            reached.sort_unstable();
            assert_eq!(reached, conditions, "{accounts}: {plan}");
            let read =
                plan.matches(" on account").count() - plan.matches("Update on account").count();
            assert_eq!(read, conditions.len(), "{accounts}: {plan}");
        }
    }
}

#[tokio::test]
async fn a_batch_reaches_its_accounts_one_by_one_on_new_books_and_on_large_ones() {
    accounts_are_reached_one_by_one(Release::Debian).await;
}

#[tokio::test]
async fn a_batch_reaches_its_accounts_one_by_one_on_the_newest_release() {
    accounts_are_reached_one_by_one(Release::Eighteen).await;
}
