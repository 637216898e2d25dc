//! How long who comes now would wait, by how fast those before were answered.
//!
//! # Shape
//! Who comes passes [`Pace::enter`] and is counted until the [`Passing`] that he gets is dropped. Once `floor` are
//! inside, answers are counted, and the wait of the next one is those inside over the answers of a second (Little's
//! law, J. D. C. Little, 1961). Answers and the time that they took both fade with [`FADES_IN`], so that answers
//! which come by the hundred, a call at a time, make the same rate as those that come one by one. Who would wait longer than
//! `patience` is turned away at once, before anything is done.
//!
//! Nothing is to be tuned to a store's speed: a bound in time is as many as the store of this minute serves in
//! that time. A bound in numbers is too long for a slow store and too short for a fast one.
//!
//! # Bounds
//! `max` inside, however fast they are answered.
//!
//! # Ordering
//! First come, first served: who was let in is not turned away later for somebody who came after.
//!
//! # Not here
//! What is done with who is turned away (`api`); queues themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::timer_now;

/// How fast what was counted fades: in this time to 37 of 100. A store that becomes slower is known after as long.
const FADES_IN: Duration = Duration::from_secs(1);
/// A rate is known from so much time on. A call of the hot store takes a few milliseconds.
const KNOWN_FROM_SECONDS: f64 = 0.05;
/// What was counted is forgotten when there have been fewer than `floor` for so long: fewer are inside each time a call of
/// many is answered, and soon there are as many again.
const FORGETS_AFTER: Duration = Duration::from_secs(1);

/// So much of a time with fewer than `floor` counts as time in which answers were given: what lies between the answers of a
/// call of many and the next who come.
const GAP_MAX: Duration = Duration::from_millis(50);

/// Too many are inside, or they are answered too slowly: come again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnedAway;

/// Counts who is inside, and times answers.
#[derive(Debug)]
pub struct Pace {
    max: usize,
    floor: usize,
    patience: Duration,
    inside: AtomicUsize,
    /// Whether `floor` and more are inside, or were a moment ago: answers are counted.
    crowded: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The last answer, or when `floor` were inside at first.
    last: Option<Instant>,
    /// When `floor` were inside the last time, as far as is known.
    full_at: Option<Instant>,
    /// Answers, and the seconds that they took; both fade.
    answers: f64,
    seconds: f64,
}

impl Pace {
    /// At most `max` are inside. Below `floor` nobody is turned away: it is what the store takes at
    /// once, so that one that is slow still gets full calls.
    pub fn new(max: usize, floor: usize, patience: Duration) -> Self {
        Self {
            max,
            floor,
            patience,
            inside: AtomicUsize::new(0),
            crowded: AtomicBool::new(false),
            seen: Mutex::default(),
        }
    }

    /// Those inside.
    pub fn inside(&self) -> usize {
        self.inside.load(Ordering::Relaxed)
    }

    /// Lets one in.
    ///
    /// # Errors
    /// There is no room, or he would wait too long. Nothing was done.
    pub fn enter(self: &Arc<Self>) -> Result<Passing, TurnedAway> {
        let mut passing = Passing {
            pace: Arc::clone(self),
            count: 0,
        };
        passing.join(self.wait())?;
        Ok(passing)
    }

