//! The suite of the door, on SQLite; what only this implementation promises is in the files below.

mod against_model;
mod attacks;
mod reopening;
mod undone;

use std::path::Path;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{OpenError, SqliteLedger};
use crate::clock::ManualClock;
use crate::domain::fairness::{SealKey, SealKeys};
use crate::ledger::HotLayout;
use crate::ledger::conformance::{NOON_MS, World, ledger_conformance};

pub(super) fn keys(byte: u8) -> SealKeys {
    SealKeys::new(vec![SealKey::new(1, [byte; 32])]).unwrap()
}

pub(super) fn open_at(path: &Path, clock: &ManualClock) -> Result<SqliteLedger, OpenError> {
    let rng = Box::new(StdRng::seed_from_u64(2_026));
    SqliteLedger::open(path, Arc::new(clock.clone()), keys(7), rng)
}

pub(super) fn world_at(path: &Path) -> World {
    let clock = ManualClock::at(NOON_MS);
    let ledger = Arc::new(open_at(path, &clock).unwrap());
    World { ledger, clock }
}

pub(super) fn world() -> (World, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let world = world_at(&folder.path().join("ledger.sqlite"));
    (world, folder)
}

/// The layout that the first release had.
pub(super) fn embedded() -> HotLayout {
    HotLayout {
        store: "embedded".to_owned(),
        layout: 1,
        partitions: 1,
    }
}

ledger_conformance!(world);
