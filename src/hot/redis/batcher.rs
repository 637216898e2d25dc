//! Grabs that arrive while a call is on its way are the next call: no timer, no lock, no waiting.
//!
//! # Shape
//! | step | what |
//! |---|---|
//! | wait | for the first grab, then take what is there, up to [`CALL_GRABS_MAX`] |
//! | drop | askings that nobody waits for any more: a call whose deadline passed before it was sent. What a stream asks for together is sent |
//! | pack | by partition and envelope, so that each envelope is read and written once a call |
//! | send | one `grab_1` for all partitions of the server, on a connection that nothing else uses |
//! | full | where memory is, who has a share hears it again (`repeats`), the others that it is full |
//! | answer | each caller in its own order |
//! | hear | of envelopes that were found empty (`emptied`) |
//!
//! # Bounds
//! [`QUEUED_GRABS_MAX`] wait; [`CALLS_IN_FLIGHT_MAX`] calls are on their way.
//!
//! # Ordering
//! The grabs of one call are decided in the order of their arrival. Two calls on their way may
//! change places: who asked in both was not waiting for an answer, so no order was promised.
//!
//! # If it crashes here
//! What was sent stands or does not; a repetition finds it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::RngExt;
use redis::{Cmd, Value};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::core::Core;
use super::emptied::Emptied;
use super::layout::Reader;
use super::link::{Failure, Link};
use super::reply::{self, Reply};
use crate::domain::grab::{
    GRABS_PER_CALL_MAX, Grab, GrabReply, Grant, HeldShare, Outcome, Refusal,
};
use crate::domain::id::{EnvelopeId, Epoch, Partition, TenantId, UnixMs};
use crate::hot::HotError;
use crate::telemetry::{Stopwatch, metrics};

#[cfg(test)]
mod tests;

/// Grabs of one call. Above 256 a call gains little and delays everybody behind it.
pub const CALL_GRABS_MAX: usize = 512;
/// Calls on their way: while Redis works on one, the next one is already there.
pub const CALLS_IN_FLIGHT_MAX: usize = 2;
/// Grabs that wait for a call: a third of a second at 200,000/s.
pub const QUEUED_GRABS_MAX: usize = 65_536;
/// Callers that are taken from the queue at once.
const ASKS_PER_TURN_MAX: usize = CALL_GRABS_MAX;

type Answer = oneshot::Sender<Result<Vec<GrabReply>, HotError>>;

struct Ask {
    grabs: Vec<Grab>,
    answer: Answer,
}

/// The queue before a server.
pub struct Batcher {
    asks: mpsc::Sender<Ask>,
    waiting: AtomicUsize,
    task: tokio::task::JoinHandle<()>,
}

impl Batcher {
    /// Sends over `link`, which nothing else may use.
    pub fn start(core: Arc<Core>, link: Link) -> Self {
        let (asks, queue) = mpsc::channel(QUEUED_GRABS_MAX);
        let sender = Sender {
            core,
            link: Arc::new(link),
            in_flight: Arc::new(Semaphore::new(CALLS_IN_FLIGHT_MAX)),
        };
        let task = tokio::spawn(sender.run(queue));
        Self {
            asks,
            waiting: AtomicUsize::new(0),
            task,
        }
    }

