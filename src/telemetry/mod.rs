//! What the process tells about itself: logs, metrics, probes.
//!
//! # Not here
//! Amounts together with identities, in any line. What went wrong is said once, where it is
//! handled.

mod catalogue;
pub mod lag;
pub mod logs;
pub mod metrics;
pub mod probes;
pub mod rpc;
mod seldom;

pub use seldom::{SELDOM_EVERY, Seldom};

use std::time::Instant;

/// Measures how long something took, for a metric. What decides asks a `Clock`.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins to measure.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}
