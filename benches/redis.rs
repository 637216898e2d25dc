//! Measures what a grab costs a Redis: its processor time and its memory.
//!
//! `make bench` or `cargo bench --bench redis`, with a redis-server on the PATH or named by
//! RED_ENVELOPE_REDIS. Every figure is processor time of the Redis process (INFO cpu), so what else
//! the machine does shows little; S is measured beside it in every round.
//!
//! | figure | what |
//! |---|---|
//! | S | the function of a peer (HGET, LPOP, HSET, XADD), a grab a call, [`PIPELINED`] calls on their way |
//! | `S_single_us` | the same, one call at a time |
//! | `redis_single_grab_us` | one grab a call, one call at a time |
//! | `redis_batch32_us` | 32 grabs a call |
//! | `many_envelopes_cost` | 256 grabs a call on 256 of 1,000 envelopes, over 256 on one |
//! | `redis_bytes_per_share` | of envelopes of 100 shares, before the first grab |
//! | `redis_bytes_per_grab` | the same when all is taken and nothing settled, everything counted |
//!
//! `… --bench redis -- growth` measures instead how the cost of a grab grows, with 256 grabs a call:
//!
//! | figure | what |
//! |---|---|
//! | `redis_us_of_`*N*`_shares` | envelopes of *N* shares, 1,000 to 1,000,000, taken one after the other to the last share |
//! | `redis_us_on_`*N*`_envelopes` | on *N* envelopes a call, 1 to 64, all in one partition |
//! | `redis_us_on_`*N*`_partitions` | on *N* envelopes a call, 1 to 64, each in a partition of its own |
//!
//! **Bounds**: [`ROUNDS`] rounds; the longest has 256,000 grabs, and of `growth` 1,300,000.

#[path = "burst/summary.rs"]
mod summary;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use red_envelope::clock::SystemClock;
use red_envelope::domain::ack::AckLevel;
use red_envelope::domain::audience::Audience;
use red_envelope::domain::envelope::{
    Draft, Kind, LOAD_CHUNK_SHARES_MAX, LeafRef, Reveal, Terms, shares_checksum,
};
use red_envelope::domain::grab::{Grab, GrabReply, Outcome};
use red_envelope::domain::id::{
    EnvelopeId, Epoch, Partition, PartitionCount, PersonId, TenantId, UnixMs,
};
use red_envelope::domain::money::Currency;
use red_envelope::domain::split::Split;
use red_envelope::domain::stripes::StripeCount;
use red_envelope::hot::redis::{RedisStore, Timing};
use red_envelope::hot::{HotStore, LoadChunk};
use redis::aio::MultiplexedConnection;

/// Rounds; medians are told.
const ROUNDS: usize = 3;
/// Calls of the peer that are on their way at once, for S.
const PIPELINED: usize = 64;
/// Goals of the figures that have one.
const BYTES_PER_GRAB_GOAL: f64 = 64.0;
const MANY_ENVELOPES_GOAL: f64 = 2.5;

/// What peers write: one grab a call, four commands.
const PEER: &str = "#!lua name=peer
redis.register_function('peer_grab', function(keys, args)
  if redis.call('HGET', keys[2], args[1]) then return 0 end
  local share = redis.call('LPOP', keys[1])
  if not share then return 1 end
  redis.call('HSET', keys[2], args[1], share)
  redis.call('XADD', keys[3], '*', 'g', args[1], 's', share)
  return share
end)";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let growth = match std::env::args().skip(1).find(|word| word != "--bench") {
        None => false,
        Some(word) if word == "growth" => true,
        Some(word) => bail!("{word} is nothing that can be measured"),
    };
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(if growth {
            growth_round().await?
        } else {
            round().await?
        });
    }
    let mut summary = serde_json::Map::new();
    println!("medians of {ROUNDS} rounds");
    for name in rounds[0].keys() {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[name]).collect();
        values.sort_by(f64::total_cmp);
        let median = values[ROUNDS / 2];
        let goal = match name.as_str() {
            "redis_bytes_per_grab" => told(median <= BYTES_PER_GRAB_GOAL, BYTES_PER_GRAB_GOAL),
            "many_envelopes_cost" => told(median <= MANY_ENVELOPES_GOAL, MANY_ENVELOPES_GOAL),
            _ => String::new(),
        };
        println!("{name:>32} {median:>9.2}{goal}");
        summary.insert(name.clone(), median.into());
    }
    summary::write(summary)
}

