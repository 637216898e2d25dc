//! Looks at the processes and at the server's metrics while a run runs.
//!
//! *Shape.* A thread of its own, so that a busy runtime delays no look; what it found is taken out at the
//! end.
//!
//! *Bounds.* [`SAMPLES_MAX`] looks are kept: each second one goes when there are more, and the thread looks
//! half as often from then on. Sums lose nothing by that, since what is sampled are sums since the start.
//!
//! *If a look fails*, its values are missing and the next look is as good as ever.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::process::Process;
use crate::scrape::{Page, Scrape};
use crate::stack::SERVERS;

/// Looks that are kept.
const SAMPLES_MAX: usize = 600;
/// Between two looks, at first. A look costs some two milliseconds of CPU time.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A server that does not answer a look within this has a gap there.
const PATIENCE: Duration = Duration::from_secs(1);
/// The last look is worth a wait: it says how the run ended. A server measures its backlog every second or so,
/// so one that was posted a moment ago is told still.
const PATIENCE_AT_END: Duration = Duration::from_secs(10);

/// What several servers' values of a figure are together.
#[derive(Clone, Copy)]
enum Together {
    /// Each counts its own from nought, and tells nothing before there is something to count.
    Count,
    /// Each has its own.
    Sum,
    /// Each tells of all.
    Most,
}
use Together::{Count, Most, Sum};

/// What is asked of the server's metrics: how reports call it, its name, and what several servers' are.
const ASKED: [(&str, &str, Together); 8] = [
    (BACKLOG, "red_envelope_outbox_records", Most),
    (
        "settlement_lag_s",
        "red_envelope_outbox_oldest_age_seconds",
        Most,
    ),
    ("settled", "red_envelope_settled_records_total", Count),
    ("queued_grabs", "red_envelope_hot_queued_grabs", Sum),
    (SHED, "red_envelope_shed_total", Count),
    (FAILED, FAILED_TOTAL, Count),
    (REFUSED, FAILED_TOTAL, Count),
    ("store_bytes", "red_envelope_store_bytes", Most),
];
/// Grabs that a server answered with an error, by its code.
const FAILED_TOTAL: &str = "red_envelope_grabs_failed_total";
/// The code of those that have to end so: to an outsider the envelope does not exist. A guest who is told that is
/// found by the book.
const REFUSAL: &str = "code=\"NOT_FOUND\"";
/// Calls that a server turned down because something was full.
pub const SHED: &str = "shed";
/// Grabs that it answered with an error that nobody wants.
pub const FAILED: &str = "failed_grabs";
/// Grabs that it answered with [`REFUSAL`].
pub const REFUSED: &str = "refused_grabs";
/// Grabs that a server answered: with an outcome, and with an error.
const ANSWERED: [&str; 2] = ["red_envelope_grabs_total", FAILED_TOTAL];
/// Acknowledged records that wait for the books.
pub const BACKLOG: &str = "backlog";
/// Histograms of sizes: how reports call them, and their names.
const BATCHES: [(&str, &str); 2] = [
    ("hot_commit_grabs", "red_envelope_hot_commit_grabs"),
    ("settle_batch_records", "red_envelope_settle_batch_records"),
];

/// Looks until it is stopped, or dropped.
pub struct Sampler {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Looks>,
}

struct Look {
    at: Instant,
    cpu: Vec<Option<Duration>>,
    memory_bytes: Vec<Option<u64>>,
    server: [Option<f64>; ASKED.len()],
    batches: [Vec<(f64, f64)>; BATCHES.len()],
    /// By each server.
    answered: Vec<Option<f64>>,
}

/// What was seen.
pub struct Looks {
    processes: Vec<Process>,
    every: Duration,
    looks: Vec<Look>,
}

/// Looks as reports keep them: one column a figure, one value a look.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// When, in seconds from the first instant of the firing; before it, envelopes are prepared.
    pub at_s: Vec<f64>,
    /// CPU time of each process since the first look, in seconds.
    pub cpu_s: BTreeMap<String, Vec<Option<f64>>>,
    /// Resident memory of each process.
    pub memory_bytes: BTreeMap<String, Vec<Option<u64>>>,
    /// What the server told of itself.
    pub server: BTreeMap<String, Vec<Option<f64>>>,
}

