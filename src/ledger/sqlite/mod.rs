//! The ledger on SQLite: one file, one writer, every posting one transaction.
