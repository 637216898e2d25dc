//! Turns new work away while settlement is behind: envelopes first, then grabs too.
//!
//! # Shape
//! | the oldest unsettled grab waits for more than | turned away |
//! |---|---|
//! | [`CREATES_SHED_AGE_MS`] | CreateEnvelope |
//! | [`GRABS_SHED_AGE_MS`] | CreateEnvelope, Grab, the messages of GrabStream |
//!
//! CreateEnvelope is also turned away while the hot store is not ready: then no share of it can be grabbed.
//!
//! # Ordering
//! Nothing was done when a call is turned away: its repeat is the first try. The age is what
//! settlement measured when it last looked, so a clock that is set turns nobody away for long.
//!
//! # Not here
//! Who measures (`settle`), who tells (`serve`); queues that are full (`hot`).

use std::sync::atomic::{AtomicI64, Ordering};

use super::Api;
use super::status::{ApiError, Behind};
use crate::telemetry::metrics;

/// Creates wait once the oldest grab has waited so long for its money. A drain that works settles
/// within 20 ms, so this is no load but a ledger that is away or far too slow; envelopes are what
/// its backlog grows from.
pub const CREATES_SHED_AGE_MS: i64 = 30_000;
/// Grabs wait too, from where on readiness turns by default: a promise that is paid two minutes
/// late is not worth making.
pub const GRABS_SHED_AGE_MS: i64 = 120_000;

/// How far settlement is behind.
#[derive(Debug, Default)]
pub(super) struct Backlog(AtomicI64);

impl Backlog {
    /// The age of the oldest unsettled grab, as settlement measured it; 0: none waits.
    pub(super) fn measured(&self, age_ms: i64) {
        self.0.store(age_ms, Ordering::Relaxed);
    }

    fn admit(&self, behind: Behind, age_ms_max: i64) -> Result<(), ApiError> {
        match self.0.load(Ordering::Relaxed) <= age_ms_max {
            true => Ok(()),
            false => Err(ApiError::Behind(behind)),
        }
    }
}

impl Api {
    /// Whether a new envelope may come.
    ///
    /// # Errors
    /// Settlement is behind, or the hot store grants nothing: its shares would take the last of a memory that
    /// is almost full, and nobody could grab them. Later. Not counted, since a repeat may be answered all the
    /// same.
    pub(super) fn admit_create(&self) -> Result<(), ApiError> {
        self.backlog.admit(Behind::Creates, CREATES_SHED_AGE_MS)?;
        self.hot.ready().map_err(ApiError::Unavailable)
    }

    /// Whether a grab may come.
    ///
    /// # Errors
    /// Settlement is behind, or this process.
    pub(super) fn admit_grab(&self) -> Result<(), ApiError> {
        self.priorities.admit_grab()?;
        let admitted = self.backlog.admit(Behind::Grabs, GRABS_SHED_AGE_MS);
        if admitted.is_err() {
            metrics::shed(Behind::Grabs.name(), 1);
        }
        admitted
    }
}
