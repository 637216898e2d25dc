//! Log lines: for people on a terminal, one JSON object a line elsewhere. They go to stderr.
//!
//! A line tells one fact with fields to search by, once, where it is handled. Ids of envelopes may
//! stand in it; amounts together with persons may not, and secrets never.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What a level such as `info` or `info,red_envelope::settle=debug` lets pass.
///
/// # Errors
/// It is not understood.
pub fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(level)
}

/// Begins to tell, once a process; later calls change nothing.
///
/// # Errors
/// The level is not understood.
pub fn install(level: &str, json: bool) -> Result<(), ParseError> {
    let registry = tracing_subscriber::registry().with(filter(level)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let _told_already = if json {
        let lines = lines.json().flatten_event(true).with_current_span(false);
        registry.with(lines.with_span_list(false)).try_init()
    } else {
        let colours = std::io::stderr().is_terminal();
        registry
            .with(lines.with_ansi(colours).with_target(false))
            .try_init()
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_may_name_modules_and_nonsense_is_rejected() {
        assert!(filter("info").is_ok());
        assert!(filter("info,red_envelope::settle=debug").is_ok());
        assert!(filter("red_envelope=louder").is_err());
    }
}
