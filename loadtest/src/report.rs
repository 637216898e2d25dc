//! Tells how a run went: to people on the terminal, to programs as JSON.
//!
//! The JSON's keys are stable; new ones may be added.

use std::collections::BTreeMap;
use std::time::Duration;

use red_envelope_proto::v1;
use serde::Serialize;

use crate::book::Violations;
use crate::finish::{Findings, Sums};
use crate::generator::Pace;
use crate::profile::Profile;
use crate::record::Record;
use crate::schedule::{Schedule, Transport};

/// Everything that a run found out.
#[derive(Serialize)]
pub struct Report {
    profile: String,
    seed: u64,
    run: String,
    passed: bool,
    generator: Pace,
    planned_grabs: u64,
    envelopes: u64,
    envelopes_closed: u64,
    envelopes_recalled: u64,
    fire_s: f64,
    close_s: f64,
    grabs_per_s: f64,
    cpu_us_per_grab: BTreeMap<&'static str, f64>,
    cpu_us_per_grab_until_closed: BTreeMap<&'static str, f64>,
    unary: Option<Lines>,
    stream: Option<Lines>,
    accounts_compared: u64,
    money: BTreeMap<String, Sums>,
    violation_count: u64,
    violations: Vec<String>,
    audit: Audit,
    gates: Vec<Gate>,
}

/// One transport's figures.
#[derive(Serialize)]
struct Lines {
    sent: u64,
    late: u64,
    not_sent: u64,
    retried: u64,
    outcomes: BTreeMap<&'static str, u64>,
    latency_ms: BTreeMap<&'static str, f64>,
    lateness_ms: BTreeMap<&'static str, f64>,
    /// What most load tests call latency: blind to whom a stalled server kept from being sent.
    from_send_ms: BTreeMap<&'static str, f64>,
    /// Of the lateness, what was the generator's own fault.
    own_delay_ms: BTreeMap<&'static str, f64>,
}

/// What the money audit said.
#[derive(Serialize)]
struct Audit {
    clean: bool,
    quiet: bool,
    discrepancy_count: u64,
    discrepancies: Vec<String>,
    envelopes: u64,
    grants: u64,
    claims: u64,
}

/// One thing that must hold.
#[derive(Serialize)]
struct Gate {
    name: &'static str,
    wanted: String,
    found: String,
    met: bool,
}

/// Percentiles that are told, in thousandths.
const QUANTILES: [(&str, u32); 5] = [
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

    /// Microseconds of each of so many grabs.
    fn per_grab(&self, grabs: u64) -> BTreeMap<&'static str, f64> {
        let grabs = u32::try_from(grabs.max(1)).unwrap_or(u32::MAX);
        let all = self.0.iter();
        let each = |time: &Duration| time.as_secs_f64() * 1e6 / f64::from(grabs);
        all.map(|(name, time)| (*name, thousandths(each(time))))
            .collect()
    }
}

/// What a run leaves behind.
pub struct Outcome<'a> {
    /// What was asked for.
    pub profile: &'a Profile,
    /// The run's name.
    pub run: &'a str,
    /// What was planned.
    pub schedule: &'a Schedule,
    /// What was measured.
    pub records: &'a BTreeMap<Transport, Record>,
    /// From the first instant to the last answer.
    pub fire_s: f64,
    /// CPU time of that, and until all envelopes were closed.
    pub cpu: [Cpu; 2],
    /// What was compared.
    pub findings: Findings,
    /// What the server's audit says.
    pub audit: v1::AuditResponse,
}

