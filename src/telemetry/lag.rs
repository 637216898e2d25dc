//! How late this process is in what it does: how long a task that could run waits until it does.
//!
//! A task asks to be woken every [`LOOK_EVERY`], and is woken late where others are in its way: tasks before it in
//! the runtime's queue, or other processes on the cores. What stands is the least lateness of the last
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
    /// Waits for the next look, and answers the lateness that stands.
    pub async fn look(&mut self) -> Duration {
        let due = timer_now() + LOOK_EVERY;
        tokio::time::sleep_until(due).await;
        self.saw(timer_now().saturating_duration_since(due))
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

    #[tokio::test]
    async fn who_is_kept_from_running_is_late() {
        let mut lag = Lag::default();
        for _ in 0..LOOKS {
            let look = lag.look();
            tokio::pin!(look);
            // The look is begun, and then nothing runs for longer than it would have waited.
            let begun = std::future::poll_fn(|cx| std::task::Poll::Ready(look.as_mut().poll(cx)));
            assert!(begun.await.is_pending());
            let until = timer_now() + 3 * LOOK_EVERY;
            while timer_now() < until {
                std::hint::spin_loop();
            }
            look.await;
        }
        let stands = lag.saw(ms(60_000));
        assert!(stands >= LOOK_EVERY, "{stands:?}");
    }
}
