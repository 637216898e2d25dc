//! Tells what was measured: a table for people, flat keys for programs.
//!
//! A figure is the median of the rounds, a ratio the median of the ratios inside the rounds.

use serde_json::{Map, Value};

use crate::measure::Measured;
use crate::subject::Subject;
use crate::{Round, summary};

/// What the stream with 256 in flight is compared with, and unary calls with the nearest design.
const OVER: [(&str, &str, &str); 5] = [
    ("stream_over_deadpool", "stream", "deadpool"),
    ("stream_over_lock", "stream", "lock"),
    ("stream_over_lua", "stream", "lua"),
    ("stream_over_row_lock", "stream", "row_lock"),
    ("unary_over_lua", "unary", "lua"),
];

/// Wanted at the least.
const AT_LEAST: [(&str, f64); 4] = [
    ("unary_over_T", 0.8),
    ("empty_over_T", 0.95),
    ("stream_over_T", 4.0),
    ("stream_over_deadpool", 14.0),
];
/// Wanted at the most.
const AT_MOST: [(&str, f64); 2] = [
    ("server_us_per_grab_stream", 0.8),
    ("redis_us_per_grab_stream", 1.8),
];
/// One of the two is wanted of what is synced before it is acknowledged.
const SYNCED: [(&str, f64); 2] = [("stream_fsync_over_T", 1.2), ("stream_fsync_over_D", 0.8)];
/// D may differ by this factor between rounds. Beyond it a share of D says nothing.
const D_SPREAD_MAX: f64 = 2.0;

/// Prints the table and the verdicts, and writes the summary.
pub fn tell(rounds: &[Round], audited: &str) -> anyhow::Result<()> {
    let keys = figures(rounds);
    println!();
    println!(
        "medians of {} rounds; every rate is per second",
        rounds.len()
    );
    let yardsticks = [
        "burst_T_per_s",
        "burst_T_own_frame_per_s",
        "burst_h2load_per_s",
        "burst_D_per_s",
    ];
    for name in yardsticks {
        println!("  {name:24} {:>9.0}", number(&keys, name));
    }
    table(measured(rounds), &keys);
    for name in OVER
        .map(|(name, _, _)| name)
        .into_iter()
        .filter(|name| keys.contains_key(*name))
    {
        println!("  {name:24} {:>9.2}", number(&keys, name));
    }
    println!(
        "  not in the books when a round's grabs had ended: {:.0}; settled {:.1} s later",
        number(&keys, "burst_unsettled_at_end"),
        number(&keys, "burst_settled_after_s"),
    );
    println!("money audits clean and quiet: {audited}");
    println!();
    verdicts(rounds, &keys);
    summary::write(keys)
}

fn figures(rounds: &[Round]) -> Map<String, Value> {
    let mut keys = Map::new();
    let mut put = |name: String, value: f64| {
        let value = (value * 1_000.0).round() / 1_000.0;
        keys.insert(name, Value::from(value));
    };
    put("burst_rounds".into(), rounds.len() as f64);
    put("burst_T_per_s".into(), median(rounds, |it| it.t_per_s));
    let by_h2load = median(rounds, |it| it.h2load_per_s);
    put("burst_h2load_per_s".into(), by_h2load);
    let over_t = median(rounds, |it| it.h2load_per_s / it.t_per_s);
    put("h2load_over_T".into(), over_t);
    let own = median(rounds, |it| it.t_own_per_s);
    put("burst_T_own_frame_per_s".into(), own);
    put("burst_D_per_s".into(), median(rounds, |it| it.d_per_s));
    let unsettled = median(rounds, |it| it.unsettled as f64);
    put("burst_unsettled_at_end".into(), unsettled);
    let settled = median(rounds, |it| it.settled_after_s);
    put("burst_settled_after_s".into(), settled);
    for name in measured(rounds) {
        let of = |what: fn(&Measured) -> f64| median(rounds, |it| what(&it.measured[name]));
        put(format!("{name}_per_s"), of(|it| it.per_s));
        let over_t = median(rounds, |it| it.measured[name].per_s / it.t_per_s);
        put(format!("{name}_over_T"), over_t);
        for process in rounds[0].measured[name].us.keys() {
            let us = median(rounds, |it| it.measured[name].us[process]);
            put(format!("{process}_us_per_grab_{name}"), us);
        }
        put(format!("{name}_mean_batch"), of(|it| it.mean_batch));
        put(format!("{name}_p50_ms"), of(|it| it.p50_ms));
        put(format!("{name}_p99_ms"), of(|it| it.p99_ms));
        put(
            format!("{name}_turned_away"),
            of(|it| it.turned_away as f64),
        );
    }
    let both = |(_, ours, theirs): &(_, &str, &str)| {
        let of_all = &rounds[0].measured;
        of_all.contains_key(ours) && of_all.contains_key(theirs)
    };
    for (ratio, ours, theirs) in OVER.into_iter().filter(both) {
        let over = |it: &Round| it.measured[ours].per_s / it.measured[theirs].per_s;
        put(ratio.into(), median(rounds, over));
    }
    let synced = Subject::StreamFsync.name();
    if rounds[0].measured.contains_key(synced) {
        let over_d = |it: &Round| {
            let synced = &it.measured[synced];
            synced.per_s / (it.d_per_s * synced.mean_batch)
        };
        put("stream_fsync_over_D".into(), median(rounds, over_d));
    }
    keys
}

