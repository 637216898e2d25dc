//! An envelope of a million shares beside small ones (F22), of ten million by `make faults`: it is made, grabbed, ended
//! and forgotten, and no call of Redis takes so long that anybody notices. The same of one that is dealt to stripes, of
//! which one is used up, so that all that is left is gathered.
//!
//! # Bounds
//! What the catalogue names: [`COMMAND_MAX`] for commands, [`LATER_MAX`] for the p99.9 of the small ones. SLOWLOG
//! measures by the clock, so what Redis may have waited for a core in that second is taken off; that a command that
//! computes is seen all the same is tried first. The p99.9 is the worst ten of some ten thousand grabs: it is asserted
//! by `make faults`, where nothing else runs, and printed beside other tests.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use red_envelope::domain::id::{EnvelopeId, PersonId};
use red_envelope::domain::stripes::{StripeCount, dealt, home};
use red_envelope::settle::CLOSED_KEPT_MS;
use red_envelope_proto::v1::{EnvelopeState, GrabOutcome, RecallEnvelopeRequest};
use redis::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::harness::cores::Waits;
use crate::harness::faults::Faults;
use crate::harness::fleet::{Client, a_moment, seen_by};
use crate::harness::record::Record;
use crate::harness::world::{channel, grab_of, in_time};
use crate::harness::{Hot, Start, World, cny, equal, lucky};

/// Of the large one's shares, those that are grabbed.
const GRABBED: u16 = 5_000;
/// What the catalogue names: the longest command by SLOWLOG.
const COMMAND_MAX: Duration = Duration::from_millis(10);
/// And how much later the small ones may be answered beside the large one, by their p99.9.
const LATER_MAX: Duration = Duration::from_millis(20);
/// What SLOWLOG and LATENCY note.
const NOTED_US: &[u8] = b"1000";
const NOTED_MS: &[u8] = b"5";
/// More entries than the run can make.
const NOTES_MAX: &[u8] = b"100000";

/// People who grab small envelopes all the time, and the shares of one.
const CIRCLES: usize = 4;
const SMALL: u32 = 100;
/// Grabs before anything is measured.
const WARM_UP_GRABS: usize = 1_000;

/// People who grab from the large one at the same time.
const LANES: u16 = 4;

/// Envelopes of more shares are dealt, in the run that deals them.
const ABOVE: u32 = 10_000;
/// Partitions there: as many stripes has the large one.
const PARTITIONS: u16 = 64;
/// The stripe that is used up.
const DRY: u16 = 5;

/// A grab of a small envelope: when it began, and how long it took.
type Waited = Arc<Mutex<Vec<(Instant, Duration)>>>;

/// People who send small envelopes and grab them.
struct Circles {
    waits: Waited,
    over: CancellationToken,
    all: JoinSet<()>,
}

impl Circles {
    async fn begin(world: &mut World) -> Self {
        let (waits, over) = (Waited::default(), CancellationToken::new());
        let mut all = JoinSet::new();
        for number in 0..CIRCLES {
            let sender = format!("sender-{number}");
            world.fund(&sender, cny(10_000_000)).await;
            let client = Client::new(channel(world.server.grpc()).await);
            let (record, waits) = (world.record.clone(), Arc::clone(&waits));
            let over = over.clone();
            all.spawn(async move {
                while !over.is_cancelled() {
                    round(&sender, client.clone(), &record, &waits).await;
                }
            });
        }
        Self { waits, over, all }
    }

    async fn until_there_are(&self, count: usize) {
        let many = async || (self.waits.lock().len() >= count).then_some(());
        seen_by(in_time(), "small envelopes are grabbed", many).await;
    }

    /// What was waited since then.
    fn since(&self, then: Instant) -> Vec<Duration> {
        let waits = self.waits.lock();
        let late = waits.iter().filter(|(at, waited)| *at + *waited >= then);
        late.map(|(_, waited)| *waited).collect()
    }

    async fn end(self) {
        self.over.cancel();
        for ended in self.all.join_all().await {
            ended
        }
    }
}

