//! What the generator itself did to the figures, told apart from what the server did, and whether that voids
//! a run.
//!
//! Latency counts from the instant at which a grab was due (`record`), so whatever the generator loses by
//! itself looks like the server's. Two figures keep it honest: how late the generator was by its own fault,
//! and how much of its cores it used. A generator that is busy with itself measures itself.
//!
//! *Own delay* is from the instant at which a lane could act until the grab's task ran, without the wait for a
//! place, which is the server's fault. A lane can act when the grab is due and the last place that it had to
//! *wait* for has come ([`Turn`]): who is behind because the lane waited is late by the server's fault, who is
//! behind although places were free is late by the generator's, however long ago it fell behind.
//!
//! A lane can't tell a place that came late because nobody read the answer from one that a slow server kept, so a
//! thread beside the lanes sees whether the generator ran at all (`watch`). Where it stood still for a hundredth of the
//! firing, one grab in a hundred may have waited for that, and the longest stretch counts as an own delay.
//!
//! *From the send* is what most load tests call latency. It is told beside the other one to compare with them
//! and judges nothing: a server that stalls has answered fast whatever was sent before and after.

mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::profile::Gates;
use crate::record::Record;
use crate::report::Cpu;
use crate::schedule::Transport;
pub use watch::{Still, Watch};

/// Delays beyond this are recorded as this: five minutes.
const SPAN_US_MAX: u64 = 300_000_000;
/// An own delay matters where it is more than this part of a thousand of the latency that it is part of. On cores that
/// generator, server, stores and other work share, it was up to a fifth in runs whose latency was the server's.
const PART_PERMILLE_MAX: f64 = 333.0;
/// A transport that carries fewer of a thousand grabs voids no run: its figures are a footnote to those of the other.
const GRABS_PERMILLE_MIN: u64 = 50;
/// A generator that stood still for less of a thousand of the firing kept less than one in a hundred.
const STILL_PERMILLE_MIN: f64 = 10.0;
/// Of fewer grabs one in a hundred is none.
const GRABS_MIN: u64 = 100;

/// Since when a lane has been able to act.
pub struct Turn {
    freed: Instant,
}

impl Turn {
    /// A lane that stands ready from this instant on.
    pub fn new(start: Instant) -> Self {
        Self { freed: start }
    }

    /// It had to wait for a place until now.
    pub fn waited_until(&mut self, now: Instant) {
        self.freed = now;
    }

    /// How long it has been able to let the grab go that was due at `due`.
    pub fn own_delay(&self, due: Instant, now: Instant) -> Duration {
        now.saturating_duration_since(due.max(self.freed))
    }
}

/// The generator's own part of one transport's figures.
#[derive(Clone, Debug)]
pub struct Own {
    delay_us: Histogram<u64>,
    from_send_us: Histogram<u64>,
}

impl Default for Own {
    fn default() -> Self {
        let histogram = || {
            Histogram::new_with_max(SPAN_US_MAX, 3)
                .expect("three digits and a maximum above two are valid")
        };
        Self {
            delay_us: histogram(),
            from_send_us: histogram(),
        }
    }
}

impl Own {
    /// A grab ran so much later than the generator could have let it.
    pub fn delayed(&mut self, span: Duration) {
        self.delay_us.saturating_record(micros(span));
    }

    /// An answer came so long after its grab had left.
    pub fn answered_after(&mut self, span: Duration) {
        self.from_send_us.saturating_record(micros(span));
    }

    /// Adds what another connection recorded.
    pub fn absorb(&mut self, other: &Self) {
        let same = "two histograms of the same bounds";
        self.delay_us.add(&other.delay_us).expect(same);
        self.from_send_us.add(&other.from_send_us).expect(same);
    }

    /// So many of a thousand grabs were delayed by at most this many milliseconds.
    pub fn delay_ms(&self, permille: u32) -> f64 {
        ms(&self.delay_us, permille)
    }

    /// So many of a thousand answers came at most this many milliseconds after their grab had left.
    pub fn after_send_ms(&self, permille: u32) -> f64 {
        ms(&self.from_send_us, permille)
    }
}

