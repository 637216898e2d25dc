//! Whether the generator ran at all: a thread that wants to run every few milliseconds, and notes when it could not.
//!
//! A lane can't tell an answer that came late from one that nobody read, so a generator that stood still while all
//! places were taken looks like a slow server. This thread waits for nobody's answer.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Between two looks at the clock.
const EVERY: Duration = Duration::from_millis(10);
/// What a thread may have to wait for its turn on busy cores. More than this is standing still.
const TURN_MAX: Duration = Duration::from_millis(50);

/// When the generator could not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Still {
    /// At a stretch.
    pub longest: Duration,
    /// All together.
    pub sum: Duration,
}

impl Still {
    fn note(&mut self, overslept: Duration) {
        if overslept > TURN_MAX {
            self.longest = self.longest.max(overslept);
            self.sum += overslept;
        }
    }
}

/// Looks until it is stopped, or dropped.
pub struct Watch {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Still>,
}

impl Watch {
    /// Starts looking.
    pub fn start() -> anyhow::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let look = move || {
            let mut still = Still::default();
            loop {
                let before = Instant::now();
                match stopped.recv_timeout(EVERY) {
                    Err(RecvTimeoutError::Timeout) => {
                        still.note(before.elapsed().saturating_sub(EVERY));
                    }
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return still,
                }
            }
        };
        let thread = std::thread::Builder::new().name("watch".into()).spawn(look);
        let thread = thread.context("no thread to watch the generator")?;
        Ok(Self { stop, thread })
    }

    /// What it saw.
    pub fn stop(self) -> anyhow::Result<Still> {
        drop(self.stop);
        let still = self.thread.join();
        still.map_err(|_| anyhow::anyhow!("the thread that watches panicked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_that_was_waited_for_is_no_standing_still() {
        let mut still = Still::default();
        for ms in [50, 60, 2_000, 1, 70] {
            still.note(Duration::from_millis(ms));
        }
        let seen = Still {
            longest: Duration::from_millis(2_000),
            sum: Duration::from_millis(2_130),
        };
        assert_eq!(still, seen);
    }
}
