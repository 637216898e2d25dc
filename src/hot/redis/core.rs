//! What every part of the store shares: keys, epochs, the connection, and how a function is called.
//!
//! # Ordering
//! A partition's epoch is known here only after `register`, or when the server named a newer one
//! that another process registered. An answer of epoch 0 means that the server has not been
//! registered: whoever waits in [`Core::unregistered`] wakes up.
//!
//! # Not here
//! What the functions do: `library.lua`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use redis::{Cmd, Pipeline, Value};
use tokio::sync::watch;

use super::acked::Acked;
use super::checks::{self, Reason};
use super::emptied::Emptied;
use super::keys::{EnvelopeKeys, Keys};
use super::link::{Failure, Link, refusal};
use super::pending::Asked;
use super::reply::{self, Reply};
use super::sums::Sums;
use crate::clock::{Clock, StoreClock};
use crate::domain::ack::AckLevel;
use crate::domain::envelope::Terms;
use crate::domain::id::{EnvelopeId, Epoch, Partition};
use crate::domain::stripes::{Stripe, StripeCount, place};
use crate::hot::{Epochs, HotError};

/// Terms that are kept: 1 KB each, 64 MB; a look-up is a round trip.
const TERMS_KEPT_MAX: usize = 65_536;
/// Why nothing is acknowledged before the first look, and before the first one at another process of Redis.
const NOT_CHECKED: &str = "Redis has not been checked yet";
/// Envelopes whose sums are kept: 100 bytes each.
const SUMS_KEPT_MAX: usize = 262_144;

/// Where an envelope lies, or one stripe of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// In which partition.
    pub partition: Partition,
    /// Of which envelope.
    pub id: EnvelopeId,
}

/// Shared by the store's parts.
pub struct Core {
    /// Every key.
    pub keys: Keys,
    /// What the server is told about time.
    pub clock: Arc<dyn Clock>,
    /// Whose grabs these are.
    pub books: String,
    /// For everything but grabs.
    pub link: Link,
    /// Terms that were read before; they never change.
    pub terms: Cache<EnvelopeId, Arc<Terms>>,
    /// What taken shares add up to.
    pub sums: Cache<Place, Sums>,
    /// What was acknowledged and is not in the books yet.
    pub acked: Acked,
    /// Empty envelopes that many still ask for.
    pub emptied: Emptied,
    /// Who asks what waits for the ledger.
    pub asked: Mutex<Asked>,
    epochs: Vec<AtomicU64>,
    /// How often one of them has changed.
    changes: AtomicU64,
    registered: watch::Sender<bool>,
    level: Mutex<Result<AckLevel, Vec<String>>>,
    /// Nothing but memory is lacking.
    full: AtomicBool,
    trouble: Mutex<Option<String>>,
}

impl Core {
    /// Not registered yet.
    pub fn new(keys: Keys, clock: Arc<dyn Clock>, books: String, link: Link) -> Self {
        let epochs = keys.count().all().map(|_| AtomicU64::new(0)).collect();
        Self {
            keys,
            clock,
            books,
            link,
            terms: Cache::new(TERMS_KEPT_MAX),
            sums: Cache::new(SUMS_KEPT_MAX),
            acked: Acked::default(),
            emptied: Emptied::default(),
            asked: Mutex::default(),
            epochs,
            changes: AtomicU64::new(0),
            registered: watch::Sender::new(false),
            level: Mutex::new(Err(vec![NOT_CHECKED.into()])),
            full: AtomicBool::new(false),
            trouble: Mutex::default(),
        }
    }

    /// The partition of an envelope.
    pub fn partition(&self, id: EnvelopeId) -> Partition {
        id.partition(self.keys.count())
    }

    /// Where an envelope lies, or the first of its stripes.
    pub fn first(&self, id: EnvelopeId) -> Place {
        let partition = self.partition(id);
        Place { partition, id }
    }

    /// Where one of its stripes lies.
    pub fn place(&self, id: EnvelopeId, stripe: Stripe, of: StripeCount) -> Place {
        let partition = place(id, stripe, of, self.keys.count());
        Place { partition, id }
    }

    /// Where all of them lie, the first one first.
    pub fn places(&self, id: EnvelopeId, of: StripeCount) -> Vec<Place> {
        of.all().map(|stripe| self.place(id, stripe, of)).collect()
    }

    /// The keys of what lies there.
    pub fn own(&self, at: Place) -> EnvelopeKeys {
        self.keys.envelope(at.partition, at.id)
    }

    /// The epoch of a partition as this process knows it; 0 before the first registration.
    pub fn epoch(&self, partition: Partition) -> Epoch {
        Epoch(self.epochs[usize::from(partition.index())].load(Ordering::Acquire))
    }

