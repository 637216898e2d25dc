//! Ten thousand random histories on Redis and on the embedded store: embedded = model = Redis, whatever
//! is asked in whatever order and whenever a process dies.
//!
//! # Bounds
//! The histories of [`SEED`] are the same every time, a tenth of them in a build that is not
//! optimised; [`FRESH_LISTS`] more come from a seed that is printed. Where one fails, a shorter one
//! that fails is printed.
//!
//! # Not here
//! A Redis that is killed (the conformance suite and `cuts`): it keeps nothing here, for speed. A disk:
//! the embedded store's files lie in memory where the system has a folder for that, and what they
//! survive is the subject of its own tests.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{Flavour, RedisServer, in_memory, timing};
use crate::clock::ManualClock;
use crate::domain::ack::AckLevel;
use crate::domain::id::{Epoch, PartitionCount};
use crate::hot::HotStore;
use crate::hot::conformance::stage::{NEW_YEAR_MS, Stage};
use crate::hot::conformance::world::{Op, Player, World, ops};
use crate::hot::embedded::tests::{CRAMPED, Embedded};
use crate::hot::redis::RedisStore;

const SEED: u64 = 20_260_217;
const LISTS: u32 = 10_000 / SLOWER;
const FRESH_LISTS: u32 = 1_000 / SLOWER;
/// Without optimisation a history takes ten times as long.
const SLOWER: u32 = if cfg!(debug_assertions) { 10 } else { 1 };
const WORKERS: u32 = 4;
/// Fewer than in service, since a look asks each.
const PARTITIONS: u16 = 2;
/// Steps of a history, besides those that publish.
const STEPS_MAX: usize = 40;
/// Steps between two looks.
const LOOK_EVERY: usize = 20;

/// A process in front of a Redis that others use, too.
struct Process {
    url: String,
    clock: ManualClock,
    store: Arc<RedisStore>,
}

impl Process {
    async fn before(server: &RedisServer) -> Self {
        let clock = ManualClock::at(NEW_YEAR_MS);
        let url = server.url();
        let store = start(&url, &clock).await;
        Self { url, clock, store }
    }
}

async fn start(url: &str, clock: &ManualClock) -> Arc<RedisStore> {
    let count = PartitionCount::new(PARTITIONS).unwrap();
    let asked = Some(AckLevel::Memory);
    let clock = Arc::new(clock.clone());
    let store = RedisStore::new(url, asked, count, timing(), clock, "of the test".into()).unwrap();
    let standing = store.standing().await.unwrap().unwrap();
    let epochs = count.all().map(|partition| (partition, Epoch(2)));
    let registered = store.register(standing, epochs.collect()).await;
    registered.unwrap();
    // Empty envelopes are answered from memory as soon as their winners are read.
    store.core.emptied.set(1, Duration::from_secs(60));
    Arc::new(store)
}

#[async_trait]
impl Stage for Process {
    fn store(&self) -> Arc<dyn HotStore> {
        Arc::clone(&self.store) as Arc<dyn HotStore>
    }

    fn clock(&self) -> &ManualClock {
        &self.clock
    }

    async fn crash(&mut self) {
        self.store = start(&self.url, &self.clock).await;
    }
}

#[async_trait]
impl Player for Process {
    const REMEMBERS_SETTLED: bool = true;
}

/// Plays `lists` histories that begin with this seed on both stores, each on worlds of their own.
fn play(server: &RedisServer, seed: u64, lists: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let process = RefCell::new(runtime.block_on(Process::before(server)));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(
        Config {
            cases: lists,
            failure_persistence: None,
            ..Config::default()
        },
        TestRng::from_seed(RngAlgorithm::ChaCha, &bytes),
    );
    let (files, compared) = (in_memory(), Cell::new(0));
    let played = runner.run(&ops(false, STEPS_MAX), |list: Vec<Op>| {
        let mut process = process.borrow_mut();
        runtime.block_on(World::new(&mut *process).play_all(&list, LOOK_EVERY));
        let mut embedded = Embedded::below(&files, CRAMPED);
        runtime.block_on(World::new(&mut embedded).play_all(&list, LOOK_EVERY));
        compared.set(compared.get() + 1);
        Ok(())
    });
    if let Err(error) = played {
        panic!("seed {seed}: {error}");
    }
    assert_eq!(compared.get(), lists, "both stores play every history");
}

fn play_in_parallel(first_seed: u64, lists: u32) {
    let options = [
        ("appendonly", "no"),
        ("appendfsync", "no"),
        ("loglevel", "warning"),
    ];
    let server = RedisServer::start(Flavour::Debian, &options);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (server, seed) = (&server, first_seed.wrapping_add(worker.into()));
            scope.spawn(move || play(server, seed, lists / WORKERS));
        }
    });
}

#[test]
fn ten_thousand_histories_go_as_the_model_says() {
    play_in_parallel(SEED, LISTS);
}

#[test]
fn histories_that_nobody_chose_go_as_the_model_says() {
    let seed: u64 = rand::random();
    println!("the first seed is {seed}");
    play_in_parallel(seed, FRESH_LISTS);
}
