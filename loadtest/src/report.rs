//! Tells how a run went: to people on the terminal, to programs as JSON.
//!
//! The JSON's keys are stable; new ones may be added. What a reader could not make sense of any more has
//! another [`FORMAT`].

mod judge;
mod turned_down;
mod words;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use red_envelope_proto::v1;
use serde::{Deserialize, Serialize};

use crate::finish::{Findings, Sums};
use crate::generator::{Pace, Still};
use crate::profile::Profile;
use crate::record::Record;
use crate::sample::{BACKLOG, Bucket, Looks, Samples};
use crate::schedule::{Schedule, Transport};
use crate::timeline::OverTime;
pub use turned_down::TurnedDown;

/// What this program writes and reads. Reports before it had no number and nothing over time.
const FORMAT: u64 = 2;

/// Everything that a run found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u64,
    /// Of this program.
    pub version: String,
    /// When it began, in UTC.
    pub began_at: String,
    /// On what it ran.
    pub setup: Setup,
    /// The profile's name.
    pub profile: String,
    /// What the arrivals were planned from.
    pub seed: u64,
    /// Begins the name of everybody in it.
    pub run: String,
    /// Whether every gate was met, and the generator kept up.
    pub passed: bool,
    /// How the generator kept up.
    pub generator: Pace,
    /// Grabs that the profile plans.
    pub planned_grabs: u64,
    /// Envelopes that were sent.
    pub envelopes: u64,
    /// Shares of all of them.
    pub shares: u64,
    /// Those that closed.
    pub envelopes_closed: u64,
    /// Those that were recalled first.
    pub envelopes_recalled: u64,
    /// From the first instant to the last answer.
    pub fire_s: f64,
    /// From the last answer until the last envelope closed.
    pub close_s: f64,
    /// From the last answer until nothing waited for the books. None: the server does not tell, or it
    /// never was so.
    pub drained_s: Option<f64>,
    /// Grabs that left, by `fire_s`.
    pub grabs_per_s: f64,
    /// Microseconds by process, from the first instant to the last answer.
    pub cpu_us_per_grab: BTreeMap<String, f64>,
    /// The same until the last envelope closed.
    pub cpu_us_per_grab_until_closed: BTreeMap<String, f64>,
    /// Resident memory by process.
    pub memory: BTreeMap<String, Memory>,
    /// Grabs by calls of their own.
    pub unary: Option<Lines>,
    /// Grabs on streams.
    pub stream: Option<Lines>,
    /// What the server says that it turned down. None: it was not asked.
    #[serde(default)]
    pub turned_down: Option<TurnedDown>,
    /// Why not everything could be compared.
    #[serde(default)]
    pub not_compared: Option<String>,
    /// Accounts whose balance was compared.
    pub accounts_compared: u64,
    /// By currency.
    pub money: BTreeMap<String, Sums>,
    /// Wrong answers and balances.
    pub violation_count: u64,
    /// The first of them, in words.
    pub violations: Vec<String>,
    /// The server's own.
    pub audit: Audit,
    /// What must hold.
    pub gates: Vec<Gate>,
    /// Processes and the server's metrics over time.
    pub samples: Samples,
    /// Grabs that each server says it answered, since it started.
    #[serde(default)]
    pub answered_by: BTreeMap<String, u64>,
    /// Batches by size, from the first instant on.
    pub batches: BTreeMap<String, Vec<Bucket>>,
}

/// On what a run ran.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Setup {
    /// The stores that were started with the server. None: it ran already.
    pub stack: Option<String>,
    /// The level of acknowledgement. None: the server ran already.
    pub ack: Option<String>,
    /// Servers side by side. None: the server ran already, or the report is from before there were several.
    #[serde(default)]
    pub processes: Option<u64>,
    /// Of the machine of the load test; server and stores are there too if they were started.
    pub cores: u64,
    /// Whether this program, and the server that it started, was built for speed.
    pub optimised: bool,
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Before the run.
    pub before_bytes: u64,
    /// When every envelope was live and nobody had grabbed.
    pub prepared_bytes: u64,
    /// The most that was seen.
    pub peak_bytes: u64,
}

