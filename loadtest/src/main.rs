//! Rehearses the peak.

fn main() {}
