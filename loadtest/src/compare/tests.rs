//! What a comparison says of runs whose difference is known.

use super::*;
use crate::report::tests::seconds as run;

/// A minute with so many grabs a second, answered within so many milliseconds, with some noise.
fn minute(grabs: u64, ms: u64, salt: u64) -> Report {
    let noisy = |second: u64| grabs + (second * 7 + salt * 13) % 5;
    let counts: Vec<u64> = (0..60).map(noisy).collect();
    run(&counts, ms)
}

fn sides(before: Vec<Report>, after: Vec<Report>) -> (String, Compared) {
    told(&[before, after], 0.05)
}

fn line<'a>(words: &'a str, figure: &str) -> &'a str {
    let mut lines = words.lines();
    lines.find(|line| line.starts_with(figure)).unwrap()
}

#[test]
fn two_runs_of_the_same_are_no_regression_and_their_limits_are_told() {
    let (words, compared) = sides(vec![minute(100, 5, 0)], vec![minute(100, 5, 1)]);
    assert_eq!(compared, Compared::Well, "{words}");
    assert!(
        line(&words, "unary p99 ms").ends_with("same within noise"),
        "{words}"
    );
    assert!(
        words.contains("LIMITS: 1 run on a side can't tell"),
        "{words}"
    );
}

#[test]
fn latency_that_doubled_is_a_regression_and_half_of_it_is_better() {
    let (words, compared) = sides(vec![minute(100, 5, 0)], vec![minute(100, 10, 1)]);
    assert_eq!(compared, Compared::Worse, "{words}");
    assert!(line(&words, "unary p50 ms").ends_with("WORSE"), "{words}");
    let (words, compared) = sides(vec![minute(100, 10, 0)], vec![minute(100, 5, 1)]);
    assert_eq!(compared, Compared::Well, "{words}");
    assert!(line(&words, "unary p50 ms").ends_with("better"), "{words}");
}

#[test]
fn fewer_grabs_a_second_are_worse_although_the_number_is_lower() {
    let (words, compared) = sides(vec![minute(100, 5, 0)], vec![minute(60, 5, 1)]);
    assert_eq!(compared, Compared::Worse, "{words}");
    assert!(line(&words, "grabs a second").ends_with("WORSE"), "{words}");
}

#[test]
fn a_short_run_has_no_verdict_and_where_no_figure_has_one_nothing_is_called_well() {
    let short = |ms| vec![run(&[100; 12], ms)];
    let (words, compared) = sides(short(5), short(50));
    assert!(
        line(&words, "unary p99 ms").ends_with("no verdict: too few seconds"),
        "{words}"
    );
    assert_eq!(compared, Compared::Nothing, "{words}");
    assert!(words.contains("take 5 runs of each side"), "{words}");
    assert!(!words.contains("no regression"), "{words}");
}

#[test]
fn five_runs_of_each_are_tested_as_runs_and_four_are_not() {
    let side = |ms: u64, runs: u64| (0..runs).map(|salt| minute(100, ms, salt)).collect();
    let (words, compared) = sides(side(5, 5), side(10, 5));
    assert_eq!(compared, Compared::Worse, "{words}");
    assert!(line(&words, "unary p50 ms").contains("0.0079"), "{words}");
    assert!(!words.contains("LIMITS"), "{words}");
    let (words, compared) = sides(side(5, 4), side(10, 4));
    assert_eq!(compared, Compared::Nothing, "{words}");
    assert!(words.contains("no verdict: too few runs"), "{words}");
}

#[test]
fn a_gate_that_is_missed_now_is_a_regression_whatever_could_be_judged() {
    for seconds in [60, 12] {
        let before = run(&vec![100; seconds], 5);
        let mut after = before.clone();
        after.passed = false;
        let (words, compared) = sides(vec![before], vec![after]);
        assert_eq!(compared, Compared::Worse, "{words}");
        assert!(words.contains("REGRESSION: gates"), "{words}");
        assert!(words.contains("MISSED: 1 of 1 after"), "{words}");
    }
}

#[test]
fn a_void_run_is_refused() {
    let mut void = minute(100, 5, 0);
    fit(&void).unwrap();
    void.generator.void = Some("the generator was late".into());
    let error = fit(&void).unwrap_err().to_string();
    assert!(error.contains("void: the generator was late"), "{error}");
}

#[test]
fn runs_of_different_things_are_not_compared() {
    let other = |change: fn(&mut Report)| {
        let mut after = minute(100, 5, 0);
        change(&mut after);
        let error = alike(&[vec![minute(100, 5, 0)], vec![after]]);
        error.unwrap_err().to_string()
    };
    assert!(other(|it| it.profile = "burst".into()).contains("the profile differs"));
    assert!(other(|it| it.setup.stack = Some("redis".into())).contains("the stack differs"));
    assert!(other(|it| it.seed = 99).contains("the seeds differ"));
    assert!(other(|it| it.planned_grabs = 1).contains("the arrivals differ"));
}

#[test]
fn a_file_that_is_missing_is_named() {
    let error = format!("{:#}", read("no-such-file.json").unwrap_err());
    assert!(error.contains("no-such-file.json"), "{error}");
}