    /// Grabs that wait for an answer.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Answers at most `GRABS_PER_CALL_MAX` grabs, in their order.
    pub async fn grab(&self, grabs: Vec<Grab>) -> Result<Vec<GrabReply>, HotError> {
        if grabs.len() > GRABS_PER_CALL_MAX {
            let what = format!("a call takes at most {GRABS_PER_CALL_MAX} grabs");
            return Err(HotError::Mismatch(what));
        }
        // Who was told no epoch can't be told that nothing is there.
        if grabs.iter().any(|grab| grab.epoch == Epoch(0)) {
            return Err(HotError::Unavailable("Redis is not registered yet".into()));
        }
        if grabs.is_empty() {
            return Ok(Vec::new());
        }
        let count = grabs.len();
        if self.waiting.fetch_add(count, Ordering::Relaxed) + count > QUEUED_GRABS_MAX {
            self.waiting.fetch_sub(count, Ordering::Relaxed);
            return Err(HotError::Shed);
        }
        let _leaves = Leaves(&self.waiting, count);
        let (answer, answered) = oneshot::channel();
        let sent = self.asks.try_send(Ask { grabs, answer });
        sent.map_err(|_| HotError::Shed)?;
        let ended = || HotError::Unavailable("the server is shutting down".into());
        answered.await.unwrap_or_else(|_| Err(ended()))
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Counts grabs out again, also where the caller goes away.
struct Leaves<'a>(&'a AtomicUsize, usize);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

struct Sender {
    core: Arc<Core>,
    link: Arc<Link>,
    in_flight: Arc<Semaphore>,
}

impl Sender {
    async fn run(self, mut queue: mpsc::Receiver<Ask>) {
        let mut held: VecDeque<Ask> = VecDeque::new();
        let mut fresh = Vec::with_capacity(ASKS_PER_TURN_MAX);
        loop {
            if held.is_empty() && queue.recv_many(&mut fresh, ASKS_PER_TURN_MAX).await == 0 {
                return;
            }
            let permit = Arc::clone(&self.in_flight).acquire_owned().await;
            let Ok(permit) = permit else { return };
            // What came while the calls before were on their way goes with this one.
            while fresh.len() < ASKS_PER_TURN_MAX
                && let Ok(ask) = queue.try_recv()
            {
                fresh.push(ask);
            }
            held.extend(fresh.drain(..));
            let asks = take_call(&mut held);
            if asks.is_empty() {
                continue;
            }
            let packed = Packed::of(&self.core, asks);
            let (core, link) = (Arc::clone(&self.core), Arc::clone(&self.link));
            tokio::spawn(async move {
                let watch = Stopwatch::start();
                let sent = match packed.order.is_empty() {
                    true => Ok(Value::Nil),
                    false if core.is_full() => Err(Failure::Full),
                    false => link.send(&packed.command).await,
                };
                if let Err(Failure::Full) = sent {
                    packed.answer_repeats(&core).await;
                    drop(permit);
                    return;
                }
                let sent = sent.map_err(|failure| core.fault(failure));
                if sent.is_ok() {
                    metrics::batch_committed(packed.order.len(), watch.seconds());
                }
                drop(permit);
                packed.answer(&core, sent);
            });
        }
    }
}

/// The asks of the next call: whole ones, in their order, without those nobody waits for.
fn take_call(held: &mut VecDeque<Ask>) -> Vec<Ask> {
    let (mut asks, mut grabs) = (Vec::new(), 0);
    while let Some(ask) = held.front() {
        if ask.answer.is_closed() {
            held.pop_front();
            continue;
        }
        if grabs > 0 && grabs + ask.grabs.len() > CALL_GRABS_MAX {
            break;
        }
        grabs += ask.grabs.len();
        asks.extend(held.pop_front());
    }
    asks
}

/// By the outbox entry that owes them.
type Wins = BTreeMap<(Partition, Epoch, u64), Vec<(EnvelopeId, HeldShare)>>;

/// A call, and whose its answers are.
struct Packed {
    command: Cmd,
    /// By place in the reply: ask and place in the ask.
    order: Vec<(usize, usize)>,
    /// What was asked there.
    grabs: Vec<Grab>,
    asks: Vec<(Answer, Vec<GrabReply>)>,
    /// By place in the reply: the partition, and the nonce under which a win is owed.
    places: Vec<(Partition, u64)>,
}

impl Packed {
    fn of(core: &Core, asks: Vec<Ask>) -> Self {
        let mut order = Vec::new();
        for (ask, asked) in asks.iter().enumerate() {
            order.extend((0..asked.grabs.len()).map(|place| (ask, place)));
        }
        let grab = |at: &(usize, usize)| &asks[at.0].grabs[at.1];
        // What is believed to stand in another epoch is answered without asking.
        order.retain(|at| {
            let grab = grab(at);
            core.epoch(grab.partition) == grab.epoch
        });
        order.sort_by(|a, b| of_one_envelope(grab(a)).cmp(&of_one_envelope(grab(b))));
        let (command, places) = command(core, &asks, &order);
        let grabs = order.iter().map(|at| grab(at).clone()).collect();
        let unanswered = |ask: &Ask| {
            let others = ask.grabs.iter();
            let others = others.map(|grab| match core.epoch(grab.partition) {
                epoch if epoch == grab.epoch => GrabReply::Missing,
                epoch => GrabReply::Epoch(epoch),
            });
            others.collect()
        };
        let replies: Vec<Vec<GrabReply>> = asks.iter().map(unanswered).collect();
        let asks = asks
            .into_iter()
            .map(|ask| ask.answer)
            .zip(replies)
            .collect();
        Self {
            command,
            order,
            asks,
            places,
            grabs,
        }
    }

    fn answer(mut self, core: &Arc<Core>, sent: Result<Value, HotError>) {
        let mut failed: BTreeMap<usize, HotError> = BTreeMap::new();
        let outcome = sent.and_then(|value| self.read(core, &value, &mut failed));
        if outcome.is_ok() {
            self.hear(core);
        }
        for (ask, (answer, replies)) in self.asks.into_iter().enumerate() {
            let failure = outcome.as_ref().err().or(failed.get(&ask));
            // A caller who went away repeats.
            let _ = answer.send(failure.map_or(Ok(replies), |error| Err(error.clone())));
        }
    }

