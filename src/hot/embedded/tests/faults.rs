//! A full disk, torn and damaged files, files of others: acknowledged means present, and what is
//! not as it was written is refused.

use std::path::Path;
use std::sync::Arc;

use super::super::index::{Batch, Index};
use super::super::log::{HeaderRow, Log, OpenError};
use super::super::record::{Change, Row, What, encode};
use super::super::restart::restart;
use super::super::{EmbeddedStore, LOG_BYTES_MAX, Limits};
use super::{Embedded, beside};
use crate::clock::ManualClock;
use crate::domain::envelope::shares_checksum;
use crate::domain::grab::{GrabReply, Grant, Outcome};
use crate::domain::id::{EnvelopeId, UnixMs};
use crate::hot::conformance::stage::{Cast, NEW_YEAR_MS, outcome, person, won};
use crate::hot::{HotError, HotStore, LoadChunk};

fn open(path: &Path) -> Result<EmbeddedStore, OpenError> {
    let clock = Arc::new(ManualClock::at(NEW_YEAR_MS));
    EmbeddedStore::open(path, clock, Limits::default())
}

fn refusal(path: &Path) -> String {
    match open(path) {
        Ok(_) => panic!("the file must be refused"),
        Err(why) => why.to_string(),
    }
}

/// Publishes a thousand shares, has some taken, ends.
async fn played(path: &Path, grabs: usize) -> Cast {
    let cast = Cast::lucky(&[3; 1_000]);
    let store = open(path).unwrap();
    cast.publish(&store).await;
    for number in 0..grabs {
        won(cast.grab(&store, &format!("g{number}")).await);
    }
    store.shutdown().await;
    cast
}

#[tokio::test]
async fn a_full_disk_stops_the_store_and_keeps_what_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hot.db");
    let cast = played(&path, 3).await;

    let mut log = Log::open(&path, LOG_BYTES_MAX).unwrap();
    let (index, outbox) = restart(&mut log).unwrap();
    log.fill_disk().unwrap();
    let clock = Arc::new(ManualClock::at(NEW_YEAR_MS));
    let store = EmbeddedStore::start(log, index, outbox, clock, Limits::default());
    assert_eq!(store.ready(), Ok(()));
    let mut acknowledged = 3;
    let failed = loop {
        let grab = cast.grab_by(&format!("g{acknowledged}"));
        match store.grab(vec![grab]).await {
            Ok(replies) => won(replies[0]),
            Err(failed) => break failed,
        };
        acknowledged += 1;
    };
    assert!(matches!(failed, HotError::Stopped(_)), "{failed:?}");
    assert!(store.stopped().await.contains("full"), "it says why");
    assert!(store.ready().unwrap_err().contains("disk"));
    let again = store.grab(vec![cast.grab_by("g0")]).await;
    assert!(matches!(again, Err(HotError::Stopped(_))), "{again:?}");
    let view = store.view(vec![cast.id]).await;
    assert!(matches!(view, Err(HotError::Stopped(_))), "{view:?}");
    drop(store);

    let store = open(&path).unwrap();
    for number in 0..acknowledged {
        let reply = outcome(cast.grab(&store, &format!("g{number}")).await);
        let Outcome::AlreadyGrabbed(grant) = reply else {
            panic!("grab {number} was acknowledged, and now: {reply:?}");
        };
        assert_eq!(grant.share, number);
    }
    won(cast.grab(&store, &format!("g{acknowledged}")).await);
}

#[tokio::test]
async fn a_torn_write_loses_no_batch_but_the_last() {
    let mut stage = Embedded::new(Limits::default());
    let cast = Cast::lucky(&[3; 100]);
    cast.publish(&*stage.store).await;
    for number in 0..20 {
        won(cast.grab(&*stage.store, &format!("g{number}")).await);
    }
    let whole = std::fs::read(beside(&stage.path(), "-wal")).unwrap();
    let base = std::fs::read(stage.path()).unwrap();
    stage.reopen_copy();
    let held = stage.store.grants(cast.id, 0, 100).await.unwrap();
    assert_eq!(held.unwrap().len(), 20);

    // The same files, with the WAL cut anywhere: a prefix of the grabs, and never an error.
    let mut counts = Vec::new();
    for cut in (0..=whole.len()).rev().step_by(1_009) {
        let path = stage.folder.path().join("torn.db");
        std::fs::write(&path, &base).unwrap();
        std::fs::write(beside(&path, "-wal"), &whole[..cut]).unwrap();
        let store = open(&path).unwrap();
        let held = store.grants(cast.id, 0, 100).await.unwrap();
        let held = held.unwrap_or_default();
        for (number, share) in held.iter().enumerate() {
            assert_eq!(share.grabber, person(&format!("g{number}")));
        }
        counts.push(held.len());
        drop(store);
    }
    assert_eq!(counts[0], 20);
    assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
    assert_eq!(counts.last(), Some(&0));
}

