//! Placeholder until fairness lands.
#![allow(missing_docs, reason = "placeholder")]
#[derive(Clone)]
pub struct ServerSeed([u8; 32]);
#[derive(Clone, Debug)]
pub struct Proof {}