/// One transport's figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lines {
    /// Left at all.
    pub sent: u64,
    /// Left later than the profile allows.
    pub late: u64,
    /// Given up.
    pub not_sent: u64,
    /// Tries after the first.
    pub retried: u64,
    /// Answers by label.
    pub outcomes: BTreeMap<String, u64>,
    /// From the instant at which a grab was due, by percentile.
    pub latency_ms: BTreeMap<String, f64>,
    /// How long after their instant grabs left.
    pub lateness_ms: BTreeMap<String, f64>,
    /// What most load tests call latency: blind to whom a stalled server kept from being sent.
    pub from_send_ms: BTreeMap<String, f64>,
    /// Of the lateness, what was the generator's own fault.
    pub own_delay_ms: BTreeMap<String, f64>,
    /// The share of answers that took longer, and milliseconds.
    pub latency_curve: Vec<(f64, f64)>,
    /// Both transports have as many slots, as wide.
    pub over_time: OverTime,
}

/// What the money audit said.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Audit {
    /// Why there was none; then nothing else of it is told.
    #[serde(default)]
    pub failed: Option<String>,
    /// Nothing is wrong.
    pub clean: bool,
    /// Nothing was in flight.
    pub quiet: bool,
    /// What is wrong.
    pub discrepancy_count: u64,
    /// The first of them, in words.
    pub discrepancies: Vec<String>,
    /// What was looked at.
    pub envelopes: u64,
    /// Shares that the hot store granted.
    pub grants: u64,
    /// Shares that the books paid.
    pub claims: u64,
}

/// One thing that must hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gate {
    /// What.
    pub name: String,
    /// What must hold.
    pub wanted: String,
    /// What was.
    pub found: String,
    /// Whether it did.
    pub met: bool,
}

/// Percentiles that are told, in thousandths.
pub const QUANTILES: [(&str, u32); 5] = [
    ("p50", 500),
    ("p90", 900),
    ("p99", 990),
    ("p99.9", 999),
    ("max", 1_000),
];
/// Discrepancies that are told in words.
const DISCREPANCIES_MAX: usize = 20;

