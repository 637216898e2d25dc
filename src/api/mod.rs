//! All that knows protobuf or a status code: the four services of `redenvelope.v1`.
//!
//! # Shape
//! | part | what |
//! |---|---|
//! | `admission`, `draft`, `request_hash` | what came in, checked |
//! | `priority`, `backlog` | who is turned away while there are too many, and while settlement is behind |
//! | `facts`, `look`, `sight` | what is known of an envelope, and what a viewer may see of it |
//! | a file an RPC | the flow |
//! | `wire`, `status`, `token` | domain ↔ contract |
//! | `routes`, `envelopes` | RPCs by listener |
//! | `listen`, `deadline`, `details`, `untaken` | connections, calls whose time is over, what the transport refuses, answers that wait for their clients |
//!
//! # Bounds
//! [`MESSAGE_BYTES_MAX`], and those of each file.
//!
//! # Not here
//! Settlement: a recall or a replay writes a state that `settle` finds.

mod account;
mod admin_audit;
mod admin_dead_letters;
mod admin_freeze;
mod admin_trace;
mod admission;
mod backlog;
mod create;
mod deadline;
mod decline;
mod details;
mod draft;
mod envelopes;
mod facts;
mod get;
mod grab;
mod grab_codec;
mod grab_stream;
mod list_grabs;
pub mod listen;
mod look;
mod preview;
mod priority;
mod proof;
mod reads;
mod recall;
mod request_hash;
mod retries;
mod routes;
mod sent_received;
mod server_facts;
mod sight;
mod status;
mod together;
mod token;
mod untaken;
mod watch;
mod wire;
mod year_totals;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::domain::audience::Pepper;
use crate::domain::id::{EnvelopeId, Epoch};
use crate::domain::money::Currencies;
use crate::hot::HotStore;
use crate::hot::gate::Gated;
use crate::ledger::Ledger;
use crate::publish::{Amounts, Publisher};

pub use admin_audit::answer as audit_answer;
pub use backlog::{CREATES_SHED_AGE_MS, GRABS_SHED_AGE_MS};
pub use priority::Prioritize;
pub use routes::Services;

/// Bytes of one request message: the largest valid one is a CreateEnvelope
/// ([`draft::CREATE_BYTES_MAX`], 87,400 bytes), rounded up to a power of two so that fields which
/// a later release of the contract adds pass through this one.
pub const MESSAGE_BYTES_MAX: usize = 128 << 10;

const _: () = assert!(draft::CREATE_BYTES_MAX <= MESSAGE_BYTES_MAX);

/// What the services stand on.
pub struct Deps {
    /// Who may take which share.
    pub hot: Arc<dyn HotStore>,
    /// The same, for what is told of shares.
    pub gated: Arc<Gated>,
    /// The books.
    pub ledger: Arc<dyn Ledger>,
    /// Makes funded envelopes live; settlement has the same one.
    pub publisher: Arc<Publisher>,
    /// What shares are worth, from the seeds; publishing has the same one.
    pub amounts: Arc<Amounts>,
    /// What this server accepts.
    pub currencies: Arc<Currencies>,
    /// Keys passphrase locks, request hashes and paging tokens.
    pub pepper: Pepper,
    /// Whether a sender may grab an own LUCKY envelope.
    pub sender_may_grab: bool,
    /// Envelopes with more shares are dealt to stripes; 0: none is.
    pub stripe_above_shares: u32,
    /// Of the program, for GetServiceInfo.
    pub version: &'static str,
    /// Ends streams that would not end by themselves.
    pub shutdown: CancellationToken,
}

/// What every RPC shares.
struct Api {
    hot: Arc<dyn HotStore>,
    gated: Arc<Gated>,
    ledger: Arc<dyn Ledger>,
    publisher: Arc<Publisher>,
    amounts: Arc<Amounts>,
    currencies: Arc<Currencies>,
    pepper: Pepper,
    sender_may_grab: bool,
    stripe_above_shares: u32,
    version: &'static str,
    shutdown: CancellationToken,
    backlog: backlog::Backlog,
    priorities: priority::Priorities,
    retries: retries::Retries,
    facts: facts::Facts,
    reads: reads::Reads,
    endings: look::Endings,
    tokens: token::Tokens,
    watches: watch::Watches,
    /// Permits of publishes that nobody waits for.
    publishes: Arc<Semaphore>,
    /// Permits of previews.
    previews: Semaphore,
    /// Permits of audits.
    audits: Semaphore,
    /// Permits of audits of what is hot: one of everything may take an hour.
    audits_of_hot: Semaphore,
}

impl Api {
    fn new(deps: Deps) -> Arc<Self> {
        Arc::new(Self {
            backlog: backlog::Backlog::default(),
            priorities: priority::Priorities::default(),
            retries: retries::Retries::default(),
            facts: facts::Facts::new(Arc::clone(&deps.hot), Arc::clone(&deps.ledger)),
            reads: reads::Reads::new(reads::Stores {
                hot: Arc::clone(&deps.hot),
                gated: Arc::clone(&deps.gated),
                ledger: Arc::clone(&deps.ledger),
            }),
            endings: look::endings(),
            tokens: token::Tokens::new(&deps.pepper),
            watches: watch::Watches::default(),
            publishes: Arc::new(Semaphore::new(create::BACKGROUND_PUBLISHES_MAX)),
            previews: Semaphore::new(preview::PREVIEWS_MAX),
            audits: Semaphore::new(admin_audit::AUDITS_MAX),
            audits_of_hot: Semaphore::new(admin_audit::AUDITS_MAX),
            hot: deps.hot,
            gated: deps.gated,
            ledger: deps.ledger,
            publisher: deps.publisher,
            amounts: deps.amounts,
            currencies: deps.currencies,
            pepper: deps.pepper,
            sender_may_grab: deps.sender_may_grab,
            stripe_above_shares: deps.stripe_above_shares,
            version: deps.version,
            shutdown: deps.shutdown,
        })
    }

    /// The epoch in which an envelope's partition stands.
    fn epoch(&self, id: EnvelopeId) -> Epoch {
        self.hot.epoch(id.partition(self.hot.partitions()))
    }
}

#[cfg(test)]
mod tests;
