//! Placeholder for audience.
