//! What a process waited for a core: on a machine that does much else a command's time by the clock is no measure of
//! the command.
//!
//! # Shape
//! The kernel counts how long a thread was ready to run and did not. A watch reads that all the time; of a
//! command that took so long it tells what it may have waited meanwhile, at the most: SLOWLOG says only in which second
//! a command ended.
//!
//! # Bounds
//! A sample every [`EVERY`], 24 bytes each: some MB for a run of minutes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Between two looks. What is seen later is taken for longer, never for less.
const EVERY: Duration = Duration::from_micros(500);

/// When it was looked, and what had been waited until then.
type Sample = (SystemTime, Duration);

/// A watch over the main thread of a process, until it is dropped.
pub struct Waits {
    samples: Arc<Mutex<Vec<Sample>>>,
    over: Arc<AtomicBool>,
    watching: Option<JoinHandle<()>>,
}

impl Waits {
    /// Of this process.
    pub fn of(pid: u32) -> Self {
        let first = sample(pid);
        let first = first.expect("the kernel counts what is waited for a core (CONFIG_SCHED_INFO)");
        let samples = Arc::new(Mutex::new(vec![first]));
        let over = Arc::new(AtomicBool::new(false));
        let watching = std::thread::spawn({
            let (samples, over) = (Arc::clone(&samples), Arc::clone(&over));
            move || {
                while !over.load(Ordering::Relaxed) {
                    std::thread::sleep(EVERY);
                    // It may have ended meanwhile.
                    samples.lock().extend(sample(pid));
                }
            }
        });
        Self {
            samples,
            over,
            watching: Some(watching),
        }
    }

    /// What something that ended in this second after 1970 and took so long had of a core, at the least.
    pub fn ran_at_least(&self, second: u64, took: Duration) -> Duration {
        let samples = self.samples.lock();
        let began = UNIX_EPOCH + Duration::from_secs(second) - took;
        let ended = UNIX_EPOCH + Duration::from_secs(second + 1);
        let from = samples.partition_point(|(at, _)| *at < began);
        let to = samples.partition_point(|(at, _)| *at <= ended) + 1;
        let then = &samples[from.saturating_sub(1)..to.min(samples.len())];
        took.saturating_sub(waited_at_most(then, took))
    }

    /// What was waited in all.
    pub fn total(&self) -> Duration {
        let samples = self.samples.lock();
        samples[samples.len() - 1].1 - samples[0].1
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.watching.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || std::thread::panicking());
    }
}

fn sample(pid: u32) -> Option<Sample> {
    let told = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).ok()?;
    let ns = told.split_whitespace().nth(1)?.parse().ok()?;
    Some((SystemTime::now(), Duration::from_nanos(ns)))
}

/// The most that was waited in any span that is so long. A wait is counted when it is over, which is in the span in
/// which somebody waited; in which part of a gap between two looks that was, nobody knows.
fn waited_at_most(samples: &[Sample], span: Duration) -> Duration {
    let (mut most, mut end) = (Duration::ZERO, 0);
    for begin in 0..samples.len() {
        let next = samples.get(begin + 1).unwrap_or(&samples[begin]);
        while end + 1 < samples.len() && samples[end].0 < next.0 + span {
            end += 1;
        }
        most = most.max(samples[end].1 - samples[begin].1);
    }
    most
}

#[test]
fn what_was_waited_in_a_span_is_the_most_that_it_can_have_been() {
    let (began, ms) = (SystemTime::now(), Duration::from_millis);
    let samples: Vec<_> = [(0, 0), (1, 0), (2, 1), (3, 1), (10, 8), (11, 8), (12, 9)]
        .map(|(at, waited)| (began + ms(at), ms(waited)))
        .to_vec();
    assert_eq!(waited_at_most(&samples, ms(0)), ms(7));
    assert_eq!(waited_at_most(&samples, ms(1)), ms(7));
    assert_eq!(waited_at_most(&samples, ms(2)), ms(8));
    assert_eq!(waited_at_most(&samples, ms(100)), ms(9));
    assert_eq!(waited_at_most(&samples[..1], ms(1)), ms(0));
}
