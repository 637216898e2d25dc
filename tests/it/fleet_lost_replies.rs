//! Replies that are lost at each hop of several servers: on the way to their clients, from Redis, from
//! PostgreSQL. Whoever repeats the same call, through another of them, learns the same answer, and the books
//! have it once.

use crate::harness::Start;
use crate::harness::fleet::{Fleet, Store};
use crate::harness::hop::{BOOKS_HOP, CALLERS_HOP, Hop, REDIS_HOP};
use crate::harness::proxy::Proxy;
use crate::harness::storm::rage;

/// Servers, each on a wire of its own.
const SERVERS: usize = 2;

/// A storm over these wires; then every call has taken effect once.
async fn nothing_is_done_twice(hop: Hop, fleet: &mut Fleet, wires: Vec<Proxy>, ports: &[u16]) {
    let aftermath = rage(hop, &mut fleet.processes, wires, ports).await;
    let (postgres, database) = (&fleet.postgres, fleet.database().to_owned());
    let count = |table: &str, which: &str| {
        let rows = format!("SELECT count(*) FROM red_envelope.{table} WHERE {which}");
        postgres.sql(&database, &rows).parse().unwrap()
    };
    aftermath.comes_in_order(&mut fleet.processes, count).await;
}

fn ports(fleet: &Fleet) -> Vec<u16> {
    fleet.processes.iter().map(|p| p.server.grpc()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_lost_between_the_servers_and_the_books_change_nothing() {
    let mut fleet = Fleet::on_wires_to(Store::Books, 0).await;
    for _ in 0..SERVERS {
        let start = Start {
            flags: ["--ack", "ledger"].map(str::to_owned).to_vec(),
            ..Start::default()
        };
        fleet.join(start).await;
    }
    let (wires, ports) = (std::mem::take(&mut fleet.wires), ports(&fleet));
    nothing_is_done_twice(BOOKS_HOP, &mut fleet, wires, &ports).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_lost_between_the_servers_and_redis_change_nothing() {
    let mut fleet = Fleet::on_wires_to(Store::Redis, SERVERS).await;
    let (wires, ports) = (std::mem::take(&mut fleet.wires), ports(&fleet));
    nothing_is_done_twice(REDIS_HOP, &mut fleet, wires, &ports).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_lost_between_clients_and_several_servers_change_nothing() {
    let mut fleet = Fleet::of(SERVERS).await;
    let mut wires = Vec::new();
    for port in ports(&fleet) {
        wires.push(Proxy::to(port).await);
    }
    let ports: Vec<_> = wires.iter().map(Proxy::port).collect();
    nothing_is_done_twice(CALLERS_HOP, &mut fleet, wires, &ports).await;
}
