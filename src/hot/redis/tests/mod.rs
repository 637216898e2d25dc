//! The store on Redis against the door's conformance suite, a model, and bad days.
