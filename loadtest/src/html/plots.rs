//! Each figure of the page, from a report.

use super::scale::Scale;
use super::svg::{Bars, Lines, Series, Words};

use crate::report::{self, Report};
use crate::sample::{Bucket, FAILED, REFUSED, SHED};
use crate::text::{float, mib, number};

const SECONDS: &str = "seconds from the first instant";
const NO_METRICS: &str = "Not told: the server's metrics were not read (name them with --metrics).";
const NO_PROCESSES: &str = "Not told: no process of this run could be looked at.";
const NOBODY: &str = "Nobody was answered.";
/// Latencies that differ by more are drawn on a logarithmic axis.
const LINEAR_RATIO_MAX: f64 = 50.0;

/// All figures, in the order of the page.
pub fn all(report: &Report) -> String {
    let mut page = served(report).figure();
    page += &curve(report).figure();
    for (name, lines) in report.transports() {
        page += &latency(name, lines).figure();
    }
    page += &outcomes(report).figure();
    page += &trouble(report).figure();
    page += &backlog(report).figure();
    page += &lag(report).figure();
    page += &cpu_per_grab(report).figure();
    page += &cores(report).figure();
    page += &memory(report).figure();
    page += &batches(report, "hot_commit_grabs").figure();
    page += &batches(report, "settle_batch_records").figure();
    page
}

/// A column of both transports together, a second.
fn rate(report: &Report, of: impl Fn(&report::Lines) -> Vec<u64>) -> Vec<(f64, Option<f64>)> {
    let mut sum: Vec<u64> = Vec::new();
    let mut slot_s = 1;
    for (_, lines) in report.transports() {
        let column = of(lines);
        slot_s = lines.over_time.slot_s.max(1);
        sum.resize(sum.len().max(column.len()), 0);
        for (sum, count) in sum.iter_mut().zip(column) {
            *sum += count;
        }
    }
    let slots = (0_u64..).zip(sum);
    slots
        .map(|(slot, count)| (float(slot * slot_s), Some(float(count) / float(slot_s))))
        .collect()
}

/// Every answer of a slot, whatever it was.
fn answered(lines: &report::Lines) -> Vec<u64> {
    let over_time = &lines.over_time;
    let slots = 0..over_time.due.len();
    let of = |slot| {
        over_time
            .answered
            .values()
            .filter_map(move |it| it.get(slot))
    };
    slots.map(|slot| of(slot).sum()).collect()
}

fn xs(series: &[Series]) -> impl Iterator<Item = f64> {
    let points = series.iter().flat_map(|it| &it.points);
    points.filter(|(_, y)| y.is_some()).map(|(x, _)| *x)
}

fn ys(series: &[Series]) -> impl Iterator<Item = f64> {
    let points = series.iter().flat_map(|it| &it.points);
    points.filter_map(|(_, y)| *y)
}

fn named(name: &str, points: Vec<(f64, Option<f64>)>) -> Series {
    Series {
        name: name.to_owned(),
        points,
    }
}

/// Lines over time, on a linear axis from nought.
fn over_time(words: Words, y: &'static str, series: Vec<Series>) -> Lines {
    Lines {
        words,
        x: (SECONDS, Scale::time(xs(&series))),
        y: (y, Scale::linear(ys(&series))),
        series,
        marks: Vec::new(),
    }
}

fn served(report: &Report) -> Lines {
    let series = vec![
        named("due", rate(report, |it| it.over_time.due.clone())),
        named("sent", rate(report, |it| it.over_time.sent.clone())),
        named("answered", rate(report, answered)),
    ];
    let words = Words {
        id: "served",
        title: "Offered against served",
        what: "Grabs a second: those whose instant had come, those that left, and those that were \
               answered. Where the last falls below the first, people wait."
            .into(),
        empty: NOBODY,
    };
    let mut lines = over_time(words, "grabs a second", series);
    lines.marks = vec![(report.fire_s, "last answer")];
    lines
}

fn latency(name: &str, lines: &report::Lines) -> Lines {
    let over_time = &lines.over_time;
    let percentiles = ["p50", "p90", "p99", "max"].iter().map(|percentile| {
        let column = over_time.latency_ms.get(*percentile);
        let slots = (0_u64..).zip(column.into_iter().flatten());
        let points = slots.map(|(slot, ms)| (float(slot * over_time.slot_s), *ms));
        named(percentile, points.collect())
    });
    let series: Vec<Series> = percentiles.collect();
    let (id, title) = match name {
        "unary" => ("latency-unary", "Latency over time, single calls"),
        _ => ("latency-stream", "Latency over time, streams"),
    };
    Lines {
        words: Words {
            id,
            title,
            what: "Milliseconds from the instant at which a grab was due until its answer, by the \
                   second in which it was due."
                .into(),
            empty: NOBODY,
        },
        x: (SECONDS, Scale::time(xs(&series))),
        y: ("milliseconds", milliseconds(&series)),
        series,
        marks: Vec::new(),
    }
}