    /// How many changes of epochs were heard of: what was found out under an earlier number may be past.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// An epoch was registered, here or by another process. Answers whether it ends one that was known.
    pub fn learn(&self, partition: Partition, epoch: Epoch) -> bool {
        let known = &self.epochs[usize::from(partition.index())];
        let before = known.fetch_max(epoch.0, Ordering::AcqRel);
        if before < epoch.0 {
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
        let ends = before > 0 && before < epoch.0;
        if ends {
            self.acked.orphan(partition, epoch);
        }
        ends
    }

    /// All partitions were registered.
    pub fn now_registered(&self) {
        self.sums.clear();
        self.registered.send_replace(true);
    }

    /// The server must be registered again.
    pub fn lost(&self) {
        if self.registered.send_replace(false) {
            tracing::warn!("Redis must be registered anew: it was restarted, flushed or reloaded");
        }
    }

    /// Whether the server was registered and has not been lost since.
    pub fn is_registered(&self) -> bool {
        *self.registered.borrow()
    }

    /// Waits until it has to be registered.
    pub async fn unregistered(&self) {
        let mut registered = self.registered.subscribe();
        // The sender lives as long as this.
        let _ended = registered.wait_for(|registered| !registered).await;
    }

    /// The level that the server keeps, or why nothing may be acknowledged; `full`: only since its
    /// memory is.
    pub fn judged(&self, level: Result<AckLevel, Vec<Reason>>, full: bool) {
        checks::measure(level.as_ref().err().map_or(&[][..], Vec::as_slice));
        let sentence = |reason: Reason| reason.sentence;
        let level = level.map_err(|found| found.into_iter().map(sentence).collect());
        *self.level.lock() = level;
        self.full.store(full, Ordering::Release);
    }

    /// Nothing is acknowledged before the next look.
    fn not_checked(&self) {
        *self.level.lock() = Err(vec![NOT_CHECKED.into()]);
    }

    /// Whether nothing new may be acknowledged for lack of memory alone. What was acknowledged before
    /// is kept at the level, so it may be told again.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// The level in force.
    pub fn ack_level(&self) -> Option<AckLevel> {
        self.level.lock().as_ref().ok().copied()
    }

    /// How the last word with the registrar ended.
    pub fn heard<T>(&self, answer: &Result<T, HotError>) {
        *self.trouble.lock() = answer.as_ref().err().map(ToString::to_string);
    }

    /// Why the store does not serve; empty: it does.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = match &*self.level.lock() {
            Ok(_) => Vec::new(),
            Err(reasons) => reasons.clone(),
        };
        if !self.is_registered() && reasons.is_empty() {
            let trouble = self.trouble.lock().clone();
            reasons.push(trouble.unwrap_or_else(|| "Redis is not registered yet".into()));
        }
        reasons
    }

    /// Whether acknowledging is allowed.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn may_acknowledge(&self) -> Result<(), HotError> {
        match &*self.level.lock() {
            Ok(_) => Ok(()),
            Err(reasons) => Err(HotError::Unavailable(reasons.join("; "))),
        }
    }

    /// The first argument of functions that look at the time.
    pub fn clock_arg(&self) -> String {
        match self.clock.for_store() {
            StoreClock::Own { offset_ms } => offset_ms.to_string(),
            StoreClock::Standing(at) => format!("={}", at.0),
        }
    }

    /// Whether the caller's epoch is the one that is known.
    pub fn stands(&self, partition: Partition, epoch: Epoch) -> Result<(), HotError> {
        match self.epoch(partition) {
            known if known == epoch && epoch != Epoch(0) => Ok(()),
            Epoch(0) => Err(HotError::Unavailable("Redis is not registered yet".into())),
            known => Err(HotError::Epoch(known)),
        }
    }

    /// The same of a caller who has the epochs of all partitions: that of this one.
    pub fn stands_in(&self, partition: Partition, under: &Epochs) -> Result<Epoch, HotError> {
        let epoch = under.of(partition);
        self.stands(partition, epoch).map(|()| epoch)
    }

    /// Calls a function of one partition.
    ///
    /// # Errors
    /// The outcome is unknown, or the server stands in another epoch.
    pub async fn call(&self, call: Call) -> Result<(Reply, Vec<Value>), HotError> {
        let sent = self.link.send(&call.command()).await;
        self.answer(call.partition, sent.map_err(|failure| self.fault(failure))?)
    }

    /// Calls a function of several partitions: what it says of epochs is the caller's to read.
    ///
    /// # Errors
    /// The outcome is unknown.
    pub async fn ask(&self, call: &Call) -> Result<(Reply, Vec<Value>), HotError> {
        let sent = self.link.send(&call.command()).await;
        let value = sent.map_err(|failure| self.fault(failure))?;
        reply::split(self.value(value)?)
    }

    /// Calls functions of several partitions, all on their way at once.
    ///
    /// # Errors
    /// The first error of any.
    pub async fn call_all(&self, calls: Vec<Call>) -> Result<Vec<(Reply, Vec<Value>)>, HotError> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = Pipeline::with_capacity(calls.len());
        for call in &calls {
            pipeline.add_command(call.command());
        }
        let sent = self.link.send_all(&pipeline).await;
        let values = sent.map_err(|failure| self.fault(failure))?;
        let pairs = calls.iter().zip(values);
        // All are heard before the first error is told: each may tell of another epoch.
        let answer = |(call, value): (&Call, Value)| self.answer(call.partition, value);
        let answers: Vec<_> = pairs.map(answer).collect();
        answers.into_iter().collect()
    }

    /// Runs plain commands, all on their way at once.
    ///
    /// # Errors
    /// The first error of any.
    pub async fn run_all(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, HotError> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command);
        }
        let values = self.link.send_all(&pipeline).await?;
        values.into_iter().map(|value| self.value(value)).collect()
    }

    /// The same, where a key of another type reads as one that is missing.
    ///
    /// # Errors
    /// The first other error of any.
    pub async fn read_all(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, HotError> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command);
        }
        let values = self.link.send_all(&pipeline).await?;
        let read = values.into_iter().map(|value| match value {
            Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(Value::Nil),
            value => self.value(value),
        });
        read.collect()
    }

    /// A reply that may be an error in a pipeline.
    fn value(&self, value: Value) -> Result<Value, HotError> {
        match value {
            Value::ServerError(error) => {
                let failure = refusal(error.code(), error.details().unwrap_or_default());
                Err(self.fault(failure))
            }
            value => Ok(value),
        }
    }

    /// Notes what a failure says about the server.
    pub fn fault(&self, failure: Failure) -> HotError {
        match failure {
            Failure::NoLibrary => self.lost(),
            Failure::Unreachable(_) => self.emptied.void(),
            Failure::Full | Failure::Refused(_) => {}
        }
        failure.into()
    }

    fn answer(&self, partition: Partition, value: Value) -> Result<(Reply, Vec<Value>), HotError> {
        let (code, items) = reply::split(self.value(value)?)?;
        match code {
            Reply::Epoch => {
                let epoch = items.first().map_or(Ok(0), reply::number)?;
                Err(self.other_epoch(partition, epoch))
            }
            Reply::Fault => Err(HotError::Unavailable(
                "the outbox in Redis does not take what is owed".into(),
            )),
            code => Ok((code, items)),
        }
    }

    /// The server stands in another epoch; 0: in none.
    pub fn other_epoch(&self, partition: Partition, epoch: i64) -> HotError {
        match u64::try_from(epoch) {
            Ok(epoch) if epoch > 0 => {
                if self.learn(partition, Epoch(epoch)) {
                    // Another process may have registered it, which looked at the settings for itself.
                    self.not_checked();
                    self.lost();
                }
                HotError::Epoch(self.epoch(partition))
            }
            _ => {
                self.lost();
                HotError::Unavailable("Redis is being registered: try again".into())
            }
        }
    }
}

