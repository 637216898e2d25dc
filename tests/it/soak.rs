//! A long time with a fault every few seconds (F42): what was told is paid, nothing grows.
//!
//! # Shape
//! | who | does |
//! |---|---|
//! | people | send an envelope, now and then one that is dealt to stripes, and a crowd grabs it through all processes, until each is answered |
//! | faults | one after the other, drawn at random: processes, Redis, PostgreSQL and wires |
//! | a look | before each fault: an audit of what is hot, and the memory of a process that is never killed |
//!
//! A minute in the suite; thirty by `make soak`, which also judges how memory grows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use red_envelope_proto::v1::{AuditRequest, GrabOutcome, GrabResponse};
use tokio::time::Instant;
use tonic::Code;

use crate::dealt::dealing_above;
use crate::harness::faults::Faults;
use crate::harness::fleet::{Client, Fleet, Store, asked_around, rests, rush};
use crate::harness::record::Record;
use crate::harness::{Start, cny, lucky};

/// Minor units of an envelope, its shares, and who wants one.
const ENVELOPE: i64 = 1_000;
const SHARES: u32 = 20;
const CROWD: usize = 24;
/// One of so many envelopes is dealt to stripes, and so much larger is all of it.
const DEALT_EVERY: usize = 4;
const DEALT_TIMES: u16 = 3;
/// People in all: the same ones meet again and again.
const PEOPLE: usize = 240;
/// What the sender has: more than is ever sent.
const FUNDS: i64 = 100_000_000;
/// Between two envelopes.
const SENDS_EVERY: Duration = Duration::from_millis(300);
/// How often a look is tried that is told to come again, since the fault before is not over, and the rest between two tries.
const LOOK_TRIES: u32 = 40;
const LOOK_REST: Duration = Duration::from_millis(250);
/// The process that is paused and cut off, and never killed.
const SURVIVOR: usize = 2;
/// Memory may grow by this in a minute: what the catalogue of faults names.
const GROWS_MAX_KIB_PER_MIN: f64 = 1_024.0;
/// Samples of memory before caches have filled are left out: a third of them.
const SETTLED_IN: usize = 3;
/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Fault {
    ProcessKilled,
    ProcessRestarted,
    ProcessStopped,
    RedisKilled,
    RedisStopped,
    BooksKilled,
    BooksStopped,
    WireCut,
    WireStalled,
}

const FAULTS: [Fault; 9] = [
    Fault::ProcessKilled,
    Fault::ProcessRestarted,
    Fault::ProcessStopped,
    Fault::RedisKilled,
    Fault::RedisStopped,
    Fault::BooksKilled,
    Fault::BooksStopped,
    Fault::WireCut,
    Fault::WireStalled,
];

/// Who is asked now, and what everybody was told to have won.
#[derive(Clone)]
struct People {
    clients: Arc<Mutex<Vec<Client>>>,
    record: Record,
    told: Arc<Mutex<BTreeMap<String, i64>>>,
    over: Arc<AtomicBool>,
}

impl People {
    async fn live(self) -> usize {
        for round in 0.. {
            if self.over.load(Ordering::SeqCst) {
                return round;
            }
            let clients = self.clients.lock().clone();
            let dealt = round % DEALT_EVERY == DEALT_EVERY - 1;
            let times = if dealt { DEALT_TIMES } else { 1 };
            let total = cny(ENVELOPE * i64::from(times));
            let mut request = lucky("alice", total, SHARES * u32::from(times));
            request.request_id = format!("soak-{round}");
            let sent = asked_around(&clients, round, |mut client| {
                let request = request.clone();
                async move { client.create_envelope(request).await }
            });
            let envelope = sent.await.into_inner().envelope.unwrap();
            assert_eq!(self.record.deals(envelope.share_count), dealt);
            self.record.begin(&envelope);
            let crowd = (0..CROWD * usize::from(times))
                .map(|at| format!("person-{}", (round * 7 + at) % PEOPLE));
            let answers = rush(&self.record, &clients, &envelope.envelope_id, crowd).await;
            self.hear(answers);
            rests(SENDS_EVERY).await;
        }
        unreachable!("people go on until it is over")
    }

    fn hear(&self, answers: Vec<(String, GrabResponse)>) {
        let mut told = self.told.lock();
        for (person, answer) in answers {
            if let GrabOutcome::Won | GrabOutcome::AlreadyGrabbed = answer.outcome() {
                let amount = answer.share.unwrap().amount.unwrap().minor_units;
                *told.entry(person).or_default() += amount;
            }
        }
    }
}

/// Larger envelopes than most here are dealt to stripes.
fn dealing() -> Start {
    dealing_above(SHARES, Start::default())
}