/// One small envelope, sent and grabbed.
async fn round(sender: &str, mut client: Client, record: &Record, waits: &Waited) {
    let request = equal(sender, cny(1), SMALL);
    let envelope = loop {
        match client.create_envelope(request.clone()).await {
            Ok(sent) => break sent.into_inner().envelope.unwrap(),
            Err(status) => {
                let busy = [Code::Unavailable, Code::ResourceExhausted];
                assert!(busy.contains(&status.code()), "{status}");
                a_moment().await;
            }
        }
    };
    record.begin(&envelope);
    for number in 0..SMALL {
        let grab = grab_of(&envelope.envelope_id, &format!("{sender}-{number}"));
        let began = Instant::now();
        let answer = record.grab(&mut client, grab).await.unwrap();
        assert_eq!(answer.outcome(), GrabOutcome::Won);
        waits.lock().push((began, began.elapsed()));
    }
}

fn p999_of(mut waits: Vec<Duration>) -> Duration {
    waits.sort_unstable();
    let at = (waits.len() * 999 / 1_000).min(waits.len().saturating_sub(1));
    waits.get(at).copied().unwrap_or_default()
}

/// A command that SLOWLOG noted: how long it took, its first words, and in which second it ended.
type Slow = (Duration, String, u64);

fn ask(world: &World, words: &[&[u8]]) -> Value {
    world.redis.as_ref().unwrap().command(words)
}

fn whole(value: &Value) -> u64 {
    match value {
        Value::Int(number) => u64::try_from(*number).unwrap(),
        other => panic!("no number: {other:?}"),
    }
}

/// What is noted, the slowest first, and noted no more.
fn slow(world: &World) -> Vec<Slow> {
    let Value::Array(entries) = ask(world, &[b"SLOWLOG", b"GET", b"-1"]) else {
        panic!("SLOWLOG answers a list");
    };
    ask(world, &[b"SLOWLOG", b"RESET"]);
    let read = |entry: Value| {
        let Value::Array(parts) = entry else {
            panic!("an entry is a list");
        };
        let Value::Array(words) = &parts[3] else {
            panic!("a command is a list");
        };
        let words = words.iter().take(2).map(|word| match word {
            Value::BulkString(word) => String::from_utf8_lossy(word).into_owned(),
            other => panic!("a word is text: {other:?}"),
        });
        let took = Duration::from_micros(whole(&parts[2]));
        let words = words.collect::<Vec<_>>().join(" ");
        (took, words, whole(&parts[1]))
    };
    let mut all: Vec<_> = entries.into_iter().map(read).collect();
    all.sort_unstable_by(|one, other| other.cmp(one));
    all
}

/// The run: the large envelope beside the small ones.
struct Run {
    world: World,
    circles: Circles,
    waits: Waits,
    /// What the longest command took of a core, at the least.
    longest: Duration,
    /// The same by the clock, with what it waited for one.
    by_clock: Duration,
    /// Who has a share of the large one.
    won: u32,
}

impl Run {
    async fn begin(start: Start) -> Self {
        let hot = Hot::Redis;
        let mut world = World::start(Start { hot, ..start }).await;
        world.fund("alice", cny(200_000_000)).await;
        for (name, value) in [
            (&b"slowlog-log-slower-than"[..], NOTED_US),
            (b"slowlog-max-len", NOTES_MAX),
            (b"latency-monitor-threshold", NOTED_MS),
        ] {
            assert_eq!(ask(&world, &[b"CONFIG", b"SET", name, value]), Value::Okay);
        }
        let waits = Waits::of(world.redis.as_ref().unwrap().pid());
        let circles = Circles::begin(&mut world).await;
        circles.until_there_are(WARM_UP_GRABS).await;
        let mut run = Self {
            world,
            circles,
            waits,
            longest: Duration::ZERO,
            by_clock: Duration::ZERO,
            won: 0,
        };
        run.sees_what_takes_long();
        run
    }

