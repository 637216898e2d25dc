//! red-envelope: hands out lucky money under burst load, to the last minor unit.
//!
//! The rooms, in reading order:

pub mod domain;