impl Fault {
    async fn strikes(self, fleet: &mut Fleet, rng: &mut StdRng) {
        let place = rng.random_range(0..SURVIVOR);
        let anybody = rng.random_range(0..=SURVIVOR);
        let a_while = Duration::from_millis(rng.random_range(200..4_000));
        eprintln!("{self:?} {place} {anybody} {a_while:?}");
        match self {
            Self::ProcessKilled => {
                fleet.processes[place].server.kill();
                fleet.again(place, dealing()).await;
            }
            Self::ProcessRestarted => {
                let ended = fleet.processes[place].server.stop().await;
                assert!(ended.success(), "{ended}");
                fleet.again(place, dealing()).await;
            }
            Self::ProcessStopped => {
                fleet.processes[anybody].server.pause();
                rests(a_while).await;
                fleet.processes[anybody].server.resume();
            }
            Self::RedisKilled => {
                fleet.record.replaced();
                let redis = &mut fleet.redis;
                tokio::task::block_in_place(|| {
                    redis.kill();
                    redis.restart();
                });
            }
            Self::RedisStopped => {
                fleet.redis.pause();
                rests(a_while).await;
                fleet.redis.resume();
            }
            Self::BooksKilled => {
                let postgres = &mut fleet.postgres;
                tokio::task::block_in_place(|| {
                    postgres.kill();
                    postgres.start_again();
                });
            }
            Self::BooksStopped => {
                tokio::task::block_in_place(|| fleet.postgres.pause());
                rests(a_while).await;
                fleet.postgres.resume();
            }
            Self::WireCut => fleet.wires[anybody].cut(),
            Self::WireStalled => {
                fleet.wires[anybody].stall(true);
                rests(a_while).await;
                fleet.wires[anybody].stall(false);
            }
        }
    }
}

/// What was seen from time to time.
#[derive(Default)]
struct Looks {
    /// Minutes, and kibibytes of the survivor.
    memory: Vec<(f64, f64)>,
}

impl Looks {
    async fn look(&mut self, fleet: &mut Fleet, began: Instant) {
        let survivor = &mut fleet.processes[SURVIVOR];
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        self.memory.push((minutes, survivor.server.resident_kib()));
        let request = AuditRequest {
            operator: "soak".to_owned(),
            reason: "a look".to_owned(),
            hot_only: true,
            ..AuditRequest::default()
        };
        for _ in 0..LOOK_TRIES {
            match survivor.admin.audit(request.clone()).await {
                Ok(found) => {
                    let found = found.into_inner();
                    assert!(found.clean, "{found:#?}");
                    return;
                }
                Err(status) if status.code() == Code::Unavailable => rests(LOOK_REST).await,
                Err(status) => panic!("{status:?}"),
            }
        }
        panic!("{LOOK_TRIES} looks in a row were not answered");
    }

    /// Kibibytes a minute, by least squares, when caches have filled.
    fn slope(&self) -> f64 {
        let later = &self.memory[self.memory.len() / SETTLED_IN..];
        let count = later.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| later.iter().map(of).sum::<f64>() / count;
        let (minute, kib) = (mean(|at| at.0), mean(|at| at.1));
        let both = later.iter().map(|at| (at.0 - minute) * (at.1 - kib));
        let squares = later.iter().map(|at| (at.0 - minute).powi(2));
        both.sum::<f64>() / squares.sum::<f64>()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_next_what_was_told_is_paid_and_nothing_grows() {
    let faults = Faults::asked_for();
    eprintln!("RED_ENVELOPE_FAULTS_SEED={}", faults.seed);
    let mut rng = StdRng::seed_from_u64(faults.seed);
    let mut fleet = Fleet::on_wires_to(Store::Redis, 0).await;
    for _ in 0..=SURVIVOR {
        fleet.join(dealing()).await;
    }
    fleet.processes[0].fund("alice", cny(FUNDS)).await;
    let people = People {
        clients: Arc::new(Mutex::new(fleet.clients())),
        record: fleet.record.clone(),
        told: Arc::default(),
        over: Arc::default(),
    };
    let living = tokio::spawn(people.clone().live());
    let (began, mut looks, mut struck) = (Instant::now(), Looks::default(), 0);
    while began.elapsed() < faults.soak {
        let rest = rng.random_range(faults.soak_rests.clone());
        rests(Duration::from_millis(rest)).await;
        looks.look(&mut fleet, began).await;
        let fault = FAULTS.choose(&mut rng).copied().unwrap();
        fault.strikes(&mut fleet, &mut rng).await;
        struck += 1;
        *people.clients.lock() = fleet.clients();
    }
    people.over.store(true, Ordering::SeqCst);
    let envelopes = living.await.unwrap();
    let told = people.told.lock().clone();
    let paid_by = Instant::now() + Duration::from_secs(60);
    let survivor = &mut fleet.processes[SURVIVOR];
    survivor.until_all_are_paid_by(paid_by, &told).await;
    survivor.audit_when_quiet().await;
    eprintln!(
        "{struck} faults, {envelopes} envelopes, {} grabs, {} audits, memory {:+.0} KiB/min",
        fleet.record.grabs(),
        looks.memory.len(),
        looks.slope(),
    );
    if faults.is_long {
        assert!(looks.slope() < GROWS_MAX_KIB_PER_MIN, "{:?}", looks.memory);
    }
}
