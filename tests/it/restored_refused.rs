//! When books do not begin anew: they are served, there are none, or nobody says why.

use std::process::Command;

use crate::harness::fleet::{Fleet, until};
use crate::harness::server::PROGRAM;
use crate::harness::{Start, World};

/// Has the leases of a table run for an hour, once this is answered: on a busy machine a process may be held up
/// for longer than its own run.
async fn long_leases(fleet: &Fleet, table: &str) {
    fleet.ask_the_books(&format!(
        "CREATE FUNCTION red_envelope.lengthen() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN NEW.until := NEW.until + interval '1 hour'; RETURN NEW; END $$;
         CREATE TRIGGER lengthen BEFORE INSERT OR UPDATE ON red_envelope.{table}
             FOR EACH ROW EXECUTE FUNCTION red_envelope.lengthen()"
    ));
    let long = format!(
        "SELECT count(*) FROM red_envelope.{table} WHERE until > now() + interval '30 minutes'"
    );
    let renewed = async || fleet.ask_the_books(&long) == "1";
    until("the lease is a long one", renewed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn books_that_are_served_do_not_begin_anew() {
    let fleet = Fleet::of(1).await;
    long_leases(&fleet, "settle_lease").await;
    let beside = tempfile::tempdir().unwrap();
    // A folder of its own, as another host has: only the lease tells.
    let folder = beside.path().join("data").display().to_string();
    let refused = tokio::task::block_in_place(|| {
        Command::new(PROGRAM)
            .args(["restored", "--operator", "olga", "--reason", "a mistake"])
            .args(["--data-dir", &folder])
            .args(fleet.flags())
            .output()
            .unwrap()
    });
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(64), "{why}");
    assert!(why.contains("a process serves these books"), "{why}");

    let embedded = World::new().await;
    let refused = tokio::task::block_in_place(|| embedded.server.restored(&[]));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(64), "{why}");
    assert!(why.contains("in use by another red-envelope"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn books_that_are_only_served_do_not_begin_anew() {
    let mut fleet = Fleet::of(0).await;
    let api = Start {
        flags: vec!["--role".to_owned(), "api".to_owned()],
        ..Start::default()
    };
    fleet.join(api).await;
    long_leases(&fleet, "serve_lease").await;
    let beside = tempfile::tempdir().unwrap();
    let folder = beside.path().join("data").display().to_string();
    let begin = || {
        Command::new(PROGRAM)
            .args(["restored", "--operator", "olga", "--reason", "a mistake"])
            .args(["--data-dir", &folder])
            .args(fleet.flags())
            .output()
            .unwrap()
    };
    let refused = tokio::task::block_in_place(begin);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(64), "{why}");
    assert!(why.contains("a process serves these books"), "{why}");
    // It ends its lease when it ends.
    let flags = fleet.flags();
    assert!(fleet.processes[0].server.stop().await.success());
    let begun = tokio::task::block_in_place(|| fleet.processes[0].server.restored(&flags));
    let why = String::from_utf8_lossy(&begun.stderr).into_owned();
    assert_eq!(begun.status.code(), Some(0), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_into_which_nothing_was_restored_is_not_begun() {
    let mut fleet = Fleet::of(1).await;
    fleet.processes[0].server.stop().await;
    let database = fleet.database().to_owned();
    let refused = tokio::task::block_in_place(|| {
        for act in ["DROP", "CREATE"] {
            fleet
                .postgres
                .sql("postgres", &format!("{act} DATABASE {database}"));
        }
        fleet.processes[0].server.restored(&fleet.flags())
    });
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(64), "{why}");
    assert!(why.contains("there are no books in the database"), "{why}");
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'red_envelope'";
    let schemas = tokio::task::block_in_place(|| fleet.postgres.sql(&database, schemas));
    assert_eq!(schemas.trim(), "0");
}

#[test]
fn an_act_without_a_reason_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let long = "x".repeat(257);
    for reason in ["", "a\nb", "a\u{202e}b", long.as_str()] {
        let refused = Command::new(PROGRAM)
            .args(["restored", "--operator", "olga", "--reason", reason])
            .args(["--data-dir".as_ref(), data.as_os_str()])
            .output()
            .unwrap();
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(64), "{why}");
        assert!(why.contains("--reason must be 1 to 256 bytes"), "{why}");
    }
    assert!(!data.exists());
}

#[test]
fn a_folder_without_books_is_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let refused = Command::new(PROGRAM)
        .args(["restored", "--operator", "olga", "--reason", "a mistake"])
        .args(["--data-dir".as_ref(), folder.path().as_os_str()])
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(64), "{why}");
    assert!(why.contains("there are no books in"), "{why}");
    assert!(!folder.path().join("ledger.sqlite").exists());
}
