//! How long faults last: what the suite has time for, or, by `make faults`, what operators may meet.

use std::ops::Range;
use std::time::Duration;

use red_envelope::domain::split::SHARE_COUNT_MAX;

/// Says which: `long`, or nothing.
const VARIABLE: &str = "RED_ENVELOPE_FAULTS";
/// The seed of an earlier run, to draw the same ones in the same order.
const SEED: &str = "RED_ENVELOPE_FAULTS_SEED";

/// Durations of faults.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Whether they last as long as operators may meet them.
    pub is_long: bool,
    /// For which PostgreSQL hangs.
    pub outage: Duration,
    /// For which a process is stopped.
    pub pause: Duration,
    /// How long one fault follows the other.
    pub soak: Duration,
    /// From which they are drawn.
    pub seed: u64,
    /// Milliseconds between two of them.
    pub soak_rests: Range<u64>,
    /// Shares of an envelope that is to stall nobody.
    pub mega_shares: u32,
}

impl Faults {
    /// Those that the environment asks for.
    pub fn asked_for() -> Self {
        let seed = match std::env::var(SEED) {
            Ok(seed) => seed.parse().expect("a seed is a number"),
            Err(_) => rand::random(),
        };
        match std::env::var(VARIABLE).as_deref() {
            Ok("long") => Self {
                is_long: true,
                outage: Duration::from_secs(300),
                pause: Duration::from_secs(120),
                soak: Duration::from_secs(1_800),
                seed,
                soak_rests: 5_000..15_000,
                mega_shares: SHARE_COUNT_MAX,
            },
            Ok("") | Err(_) => Self {
                is_long: false,
                outage: Duration::from_secs(60),
                pause: Duration::from_secs(20),
                soak: Duration::from_secs(60),
                seed,
                soak_rests: 1_000..4_000,
                mega_shares: 1_000_000,
            },
            Ok(other) => panic!("{VARIABLE} is \"long\" or not set, not {other:?}"),
        }
    }
}
