//! The only asker of the time.
//!
//! | clock | who has it |
//! |---|---|
//! | [`SystemClock`] | every release build |
//! | `OffsetClock` | the real process under test: the system's clock plus an offset that a file holds |
//! | `ManualClock` | unit tests: stands still until it is moved |
//!
//! # Not here
//! How long something took: that is `std::time::Instant`, which nobody can set back.

use crate::domain::id::UnixMs;

#[cfg(any(test, feature = "test-hooks"))]
pub use moved::{ManualClock, OffsetClock, OffsetUnreadable};

/// Tells the time to whoever has to decide by it.
pub trait Clock: Send + Sync + 'static {
    /// Now, by this clock. May step back when the system's clock is set.
    fn now(&self) -> UnixMs;

    /// What a store that has a clock of its own is told about time.
    fn for_store(&self) -> StoreClock {
        StoreClock::Own { offset_ms: 0 }
    }
}

impl<C: Clock + ?Sized> Clock for std::sync::Arc<C> {
    fn now(&self) -> UnixMs {
        (**self).now()
    }

    fn for_store(&self) -> StoreClock {
        (**self).for_store()
    }
}

/// By which time a store decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreClock {
    /// By its own, and so many milliseconds beside it; 0 outside tests.
    Own {
        /// Milliseconds, negative for a clock that is behind.
        offset_ms: i64,
    },
    /// It stands at an instant. Tests only.
    Standing(UnixMs),
}

/// Now, on the scale of the runtime's timers: for deadlines and lifetimes of this process, which a
/// step of the clock must not move. Paused where a test pauses the runtime.
pub fn timer_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
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

#[cfg(any(test, feature = "test-hooks"))]
mod moved {
    //! Clocks that tests move.

    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::{Clock, StoreClock, SystemClock};
    use crate::domain::id::UnixMs;

    /// Stands still until it is moved. Clones show the same time.
    #[derive(Clone, Debug)]
    pub struct ManualClock(Arc<AtomicI64>);

    impl ManualClock {
        /// Stands at `ms` after 1970-01-01T00:00:00Z.
        pub fn at(ms: i64) -> Self {
            Self(Arc::new(AtomicI64::new(ms)))
        }

        /// Moves it; a negative number moves it back.
        pub fn advance_ms(&self, ms: i64) {
            self.0.fetch_add(ms, Ordering::SeqCst);
        }

        /// Sets it.
        pub fn set(&self, ms: i64) {
            self.0.store(ms, Ordering::SeqCst);
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> UnixMs {
            UnixMs(self.0.load(Ordering::SeqCst))
        }

        fn for_store(&self) -> StoreClock {
            StoreClock::Standing(self.now())
        }
    }

    /// The file of an [`OffsetClock`] can't be read as a number.
    #[derive(Debug, thiserror::Error)]
    #[error("{path} must hold a whole number of milliseconds, such as 86400000: {why}")]
    pub struct OffsetUnreadable {
        path: String,
        why: String,
    }

    /// The system's clock plus the milliseconds that a file holds.
    ///
    /// The file is read at every question, so that what follows a move in a test follows it here;
    /// a batch asks once. Whoever meets the file half written keeps the last offset.
    #[derive(Debug)]
    pub struct OffsetClock {
        file: PathBuf,
        offset_ms: AtomicI64,
    }

    impl OffsetClock {
        /// Reads the offset once.
        ///
        /// # Errors
        /// The file is missing or holds something else.
        pub fn open(file: PathBuf) -> Result<Self, OffsetUnreadable> {
            let offset_ms = read(&file).map_err(|why| OffsetUnreadable {
                path: file.display().to_string(),
                why,
            })?;
            Ok(Self {
                file,
                offset_ms: AtomicI64::new(offset_ms),
            })
        }
    }

    impl Clock for OffsetClock {
        fn now(&self) -> UnixMs {
            let system = SystemClock.now();
            if let Ok(offset_ms) = read(&self.file) {
                self.offset_ms.store(offset_ms, Ordering::SeqCst);
            }
            system.plus_ms(self.offset_ms.load(Ordering::SeqCst))
        }

        fn for_store(&self) -> StoreClock {
            if let Ok(offset_ms) = read(&self.file) {
                self.offset_ms.store(offset_ms, Ordering::SeqCst);
            }
            let offset_ms = self.offset_ms.load(Ordering::SeqCst);
            StoreClock::Own { offset_ms }
        }
    }

    fn read(file: &std::path::Path) -> Result<i64, String> {
        let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
        text.trim().parse().map_err(|_| format!("found {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_stands_still_until_it_is_moved() {
        let clock = ManualClock::at(1_000);
        let held = clock.clone();
        assert_eq!(clock.now(), UnixMs(1_000));
        held.advance_ms(-10);
        assert_eq!(clock.now(), UnixMs(990));
        held.set(5);
        assert_eq!(clock.now(), UnixMs(5));
    }

    #[test]
    fn an_offset_clock_follows_its_file_and_keeps_the_last_offset_that_made_sense() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("offset");
        std::fs::write(&file, "0\n").unwrap();
        let clock = OffsetClock::open(file.clone()).unwrap();
        let day = 86_400_000;
        let moved = |clock: &OffsetClock| clock.now().0 - SystemClock.now().0;
        assert!(moved(&clock) < day / 2);

        std::fs::write(&file, day.to_string()).unwrap();
        assert!(moved(&clock) > day / 2);
        std::fs::write(&file, "half a num").unwrap();
        assert!(moved(&clock) > day / 2);
    }

    #[test]
    fn an_offset_clock_does_not_start_without_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("offset");
        assert!(OffsetClock::open(file.clone()).is_err());
        std::fs::write(&file, "soon").unwrap();
        let why = OffsetClock::open(file).unwrap_err().to_string();
        assert!(why.contains("whole number of milliseconds"), "{why}");
    }
}
