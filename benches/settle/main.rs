//! Measures how fast grabs reach books in PostgreSQL, beside the ways in which peers do it.
//!
//! `make bench` or `cargo bench --bench settle`, with PostgreSQL 15 where Debian puts it or in the
//! folder named by RED_ENVELOPE_POSTGRES. A server of its own on loopback, fsync and
//! synchronous_commit on.
//!
//! | figure | what |
//! |---|---|
//! | `settle_per_s` | grabs a second through [`Ledger::settle`], 200,000 accounts, uniform |
//! | `settle_per_s_duplicates` | the same, where 5 % of the records stand in the books already; they count |
//! | `settle_per_s_skewed` | the same, where half of the grabs are of 1 % of the accounts |
//! | `settle_one_envelope_per_s` | the same of one envelope, out of 64 partitions' outboxes, through four ledgers as four processes would have |
//! | `settle_per_s_2m_accounts` | 2,000,000 accounts, uniform |
//! | `settle_over_single_tx` | over one transaction a grab, through the same door and as many at once |
//! | `settle_over_row_lock` | over `SELECT … FOR UPDATE` on one envelope's row, 16 at once (`peers.rs`) |
//! | `settle_over_raw_copy` | over COPY of as many bytes into a table without a key |
//! | `audit_us_per_claim` | what adding all of these books up takes, by the claim, with 200,000 accounts |
//! | `audit_us_per_envelope`, `audit_hot_us_per_envelope` | Audit through the RPC by the envelope of 100 shares, a third of them claimed: of everything, and of what the hot store holds, which here is as much |
//! | `create_per_s` | envelopes of 100 shares a second, live, through the RPC, on Redis with `appendfsync always` |
//! | `sustained_grabs_per_s` | grabs a second that one server, which settles beside them, brings into the books as fast as they come (`sustained`) |
//! | `grab_to_books_p99_ms` | from the instant a grab was due until its claim can be read, at 10,000 grabs a second |
//!
//! Nothing is folded later: both unique keys, each account's history and its exact balance are written
//! in the transaction that is measured, so the clock stops with the last commit.
//!
//! **Bounds**: [`ROUNDS`] rounds of [`GRABS`] grabs a figure, and `sustained` once. Names of figures after `--` measure these
//! alone, for a profile: `cargo bench --bench settle -- settle_per_s`. A ratio is told where both of its
//! figures were measured; `create_per_s` measures the way of a grab into the books, too.

#[path = "../embedded/light.rs"]
mod light;
mod peers;
#[path = "../embedded/sender.rs"]
mod sender;
#[path = "../embedded/server.rs"]
#[expect(dead_code, reason = "the other benchmark asks more of it")]
mod server;
mod stage;
#[path = "../embedded/streams.rs"]
#[expect(dead_code, reason = "the other benchmarks keep so many in flight")]
mod streams;
#[path = "../burst/summary.rs"]
mod summary;
mod sustained;
mod whole;

use std::collections::BTreeMap;

use anyhow::bail;
use stage::{Crowd, Stage};

/// Rounds; medians are told.
const ROUNDS: usize = 3;
/// Grabs of a figure.
const GRABS: u32 = 200_000;
/// Grabs of one that does one a transaction.
const SINGLE_GRABS: u32 = 3_200;
/// Accounts of most figures, and of the larger.
const ACCOUNTS: u32 = 200_000;
const ACCOUNTS_MANY: u32 = 2_000_000;

/// The figure that is searched for once, and not measured in rounds.
const SUSTAINED: &str = "sustained_grabs_per_s";

/// What a figure must be.
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

const GOALS: [(&str, Goal); 7] = [
    ("settle_per_s", Goal::AtLeast(150_000.0)),
    ("settle_per_s_2m_accounts", Goal::AtLeast(100_000.0)),
    ("settle_over_single_tx", Goal::AtLeast(40.0)),
    ("settle_over_raw_copy", Goal::AtLeast(0.25)),
    ("create_per_s", Goal::AtLeast(5_000.0)),
    (SUSTAINED, Goal::AtLeast(60_000.0)),
    ("grab_to_books_p99_ms", Goal::AtMost(500.0)),
];

/// Whether a figure's goal is met, in words; nothing where it has none.
fn verdict(name: &str, median: f64) -> String {
    let word = |met| if met { "met" } else { "MISSED" };
    match GOALS.iter().find(|(of, _)| *of == name) {
        Some((_, Goal::AtLeast(goal))) => format!("   goal ≥ {goal}: {}", word(median >= *goal)),
        Some((_, Goal::AtMost(goal))) => format!("   goal ≤ {goal}: {}", word(median <= *goal)),
        None => String::new(),
    }
}

