//! `loadtest plan`: the servers for a peak, from what a rehearsal measured.
//!
//! | part | from |
//! |---|---|
//! | measured | the report alone |
//! | assumed | the command line, each with its default and what it means |
//! | the fleet | arithmetic on both, each step on a line |
//! | extrapolated | what the arithmetic takes for granted beyond what was measured |
//!
//! CPU time a grab is taken *until all was closed*: every grab pays for its settlement at once, so that a
//! rehearsal in which settlement ran late does not look cheap. The mix of outcomes is the rehearsal's.
//!
//! **Not here**: money for machines, networks, disks, replicas. What was not measured is not planned.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::report::{Memory, Report};
use crate::stack::SERVERS;
use crate::text::{float, number};

/// Grabs from which CPU time, told in hundredths of a second, is a figure: 10 ms are 0.5 µs of each.
const GRABS_MIN: u64 = 20_000;
/// Growth of a process from which it is a figure and not the allocator's breath.
const GROWTH_MIN_BYTES: u64 = 4 << 20;
/// What a plan is made from.
const RUN_THIS: &str = "run `cargo run --release -p loadtest -- burst --stack redis+postgres --json report.json` \
    and plan from that; where the load test itself is what is slow, on fewer grabs (--scale 0.2) or more cores";
/// How much of a core a process should have used, for its cost to be one of a peak: with less it works on small
/// batches, which are dear.
const BUSY_MIN: f64 = 0.3;

/// Of the samples of settlement's profile: COPY of claims, and all other statements.
const SAMPLES: [u32; 2] = [35, 36];
/// The first part of both, rounded.
const CLAIMS_PERCENT: u32 = {
    let both = SAMPLES[0] + SAMPLES[1];
    (SAMPLES[0] * 100 + both / 2) / both
};

const SAME_MACHINE: &str = " were measured, on one machine: no network between them";

/// `plan` on the command line.
#[derive(Args)]
pub struct Words {
    /// Grabs a second at the peak
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    peak: u32,

    /// What --json wrote of a rehearsal on redis+postgres
    #[arg(long, value_name = "FILE")]
    from: PathBuf,

    /// How long the peak lasts
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    peak_s: u32,

    /// How far settlement may fall behind in the peak; the server turns new envelopes away at 30
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=120))]
    lag_s: u32,

    /// How busy a core may be at the peak; the rest is headroom
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
    busy: u32,

    /// Cores of a pod of the server
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pod_cores: u32,

    /// Cores of a PostgreSQL server
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    postgres_cores: u32,

    /// GiB of a Redis master that envelopes may fill; what it needs to fork and to buffer comes on top
    #[arg(long, value_name = "GIB", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    redis_gib: u32,

    /// The part of PostgreSQL's time that goes to claims, the rest going to accounts
    /// (docs/PERFORMANCE.md, "Where the time goes": COPY of claims has 35 % of the samples, all other
    /// statements 36)
    #[arg(long, value_name = "PERCENT", default_value_t = CLAIMS_PERCENT, value_parser = clap::value_parser!(u32).range(1..=99))]
    claims: u32,
}

/// What a report must tell for a plan.
struct Measured {
    server_us: f64,
    redis_us: f64,
    /// Of each share that was won: nothing else reaches the books.
    postgres_us: f64,
    /// Won, of all grabs.
    won: f64,
    /// Of Redis. None: too little to be told from its allocator.
    bytes_per_share: Option<f64>,
    bytes_per_win: Option<f64>,
    /// Of a server pod at the rehearsal's end, with everything that it remembers.
    pod: Option<Memory>,
}

/// The plan in words.
pub fn plan(words: &Words) -> anyhow::Result<String> {
    let report = Report::read(&words.from)?;
    let measured = Measured::of(&report).with_context(|| {
        format!(
            "no plan can be made from {}: {RUN_THIS}",
            words.from.display()
        )
    })?;
    Ok(told(words, &report, &measured))
}

