//! `loadtest compare`: which figures of runs differ, and by more than noise.
//!
//! | runs on each side | method (`noise`) | a difference counts when |
//! |---|---|---|
//! | one | paired block bootstrap over the seconds | the whole 99 % interval of the ratio lies beyond the margin |
//! | [`RUNS_MIN`] and more | exact Mann-Whitney test on the runs' figures | p is at most [`P_MAX`] and the ratio of the medians lies beyond the margin |
//! | between | none | never: too few for a test, and what one run says would be thrown away |
//!
//! Where no figure has a verdict, nothing was compared, and the exit code says so. A void run measured the load test
//! and is refused; a run that missed its gates is compared, and named.
//!
//! # Limits
//! Each figure is judged by itself: with twenty of them, one false alarm in five comparisons of equal
//! builds is to be expected at worst; the margin keeps most of them away. One run on each side can't tell
//! a build from what else the machine did, and the output says so.

mod figure;
mod noise;

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::report::Report;
use crate::text::number;
use figure::{Better, Figure};

/// Runs on each side from which their figures are tested: five against five without overlap have
/// p = 2/252 = 0.008, four against four 0.029.
const RUNS_MIN: usize = 5;
/// Runs on each side, at most: the exact test counts all ways to deal them.
const RUNS_MAX: usize = 50;
/// Seconds from which a bootstrap is more than decoration.
const SECONDS_MIN: usize = 20;
/// As rare must a difference be where there is none.
const P_MAX: f64 = 0.01;

/// `compare` on the command line.
#[derive(Args)]
pub struct Words {
    /// What --json wrote of the runs before; several files with commas between
    before: String,

    /// The same of the runs after
    after: String,

    /// Differences up to this never count
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    margin: u32,
}

/// What a figure's difference is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Better,
    Worse,
    None(&'static str),
}

/// What came of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// Nothing that could be judged became worse.
    Well,
    /// Something did.
    Worse,
    /// No figure could be judged.
    Nothing,
}

/// The comparison in words, and what came of it.
pub fn compare(words: &Words) -> anyhow::Result<(String, Compared)> {
    let sides = [read(&words.before)?, read(&words.after)?];
    alike(&sides)?;
    Ok(told(&sides, f64::from(words.margin) / 100.0))
}

fn read(files: &str) -> anyhow::Result<Vec<Report>> {
    let files: Vec<&str> = files.split(',').collect();
    ensure!(
        files.len() <= RUNS_MAX,
        "{} runs on one side, at most {RUNS_MAX} are compared",
        files.len()
    );
    let reports = files.iter().map(|file| {
        let report = Report::read(Path::new(file))?;
        fit(&report).with_context(|| format!("{file} can't be compared"))?;
        Ok(report)
    });
    reports.collect()
}

/// What measured the load test has nothing to say of a server.
fn fit(report: &Report) -> anyhow::Result<()> {
    match &report.generator.void {
        Some(why) => bail!("the run is void: {why}"),
        None => Ok(()),
    }
}

/// Runs of different things have no ratio.
fn alike(sides: &[Vec<Report>; 2]) -> anyhow::Result<()> {
    let first = sides[0].first().context("no run")?;
    for run in sides.iter().flatten() {
        let pairs = [
            ("profile", &first.profile, &run.profile),
            ("stack", &setup(first), &setup(run)),
        ];
        for (what, one, other) in pairs {
            ensure!(one == other, "the {what} differs: {one:?} and {other:?}");
        }
        ensure!(
            first.planned_grabs == run.planned_grabs || sides.iter().any(|side| side.len() > 1),
            "the arrivals differ: {} and {} grabs were planned",
            first.planned_grabs,
            run.planned_grabs
        );
    }
    let seeds = sides.each_ref().map(|side| side[0].seed);
    ensure!(
        seeds[0] == seeds[1] || sides.iter().any(|side| side.len() > 1),
        "the seeds differ ({} and {}), so the seconds of one run are not those of the other",
        seeds[0],
        seeds[1]
    );
    Ok(())
}

