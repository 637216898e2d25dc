//! Edits of the tables themselves by somebody who may disarm the schema: the audit names what was edited.

use std::sync::Arc;

use super::attacks::{scene, statements};
use super::{Place, world, world_at};
use crate::ledger::conformance::named;

/// Takes every check away. Triggers don't fire for a session of a replica.
const DISARM: &str = "
    DO $$ DECLARE its record; BEGIN
        FOR its IN SELECT conrelid::regclass AS place, conname AS name FROM pg_constraint
                WHERE contype = 'c' AND connamespace = 'red_envelope'::regnamespace
                ORDER BY coninhcount LOOP
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I', its.place, its.name);
        END LOOP;
    END $$";
const AS_A_REPLICA: &str = "SET search_path = red_envelope; SET session_replication_role = replica";

/// A new database with all that is in this one, to which nobody is connected any more.
fn copy_of(place: &Place) -> String {
    let (from, copy) = (place.database(), place.server.database());
    let to = copy.rsplit('/').next().unwrap();
    let leave = format!(
        "-- ledger.nobody_is_connected
         SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{from}'"
    );
    place.server.sql("postgres", &leave);
    place.server.sql("postgres", &format!("DROP DATABASE {to}"));
    let made = format!("CREATE DATABASE {to} TEMPLATE {from}");
    place.server.sql("postgres", &made);
    copy
}

#[tokio::test]
async fn an_edit_of_disarmed_tables_is_named_by_the_audit() {
    let (first, place) = world().await;
    let open = scene(&first).await;
    let open = (place.row(1), open);
    drop(first);
    place.server.sql(place.database(), DISARM);
    let edits = place.scripted(include_str!("edits.sql"));
    let edits = statements(&edits);
    assert_eq!(edits.len(), 37);
    for (expected, sql) in edits {
        let (kind, detail) = expected.split_once(' ').unwrap();
        let copy = copy_of(&place);
        let (world, edited) = world_at(&copy, Arc::clone(&place.server)).await;
        let edit = sql.trim_end().trim_end_matches(';');
        let edit = format!(
            "{AS_A_REPLICA}; WITH edited AS ({edit} RETURNING 1) SELECT count(*) FROM edited"
        );
        assert_ne!(edited.server.sql(edited.database(), &edit), "0", "{sql}");
        let found = named(&*world.ledger, open).await;
        let is_it = |(k, d): &(_, String)| format!("{k:?}") == kind && d.contains(detail);
        assert!(found.iter().any(is_it), "{expected}: {sql}: {found:#?}");
    }
}