/// Batches of one size: above the one before, and up to this.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// The largest in it. None: without end.
    pub up_to: Option<f64>,
    /// How many batches.
    pub count: u64,
}

impl Sampler {
    /// Starts looking.
    pub fn start(processes: Vec<Process>, metrics: Vec<Scrape>) -> anyhow::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let mut looks = Looks {
            processes,
            every: LOOK_EVERY,
            looks: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("sampler".into())
            .spawn(move || {
                loop {
                    looks.look(&metrics, PATIENCE);
                    match stopped.recv_timeout(looks.every) {
                        Err(RecvTimeoutError::Timeout) => {}
                        Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                    }
                }
                looks.look_at_the_end(&metrics);
                looks
            })
            .context("no thread for samples")?;
        Ok(Self { stop, thread })
    }

    /// Takes a last look, again while it tells of a backlog, and answers all.
    pub fn stop(self) -> anyhow::Result<Looks> {
        drop(self.stop);
        let looks = self.thread.join();
        looks.map_err(|_| anyhow::anyhow!("the thread that samples panicked"))
    }
}

impl Looks {
    /// Nobody looked.
    #[cfg(test)]
    pub fn none() -> Self {
        Self {
            processes: Vec::new(),
            every: LOOK_EVERY,
            looks: Vec::new(),
        }
    }

    fn look(&mut self, metrics: &[Scrape], patience: Duration) {
        let at = Instant::now();
        // First what never waits.
        let cpu = self.processes.iter().map(Process::cpu).collect();
        let memory_bytes = self.processes.iter().map(Process::memory_bytes).collect();
        let pages = metrics.iter().map(|metrics| metrics.look(patience).ok());
        let pages: Vec<Option<Page>> = pages.collect();
        // Of servers one of which does not answer nothing is told: half a sum would look like a fall.
        let all: Option<Vec<&Page>> = pages.iter().map(Option::as_ref).collect();
        let all = all.unwrap_or_default();
        let look = Look {
            at,
            cpu,
            memory_bytes,
            server: ASKED.map(|(called, name, together)| told(&all, (called, name), together)),
            batches: BATCHES.map(|(_, name)| sizes(&all, name)),
            answered: pages.iter().map(|it| answered(it.as_ref()?)).collect(),
        };
        self.add(look);
    }

    /// Until nothing waits for the books any more, for as long as that is worth.
    fn look_at_the_end(&mut self, metrics: &[Scrape]) {
        let began = Instant::now();
        self.look(metrics, PATIENCE_AT_END);
        while self.tell_of_a_backlog() && began.elapsed() < PATIENCE_AT_END {
            std::thread::sleep(LOOK_EVERY);
            self.look(metrics, PATIENCE_AT_END);
        }
    }

    fn tell_of_a_backlog(&self) -> bool {
        let place = ASKED.iter().position(|(name, ..)| *name == BACKLOG);
        let last = self.looks.last().zip(place);
        last.and_then(|(look, place)| look.server[place]) > Some(0.0)
    }

    fn add(&mut self, look: Look) {
        self.looks.push(look);
        if self.looks.len() > SAMPLES_MAX {
            let mut keep = false;
            self.looks.retain(|_| {
                keep = !keep;
                keep
            });
            self.every *= 2;
        }
    }

    /// For reports, counted from the start of the firing.
    pub fn told(&self, start: Instant) -> Samples {
        let at_s = self.looks.iter().map(|look| seconds(look.at, start));
        let mut samples = Samples {
            at_s: at_s.collect(),
            ..Samples::default()
        };
        for (place, process) in self.processes.iter().enumerate() {
            let first = self.looks.iter().find_map(|look| look.cpu[place]);
            let since_first = |look: &Look| Some(look.cpu[place]?.saturating_sub(first?));
            let cpu = self.looks.iter().map(since_first);
            let cpu = cpu.map(|time| Some(time?.as_secs_f64())).collect();
            samples.cpu_s.insert(process.name.to_owned(), cpu);
            let memory = self.looks.iter().map(|look| look.memory_bytes[place]);
            let memory = memory.collect();
            samples.memory_bytes.insert(process.name.to_owned(), memory);
        }
        for (place, (name, ..)) in ASKED.iter().enumerate() {
            let column: Vec<_> = self.looks.iter().map(|look| look.server[place]).collect();
            if column.iter().any(Option::is_some) {
                samples.server.insert((*name).to_owned(), column);
            }
        }
        samples
    }

