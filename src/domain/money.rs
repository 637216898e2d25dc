//! Placeholder for money.
