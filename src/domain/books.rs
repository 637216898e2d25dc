//! Placeholder for books.
