//! What was asked and answered of one envelope.

use std::fmt;
use std::sync::Arc;

/// A share as an answer shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its number, from 0.
    pub number: u32,
    /// What it is worth.
    pub amount_minor: i64,
}

/// What a grabber was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This grab took the share.
    Won(Share),
    /// An earlier one had.
    Already(Share),
    /// Every share was taken.
    Empty,
    /// It had ended for another reason, at the least the stripe that answered.
    Over,
}

impl Answer {
    /// The share that it shows.
    pub fn share(self) -> Option<Share> {
        match self {
            Self::Won(share) | Self::Already(share) => Some(share),
            Self::Empty | Self::Over => None,
        }
    }
}

/// One call. A repetition after a lost answer is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt<G> {
    /// For whom.
    pub grabber: G,
    /// When it left.
    pub asked_at: u64,
    /// When its answer was here, and what it said. `None`: whether it took effect is unknown, and it
    /// still may.
    pub answered: Option<(u64, Answer)>,
}

/// A call that ends the envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// When it left.
    pub asked_at: u64,
    /// When it was confirmed, if it was.
    pub answered_at: Option<u64>,
}

/// In which order shares are handed out.
#[derive(Clone, Debug, Default)]
pub enum Handing<G> {
    /// By their numbers, from 0, within each epoch.
    #[default]
    ByNumber,
    /// Each is held for somebody: no order is promised.
    Unordered,
    /// By stripes. Stripe k of S was dealt the shares [kN/S, (k+1)N/S), and hands them out by their
    /// numbers, within each epoch, until shares move.
    Dealt {
        /// How many stripes there are.
        stripes: u32,
        /// Whom each of them serves.
        home: Home<G>,
        /// From when on a stripe may have shares that were dealt to another one. `None`: none has moved.
        moved_at: Option<u64>,
    },
}

/// Tells the stripe of a grabber, which stays the same.
#[derive(Clone)]
pub struct Home<G>(Arc<dyn Fn(&G) -> u32 + Send + Sync>);

impl<G> Home<G> {
    /// Of a function that answers less than there are stripes.
    pub fn new(of: impl Fn(&G) -> u32 + Send + Sync + 'static) -> Self {
        Self(Arc::new(of))
    }

    /// The stripe that serves a grabber.
    pub fn of(&self, grabber: &G) -> u32 {
        (self.0)(grabber)
    }
}

impl<G> fmt::Debug for Home<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Home")
    }
}

/// Everything that was asked of one envelope.
#[derive(Clone, Debug, Default)]
pub struct History<G> {
    /// How many shares it has.
    pub share_count: u32,
    /// In which order they are handed out.
    pub handing: Handing<G>,
    /// In any order.
    pub attempts: Vec<Attempt<G>>,
    /// In any order.
    pub closes: Vec<Close>,
    /// When its store was lost and rebuilt, ascending. A rebuilt envelope hands out by number what
    /// is left, so numbers tell the order only among grabs of one epoch.
    pub replaced_at: Vec<u64>,
}