#[tokio::test]
async fn a_flipped_bit_or_a_missing_row_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hot.db");
    played(&path, 5).await;
    let whole = std::fs::read(&path).unwrap();
    let edit = |sql: &str| {
        std::fs::write(&path, &whole).unwrap();
        let conn = rusqlite::Connection::open(&path).unwrap();
        assert_eq!(conn.execute(sql, []).unwrap(), 1);
    };
    edit("-- hot.damage\nUPDATE log SET body = CAST(zeroblob(40) AS BLOB) WHERE seq = 4");
    assert!(refusal(&path).contains("row 4 of the log"));
    edit("-- hot.lose\nDELETE FROM log WHERE seq = 5");
    assert!(refusal(&path).contains("row 5 of the log: it is missing"));
    edit("-- hot.lose\nDELETE FROM log WHERE seq = 1");
    assert!(refusal(&path).contains("row 1 of the log: it is missing"));
    edit("-- hot.misplace\nUPDATE log SET seq = 1000 WHERE seq = 7");
    assert!(refusal(&path).contains("row 7 of the log: it is missing"));
    std::fs::write(&path, &whole).unwrap();
    assert!(open(&path).is_ok());
}

#[test]
fn a_log_that_gives_a_share_or_a_grabber_twice_is_refused_by_name() {
    let cast = Cast::lucky(&[3, 3, 3]);
    let taken = |share, name: &str| What::Taken {
        grabber: person(name),
        grant: Grant {
            share,
            amount_minor: 3,
            at: UnixMs(NEW_YEAR_MS),
        },
        declined: false,
    };
    let bad_endings = [
        (vec![taken(0, "ann"), taken(0, "bob")], "out of its turn"),
        (vec![taken(0, "ann"), taken(2, "bob")], "out of its turn"),
        (vec![taken(0, "ann"), taken(1, "ann")], "two shares"),
    ];
    for (ending, why) in bad_endings {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hot.db");
        let beginning = [
            What::Created(Arc::clone(&cast.terms)),
            What::Loaded {
                offset: 0,
                amounts_minor: cast.amounts.clone(),
            },
            What::Opened,
        ];
        let changes = beginning.into_iter().chain(ending).map(|what| Change {
            envelope: cast.id,
            what,
        });
        let row = Row {
            nonce: 1,
            at: UnixMs(NEW_YEAR_MS),
            changes: changes.collect(),
            settled: Vec::new(),
        };
        let mut body = Vec::new();
        encode(1, &row, &mut body);
        let mut log = Log::open(&path, LOG_BYTES_MAX).unwrap();
        log.begin().unwrap();
        log.append(1, &body).unwrap();
        log.commit().unwrap();
        drop(log);
        let refusal = refusal(&path);
        assert!(refusal.contains(why), "{refusal}");
        assert!(refusal.contains(&cast.id.to_string()), "{refusal}");
    }
}

#[tokio::test]
async fn a_snapshot_beyond_the_end_of_the_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hot.db");
    let cast = played(&path, 1).await;
    let log = Log::open(&path, LOG_BYTES_MAX).unwrap();
    log.begin().unwrap();
    log.put_header(&HeaderRow {
        born: 1,
        id: cast.id.to_bytes(),
        through: 99,
        body: vec![0; 20],
    })
    .unwrap();
    log.commit().unwrap();
    drop(log);
    assert!(refusal(&path).contains("the log ends before it"));
}

#[tokio::test]
async fn files_of_others_and_files_in_use_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.db");
    let conn = rusqlite::Connection::open(&other).unwrap();
    conn.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(conn);
    assert!(matches!(open(&other), Err(OpenError::Foreign(..))));
    let text = folder.path().join("text.db");
    std::fs::write(
        &text,
        "not a database, but long enough to have a header".repeat(40),
    )
    .unwrap();
    assert!(matches!(open(&text), Err(OpenError::Foreign(..))));
    let nowhere = folder.path().join("no/such/folder.db");
    assert!(matches!(open(&nowhere), Err(OpenError::Io { .. })));

    let path = folder.path().join("hot.db");
    let store = open(&path).unwrap();
    Cast::lucky(&[1]).publish(&store).await;
    assert!(matches!(open(&path), Err(OpenError::Busy(_))));
    store.shutdown().await;
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    drop(conn);
    assert!(refusal(&path).contains("layout 99"));
}

