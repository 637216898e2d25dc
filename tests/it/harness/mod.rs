//! Starts, kills, cuts and asks a real server, in the words of the domain.

pub mod power;
pub mod proxy;
pub mod server;
pub mod world;

pub use server::Start;
pub use world::{World, cny, equal, exclusive, lucky};
