//! Histories of many envelopes, recorded by callers at once.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::history::{Answer, Attempt, Close, Handing, History};
use crate::judge::Violation;

/// What was asked and is to be answered. Dropped without an answer, the outcome stays unknown.
#[derive(Debug)]
#[must_use = "an answer that is not recorded counts as lost"]
pub struct Asked<E> {
    envelope: E,
    attempt: usize,
}

/// Histories by envelope. Stamps come from one counter, so a call that was answered before another one
/// was asked has the smaller one.
#[derive(Debug)]
pub struct Recorder<E, G> {
    clock: AtomicU64,
    histories: Mutex<BTreeMap<E, History<G>>>,
}

impl<E, G> Default for Recorder<E, G> {
    fn default() -> Self {
        Self {
            clock: AtomicU64::new(1),
            histories: Mutex::default(),
        }
    }
}

impl<E: Ord + Clone + Debug, G: Ord + Debug> Recorder<E, G> {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn histories(&self) -> MutexGuard<'_, BTreeMap<E, History<G>>> {
        self.histories
            .lock()
            .expect("nothing panics with this lock")
    }

    /// An envelope that is going to be grabbed. What was never begun is not recorded.
    pub fn begin(&self, envelope: E, share_count: u32, handing: Handing<G>) {
        self.histories().entry(envelope).or_insert(History {
            share_count,
            handing,
            attempts: Vec::new(),
            closes: Vec::new(),
            replaced_at: Vec::new(),
        });
    }

    /// A grab leaves.
    pub fn ask(&self, envelope: &E, grabber: G) -> Option<Asked<E>> {
        let mut histories = self.histories();
        let attempts = &mut histories.get_mut(envelope)?.attempts;
        attempts.push(Attempt {
            grabber,
            asked_at: self.now(),
            answered: None,
        });
        Some(Asked {
            envelope: envelope.clone(),
            attempt: attempts.len() - 1,
        })
    }

    /// Its answer is here.
    pub fn answer(&self, asked: Asked<E>, answer: Answer) {
        let mut histories = self.histories();
        let history = histories.get_mut(&asked.envelope);
        let history = history.expect("what was asked was begun");
        history.attempts[asked.attempt].answered = Some((self.now(), answer));
    }

    /// A call leaves that ends the envelope. Answers what to tell [`Recorder::closed`].
    pub fn close(&self, envelope: &E) -> Option<Asked<E>> {
        let mut histories = self.histories();
        let closes = &mut histories.get_mut(envelope)?.closes;
        closes.push(Close {
            asked_at: self.now(),
            answered_at: None,
        });
        Some(Asked {
            envelope: envelope.clone(),
            attempt: closes.len() - 1,
        })
    }

    /// The end was confirmed.
    pub fn closed(&self, asked: Asked<E>) {
        let mut histories = self.histories();
        let history = histories.get_mut(&asked.envelope);
        let history = history.expect("what was asked was begun");
        history.closes[asked.attempt].answered_at = Some(self.now());
    }

    /// Shares of a dealt envelope may move between its stripes from now on.
    pub fn moved(&self, envelope: &E) {
        let mut histories = self.histories();
        let history = histories.get_mut(envelope);
        if let Some(Handing::Dealt { moved_at, .. }) = history.map(|history| &mut history.handing) {
            moved_at.get_or_insert(self.now());
        }
    }

    /// The store behind all envelopes is another one from now on.
    pub fn replaced(&self) {
        let now = self.now();
        for history in self.histories().values_mut() {
            history.replaced_at.push(now);
        }
    }

    /// How many grabs were recorded.
    pub fn attempts(&self) -> usize {
        self.histories().values().map(|h| h.attempts.len()).sum()
    }

    /// Everything that no envelope could have answered.
    pub fn violations(&self) -> Vec<(E, Violation)> {
        let histories = self.histories();
        let of_one = |(envelope, history): (&E, &History<G>)| {
            let found = history.violations();
            let named = found.into_iter().map(|found| (envelope.clone(), found));
            named.collect::<Vec<_>>()
        };
        histories.iter().flat_map(of_one).collect()
    }
}
