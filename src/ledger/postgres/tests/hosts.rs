//! An address that names several hosts, of which one is the primary.

use std::net::TcpListener;

use super::{shared, try_to_open};
use crate::clock::ManualClock;
use crate::ledger::conformance::NOON_MS;
use crate::ledger::postgres::server_under_test::Release;

/// Tries until the host that serves was asked first: by chance all fail once in a million times.
const TRIES_MAX: usize = 20;

#[tokio::test]
async fn of_several_hosts_one_that_hangs_keeps_nobody_from_the_other() {
    let server = tokio::task::spawn_blocking(|| shared(Release::Debian)).await;
    // It lives as long as somebody holds it.
    let server = server.unwrap();
    let url = server.database();
    // Connections to it are made, and nobody says a word.
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let hung = format!("@127.0.0.1:{},", hangs.local_addr().unwrap().port());
    let both = url.replace('@', &hung);
    for _ in 0..TRIES_MAX {
        if try_to_open(&both, &ManualClock::at(NOON_MS)).await.is_ok() {
            return;
        }
    }
    panic!("nobody was asked but the host that hangs");
}