type Figures = BTreeMap<&'static str, f64>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let names = std::env::args().skip(1).filter(|name| name != "--bench");
    let asked = Asked(names.collect());
    if let Some(unknown) = asked.0.iter().find(|name| !is_a_figure(name)) {
        bail!("{unknown} is no figure that can be measured alone");
    }
    light::a_light_request_is_the_contract_s_request()?;
    let mut rounds = Vec::new();
    for number in 1..=ROUNDS {
        let round = round(&asked).await?;
        println!("round {number}: {round:.2?}");
        rounds.push(round);
    }
    let mut summary = serde_json::Map::new();
    println!("medians of {ROUNDS} rounds");
    for name in rounds[0].keys() {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[name]).collect();
        values.sort_by(f64::total_cmp);
        let median = values[ROUNDS / 2];
        println!("{name:>32} {median:>12.2}{}", verdict(name, median));
        summary.insert((*name).to_owned(), median.into());
    }
    // Its rates last long, and one that is missed is tried again, so it has no rounds.
    if asked.is_for(SUSTAINED) {
        let rate = sustained::measure().await?;
        println!("{SUSTAINED:>32} {rate:>12.2}{}", verdict(SUSTAINED, rate));
        summary.insert(SUSTAINED.to_owned(), rate.into());
    }
    summary::write(summary)
}

fn is_a_figure(name: &str) -> bool {
    let others = ["settle_per_s_2m_accounts", "create_per_s", SUSTAINED];
    ON_THE_STAGE
        .iter()
        .chain(&others)
        .any(|figure| *figure == name)
}

/// The figures to measure; none named: all.
struct Asked(Vec<String>);

impl Asked {
    fn is_for(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|asked| asked == name)
    }
}

async fn round(asked: &Asked) -> anyhow::Result<Figures> {
    let mut figures = Figures::new();
    if ON_THE_STAGE.iter().any(|name| asked.is_for(name)) {
        on_the_stage(asked, &mut figures).await?;
    }
    if asked.is_for("settle_per_s_2m_accounts") {
        let stage = Stage::set(ACCOUNTS_MANY).await?;
        let many = stage.settle(Crowd::Uniform, GRABS).await?;
        figures.insert("settle_per_s_2m_accounts", many);
        stage.audit().await?;
    }
    if asked.is_for("create_per_s") {
        let whole = whole::measure().await?;
        figures.insert("create_per_s", whole.create_per_s);
        figures.insert("grab_to_books_p50_ms", whole.grab_to_books_p50_ms);
        figures.insert("grab_to_books_p99_ms", whole.grab_to_books_p99_ms);
        figures.insert("audit_us_per_envelope", whole.audit_us_per_envelope);
        figures.insert("audit_hot_us_per_envelope", whole.audit_hot_us_per_envelope);
    }
    compare(&mut figures);
    Ok(figures)
}

/// Figures on the same books, of as many accounts.
const ON_THE_STAGE: [&str; 7] = [
    "settle_per_s",
    "settle_per_s_duplicates",
    "settle_per_s_skewed",
    "settle_one_envelope_per_s",
    "single_tx_per_s",
    "settle_row_lock_per_s",
    "raw_copy_per_s",
];

async fn on_the_stage(asked: &Asked, figures: &mut Figures) -> anyhow::Result<()> {
    let stage = Stage::set(ACCOUNTS).await?;
    let crowds = [
        ("settle_per_s", Crowd::Uniform),
        ("settle_per_s_duplicates", Crowd::Duplicates),
        ("settle_per_s_skewed", Crowd::Skewed),
    ];
    for (name, crowd) in crowds {
        if asked.is_for(name) {
            figures.insert(name, stage.settle(crowd, GRABS).await?);
        }
    }
    if asked.is_for("settle_one_envelope_per_s") {
        let one = stage.settle_one_envelope(GRABS).await?;
        figures.insert("settle_one_envelope_per_s", one);
    }
    if asked.is_for("single_tx_per_s") {
        let single = stage.settle_singly(SINGLE_GRABS).await?;
        figures.insert("single_tx_per_s", single);
    }
    if asked.is_for("settle_row_lock_per_s") {
        let locked = peers::row_lock(&stage, SINGLE_GRABS).await?;
        figures.insert("settle_row_lock_per_s", locked);
    }
    if asked.is_for("raw_copy_per_s") {
        let copied = peers::raw_copy(&stage, GRABS).await?;
        figures.insert("raw_copy_per_s", copied);
    }
    figures.insert("audit_us_per_claim", stage.audit().await?);
    Ok(())
}

/// Ratios of what was measured in the same round.
fn compare(figures: &mut Figures) {
    let peers = [
        ("settle_over_single_tx", "single_tx_per_s"),
        ("settle_over_row_lock", "settle_row_lock_per_s"),
        ("settle_over_raw_copy", "raw_copy_per_s"),
    ];
    for (ratio, peer) in peers {
        if let (Some(ours), Some(theirs)) = (figures.get("settle_per_s"), figures.get(peer)) {
            let over = ours / theirs;
            figures.insert(ratio, over);
        }
    }
}
