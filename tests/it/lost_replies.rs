//! Replies that are lost on the way, at both hops of one server: whoever repeats the same call learns the
//! same answer, and nothing takes effect twice.

use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};

use crate::harness::hop::{CALLERS_HOP, Hop, REDIS_HOP};
use crate::harness::proxy::Proxy;
use crate::harness::storm::rage;
use crate::harness::{Hot, Start, World};

/// Callers of the server at this port in a storm over this wire; then every unit is where it should be.
async fn nothing_takes_effect_twice(hop: Hop, world: World, wire: Proxy, port: u16) {
    let books = world.server.data_folder().join("ledger.sqlite");
    let mut worlds = [world];
    let aftermath = rage(hop, &mut worlds, vec![wire], &[port]).await;
    let count = |table: &str, which: &str| {
        let books = rusqlite::Connection::open(&books).unwrap();
        let rows = format!("-- it.count\nSELECT count(*) FROM {table} WHERE {which}");
        let rows: i64 = books.query_row(&rows, [], |row| row.get(0)).unwrap();
        usize::try_from(rows).unwrap()
    };
    aftermath.comes_in_order(&mut worlds, count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_lost_between_clients_and_the_server_change_nothing() {
    let world = World::on(Hot::Redis).await;
    let wire = Proxy::to(world.server.grpc()).await;
    let port = wire.port();
    nothing_takes_effect_twice(CALLERS_HOP, world, wire, port).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_lost_between_the_server_and_redis_change_nothing() {
    let redis = RedisServer::start(Flavour::Debian, &[]);
    let wire = Proxy::to(redis.port()).await;
    let start = Start {
        flags: ["--hot", &format!("redis://127.0.0.1:{}", wire.port())]
            .map(str::to_owned)
            .to_vec(),
        ..Start::default()
    };
    let world = World::beside(redis, start).await;
    let port = world.server.grpc();
    nothing_takes_effect_twice(REDIS_HOP, world, wire, port).await;
}
