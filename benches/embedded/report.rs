//! Tells what was measured: a table for people, flat keys for programs.

use anyhow::ensure;
use red_envelope_proto::v1;
use serde_json::{Map, Value};

use crate::grabs::StageResult;
use crate::{Round, STAGES, summary};

/// Wanted of grabs/s over T, in the order of `STAGES`.
const GOALS_OVER_T: [f64; 3] = [1.0, 2.0, 2.0];
/// Wanted of grabs/s over D × grabs per sync, where the disk is what holds everything up.
const GOAL_OVER_D: f64 = 0.8;
/// D may differ by this factor between rounds. Beyond it other work held the disk while D was
/// counted or while grabs ran, and a share of D says nothing.
const D_SPREAD_MAX: f64 = 2.0;

/// One stage's medians, under the names that they have in the summary.
struct Row {
    width: usize,
    figures: Vec<(&'static str, f64)>,
}

impl Row {
    fn new(rounds: &[Round], index: usize) -> Self {
        let of = |what: fn(&StageResult) -> f64| median(rounds, |round| what(&round.stages[index]));
        let over_t = median(rounds, |it| it.stages[index].grabs_per_s / it.t_per_s);
        let over_d = median(rounds, |it| {
            it.stages[index].grabs_per_s / (it.d_per_s * it.stages[index].mean_batch)
        });
        Self {
            width: STAGES[index].in_flight,
            figures: vec![
                ("embedded_stream_{}_per_s", of(|it| it.grabs_per_s)),
                ("embedded_stream_{}_over_T", over_t),
                ("embedded_fsync_{}_over_D", over_d),
                ("embedded_mean_batch_{}", of(|it| it.mean_batch)),
                ("server_us_per_grab_{}", of(|it| it.server_us)),
                ("client_us_per_grab_{}", of(|it| it.client_us)),
                ("embedded_stream_{}_p50_ms", of(|it| it.p50_ms)),
                ("embedded_stream_{}_p99_ms", of(|it| it.p99_ms)),
                ("unsettled_at_end_{}", of(|it| it.unsettled_at_end as f64)),
                ("settle_drain_{}_s", of(|it| it.drain_s)),
            ],
        }
    }

    fn figure(&self, name: &str) -> f64 {
        let found = self.figures.iter().find(|(known, _)| *known == name);
        found.expect("a name of the list above").1
    }
}

/// The figures at 256 in flight under the names by which they are followed over time.
const FOLLOWED: [(&str, &str); 6] = [
    ("embedded_stream_over_T", "embedded_stream_{}_over_T"),
    ("embedded_fsync_over_D", "embedded_fsync_{}_over_D"),
    ("embedded_mean_batch", "embedded_mean_batch_{}"),
    ("server_us_per_grab_embedded", "server_us_per_grab_{}"),
    ("client_us_per_grab", "client_us_per_grab_{}"),
    ("settle_drain_s", "settle_drain_{}_s"),
];

/// Prints the table and writes the summary.
pub fn tell(rounds: &[Round], audit: &v1::AuditResponse) -> anyhow::Result<()> {
    ensure!(!rounds.is_empty(), "no round was measured");
    let yardsticks = [
        ("T_per_s", median(rounds, |it| it.t_per_s)),
        ("T_own_frame_per_s", median(rounds, |it| it.t_own_per_s)),
        ("D_per_s", median(rounds, |it| it.d_per_s)),
    ];
    let rows: Vec<Row> = (0..STAGES.len())
        .map(|index| Row::new(rounds, index))
        .collect();
    println!();
    println!(
        "medians of {} rounds; every rate is per second",
        rounds.len()
    );
    for (name, rate) in yardsticks {
        println!("  {name:20} {rate:>12.0}");
    }
    table(&rows, disk_was_steady(rounds));
    println!(
        "money audit: clean and quiet, {} envelopes, {} grants, {} claims",
        audit.envelope_count, audit.grant_count, audit.claim_count
    );

    let mut keys = Map::new();
    let mut put = |name: &str, value: f64| {
        let value = (value * 1_000.0).round() / 1_000.0;
        keys.insert(name.to_owned(), Value::from(value));
    };
    put("rounds", rounds.len() as f64);
    put("audit_grants", audit.grant_count as f64);
    for (name, value) in yardsticks {
        put(name, value);
    }
    for row in &rows {
        for (name, value) in &row.figures {
            put(&name.replace("{}", &row.width.to_string()), *value);
        }
        if row.width == 256 {
            for (followed, name) in FOLLOWED {
                put(followed, row.figure(name));
            }
        }
    }
    summary::write(keys)
}

/// Whether the disk was the same one for all rounds, as far as figures go.
fn disk_was_steady(rounds: &[Round]) -> bool {
    let rates = rounds.iter().map(|round| round.d_per_s);
    let (least, most) = rates.fold((f64::INFINITY, 0.0_f64), |(least, most), rate| {
        (least.min(rate), most.max(rate))
    });
    println!("  D from round to round {least:>11.0} to {most:.0}");
    most <= least * D_SPREAD_MAX
}

fn table(rows: &[Row], disk_was_steady: bool) {
    println!();
    println!(
        "{:>9} {:>10} {:>6} {:>6} {:>7} {:>7} {:>7} {:>8} {:>8} {:>10} {:>8}",
        "in flight",
        "grabs/s",
        "/ T",
        "/ D·b",
        "batch b",
        "srv µs",
        "cli µs",
        "p50 ms",
        "p99 ms",
        "unsettled",
        "drain s"
    );
    for row in rows {
        let it = |name: &str| row.figure(name);
        println!(
            "{:>9} {:>10.0} {:>6.2} {:>6.2} {:>7.1} {:>7.2} {:>7.2} {:>8.2} {:>8.2} {:>10.0} {:>8.2}",
            row.width,
            it("embedded_stream_{}_per_s"),
            it("embedded_stream_{}_over_T"),
            it("embedded_fsync_{}_over_D"),
            it("embedded_mean_batch_{}"),
            it("server_us_per_grab_{}"),
            it("client_us_per_grab_{}"),
            it("embedded_stream_{}_p50_ms"),
            it("embedded_stream_{}_p99_ms"),
            it("unsettled_at_end_{}"),
            it("settle_drain_{}_s"),
        );
    }
    println!();
    for (row, goal) in rows.iter().zip(GOALS_OVER_T) {
        let over_t = row.figure("embedded_stream_{}_over_T");
        let over_d = row.figure("embedded_fsync_{}_over_D");
        let verdict = if over_t >= goal {
            "met"
        } else if !disk_was_steady {
            "MISSED (the disk was too unsteady to judge by it)"
        } else if over_d >= GOAL_OVER_D {
            "met (the disk is the limit)"
        } else {
            "MISSED"
        };
        println!(
            "{:>5} in flight: {over_t:.2} T of {goal:.2} wanted, or {over_d:.2} of {GOAL_OVER_D} D·b: {verdict}",
            row.width
        );
    }
}

fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
