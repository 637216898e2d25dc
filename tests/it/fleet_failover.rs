//! A PostgreSQL that fails over to a synchronous standby under several servers: whatever was answered is there,
//! and grabs go on meanwhile.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use red_envelope::ledger::postgres::server_under_test::{PostgresServer, Release};
use red_envelope_proto::v1::account_service_client::AccountServiceClient;
use red_envelope_proto::v1::{DepositRequest, DepositResponse};
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::fleet::{Fleet, until};
use crate::harness::{cny, equal};

/// What the sender has at first, and each deposit.
const FUNDS: i64 = 1_000_000;
const DEPOSIT: i64 = 3;
/// Shares of the envelope, each of so much.
const SHARES: u32 = 3_000;
const SHARE: i64 = 10;
/// Those who grab in each part: while the standby hangs, around the failover, and after it.
const CROWD: usize = 600;
/// Deposits that are answered before the primary is killed, and after it, by each of as many payers.
const PAYERS: usize = 4;
const ANSWERED: usize = 20;
/// Longer than any statement may take: who is answered by then was answered without the standby.
const HANGS: Duration = Duration::from_secs(17);

async fn deposited(
    accounts: &mut AccountServiceClient<Channel>,
    owner: &str,
    number: usize,
) -> Result<DepositResponse, tonic::Status> {
    let request = DepositRequest {
        owner: owner.to_owned(),
        request_id: format!("pay-{number}"),
        amount: Some(cny(DEPOSIT)),
        ..DepositRequest::default()
    };
    Ok(accounts.deposit(request).await?.into_inner())
}

/// Pays in, each deposit until it is answered by one of the processes, until told to stop. Answers how many.
async fn pays(
    mut clients: Vec<AccountServiceClient<Channel>>,
    owner: String,
    (answered, enough): (&AtomicUsize, &AtomicUsize),
) -> (String, usize) {
    let mut number = 0;
    while answered.load(Ordering::SeqCst) < enough.load(Ordering::SeqCst) {
        until("a deposit was answered", async || {
            clients.rotate_left(1);
            match deposited(&mut clients[0], &owner, number).await {
                Ok(_) => true,
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status}");
                    false
                }
            }
        })
        .await;
        answered.fetch_add(1, Ordering::SeqCst);
        number += 1;
    }
    (owner, number)
}

async fn crowd(fleet: &Fleet, id: &str, part: &str) {
    let grabbers = (0..CROWD).map(|number| format!("{part}-{number}"));
    let won = fleet.rush(id, grabbers).await;
    assert!(won.iter().all(|(_, answer)| answer.share.is_some()));
}

/// A primary and its standby, and the address of a database that names both.
fn two() -> (PostgresServer, PostgresServer, String) {
    let primary = PostgresServer::start(Release::Debian, &[]);
    let standby = primary.standby();
    let books = primary.database();
    let own = format!(":{}", primary.port());
    let both = format!("{own},127.0.0.1:{}", standby.port());
    let books = format!(
        "{}?target_session_attrs=read-write",
        books.replace(&own, &both)
    );
    (primary, standby, books)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_that_fails_over_to_its_synchronous_standby_loses_nothing() {
    let (primary, standby, books) = tokio::task::spawn_blocking(two).await.unwrap();
    let mut fleet = Fleet::over((books, primary), 2, None).await;
    fleet.processes[0].fund("alice", cny(FUNDS)).await;
    let sent = fleet.processes[0].send(equal("alice", cny(SHARE), SHARES));
    let id = sent.await.envelope_id;
    for place in [0, 1] {
        // Each process has met the envelope: it needs no book to grant from it.
        let process = &mut fleet.processes[place];
        process.win(&id, &format!("first-{place}")).await;
    }

    // What the standby does not have is answered to nobody.
    standby.pause();
    let mut accounts = fleet.processes[0].accounts.clone();
    let early = tokio::time::timeout(HANGS, deposited(&mut accounts, "early", 0));
    let (early, ()) = tokio::join!(early, crowd(&fleet, &id, "hanging"));
    assert!(!matches!(early, Ok(Ok(_))), "{early:?}");
    standby.resume();
    let again = async || deposited(&mut accounts.clone(), "early", 0).await.is_ok();
    until("the deposit was answered", again).await;

    let (answered, enough) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let counts = (&answered, &enough);
    let payers = (0..PAYERS).map(|number| {
        let clients = fleet.processes.iter().map(|p| p.accounts.clone());
        pays(clients.collect(), format!("payer-{number}"), counts)
    });
    let strike = async {
        let so_many = async |count| answered.load(Ordering::SeqCst) >= count;
        until("some have paid", || so_many(ANSWERED)).await;
        tokio::join!(crowd(&fleet, &id, "around"), async {
            tokio::task::block_in_place(|| {
                fleet.postgres.die();
                standby.promote();
            });
        });
        let before = answered.load(Ordering::SeqCst);
        until("more have paid", || so_many(before + ANSWERED)).await;
        enough.store(0, Ordering::SeqCst);
    };
    let (paid, ()) = tokio::join!(futures_util::future::join_all(payers), strike);
    crowd(&fleet, &id, "after").await;

    for process in &fleet.processes {
        process.until_ready().await;
    }
    let process = &mut fleet.processes[1];
    process.audit_when_quiet().await;
    for (owner, count) in paid {
        let all = i64::try_from(count).unwrap() * DEPOSIT;
        assert_eq!(process.available(&owner).await, all, "{owner}");
    }
    assert_eq!(process.available("early").await, DEPOSIT);
    for part in ["hanging", "around", "after"] {
        for number in (0..CROWD).step_by(50) {
            let grabber = format!("{part}-{number}");
            assert_eq!(process.available(&grabber).await, SHARE, "{grabber}");
        }
    }
    drop(fleet);
    drop(standby);
}