    /// A command that computes for long is seen, whatever the machine does beside it.
    fn sees_what_takes_long(&mut self) {
        let began = self.begin_phase();
        let counts = b"local sum = 0 for i = 1, 20000000 do sum = sum + i end return sum";
        ask(&self.world, &[b"EVAL", counts, b"0"]);
        self.tell("computed", began);
        assert!(self.longest > COMMAND_MAX, "{:?}", self.longest);
        self.longest = Duration::ZERO;
    }

    /// What was noted until now is not this phase's.
    fn begin_phase(&self) -> Instant {
        slow(&self.world);
        Instant::now()
    }

    /// Tells what a phase was like.
    fn tell(&mut self, phase: &str, began: Instant) {
        let (waits, slow) = (self.circles.since(began), slow(&self.world));
        let ran = |(took, _, second): &Slow| self.waits.ran_at_least(*second, *took);
        let ran = slow.iter().map(ran).max().unwrap_or_default();
        let (count, longest) = (waits.len(), waits.iter().max().copied().unwrap_or_default());
        println!(
            "{phase}: {:.1?}; {count} small grabs, p99.9 {:.1?}, longest {longest:.1?}; {} slow commands, {ran:.1?} of a core: {:?}",
            began.elapsed(),
            p999_of(waits),
            slow.len(),
            &slow[..slow.len().min(5)],
        );
        self.longest = self.longest.max(ran);
        let by_clock = slow.iter().map(|(took, ..)| *took).max();
        self.by_clock = self.by_clock.max(by_clock.unwrap_or_default());
    }

    /// Somebody sends an envelope of so many shares.
    async fn make(&mut self, shares: u32) -> String {
        let began = self.begin_phase();
        let request = lucky("alice", cny(50_000_000), shares);
        let sent = self.world.envelopes.create_envelope(request).await.unwrap();
        let envelope = sent.into_inner().envelope.unwrap();
        self.world.record.begin(&envelope);
        let id = envelope.envelope_id;
        self.world.until(&id, "alice", EnvelopeState::Live).await;
        self.tell("made", began);
        id
    }

    /// These people win a share each.
    async fn grab(&mut self, id: &str, people: Vec<String>) {
        let began = self.begin_phase();
        self.won = u32::try_from(people.len()).unwrap();
        let mut lanes = JoinSet::new();
        for lane in 0..LANES {
            let mut client = Client::new(channel(self.world.server.grpc()).await);
            let (record, id) = (self.world.record.clone(), id.to_owned());
            let people: Vec<_> = people
                .iter()
                .skip(lane.into())
                .step_by(LANES.into())
                .cloned()
                .collect();
            lanes.spawn(async move {
                for grabber in people {
                    let answer = record
                        .grab(&mut client, grab_of(&id, &grabber))
                        .await
                        .unwrap();
                    assert_eq!(answer.outcome(), GrabOutcome::Won);
                }
            });
        }
        lanes.join_all().await;
        self.tell("grabbed", began);
    }

    async fn recall(&mut self, id: &str) {
        let began = self.begin_phase();
        let world = &mut self.world;
        let request = RecallEnvelopeRequest {
            envelope_id: id.to_owned(),
            sender: "alice".to_owned(),
            request_id: "enough".to_owned(),
            ..RecallEnvelopeRequest::default()
        };
        let recalled = world.record.recall(&mut world.envelopes, request).await;
        let progress = recalled.unwrap().progress.unwrap();
        assert_eq!(progress.taken_count, self.won);
        world.until(id, "alice", EnvelopeState::Closed).await;
        self.tell("ended", began);
    }

    async fn forget(&mut self, id: &str) {
        let held = keys_of(&self.world, id);
        assert!(held.len() > 1, "its shares and its grabs: {held:?}");
        let began = self.begin_phase();
        self.world.server.set_clock_ms(CLOSED_KEPT_MS + 60_000);
        let mut exist = vec![&b"EXISTS"[..]];
        exist.extend(held.iter().map(|key| &**key));
        seen_by(in_time(), "it is forgotten", async || {
            (whole(&ask(&self.world, &exist)) == 0).then_some(())
        })
        .await;
        self.tell("forgotten", began);
    }
}

