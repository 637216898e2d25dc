//! A report for people at a terminal.

use std::collections::BTreeMap;

use super::{QUANTILES, Report, TurnedDown};
use crate::text::counted;

impl Report {
    /// For people.
    pub fn words(&self) -> String {
        let mut lines = vec![
            String::new(),
            format!(
                "{} with seed {}: {} on {} in {:.1} s, {:.0} a second",
                self.profile,
                self.seed,
                counted(self.planned_grabs, "grab"),
                counted(self.envelopes, "envelope"),
                self.fire_s,
                self.grabs_per_s
            ),
            String::new(),
        ];
        lines.extend(self.times());
        lines.extend(self.answered_by());
        lines.extend(self.turned_down());
        lines.extend(self.cpu_times());
        lines.extend(self.memory());
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
        for (name, side) in self.transports() {
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
        for (name, side) in self.transports() {
            let outcomes = side.outcomes.iter();
            let outcomes: Vec<String> = outcomes.map(|(label, n)| format!("{label} {n}")).collect();
            lines.push(format!("{name:8} {}", outcomes.join(", ")));
        }
        lines
    }

    /// Where there are several servers: which answered how much.
    fn answered_by(&self) -> Option<String> {
        let each = self.answered_by.iter();
        let each: Vec<String> = each
            .map(|(name, grabs)| format!("{name} {grabs}"))
            .collect();
        (each.len() > 1).then(|| format!("         grabs answered by: {}", each.join(", ")))
    }

    fn turned_down(&self) -> Option<String> {
        let TurnedDown {
            shed,
            failed,
            refused,
        } = self.turned_down?;
        Some(format!(
            "         the server shed {shed} calls, failed {failed} grabs and refused {refused}, as outsiders must be"
        ))
    }

    fn cpu_times(&self) -> Vec<String> {
        let told = [
            ("while grabs were answered", &self.cpu_us_per_grab),
            ("until all was closed", &self.cpu_us_per_grab_until_closed),
        ];
        let line = |(until, times): (&str, &BTreeMap<String, f64>)| {
            let each = times.iter().map(|(name, us)| format!("{name} {us:.1}"));
            let each: Vec<String> = each.collect();
            format!("         CPU time, µs a grab, {until}: {}", each.join(", "))
        };
        // Where nothing was ever closed, nothing was measured until then.
        let told = told.into_iter().filter(|(_, times)| !times.is_empty());
        let lines = told.map(line);
        lines.chain(self.generator.words()).collect()
    }

    fn memory(&self) -> Option<String> {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let each = self.memory.iter().map(|(name, memory)| {
            let (from, to) = (mib(memory.before_bytes), mib(memory.peak_bytes));
            format!("{name} {from:.0} to {to:.0}")
        });
        let each: Vec<String> = each.collect();
        (!each.is_empty()).then(|| format!("         memory, MiB: {}", each.join(", ")))
    }

    fn money(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} closed ({} of them recalled first) {:.1} s after the last answer",
            counted(self.envelopes_closed, "envelope"),
            self.envelopes_recalled,
            self.close_s
        )];
        if let Some(drained_s) = self.drained_s {
            lines.push(format!(
                "nothing waited for the books {drained_s:.1} s after the last answer"
            ));
        }
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
        lines.push(match &self.audit.failed {
            None => format!(
                "audit: {}, {}, {}",
                counted(self.audit.envelopes, "envelope"),
                counted(self.audit.grants, "grant"),
                counted(self.audit.claims, "claim")
            ),
            Some(_) => "audit: none".into(),
        });
        let wrong = self.violations.iter().chain(&self.audit.discrepancies);
        lines.extend(wrong.map(|detail| format!("WRONG  {detail}")));
        lines
    }
}
