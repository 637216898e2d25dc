//! Both stores as the network reaches them, and the time.

use red_envelope::domain::id::UnixMs;

use crate::books::Books;
use crate::hot::Hot;

/// A rule that a store breaks. Those of settlement are `red_envelope::settle::rules`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// What was closed stays closed, also for a late loader.
    ClosedMark,
    /// A chunk may be loaded twice, and a live envelope stays as it is.
    IdempotentLoad,
    /// One claim a share, one a grabber.
    UniqueClaims,
    /// A number of the outbox that came back is another entry.
    Nonce,
}

/// What survives every crash of a process.
pub struct Stores {
    /// The true time.
    pub now_ms: i64,
    /// How far the hot store's clock is off.
    pub hot_off_ms: i64,
    /// How far the ledger's is.
    pub books_off_ms: i64,
    pub hot: Hot,
    pub books: Books,
    /// Which rule is off.
    pub off: Option<Rule>,
}

impl Stores {
    pub fn keep(&self, rule: Rule) -> bool {
        self.off != Some(rule)
    }

    pub fn hot_now(&self) -> UnixMs {
        UnixMs(self.now_ms + self.hot_off_ms)
    }

    pub fn books_now(&self) -> UnixMs {
        UnixMs(self.now_ms + self.books_off_ms)
    }
}
