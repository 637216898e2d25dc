//! From the hot store's outbox into the books, and what nobody took back to the sender.
