//! The house rules, held by reading the source tree. A rule that nobody checks is a wish.
//!
//! # Shape
//! | room | holds |
//! |---|---|
//! | `tidy/layers.rs` | who knows whom; which room may name a store, the wire, the clock, the environment |
//! | `tidy/names.rs` | words that say nothing, tests as sentences, names in the environment |
//! | `tidy/sizes.rs` | 500 lines a file, 70 a function, a first line that says what the file is for |
//! | `tidy/leftovers.rs` | placeholders, marks, tests switched off, lints allowed, sleeping tests |
//! | `tidy/sql.rs` | statements that say whose they are |
//! | `tidy/words.rs` | no place of one machine, no registry's host |
//! | `tidy/records.rs` | decisions, lints and their reasons |
//! | `tidy/pardons.rs` | the exceptions, each with a reason |
//!
//! Each test proves its rule first: planted samples that must be flagged, and some that must not.
//! Only the standard library is used, so `make tidy` compiles this file with rustc alone.
//!
//! # Not here
//! What clippy, rustfmt, buf or cargo-deny can hold, they hold.

#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/leftovers.rs"]
mod leftovers;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/pardons.rs"]
mod pardons;
#[path = "tidy/records.rs"]
mod records;
#[path = "tidy/rust.rs"]
mod rust;
#[path = "tidy/sizes.rs"]
mod sizes;
#[path = "tidy/sql.rs"]
mod sql;
#[path = "tidy/tree.rs"]
mod tree;
#[path = "tidy/words.rs"]
mod words;
