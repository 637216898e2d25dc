//! Settlement dies with a batch of many grabs in its hands, at each of its steps: each of them is paid once.

use std::collections::BTreeSet;
use std::time::Duration;

use red_envelope_proto::v1::GrabOutcome;
use redis::Value;
use tokio::time::Instant;

use crate::harness::fleet::{Client, rush};
use crate::harness::world::channel;
use crate::harness::{Hot, Start, World, cny, equal};
use crate::redis_faults::the_outbox_of;

/// Who grabs at the same time, over how many connections, and what each gets.
const GRABBERS: usize = 40;
const CONNECTIONS: usize = 5;
const SHARE: i64 = 100;
/// Nothing is owed any more so long after a server is there again, at the latest: the bound of F02.
const PAID_WITHIN: Duration = Duration::from_secs(60);
/// Where the number of its records stands in an outbox entry.
const RECORDS_AT: std::ops::Range<usize> = 15..19;

/// Where it dies with the first batch, and of the grabs in it, how many the outbox owes then and how many
/// the books have. What is in the books after one batch was posted was in that batch.
const POINTS: [(&str, usize, usize); 4] = [
    ("settle::before_post", GRABBERS, 0),
    ("settle::before_commit", GRABBERS, 0),
    ("settle::after_post", GRABBERS, GRABBERS),
    ("settle::after_settled", 0, GRABBERS),
];

/// Records of each entry of the outbox of an envelope.
fn owed(world: &World, id: &str) -> Vec<usize> {
    let redis = world.redis.as_ref().unwrap();
    let outbox = the_outbox_of(redis, id);
    let Value::Array(entries) = redis.command(&[b"XRANGE", &outbox, b"-", b"+"]) else {
        panic!("XRANGE answers a list");
    };
    let records = |entry: Value| {
        let of_entry = redis::from_redis_value::<(String, (String, Vec<u8>))>(entry);
        let (_, (_, bytes)) = of_entry.unwrap();
        let records = u32::from_le_bytes(bytes[RECORDS_AT].try_into().unwrap());
        usize::try_from(records).unwrap()
    };
    entries.into_iter().map(records).collect()
}

/// Grabs that are in the books.
fn paid(world: &World) -> usize {
    let books = world.server.data_folder().join("ledger.sqlite");
    // Who only reads leaves the files as the crash did.
    let reading = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let books = rusqlite::Connection::open_with_flags(books, reading).unwrap();
    let asked = "-- it.paid\nSELECT count(*) FROM claim";
    let paid: i64 = books.query_row(asked, [], |row| row.get(0)).unwrap();
    usize::try_from(paid).unwrap()
}

/// All grab at once, and all win. Nothing of it is in the books when the server is killed.
async fn with_a_batch_that_is_owed() -> (World, String) {
    let mut world = World::on(Hot::Redis).await;
    world.fund("alice", cny(10_000)).await;
    let id = world.send(equal("alice", cny(SHARE), 50)).await.envelope_id;
    let books = world.server.hold_the_books();
    let mut clients = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        clients.push(Client::new(channel(world.server.grpc()).await));
    }
    let grabbers = (0..GRABBERS).map(|number| format!("g{number}"));
    let answers = rush(&world.record, &clients, &id, grabbers).await;
    for (grabber, answer) in answers {
        assert_eq!(answer.outcome(), GrabOutcome::Won, "{grabber}");
    }
    world.server.kill();
    drop(books);
    (world, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settlement_that_dies_at_any_point_pays_each_grab_once() {
    for (point, still_owed, in_the_books) in POINTS {
        let (mut world, id) = with_a_batch_that_is_owed().await;
        let before = owed(&world, &id);
        assert_eq!((before.iter().sum(), paid(&world)), (GRABBERS, 0));
        // They came at once: a call to Redis brought several.
        assert!(before.len() < GRABBERS, "{before:?}");

        let dying = Start {
            abort_at: Some(point.to_owned()),
            ..Start::on(Hot::Redis)
        };
        let dying = dying.reaching(world.redis.as_ref());
        world.server.again_until_it_crashes(&dying).await;
        let left: usize = owed(&world, &id).iter().sum();
        let found = (left, paid(&world));
        assert_eq!(found, (still_owed, in_the_books), "{point}");

        let mut world = world.restarted(Start::on(Hot::Redis)).await;
        let latest = Instant::now() + PAID_WITHIN;
        let grabbers = (0..GRABBERS).map(|number| (format!("g{number}"), SHARE));
        world
            .until_all_are_paid_by(latest, &grabbers.collect())
            .await;
        world.until_ready().await;
        world.audit_when_quiet().await;
        assert!(Instant::now() <= latest, "{point}: not quiet in time");
        assert_eq!(paid(&world), GRABBERS, "{point}");
        let mut shares = BTreeSet::new();
        for number in 0..GRABBERS {
            let grabber = format!("g{number}");
            assert_eq!(world.available(&grabber).await, SHARE, "{point}: {grabber}");
            let again = world.grab(&id, &grabber).await;
            assert_eq!(again.outcome(), GrabOutcome::AlreadyGrabbed, "{grabber}");
            shares.insert(again.share.unwrap().number);
        }
        assert_eq!(shares.len(), GRABBERS, "{point}");
        world.audit_when_quiet().await;
    }
}
