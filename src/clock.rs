//! The only asker of the time.

use crate::domain::id::UnixMs;

/// Tells the time to whoever has to decide by it.
pub trait Clock: Send + Sync + 'static {
    /// Now, by this clock. May step back when the system's clock is set.
    fn now(&self) -> UnixMs;
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that asks the operating system for the time"
    )]
    fn now(&self) -> UnixMs {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        UnixMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}
