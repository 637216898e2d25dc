//! Placeholder for envelope.
