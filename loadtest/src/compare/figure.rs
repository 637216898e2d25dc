//! What of a report is compared: a figure of the whole run, and its part of each second.

use super::noise::Part;
use crate::report::{Lines, Report};

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Grabs a second.
    Higher,
    /// Times and costs.
    Lower,
}

/// One figure of one run.
#[derive(Clone, Debug)]
pub struct Figure {
    /// How a comparison calls it.
    pub name: String,
    /// Which way is better.
    pub better: Better,
    /// Of the whole run.
    pub value: f64,
    /// By second, or by wider slots; none where nothing happened. Empty: it has no seconds.
    pub parts: Vec<Option<Part>>,
}

/// Every figure of a run.
pub fn all(report: &Report) -> Vec<Figure> {
    let answered = answered(report);
    let last_s = report.fire_s.floor();
    let slot_s = slot_s(report);
    let whole = |slot: usize| float(slot + 1) * slot_s <= last_s.max(1.0);
    let mut figures = vec![Figure {
        name: "grabs a second".into(),
        better: Better::Higher,
        value: report.grabs_per_s,
        // The last slot is not full.
        parts: (answered.iter().enumerate())
            .map(|(slot, count)| whole(slot).then_some((*count, slot_s)))
            .collect(),
    }];
    for (name, lines) in report.transports() {
        for percentile in ["p50", "p90", "p99"] {
            figures.push(latency(name, lines, percentile));
        }
    }
    for (process, us) in &report.cpu_us_per_grab {
        figures.push(Figure {
            name: format!("{process} CPU µs a grab"),
            better: Better::Lower,
            value: *us,
            parts: cpu(report, process, &answered),
        });
    }
    let later = report.cpu_us_per_grab_until_closed.iter();
    figures.extend(
        later.map(|(process, us)| alone(&format!("{process} CPU µs a grab until closed"), *us)),
    );
    figures.push(alone("closed after, s", report.close_s));
    figures.extend(report.drained_s.map(|it| alone("drained after, s", it)));
    let peaks = report.memory.iter();
    figures.extend(peaks.map(|(process, memory)| {
        let mib = memory.peak_bytes.div_ceil(1 << 20);
        alone(
            &format!("{process} MiB at most"),
            float(usize::try_from(mib).unwrap_or(0)),
        )
    }));
    figures
}

fn alone(name: &str, value: f64) -> Figure {
    Figure {
        name: name.to_owned(),
        better: Better::Lower,
        value,
        parts: Vec::new(),
    }
}

/// A slot weighs as much as people were due in it.
fn latency(transport: &str, lines: &Lines, percentile: &str) -> Figure {
    let over_time = &lines.over_time;
    let column = over_time.latency_ms.get(percentile);
    let slots = column.into_iter().flatten().zip(&over_time.due);
    let part = |(ms, due): (&Option<f64>, &u64)| {
        let due = crate::text::float(*due);
        ms.map(|ms| (ms * due, due))
    };
    Figure {
        name: format!("{transport} {percentile} ms"),
        better: Better::Lower,
        value: lines
            .latency_ms
            .get(percentile)
            .copied()
            .unwrap_or(f64::NAN),
        parts: slots.map(part).collect(),
    }
}

/// Answers of each slot, on both transports.
fn answered(report: &Report) -> Vec<f64> {
    let mut sum: Vec<f64> = Vec::new();
    for (_, lines) in report.transports() {
        for column in lines.over_time.answered.values() {
            sum.resize(sum.len().max(column.len()), 0.0);
            for (sum, count) in sum.iter_mut().zip(column) {
                *sum += crate::text::float(*count);
            }
        }
    }
    sum
}

/// How wide the slots of a run are, in seconds.
pub fn slot_s(report: &Report) -> f64 {
    let widths = report.transports().map(|(_, lines)| lines.over_time.slot_s);
    crate::text::float(widths.max().unwrap_or(1).max(1))
}

/// CPU time of a slot, from the looks around its ends, over the answers of the slot.
fn cpu(report: &Report, process: &str, answered: &[f64]) -> Vec<Option<Part>> {
    let looks = report.samples.cpu_s.get(process);
    let looks = report.samples.at_s.iter().zip(looks.into_iter().flatten());
    let looks: Vec<(f64, f64)> = looks.filter_map(|(at, cpu)| Some((*at, (*cpu)?))).collect();
    let slot_s = slot_s(report);
    let slots = answered.iter().enumerate().map(|(slot, count)| {
        let (from, to) = (float(slot) * slot_s, float(slot + 1) * slot_s);
        let used = (at(&looks, to)? - at(&looks, from)?) * 1e6;
        (*count > 0.0).then_some((used, *count))
    });
    slots.collect()
}

/// A sum between two looks, evenly.
fn at(looks: &[(f64, f64)], instant: f64) -> Option<f64> {
    let behind = looks.partition_point(|(at, _)| *at < instant);
    let (to, after) = looks.get(behind)?;
    let (from, before) = looks.get(behind.checked_sub(1)?)?;
    let part = (instant - from) / (to - from).max(f64::MIN_POSITIVE);
    Some(before + part * (after - before))
}

fn float(count: usize) -> f64 {
    crate::text::float(count as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_read_between_looks_and_not_beyond_them() {
        let looks = [(0.0, 1.0), (2.0, 5.0)];
        assert_eq!(at(&looks, 1.0), Some(3.0));
        assert_eq!(at(&looks, 2.0), Some(5.0));
        assert_eq!(at(&looks, 2.1), None);
        assert_eq!(at(&looks, -0.1), None);
    }

    #[test]
    fn the_last_slot_counts_for_no_rate_since_it_is_not_full() {
        let mut report = crate::report::tests::seconds(&[10, 10, 10], 5);
        report.fire_s = 2.9;
        let rate = &all(&report)[0];
        let full = rate.parts.iter().filter(|part| part.is_some()).count();
        assert_eq!((rate.parts.len(), full), (3, 2));
    }
}