    /// What each server says that it answered, at the last look.
    pub fn answered_by(&self) -> BTreeMap<String, u64> {
        let last = self
            .looks
            .last()
            .into_iter()
            .flat_map(|look| &look.answered);
        let named = SERVERS.iter().zip(last);
        let named = named.filter_map(|(name, told)| Some(((*name).to_owned(), whole((*told)?))));
        named.collect()
    }

    /// Sizes of the batches since the start of the firing.
    pub fn batches(&self, start: Instant) -> BTreeMap<String, Vec<Bucket>> {
        let mut told = BTreeMap::new();
        for (place, (name, _)) in BATCHES.iter().enumerate() {
            let seen = |look: &&Look| !look.batches[place].is_empty();
            let Some(last) = self.looks.iter().rfind(seen) else {
                continue;
            };
            let before = self.looks.iter().filter(seen);
            let before = before.take_while(|look| look.at <= start).last();
            let before: &[(f64, f64)] = before.map_or(&[], |look| &look.batches[place]);
            told.insert((*name).to_owned(), between(before, &last.batches[place]));
        }
        told
    }
}

/// No grab failed yet: then that is not told.
fn answered(page: &Page) -> Option<f64> {
    let [with_outcome, with_error] = ANSWERED.map(|name| page.value(name));
    Some(with_outcome? + with_error.unwrap_or_default())
}

/// A figure of all servers. One that has nothing to count yet does not tell it, which is no gap in what the others do,
/// and a count that none of them tells is nought.
fn told(pages: &[&Page], (called, name): (&str, &str), together: Together) -> Option<f64> {
    let wanted = |labels: &str| match called {
        REFUSED => labels.contains(REFUSAL),
        FAILED => !labels.contains(REFUSAL),
        _ => true,
    };
    let values = pages
        .iter()
        .filter_map(|page| page.value_where(name, wanted));
    let value = values.reduce(|one, other| match together {
        Count | Sum => one + other,
        Most => one.max(other),
    });
    let nought = (matches!(together, Count) && !pages.is_empty()).then_some(0.0);
    value.or(nought)
}

/// A histogram of all servers, whose buckets are the same.
fn sizes(pages: &[&Page], name: &str) -> Vec<(f64, f64)> {
    let all = pages.iter().map(|page| page.buckets(name));
    let sum = all.reduce(|mut sum, other| {
        for (bucket, (_, count)) in sum.iter_mut().zip(other) {
            bucket.1 += count;
        }
        sum
    });
    sum.unwrap_or_default()
}

/// What two looks at one histogram differ by. Buckets count from nought; ours from the one before.
fn between(before: &[(f64, f64)], after: &[(f64, f64)]) -> Vec<Bucket> {
    let mut below = 0;
    let counted = after.iter().map(|(up_to, count)| {
        let known = before.iter().find(|(other, _)| other == up_to);
        let cumulative = whole(count - known.map_or(0.0, |(_, count)| *count));
        let count = cumulative.saturating_sub(below);
        below = cumulative;
        Bucket {
            up_to: up_to.is_finite().then_some(*up_to),
            count,
        }
    });
    counted.collect()
}

/// Counts in Prometheus' format are floats.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of 2^53 batches would be off by one, and none is below nought"
)]
pub fn whole(count: f64) -> u64 {
    count.max(0.0) as u64
}

