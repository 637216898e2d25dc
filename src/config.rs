//! Flags, environment and file become one configuration before any port is bound.
