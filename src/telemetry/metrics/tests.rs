//! What is counted is rendered, described and listed.

use super::*;
use crate::domain::grab::Refusal;

#[test]
fn what_happened_is_rendered_with_its_description() {
    install();
    // Other tests of this process count into the same metrics.
    let before = render();
    grabs_answered(&Outcome::Refused(Refusal::OwnEnvelope), 3);
    envelope_created(Kind::Exclusive);
    envelope_closed(CloseReason::Recalled);
    batch_committed(17, 0.003);
    outbox_waiting(5, 1_500);
    shed("creates", 1);
    upkeep();
    let text = render();
    for line in [
        "# HELP red_envelope_grabs_total Grabs answered, by outcome",
        "red_envelope_hot_commit_seconds_bucket{le=\"0.005\"}",
        "red_envelope_hot_commit_grabs_bucket{le=\"64\"}",
    ] {
        assert!(text.contains(line), "{line:?} is missing in\n{text}");
    }
    for (counter, more) in [
        ("red_envelope_grabs_total{outcome=\"refused\"}", 3),
        (
            "red_envelope_envelopes_created_total{kind=\"exclusive\"}",
            1,
        ),
        (
            "red_envelope_envelopes_closed_total{reason=\"recalled\"}",
            1,
        ),
        ("red_envelope_shed_total{what=\"creates\"}", 1),
    ] {
        let now = counted(&text, counter);
        let at_least = counted(&before, counter).unwrap_or(0) + more;
        assert!(now >= Some(at_least), "{counter} is {now:?} in\n{text}");
    }
}

/// What stands behind the name and the labels of a counter.
fn counted(text: &str, counter: &str) -> Option<u64> {
    let mut values = text.lines().filter_map(|line| line.strip_prefix(counter));
    values.next()?.trim().parse().ok()
}

#[test]
fn every_metric_has_a_name_of_its_own_and_a_description_without_a_full_stop() {
    let mut names: Vec<_> = METRICS.iter().map(|m| m.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), METRICS.len());
    for metric in METRICS {
        assert!(
            !metric.what.is_empty() && !metric.what.ends_with('.'),
            "{}",
            metric.name
        );
        let counts = metric.kind == MetricKind::Counter;
        assert_eq!(counts, metric.name.ends_with("_total"), "{}", metric.name);
    }
}

#[test]
fn the_runbook_lists_every_metric() {
    let runbook = include_str!("../../../docs/RUNBOOK.md");
    for metric in METRICS {
        let row = format!("| `{}` | {} |", metric.name, metric.what);
        assert!(
            runbook.contains(&row),
            "docs/RUNBOOK.md lacks the row\n{row}"
        );
    }
}
