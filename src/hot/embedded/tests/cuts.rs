//! The log is cut behind what is settled and copied, and nowhere else; removed envelopes leave
//! nothing on the disk.

use std::path::Path;

use super::{CRAMPED, Embedded};
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::Outcome;
use crate::hot::HotStore;
use crate::hot::conformance::stage::{Cast, Stage, outcome, won};

const SHARES: usize = 3_000;

fn count(path: &Path, sql: &str) -> i64 {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

const ROWS: &str = "-- hot.count_rows\nSELECT count(*) FROM log";
const FLOOR: &str = "-- hot.see_floor\nSELECT seq FROM floor";
const HEADERS: &str = "-- hot.count_headers\nSELECT count(*) FROM envelope";
const PARTS: &str = "-- hot.count_parts\nSELECT count(*) FROM part";

/// Grabs by calls of ten, so that there are many rows.
async fn grab_some(stage: &Embedded, cast: &Cast, numbers: std::ops::Range<u32>) {
    let names: Vec<_> = numbers.map(|number| format!("g{number}")).collect();
    for ten in names.chunks(10) {
        let grabs = ten.iter().map(|name| cast.grab_by(name)).collect();
        for reply in stage.store.grab(grabs).await.unwrap() {
            won(reply);
        }
    }
}

#[tokio::test]
async fn the_log_is_cut_once_it_is_settled_and_the_grabs_are_still_there() {
    let mut stage = Embedded::new(CRAMPED);
    let cast = Cast::lucky(&[3; SHARES]);
    cast.publish(&*stage.store).await;
    for round in 0..10 {
        grab_some(&stage, &cast, round * 200..(round + 1) * 200).await;
        cast.settle_all(&*stage.store).await;
    }
    stage.store.shutdown().await;
    let rows = count(&stage.path(), ROWS);
    assert!(rows < 30, "{rows} rows are left of 200");
    assert!(count(&stage.path(), FLOOR) > 170);
    assert_eq!(count(&stage.path(), HEADERS), 1);
    stage.reopen_copy();
    for number in 0..2_000_u32 {
        let reply = outcome(cast.grab(&*stage.store, &format!("g{number}")).await);
        assert!(
            matches!(reply, Outcome::AlreadyGrabbed(g) if g.share == number),
            "{reply:?}"
        );
    }
    grab_some(&stage, &cast, 2_000..3_000).await;
    let view = stage.store.view(vec![cast.id]).await.unwrap();
    let state = view[0].as_ref().map(|view| view.state);
    assert_eq!(state, Some(HotState::Over(CloseReason::Empty)));
}

#[tokio::test]
async fn a_row_that_is_not_settled_is_never_cut_away() {
    let mut stage = Embedded::new(CRAMPED);
    let cast = Cast::lucky(&[3; SHARES]);
    cast.publish(&*stage.store).await;
    grab_some(&stage, &cast, 0..2_000).await;
    stage.store.shutdown().await;
    assert!(count(&stage.path(), ROWS) >= 200);
    stage.reopen_copy();
    assert_eq!(cast.debts(&*stage.store).await.len(), 2_000);
}

#[tokio::test]
async fn a_removed_envelope_leaves_nothing_on_the_disk() {
    let mut stage = Embedded::new(CRAMPED);
    let cast = Cast::lucky(&[3; SHARES]);
    for life in 0..2 {
        // The second life under the same id meets nothing of the first.
        cast.publish(&*stage.store).await;
        grab_some(&stage, &cast, life..3_000 + life).await;
        cast.settle_all(&*stage.store).await;
        stage.crash().await;
        cast.settle_all(&*stage.store).await;
        let under = stage.store.epochs();
        let removed = stage.store.remove(&under, vec![cast.id]).await;
        removed.unwrap();
        stage.store.shutdown().await;
        assert_eq!(count(&stage.path(), HEADERS), 0);
        stage.reopen_copy();
        let view = stage.store.view(vec![cast.id]).await.unwrap();
        assert!(view[0].is_none());
    }
    stage.store.shutdown().await;
    assert_eq!(count(&stage.path(), PARTS), 0);
}

#[tokio::test]
async fn a_clean_restart_offers_nothing_that_was_settled() {
    let mut stage = Embedded::new(super::Limits::default());
    let cast = Cast::lucky(&[3; 10]);
    cast.publish(&*stage.store).await;
    won(cast.grab(&*stage.store, "ann").await);
    cast.settle_all(&*stage.store).await;
    stage.store.shutdown().await;
    stage.reopen_copy();
    assert_eq!(cast.debts(&*stage.store).await, []);
    // After a crash it may be offered again, and settling it again is harmless.
    won(cast.grab(&*stage.store, "bob").await);
    cast.settle_all(&*stage.store).await;
    stage.crash().await;
    let offered = cast.debts(&*stage.store).await.len();
    assert!(offered <= 1);
    cast.settle_all(&*stage.store).await;
    assert_eq!(cast.debts(&*stage.store).await, []);
}
