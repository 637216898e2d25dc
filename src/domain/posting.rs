//! Placeholder for posting.
