//! The store on Redis against the door's conformance suite, a model, and bad days.

mod backlog;
mod cuts;
mod damage;
mod dealt;
mod emptied;
mod epochs;
mod fence;
mod full;
mod histories;
mod index;
mod interrupted;
mod mended;
mod pending;
mod planted;
mod poison;
mod repairs;
mod rights;
mod scene;
mod walks;
mod written;

use std::sync::Arc;

use async_trait::async_trait;
use redis::Value;

use super::keys::EnvelopeKeys;
use super::layout::{Meta, Reader};
use super::server_under_test::{Flavour, RedisServer, in_memory};
use super::{RedisStore, Timing};
use crate::clock::ManualClock;
use crate::domain::envelope::HotState;
use crate::domain::id::{EnvelopeId, Epoch, PartitionCount};
use crate::domain::stripes::Stripe;
use crate::hot::conformance::stage::{NEW_YEAR_MS, Stage};
use crate::hot::{HotStore, Repair};

/// What a crash of the stage ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// Redis, by kill -9; its AOF is synced before every answer.
    Redis,
    /// The process before it.
    Process,
}

/// A Redis of its own, and a store in front of it.
pub(super) struct OnRedis {
    pub server: RedisServer,
    pub clock: ManualClock,
    pub store: Arc<RedisStore>,
    crash: Crash,
    epoch: Epoch,
}

/// The keys of an envelope.
fn own_keys(store: &RedisStore, id: EnvelopeId) -> EnvelopeKeys {
    store.core.keys.envelope(store.core.partition(id), id)
}

/// Calls of a command that a server has answered so far.
fn answered(server: &RedisServer, command: &str) -> u64 {
    let Value::BulkString(text) = server.command(&[b"INFO", b"commandstats"]) else {
        panic!("INFO answers with text");
    };
    let text = String::from_utf8(text).unwrap();
    let name = format!("cmdstat_{command}:calls=");
    let counted = text.lines().find_map(|line| line.strip_prefix(&name));
    let count = counted.and_then(|rest| rest.split(',').next());
    count.map_or(0, |count| count.parse().unwrap())
}

/// Patient, for machines that do much beside the tests.
fn timing() -> Timing {
    Timing {
        response: std::time::Duration::from_secs(10),
        connect: std::time::Duration::from_secs(10),
        ..Timing::default()
    }
}

fn store(server: &RedisServer, clock: &ManualClock) -> Arc<RedisStore> {
    let count = PartitionCount::new(4).unwrap();
    let store = RedisStore::new(
        &server.url(),
        None,
        count,
        timing(),
        Arc::new(clock.clone()),
        "of the test".to_owned(),
    );
    Arc::new(store.unwrap())
}

impl OnRedis {
    pub async fn new(flavour: Flavour, crash: Crash) -> Self {
        let server = RedisServer::start(flavour, &[]);
        let clock = ManualClock::at(NEW_YEAR_MS);
        let store = store(&server, &clock);
        let mut stage = Self {
            server,
            clock,
            store,
            crash,
            epoch: Epoch::FIRST,
        };
        stage.register(Epoch(2)).await;
        stage
    }

    /// As the ledger would have it after it accepted the server.
    pub async fn register(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        let standing = self.store.standing().await.unwrap().unwrap();
        let all = self.store.partitions().all().map(|p| (p, epoch)).collect();
        self.store.register(standing, all).await.unwrap();
    }

    /// Forgets the store, and registers a new one for the next epoch (or the same one).
    pub async fn start_again(&mut self, epoch: Epoch) {
        self.store = store(&self.server, &self.clock);
        self.register(epoch).await;
    }

    /// Registers a second process in the same epoch.
    pub async fn introduce(&self, other: &Arc<RedisStore>) {
        let standing = other.standing().await.unwrap().unwrap();
        let all = other.partitions().all().map(|p| (p, self.epoch)).collect();
        other.register(standing, all).await.unwrap();
    }

    /// Brings every envelope into the epoch, as the first touch of each would: the books of these
    /// tests are empty.
    pub async fn repair_all(&self) {
        let ids = self.store.envelopes(None, 1_000).await.unwrap();
        for id in ids {
            let Some(view) = self.store.view(vec![id]).await.unwrap().pop().flatten() else {
                continue;
            };
            if view.state == HotState::Funding {
                continue;
            }
            assert!(view.stale, "{id} was brought into a new epoch by nobody");
            let repair = Repair {
                envelope: id,
                terms: Arc::clone(&view.terms),
                amounts_minor: self.amounts(id).into(),
                claims: Vec::new(),
                over: None,
                stripe: Stripe::FIRST,
                gathered: None,
            };
            let under = self.store.epochs();
            let state = self.store.repair(&under, repair).await.unwrap();
            assert_eq!(state, view.state);
        }
    }

    /// What was loaded for an envelope, from the bytes in Redis.
    fn amounts(&self, id: EnvelopeId) -> Vec<i64> {
        let own = own_keys(&self.store, id);
        let get = |words: &[&[u8]]| match self.server.command(words) {
            Value::BulkString(bytes) => bytes,
            other => panic!("{other:?}"),
        };
        let meta = get(&[b"HGET", own.grabs.as_bytes(), b""]);
        let meta = Meta::unpack(&meta).unwrap();
        let shares = get(&[b"GETRANGE", own.shares.as_bytes(), b"0", b"-1"]);
        let records = shares.chunks(meta.width);
        records
            .map(|record| Reader(record).amount(meta.width).unwrap())
            .collect()
    }
}

#[async_trait]
impl Stage for OnRedis {
    fn store(&self) -> Arc<dyn HotStore> {
        Arc::clone(&self.store) as Arc<dyn HotStore>
    }

    fn clock(&self) -> &ManualClock {
        &self.clock
    }

    async fn crash(&mut self) {
        match self.crash {
            Crash::Process => self.start_again(self.epoch).await,
            Crash::Redis => {
                self.server.restart();
                self.start_again(Epoch(self.epoch.0 + 1)).await;
                self.repair_all().await;
            }
        }
    }
}

mod on_debians_redis_that_is_killed {
    use super::{Crash, Flavour, OnRedis};
    crate::hot::conformance::hot_conformance!(OnRedis::new(Flavour::Debian, Crash::Redis).await);
}

mod on_debians_redis_before_which_processes_die {
    use super::{Crash, Flavour, OnRedis};
    crate::hot::conformance::hot_conformance!(OnRedis::new(Flavour::Debian, Crash::Process).await);
}

mod on_redis_8 {
    use super::{Crash, Flavour, OnRedis};
    crate::hot::conformance::hot_conformance!(OnRedis::new(Flavour::Redis8, Crash::Redis).await);
}

mod on_valkey_9 {
    use super::{Crash, Flavour, OnRedis};
    crate::hot::conformance::hot_conformance!(OnRedis::new(Flavour::Valkey9, Crash::Redis).await);
}
