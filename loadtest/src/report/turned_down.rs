//! What a server turned down, by its own count: what was too much for it, what failed, and what had to be refused.

use serde::{Deserialize, Serialize};

use crate::sample::{FAILED, REFUSED, SHED, Samples};

/// What the server answered otherwise than with an outcome, over the whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnedDown {
    /// Calls, because something was full.
    pub shed: u64,
    /// Grabs, with an error.
    pub failed: u64,
    /// Grabs of people to whom the envelope does not exist: as it must be.
    pub refused: u64,
}

impl TurnedDown {
    /// Of what was seen. None: nobody looked.
    pub fn of(samples: &Samples) -> Option<Self> {
        Some(Self {
            shed: grown(samples.server.get(SHED)?),
            failed: grown(samples.server.get(FAILED)?),
            refused: grown(samples.server.get(REFUSED)?),
        })
    }
}

/// What a count grew by. A server that was started again counts from nought.
fn grown(counts: &[Option<f64>]) -> u64 {
    let told: Vec<f64> = counts.iter().copied().flatten().collect();
    let between = told.windows(2).map(|pair| match pair {
        [before, after] if after >= before => after - before,
        [_, after] => *after,
        _ => 0.0,
    });
    crate::sample::whole(between.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two seconds' counts of a server that was started again between the last two looks.
    #[test]
    fn what_was_turned_down_is_told_by_kind_and_outlives_a_restart() {
        let mut samples = Samples::default();
        assert_eq!(TurnedDown::of(&samples), None);
        let counts = |of: [f64; 4]| of.map(Some).to_vec();
        samples.server = [
            (SHED, counts([0.0; 4])),
            (FAILED, counts([5.0, 5.0, 7.0, 1.0])),
            (REFUSED, counts([0.0, 20.0, 30.0, 4.0])),
        ]
        .map(|(name, column)| (name.to_owned(), column))
        .into();
        let told = TurnedDown {
            shed: 0,
            failed: 3,
            refused: 34,
        };
        assert_eq!(TurnedDown::of(&samples), Some(told));
    }
}