/// Some people.
fn some() -> Vec<String> {
    (0..GRABBED)
        .map(|number| format!("mega-{number}"))
        .collect()
}

/// Of the large one with so many shares, so many who use up a stripe, and one more.
fn more_than_a_stripe_has(id: &str, shares: u32) -> Vec<String> {
    let (id, of): (EnvelopeId, _) = (id.parse().unwrap(), StripeCount::new(PARTITIONS).unwrap());
    let stripe = of.all().nth(DRY.into()).unwrap();
    let names = (0..).map(|number| format!("mega-{number}"));
    let at_home = names.filter(|name| home(id, &PersonId::parse(name).unwrap(), of) == stripe);
    at_home.take(dealt(stripe, of, shares).len() + 1).collect()
}

/// The large envelope from its making to its end, of which these people take some. Before it, one of as many shares as
/// there are people there: what is the same without it.
async fn nobody_is_stalled(start: Start, people: impl FnOnce(&str, u32) -> Vec<String>) -> World {
    let Faults {
        mega_shares: shares,
        is_long,
        ..
    } = Faults::asked_for();
    let mut run = Run::begin(start).await;
    let began = Instant::now();
    let ordinary = run.make(GRABBED.into()).await;
    run.grab(&ordinary, some()).await;
    let quiet = p999_of(run.circles.since(began));
    println!("so far without: p99.9 {quiet:.1?}");
    run.longest = Duration::ZERO;
    run.by_clock = Duration::ZERO;

    let began = Instant::now();
    let id = run.make(shares).await;
    run.grab(&id, people(&id, shares)).await;
    run.recall(&id).await;
    run.forget(&id).await;
    let during = p999_of(run.circles.since(began));
    println!("p99.9 of the small ones: {quiet:.1?} without, {during:.1?} with");
    println!("LATENCY: {:?}", ask(&run.world, &[b"LATENCY", b"LATEST"]));
    let waited = run.waits.total();
    println!(
        "mega_create_stall_ms {:.1}: the longest command by the clock, {:.1?} of it of a core at the least; in all {waited:.1?} waited",
        run.by_clock.as_secs_f64() * 1_000.0,
        run.longest,
    );

    let Run {
        mut world,
        circles,
        longest,
        by_clock,
        ..
    } = run;
    circles.end().await;
    assert!(longest <= COMMAND_MAX, "{longest:?}");
    if is_long {
        assert!(by_clock <= COMMAND_MAX, "{by_clock:?}");
        assert!(during <= quiet + LATER_MAX, "{during:?} after {quiet:?}");
    }
    world.audit_when_quiet().await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mega_envelope_stalls_nobody_from_its_making_to_its_end() {
    nobody_is_stalled(Start::default(), |_, _| some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_one_that_is_dealt_to_stripes_and_gathered() {
    let above = ABOVE.to_string();
    let told = ["--hot-stripe-above-shares", &above];
    let start = Start {
        flags: told.map(str::to_owned).to_vec(),
        partitions: Some(PARTITIONS),
        ..Start::default()
    };
    let world = nobody_is_stalled(start, more_than_a_stripe_has).await;
    let gathered = world
        .server
        .counted("red_envelope_envelopes_gathered_total");
    assert!((gathered.await - 1.0).abs() < f64::EPSILON, "once");
}

/// The keys of an envelope. Asking for them takes long where there are many others.
fn keys_of(world: &World, id: &str) -> Vec<Vec<u8>> {
    let Value::Array(keys) = ask(world, &[b"KEYS", format!("*{id}*").as_bytes()]) else {
        panic!("KEYS answers a list");
    };
    let bytes = |key| match key {
        Value::BulkString(key) => key,
        other => panic!("a key is text: {other:?}"),
    };
    keys.into_iter().map(bytes).collect()
}
