//! The suite of the door, on PostgreSQL; what only this implementation promises is in the files below.

mod against_model;
mod attacks;
mod edits;
mod gathered;
mod hosts;
mod moved;
mod parked;
mod plans;
mod retried;
mod together;
mod weeks;

use std::sync::{Arc, Mutex, Weak};

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::server_under_test::{PostgresServer, Release};
use super::{OpenError, PostgresLedger, has_books};
use crate::clock::ManualClock;
use crate::domain::fairness::{SealKey, SealKeys};
use crate::ledger::LedgerError;
use crate::ledger::conformance::{NOON_MS, World, ledger_conformance};

/// One server of each release for the tests that run at once; the last one to end takes it with it.
static SHARED: [Mutex<Weak<PostgresServer>>; 2] =
    [Mutex::new(Weak::new()), Mutex::new(Weak::new())];

fn shared(release: Release) -> Arc<PostgresServer> {
    let place = &SHARED[usize::from(release == Release::Eighteen)];
    let mut shared = place
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = Arc::new(PostgresServer::start(release, &[]));
    *shared = Arc::downgrade(&server);
    server
}

pub(super) fn keys(byte: u8) -> SealKeys {
    SealKeys::new(vec![SealKey::new(1, [byte; 32])]).unwrap()
}

/// Tries to open books: each has two seconds for a connection, which a busy machine may need for something else.
const OPENS_MAX: usize = 10;

/// Books that are there and can be reached, or why they can't be opened.
pub(super) async fn open_at(url: &str, clock: &ManualClock) -> Result<PostgresLedger, OpenError> {
    let mut opened = try_to_open(url, clock).await;
    for _ in 1..OPENS_MAX {
        let Err(OpenError::Ledger(LedgerError::Unavailable(_))) = &opened else {
            break;
        };
        opened = try_to_open(url, clock).await;
    }
    opened
}

async fn try_to_open(url: &str, clock: &ManualClock) -> Result<PostgresLedger, OpenError> {
    let rng = Box::new(StdRng::seed_from_u64(2_026));
    PostgresLedger::open(url, Arc::new(clock.clone()), keys(7), rng).await
}

/// Where a test's books are.
pub(super) struct Place {
    pub server: Arc<PostgresServer>,
    pub url: String,
}

impl Place {
    fn database(&self) -> &str {
        self.url.rsplit('/').next().unwrap()
    }

    /// The row of an envelope of `attacks::scene`: 0 of the closed one, 1 of the open one, 2 of the gathered one.
    fn row(&self, at: usize) -> i64 {
        let row = format!(
            "-- ledger.row_of_scene
             SELECT row FROM red_envelope.envelope ORDER BY row LIMIT 1 OFFSET {at}"
        );
        self.server.sql(self.database(), &row).parse().unwrap()
    }

    /// A script about these envelopes, with what it names filled in.
    fn scripted(&self, script: &str) -> String {
        let week = "-- ledger.week_of_scene
            SELECT DISTINCT tableoid::regclass FROM red_envelope.claim";
        script
            .replace(":closed", &self.row(0).to_string())
            .replace(":open", &self.row(1).to_string())
            .replace(":gathered", &self.row(2).to_string())
            .replace(":week", &self.server.sql(self.database(), week))
    }

    /// What a statement says that names the tables of the books alone.
    fn in_books(&self, statement: &str) -> String {
        let statement = format!("SET search_path = red_envelope; {statement}");
        self.server.sql(self.database(), &statement)
    }

    /// The SQLSTATE with which a statement of the superuser is refused.
    fn refusal(&self, statement: &str) -> String {
        self.server.refusal(self.database(), statement)
    }
}

pub(super) async fn world() -> (World, Place) {
    world_on(Release::Debian).await
}

async fn world_on(release: Release) -> (World, Place) {
    let server = tokio::task::spawn_blocking(move || shared(release)).await;
    let server = server.unwrap();
    world_at(&server.database(), server).await
}

async fn world_at(url: &str, server: Arc<PostgresServer>) -> (World, Place) {
    let clock = ManualClock::at(NOON_MS);
    let ledger = Arc::new(open_at(url, &clock).await.unwrap());
    let url = url.to_owned();
    (World { ledger, clock }, Place { server, url })
}

ledger_conformance!(async world);

#[tokio::test]
async fn a_database_has_no_books_before_they_are_founded() {
    let server = tokio::task::spawn_blocking(|| shared(Release::Debian)).await;
    let server = server.unwrap();
    let url = server.database();
    assert!(!has_books(&url).await.unwrap());
    super::migrate(&url, None).await.unwrap();
    assert!(!has_books(&url).await.unwrap());
    let _books = open_at(&url, &ManualClock::at(NOON_MS)).await.unwrap();
    assert!(has_books(&url).await.unwrap());
}

/// The same on the newest release, by a server that owns nothing.
mod eighteen {
    use super::super::server_under_test::{RUNTIME, Release};
    use super::attacks::statements;
    use super::{Place, World};
    use crate::ledger::conformance::{ledger_conformance, pay};

    async fn world() -> (World, Place) {
        let server = tokio::task::spawn_blocking(|| super::shared(Release::Eighteen)).await;
        let server = server.unwrap();
        super::world_at(&server.database_for_a_server().await, server).await
    }

    #[tokio::test]
    async fn a_server_adds_to_history_and_has_no_right_to_change_it() {
        let (world, place) = world().await;
        let id = world.live(100, 4, "e1").await;
        world.settle(vec![pay(id, 0, "bob", 40)]).await;
        for (_, statement) in statements(include_str!("rights.sql")) {
            let as_it = format!("SET search_path = red_envelope; SET ROLE {RUNTIME}; {statement}");
            // insufficient_privilege
            assert_eq!(place.refusal(&as_it), "42501", "{statement}");
        }
        world.audit().await;
    }

    ledger_conformance!(async world);
}
