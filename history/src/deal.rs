//! Every handing as one deal: how many stripes there are, whom each serves, and until when it hands out
//! what was dealt to it and by number.
//!
//! # Shape
//! | handing | stripes | until |
//! |---|---|---|
//! | by number | 1 | for ever |
//! | unordered | 1 | never |
//! | dealt | those of the envelope | shares may have moved |

use crate::history::{Handing, History, Home};

/// How the shares of an envelope lie.
pub struct Deal<'a, G> {
    share_count: u32,
    stripes: u32,
    /// `None`: there is one stripe.
    home: Option<&'a Home<G>>,
    /// From then on anybody may be handed any share.
    pub moved_at: u64,
}

impl<'a, G> Deal<'a, G> {
    /// Of an envelope.
    pub fn of(history: &'a History<G>) -> Self {
        let (stripes, home, moved_at) = match &history.handing {
            Handing::ByNumber => (1, None, u64::MAX),
            Handing::Unordered => (1, None, 0),
            Handing::Dealt {
                stripes,
                home,
                moved_at,
            } => (*stripes, Some(home), moved_at.unwrap_or(u64::MAX)),
        };
        Self {
            share_count: history.share_count,
            stripes: stripes.max(1),
            home,
            moved_at,
        }
    }

    /// How many stripes there are.
    pub fn stripes(&self) -> usize {
        self.stripes as usize
    }

    /// The stripe that serves somebody.
    pub fn home(&self, grabber: &G) -> usize {
        self.home.map_or(0, |home| home.of(grabber) as usize)
    }

    /// The lowest share of a stripe; of the one behind the last, how many shares there are.
    pub fn first(&self, stripe: usize) -> u64 {
        stripe as u64 * u64::from(self.share_count) / u64::from(self.stripes)
    }

    /// The stripe that one of the envelope's shares was dealt to.
    pub fn stripe_of(&self, number: u32) -> usize {
        let behind = (u64::from(number) + 1) * u64::from(self.stripes);
        let stripe = (behind - 1) / u64::from(self.share_count);
        usize::try_from(stripe).expect("it is less than there are")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_share_lies_in_the_stripe_that_it_was_dealt_to() {
        for share_count in 0..20_u32 {
            for stripes in 1..=6_u32 {
                let history = History::<u8> {
                    share_count,
                    handing: Handing::Dealt {
                        stripes,
                        home: Home::new(|_| 0),
                        moved_at: None,
                    },
                    ..History::default()
                };
                let deal = Deal::of(&history);
                assert_eq!(deal.first(0), 0);
                assert_eq!(deal.first(deal.stripes()), u64::from(share_count));
                for number in 0..share_count {
                    let stripe = deal.stripe_of(number);
                    let lies = deal.first(stripe)..deal.first(stripe + 1);
                    assert!(lies.contains(&u64::from(number)), "{number} in {lies:?}");
                }
            }
        }
    }
}
