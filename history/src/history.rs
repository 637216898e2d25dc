//! What was asked and answered of one envelope.

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
    /// It had ended for another reason.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handing {
    /// By their numbers, from 0, within each epoch.
    #[default]
    ByNumber,
    /// Each is held for somebody, or comes from one of several stripes: no order is promised.
    Unordered,
}

/// Everything that was asked of one envelope.
#[derive(Clone, Debug, Default)]
pub struct History<G> {
    /// How many shares it has.
    pub share_count: u32,
    /// In which order they are handed out.
    pub handing: Handing,
    /// In any order.
    pub attempts: Vec<Attempt<G>>,
    /// In any order.
    pub closes: Vec<Close>,
    /// When its store was lost and rebuilt, ascending. A rebuilt envelope hands out by number what
    /// is left, so numbers tell the order only among grabs of one epoch.
    pub replaced_at: Vec<u64>,
}
