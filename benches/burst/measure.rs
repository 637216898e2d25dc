//! Counts grabs and processor time between two instants, while grabs go on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;

use crate::echo::WARM_UP;
use crate::process::Process;

/// How often it is looked whether the window is to close.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Figures of one subject in one round.
pub struct Measured {
    /// Answered grabs.
    pub per_s: f64,
    /// Processor time a grab, by the name of the process.
    pub us: BTreeMap<&'static str, f64>,
    /// Grabs of one call of Redis, by our server's own counters; 0 where nobody counts.
    pub mean_batch: f64,
    /// Answer times, those of the warm-up included.
    pub p50_ms: f64,
    /// The same.
    pub p99_ms: f64,
    /// Shares that were taken, those of the warm-up included.
    pub taken: u64,
    /// Grabs that were turned away, which count nowhere else.
    pub turned_away: u64,
}

/// What was counted at one instant.
struct Reading {
    at: Instant,
    grabs: u64,
    cpu: Vec<Duration>,
}

impl Reading {
    fn take(grabs: &impl Fn() -> u64, processes: &[Process]) -> anyhow::Result<Self> {
        let cpu = processes.iter().map(|process| {
            let gone = || format!("the process {} is gone", process.name);
            process.cpu().with_context(gone)
        });
        Ok(Self {
            at: Instant::now(),
            grabs: grabs(),
            cpu: cpu.collect::<Result<_, _>>()?,
        })
    }
}

/// Rate and processor time of one window.
pub struct Window {
    per_s: f64,
    us: BTreeMap<&'static str, f64>,
}

impl Window {
    /// Opens after the warm-up, for `span`, or until nearly `shares` are taken: T was counted in a slow moment
    /// then. `grabs` answers how many there were by now.
    pub async fn watch(
        grabs: impl Fn() -> u64,
        shares: u64,
        processes: &[Process],
        span: Duration,
    ) -> anyhow::Result<Self> {
        let mut processes = processes.to_vec();
        processes.push(Process {
            name: "client",
            ..Process::own()
        });
        tokio::time::sleep(WARM_UP).await;
        let before = Reading::take(&grabs, &processes)?;
        let nearly_all = shares / 10 * 9;
        while before.at.elapsed() < span && grabs() < nearly_all {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let after = Reading::take(&grabs, &processes)?;
        let count = (after.grabs - before.grabs) as f64;
        ensure!(count > 0.0, "no grab was answered in {span:?}");
        let used = after.cpu.iter().zip(&before.cpu);
        let us = used.map(|(after, before)| (*after - *before).as_secs_f64() * 1e6 / count);
        Ok(Self {
            per_s: count / (after.at - before.at).as_secs_f64(),
            us: processes.iter().map(|it| it.name).zip(us).collect(),
        })
    }

    /// With the answer times.
    pub fn with(self, latencies: &Histogram<u64>) -> Measured {
        Measured {
            per_s: self.per_s,
            us: self.us,
            mean_batch: 0.0,
            p50_ms: latencies.value_at_quantile(0.5) as f64 / 1e6,
            p99_ms: latencies.value_at_quantile(0.99) as f64 / 1e6,
            taken: 0,
            turned_away: 0,
        }
    }
}