    fn admit(&self, before: usize, wait: Duration) -> Result<(), TurnedAway> {
        if before >= self.max || wait > self.patience {
            return Err(TurnedAway);
        }
        if before + 1 == self.floor
            || (before >= self.floor && !self.crowded.load(Ordering::Relaxed))
        {
            let mut seen = self.seen.lock();
            seen.fill(timer_now());
            self.crowded.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// How long the next one would wait, as far as is known.
    pub fn wait(&self) -> Duration {
        let before = self.inside();
        if before < self.floor {
            return Duration::ZERO;
        }
        let seen = self.seen.lock();
        // Where nobody is answered at all, the wait is as long as that has gone on.
        let silent = seen.last.map_or(Duration::ZERO, |last| {
            timer_now().saturating_duration_since(last)
        });
        if seen.seconds < KNOWN_FROM_SECONDS {
            return silent;
        }
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 are inside")]
        let seconds = before as f64 * seen.seconds / seen.answers;
        let by_rate = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        by_rate.max(silent)
    }

    fn answered(&self, count: usize) {
        if !self.crowded.load(Ordering::Relaxed) {
            return;
        }
        let mut seen = self.seen.lock();
        let now = timer_now();
        if self.inside() >= self.floor {
            seen.full_at = Some(now);
        }
        if seen.is_fresh(now) {
            seen.answered(count, now);
        } else {
            *seen = Seen::default();
            self.crowded.store(false, Ordering::Relaxed);
        }
    }
}

impl Seen {
    /// `floor` are inside again, or at first.
    fn fill(&mut self, now: Instant) {
        if !self.is_fresh(now) {
            *self = Self::default();
        }
        // While there were few, the time went by in which nobody came, not in which nobody was served.
        let counts_from = now.checked_sub(GAP_MAX).unwrap_or(now);
        self.last = Some(self.last.map_or(now, |last| last.max(counts_from)));
        self.full_at = Some(now);
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.full_at.is_some_and(|at| now < at + FORGETS_AFTER)
    }

    fn answered(&mut self, count: usize, now: Instant) {
        let last = self.last.replace(now).unwrap_or(now);
        let seconds = now.saturating_duration_since(last).as_secs_f64();
        let stays = (-seconds / FADES_IN.as_secs_f64()).exp();
        self.seconds = self.seconds * stays + seconds;
        #[expect(
            clippy::cast_precision_loss,
            reason = "far fewer than 2^52 are answered at once"
        )]
        let count = count as f64;
        self.answers = self.answers * stays + count;
    }
}

/// Somebody inside, or some who are served together; dropped, they have left.
#[derive(Debug)]
#[must_use = "who is dropped has left"]
pub struct Passing {
    pace: Arc<Pace>,
    count: usize,
}

impl Passing {
    /// One more, who would wait so long: what [`Pace::wait`] said when this turn of a loop began.
    ///
    /// # Errors
    /// As [`Pace::enter`].
    pub fn join(&mut self, wait: Duration) -> Result<(), TurnedAway> {
        let before = self.pace.inside.fetch_add(1, Ordering::Relaxed);
        let admitted = self.pace.admit(before, wait);
        match admitted {
            Ok(()) => self.count += 1,
            Err(_) => {
                self.pace.inside.fetch_sub(1, Ordering::Relaxed);
            }
        }
        admitted
    }

