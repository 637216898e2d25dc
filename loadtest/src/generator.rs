//! What the generator itself did to the figures, told apart from what the server did, and whether that voids
//! a run.
//!
//! Latency counts from the instant at which a grab was due (`record`), so whatever the generator loses by
//! itself looks like the server's. Two figures keep it honest: how late the generator was by its own fault,
//! and how much of its cores it used. A generator that is busy with itself measures itself.
//!
//! *Own delay* is from the instant at which a lane could act (the grab was due, and none before it waited for
//! a place) until the grab's task ran, without the wait for a place, which is the server's fault.
//!
//! *From the send* is what most load tests call latency. It is told beside the other one to compare with them
//! and judges nothing: a server that stalls has answered fast whatever was sent before and after.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::profile::Gates;
use crate::record::Record;
use crate::report::Cpu;
use crate::schedule::Transport;

/// Delays beyond this are recorded as this: five minutes.
const SPAN_US_MAX: u64 = 300_000_000;
/// An own delay matters where it is more than this part of a thousand of the latency that it is part of.
const PART_PERMILLE_MAX: f64 = 200.0;

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
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pace {
    /// CPU time of this process, of a thousand of what its cores offered while grabs were fired; unknown
    /// where the system does not tell.
    pub cpu_permille: Option<f64>,
    /// The 99th percentile of the own delay, in milliseconds: of the transport that was worse off.
    pub delay_p99_ms: f64,
    /// That of the latency which it is part of.
    pub latency_p99_ms: f64,
    /// Why nothing was measured but the generator.
    pub void: Option<String>,
}

impl Pace {
    /// Judges by what was used while grabs were fired.
    pub fn new(
        gates: &Gates,
        cpu: &Cpu,
        fire_s: f64,
        records: &BTreeMap<Transport, Record>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        let offered_s = fire_s.max(0.001) * cores;
        let used = cpu.0.iter().find(|(name, _)| *name == "loadtest");
        let p99s = records.values();
        let worse = p99s
            .map(|record| (record.own.delay_ms(990), record.latency_ms(990)))
            .max_by(|(one, _), (other, _)| one.total_cmp(other));
        let (delay_p99_ms, latency_p99_ms) = worse.unwrap_or_default();
        let mut pace = Self {
            cpu_permille: used.map(|(_, time)| time.as_secs_f64() * 1_000.0 / offered_s),
            delay_p99_ms,
            latency_p99_ms,
            void: None,
        };
        pace.void = pace.why_void(gates);
        pace
    }

    fn why_void(&self, gates: &Gates) -> Option<String> {
        let max = gates.generator_cpu_permille_max as f64;
        if let Some(used) = self.cpu_permille.filter(|used| *used > max) {
            return Some(format!(
                "the generator used {used:.0} thousandths of its processors, more than {max:.0}"
            ));
        }
        let (delay, latency) = (self.delay_p99_ms, self.latency_p99_ms);
        let max = gates.generator_late_ms_max as f64;
        let part = delay * 1_000.0 / latency.max(0.001);
        (delay > max && part > PART_PERMILLE_MAX).then(|| {
            format!(
                "one grab in a hundred was {delay:.1} ms late by the generator's own fault, more than \
                 {max:.0} ms and a fifth of the {latency:.1} ms that one in a hundred took"
            )
        })
    }

    /// For people: that the run is void, and why.
    pub fn verdict(&self) -> Option<String> {
        let why = self.void.as_ref()?;
        Some(format!("VOID   {why}"))
    }

    /// For people: how it kept up.
    pub fn words(&self) -> Option<String> {
        let used = self.cpu_permille? / 10.0;
        let delay = self.delay_p99_ms;
        Some(format!(
            "         the generator used {used:.0} % of its processors meanwhile; p99 of its own delay: \
             {delay:.1} ms"
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
mod tests {
    use super::*;

    fn why(cpu_permille: f64, delay_p99_ms: f64, latency_p99_ms: f64) -> Option<String> {
        let gates = Gates {
            generator_cpu_permille_max: 800,
            generator_late_ms_max: 20,
            ..crate::profile::load("smoke").unwrap().gates
        };
        let pace = Pace {
            cpu_permille: Some(cpu_permille),
            delay_p99_ms,
            latency_p99_ms,
            void: None,
        };
        pace.why_void(&gates)
    }

    #[test]
    fn a_generator_that_keeps_up_voids_nothing() {
        assert_eq!(why(800.0, 20.0, 21.0), None);
        // Late, but the latency is the server's.
        assert_eq!(why(100.0, 30.0, 1_000.0), None);
    }

    #[test]
    fn a_busy_generator_voids_a_run() {
        let why = why(801.0, 0.0, 1.0).unwrap();
        assert!(why.contains("used 801 thousandths"), "{why}");
    }

    #[test]
    fn a_late_generator_voids_a_run_whose_latency_it_made() {
        let why = why(100.0, 21.0, 100.0).unwrap();
        assert!(why.contains("21.0 ms late"), "{why}");
    }

    #[test]
    fn the_transport_that_was_worse_off_is_judged() {
        let record = |delay_ms, latency_ms| {
            let mut record = Record::new(Duration::from_millis(20));
            record.own.delayed(Duration::from_millis(delay_ms));
            let answered = Duration::from_millis(latency_ms);
            record.answered(Duration::ZERO, answered, 1, "won");
            record
        };
        let records = BTreeMap::from([
            (Transport::Unary, record(30, 40)),
            (Transport::Stream, record(3, 9_000)),
        ]);
        let gates = crate::profile::load("burst").unwrap().gates;
        let cpu = Cpu(vec![
            ("server", Duration::MAX),
            ("loadtest", Duration::from_secs(1)),
        ]);
        let pace = Pace::new(&gates, &cpu, 2.0, &records);
        let cores = std::thread::available_parallelism().unwrap().get() as f64;
        assert_eq!(pace.cpu_permille, Some(500.0 / cores));
        assert!((pace.delay_p99_ms - 30.0).abs() < 0.1, "{pace:?}");
        assert!((pace.latency_p99_ms - 40.0).abs() < 0.1, "{pace:?}");
        assert!(pace.void.is_some(), "{pace:?}");
    }
}