fn setup(report: &Report) -> String {
    let setup = &report.setup;
    let or_none = |it: &Option<String>| it.clone().unwrap_or_else(|| "none of its own".into());
    let built = if setup.optimised {
        "optimised"
    } else {
        "not optimised"
    };
    let servers = match setup.processes {
        Some(servers @ 2..) => format!(", {servers} servers"),
        _ => String::new(),
    };
    format!(
        "{}{servers}, level {}, {} cores, {built}",
        or_none(&setup.stack),
        or_none(&setup.ack),
        setup.cores
    )
}

fn told(sides: &[Vec<Report>; 2], margin: f64) -> (String, Compared) {
    let single = sides.iter().all(|side| side.len() == 1);
    let mut lines = vec![format!(
        "{} on {}: {} before, {} after, margin {:.0} %",
        sides[0][0].profile,
        setup(&sides[0][0]),
        runs(sides[0].len()),
        runs(sides[1].len()),
        margin * 100.0
    )];
    lines.push(format!(
        "{:38} {:>12} {:>12} {:>7}  {:18} verdict",
        "figure",
        "before",
        "after",
        "ratio",
        if single { "99 % interval" } else { "p" }
    ));
    let judged = judged(sides, margin);
    lines.extend(judged.iter().map(|(line, _)| line.clone()));
    lines.extend(missed(sides));
    lines.push(limits(sides));
    let fell = sides[0].iter().all(Report::passed) && !sides[1].iter().all(Report::passed);
    let of = |wanted: fn(Verdict) -> bool| judged.iter().filter(|it| wanted(it.1)).count();
    let worse = of(|it| it == Verdict::Worse);
    let none = of(|it| !matches!(it, Verdict::None(_))) == 0;
    let (words, compared) = match (worse, fell) {
        (0, true) => ("REGRESSION: gates".to_owned(), Compared::Worse),
        (0, false) if none => (
            format!(
                "NOTHING COULD BE JUDGED: take {RUNS_MIN} runs of each side, in turn, and name them with \
                 commas between; or one run of each that lasts {SECONDS_MIN} s"
            ),
            Compared::Nothing,
        ),
        (0, false) => ("no regression is significant".to_owned(), Compared::Well),
        _ => (
            format!("REGRESSION: {worse} figures became worse by more than noise and margin"),
            Compared::Worse,
        ),
    };
    lines.push(words);
    (lines.join("\n"), compared)
}

/// Each figure that every run has.
fn judged(sides: &[Vec<Report>; 2], margin: f64) -> Vec<(String, Verdict)> {
    let figures = sides.each_ref().map(|side| {
        let runs = side.iter().map(figure::all);
        runs.collect::<Vec<_>>()
    });
    let wide = sides.each_ref().map(|side| figure::slot_s(&side[0]));
    let each = figures[0][0].iter().filter_map(|first| {
        let of = |runs: &Vec<Vec<Figure>>| -> Option<Vec<Figure>> {
            let found = |run: &Vec<Figure>| run.iter().find(|it| it.name == first.name).cloned();
            runs.iter().map(found).collect()
        };
        let [Some(before), Some(after)] = figures.each_ref().map(of) else {
            return None;
        };
        Some(judge(&before, &after, margin, wide[0] == wide[1]))
    });
    each.collect()
}

/// Runs that missed their gates, by side: their figures are those of something that does not hold.
fn missed(sides: &[Vec<Report>; 2]) -> Vec<String> {
    let named = ["before", "after"].into_iter().zip(sides);
    let counted = named.map(|(name, side)| {
        let missed = side.iter().filter(|run| !run.passed()).count();
        (name, missed, side.len())
    });
    let told = counted.filter(|(_, missed, _)| *missed > 0);
    told.map(|(name, missed, of)| format!("MISSED: {missed} of {of} {name} did not meet its gates"))
        .collect()
}

