//! The embedded hot store: memory decides, one fsync makes it durable.