/// Logarithmic where the slowest answers would hide all others.
fn milliseconds(series: &[Series]) -> Scale {
    let above = || ys(series).filter(|ms| *ms > 0.0);
    let (low, high) = (
        above().fold(f64::INFINITY, f64::min),
        above().fold(0.0, f64::max),
    );
    if high / low > LINEAR_RATIO_MAX {
        Scale::log(above())
    } else {
        Scale::linear(ys(series))
    }
}

fn curve(report: &Report) -> Lines {
    let series: Vec<Series> = report
        .transports()
        .map(|(name, lines)| {
            let points = lines.latency_curve.iter();
            named(
                name,
                points.map(|(slower, ms)| (*slower, Some(*ms))).collect(),
            )
        })
        .collect();
    let most = report.transports().map(|(_, lines)| lines.sent).max();
    Lines {
        words: Words {
            id: "curve",
            title: "Latency by percentile",
            what: "So many of all answers took at most so many milliseconds from the instant at which \
                   the grab was due. Each further nine is as wide as the one before."
                .into(),
            empty: NOBODY,
        },
        x: ("percent of all answers", Scale::Slower(float(most.unwrap_or(0)))),
        y: ("milliseconds", milliseconds(&series)),
        series,
        marks: Vec::new(),
    }
}

fn outcomes(report: &Report) -> Bars {
    let transports: Vec<_> = report.transports().collect();
    let labels = transports.iter().flat_map(|(_, it)| it.outcomes.keys());
    let labels: std::collections::BTreeSet<&String> = labels.collect();
    let rows = labels.into_iter().map(|label| {
        let count = |lines: &report::Lines| float(lines.outcomes.get(label).copied().unwrap_or(0));
        let values = transports.iter().map(|(_, lines)| count(lines)).collect();
        (label.replace('_', " "), values)
    });
    Bars {
        words: Words {
            id: "outcomes",
            title: "Outcomes",
            what: "How grabs were answered. To find nothing left is an answer like any other."
                .into(),
            empty: NOBODY,
        },
        unit: "grabs",
        rows: rows.collect(),
        kinds: transports.iter().map(|(name, _)| *name).collect(),
    }
}

fn trouble(report: &Report) -> Lines {
    let mut series = vec![
        named("late", rate(report, |it| it.over_time.late.clone())),
        named("not sent", rate(report, |it| it.over_time.not_sent.clone())),
    ];
    for (name, column) in [
        ("shed by the server", SHED),
        ("failed at the server", FAILED),
        ("outsiders refused by the server", REFUSED),
    ] {
        if let Some(column) = report.samples.server.get(column) {
            series.push(named(name, slope(&report.samples.at_s, column)));
        }
    }
    let words = Words {
        id: "trouble",
        title: "Late, not sent, shed",
        what: format!(
            "Grabs a second that left later than the profile allows ({} in all) or never ({}), and what \
             the server turned down or answered with an error; those are asked again ({} times). Outsiders, to \
             whom the envelope does not exist, must be refused.",
            number(float(report.sum(|it| it.late))),
            number(float(report.sum(|it| it.not_sent))),
            number(float(report.sum(|it| it.retried)))
        ),
        empty: NOBODY,
    };
    until_the_end(report, &mut series);
    over_time(words, "a second", series)
}

/// What a sum grows by in a second, between each two looks.
fn slope(at_s: &[f64], sums: &[Option<f64>]) -> Vec<(f64, Option<f64>)> {
    let looks: Vec<(f64, Option<f64>)> = at_s.iter().copied().zip(sums.iter().copied()).collect();
    let between = looks.windows(2).map(|pair| {
        let [(from, before), (to, after)] = pair else {
            return (0.0, None);
        };
        let grown = after.zip(*before).map(|(after, before)| after - before);
        (
            *to,
            grown.map(|grown| grown.max(0.0) / (to - from).max(0.001)),
        )
    });
    between.collect()
}

fn told(report: &Report, column: &str, scale: f64) -> Vec<(f64, Option<f64>)> {
    let Some(column) = report.samples.server.get(column) else {
        return Vec::new();
    };
    let looks = report.samples.at_s.iter().zip(column);
    looks
        .map(|(at_s, value)| (*at_s, value.map(|value| value / scale)))
        .collect()
}

fn ends(report: &Report) -> Vec<(f64, &'static str)> {
    let closed_s = report.fire_s + report.close_s;
    vec![(report.fire_s, "last answer"), (closed_s, "all closed")]
}

