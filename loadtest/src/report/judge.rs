//! The gates: what must hold for a run to pass.

use std::collections::BTreeMap;

use red_envelope_proto::v1;

use super::Gate;
use crate::book::Violations;
use crate::profile::Profile;
use crate::record::Record;
use crate::schedule::Transport;

/// Every gate of a run, and whether it was met.
pub fn gates(
    profile: &Profile,
    records: &BTreeMap<Transport, Record>,
    violations: &Violations,
    audit: &v1::AuditResponse,
) -> Vec<Gate> {
    let sum = |of: fn(&Record) -> u64| records.values().map(of).sum::<u64>();
    let due = (sum(|it| it.sent) + sum(|it| it.not_sent)).max(1);
    let unresolved = sum(|it| it.outcomes.get("unresolved").copied().unwrap_or(0));
    let wanted = &profile.gates;
    let at_most = |name: &str, found: u64, max: u64| Gate {
        name: String::from(name),
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
            name: "audit".into(),
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
    ];
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
