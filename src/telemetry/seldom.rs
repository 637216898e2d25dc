//! Lets one of many alike lines pass in a while and counts the others, so that a store that is away
//! does not fill the disk with a line a call.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Between two lines: a person who reads along sees each, and a day has 8,640 of them.
pub const SELDOM_EVERY: Duration = Duration::from_secs(10);

/// One kind of line.
#[derive(Debug)]
pub struct Seldom(Mutex<State>);

#[derive(Debug)]
struct State {
    told_at: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    /// Nothing was said yet.
    pub const fn new() -> Self {
        Self(Mutex::new(State {
            told_at: None,
            unsaid: 0,
        }))
    }

    /// Whether to say it now; if so, how many lines were left unsaid since the last one.
    pub fn say(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let rests = |at: Instant| now.saturating_duration_since(at) < SELDOM_EVERY;
        if state.told_at.is_some_and(rests) {
            state.unsaid += 1;
            return None;
        }
        state.told_at = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

impl Default for Seldom {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::timer_now;

    #[test]
    fn the_first_line_is_said_and_then_one_in_a_while_with_how_many_were_not() {
        let seldom = Seldom::new();
        let now = timer_now();
        assert_eq!(seldom.say(now), Some(0));
        for _ in 0..1_000 {
            assert_eq!(seldom.say(now + SELDOM_EVERY / 2), None);
        }
        assert_eq!(seldom.say(now + SELDOM_EVERY), Some(1_000));
        assert_eq!(seldom.say(now + SELDOM_EVERY), None);
        assert_eq!(seldom.say(now + 3 * SELDOM_EVERY), Some(1));
    }
}