/// CPU time by process.
#[derive(Default)]
pub struct Cpu(pub Vec<(&'static str, Duration)>);

impl Cpu {
    /// What each process used since then.
    pub fn since(self, before: &Self) -> Self {
        let of = |name| before.0.iter().find(|(other, _)| *other == name);
        let used = self.0.into_iter().map(|(name, time)| {
            let before = of(name).map_or(Duration::ZERO, |(_, time)| *time);
            (name, time.saturating_sub(before))
        });
        Self(used.collect())
    }

    /// Microseconds of each of so many grabs, answered by any of the processes.
    fn per_grab(&self, grabs: u64) -> BTreeMap<String, f64> {
        let grabs = u32::try_from(grabs.max(1)).unwrap_or(u32::MAX);
        let all = self.0.iter();
        let each = |time: &Duration| time.as_secs_f64() * 1e6 / f64::from(grabs);
        all.map(|(name, time)| ((*name).to_owned(), thousandths(each(time))))
            .collect()
    }
}

/// Resident memory by process.
pub type Resident = BTreeMap<&'static str, u64>;

/// What a run leaves behind.
pub struct Outcome<'a> {
    /// What was asked for.
    pub profile: &'a Profile,
    /// On what.
    pub setup: Setup,
    /// When, in UTC.
    pub began_at: String,
    /// The run's name.
    pub run: &'a str,
    /// What was planned.
    pub schedule: &'a Schedule,
    /// What was measured.
    pub records: BTreeMap<Transport, Record>,
    /// The first instant and the last answer.
    pub fired: [Instant; 2],
    /// CPU time of that, and until all envelopes were closed.
    pub cpu: [Cpu; 2],
    /// Memory before the run, and when all was prepared.
    pub memory: [Resident; 2],
    /// When the generator could not run.
    pub still: Still,
    /// What was seen over time.
    pub looks: Looks,
    /// What was compared.
    pub findings: Findings,
    /// What the server's audit says, or why there is none.
    pub audit: Result<v1::AuditResponse, String>,
    /// Why what was to happen meanwhile did not.
    pub meanwhile: Option<String>,
}

impl Report {
    /// Judges.
    pub fn new(outcome: Outcome<'_>) -> Self {
        let Outcome {
            profile,
            findings,
            audit,
            mut records,
            schedule,
            ..
        } = outcome;
        let judged = judge::Judged {
            profile,
            findings: &findings,
            audit: &audit,
            meanwhile: outcome.meanwhile.as_deref(),
        };
        let gates = judge::gates(&judged, &records);
        let answered: u64 = records.values().map(|record| record.sent).sum();
        let [start, end] = outcome.fired;
        let fire_s = end.saturating_duration_since(start).as_secs_f64();
        let generator = Pace::new(
            &profile.gates,
            &outcome.cpu[0],
            fire_s,
            outcome.still,
            &records,
        );
        let [cpu, cpu_until_closed] = outcome.cpu.map(|cpu| cpu.per_grab(answered));
        let answered = u32::try_from(answered).unwrap_or(u32::MAX);
        let slots = align(&mut records);
        let samples = outcome.looks.told(start);
        let shares = schedule.envelopes.iter();
        let shares = shares.map(|crowd| u64::from(profile.crowds[*crowd].shares));
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            began_at: outcome.began_at,
            setup: outcome.setup,
            profile: profile.name.clone(),
            seed: profile.seed,
            run: outcome.run.to_owned(),
            passed: gates.iter().all(|gate| gate.met) && generator.void.is_none(),
            generator,
            planned_grabs: schedule.arrivals.len() as u64,
            envelopes: schedule.envelopes.len() as u64,
            shares: shares.sum(),
            envelopes_closed: findings.closed as u64,
            envelopes_recalled: findings.recalled as u64,
            fire_s: thousandths(fire_s),
            close_s: thousandths(findings.close_s),
            drained_s: drained_s(&samples, fire_s),
            grabs_per_s: thousandths(f64::from(answered) / fire_s.max(0.001)),
            cpu_us_per_grab: cpu,
            cpu_us_per_grab_until_closed: cpu_until_closed,
            memory: memory(&outcome.memory, &samples),
            unary: (records.get(&Transport::Unary)).map(|record| Lines::new(record, slots)),
            stream: (records.get(&Transport::Stream)).map(|record| Lines::new(record, slots)),
            turned_down: TurnedDown::of(&samples),
            not_compared: findings.failed,
            accounts_compared: findings.accounts as u64,
            money: findings.money,
            violation_count: findings.violations.count,
            violations: findings.violations.details,
            audit: Audit::new(&audit),
            gates,
            samples,
            answered_by: outcome.looks.answered_by(),
            batches: outcome.looks.batches(start),
        }
    }

    /// Reads what [`Report::json`] wrote.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let name = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
        Self::parse(&text).with_context(|| format!("{name} can't be used"))
    }

    /// Reads the text of a report.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            format: Option<u64>,
        }
        let head: Head = serde_json::from_str(text).context("it is no report of a load test")?;
        let format = head.format.map_or("none".to_owned(), |it| it.to_string());
        ensure!(
            head.format == Some(FORMAT),
            "its format is {format}, not the {FORMAT} of this program: run the rehearsal again"
        );
        serde_json::from_str(text).context("it lacks something")
    }

    /// Whether everything held.
    pub fn passed(&self) -> bool {
        self.passed
    }

    /// For programs.
    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    /// Each transport that was used, by name.
    pub fn transports(&self) -> impl Iterator<Item = (&'static str, &Lines)> {
        let sides = [("unary", &self.unary), ("stream", &self.stream)];
        let sides = sides.into_iter();
        sides.filter_map(|(name, side)| Some((name, side.as_ref()?)))
    }

    /// The sum over the transports.
    pub fn sum(&self, of: impl Fn(&Lines) -> u64) -> u64 {
        self.transports().map(|(_, lines)| of(lines)).sum()
    }

    /// Answers of one outcome.
    pub fn answers(&self, label: &str) -> u64 {
        self.sum(|lines| lines.outcomes.get(label).copied().unwrap_or(0))
    }
}

