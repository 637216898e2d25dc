//! The whole stack on Redis and PostgreSQL, whose runtime is dropped in the middle of whatever it does.
//!
//! # Shape
//! A history is two lives on the same stores. Both do the same: bring money in, send an envelope, have it
//! grabbed by a crowd, drain and sweep meanwhile, at the end of its time end it. The first life is polled
//! so many times and then goes away with its runtime: tasks, connections and all that it remembers. The
//! second finishes what the stores know of. What anybody was told in either life must come true, once.
//!
//! # Bounds
//! [`HISTORIES`] histories, [`ABREAST`] at a time, each of these on a Redis and a database of its own; the
//! first life of each ends after a number of polls that its seed draws.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::future;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use red_envelope::audit::{self, AuditOptions};
use red_envelope::clock::{Clock, ManualClock};
use red_envelope::domain::ack::AckLevel;
use red_envelope::domain::envelope::{BookState, CloseReason, Draft};
use red_envelope::domain::grab::{Grab, GrabReply, Grant, Outcome};
use red_envelope::domain::id::{EnvelopeId, PartitionCount};
use red_envelope::domain::money::Money;
use red_envelope::hot::HotStore;
use red_envelope::hot::gate::{Gate, Gated};
use red_envelope::hot::redis::RedisStore;
use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope::ledger::postgres::server_under_test::{PostgresServer, Release};
use red_envelope::ledger::{Fund, Ledger, LedgerError, Transfer};
use red_envelope::publish::{Amounts, Publisher, Registrar};
use red_envelope::settle::{Drain, Settlement};
use tokio::runtime::Runtime;

use crate::world::{EXPIRES_IN_MS, NOON_MS, books_at, cny, equal, lucky, patient, person, tenant};

/// Histories of one run.
const HISTORIES: u64 = 2_000;
/// Of them, those that are lived at the same time.
const ABREAST: usize = 2;
/// Partitions of the Redis: envelopes of one history lie in one, those of others in the other.
const PARTITIONS: u16 = 2;
/// Polls of a first life at the most: an undisturbed one takes some hundred.
const POLLS_MAX: u32 = 250;
/// Turns that a grabber, or settlement, lets others have before it begins.
const TURNS_MAX: u32 = 12;
/// Tries of a step that a store refuses for the moment.
const TRIES_MAX: usize = 200;
/// Rounds that settle what a history leaves.
const ROUNDS_MAX: usize = 50;

/// Both stores of some histories.
struct Servers {
    redis: RedisServer,
    books: String,
}

/// What is decided before a history begins, and what people remember of it.
struct History {
    number: u64,
    draft: Draft,
    grabbers: Vec<String>,
    /// At level `ledger`, else at `memory`.
    gated: bool,
    clock: ManualClock,
    told: Mutex<BTreeMap<String, Outcome>>,
}

/// What goes away with a life.
struct Stack {
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    gated: Gated,
    publisher: Arc<Publisher>,
    settlement: Settlement,
}

impl History {
    fn new(number: u64, rng: &mut StdRng) -> Self {
        let sender = format!("h{number}-sender");
        let shares = rng.random_range(1..=5);
        let draft = match rng.random() {
            true => equal(&sender, 10, shares),
            false => lucky(&sender, i64::from(shares) * 10, shares),
        };
        let crowd = shares + rng.random_range(0..=2);
        Self {
            number,
            draft,
            grabbers: (0..crowd).map(|n| format!("h{number}-g{n}")).collect(),
            gated: rng.random(),
            clock: ManualClock::at(NOON_MS),
            told: Mutex::default(),
        }
    }

    /// What somebody is told must be what that person was told before.
    fn told(&self, grabber: &str, outcome: Outcome) {
        let mut told = self.told.lock();
        let before = told.insert(grabber.to_owned(), outcome);
        let now = match outcome {
            Outcome::Won(grant) | Outcome::AlreadyGrabbed(grant) => Some(grant),
            _ => None,
        };
        let fits = match before {
            None => true,
            Some(Outcome::Won(grant) | Outcome::AlreadyGrabbed(grant)) => now == Some(grant),
            Some(_) => now.is_none(),
        };
        assert!(fits, "{grabber} was told {before:?} and then {outcome:?}");
    }
}