impl Report {
    /// Judges.
    pub fn new(outcome: Outcome<'_>) -> Self {
        let Outcome {
            profile,
            findings,
            audit,
            records,
            ..
        } = outcome;
        let gates = gates(profile, records, &findings.violations, &audit);
        let generator = Pace::new(&profile.gates, &outcome.cpu[0], outcome.fire_s, records);
        let answered: u64 = records.values().map(|record| record.sent).sum();
        let [cpu, cpu_until_closed] = outcome.cpu.map(|cpu| cpu.per_grab(answered));
        let answered = u32::try_from(answered).unwrap_or(u32::MAX);
        Self {
            profile: profile.name.clone(),
            seed: profile.seed,
            run: outcome.run.to_owned(),
            passed: gates.iter().all(|gate| gate.met) && generator.void.is_none(),
            generator,
            planned_grabs: outcome.schedule.arrivals.len() as u64,
            envelopes: outcome.schedule.envelopes.len() as u64,
            envelopes_closed: findings.closed as u64,
            envelopes_recalled: findings.recalled as u64,
            fire_s: thousandths(outcome.fire_s),
            close_s: thousandths(findings.close_s),
            grabs_per_s: thousandths(f64::from(answered) / outcome.fire_s.max(0.001)),
            cpu_us_per_grab: cpu,
            cpu_us_per_grab_until_closed: cpu_until_closed,
            unary: records.get(&Transport::Unary).map(Lines::new),
            stream: records.get(&Transport::Stream).map(Lines::new),
            accounts_compared: findings.accounts as u64,
            money: findings.money,
            violation_count: findings.violations.count,
            violations: findings.violations.details,
            audit: Audit::new(&audit),
            gates,
        }
    }

    /// Whether everything held.
    pub fn passed(&self) -> bool {
        self.passed
    }

    /// For programs.
    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// For people.
    pub fn words(&self) -> String {
        let mut lines = vec![
            String::new(),
            format!(
                "{} with seed {}: {} grabs on {} envelopes in {:.1} s, {:.0} a second",
                self.profile,
                self.seed,
                self.planned_grabs,
                self.envelopes,
                self.fire_s,
                self.grabs_per_s
            ),
            String::new(),
        ];
        lines.extend(self.times());
        lines.extend(self.cpu_times());
        lines.push(String::new());
        lines.extend(self.money());
        lines.push(String::new());
        for gate in &self.gates {
            let verdict = if gate.met { "ok    " } else { "MISSED" };
            lines.push(format!(
                "{verdict} {:28} {} (wanted: {})",
                gate.name, gate.found, gate.wanted
            ));
        }
        lines.extend(self.generator.verdict());
        lines.push(if self.passed { "passed" } else { "FAILED" }.into());
        lines.join("\n")
    }

    fn times(&self) -> Vec<String> {
        let heads = QUANTILES.map(|(name, _)| format!("{:>9}", format!("{name} ms")));
        let mut lines = vec![format!(
            "{:8} {:>8} {:>6} {:>8} {:>7} {}",
            "",
            "sent",
            "late",
            "not sent",
            "retried",
            heads.join(" ")
        )];
        let sides = [("unary", &self.unary), ("stream", &self.stream)];
        let sides = sides.map(|(name, side)| Some((name, side.as_ref()?)));
        for (name, side) in sides.iter().flatten() {
            let times = QUANTILES.map(|(name, _)| format!("{:>9.2}", side.latency_ms[name]));
            lines.push(format!(
                "{name:8} {:>8} {:>6} {:>8} {:>7} {}",
                side.sent,
                side.late,
                side.not_sent,
                side.retried,
                times.join(" ")
            ));
        }
        lines.push("         times count from the instant at which a grab was due".into());
        for (name, side) in sides.iter().flatten() {
            let outcomes = side.outcomes.iter();
            let outcomes: Vec<String> = outcomes.map(|(label, n)| format!("{label} {n}")).collect();
            lines.push(format!("{name:8} {}", outcomes.join(", ")));
        }
        lines
    }

    fn cpu_times(&self) -> Vec<String> {
        let told = [
            ("while grabs were answered", &self.cpu_us_per_grab),
            ("until all was closed", &self.cpu_us_per_grab_until_closed),
        ];
        let line = |(until, times): (&str, &BTreeMap<&str, f64>)| {
            let each = times.iter().map(|(name, us)| format!("{name} {us:.1}"));
            let each: Vec<String> = each.collect();
            format!("         CPU time, µs a grab, {until}: {}", each.join(", "))
        };
        let lines = told.map(line).into_iter();
        lines.chain(self.generator.words()).collect()
    }

