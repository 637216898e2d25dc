//! What an acknowledged grab survives.

use std::fmt;

/// The level of acknowledgement. In every one of them nobody is paid twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AckLevel {
    /// One process and its own disk: synced before the answer.
    Embedded,
    /// In the memory of Redis: a crash forgets about two seconds of answers, and without AOF all that is not in
    /// the books yet.
    Memory,
    /// Synced to the disk of one Redis before the answer.
    Fsync,
    /// In the books before the answer: as safe as their database, whatever Redis loses.
    Ledger,
}

impl AckLevel {
    /// As it is written in the configuration and published.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Memory => "memory",
            Self::Fsync => "fsync",
            Self::Ledger => "ledger",
        }
    }
}

impl fmt::Display for AckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
