//! The command line: a client of the contract, for people and for programs.
