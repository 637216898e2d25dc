//! Placeholder until the splits land.
#![allow(missing_docs, reason = "placeholder")]
use serde::{Deserialize, Serialize};
pub const SHARE_COUNT_MAX: u32 = 10_000_000;
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum Split {
    Even,
    DoubleMean,
    BrokenStick,
    Tiers { tiers: Vec<Tier> },
}
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    pub amount_minor: i64,
    pub count: u32,
}
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    pub total_minor: i64,
    pub share_count: u32,
    pub min_minor: i64,
    pub max_minor: i64,
    pub split: Split,
}
