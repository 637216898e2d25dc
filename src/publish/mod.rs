//! Makes a funded envelope live: shares from the seed, into the hot store, open, marked.