/// Whether the generator kept up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pace {
    /// CPU time of this process, of a thousand of what its cores offered while grabs were fired; unknown
    /// where the system does not tell.
    pub cpu_permille: Option<f64>,
    /// The transport that was worse off, of those that carried enough grabs to be judged.
    #[serde(default)]
    pub transport: Option<String>,
    /// The 99th percentile of its own delay, in milliseconds.
    pub delay_p99_ms: f64,
    /// How long the generator stood still at a stretch, in milliseconds.
    #[serde(default)]
    pub still_ms: f64,
    /// How long it did in all, of a thousand of the firing.
    #[serde(default)]
    pub still_permille: f64,
    /// That of the latency which it is part of.
    pub latency_p99_ms: f64,
    /// Why nothing was measured but the generator.
    pub void: Option<String>,
}

impl Pace {
    /// Judges by what was used while grabs were fired, and each transport by itself: the run is void if any of
    /// them measured the generator.
    pub fn new(
        gates: &Gates,
        cpu: &Cpu,
        fire_s: f64,
        still: Still,
        records: &BTreeMap<Transport, Record>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        let offered_s = fire_s.max(0.001) * cores;
        let used = cpu.0.iter().find(|(name, _)| *name == "loadtest");
        let alone = Self {
            cpu_permille: used.map(|(_, time)| time.as_secs_f64() * 1_000.0 / offered_s),
            still_ms: still.longest.as_secs_f64() * 1_000.0,
            still_permille: still.sum.as_secs_f64() * 1_000.0 / fire_s.max(0.001),
            ..Self::default()
        };
        let sent: u64 = records.values().map(|record| record.sent).sum();
        let counts = |record: &Record| {
            record.sent >= GRABS_MIN && record.sent * 1_000 >= sent * GRABS_PERMILLE_MIN
        };
        let judged = records.iter().filter(|(_, record)| counts(record));
        let each = judged.map(|(transport, record)| Self {
            transport: Some(transport.name().to_owned()),
            delay_p99_ms: record.own.delay_ms(990),
            latency_p99_ms: record.latency_ms(990),
            ..alone.clone()
        });
        let worse = each.max_by(|one, other| {
            let voids = |pace: &Self| pace.why_void(gates).is_some();
            let delays = one.delay_p99_ms.total_cmp(&other.delay_p99_ms);
            voids(one).cmp(&voids(other)).then(delays)
        });
        let pace = worse.unwrap_or(alone);
        let void = pace.why_void(gates);
        Self { void, ..pace }
    }

    fn why_void(&self, gates: &Gates) -> Option<String> {
        let max = gates.generator_cpu_permille_max as f64;
        if let Some(used) = self.cpu_permille.filter(|used| *used > max) {
            return Some(format!(
                "the generator used {used:.0} thousandths of its processors, more than {max:.0}"
            ));
        }
        let latency = self.latency_p99_ms;
        let max = gates.generator_late_ms_max as f64;
        let matters = |delay: f64| delay > max && delay * 1_000.0 > latency * PART_PERMILLE_MAX;
        let of = match self.transport.as_deref() {
            Some("stream") => "grab on streams",
            _ => "single call",
        };
        let beyond = format!(
            "more than {max:.0} ms and a third of the {latency:.1} ms that one {of} in a hundred took"
        );
        let (delay, still) = (self.delay_p99_ms, self.still_ms);
        if matters(delay) {
            return Some(format!(
                "one {of} in a hundred was {delay:.1} ms late by the generator's own fault, {beyond}"
            ));
        }
        let judged = self.transport.is_some() && self.still_permille >= STILL_PERMILLE_MIN;
        (judged && matters(still))
            .then(|| format!("the generator stood still for {still:.0} ms at a stretch, {beyond}"))
    }

    /// For people: that the run is void, and why.
    pub fn verdict(&self) -> Option<String> {
        let why = self.void.as_ref()?;
        Some(format!("VOID   {why}"))
    }

    /// For people: how it kept up.
    pub fn words(&self) -> Option<String> {
        let used = self.cpu_permille? / 10.0;
        let (delay, still) = (self.delay_p99_ms, self.still_ms);
        Some(format!(
            "         the generator used {used:.0} % of its processors meanwhile; p99 of its own delay: \
             {delay:.1} ms; it stood still for {still:.0} ms at most"
        ))
    }
}

fn ms(histogram: &Histogram<u64>, permille: u32) -> f64 {
    histogram.value_at_quantile(f64::from(permille) / 1_000.0) as f64 / 1_000.0
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(SPAN_US_MAX)
}

#[cfg(test)]
mod tests;
