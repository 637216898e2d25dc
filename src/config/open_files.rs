//! The limit of open files: whether it leaves room for the connections that the configuration allows.
//!
//! A connection is an open file. Many systems start a process with a soft limit of 1,024, for programs that
//! can't count further, and let it raise that up to the hard limit.
//!
//! # Bounds
//! [`FILES_BESIDES`].
//!
//! # Not here
//! The limits of connections: `api::listen`. Who tells: `main`.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Transport;

/// Open files that are no connection of a client: 64 of probes, the pools of PostgreSQL and Redis with some
/// dozens, the files of SQLite, operators' connections, and room for what libraries open.
pub const FILES_BESIDES: u64 = 512;

/// What the limit leaves room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// All connections that are allowed.
    Enough,
    /// All of them, since the soft limit was raised.
    Raised {
        /// What it was.
        from: u64,
        /// What it is.
        to: Option<u64>,
    },
    /// Not all of them, and the system allows no more.
    TooLittle {
        /// What it is now.
        limit: u64,
        /// What it should be.
        needed: u64,
    },
}

/// Raises the soft limit as far as the system lets this process, if it is too low.
pub fn make_room(transport: &Transport) -> Room {
    let needed = needed(transport);
    let now = getrlimit(Resource::Nofile);
    let Some(soft) = now.current.filter(|soft| *soft < needed) else {
        return Room::Enough;
    };
    let raised = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    let is_raised = setrlimit(Resource::Nofile, raised).is_ok();
    match now.maximum.filter(|hard| *hard < needed) {
        None if is_raised => Room::Raised {
            from: soft,
            to: now.maximum,
        },
        hard => Room::TooLittle {
            limit: hard.filter(|_| is_raised).unwrap_or(soft),
            needed,
        },
    }
}

fn needed(transport: &Transport) -> u64 {
    let connections = u64::try_from(transport.connections_max).unwrap_or(u64::MAX);
    connections.saturating_add(FILES_BESIDES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    #[test]
    fn more_connections_than_the_system_allows_are_told_with_what_they_need() {
        let mut transport = Config::load(&Sources::default()).unwrap().0.transport;
        transport.connections_max = 1;
        assert_eq!(make_room(&transport), Room::Enough);
        transport.connections_max = usize::MAX;
        let hard = getrlimit(Resource::Nofile).maximum;
        match (make_room(&transport), hard) {
            (Room::TooLittle { limit, needed }, Some(hard)) => {
                assert_eq!((limit, needed), (hard, u64::MAX));
            }
            (Room::Enough | Room::Raised { .. }, None) => {}
            other => panic!("{other:?}"),
        }
    }
}