/// Gives every transport slots of the same width, and answers how many the longest has.
fn align(records: &mut BTreeMap<Transport, Record>) -> usize {
    let widest = records
        .values()
        .map(|record| record.timeline.slot_s())
        .max();
    for record in records.values_mut() {
        record.timeline.widen_to(widest.unwrap_or(1));
    }
    let longest = records.values().map(|record| record.timeline.len()).max();
    longest.unwrap_or(0)
}

/// From the last answer until the first look that found nothing waiting for the books.
fn drained_s(samples: &Samples, fire_s: f64) -> Option<f64> {
    let backlog = samples.server.get(BACKLOG)?;
    let after = samples.at_s.iter().zip(backlog);
    let mut empty = after.filter(|(at_s, waiting)| **at_s >= fire_s && **waiting == Some(0.0));
    let (at_s, _) = empty.next()?;
    Some(thousandths(at_s - fire_s))
}

fn memory([before, prepared]: &[Resident; 2], samples: &Samples) -> BTreeMap<String, Memory> {
    let each = before.iter().filter_map(|(name, before_bytes)| {
        let prepared_bytes = *prepared.get(name)?;
        let seen = samples.memory_bytes.get(*name)?.iter().flatten().max()?;
        let memory = Memory {
            before_bytes: *before_bytes,
            prepared_bytes,
            peak_bytes: *seen.max(&prepared_bytes),
        };
        Some(((*name).to_owned(), memory))
    });
    each.collect()
}

impl Lines {
    fn new(record: &Record, slots: usize) -> Self {
        let quantiles = |of: &dyn Fn(u32) -> f64| {
            let each = QUANTILES.iter();
            each.map(|(name, permille)| ((*name).to_owned(), thousandths(of(*permille))))
                .collect()
        };
        let outcomes = record.outcomes.iter();
        Self {
            sent: record.sent,
            late: record.late,
            not_sent: record.not_sent,
            retried: record.retried,
            outcomes: outcomes
                .map(|(label, n)| ((*label).to_owned(), *n))
                .collect(),
            latency_ms: quantiles(&|permille| record.latency_ms(permille)),
            lateness_ms: quantiles(&|permille| record.lateness_ms(permille)),
            from_send_ms: quantiles(&|permille| record.own.after_send_ms(permille)),
            own_delay_ms: quantiles(&|permille| record.own.delay_ms(permille)),
            latency_curve: record.latency_curve(),
            over_time: record.timeline.told(slots),
        }
    }
}

impl Audit {
    fn new(audit: &Result<v1::AuditResponse, String>) -> Self {
        let audit = match audit {
            Ok(audit) => audit,
            Err(why) => {
                return Self {
                    failed: Some(why.clone()),
                    ..Self::default()
                };
            }
        };
        let told = audit.discrepancies.iter().take(DISCREPANCIES_MAX);
        let told = told.map(|it| {
            let kind = it.kind().as_str_name();
            format!("{kind} {} {}", it.envelope_id, it.detail)
        });
        Self {
            failed: None,
            clean: audit.clean,
            quiet: audit.quiet,
            discrepancy_count: audit.discrepancy_count,
            discrepancies: told.collect(),
            envelopes: audit.envelope_count,
            grants: audit.grant_count,
            claims: audit.claim_count,
        }
    }
}

/// Rounded: a report is read by people, too.
pub fn thousandths(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
pub mod tests;
