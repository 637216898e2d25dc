//! The power cut under a Redis server: what `appendfsync` promises, and that the test would notice.

use std::time::Duration;

use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer, ask};
use redis::{RedisError, Value};
use tokio::task::JoinSet;

use crate::harness::power::{self, Loss};

/// Clients that write at the same time.
const CLIENTS: usize = 4;
/// Acknowledged writes of a client before the power goes.
const WRITES_BEFORE_THE_CUT: usize = 300;
/// The longest that a client waits for an answer: the disk may be busy with something else.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Writes until the connection breaks, on a thread that may block, and tells when there was enough for a cut, or
/// why there was not. Answers the keys that were acknowledged.
fn write_until_dead(
    server: &RedisServer,
    client: usize,
    told: std::sync::mpsc::Sender<Result<(), RedisError>>,
) -> JoinSet<Vec<String>> {
    let mut connection = server.connection().unwrap();
    connection.set_read_timeout(Some(ANSWER_MAX)).unwrap();
    let mut clients = JoinSet::new();
    clients.spawn_blocking(move || {
        let mut acknowledged = Vec::new();
        for number in 0.. {
            let key = format!("client-{client}-{number}");
            match ask(&mut connection, &[b"SET", key.as_bytes(), b"x"]) {
                Ok(Value::Okay) => acknowledged.push(key),
                Ok(other) => panic!("{other:?}"),
                Err(error) => {
                    if number <= WRITES_BEFORE_THE_CUT {
                        told.send(Err(error)).unwrap();
                    }
                    break;
                }
            }
            if number == WRITES_BEFORE_THE_CUT {
                told.send(Ok(())).unwrap();
            }
        }
        acknowledged
    });
    clients
}

/// A server under writes loses its power. Answers how many changes were not synced, how many
/// writes were acknowledged, and how many of those are gone.
async fn cut_under_writes(flavour: Flavour, appendfsync: &str) -> (usize, usize, usize) {
    let options = [("appendfsync", appendfsync)];
    let mut server = RedisServer::start_under(flavour, &options, |folder| {
        power::variables(folder, &folder.join("data"))
    });
    let (tell, told) = std::sync::mpsc::channel();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| write_until_dead(&server, client, tell.clone()))
        .collect();
    // Whoever ends without having told anything is noticed.
    drop(tell);
    for _ in 0..CLIENTS {
        told.recv().unwrap().unwrap();
    }
    server.kill();
    let mut acknowledged = Vec::new();
    for client in clients {
        acknowledged.extend(client.join_all().await.into_iter().flatten());
    }
    let unsynced = power::cut(&power::log(server.folder()), Loss::Everything);
    server.restart();
    let mut connection = server.connection().unwrap();
    let mut exists = |key: &String| {
        let answer = ask(&mut connection, &[b"EXISTS", key.as_bytes()]).unwrap();
        answer == Value::Int(1)
    };
    let gone = acknowledged.iter().filter(|key| !exists(key)).count();
    (unsynced, acknowledged.len(), gone)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_under_redis_takes_back_what_was_not_synced() {
    for flavour in Flavour::ALL {
        let (_, acknowledged, gone) = cut_under_writes(flavour, "always").await;
        assert!(acknowledged > CLIENTS * WRITES_BEFORE_THE_CUT);
        assert_eq!(
            gone, 0,
            "{flavour:?} lost acknowledged writes under `always`"
        );

        // The same without syncs loses all of it: the cut above would have shown a loss.
        let (unsynced, acknowledged, gone) = cut_under_writes(flavour, "no").await;
        assert!(unsynced > 0, "{flavour:?}");
        assert_eq!(gone, acknowledged, "{flavour:?} kept what it never synced");
    }
}