fn told(met: bool, goal: f64) -> String {
    let verdict = if met { "met" } else { "MISSED" };
    format!("   goal ≤ {goal}: {verdict}")
}

type Figures = BTreeMap<String, f64>;

async fn round() -> anyhow::Result<Figures> {
    let mut figures = Figures::new();
    let bench = Bench::start().await?;
    figures.insert("S_single_us".to_owned(), bench.peer(20_000, 1).await?);
    figures.insert("S_us".to_owned(), bench.peer(64_000, PIPELINED).await?);
    let one = bench.publish(150_000).await?;
    figures.insert(
        "redis_single_grab_us".to_owned(),
        bench.grabs(&[one], 1, 20_000).await?,
    );
    figures.insert(
        "redis_batch32_us".to_owned(),
        bench.grabs(&[one], 32, 3_000).await?,
    );
    let hot = bench.publish(300_000).await?;
    let on_one = bench.grabs(&[hot], 256, 1_000).await?;
    figures.insert("redis_batch256_us".to_owned(), on_one);
    drop(bench);

    let bench = Bench::start().await?;
    let mut envelopes = Vec::new();
    for _ in 0..1_000 {
        envelopes.push(bench.publish(300).await?);
    }
    let on_many = bench.grabs(&envelopes, 256, 1_000).await?;
    figures.insert("redis_batch256_many_us".to_owned(), on_many);
    figures.insert("many_envelopes_cost".to_owned(), on_many / on_one);
    drop(bench);

    memory(&mut figures).await?;
    Ok(figures)
}

/// How cost grows with the shares of an envelope, and with the envelopes and partitions of a call.
async fn growth_round() -> anyhow::Result<Figures> {
    const A_CALL: usize = 256;
    /// Grabs of a figure; of the largest envelope all of its shares.
    const GRABS: usize = 102_400;
    let mut figures = Figures::new();
    for shares in [1_000, 10_000, 100_000, 1_000_000] {
        let bench = Bench::start().await?;
        let mut envelopes = Vec::new();
        for _ in 0..GRABS.div_ceil(shares) {
            envelopes.push(bench.publish(shares).await?);
        }
        let count = (envelopes.len() * shares) as f64;
        let before = bench.cpu_s().await?;
        for envelope in &envelopes {
            bench.grabs(&[*envelope], A_CALL, shares / A_CALL).await?;
            bench.grabs(&[*envelope], shares % A_CALL, 1).await?;
        }
        let us = (bench.cpu_s().await? - before) * 1e6 / count;
        figures.insert(format!("redis_us_of_{shares}_shares"), us);
    }
    for count in [1, 4, 16, 64] {
        let calls = GRABS / A_CALL;
        let shares = GRABS / count;
        for (together, what) in [(true, "envelopes"), (false, "partitions")] {
            let bench = Bench::start().await?;
            let mut envelopes = Vec::new();
            for partition in bench.store.partitions().all().take(count) {
                let partition = if together { Partition::ZERO } else { partition };
                envelopes.push(bench.publish_in(partition, shares).await?);
            }
            let us = bench.grabs(&envelopes, A_CALL, calls).await?;
            figures.insert(format!("redis_us_on_{count}_{what}"), us);
        }
    }
    Ok(figures)
}

async fn memory(figures: &mut Figures) -> anyhow::Result<()> {
    const ENVELOPES: usize = 2_000;
    const SHARES: usize = 100;
    let count = (ENVELOPES * SHARES) as f64;
    let bench = Bench::start().await?;
    let empty = bench.used_memory().await?;
    let mut envelopes = Vec::new();
    for _ in 0..ENVELOPES {
        envelopes.push(bench.publish(SHARES).await?);
    }
    let loaded = bench.used_memory().await?;
    for envelope in &envelopes {
        bench.grabs(&[*envelope], 50, SHARES / 50).await?;
    }
    let taken = bench.used_memory().await?;
    figures.insert("redis_bytes_per_share".to_owned(), (loaded - empty) / count);
    figures.insert("redis_bytes_per_grab".to_owned(), (taken - empty) / count);
    for partition in bench.store.partitions().all() {
        let entries = bench.store.outbox(partition, None, usize::MAX).await?;
        let pairs: Vec<_> = entries.iter().map(|e| (e.id, e.nonce)).collect();
        let epoch = bench.store.epoch(partition);
        bench.store.settled(epoch, partition, pairs).await?;
    }
    let settled = bench.used_memory().await?;
    figures.insert(
        "redis_bytes_per_settled_grab".to_owned(),
        (settled - empty) / count,
    );
    Ok(())
}