    fn money(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} envelopes closed ({} of them recalled first) {:.1} s after the last answer",
            self.envelopes_closed, self.envelopes_recalled, self.close_s
        )];
        for (currency, sums) in &self.money {
            lines.push(format!(
                "{currency}: funded {} = won {} + refunded {} minor units",
                sums.funded_minor, sums.won_minor, sums.refunded_minor
            ));
        }
        lines.push(format!(
            "{} accounts compared with what their owners were told",
            self.accounts_compared
        ));
        lines.push(format!(
            "audit: {} envelopes, {} grants, {} claims",
            self.audit.envelopes, self.audit.grants, self.audit.claims
        ));
        let wrong = self.violations.iter().chain(&self.audit.discrepancies);
        lines.extend(wrong.map(|detail| format!("WRONG  {detail}")));
        lines
    }
}

impl Lines {
    fn new(record: &Record) -> Self {
        let quantiles = |of: &dyn Fn(u32) -> f64| {
            QUANTILES
                .iter()
                .map(|(name, permille)| (*name, thousandths(of(*permille))))
                .collect()
        };
        Self {
            sent: record.sent,
            late: record.late,
            not_sent: record.not_sent,
            retried: record.retried,
            outcomes: record.outcomes.clone(),
            latency_ms: quantiles(&|permille| record.latency_ms(permille)),
            lateness_ms: quantiles(&|permille| record.lateness_ms(permille)),
            from_send_ms: quantiles(&|permille| record.own.after_send_ms(permille)),
            own_delay_ms: quantiles(&|permille| record.own.delay_ms(permille)),
        }
    }
}

impl Audit {
    fn new(audit: &v1::AuditResponse) -> Self {
        Self {
            clean: audit.clean,
            quiet: audit.quiet,
            discrepancy_count: audit.discrepancy_count,
            discrepancies: audit
                .discrepancies
                .iter()
                .take(DISCREPANCIES_MAX)
                .map(|it| {
                    format!(
                        "{} {} {}",
                        it.kind().as_str_name(),
                        it.envelope_id,
                        it.detail
                    )
                })
                .collect(),
            envelopes: audit.envelope_count,
            grants: audit.grant_count,
            claims: audit.claim_count,
        }
    }
}

fn gates(
    profile: &Profile,
    records: &BTreeMap<Transport, Record>,
    violations: &Violations,
    audit: &v1::AuditResponse,
) -> Vec<Gate> {
    let sum = |of: fn(&Record) -> u64| records.values().map(of).sum::<u64>();
    let due = (sum(|it| it.sent) + sum(|it| it.not_sent)).max(1);
    let unresolved = sum(|it| it.outcomes.get("unresolved").copied().unwrap_or(0));
    let wanted = &profile.gates;
    let at_most = |name, found: u64, max: u64| Gate {
        name,
        wanted: format!("at most {max}"),
        found: found.to_string(),
        met: found <= max,
    };
    // Rounded up: one grab in a million is not zero of a thousand.
    let permille = |count: u64| (count * 1_000).div_ceil(due);
    let mut gates = vec![
        at_most("wrong answers and balances", violations.count, 0),
        at_most("audit discrepancies", audit.discrepancy_count, 0),
        Gate {
            name: "audit",
            wanted: "clean and quiet".into(),
            found: format!("clean {}, quiet {}", audit.clean, audit.quiet),
            met: audit.clean && audit.quiet,
        },
        at_most("unresolved", unresolved, wanted.unresolved_max),
        at_most(
            "not sent, of a thousand",
            permille(sum(|it| it.not_sent)),
            wanted.not_sent_permille_max,
        ),
        at_most(
            "late, of a thousand",
            permille(sum(|it| it.late)),
            wanted.late_permille_max,
        ),
    ];
    for (name, transport, max) in [
        ("unary p99 ms", Transport::Unary, wanted.unary_p99_ms_max),
        ("stream p99 ms", Transport::Stream, wanted.stream_p99_ms_max),
    ] {
        if let Some(record) = records.get(&transport) {
            let found = record.latency_ms(990);
            gates.push(Gate {
                name,
                wanted: format!("at most {max}"),
                found: format!("{found:.1}"),
                met: found <= max as f64,
            });
        }
    }
    gates
}