#[tokio::test]
async fn a_shutdown_answers_who_waits_and_turns_later_calls_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hot.db");
    let store = Arc::new(open(&path).unwrap());
    let cast = Cast::lucky(&[3; 500]);
    cast.publish(&*store).await;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..500 {
        let (store, cast) = (Arc::clone(&store), cast.clone());
        let grab = cast.grab_by(&format!("g{number}"));
        calls.spawn(async move { store.grab(vec![grab]).await });
    }
    tokio::task::yield_now().await;
    store.shutdown().await;
    let answers = calls.join_all().await;
    let acknowledged = answers.iter().filter(|answer| answer.is_ok()).count();
    for answer in answers {
        assert!(
            matches!(answer, Ok(_) | Err(HotError::Unavailable(_))),
            "{answer:?}"
        );
    }
    let late = store.view(vec![cast.id]).await;
    assert!(matches!(late, Err(HotError::Unavailable(_))), "{late:?}");
    drop(store);
    let store = open(&path).unwrap();
    let held = store.grants(cast.id, 0, 1_000).await.unwrap().unwrap();
    assert_eq!(held.len(), acknowledged);
}

#[tokio::test]
async fn a_full_queue_sheds_and_so_does_a_ledger_that_does_not_settle() {
    let cast = Cast::lucky(&[3; 10]);
    let limits = Limits {
        queued_grabs_max: 2,
        unsettled_records_max: 3,
        ..Limits::default()
    };
    let stage = Embedded::new(limits);
    cast.publish(&*stage.store).await;
    let three = ["ann", "bob", "cat"]
        .map(|name| cast.grab_by(name))
        .to_vec();
    let shed = stage.store.grab(three).await;
    assert!(matches!(shed, Err(HotError::Shed)), "{shed:?}");
    for name in ["ann", "bob", "cat"] {
        won(cast.grab(&*stage.store, name).await);
    }
    let shed = stage.store.grab(vec![cast.grab_by("dan")]).await;
    assert!(matches!(shed, Err(HotError::Shed)), "{shed:?}");
    assert!(stage.store.ready().unwrap_err().contains("ledger"));
    cast.settle_all(&*stage.store).await;
    won(cast.grab(&*stage.store, "dan").await);
}

#[test]
fn a_grab_takes_less_than_a_hundred_bytes_of_memory() {
    let shares = 100_000_u32;
    let mut index = Index::default();
    let mut batch = Batch::new(1, UnixMs(NEW_YEAR_MS));
    let cast = Cast::lucky(&vec![3; 100_000]);
    for chunk in cast.amounts.chunks(1_000).enumerate() {
        let chunk = LoadChunk {
            envelope: cast.id,
            terms: Arc::clone(&cast.terms),
            offset: u32::try_from(chunk.0 * 1_000).unwrap(),
            amounts_minor: chunk.1.to_vec(),
        };
        index.load(&mut batch, chunk).unwrap();
    }
    let checksum = shares_checksum(&cast.amounts);
    index.open(&mut batch, cast.id, checksum).unwrap();
    let before = index.get(cast.id).unwrap().heap_bytes();
    for number in 0..shares {
        let name = format!("{number:020}");
        let reply = index.grab(&mut batch, cast.grab_by(&name));
        assert!(matches!(reply, GrabReply::Outcome(Outcome::Won(_))));
    }
    let after = index.get(cast.id).unwrap().heap_bytes();
    assert!(
        after <= before,
        "room is reserved when it opens, not in the burst"
    );
    let share = before.div_ceil(100_000);
    let name = 2 * size_of::<usize>() + 20;
    println!("{share} bytes a share, and {name} for a name of 20 bytes");
    assert!(share + name < 100);
}

#[test]
fn ids_of_missing_envelopes_cost_no_memory() {
    let mut index = Index::default();
    let mut batch = Batch::new(1, UnixMs(NEW_YEAR_MS));
    let cast = Cast::lucky(&[1]);
    for number in 0..1_000_u64 {
        let mut grab = cast.grab_by("ann");
        grab.envelope =
            EnvelopeId::from_bytes([number.to_le_bytes(); 2].concat().try_into().unwrap());
        assert_eq!(index.grab(&mut batch, grab), GrabReply::Missing);
    }
    assert_eq!((index.len(), batch.changes.len()), (0, 0));
}
