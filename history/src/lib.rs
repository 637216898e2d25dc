//! Judges a recorded history of grabs: could one envelope have given these answers?
//!
//! An envelope is a ticket dispenser. Somewhere between the asking and the answer of a grab lies an
//! instant at which it took effect; at that instant the next share was handed out, or the first answer
//! was repeated, or nothing was left. So the shares themselves tell the order, and whether such
//! instants exist is decided exactly, in O(n log n), without trying orders. One that was dealt to stripes
//! is several dispensers, each with people of its own, until shares move from one to another.
//!
//! # Shape
//! | item | what |
//! |---|---|
//! | [`History`] | what was asked and answered of one envelope |
//! | [`History::violations`] | every [`Rule`] that the answers break, with words |
//! | [`Recorder`] | histories of many envelopes, stamped by one counter, for callers at once |
//!
//! # Bounds
//! Memory of everything that is recorded. One violation of a kind that concerns an order, since the
//! second follows from the first; one an answer of the others.
//!
//! # Ordering
//! Stamps are whatever grows: a counter that all callers share, or one machine's monotonic clock. A
//! grab comes before another one only if it was answered before the other was asked.
//!
//! # Not here
//! Money (the audit), speed, and who may grab. It knows neither the contract nor a store, so that the
//! simulation, the end-to-end tests and the load test judge by the same law.

mod deal;
mod history;
mod judge;
mod recorder;

pub use history::{Answer, Attempt, Close, Handing, History, Home, Share};
pub use judge::{Rule, Violation};
pub use recorder::{Asked, Recorder};