impl Stack {
    async fn start(servers: &Servers, history: &History, life: u64) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(history.clock.clone());
        let ledger = books_at(&servers.books, &clock, history.number * 2 + life).await;
        let hot = RedisStore::new(
            &servers.redis.url(),
            Some(AckLevel::Memory),
            PartitionCount::new(PARTITIONS).unwrap(),
            patient(),
            clock,
            ledger.identity().to_owned(),
        );
        let hot = hot.unwrap();
        hot.check().await;
        let (hot, ledger) = (Arc::new(hot) as Arc<dyn HotStore>, Arc::new(ledger));
        let ledger = ledger as Arc<dyn Ledger>;
        let registrar = Registrar::new(Arc::clone(&hot), Arc::clone(&ledger));
        registrar.once().await.unwrap();
        let amounts = Arc::new(Amounts::new(Arc::clone(&ledger)));
        let publisher = Publisher::new(hot.clone(), ledger.clone(), amounts.clone());
        let publisher = Arc::new(publisher);
        let gate = history.gated.then(|| {
            let drain = Drain::new(hot.clone(), ledger.clone(), amounts.clone());
            Arc::new(drain) as Arc<dyn Gate>
        });
        let settlement = Settlement::new(
            hot.clone(),
            ledger.clone(),
            publisher.clone(),
            amounts,
            format!("{}-{life}", history.number),
        );
        Self {
            gated: Gated::new(Arc::clone(&hot), gate),
            hot,
            ledger,
            publisher,
            settlement,
        }
    }

    /// Money for the envelope, and the envelope, each made once however often it is asked for.
    async fn send(&self, history: &History) -> EnvelopeId {
        let sender = &history.draft.sender;
        let transfer = Transfer {
            tenant: tenant(),
            owner: sender.clone(),
            request_id: person("deposit"),
            amount: Money {
                currency: cny(),
                minor: history.draft.total_minor,
            },
            reference: String::new(),
        };
        again(|| self.ledger.deposit(transfer.clone())).await;
        let fund = Fund {
            request_id: person("fund"),
            request_hash: [1; 32],
            draft: history.draft.clone(),
        };
        let funded = again(|| self.ledger.fund(fund.clone())).await;
        self.publisher.publish(funded.envelope.id).await.unwrap();
        funded.envelope.id
    }

    async fn grab(&self, history: &History, id: EnvelopeId, grabber: &str) {
        for _ in 0..TRIES_MAX {
            let partition = id.partition(self.hot.partitions());
            let grab = Grab {
                partition,
                epoch: self.hot.epoch(partition),
                tenant: tenant(),
                envelope: id,
                grabber: person(grabber),
                phrase: None,
            };
            let replies = self.gated.grab(vec![grab]).await.unwrap();
            match replies[0] {
                GrabReply::Outcome(outcome) => return history.told(grabber, outcome),
                GrabReply::Missing => drop(self.publisher.publish(id).await.unwrap()),
                GrabReply::Epoch(_)
                | GrabReply::Funding
                | GrabReply::Dry
                | GrabReply::Unsettled => {}
                GrabReply::Frozen => panic!("{grabber}: nobody froze {id}"),
            }
        }
        panic!("{grabber} was never answered");
    }

    /// Drains and sweeps until nothing changes any more.
    async fn settle(&self) {
        for _ in 0..ROUNDS_MAX {
            let drained = self.settlement.drain_once().await.unwrap();
            self.settlement.measure_once().await.unwrap();
            let swept = self.settlement.sweep_once().await.unwrap();
            self.settlement.publish_once().await.unwrap();
            let moved = drained.records + swept.closed + swept.unpublished.len();
            if moved == 0 && !swept.more {
                return;
            }
        }
        panic!("settlement finds work without end");
    }

    /// Paid as told, the rest back, nobody twice.
    async fn is_over_as_told(&self, history: &History, id: EnvelopeId) {
        let rows = self.ledger.envelopes(vec![id]).await.unwrap();
        let row = rows.into_iter().flatten().next().unwrap();
        let over = [CloseReason::Empty, CloseReason::Expired].map(BookState::Closed);
        assert!(over.contains(&row.state), "{:?}", row.state);
        let claims = self.ledger.claims(id, 0, 100).await.unwrap();
        let mut told = history.told.lock().clone();
        let mut paid = 0;
        for claim in &claims {
            let outcome = told.remove(claim.grabber.as_str());
            let Some(Outcome::Won(grant) | Outcome::AlreadyGrabbed(grant)) = outcome else {
                panic!("{} was paid and told {outcome:?}", claim.grabber.as_str());
            };
            assert_eq!(grant, claim.grant);
            paid += grant.amount_minor;
            assert_eq!(
                self.available(claim.grabber.as_str()).await,
                grant.amount_minor
            );
        }
        let unpaid = told
            .values()
            .filter(|outcome| won(outcome).is_some())
            .count();
        assert_eq!(unpaid, 0, "{told:?}");
        let back = history.draft.total_minor - paid;
        assert_eq!(self.available(history.draft.sender.as_str()).await, back);
    }

    async fn available(&self, who: &str) -> i64 {
        let balances = self.ledger.balances(tenant(), person(who), Vec::new());
        let (rows, _) = balances.await.unwrap();
        rows.iter().map(|row| row.available_minor).sum()
    }
}