fn thousandths(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn report(change: impl FnOnce(&mut Record, &mut Findings, &mut v1::AuditResponse)) -> Report {
        let profile = crate::profile::load("smoke").unwrap();
        let schedule = crate::schedule::plan(&profile);
        let mut record = Record::new(Duration::from_millis(20));
        for _ in 0..1_000 {
            record.left(Duration::ZERO, Duration::ZERO);
            record.answered(Duration::ZERO, Duration::from_millis(3), 1, "won");
        }
        let mut findings = Findings::default();
        let mut audit = v1::AuditResponse {
            clean: true,
            quiet: true,
            ..v1::AuditResponse::default()
        };
        change(&mut record, &mut findings, &mut audit);
        Report::new(Outcome {
            profile: &profile,
            run: "r",
            schedule: &schedule,
            records: &BTreeMap::from([(Transport::Unary, record)]),
            fire_s: 1.0,
            cpu: [cpu(&[("server", 12)]), cpu(&[("server", 20), ("redis", 3)])],
            findings,
            audit,
        })
    }

    fn cpu(ms: &[(&'static str, u64)]) -> Cpu {
        let times = ms
            .iter()
            .map(|(name, ms)| (*name, Duration::from_millis(*ms)));
        Cpu(times.collect())
    }

    #[test]
    fn cpu_time_is_told_by_process_and_grab() {
        let report = report(|_, _, _| {});
        assert_eq!(report.cpu_us_per_grab["server"], 12.0);
        assert_eq!(report.cpu_us_per_grab_until_closed["redis"], 3.0);
        let words = report.words();
        assert!(
            words.contains("until all was closed: redis 3.0, server 20.0"),
            "{words}"
        );
        let since = cpu(&[("server", 20), ("redis", 3)]).since(&cpu(&[("server", 12)]));
        assert_eq!(since.0, cpu(&[("server", 8), ("redis", 3)]).0);
    }

    #[test]
    fn a_faultless_run_passes() {
        let report = report(|_, _, _| {});
        assert!(report.passed(), "{}", report.words());
    }

    #[test]
    fn one_wrong_answer_fails_a_run() {
        let report = report(|_, findings, _| findings.violations.note("a unit is missing".into()));
        assert!(!report.passed());
        assert!(report.words().contains("a unit is missing"));
    }

    #[test]
    fn an_audit_that_is_not_quiet_fails_a_run() {
        assert!(!report(|_, _, audit| audit.quiet = false).passed());
    }

    #[test]
    fn one_grab_that_was_not_sent_fails_a_run_that_allows_none() {
        assert!(!report(|record, _, _| record.given_up()).passed());
    }

    #[test]
    fn slow_answers_fail_a_run() {
        let slow = |record: &mut Record, _: &mut Findings, _: &mut v1::AuditResponse| {
            for _ in 0..100 {
                record.left(Duration::ZERO, Duration::ZERO);
                record.answered(Duration::ZERO, Duration::from_secs(20), 1, "won");
            }
        };
        assert!(!report(slow).passed());
    }

    #[test]
    fn the_json_names_the_gates() {
        let json: serde_json::Value =
            serde_json::from_str(&report(|_, _, _| {}).json().unwrap()).unwrap();
        assert_eq!(json["passed"], true);
        assert_eq!(json["unary"]["sent"], 1_000);
        assert_eq!(json["gates"][0]["met"], true);
    }
}
