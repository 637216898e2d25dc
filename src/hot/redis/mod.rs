//! The hot store on Redis or Valkey.

#[cfg(any(test, feature = "test-hooks"))]
pub mod server_under_test;
