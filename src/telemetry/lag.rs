//! How late this process is in what it does: how long a task that could run waits until it does.
//!
//! Every [`LOOK_EVERY`] a task is spawned that notes when it runs: late where others are in its way, tasks before it in
//! the runtime's queue or other processes on the cores. It is to be spawned from outside the runtime's workers, so that it
//! queues up behind all others; a worker would run what it spawned or woke itself next. What stands is the least lateness of the last
//! [`LOOKS`] times: a queue that is always there, not a moment's (as CoDel tells a bad queue from a good one,
//! K. Nichols and V. Jacobson, 2012).

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::timer_now;

/// Between two looks.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Looks of which the least counts: a tenth of a second, and longer where each of them is late.
pub const LOOKS: usize = 5;

/// The last looks.
#[derive(Debug, Default)]
pub struct Lag(VecDeque<Duration>);

impl Lag {
    /// Waits for the next look, and answers the lateness that stands. To be awaited by `block_on` of a runtime of many
    /// threads, which is none of its workers.
    pub async fn look(&mut self) -> Duration {
        let due = timer_now() + LOOK_EVERY;
        tokio::time::sleep_until(due).await;
        let ran = tokio::spawn(async { timer_now() }).await;
        // A runtime that ends runs nothing any more.
        let ran = ran.unwrap_or_else(|_| timer_now());
        self.saw(ran.saturating_duration_since(due))
    }

    fn saw(&mut self, late: Duration) -> Duration {
        if self.0.len() == LOOKS {
            self.0.pop_front();
        }
        self.0.push_back(late);
        match self.0.len() == LOOKS {
            true => self.0.iter().min().copied().unwrap_or_default(),
            false => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_moment_s_lateness_does_not_stand_and_one_that_goes_on_does() {
        let mut lag = Lag::default();
        for _ in 0..LOOKS {
            assert_eq!(lag.saw(ms(0)), ms(0));
        }
        assert_eq!(lag.saw(ms(900)), ms(0));
        for _ in 2..LOOKS {
            assert_eq!(lag.saw(ms(700)), ms(0));
        }
        assert_eq!(lag.saw(ms(800)), ms(700));
        assert_eq!(lag.saw(ms(1)), ms(1));
    }

    /// Takes its worker for a moment, again and again.
    async fn busy(for_a_moment: Duration) {
        loop {
            let until = timer_now() + for_a_moment;
            while timer_now() < until {
                std::hint::spin_loop();
            }
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn what_could_run_and_waits_behind_others_is_late() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let stands = runtime.block_on(async {
            let mut lag = Lag::default();
            for _ in 0..100 {
                tokio::spawn(busy(ms(1)));
            }
            for _ in 1..LOOKS {
                lag.look().await;
            }
            lag.look().await
        });
        runtime.shutdown_background();
        // The worker looks at what came from outside after some of its own tasks.
        assert!(stands >= ms(5), "{stands:?}");
    }
}