/// A call of one function, for one partition.
pub struct Call {
    partition: Partition,
    name: &'static str,
    read_only: bool,
    keys: Vec<String>,
    args: Vec<Vec<u8>>,
}

impl Call {
    /// A function that writes. The partition's epoch key is its first key.
    pub fn writing(core: &Core, name: &'static str, partition: Partition) -> Self {
        Self {
            partition,
            name,
            read_only: false,
            keys: vec![core.keys.epoch(partition)],
            args: Vec::with_capacity(8),
        }
    }

    /// A function that only reads: it is answered also where memory is full.
    pub fn reading(core: &Core, name: &'static str, partition: Partition) -> Self {
        Self {
            read_only: true,
            ..Self::writing(core, name, partition)
        }
    }

    /// One more key.
    pub fn key(mut self, key: String) -> Self {
        self.keys.push(key);
        self
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl Into<Vec<u8>>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// A number as an argument.
    pub fn number(self, number: impl std::fmt::Display) -> Self {
        self.arg(number.to_string())
    }

    /// The two arguments that say where the caller believes to be.
    pub fn under(self, epoch: Epoch) -> Self {
        let partition = self.partition.index();
        self.number(partition).number(epoch.0)
    }

    fn command(&self) -> Cmd {
        let mut command = redis::cmd(if self.read_only { "FCALL_RO" } else { "FCALL" });
        command.arg(self.name).arg(self.keys.len());
        for key in &self.keys {
            command.arg(key.as_bytes());
        }
        for arg in &self.args {
            command.arg(arg.as_slice());
        }
        command
    }
}
