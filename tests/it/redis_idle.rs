//! What an idle server asks of its Redis.

use std::time::Duration;

use redis::Value;

use crate::harness::{Hot, World};

/// How often it is looked what was asked.
const POLL: Duration = Duration::from_millis(50);
/// Such looks before the test gives up.
const POLLS_MAX: u32 = 1_200;
/// Questions about one outbox after which the others are counted: twenty rounds over 64 partitions.
const ENOUGH: u64 = 1_280;

/// Calls of a command so far, those of functions included.
fn calls(world: &World, command: &str) -> u64 {
    let redis = world.redis.as_ref().unwrap();
    let Value::BulkString(stats) = redis.command(&[b"INFO", b"commandstats"]) else {
        panic!("INFO answers with a text");
    };
    let (stats, name) = (
        String::from_utf8(stats).unwrap(),
        format!("cmdstat_{command}:calls="),
    );
    let line = stats.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_server_asks_about_all_outboxes_at_once_and_reads_none() {
    let world = World::on(Hot::Redis).await;
    world.until_ready().await;
    let before = (calls(&world, "xlen"), calls(&world, "xrange"));
    let mut looks = tokio::time::interval(POLL);
    for _ in 0..POLLS_MAX {
        looks.tick().await;
        if calls(&world, "xlen") - before.0 >= ENOUGH {
            break;
        }
    }
    let asked = calls(&world, "xlen") - before.0;
    assert!(asked >= ENOUGH, "{asked}");
    // The heads that are read are those of the backlog's measure, once a second.
    let read = calls(&world, "xrange") - before.1;
    assert!(read < asked / 2, "{read} of {asked}");
}
