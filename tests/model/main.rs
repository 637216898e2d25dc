//! Money through the real stores, in one process: the flows, the crashes, the audit, and a model.
//!
//! # Shape
//! | file | holds |
//! |---|---|
//! | `world` | both stores in a folder of their own, settlement between them, a clock that is moved |
//! | `flows` | fund, publish, grab, settle, close; declined, recalled, frozen, poisoned |
//! | `letters` | dead letters: dismissed, corrected, paid by the reconciler |
//! | `parked` | what was parked and is refused, beside others |
//! | `frozen` | marks in both stores: broken, crossed, half set, half lifted |
//! | `crashes` | settlement and publish die at each crash point and go on |
//! | `crossings` | steps that are crossed in the middle by others |
//! | `dropped` | Redis and PostgreSQL: a runtime that is dropped anywhere, and another one that goes on |
//! | `parts` | Redis and PostgreSQL: partitions of one and of several processes |
//! | `audits` | planted wrongs, each named by the audit; none where there is none |
//! | `ops`, `random` | `enum Op`: random days, and the promises after each operation |
//!
//! # Not here
//! The server, the wire, kill -9 and power cuts: `tests/it`.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod audits;
mod crashes;
mod crossings;
mod debts;
mod dropped;
mod flows;
mod frozen;
mod letters;
mod ops;
mod parked;
mod parts;
mod random;
mod world;
