//! red-envelope: hands out lucky money under burst load, to the last minor unit.
//!
//! The rooms, in reading order:

pub mod domain;

pub mod hot;
pub mod ledger;

pub mod audit;
pub mod publish;
pub mod settle;

pub mod api;
pub mod cli;

pub mod clock;
pub mod config;
pub mod telemetry;
