//! What a process does among others on the same stores.

use serde::Deserialize;

/// The part of the work that is this process's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Both.
    All,
    /// Serves clients; others settle.
    Api,
    /// Settles; others serve clients.
    Settle,
}

impl Role {
    /// Whether clients are served.
    pub fn serves(self) -> bool {
        self != Self::Settle
    }

    /// Whether grabs are brought into the books, and what nobody took back to its sender.
    pub fn settles(self) -> bool {
        self != Self::Api
    }
}

/// `[process]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Its part of the work.
    pub role: Role,
}