impl Measured {
    fn of(report: &Report) -> anyhow::Result<Self> {
        if let Some(why) = &report.generator.void {
            bail!("the run is void: {why}");
        }
        ensure!(
            report.passed,
            "the run missed its gates, so what it cost is no measure"
        );
        ensure!(
            report.setup.optimised,
            "it was built without optimisation, so its costs are not those of a release"
        );
        let stack = report.setup.stack.as_deref().unwrap_or("none of its own");
        ensure!(
            stack == "redis+postgres",
            "its stack is {stack}, whose processes are not those of a fleet"
        );
        let answers = report.sum(|lines| lines.sent);
        ensure!(
            answers >= GRABS_MIN,
            "{answers} grabs are fewer than the {GRABS_MIN} from which CPU time is a figure"
        );
        let won = report.answers("won");
        ensure!(won > 0, "nobody won, so nothing was settled");
        let us = |process: &str| {
            let us = report.cpu_us_per_grab_until_closed.get(process);
            let us = us.copied().filter(|us| *us > 0.0);
            us.with_context(|| format!("it tells no CPU time of {process}"))
        };
        // Each of several servers answered a part of the grabs: their sum is what one grab cost.
        let servers = SERVERS.iter().filter_map(|server| us(server).ok());
        let pods = SERVERS
            .iter()
            .filter_map(|server| report.memory.get(*server));
        let redis = report.memory.get("redis").copied().unwrap_or_default();
        let grown = |from: u64, to: u64, by: u64| {
            let bytes = to.saturating_sub(from);
            (bytes >= GROWTH_MIN_BYTES && by > 0).then(|| float(bytes) / float(by))
        };
        Ok(Self {
            server_us: us(SERVERS[0]).map(|_| servers.sum())?,
            redis_us: us("redis")?,
            postgres_us: us("postgres")? * float(answers) / float(won),
            won: float(won) / float(answers),
            bytes_per_share: grown(redis.before_bytes, redis.prepared_bytes, report.shares),
            bytes_per_win: grown(redis.prepared_bytes, redis.peak_bytes, won),
            pod: pods.max_by_key(|pod| pod.peak_bytes).copied(),
        })
    }
}

fn told(words: &Words, report: &Report, measured: &Measured) -> String {
    let parts = [
        facts(report, measured),
        assumptions(words),
        vec![String::new(), "The fleet".to_owned()],
        pods(words, measured),
        masters(words, measured),
        postgres(words, measured),
        extrapolated(words, report, measured),
    ];
    parts.concat().join("\n")
}

fn facts(report: &Report, measured: &Measured) -> Vec<String> {
    let bytes = |bytes: Option<f64>| match bytes {
        Some(bytes) => format!("{} bytes", number(bytes.round())),
        None => "too little growth to be told".to_owned(),
    };
    let mut lines = vec![
        format!(
            "Measured (run {} of {}: {} grabs at {} a second, level {}, {} cores)",
            report.run,
            report.profile,
            number(float(report.sum(|lines| lines.sent))),
            number(report.grabs_per_s.round()),
            report.setup.ack.as_deref().unwrap_or("unknown"),
            report.setup.cores
        ),
        format!(
            "  server    {:>8} µs of CPU a grab, settlement included",
            number(measured.server_us)
        ),
        format!(
            "  redis     {:>8} µs of CPU a grab, settlement included",
            number(measured.redis_us)
        ),
        format!(
            "  postgres  {:>8} µs of CPU a share won",
            number(measured.postgres_us)
        ),
        format!(
            "  won       {:>8} % of all grabs",
            number((measured.won * 1_000.0).round() / 10.0)
        ),
        format!(
            "  redis memory a share that waits:  {}",
            bytes(measured.bytes_per_share)
        ),
        format!(
            "  redis memory a share won, until it is settled and closed:  {}",
            bytes(measured.bytes_per_win)
        ),
    ];
    lines.extend(measured.pod.map(|pod| {
        format!(
            "  server memory at most:  {} MiB",
            number(crate::text::mib(pod.peak_bytes).round())
        )
    }));
    lines
}

fn assumptions(words: &Words) -> Vec<String> {
    vec![
        String::new(),
        "Assumed".to_owned(),
        format!(
            "  the peak lasts {} s (--peak-s) with the rehearsal's mix of outcomes",
            words.peak_s
        ),
        format!("  settlement may fall {} s behind (--lag-s)", words.lag_s),
        format!(
            "  a core is at most {} % busy (--busy), so the headroom is {} %",
            words.busy,
            100 - words.busy
        ),
        format!(
            "  a pod has {} cores (--pod-cores), a PostgreSQL {} (--postgres-cores)",
            words.pod_cores, words.postgres_cores
        ),
        format!(
            "  envelopes may fill {} GiB of a Redis master (--redis-gib)",
            words.redis_gib
        ),
        format!(
            "  claims take {} % of PostgreSQL's time, accounts {} % (--claims)",
            words.claims,
            100 - words.claims
        ),
    ]
}

/// Cores for a rate at a cost, with headroom; and the step in words.
fn cores(words: &Words, what: &str, per_s: f64, us: f64) -> (f64, String) {
    let busy = per_s * us / 1e6;
    let cores = busy * 100.0 / f64::from(words.busy);
    let step = format!(
        "  {what:10}{}/s × {} µs = {} cores busy; ÷ {} % = {} cores",
        number(per_s.round()),
        number(us),
        number(busy),
        words.busy,
        number(cores)
    );
    (cores, step)
}

fn pods(words: &Words, measured: &Measured) -> Vec<String> {
    let (cores, step) = cores(words, "server", f64::from(words.peak), measured.server_us);
    let each = f64::from(words.pod_cores);
    let pods = (cores / each).ceil();
    vec![
        step,
        format!(
            "            ÷ {} cores a pod = {} → {} pods, and one that may be away: {} PODS",
            words.pod_cores,
            number(cores / each),
            number(pods),
            number(pods + 1.0)
        ),
    ]
}