    /// Answers who has a share already, and nobody else: Redis takes nothing new.
    async fn answer_repeats(mut self, core: &Core) {
        // Above the bound there is a sentence; where Redis itself refuses, it is the error.
        let full = match core.may_acknowledge() {
            Err(error) => error,
            Ok(()) => Failure::Full.into(),
        };
        let repeats = core.repeats(&self.grabs).await;
        let repeats = repeats.unwrap_or_else(|_| vec![None; self.grabs.len()]);
        let mut failed = std::collections::BTreeSet::new();
        for ((ask, at), reply) in self.order.iter().zip(repeats) {
            match reply {
                Some(reply) => self.asks[*ask].1[*at] = reply,
                None => drop(failed.insert(*ask)),
            }
        }
        for (ask, (answer, replies)) in self.asks.into_iter().enumerate() {
            let told = match failed.contains(&ask) {
                true => Err(full.clone()),
                false => Ok(replies),
            };
            // A caller who went away repeats.
            let _ = answer.send(told);
        }
    }

    /// Reads every reply. A partition that takes nothing fails the asks that name it, and no others.
    fn read(
        &mut self,
        core: &Core,
        value: &Value,
        failed: &mut BTreeMap<usize, HotError>,
    ) -> Result<(), HotError> {
        if self.order.is_empty() {
            return Ok(());
        }
        let bytes = reply::bytes(value)?;
        let mut reader = Reader(bytes);
        let mut won = Wins::new();
        for (place, (ask, at)) in self.order.iter().enumerate() {
            let read = read_reply(&mut reader).ok_or_else(|| reply::nonsense(value))?;
            let error = match read {
                Read::Reply(reply) => {
                    // What is not told is not promised.
                    let told = self.still(core, place, reply);
                    self.note(place, &told, &mut won);
                    self.asks[*ask].1[*at] = told;
                    continue;
                }
                Read::Epoch(epoch) => core.other_epoch(self.places[place].0, epoch),
                Read::Fault => {
                    let why = "the outbox in Redis does not take what is owed";
                    HotError::Unavailable(why.into())
                }
            };
            match error {
                HotError::Epoch(epoch) => self.asks[*ask].1[*at] = GrabReply::Epoch(epoch),
                error => drop(failed.insert(*ask, error)),
            }
        }
        for ((partition, epoch, nonce), wins) in won {
            core.acked.keep((partition, epoch), nonce, wins);
        }
        Ok(())
    }

    /// Who asks for an empty envelope next may be answered without Redis.
    fn hear(&self, core: &Arc<Core>) {
        let mut order = self.order.iter();
        let by_envelope = self
            .grabs
            .chunk_by(|a, b| of_one_envelope(a) == of_one_envelope(b));
        for grabs in by_envelope {
            let (mut empties, mut stays) = (0, true);
            for (ask, at) in order.by_ref().take(grabs.len()) {
                match self.asks[*ask].1[*at] {
                    GrabReply::Outcome(Outcome::Empty) => empties += 1,
                    GrabReply::Outcome(Outcome::AlreadyGrabbed(_)) => {}
                    // A home says so of every envelope, a first stripe only while there is something left.
                    GrabReply::Dry if grabs[0].partition != core.partition(grabs[0].envelope) => {}
                    _ => stays = false,
                }
            }
            if let Some(next) = core.emptied.heard(core, &grabs[0], (empties, stays)) {
                Emptied::follow(core, grabs[0].envelope, next);
            }
        }
    }

    /// What is told of a win. One of an epoch that has ended since may be somebody else's by now: who
    /// grabbed asks again, and is told the same where it stood.
    fn still(&self, core: &Core, place: usize, reply: GrabReply) -> GrabReply {
        let (epoch, now) = (self.grabs[place].epoch, core.epoch(self.places[place].0));
        match reply {
            GrabReply::Outcome(Outcome::Won(_)) if now > epoch => GrabReply::Epoch(now),
            reply => reply,
        }
    }

