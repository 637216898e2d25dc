//! The gates: what must hold for a run to pass.

use std::collections::BTreeMap;

use red_envelope_proto::v1;

use super::Gate;
use crate::finish::Findings;
use crate::profile::Profile;
use crate::record::Record;
use crate::schedule::Transport;

/// What is judged beside the records.
pub struct Judged<'a> {
    /// What was asked for.
    pub profile: &'a Profile,
    /// What was compared.
    pub findings: &'a Findings,
    /// What the server's audit says, or why there is none.
    pub audit: &'a Result<v1::AuditResponse, String>,
    /// Why what was to happen meanwhile did not.
    pub meanwhile: Option<&'a str>,
}

/// Every gate of a run, and whether it was met.
pub fn gates(judged: &Judged<'_>, records: &BTreeMap<Transport, Record>) -> Vec<Gate> {
    let mut gates = truth(judged);
    let wanted = &judged.profile.gates;
    let sum = |of: fn(&Record) -> u64| records.values().map(of).sum::<u64>();
    let due = (sum(|it| it.sent) + sum(|it| it.not_sent)).max(1);
    let unresolved = sum(|it| it.outcomes.get("unresolved").copied().unwrap_or(0));
    // Rounded up: one grab in a million is not zero of a thousand.
    let permille = |count: u64| (count * 1_000).div_ceil(due);
    gates.extend([
        at_most("unresolved", unresolved, wanted.unresolved_max),
        at_most(
            "not sent, of a thousand",
            permille(sum(|it| it.not_sent)),
            wanted.not_sent_permille_max,
        ),
    ]);
    let late = permille(sum(|it| it.late));
    let late_max = wanted.late_permille_max.iter();
    gates.extend(late_max.map(|max| at_most("late, of a thousand", late, *max)));
    let retried = sum(|it| it.retried) * 1_000 / due;
    let retried_min = wanted.retried_permille_min.iter();
    gates.extend(retried_min.map(|min| Gate {
        name: "retried, of a thousand".into(),
        wanted: format!("at least {min}"),
        found: retried.to_string(),
        met: retried >= *min,
    }));
    for (name, transport, max) in [
        ("unary p99 ms", Transport::Unary, wanted.unary_p99_ms_max),
        ("stream p99 ms", Transport::Stream, wanted.stream_p99_ms_max),
    ] {
        if let Some(record) = records.get(&transport) {
            let found = record.latency_ms(990);
            gates.push(Gate {
                name: name.into(),
                wanted: format!("at most {max}"),
                found: format!("{found:.1}"),
                met: found <= max as f64,
            });
        }
    }
    gates
}

/// What no profile chooses: every answer was right, and somebody looked.
fn truth(judged: &Judged<'_>) -> Vec<Gate> {
    let Judged {
        findings, audit, ..
    } = judged;
    let must = |name: &str, wanted: &str, found: String, met: bool| Gate {
        name: name.to_owned(),
        wanted: wanted.to_owned(),
        found,
        met,
    };
    let compared = match &findings.failed {
        None => "complete".to_owned(),
        Some(why) => format!("could not be compared: {why}"),
    };
    let mut gates = vec![
        at_most("wrong answers and balances", findings.violations.count, 0),
        must(
            "comparison",
            "complete",
            compared,
            findings.failed.is_none(),
        ),
    ];
    let wanted = "clean and quiet";
    match audit {
        Ok(audit) => {
            let found = format!("clean {}, quiet {}", audit.clean, audit.quiet);
            let (name, count) = ("audit discrepancies", audit.discrepancy_count);
            gates.push(at_most(name, count, 0));
            gates.push(must("audit", wanted, found, audit.clean && audit.quiet));
        }
        Err(why) => {
            let found = format!("could not be audited: {why}");
            gates.push(must("audit", wanted, found, false));
        }
    }
    let meanwhile = judged.meanwhile.iter();
    gates.extend(meanwhile.map(|why| must("meanwhile", "done", format!("not done: {why}"), false)));
    gates
}

fn at_most(name: &str, found: u64, max: u64) -> Gate {
    Gate {
        name: name.to_owned(),
        wanted: format!("at most {max}"),
        found: found.to_string(),
        met: found <= max,
    }
}