    /// They were answered. Who only leaves, since nobody waits for him any more, says nothing of how
    /// fast others are served.
    pub fn answered(self) {
        self.pace.answered(self.count);
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.pace.inside.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(500);

    fn pace() -> Arc<Pace> {
        Arc::new(Pace::new(10_000, 100, PATIENCE))
    }

    fn some(pace: &Arc<Pace>, count: usize) -> Passing {
        let mut some = pace.enter().unwrap();
        for _ in 1..count {
            some.join(Duration::ZERO).unwrap();
        }
        some
    }

    async fn after(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn below_the_floor_nobody_waits_and_nobody_is_turned_away() {
        let pace = pace();
        let inside = some(&pace, 99);
        after(60_000).await;
        assert_eq!(pace.wait(), Duration::ZERO);
        drop(pace.enter().unwrap());
        drop(inside);
        assert_eq!(pace.inside(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_too_long_at_the_pace_of_the_answers_is_turned_away_at_once() {
        let pace = pace();
        let mut inside: Vec<_> = (0..300).map(|_| pace.enter().unwrap()).collect();
        // Ten in 50 ms are 200 a second, for those 290 that stay: 1.45 s.
        after(50).await;
        for one in inside.split_off(290) {
            one.answered();
        }
        let wait = pace.wait();
        let near = Duration::from_millis(1_449)..Duration::from_millis(1_451);
        assert!(near.contains(&wait), "{wait:?}");
        assert_eq!(pace.enter().unwrap_err(), TurnedAway);
        let mut known_to = inside.pop().unwrap();
        assert_eq!(known_to.join(wait).unwrap_err(), TurnedAway);
        // Who was turned away takes no room, and below the floor nobody is.
        assert_eq!(pace.inside(), 290);
        inside.truncate(98);
        assert_eq!(pace.wait(), Duration::ZERO);
        drop(pace.enter().unwrap());
    }

    /// Each call takes a second and sixty, and sixty come at once when one is answered: who comes beyond waits.
    #[tokio::test(start_paused = true)]
    async fn between_two_calls_of_many_the_pace_is_not_forgotten() {
        let pace = pace();
        let mut calls = std::collections::VecDeque::from([some(&pace, 60), some(&pace, 60)]);
        for second in 0..5 {
            after(1_000).await;
            calls.pop_front().unwrap().answered();
            calls.push_back(some(&pace, 60));
            // Sixty a second, and 120 wait.
            assert!(pace.wait() > PATIENCE, "{second}");
            assert_eq!(pace.enter().unwrap_err(), TurnedAway, "{second}");
        }
        // A second with few, and it is.
        drop(calls);
        after(1_001).await;
        some(&pace, 1).answered();
        let _crowd = some(&pace, 2_000);
        assert_eq!(pace.wait(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_in_which_nobody_came_is_no_time_in_which_nobody_was_served() {
        let pace = pace();
        for pause_ms in [900, 3_600_000] {
            // 5,000 are answered in 20 ms, none of them while there are few …
            let crowd: Vec<_> = (0..50).map(|_| some(&pace, 100)).collect();
            after(20).await;
            for some in crowd {
                some.answered();
            }
            after(pause_ms).await;
            // … and so are the next ones.
            let crowd = some(&pace, 5_000);
            assert!(pace.wait() <= PATIENCE, "{:?}", pace.wait());
            after(20).await;
            crowd.answered();
            let one_more = some(&pace, 200);
            assert!(pace.wait() <= PATIENCE, "{:?}", pace.wait());
            drop(one_more);
        }
        // The last ones leave without an answer: an hour later nothing of it counts.
        drop(some(&pace, 5_000));
        after(3_600_000).await;
        let _crowd = some(&pace, 200);
        assert_eq!(pace.wait(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_store_lets_in_what_a_slow_one_would_not() {
        let pace = pace();
        let mut crowd: Vec<_> = (0..50).map(|_| some(&pace, 100)).collect();
        // 1,000 in 50 ms: 20,000 a second, and 4,000 wait a fifth of one.
        after(50).await;
        for some in crowd.split_off(40) {
            some.answered();
        }
        assert_eq!(pace.wait().as_millis(), 200);
        drop(pace.enter().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_is_answered_the_wait_is_as_long_as_that_has_gone_on() {
        let pace = pace();
        after(60_000).await;
        let inside = some(&pace, 100);
        after(500).await;
        let another = pace.enter().unwrap();
        after(1).await;
        assert_eq!(pace.enter().unwrap_err(), TurnedAway);
        // Who gives up says nothing; who is answered does.
        drop(another);
        assert_eq!(pace.enter().unwrap_err(), TurnedAway);
        inside.answered();
        drop(pace.enter().unwrap());
    }

    #[test]
    fn no_more_than_the_maximum_are_inside() {
        let pace = Arc::new(Pace::new(3, 100, PATIENCE));
        let two = some(&pace, 2);
        let _third = pace.enter().unwrap();
        assert_eq!(pace.enter().unwrap_err(), TurnedAway);
        drop(two);
        drop(some(&pace, 2));
    }
}
