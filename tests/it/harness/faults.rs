//! How long faults last: what the suite has time for, or, by `make faults`, what operators may meet.

use std::time::Duration;

/// Says which: `long`, or nothing.
const VARIABLE: &str = "RED_ENVELOPE_FAULTS";

/// Durations of faults.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// For which PostgreSQL hangs.
    pub outage: Duration,
    /// For which a process is stopped.
    pub pause: Duration,
}

impl Faults {
    /// Those that the environment asks for.
    pub fn asked_for() -> Self {
        match std::env::var(VARIABLE).as_deref() {
            Ok("long") => Self {
                outage: Duration::from_secs(300),
                pause: Duration::from_secs(120),
            },
            Ok("") | Err(_) => Self {
                outage: Duration::from_secs(60),
                pause: Duration::from_secs(20),
            },
            Ok(other) => panic!("{VARIABLE} is \"long\" or not set, not {other:?}"),
        }
    }
}
