//! The hot store on Redis or Valkey.

pub mod checks;
#[cfg(any(test, feature = "test-hooks"))]
pub mod server_under_test;
