//! A server in memory that keeps the contract, or breaks it in one way: the test of the load test.
//!
//! A rehearsal that cannot fail proves nothing. Each way of cheating here must fail a run, and the
//! honest server must pass it.
//!
//! **Not here**: durability, expiry, passphrases: nothing that the rehearsal cannot see.

mod accounts;
mod envelopes;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use red_envelope_proto::v1;
use red_envelope_proto::v1::account_service_server::AccountServiceServer;
use red_envelope_proto::v1::admin_service_server::AdminServiceServer;
use red_envelope_proto::v1::envelope_service_server::EnvelopeServiceServer;
use red_envelope_proto::v1::info_service_server::InfoServiceServer;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;
use tonic::transport::Server;

use crate::server::Address;

/// How the server breaks the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cheat {
    /// Not at all.
    None,
    /// Not at all, but each question after the grabs finds it away at first.
    AwayAtFirst,
    /// The last share of an envelope goes to two people.
    SharesTwice,
    /// The first grabber of an envelope is told one minor unit more when asking again.
    AnotherAmount,
    /// The highest share goes first.
    Backwards,
    /// An envelope is called empty one share early.
    EmptyEarly,
    /// Strangers get shares.
    LetsStrangersIn,
    /// An account is paid a unit less than its owner was told.
    PaysLess,
    /// What nobody took stays with the server.
    KeepsTheRest,
    /// The list of grabs misses a share.
    HidesAShare,
    /// Envelopes never close.
    NeverCloses,
    /// The server's own audit finds something.
    AuditFails,
}

/// One envelope.
struct Sent {
    id: String,
    sender: String,
    currency: String,
    group: Option<String>,
    named: Option<Vec<String>>,
    amounts: Vec<i64>,
    /// By share number.
    holders: Vec<String>,
    recalled: bool,
    backwards: bool,
}

impl Sent {
    fn is_over(&self) -> bool {
        self.recalled || self.holders.len() >= self.amounts.len()
    }

    fn paid(&self) -> i64 {
        self.shares().map(|(_, _, amount)| amount).sum()
    }

    fn total(&self) -> i64 {
        self.amounts.iter().sum()
    }

    /// Number, holder, amount. A named envelope's shares have the numbers of its list.
    fn shares(&self) -> impl Iterator<Item = (usize, &String, i64)> {
        self.holders.iter().enumerate().map(|(taken, holder)| {
            let number = self.number(taken, holder);
            (number, holder, self.amounts[number])
        })
    }

    fn number(&self, taken: usize, holder: &String) -> usize {
        match &self.named {
            Some(named) => named
                .iter()
                .position(|it| it == holder)
                .expect("only the named hold"),
            None if self.backwards => self.amounts.len() - 1 - taken,
            None => taken.min(self.amounts.len() - 1),
        }
    }
}

/// Everything the server knows.
#[derive(Default)]
struct Books {
    sent: HashMap<String, Sent>,
    deposits: HashMap<String, i64>,
    /// Questions that found nobody.
    missed: HashSet<String>,
}

#[derive(Clone)]
struct Cheater {
    cheat: Cheat,
    books: Arc<Mutex<Books>>,
}

impl Cheater {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    /// Whether it is there for this question.
    fn is_there(&self, call: &str, about: &str) -> Result<(), Status> {
        let away = self.cheat == Cheat::AwayAtFirst;
        match away && self.books().missed.insert(format!("{call} {about}")) {
            true => Err(Status::unavailable("nobody is here yet")),
            false => Ok(()),
        }
    }
}

async fn serve(cheat: Cheat) -> Address {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let cheater = Cheater {
        cheat,
        books: Arc::default(),
    };
    let server = Server::builder()
        .add_service(EnvelopeServiceServer::new(cheater.clone()))
        .add_service(AccountServiceServer::new(cheater.clone()))
        .add_service(InfoServiceServer::new(cheater.clone()))
        .add_service(AdminServiceServer::new(cheater));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Address::parse(&address).unwrap()
}

/// The crowds of `smoke`, fewer of them and closer together.
async fn rehearse(cheat: Cheat) -> crate::report::Report {
    let mut profile = crate::profile::load("smoke").unwrap();
    for crowd in &mut profile.crowds {
        crowd.envelopes = 2;
        crowd.spread_ms = 50;
        crowd.burst_ms = 50;
        crowd.share_mean_minor = crowd.share_mean_minor.max(10);
    }
    profile.fire.close_s_max = if cheat == Cheat::NeverCloses { 0 } else { 30 };
    // What is measured here is truth, not speed.
    profile.fire.give_up_ms = 60_000;
    profile.gates.unary_p99_ms_max = 60_000;
    profile.gates.stream_p99_ms_max = 60_000;
    let address = serve(cheat).await;
    let target = crate::Target {
        public: vec![address.clone()],
        admin: address,
        metrics: Vec::new(),
        own: None,
        meanwhile: crate::meanwhile::Commands::default(),
    };
    crate::rehearse::rehearse(profile, &target).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_server_passes() {
    let report = rehearse(Cheat::None).await;
    // A busy machine may make the run void, which says nothing of the server.
    let all_met = report.gates.iter().all(|gate| gate.met);
    assert!(all_met, "{}", report.words());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_is_asked_everything_again_and_passes() {
    let report = rehearse(Cheat::AwayAtFirst).await;
    let all_met = report.gates.iter().all(|gate| gate.met);
    assert!(all_met, "{}", report.words());
    assert!(report.envelopes_recalled > 0 && report.accounts_compared > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_of_cheating_fails_a_run_and_is_named() {
    for (cheat, words) in [
        (Cheat::SharesTwice, "went to guest"),
        (Cheat::AnotherAmount, "was shown"),
        (Cheat::Backwards, "no order of the grabs explains it"),
        (Cheat::EmptyEarly, "hold a share of"),
        (Cheat::LetsStrangersIn, "an outsider got"),
        (Cheat::PaysLess, "(available, pending, held)"),
        (Cheat::KeepsTheRest, "(taken, settled, refunded)"),
        (Cheat::HidesAShare, "ListGrabs has"),
        (Cheat::NeverCloses, "did not close"),
        (Cheat::AuditFails, "POSTING_UNBALANCED"),
    ] {
        let report = rehearse(cheat).await;
        assert!(!report.passed(), "{cheat:?} passed");
        let told = report.words();
        assert!(told.contains(words), "{cheat:?}: no {words:?} in {told}");
    }
}

fn money(currency: &str, minor_units: i64) -> Option<v1::Money> {
    Some(v1::Money {
        currency_code: currency.to_owned(),
        minor_units,
    })
}