/// Leaves what was seen until everything was in the books and closed, and a little longer; the comparing and the audit
/// that follow take many times as long.
fn until_the_end(report: &Report, series: &mut [Series]) {
    let after_s = report.close_s.max(report.drained_s.unwrap_or_default());
    let last_s = 1.0 + 1.2 * (report.fire_s + after_s);
    for series in series {
        series.points.retain(|(at_s, _)| *at_s <= last_s);
    }
}

/// The same, with its marks.
fn to_the_end(report: &Report, words: Words, y: &'static str, mut series: Vec<Series>) -> Lines {
    until_the_end(report, &mut series);
    let mut lines = over_time(words, y, series);
    lines.marks = ends(report);
    lines
}

fn backlog(report: &Report) -> Lines {
    let series = vec![named("records", told(report, "backlog", 1.0))];
    let words = Words {
        id: "backlog",
        title: "Settlement: what waits for the books",
        what: match report.drained_s {
            Some(drained_s) => format!(
                "Acknowledged grabs that the ledger has not posted yet. Nothing waited any more \
                 {drained_s:.1} s after the last answer. A gap is a look that the server did not answer within a second."
            ),
            None => "Acknowledged grabs that the ledger has not posted yet. A gap is a look that the server \
                     did not answer within a second."
                .into(),
        },
        empty: NO_METRICS,
    };
    to_the_end(report, words, "records", series)
}

fn lag(report: &Report) -> Lines {
    let series = vec![named("oldest", told(report, "settlement_lag_s", 1.0))];
    let words = Words {
        id: "lag",
        title: "Settlement: how far behind",
        what: "Age in seconds of the oldest acknowledged grab that the ledger has not posted. The server \
               turns new envelopes away at 30 s, grabs at 120 s."
            .into(),
        empty: NO_METRICS,
    };
    to_the_end(report, words, "seconds", series)
}

fn cpu_per_grab(report: &Report) -> Bars {
    let until_closed = &report.cpu_us_per_grab_until_closed;
    let rows = report.cpu_us_per_grab.iter().map(|(process, us)| {
        let later = until_closed.get(process).copied().unwrap_or(0.0);
        (process.clone(), vec![*us, later])
    });
    Bars {
        words: Words {
            id: "cpu-per-grab",
            title: "CPU time a grab",
            what: "Microseconds of each process by grabs that left: while grabs were answered, and until \
                   every envelope was closed, settlement included."
                .into(),
            empty: NO_PROCESSES,
        },
        unit: "microseconds a grab",
        rows: rows.collect(),
        kinds: vec!["while grabs were answered", "until all was closed"],
    }
}

fn cores(report: &Report) -> Lines {
    let samples = &report.samples;
    let each = samples.cpu_s.iter();
    let series = each.map(|(name, sums)| named(name, slope(&samples.at_s, sums)));
    let words = Words {
        id: "cores",
        title: "CPU over time",
        what: format!(
            "Cores that each process kept busy, of {} of this machine. Before nought, envelopes are \
             prepared.",
            report.setup.cores
        ),
        empty: NO_PROCESSES,
    };
    to_the_end(report, words, "cores", series.collect())
}

fn memory(report: &Report) -> Lines {
    let samples = &report.samples;
    let series = samples.memory_bytes.iter().map(|(name, bytes)| {
        let looks = samples.at_s.iter().zip(bytes);
        let points = looks.map(|(at_s, bytes)| (*at_s, bytes.map(mib)));
        named(name, points.collect())
    });
    let words = Words {
        id: "memory",
        title: "Memory over time",
        what: "Resident memory of each process, in MiB; what processes of one store share counts once.".into(),
        empty: NO_PROCESSES,
    };
    to_the_end(report, words, "MiB", series.collect())
}

fn batches(report: &Report, name: &str) -> Bars {
    let buckets = report.batches.get(name).map_or(&[][..], Vec::as_slice);
    let used = buckets.iter().rposition(|bucket| bucket.count > 0);
    let mut from = 0.0;
    let rows = buckets[..used.map_or(0, |last| last + 1)]
        .iter()
        .map(|Bucket { up_to, count }| {
            let words = match up_to {
                Some(up_to) if *up_to <= from + 1.0 => format!("{up_to}"),
                Some(up_to) => format!("{} to {up_to}", from + 1.0),
                None => format!("more than {from}"),
            };
            from = up_to.unwrap_or(from);
            (words, vec![float(*count)])
        });
    let (id, title, what) = match name {
        "hot_commit_grabs" => (
            "batches-hot",
            "Batches of the hot store",
            "How many commits of the embedded store, or calls of Redis, carried so many grabs.",
        ),
        _ => (
            "batches-settle",
            "Batches of settlement",
            "How many transactions of the ledger carried so many records.",
        ),
    };
    Bars {
        words: Words {
            id,
            title,
            what: what.into(),
            empty: NO_METRICS,
        },
        unit: "batches",
        kinds: vec!["batches"],
        rows: rows.collect(),
    }
}
