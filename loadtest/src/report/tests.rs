//! What a report says of runs that went well, and of others.

use super::*;

/// A run of a thousand faultless grabs, changed.
pub fn report(change: impl FnOnce(&mut Record, &mut Findings, &mut v1::AuditResponse)) -> Report {
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
    let start = Instant::now();
    Report::new(Outcome {
        profile: &profile,
        setup: Setup::default(),
        began_at: "2026-01-01T00:00:00Z".into(),
        run: "r",
        schedule: &schedule,
        records: BTreeMap::from([(Transport::Unary, record)]),
        fired: [start, start + Duration::from_secs(1)],
        cpu: [cpu(&[("server", 12)]), cpu(&[("server", 20), ("redis", 3)])],
        memory: [Resident::new(), Resident::new()],
        still: Still::default(),
        looks: Looks::none(),
        findings,
        audit: Ok(audit),
        meanwhile: None,
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
    assert!(!report(|record, _, _| record.given_up(Duration::ZERO)).passed());
}

/// The same, with what came of the comparison, the audit and the commands.
fn broken(findings: Findings, audit: Result<v1::AuditResponse, String>) -> Report {
    let profile = crate::profile::load("smoke").unwrap();
    let start = Instant::now();
    Report::new(Outcome {
        profile: &profile,
        setup: Setup::default(),
        began_at: String::new(),
        run: "r",
        schedule: &crate::schedule::plan(&profile),
        records: BTreeMap::new(),
        fired: [start; 2],
        cpu: [cpu(&[]), cpu(&[])],
        memory: [Resident::new(), Resident::new()],
        still: Still::default(),
        looks: Looks::none(),
        findings,
        audit,
        meanwhile: Some("no such command".into()),
    })
}

#[test]
fn a_server_that_died_leaves_a_report_that_says_what_could_not_be_done() {
    let findings = Findings {
        failed: Some("nobody is there".into()),
        ..Findings::default()
    };
    let report = broken(findings, Err("nobody answers".into()));
    assert!(!report.passed());
    let words = report.words();
    for told in [
        "could not be compared: nobody is there",
        "could not be audited: nobody answers",
        "not done: no such command",
        "audit: none",
    ] {
        assert!(words.contains(told), "{told:?} is not in\n{words}");
    }
    let missed = report.gates.iter().filter(|gate| !gate.met);
    let missed: Vec<&str> = missed.map(|gate| gate.name.as_str()).collect();
    assert_eq!(missed, ["comparison", "audit", "meanwhile"]);
}

fn gate<'a>(report: &'a Report, name: &str) -> Option<&'a Gate> {
    report.gates.iter().find(|gate| gate.name == name)
}

#[test]
fn a_gate_that_cannot_fail_is_not_told_as_met() {
    let report = report(|_, _, _| {});
    assert!(gate(&report, "late, of a thousand").is_none());
    assert!(gate(&report, "retried, of a thousand").is_none());
}

#[test]
fn a_crowd_that_left_late_and_a_storm_that_did_not_blow_miss_the_gates_that_judge_them() {
    let mut profile = crate::profile::load("smoke").unwrap();
    profile.gates.late_permille_max = Some(100);
    profile.gates.retried_permille_min = Some(1_500);
    let found = |late: u64, tries: u32| {
        let mut record = Record::new(Duration::from_millis(20));
        for grab in 0..100 {
            let left = Duration::from_millis(if grab < late { 21 } else { 0 });
            record.left(Duration::ZERO, left);
            record.answered(Duration::ZERO, left, tries, "won");
        }
        let judged = judge::Judged {
            profile: &profile,
            findings: &Findings::default(),
            audit: &Ok(v1::AuditResponse::default()),
            meanwhile: None,
        };
        let gates = judge::gates(&judged, &BTreeMap::from([(Transport::Unary, record)]));
        let met = |name: &str| gates.iter().find(|it| it.name == name).unwrap().met;
        [met("late, of a thousand"), met("retried, of a thousand")]
    };
    assert_eq!(found(10, 3), [true, true]);
    assert_eq!(found(11, 2), [false, false]);
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
fn a_generator_that_measured_itself_fails_a_run_whose_gates_are_met() {
    let late = Duration::from_secs(100);
    let report = report(|record, _, _| (0..1_000).for_each(|_| record.own.delayed(late)));
    assert!(report.gates.iter().all(|gate| gate.met));
    assert!(!report.passed());
    assert!(report.words().contains("VOID   "), "{}", report.words());
}

#[test]
fn the_json_names_the_gates() {
    let json: serde_json::Value =
        serde_json::from_str(&report(|_, _, _| {}).json().unwrap()).unwrap();
    assert_eq!(json["passed"], true);
    assert_eq!(json["unary"]["sent"], 1_000);
    assert_eq!(json["gates"][0]["met"], true);
}

#[test]
fn what_is_written_is_read_again() {
    let report = report(|_, _, _| {});
    let json = report.json().unwrap();
    assert_eq!(Report::parse(&json).unwrap().json().unwrap(), json);
}

#[test]
fn a_report_of_another_format_is_refused_by_its_number() {
    let json = report(|_, _, _| {}).json().unwrap();
    let newer = json.replacen("\"format\":2", "\"format\":3", 1);
    let told = format!("{:#}", Report::parse(&newer).unwrap_err());
    assert!(told.contains("its format is 3, not the 2"), "{told}");
    let older = Report::parse("{\"passed\":true}").unwrap_err();
    assert!(older.to_string().contains("its format is none"), "{older}");
    assert!(Report::parse("[]").is_err());
}

#[test]
fn the_books_are_drained_at_the_first_look_after_the_last_answer_that_finds_nothing() {
    let mut samples = Samples {
        at_s: vec![0.0, 1.0, 2.5, 3.0],
        ..Samples::default()
    };
    assert_eq!(drained_s(&samples, 1.0), None);
    let waiting = vec![Some(0.0), Some(9.0), None, Some(0.0)];
    samples.server.insert(BACKLOG.to_owned(), waiting);
    assert_eq!(drained_s(&samples, 1.0), Some(2.0));
    assert_eq!(drained_s(&samples, 3.5), None);
}

/// A faultless run of so many grabs in each second, each answered after so many milliseconds.
pub fn seconds(grabs: &[u64], ms: u64) -> Report {
    let mut planned = 0;
    let mut report = report(|record, _, _| {
        *record = Record::new(Duration::from_millis(20));
        for (second, count) in (0..).zip(grabs) {
            for grab in 0..*count {
                let due =
                    Duration::from_secs(second) + Duration::from_micros(900_000 * grab / count);
                record.left(due, due);
                record.answered(due, due + Duration::from_millis(ms), 1, "won");
                planned += 1;
            }
        }
    });
    report.planned_grabs = planned;
    report.fire_s = grabs.len() as f64;
    report.grabs_per_s = planned as f64 / report.fire_s.max(1.0);
    report
}
