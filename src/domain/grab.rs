//! Placeholder for grab.