fn won(outcome: &Outcome) -> Option<Grant> {
    match outcome {
        Outcome::Won(grant) | Outcome::AlreadyGrabbed(grant) => Some(*grant),
        _ => None,
    }
}

/// Asks again where the transaction of a life that went away still holds what this one wants.
async fn again<T, F: Future<Output = Result<T, LedgerError>>>(ask: impl Fn() -> F) -> T {
    for _ in 0..TRIES_MAX {
        match ask().await {
            Ok(done) => return done,
            Err(LedgerError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the ledger never answered");
}

async fn turns(count: u32) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

/// One life, from its start to the end of the envelope.
async fn live(servers: &Servers, history: &History, life: u64) {
    let mut rng = StdRng::seed_from_u64(history.number * 2 + life);
    let stack = Stack::start(servers, history, life).await;
    let id = stack.send(history).await;
    let delays: Vec<u32> = history
        .grabbers
        .iter()
        .map(|_| rng.random_range(0..=TURNS_MAX))
        .collect();
    let crowd = history.grabbers.iter().zip(delays).map(|(grabber, delay)| {
        let stack = &stack;
        async move {
            turns(delay).await;
            stack.grab(history, id, grabber).await;
        }
    });
    let beside = async {
        for _ in 0..2 {
            turns(TURNS_MAX / 2).await;
            stack.settlement.drain_once().await.unwrap();
            stack.settlement.sweep_once().await.unwrap();
        }
    };
    future::join(future::join_all(crowd), beside).await;
    history.clock.set(NOON_MS + EXPIRES_IN_MS);
    stack.settle().await;
    stack.is_over_as_told(history, id).await;
}

/// Polls a life so many times, and then lets go of it. Answers whether it came to its end.
async fn polled(life: impl Future<Output = ()>, polls: u32) -> bool {
    let mut life = pin!(life);
    let mut left = polls;
    future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        life.as_mut().poll(context).map(|()| true)
    })
    .await
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Lives both lives of these histories, and audits. Answers how many first lives came to their end.
fn all_of(servers: &Servers, numbers: &[u64]) -> u64 {
    let mut ended = 0;
    for number in numbers {
        let mut rng = StdRng::seed_from_u64(*number);
        let history = History::new(*number, &mut rng);
        let polls = rng.random_range(1..POLLS_MAX);
        println!("history {number}, dropped after {polls} polls");
        let first = runtime();
        let to_the_end = first.block_on(polled(live(servers, &history, 0), polls));
        // With all its tasks, wherever they stand.
        drop(first);
        ended += u64::from(to_the_end);
        // Whoever was not answered asks again, and so does everybody else.
        history.clock.set(NOON_MS);
        runtime().block_on(live(servers, &history, 1));
    }
    let history = History::new(HISTORIES, &mut StdRng::seed_from_u64(HISTORIES));
    runtime().block_on(async {
        let stack = Stack::start(servers, &history, 0).await;
        let audited = audit::run(&*stack.hot, &*stack.ledger, AuditOptions::default()).await;
        let report = audited.unwrap();
        assert!(report.clean && report.quiet, "{:#?}", report.discrepancies);
        let count = usize::try_from(report.envelope_count).unwrap();
        assert_eq!(count, numbers.len());
    });
    ended
}

#[test]
fn what_was_told_comes_true_once_wherever_the_runtime_is_dropped() {
    let postgres = PostgresServer::start(Release::Debian, &[]);
    let ended: Vec<u64> = std::thread::scope(|scope| {
        let lived = (0..ABREAST).map(|place| {
            let servers = Servers {
                redis: RedisServer::start(Flavour::Debian, &[("appendonly", "no")]),
                books: postgres.database(),
            };
            let numbers: Vec<u64> = (0..HISTORIES).skip(place).step_by(ABREAST).collect();
            scope.spawn(move || all_of(&servers, &numbers))
        });
        let lived: Vec<_> = lived.collect();
        lived
            .into_iter()
            .map(|lives| lives.join().unwrap())
            .collect()
    });
    // Most first lives did not come to their end, and some did.
    let ended: u64 = ended.iter().sum();
    println!("{ended} of {HISTORIES} first lives came to their end");
    assert!(
        ended > 0 && ended < HISTORIES / 2,
        "{ended} of {HISTORIES} ended"
    );
}