fn masters(words: &Words, measured: &Measured) -> Vec<String> {
    let peak = f64::from(words.peak);
    let (cores, step) = cores(words, "redis", peak, measured.redis_us);
    let by_cpu = cores.ceil().max(1.0);
    let mut lines = vec![
        step,
        format!(
            "            one core a master → {} masters; one envelope is on one master: some {} grabs a second \
             of it at this cost",
            number(by_cpu),
            number((1e6 / measured.redis_us).floor())
        ),
    ];
    let (steps, by_memory) = memory(words, measured);
    lines.extend(steps);
    lines.push(format!(
        "            the larger of {} by CPU and {} by memory: {} REDIS MASTERS",
        number(by_cpu),
        by_memory.map_or("none known".to_owned(), number),
        number(by_cpu.max(by_memory.unwrap_or(0.0)))
    ));
    lines
}

/// All envelopes of the peak are there before it, and none is gone before it has ended: what its shares take while
/// they wait, and what they take more when they are won, is there at once.
fn memory(words: &Words, measured: &Measured) -> (Vec<String>, Option<f64>) {
    let wins = f64::from(words.peak) * measured.won * f64::from(words.peak_s);
    let parts = [
        ("before they are won", measured.bytes_per_share),
        ("more when they are", measured.bytes_per_win),
    ];
    let told = parts.iter().filter_map(|(what, bytes)| {
        let bytes = (*bytes)?;
        let gib = bytes * wins / f64::from(1 << 30);
        let line = format!(
            "            memory: {} shares of the peak × {} bytes {what} = {} GiB",
            number(wins.round()),
            number(bytes.round()),
            number(gib)
        );
        Some((line, gib))
    });
    let (mut lines, gibs): (Vec<String>, Vec<f64>) = told.unzip();
    if gibs.is_empty() {
        lines.push(
            "            memory: too little growth was measured to size a master by it".to_owned(),
        );
        return (lines, None);
    }
    let (gib, each) = (gibs.iter().sum::<f64>(), f64::from(words.redis_gib));
    let masters = (gib / each).ceil().max(1.0);
    lines.push(format!(
        "            {} GiB together ÷ {each} GiB a master = {} → {} masters",
        number(gib),
        number(gib / each),
        number(masters)
    ));
    (lines, Some(masters))
}

fn postgres(words: &Words, measured: &Measured) -> Vec<String> {
    let wins = f64::from(words.peak) * measured.won;
    let (peak_s, within_s) = (words.peak_s, words.peak_s + words.lag_s);
    let per_s = wins * f64::from(peak_s) / f64::from(within_s);
    let mut lines = vec![format!(
        "  postgres  {}/s × {} % won × {peak_s} s, posted within {within_s} s = {} shares a second",
        number(f64::from(words.peak)),
        number((measured.won * 1_000.0).round() / 10.0),
        number(per_s.round())
    )];
    for (what, percent) in [("claims", words.claims), ("accounts", 100 - words.claims)] {
        let us = measured.postgres_us * f64::from(percent) / 100.0;
        let (cores, step) = cores(words, what, per_s, us);
        let each = f64::from(words.postgres_cores);
        lines.push(step);
        lines.push(format!(
            "            ÷ {} cores a server = {} → {} POSTGRESQL FOR {}",
            words.postgres_cores,
            number(cores / each),
            number((cores / each).ceil().max(1.0)),
            what.to_uppercase()
        ));
    }
    lines
}

fn extrapolated(words: &Words, report: &Report, measured: &Measured) -> Vec<String> {
    let times = f64::from(words.peak) / report.grabs_per_s.max(1.0);
    let busy = report.grabs_per_s * measured.redis_us / 1e6;
    let idle = (busy < BUSY_MIN).then(|| {
        format!(
            "  Redis used {} % of a core in this run: its batches were small and each grab dearer than at a peak, so \
             the fleet is smaller than this; a run nearer to the peak tells by how much",
            number((busy * 100.0).round())
        )
    });
    let mut lines = vec![
        String::new(),
        "Extrapolated, not measured".to_owned(),
        format!(
            "  the peak is {} times the rehearsal's rate; a grab is taken to cost what it cost there",
            number((times * 10.0).round() / 10.0)
        ),
        match report.setup.processes {
            Some(servers @ 2..) => format!("  {servers} servers, one Redis and one PostgreSQL{SAME_MACHINE}"),
            _ => format!("  one server, one Redis and one PostgreSQL{SAME_MACHINE}"),
        },
        "  envelopes are taken to spread evenly over the masters; this version serves one Redis and no Cluster,"
            .to_owned(),
        "  so more masters than one are a figure for the design and not for an installation of today".to_owned(),
        "  so are claims and accounts on different servers, and more than one server for either".to_owned(),
        "  disks, networks, replicas and what else a machine runs are not in it".to_owned(),
    ];
    lines.extend(idle);
    lines
}

#[cfg(test)]
mod tests;
