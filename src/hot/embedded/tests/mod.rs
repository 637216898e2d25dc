//! The embedded store against the door's conformance suite, a model, and a bad disk.

mod cuts;
mod faults;
mod model;
mod rows;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::{EmbeddedStore, Limits};
use crate::clock::ManualClock;
use crate::hot::HotStore;
use crate::hot::conformance::stage::{NEW_YEAR_MS, Stage};

/// A log so short that every batch is copied out of it and cut away as soon as it is settled.
pub(in crate::hot) const CRAMPED: Limits = Limits {
    queued_grabs_max: 65_536,
    unsettled_records_max: 1_000_000,
    log_bytes_max: 0,
    log_bytes_per_envelope: 0,
};

/// An embedded store in a folder that goes with it.
pub(in crate::hot) struct Embedded {
    pub folder: tempfile::TempDir,
    pub clock: ManualClock,
    pub limits: Limits,
    pub store: Arc<EmbeddedStore>,
    generation: u32,
}

impl Embedded {
    pub fn new(limits: Limits) -> Self {
        Self::below(&std::env::temp_dir(), limits)
    }

    /// In a folder of its own there.
    pub fn below(parent: &Path, limits: Limits) -> Self {
        let folder = tempfile::tempdir_in(parent).unwrap();
        let clock = ManualClock::at(NEW_YEAR_MS);
        let path = folder.path().join("0.db");
        let store = EmbeddedStore::open(&path, Arc::new(clock.clone()), limits).unwrap();
        Self {
            folder,
            clock,
            limits,
            store: Arc::new(store),
            generation: 0,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join(format!("{}.db", self.generation))
    }

    /// Goes on with a copy of the files as they lie on the disk now, like after a kill -9; the
    /// running store is thrown away without a word.
    pub fn reopen_copy(&mut self) {
        let from = self.path();
        self.generation += 1;
        let to = self.path();
        for suffix in ["", "-wal"] {
            if beside(&from, suffix).exists() {
                std::fs::copy(beside(&from, suffix), beside(&to, suffix)).unwrap();
            }
        }
        let store = EmbeddedStore::open(&to, Arc::new(self.clock.clone()), self.limits).unwrap();
        self.store = Arc::new(store);
    }
}

/// The file that SQLite keeps beside another.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

#[async_trait]
impl Stage for Embedded {
    fn store(&self) -> Arc<dyn HotStore> {
        Arc::clone(&self.store) as Arc<dyn HotStore>
    }

    fn clock(&self) -> &ManualClock {
        &self.clock
    }

    async fn crash(&mut self) {
        self.reopen_copy();
    }
}

mod with_a_long_log {
    use super::{Embedded, Limits};
    crate::hot::conformance::hot_conformance!(Embedded::new(Limits::default()));
}

mod with_a_log_that_is_cut_all_the_time {
    use super::{CRAMPED, Embedded};
    crate::hot::conformance::hot_conformance!(Embedded::new(CRAMPED));
}
