//! The suite of the door, on PostgreSQL; what only this implementation promises is in the files below.

mod against_model;
mod attacks;
mod together;

use std::sync::{Arc, Mutex, Weak};

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::server_under_test::{PostgresServer, Release};
use super::{OpenError, PostgresLedger};
use crate::clock::ManualClock;
use crate::domain::fairness::{SealKey, SealKeys};
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

pub(super) async fn open_at(url: &str, clock: &ManualClock) -> Result<PostgresLedger, OpenError> {
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
    let url = server.database();
    let clock = ManualClock::at(NOON_MS);
    let ledger = Arc::new(open_at(&url, &clock).await.unwrap());
    (World { ledger, clock }, Place { server, url })
}

ledger_conformance!(async world);

/// The same on the newest release.
mod eighteen {
    use super::super::server_under_test::Release;
    use super::{Place, World};
    use crate::ledger::conformance::ledger_conformance;

    async fn world() -> (World, Place) {
        super::world_on(Release::Eighteen).await
    }

    ledger_conformance!(async world);
}
