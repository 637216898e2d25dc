//! The wires at which a storm rages: what is lost on each, and what counts as having arrived behind it.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::proxy::Proxy;

/// Between two beats of the storm over a wire, and beats until it begins anew.
const BEAT: Duration = Duration::from_millis(20);
pub const BEATS: usize = 100;
/// Of them, those in which replies are lost: of so many in turn the first few.
const BEATS_OF_GUSTS: usize = 60;
const GUST: usize = 10;
const GUST_LASTS: usize = 3;
/// Then nothing is answered for two beats, and later everything is cut once.
const SILENT_BEATS: std::ops::Range<usize> = 70..72;
const CUT_AT: usize = 90;

/// What a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// To send an envelope.
    Create,
    /// To grab a share.
    Grab,
    /// To give the own share back.
    Decline,
    /// To end it.
    Recall,
}

impl Call {
    /// The RPC, as the servers' metrics name it.
    pub fn method(self) -> &'static str {
        match self {
            Self::Create => "EnvelopeService/CreateEnvelope\"",
            Self::Grab => "EnvelopeService/Grab\"",
            Self::Decline => "EnvelopeService/DeclineEnvelope\"",
            Self::Recall => "EnvelopeService/RecallEnvelope\"",
        }
    }

    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Create, Self::Grab, Self::Decline, Self::Recall];
}

/// A wire at which replies are lost.
#[derive(Clone, Copy)]
pub struct Hop {
    /// What asks for such a reply, as it looks on the wire, each in its turn. None: whatever is asked.
    pub requests: &'static [&'static [u8]],
    /// Whether no server can answer this without what is behind the wire; `true`: asked once more after
    /// it was answered.
    pub needs: fn(Call, bool) -> bool,
    /// How many of these replies must be lost before the storm may end.
    pub lost_min: u64,
    /// Calls of which a try without an answer must have taken effect at least once.
    pub finds: &'static [Call],
    /// Whether the callers' own wires break, rather than those of the servers.
    pub breaks_off: bool,
}

/// From the callers to the servers.
pub const CALLERS_HOP: Hop = Hop {
    requests: &[],
    needs: |_, _| true,
    lost_min: 1_000,
    finds: &Call::ALL,
    breaks_off: true,
};

/// From the servers to Redis: the calls that change something. Shares are loaded, opened, granted, declined,
/// and closed for good. A Create that is repeated may find all it needs in the books.
pub const REDIS_HOP: Hop = Hop {
    requests: &[
        b"grab_1",
        b"open_1",
        b"load_1",
        b"decline_1",
        b"grab_1",
        b"close_1",
    ],
    needs: |call, again| call != Call::Create || !again,
    lost_min: 200,
    finds: &[Call::Create, Call::Grab, Call::Decline],
    breaks_off: false,
};

/// From servers at level `ledger` to PostgreSQL: an envelope is funded and ended there, and a grab is told
/// when it is settled. Who has heard that it is needs not be told so by the books once more.
pub const BOOKS_HOP: Hop = Hop {
    requests: &[b"COMMIT\0"],
    needs: |call, again| matches!(call, Call::Create | Call::Recall) || !again,
    lost_min: 1_000,
    finds: &[Call::Create, Call::Grab, Call::Recall],
    breaks_off: false,
};

impl Hop {
    /// Replies that were lost over a wire, of those that the storm is about. Where the wire is the
    /// callers', each is that of all calls on one connection.
    pub fn lost_over(self, wire: &Proxy) -> u64 {
        match self.requests {
            [] => wire.swallowed(),
            _ => wire.unanswered(),
        }
    }

    /// Whether a call without an answer was told what it may be told.
    pub fn is_lost(self, status: &Status) -> bool {
        // A connection that broke off is told by the client itself, under any code.
        if self.breaks_off && status.source().is_some() {
            return true;
        }
        // Nothing happens to the callers' own wires: whatever is lost, they are told to repeat.
        let told = status.get_error_details();
        status.code() == Code::Unavailable && told.retry_info().is_some()
    }
}

/// The storm over one wire, until it is called off: requests whose replies are lost, then nothing but
/// silence, then a cut, with calm between them.
pub async fn blow(hop: Hop, wire: Arc<Proxy>, begins_at: usize, over: Arc<AtomicBool>) {
    let mut beats = tokio::time::interval(BEAT);
    let mut beat = begins_at;
    while !over.load(Ordering::SeqCst) {
        beats.tick().await;
        beat += 1;
        let in_turn = beat % BEATS;
        let gust = in_turn < BEATS_OF_GUSTS && in_turn % GUST < GUST_LASTS;
        let request = hop.requests.get(beat / GUST % hop.requests.len().max(1));
        wire.swallow_replies_to(request.copied().filter(|_| gust));
        let all = gust && hop.requests.is_empty();
        wire.swallow_replies(all || SILENT_BEATS.contains(&in_turn));
        if in_turn == CUT_AT {
            wire.cut();
        }
    }
    wire.swallow_replies_to(None);
    wire.swallow_replies(false);
}
