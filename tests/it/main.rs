//! The service as its users meet it: a real process, real stores, real kills. One binary.
//!
//! Every test starts a server of its own on free ports in a folder of its own, and ends with the
//! money audit where money moved.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failed step is a failed test; the clock asked here is the people's, not the server's"
)]

mod harness;

mod audiences;
mod bad_input;
mod burst;
mod command_line;
mod connections;
mod contract;
mod crash;
mod create_dies;
mod cut_aof;
mod deadlines;
mod dealt;
mod dealt_crowd;
mod dealt_endings;
mod dealt_faults;
mod dealt_fleet;
mod dealt_restored;
mod dealt_storm;
mod disk_full;
mod edited_books;
mod endings;
mod fleet_failover;
mod fleet_faults;
mod fleet_history;
mod fleet_lost_replies;
mod hostile;
mod ledger_faults;
mod letters;
mod listeners;
mod lost_replies;
mod made_good;
mod mega;
mod overload;
mod paused;
mod random_ids;
mod reconcile;
mod redis_faults;
mod redis_full;
mod redis_idle;
mod redis_keys;
mod redis_kills;
mod redis_level;
mod redis_power;
mod restored;
mod restored_folder;
mod restored_refused;
mod roles;
mod settlement_dies;
mod soak;
mod streams;
mod together;
mod two_releases;
mod watching;
