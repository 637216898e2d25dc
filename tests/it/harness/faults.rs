//! How long faults last: what the suite has time for, or, by `make faults`, what operators may meet.

use std::ops::Range;
use std::time::Duration;

/// Says which: `long`, or nothing.
const VARIABLE: &str = "RED_ENVELOPE_FAULTS";

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
    /// Milliseconds between two of them.
    pub soak_rests: Range<u64>,
}

impl Faults {
    /// Those that the environment asks for.
    pub fn asked_for() -> Self {
        match std::env::var(VARIABLE).as_deref() {
            Ok("long") => Self {
                is_long: true,
                outage: Duration::from_secs(300),
                pause: Duration::from_secs(120),
                soak: Duration::from_secs(1_800),
                soak_rests: 5_000..15_000,
            },
            Ok("") | Err(_) => Self {
                is_long: false,
                outage: Duration::from_secs(60),
                pause: Duration::from_secs(20),
                soak: Duration::from_secs(60),
                soak_rests: 1_000..4_000,
            },
            Ok(other) => panic!("{VARIABLE} is \"long\" or not set, not {other:?}"),
        }
    }
}