/// A Redis of its own without a log, and the store in front of it.
struct Bench {
    child: Child,
    folder: tempfile::TempDir,
    store: RedisStore,
    connection: MultiplexedConnection,
    names: std::cell::Cell<u64>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _ended = self.child.wait();
        let _ = self.folder.path();
    }
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        #[expect(
            clippy::disallowed_methods,
            reason = "a benchmark has no configuration"
        )]
        let program = std::env::var("RED_ENVELOPE_REDIS").unwrap_or("redis-server".to_owned());
        let child = Command::new(&program)
            .args([
                "--port",
                &port.to_string(),
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("{program} does not start: install redis-server"))?;
        let url = format!("redis://127.0.0.1:{port}");
        let client = redis::Client::open(url.as_str())?;
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        let mut connection = None;
        for _ in 0..500 {
            looks.tick().await;
            connection = client.get_multiplexed_async_connection().await.ok();
            if connection.is_some() {
                break;
            }
        }
        let connection = connection.context("the server does not answer")?;
        let timing = Timing {
            response: Duration::from_secs(30),
            ..Timing::default()
        };
        let count = PartitionCount::new(64).context("64 is a count")?;
        let level = Some(AckLevel::Memory);
        let (clock, books) = (Arc::new(SystemClock), "of the benchmark".to_owned());
        let store = RedisStore::new(&url, level, count, timing, clock, books)?;
        store.check().await;
        let standing = store.standing().await?.context("Redis stands")?;
        let all = count.all().map(|partition| (partition, Epoch(2))).collect();
        store.register(standing, all).await?;
        Ok(Self {
            child,
            folder,
            store,
            connection,
            names: std::cell::Cell::new(1_000_000_000),
        })
    }

    /// A name of ten digits that nobody had.
    fn name(&self) -> String {
        let name = self.names.get();
        self.names.set(name + 1);
        name.to_string()
    }

    async fn told_by(&self, section: &str, field: &str) -> anyhow::Result<f64> {
        let mut connection = self.connection.clone();
        let text: String = redis::cmd("INFO")
            .arg(section)
            .query_async(&mut connection)
            .await?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let value = line.and_then(|rest| rest.strip_prefix(':'));
        Ok(value
            .with_context(|| format!("INFO {section} has no {field}"))?
            .trim()
            .parse()?)
    }

    async fn used_memory(&self) -> anyhow::Result<f64> {
        self.told_by("memory", "used_memory").await
    }

    /// Seconds of processor that Redis has used so far.
    async fn cpu_s(&self) -> anyhow::Result<f64> {
        Ok(self.told_by("cpu", "used_cpu_user").await?
            + self.told_by("cpu", "used_cpu_sys").await?)
    }

    /// Microseconds a grab of the peer's function, so many calls at once.
    async fn peer(&self, grabs: usize, at_once: usize) -> anyhow::Result<f64> {
        let mut connection = self.connection.clone();
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg("REPLACE").arg(PEER);
        load.query_async::<String>(&mut connection).await?;
        for _ in 0..grabs / 1_000 {
            let mut push = redis::cmd("RPUSH");
            push.arg("peer:{1}:shares")
                .arg((0..1_000).collect::<Vec<u32>>());
            push.query_async::<i64>(&mut connection).await?;
        }
        let before = self.cpu_s().await?;
        for _ in 0..grabs / at_once {
            let mut calls = redis::pipe();
            for _ in 0..at_once {
                calls.cmd("FCALL").arg("peer_grab").arg(3);
                calls.arg("peer:{1}:shares").arg("peer:{1}:grabs");
                calls.arg("peer:{1}:outbox").arg(self.name());
            }
            let won: Vec<u32> = calls.query_async(&mut connection).await?;
            ensure!(
                won.len() == at_once,
                "not every call of the peer was answered"
            );
        }
        Ok((self.cpu_s().await? - before) * 1e6 / grabs as f64)
    }

    async fn publish(&self, shares: usize) -> anyhow::Result<EnvelopeId> {
        self.publish_as(EnvelopeId::from_parts(20_500, rand::random()), shares)
            .await
    }

    /// In this partition.
    async fn publish_in(&self, partition: Partition, shares: usize) -> anyhow::Result<EnvelopeId> {
        let count = self.store.partitions();
        let ids = std::iter::repeat_with(|| EnvelopeId::from_parts(20_500, rand::random()));
        let mut ids = ids.filter(|id| id.partition(count) == partition);
        let id = ids.next().context("ids have no end")?;
        self.publish_as(id, shares).await
    }

    async fn publish_as(&self, id: EnvelopeId, shares: usize) -> anyhow::Result<EnvelopeId> {
        let amounts = vec![888; shares];
        let terms = Arc::new(terms(shares)?);
        let under = self.store.epochs();
        for (number, chunk) in (0_u32..).zip(amounts.chunks(LOAD_CHUNK_SHARES_MAX)) {
            let chunk = LoadChunk {
                envelope: id,
                terms: Arc::clone(&terms),
                offset: number * u32::try_from(LOAD_CHUNK_SHARES_MAX)?,
                amounts_minor: chunk.to_vec(),
            };
            self.store.load(&under, chunk).await?;
        }
        self.store
            .open(&under, id, shares_checksum(&amounts))
            .await?;
        Ok(id)
    }

    /// Microseconds of Redis a grab: `calls` calls of `a_call` grabs, in turn on `envelopes`.
    async fn grabs(
        &self,
        envelopes: &[EnvelopeId],
        a_call: usize,
        calls: usize,
    ) -> anyhow::Result<f64> {
        let mut turn = envelopes.iter().cycle();
        let before = self.cpu_s().await?;
        for _ in 0..calls {
            let mut grabs = Vec::with_capacity(a_call);
            for envelope in turn.by_ref().take(a_call) {
                grabs.push(Grab {
                    partition: envelope.partition(self.store.partitions()),
                    epoch: Epoch(2),
                    tenant: TenantId::parse("")?,
                    envelope: *envelope,
                    grabber: PersonId::parse(&self.name())?,
                    phrase: None,
                });
            }
            let replies = self.store.grab(grabs).await?;
            let won = |reply: &GrabReply| matches!(reply, GrabReply::Outcome(Outcome::Won(_)));
            ensure!(replies.iter().all(won), "not every grab won");
        }
        let count = (a_call * calls) as f64;
        Ok((self.cpu_s().await? - before) * 1e6 / count)
    }
}

fn terms(shares: usize) -> anyhow::Result<Terms> {
    let share_count = u32::try_from(shares)?;
    let created_at = UnixMs(1_771_286_400_000);
    Ok(Terms {
        draft: Draft {
            tenant: TenantId::parse("")?,
            sender: PersonId::parse("sender")?,
            kind: Kind::Lucky,
            currency: Currency::from_code("CNY").context("CNY is a code")?,
            total_minor: 888 * i64::from(share_count),
            share_count,
            min_minor: 1,
            max_minor: 20_000,
            split: Some(Split::DoubleMean),
            exclusive: Vec::new(),
            audience: Audience::Anyone,
            passphrase: None,
            greeting: "恭喜发财".to_owned(),
            cover_id: String::new(),
            reveal: Reveal::AfterGrab,
            labels: BTreeMap::new(),
            opens_at: None,
            expires_in_ms: 90 * 86_400_000,
            client_nonce: vec![7; 16],
            stripes: StripeCount::ONE,
        },
        created_at,
        expires_at: UnixMs(4_000_000_000_000),
        leaf: LeafRef {
            leaf_number: 1,
            leaf_hash: [2; 32],
            batch_number: 0,
            batch_root: [3; 32],
        },
    })
}