/// From `start` to `at`, below nought before it.
fn seconds(at: Instant, start: Instant) -> f64 {
    let (after, before) = (
        at.saturating_duration_since(start),
        start.saturating_duration_since(at),
    );
    crate::report::thousandths(after.as_secs_f64() - before.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at: Instant, cpu_ms: u64) -> Look {
        Look {
            at,
            cpu: vec![Some(Duration::from_millis(cpu_ms))],
            memory_bytes: vec![Some(7)],
            server: [Some(1.0), None, None, None, None, None, None, None],
            batches: [vec![(4.0, cpu_ms as f64), (f64::INFINITY, 400.0)], vec![]],
            answered: vec![Some(2.0), None],
        }
    }

    fn looks(count: usize) -> (Instant, Looks) {
        let start = Instant::now();
        let mut looks = Looks {
            processes: vec![Process::own()],
            every: LOOK_EVERY,
            looks: Vec::new(),
        };
        let mut at = start;
        for number in 0..count as u64 {
            looks.add(look(at, 10 * number));
            at += LOOK_EVERY;
        }
        (start, looks)
    }

    #[test]
    fn many_looks_are_thinned_and_their_sums_stay() {
        let (start, looks) = looks(10 * SAMPLES_MAX);
        assert!(looks.looks.len() <= SAMPLES_MAX);
        assert!(looks.every > LOOK_EVERY);
        let told = looks.told(start);
        let last = told.cpu_s["loadtest"].last().unwrap().unwrap();
        assert!(last > 0.009 * 10.0 * SAMPLES_MAX as f64, "{last}");
        assert_eq!(told.at_s.first(), Some(&0.0));
        assert!(!told.server.contains_key("shed"));
    }

    #[test]
    fn batches_are_those_since_the_start_of_the_firing() {
        let (start, looks) = looks(5);
        let told = looks.batches(start + 2 * LOOK_EVERY);
        let up_to = |up_to, count| Bucket { up_to, count };
        assert_eq!(
            told["hot_commit_grabs"],
            [up_to(Some(4.0), 20), up_to(None, 0)]
        );
        assert!(!told.contains_key("settle_batch_records"));
    }

    #[test]
    fn a_look_at_a_backlog_is_not_the_last_one() {
        let (_, mut looks) = looks(1);
        looks.processes.clear();
        assert!(looks.tell_of_a_backlog());
        looks.look_at_the_end(&[]);
        assert!(!looks.tell_of_a_backlog());
        assert_eq!(looks.looks.len(), 2);
    }

    #[test]
    fn figures_of_several_servers_are_added_up_or_the_most_is_told() {
        let pages = [
            "t 3\nb_bucket{le=\"4\"} 2\n",
            "t 5\nb_bucket{le=\"4\"} 1\n",
            "u 1\n",
        ];
        let pages = pages.map(Page::parse);
        let two: Vec<&Page> = pages.iter().take(2).collect();
        assert_eq!(told(&two, ("t", "t"), Sum), Some(8.0));
        assert_eq!(told(&two, ("t", "t"), Most), Some(5.0));
        assert_eq!(sizes(&two, "b"), [(4.0, 3.0)]);
        // One of them has nothing to tell of it; of another figure two have nothing.
        let three: Vec<&Page> = pages.iter().collect();
        assert_eq!(told(&three, ("t", "t"), Sum), Some(8.0));
        assert_eq!(told(&three, ("u", "u"), Sum), Some(1.0));
        assert_eq!(told(&three, ("v", "v"), Sum), None);
        assert_eq!(told(&[], ("t", "t"), Sum), None);
    }

    #[test]
    fn a_count_that_no_server_tells_is_nought_where_one_was_read() {
        let page = Page::parse("t 3\n");
        assert_eq!(told(&[&page], (SHED, "shed"), Count), Some(0.0));
        assert_eq!(told(&[], (SHED, "shed"), Count), None);
    }

    #[test]
    fn strangers_who_are_refused_are_no_failures() {
        let page = "f{code=\"NOT_FOUND\"} 4\nf{code=\"INTERNAL\"} 2\nf{code=\"UNAVAILABLE\"} 1\n";
        let page = Page::parse(page);
        assert_eq!(told(&[&page], (REFUSED, "f"), Count), Some(4.0));
        assert_eq!(told(&[&page], (FAILED, "f"), Count), Some(3.0));
    }

    #[test]
    fn a_server_that_tells_nothing_leaves_the_processes_figures() {
        let nobody = Scrape::on_loopback(1);
        let sampler = Sampler::start(vec![Process::own()], vec![nobody]).unwrap();
        let looks = sampler.stop().unwrap();
        let told = looks.told(Instant::now());
        assert!(told.at_s.len() >= 2);
        assert!(told.memory_bytes["loadtest"][0] > Some(0));
        assert!(told.server.is_empty());
    }
}