/// What was measured, in the order of the table.
fn measured(rounds: &[Round]) -> impl Iterator<Item = &'static str> {
    let names = Subject::every().map(Subject::name);
    names.filter(|name| rounds[0].measured.contains_key(name))
}

/// 0 for what is not there: a process that a subject does not have.
fn number(keys: &Map<String, Value>, name: &str) -> f64 {
    keys.get(name).and_then(Value::as_f64).unwrap_or(0.0)
}

fn table(names: impl Iterator<Item = &'static str>, keys: &Map<String, Value>) {
    println!();
    println!(
        "{:>14} {:>9} {:>6} {:>7} {:>7} {:>8} {:>9} {:>7} {:>8} {:>8} {:>6}",
        "",
        "grabs/s",
        "/ T",
        "batch",
        "srv µs",
        "redis µs",
        "postgr µs",
        "cli µs",
        "p50 ms",
        "p99 ms",
        "away"
    );
    for name in names {
        let us = |process: &str| number(keys, &format!("{process}_us_per_grab_{name}"));
        let it = |what: &str| number(keys, &format!("{name}_{what}"));
        println!(
            "{name:>14} {:>9.0} {:>6.3} {:>7.1} {:>7.2} {:>8.2} {:>9.2} {:>7.2} {:>8.2} {:>8.2} {:>6.0}",
            it("per_s"),
            it("over_T"),
            it("mean_batch"),
            us("server"),
            us("redis"),
            us("postgres"),
            us("client"),
            it("p50_ms"),
            it("p99_ms"),
            it("turned_away"),
        );
    }
    println!();
}

fn verdicts(rounds: &[Round], keys: &Map<String, Value>) {
    let word = |met| if met { "met" } else { "MISSED" };
    for (name, goal) in AT_LEAST.into_iter().filter(|it| keys.contains_key(it.0)) {
        let value = number(keys, name);
        println!(
            "{name:>28} {value:>7.2}   goal ≥ {goal}: {}",
            word(value >= goal)
        );
    }
    for (name, goal) in AT_MOST.into_iter().filter(|it| keys.contains_key(it.0)) {
        let value = number(keys, name);
        println!(
            "{name:>28} {value:>7.2}   goal ≤ {goal}: {}",
            word(value <= goal)
        );
    }
    let [(over_t, goal_t), (over_d, goal_d)] = SYNCED;
    if !keys.contains_key(over_d) {
        return;
    }
    let (by_t, by_d) = (number(keys, over_t), number(keys, over_d));
    let rates = rounds.iter().map(|round| round.d_per_s);
    let (least, most) = rates.fold((f64::INFINITY, 0.0_f64), |(least, most), rate| {
        (least.min(rate), most.max(rate))
    });
    let by_disk = by_d >= goal_d && most <= least * D_SPREAD_MAX;
    println!(
        "{over_t:>28} {by_t:>7.2}   goal ≥ {goal_t}, or {over_d} {by_d:.2} ≥ {goal_d}: {} (D {least:.0} to {most:.0})",
        word(by_t >= goal_t || by_disk)
    );
}

fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