    fn note(&self, place: usize, reply: &GrabReply, won: &mut Wins) {
        if let GrabReply::Outcome(Outcome::Won(grant)) = reply {
            let grab = &self.grabs[place];
            let held = HeldShare {
                grabber: grab.grabber.clone(),
                grant: *grant,
                declined: false,
            };
            let (partition, nonce) = self.places[place];
            let entry = won.entry((partition, grab.epoch, nonce));
            entry.or_default().push((grab.envelope, held));
        }
    }
}

/// The command for grabs in this order, and the partition and nonce of each.
fn command(core: &Core, asks: &[Ask], order: &[(usize, usize)]) -> (Cmd, Vec<(Partition, u64)>) {
    let grab = |at: &(usize, usize)| &asks[at.0].grabs[at.1];
    let mut keys: Vec<String> = Vec::new();
    let mut args: Vec<Vec<u8>> = vec![core.clock_arg().into_bytes()];
    let mut places = Vec::with_capacity(order.len());
    for of_partition in order.chunk_by(|a, b| grab(a).partition == grab(b).partition) {
        let partition = grab(&of_partition[0]).partition;
        let envelopes =
            || of_partition.chunk_by(|a, b| of_one_envelope(grab(a)) == of_one_envelope(grab(b)));
        keys.extend([core.keys.epoch(partition), core.keys.outbox(partition)]);
        let nonce: u64 = rand::rng().random();
        args.push(partition.index().to_string().into_bytes());
        args.push(grab(&of_partition[0]).epoch.0.to_string().into_bytes());
        args.push(nonce.to_le_bytes().to_vec());
        args.push(envelopes().count().to_string().into_bytes());
        for of_envelope in envelopes() {
            let first = grab(&of_envelope[0]);
            let own = core.keys.envelope(partition, first.envelope);
            keys.extend([own.grabs, own.shares, own.list, own.phrase]);
            let phrases = of_envelope.iter().any(|at| grab(at).phrase.is_some());
            args.push(first.envelope.to_bytes().to_vec());
            args.push(first.tenant.as_str().as_bytes().to_vec());
            args.push(of_envelope.len().to_string().into_bytes());
            args.push(if phrases {
                b"1".to_vec()
            } else {
                b"0".to_vec()
            });
            for at in of_envelope {
                args.push(grab(at).grabber.as_str().as_bytes().to_vec());
                if phrases {
                    let phrase = grab(at).phrase.map(|phrase| phrase.to_bytes().to_vec());
                    args.push(phrase.unwrap_or_default());
                }
                places.push((partition, nonce));
            }
        }
    }
    let mut command = redis::cmd("FCALL");
    command.arg("grab_1").arg(keys.len());
    for key in &keys {
        command.arg(key.as_bytes());
    }
    for arg in &args {
        command.arg(arg.as_slice());
    }
    (command, places)
}

/// What the grabs of one place in a call have in common. Two tenants can't have one envelope, and
/// who names another one's must not stand in its grabbers' way.
fn of_one_envelope(grab: &Grab) -> (Partition, EnvelopeId, &TenantId) {
    (grab.partition, grab.envelope, &grab.tenant)
}

enum Read {
    Reply(GrabReply),
    Epoch(i64),
    Fault,
}

/// The next answer; `None` where the bytes end too early or are none.
fn read_reply(reader: &mut Reader<'_>) -> Option<Read> {
    let code = Reply::of(reader.byte()?.into())?;
    let refused = |refusal| GrabReply::Outcome(Outcome::Refused(refusal));
    Some(Read::Reply(match code {
        Reply::Won => GrabReply::Outcome(Outcome::Won(grant(reader)?)),
        Reply::AlreadyGrabbed => GrabReply::Outcome(Outcome::AlreadyGrabbed(grant(reader)?)),
        Reply::Empty => GrabReply::Outcome(Outcome::Empty),
        Reply::Expired => GrabReply::Outcome(Outcome::Expired),
        Reply::Recalled => GrabReply::Outcome(Outcome::Recalled),
        Reply::NotOpenYet => GrabReply::Outcome(Outcome::NotOpenYet(UnixMs(reader.u48()?))),
        Reply::WrongPassphrase => refused(Refusal::WrongPassphrase),
        Reply::TooManyTries => refused(Refusal::TooManyTries),
        Reply::Declined => refused(Refusal::Declined),
        // A stale envelope is repaired by the same look into the books as a missing one.
        Reply::Missing | Reply::Stale => GrabReply::Missing,
        Reply::Funding => GrabReply::Funding,
        Reply::Frozen => GrabReply::Frozen,
        Reply::Dry => GrabReply::Dry,
        Reply::Epoch => return Some(Read::Epoch(reader.u48()?)),
        Reply::Fault => return Some(Read::Fault),
        Reply::Ok
        | Reply::NotDue
        | Reply::OutOfOrder
        | Reply::OtherTerms
        | Reply::OtherAmounts
        | Reply::Incomplete
        | Reply::Damaged
        | Reply::NotEmpty => return None,
    }))
}

/// Share, amount in eight bytes, instant.
pub(super) fn grant(reader: &mut Reader<'_>) -> Option<Grant> {
    Some(Grant {
        share: reader.u32()?,
        amount_minor: reader.amount(8)?,
        at: UnixMs(reader.u48()?),
    })
}
