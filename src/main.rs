//! Arguments → configuration → role.

fn main() {}
