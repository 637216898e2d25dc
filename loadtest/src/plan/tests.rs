//! What a plan says of a report whose figures are round, and which reports it refuses.

use std::collections::BTreeMap;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    words: Words,
}

fn words(more: &[&str]) -> Words {
    let all = ["plan", "--peak", "760000", "--from", "report.json"];
    Line::parse_from(all.iter().chain(more)).words
}

/// 100,000 grabs, half of which win: 10 µs of the server, 5 of Redis, 20 of PostgreSQL each.
fn report() -> Report {
    let mut report = crate::report::tests::seconds(&[10_000; 10], 5);
    report.setup.stack = Some("redis+postgres".into());
    report.setup.optimised = true;
    let unary = report.unary.as_mut().unwrap();
    unary.outcomes = BTreeMap::from([("won".to_owned(), 50_000), ("empty".to_owned(), 50_000)]);
    let costs = [
        ("server", 6.0),
        ("server 2", 4.0),
        ("redis", 5.0),
        ("postgres", 20.0),
    ];
    report.cpu_us_per_grab_until_closed = costs.map(|(name, us)| (name.to_owned(), us)).into();
    report.shares = 50_000;
    let redis = Memory {
        before_bytes: 10_000_000,
        prepared_bytes: 15_000_000,
        peak_bytes: 20_000_000,
    };
    report.memory = BTreeMap::from([("redis".to_owned(), redis)]);
    report
}

fn planned(report: &Report, more: &[&str]) -> String {
    let measured = Measured::of(report).unwrap();
    told(&words(more), report, &measured)
}

#[test]
fn a_run_that_left_redis_idle_says_that_its_grabs_were_dear() {
    let mut idle = report();
    assert!(planned(&idle, &[]).contains("Redis used 5 % of a core"));
    // 80,000 a second at 5 µs each.
    idle.grabs_per_s = 80_000.0;
    assert!(!planned(&idle, &[]).contains("Redis used"));
}

#[test]
fn the_arithmetic_is_shown_line_by_line() {
    let plan = planned(&report(), &[]);
    for line in [
        "server    760,000/s × 10 µs = 7.6 cores busy; ÷ 50 % = 15.2 cores",
        "÷ 4 cores a pod = 3.8 → 4 pods, and one that may be away: 5 PODS",
        "redis     760,000/s × 5 µs = 3.8 cores busy; ÷ 50 % = 7.6 cores",
        "one core a master → 8 masters; one envelope is on one master: some 200,000 grabs a second",
        "22,800,000 shares of the peak × 100 bytes before they are won = 2.12 GiB",
        "22,800,000 shares of the peak × 100 bytes more when they are = 2.12 GiB",
        "4.25 GiB together ÷ 8 GiB a master = 0.531 → 1 masters",
        "the larger of 8 by CPU and 1 by memory: 8 REDIS MASTERS",
        "760,000/s × 50 % won × 60 s, posted within 90 s = 253,333 shares a second",
        // 40 µs a share won, 49 % of it.
        "claims    253,333/s × 19.6 µs = 4.97 cores busy; ÷ 50 % = 9.93 cores",
        "1 POSTGRESQL FOR CLAIMS",
        "accounts  253,333/s × 20.4 µs = 5.17 cores busy; ÷ 50 % = 10.34 cores",
        "1 POSTGRESQL FOR ACCOUNTS",
        "the peak is 76 times the rehearsal's rate",
    ] {
        assert!(plan.contains(line), "{line:?} is not in\n{plan}");
    }
}

#[test]
fn what_is_assumed_can_be_said_otherwise() {
    let plan = planned(
        &report(),
        &["--busy", "100", "--pod-cores", "1", "--lag-s", "0"],
    );
    assert!(
        plan.contains("8 pods, and one that may be away: 9 PODS"),
        "{plan}"
    );
    assert!(plan.contains("the headroom is 0 %"), "{plan}");
    assert!(
        plan.contains("posted within 60 s = 380,000 shares"),
        "{plan}"
    );
}

#[test]
fn memory_sizes_the_masters_where_it_asks_for_more_of_them_than_cpu_time() {
    let plan = planned(&report(), &["--peak-s", "3600", "--redis-gib", "16"]);
    // 1,368,000,000 shares at 200 bytes.
    for line in [
        "254.8 GiB together ÷ 16 GiB a master = 15.93 → 16 masters",
        "the larger of 8 by CPU and 16 by memory: 16 REDIS MASTERS",
    ] {
        assert!(plan.contains(line), "{line:?} is not in\n{plan}");
    }
}

#[test]
fn what_a_default_cites_stands_in_the_document() {
    let document = include_str!("../../../docs/PERFORMANCE.md");
    let (_, from) = document.split_once("### Where the time goes\n").unwrap();
    let part = from.split("\n## ").next().unwrap();
    let [claims, others] = SAMPLES;
    let row = format!(
        "| COPY of claims | it is not counted; of a profile's samples it has {claims} % where balances and the \
         other statements have {others}"
    );
    assert!(part.contains(&row), "{row:?} is not in\n{part}");
    assert_eq!(words(&[]).claims, 49);
}

#[test]
fn memory_that_hardly_grew_is_told_as_unknown_and_not_as_nought() {
    let mut report = report();
    report.memory.clear();
    let plan = planned(&report, &[]);
    assert!(
        plan.contains("a share that waits:  too little growth to be told"),
        "{plan}"
    );
    assert!(!plan.contains("GiB together"), "{plan}");
    assert!(
        plan.contains("the larger of 8 by CPU and none known by memory: 8 REDIS MASTERS"),
        "{plan}"
    );
}

#[test]
fn a_report_that_lacks_a_figure_is_refused_with_what_is_missing() {
    let refused = |change: fn(&mut Report)| {
        let mut report = report();
        change(&mut report);
        let error = Measured::of(&report).err().unwrap();
        error.to_string()
    };
    let no_redis = |it: &mut Report| {
        it.cpu_us_per_grab_until_closed.remove("redis");
    };
    assert!(refused(no_redis).contains("no CPU time of redis"));
    assert!(refused(|it| it.passed = false).contains("missed its gates"));
    let void = |it: &mut Report| it.generator.void = Some("the generator was late".into());
    assert!(refused(void).contains("void: the generator was late"));
    assert!(refused(|it| it.setup.optimised = false).contains("without optimisation"));
    assert!(refused(|it| it.setup.stack = None).contains("its stack is none"));
    assert!(refused(|it| it.unary = None).contains("0 grabs are fewer"));
    let nobody = |it: &mut Report| it.unary.as_mut().unwrap().outcomes.clear();
    assert!(refused(nobody).contains("nobody won"));
}

#[test]
fn a_refusal_says_which_run_to_do() {
    let folder = std::env::temp_dir().join(format!("loadtest-plan-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("report.json");
    let mut unfit = report();
    unfit.passed = false;
    std::fs::write(&file, unfit.json().unwrap()).unwrap();
    let words = Words {
        from: file,
        ..words(&[])
    };
    let error = format!("{:#}", plan(&words).unwrap_err());
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(
        error.contains("burst --stack redis+postgres --json"),
        "{error}"
    );
}
