//! What is measured in a round, and how many shares it may need.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use red_envelope_proto::v1::GrabOutcome;

use crate::peer::PeerProcess;
use crate::process::Process;

/// Shares of an envelope, by the contract.
const SHARES_MAX: u32 = 10_000_000;

/// Shares of an envelope that is only looked at: what a chat's envelope has.
pub const LOOKED_AT_SHARES: u32 = 10;
/// Envelopes that are looked at in turn.
pub const ENVELOPES_APART: usize = 200;

/// The designs of others. Each has a file in `peers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Design {
    /// Commands one by one on a pooled connection.
    Deadpool,
    /// A lock in Redis.
    Lock,
    /// One script a grab.
    Lua,
    /// A locked row in PostgreSQL.
    RowLock,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Ours: unary Grab, Redis without AOF.
    Unary,
    /// Ours: unary Grab on an envelope that has nothing left.
    Empty,
    /// Ours: GrabStream with so many in flight, over the streams of other benchmarks, Redis without AOF.
    Stream(usize),
    /// Ours: GrabStream with 1,024 in flight over so many streams, each on a connection of its own.
    StreamOn(usize),
    /// Ours: GrabStream with 256 in flight, each grab synced before it is acknowledged.
    StreamFsync,
    /// Ours: GetEnvelope of one envelope, by those who hold its shares.
    Look,
    /// Ours: GetEnvelope of [`ENVELOPES_APART`] envelopes in turn.
    LookApart,
    /// Ours: ListGrabs of one envelope, by those who hold its shares.
    List,
    /// Unary Grab, Redis without AOF or PostgreSQL without synchronous commits.
    Peer(Design),
}

impl Subject {
    /// Ours and others' in turn.
    pub const ALL: [Self; 12] = [
        Self::Unary,
        Self::Peer(Design::Deadpool),
        Self::Empty,
        Self::Peer(Design::Lock),
        Self::Stream(256),
        Self::Peer(Design::Lua),
        Self::Stream(1_024),
        Self::Peer(Design::RowLock),
        Self::StreamFsync,
        Self::Look,
        Self::LookApart,
        Self::List,
    ];

    /// How cost grows with connections: measured where they are named.
    pub const ON_MORE: [Self; 3] = [
        Self::StreamOn(32),
        Self::StreamOn(256),
        Self::StreamOn(1_024),
    ];

    /// Those that can be measured, in the order of the table.
    pub fn every() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().chain(Self::ON_MORE)
    }

    /// As keys and the table have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Empty => "empty",
            Self::Stream(1_024) => "stream_1024",
            Self::Stream(_) => "stream",
            Self::StreamOn(32) => "stream_on_32",
            Self::StreamOn(256) => "stream_on_256",
            Self::StreamOn(_) => "stream_on_1024",
            Self::StreamFsync => "stream_fsync",
            Self::Look => "look",
            Self::LookApart => "look_apart",
            Self::List => "list",
            Self::Peer(design) => design.word(),
        }
    }

    /// Enough for `span`, even if all goes better than on any machine so far: a share of T, since the machine's
    /// speed is in both.
    pub fn shares(self, t_per_s: f64, span: Duration) -> u32 {
        let over_t = match self {
            Self::Unary | Self::Peer(_) => 1.5,
            Self::Empty => return 1,
            Self::Look | Self::LookApart | Self::List => return LOOKED_AT_SHARES,
            Self::Stream(_) | Self::StreamOn(_) => 8.0,
            Self::StreamFsync => 4.0,
        };
        let wanted = over_t * t_per_s * span.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast of a fraction saturates, and the bound is what an envelope may have"
        )]
        let shares = wanted.ceil() as u32;
        shares.clamp(1, SHARES_MAX)
    }
}

impl Design {
    /// As `burst-peers` and the keys have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deadpool => "deadpool",
            Self::Lock => "lock",
            Self::Lua => "lua",
            Self::RowLock => "row_lock",
        }
    }
}

/// Where calls go, and what comes of them.
pub struct Target {
    /// Of the server.
    pub address: SocketAddr,
    /// The envelopes: where there are several, all are looked at and none is grabbed from.
    pub envelope_ids: Vec<Arc<str>>,
    /// How many shares each had.
    pub shares: u32,
    /// What every grab must come to.
    pub outcome: GrabOutcome,
    /// Whether a grab may be turned away instead.
    pub may_turn_away: bool,
    /// The server and its store.
    pub processes: Vec<Process>,
    /// A server that is this target's alone.
    #[expect(dead_code, reason = "it is there to be dropped, which ends the server")]
    pub server: Option<PeerProcess>,
}
