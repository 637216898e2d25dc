//! Several processes, or several partitions, on one Redis: what each looks at, and what keeps no other one
//! waiting.

use std::sync::Arc;

use red_envelope::clock::{Clock, ManualClock};
use red_envelope::domain::ack::AckLevel;
use red_envelope::domain::envelope::{BookState, CloseReason};
use red_envelope::domain::id::{EnvelopeId, Partition, PartitionCount};
use red_envelope::domain::money::Money;
use red_envelope::hot::HotStore;
use red_envelope::hot::redis::RedisStore;
use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope::ledger::postgres::server_under_test::{PostgresServer, Release};
use red_envelope::ledger::{Fund, Ledger, Transfer};
use red_envelope::publish::{Amounts, Publisher, Registrar};
use red_envelope::settle::{CLOSED_KEPT_MS, SettleError, Settlement};

use crate::world::{NOON_MS, books_at, cny, equal, patient, person, tenant};

/// Partitions of the Redis.
const PARTITIONS: u16 = 8;
/// Envelopes that are sent until two of them lie in different partitions: all of so many lie in one in one
/// run of 8³¹.
const ENVELOPES_MAX: usize = 32;

/// How often XLEN was called since the statistics were reset.
const LENGTHS_ASKED: &[u8] = b"local said = redis.call('INFO', 'commandstats')
    return tonumber(string.match(said, 'cmdstat_xlen:calls=(%d+)') or 0)";
/// The key of the outbox beside the grabs of an envelope, which are called like the first argument.
const OUTBOX_OF: &str = "local grabs = redis.call('KEYS', ARGV[1])[1]
    local outbox = string.match(grabs, '^.-}') .. ':outbox'";

/// Both stores.
struct Servers {
    redis: RedisServer,
    postgres: PostgresServer,
    books: String,
    clock: ManualClock,
}

/// A process on them.
struct Process {
    hot: Arc<dyn HotStore>,
    ledger: Arc<dyn Ledger>,
    publisher: Arc<Publisher>,
    settlement: Settlement,
}

impl Servers {
    fn start() -> Self {
        let postgres = PostgresServer::start(Release::Debian, &[]);
        Self {
            redis: RedisServer::start(Flavour::Debian, &[("appendonly", "no")]),
            books: postgres.database(),
            postgres,
            clock: ManualClock::at(NOON_MS),
        }
    }

    async fn process(&self, name: &str) -> Process {
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let ledger = books_at(&self.books, &clock, 5).await;
        let hot = RedisStore::new(
            &self.redis.url(),
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
        Registrar::new(hot.clone(), ledger.clone())
            .once()
            .await
            .unwrap();
        let amounts = Arc::new(Amounts::new(ledger.clone()));
        let publisher = Publisher::new(hot.clone(), ledger.clone(), amounts.clone());
        let publisher = Arc::new(publisher);
        let settlement = Settlement::new(
            hot.clone(),
            ledger.clone(),
            publisher.clone(),
            amounts,
            name.to_owned(),
        );
        Process {
            hot,
            ledger,
            publisher,
            settlement,
        }
    }

    /// Since the last question: how often Redis was asked how long a stream is.
    fn lengths_asked(&self) -> String {
        let asked = self.redis.command(&[b"EVAL", LENGTHS_ASKED, b"0"]);
        self.redis.command(&[b"CONFIG", b"RESETSTAT"]);
        format!("{asked:?}")
    }

    /// Runs a script for the outbox of an envelope's partition.
    fn at_the_outbox_of(&self, id: EnvelopeId, script: &str) {
        let grabs = format!("re1:*:g:{id}");
        let script = format!("{OUTBOX_OF} {script}");
        let done = self
            .redis
            .command(&[b"EVAL", script.as_bytes(), b"0", grabs.as_bytes()]);
        assert_eq!(format!("{done:?}"), "int(1)");
    }
}

impl Process {
    /// An envelope of two shares of alice's, live.
    async fn sent(&self, number: usize) -> EnvelopeId {
        let transfer = Transfer {
            tenant: tenant(),
            owner: person("alice"),
            request_id: person(&format!("d{number}")),
            amount: Money {
                currency: cny(),
                minor: 20,
            },
            reference: String::new(),
        };
        self.ledger.deposit(transfer).await.unwrap();
        let fund = Fund {
            request_id: person(&format!("f{number}")),
            request_hash: [1; 32],
            draft: equal("alice", 10, 2),
        };
        let id = self.ledger.fund(fund).await.unwrap().envelope.id;
        self.publisher.publish(id).await.unwrap();
        id
    }

    fn partition(&self, id: EnvelopeId) -> Partition {
        id.partition(self.hot.partitions())
    }

    /// Envelopes of two partitions at the least.
    async fn sent_to_several(&self) -> Vec<EnvelopeId> {
        let mut sent = vec![self.sent(0).await];
        for number in 1..ENVELOPES_MAX {
            sent.push(self.sent(number).await);
            if self.partition(sent[0]) != self.partition(sent[number]) {
                return sent;
            }
        }
        panic!("all envelopes lie in one partition");
    }

    async fn holds(&self, id: EnvelopeId) -> bool {
        let views = self.hot.view(vec![id]).await.unwrap();
        views.into_iter().flatten().next().is_some()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_that_cannot_be_forgotten_keeps_no_other_one_in_the_hot_store() {
    let servers = Servers::start();
    let process = servers.process("one").await;
    let sent = process.sent_to_several().await;
    for id in &sent {
        let begun = process.ledger.begin_close(*id, CloseReason::Recalled).await;
        begun.unwrap();
    }
    process.settlement.sweep_once().await.unwrap();
    for row in process.ledger.envelopes(sent.clone()).await.unwrap() {
        let closed = BookState::Closed(CloseReason::Recalled);
        assert_eq!(row.unwrap().state, closed);
    }
    servers.clock.advance_ms(CLOSED_KEPT_MS);
    // The outbox of the first one's partition is none: what it owes can't be known.
    let stuck = process.partition(sent[0]);
    servers.at_the_outbox_of(sent[0], "redis.call('SET', outbox, 'x') return 1");
    for _ in 0..2 {
        let failed = process.settlement.forget_once().await;
        assert!(
            matches!(failed, Err(SettleError::Unavailable(_))),
            "{failed:?}"
        );
        for id in &sent {
            let is_stuck = process.partition(*id) == stuck;
            assert_eq!(process.holds(*id).await, is_stuck, "{id}");
        }
        // The walk came to its end, and begins anew.
        assert_eq!(process.settlement.forget_once().await.unwrap(), 0);
    }
    servers.at_the_outbox_of(sent[0], "return redis.call('DEL', outbox)");
    let left = sent.iter().filter(|id| process.partition(**id) == stuck);
    let forgotten = process.settlement.forget_once().await.unwrap();
    assert_eq!(forgotten, left.count());
    assert!(!process.holds(sent[0]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_asks_for_no_outbox_that_is_another_ones() {
    let servers = Servers::start();
    let (one, two) = (servers.process("one").await, servers.process("two").await);
    servers.lengths_asked();
    assert_eq!(one.settlement.drain_once().await.unwrap().records, 0);
    assert_eq!(servers.lengths_asked(), format!("int({PARTITIONS})"));
    for process in [&one, &two, &one] {
        process.settlement.lease_once().await.unwrap();
    }
    servers.lengths_asked();
    for process in [&one, &two] {
        assert_eq!(process.settlement.drain_once().await.unwrap().records, 0);
        let half = PARTITIONS / 2;
        assert_eq!(servers.lengths_asked(), format!("int({half})"));
    }
    drop(servers.postgres);
}