fn runs(count: usize) -> String {
    match count {
        1 => "1 run".into(),
        count => format!("{count} runs"),
    }
}

fn limits(sides: &[Vec<Report>; 2]) -> String {
    let fewest = sides
        .each_ref()
        .map(Vec::len)
        .into_iter()
        .min()
        .unwrap_or(0);
    if fewest >= RUNS_MIN {
        return format!(
            "each figure is tested by itself (Mann-Whitney, two-sided, exact, p at most {P_MAX})"
        );
    }
    format!(
        "LIMITS: {} on a side can't tell a build from what else the machine did; an interval holds for the \
         seconds of these runs alone. For a verdict on builds take {RUNS_MIN} runs of each, in turn.",
        runs(fewest)
    )
}

fn judge(before: &[Figure], after: &[Figure], margin: f64, same_width: bool) -> (String, Verdict) {
    let values = |runs: &[Figure]| runs.iter().map(|run| run.value).collect::<Vec<f64>>();
    let (one, other) = (values(before), values(after));
    let medians = (noise::median(&one), noise::median(&other));
    let ratio = medians.1 / medians.0;
    let better = before[0].better;
    let (shown, verdict) = match (before, after) {
        ([before], [after]) => {
            let (interval, verdict) = seconds(before, after, margin, same_width);
            let shown = interval.map_or("–".to_owned(), |(low, high)| {
                format!("{low:.3} to {high:.3}")
            });
            (shown, verdict)
        }
        _ if one.len().min(other.len()) < RUNS_MIN => {
            ("–".to_owned(), Verdict::None("too few runs"))
        }
        _ if !ratio.is_finite() => ("–".to_owned(), Verdict::None("no ratio with nought")),
        _ => {
            let p = noise::mann_whitney(&one, &other);
            let beyond = p <= P_MAX && (ratio - 1.0).abs() > margin;
            (format!("{p:.4}"), direction(beyond, ratio, better))
        }
    };
    let words = match verdict {
        Verdict::Same => "same within noise".to_owned(),
        Verdict::Better => "better".to_owned(),
        Verdict::Worse => "WORSE".to_owned(),
        Verdict::None(why) => format!("no verdict: {why}"),
    };
    let ratio = if ratio.is_finite() {
        format!("{ratio:.3}")
    } else {
        "–".to_owned()
    };
    let line = format!(
        "{:38} {:>12} {:>12} {ratio:>7}  {shown:18} {words}",
        before[0].name,
        number(medians.0),
        number(medians.1)
    );
    (line, verdict)
}

fn direction(beyond: bool, ratio: f64, better: Better) -> Verdict {
    match (beyond, (ratio > 1.0) == (better == Better::Higher)) {
        (false, _) => Verdict::Same,
        (true, true) => Verdict::Better,
        (true, false) => Verdict::Worse,
    }
}

/// One run each: by the seconds that both have.
fn seconds(
    before: &Figure,
    after: &Figure,
    margin: f64,
    same_width: bool,
) -> (Option<(f64, f64)>, Verdict) {
    if before.parts.is_empty() {
        return (None, Verdict::None("one value a run"));
    }
    if !same_width {
        return (None, Verdict::None("slots of another width"));
    }
    let both = before.parts.iter().zip(&after.parts);
    let both = both.filter_map(|(before, after)| Some(((*before)?, (*after)?)));
    let (one, other): (Vec<_>, Vec<_>) = both.unzip();
    if one.len() < SECONDS_MIN {
        return (None, Verdict::None("too few seconds"));
    }
    let Some((low, high)) = noise::interval(&one, &other) else {
        return (None, Verdict::None("no ratio with nought"));
    };
    let beyond = low > 1.0 + margin || high < 1.0 - margin;
    (Some((low, high)), direction(beyond, low, before.better))
}

#[cfg(test)]
mod tests;
