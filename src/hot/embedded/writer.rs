//! The one thread that owns index and files: decides a batch, makes it durable, then answers.
//!
//! # Shape
//! | step | what |
//! |---|---|
//! | take | everything that has arrived (`queue`), grabs first |
//! | decide | in memory (`index`) |
//! | commit | one row, a slice of upkeep, one fsync (`log`); nothing changed: no row, no fsync |
//! | publish | the row's debts go to the outbox |
//! | answer | everybody who was taken, including those who only read |
//!
//! # Bounds
//! A turn: `TURN_GRABS_MAX`, `TURN_COST_MAX`, one slice of snapshots (`SLICE_BYTES`), one segment
//! of truncation, one slice of burials ([`BURIED_HOLDERS_MAX`], [`BURIED_PARTS_MAX`]).
//!
//! # Ordering
//! Nobody reads what is not durable: reads are decided in the same turn as the changes before
//! them, and answered after its commit.
//!
//! # If it crashes here
//! Before the commit nobody was told. After it the log has the batch; who was not told repeats.
//! A commit that fails leaves memory ahead of the disk: the writer stops for good, answers
//! nothing but that, and the process has to end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::Limits;
use super::envelope::{Envelope, Holder};
use super::index::{Batch, Index};
use super::log::Log;
use super::outbox::Outbox;
use super::queue::{Queue, Turn};
use super::record::{Row, encode};
use super::snapshot;
use crate::clock::Clock;
use crate::hot::HotError;
use crate::telemetry::{Stopwatch, metrics};

/// Holders of a removed envelope that a turn frees: 8,192 names, below 1 ms.
const BURIED_HOLDERS_MAX: usize = 8_192;
/// Parts of a removed envelope that a turn deletes: at most 5 MiB of pages go to the free list.
const BURIED_PARTS_MAX: usize = 16;

/// What a call works on.
pub(super) struct Desk<'a> {
    pub index: &'a mut Index,
    pub batch: &'a mut Batch,
    pub outbox: &'a Outbox,
    /// Ids of entries that were settled in this turn.
    pub settled: &'a mut Vec<u64>,
    /// Envelopes that were removed in this turn.
    pub removed: &'a mut Vec<Envelope>,
}

/// What the writer shares with those who ask.
#[derive(Clone)]
pub(super) struct Shared {
    pub queue: Arc<Queue>,
    pub outbox: Arc<Outbox>,
    pub envelopes: Arc<AtomicU64>,
}

/// An envelope that is removed, and not yet freed.
struct Grave {
    born: u64,
    holders: Vec<Option<Holder>>,
}

pub(super) struct Writer {
    pub log: Log,
    pub index: Index,
    pub shared: Shared,
    pub clock: Arc<dyn Clock>,
    pub limits: Limits,
    graves: VecDeque<Grave>,
    /// Settled, and not yet said so in the log.
    marks: Vec<u64>,
    body: Vec<u8>,
}

/// Says that the writer is gone, also when it panics.
pub(super) struct Alarm {
    pub shared: Shared,
    pub stopped: watch::Sender<Option<String>>,
    clean: bool,
}

impl Alarm {
    pub fn new(shared: Shared, stopped: watch::Sender<Option<String>>) -> Self {
        Self {
            shared,
            stopped,
            clean: false,
        }
    }

    fn ring(&self, why: &str) {
        self.shared.queue.close(HotError::Stopped(why.to_owned()));
        self.stopped.send_replace(Some(why.to_owned()));
        // Who waits is turned away: his answer's sender is dropped with the queue's turns.
        while let Some(turn) = self.shared.queue.take(false) {
            drop(turn);
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if !self.clean {
            self.ring("the hot store's writer panicked");
        }
    }
}

impl Writer {
    pub fn new(
        log: Log,
        index: Index,
        shared: Shared,
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> Self {
        Self {
            log,
            index,
            shared,
            clock,
            limits,
            graves: VecDeque::new(),
            marks: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Works until the queue is closed and empty, or a commit fails.
    pub fn run(mut self, mut alarm: Alarm) {
        while let Some(turn) = self.shared.queue.take(!self.upkeep_due()) {
            if let Err(why) = self.turn(turn) {
                let why = format!("a write failed ({why}): memory may be ahead of the disk");
                tracing::error!(why, "the hot store stops");
                alarm.ring(&why);
                alarm.clean = true;
                return;
            }
        }
        if let Err(why) = self.end() {
            // Everything that was acknowledged is in the WAL, which the next start reads.
            tracing::warn!(%why, "the hot store could not fold its log at the end");
        }
        alarm.clean = true;
    }

    fn turn(&mut self, turn: Turn) -> rusqlite::Result<()> {
        let mut batch = Batch::new(self.log.last_seq() + 1, self.clock.now());
        let (mut settled, mut removed) = (Vec::new(), Vec::new());

        // ── decide ──
        let mut grabbed = Vec::with_capacity(turn.grabs.len());
        for call in turn.grabs {
            // Nobody waits for it any more; his repeat decides anew.
            if call.reply.is_closed() {
                continue;
            }
            let grabs = call.grabs.into_iter();
            let replies: Vec<_> = grabs.map(|g| self.index.grab(&mut batch, g)).collect();
            grabbed.push((call.reply, replies));
        }
        let mut answers = Vec::with_capacity(turn.calls.len());
        for call in turn.calls {
            let mut desk = Desk {
                index: &mut self.index,
                batch: &mut batch,
                outbox: &self.shared.outbox,
                settled: &mut settled,
                removed: &mut removed,
            };
            answers.push((call.act)(&mut desk));
        }
        self.marks.append(&mut settled);

        // ── commit, publish ──
        let changed = !batch.changes.is_empty();
        let watch = Stopwatch::start();
        let done = self.commit(batch, removed);
        if changed && done.is_ok() {
            let grabs = grabbed.iter().map(|(_, replies)| replies.len()).sum();
            metrics::batch_committed(grabs, watch.seconds());
        }

        // ── answer ──
        let failed = done.as_ref().err().map(|why| {
            let why = format!("a write failed ({why}): repeat the call after the restart");
            HotError::Stopped(why)
        });
        for (reply, replies) in grabbed {
            // A caller who went away does not hear it.
            let _ = reply.send(match &failed {
                None => Ok(replies),
                Some(why) => Err(why.clone()),
            });
        }
        for answer in answers {
            answer(failed.clone().map_or(Ok(()), Err));
        }
        done
    }

    fn commit(&mut self, batch: Batch, removed: Vec<Envelope>) -> rusqlite::Result<()> {
        let upkeep = self.upkeep_due();
        if batch.changes.is_empty() && !upkeep {
            return Ok(());
        }
        let (seq, changed) = (batch.seq, !batch.changes.is_empty());
        let mut row = Row {
            nonce: rand::random(),
            at: batch.now,
            changes: batch.changes,
            settled: std::mem::take(&mut self.marks),
        };
        row.settled.sort_unstable();
        self.log.begin()?;
        if changed {
            encode(seq, &row, &mut self.body);
            self.log.append(seq, &self.body)?;
        }
        for envelope in &removed {
            self.log.delete_header(envelope.born)?;
        }
        if upkeep {
            self.upkeep()?;
        }
        self.log.commit()?;
        if !changed {
            self.marks = row.settled;
            return Ok(());
        }
        let nonce = row.nonce;
        self.shared.outbox.push(seq, nonce, row.take_records());
        self.graves
            .extend(removed.into_iter().map(|envelope| Grave {
                born: envelope.born,
                holders: envelope.holders,
            }));
        let envelopes = u64::try_from(self.index.len()).unwrap_or(u64::MAX);
        self.shared.envelopes.store(envelopes, Ordering::Relaxed);
        Ok(())
    }

    // ── upkeep ──────────────────────────────────────────────────────────────────────────────

    /// The first row that the outbox still needs.
    fn owed_from(&self) -> u64 {
        self.shared.outbox.watermark() + 1
    }

    /// Whether a start would read more than it should.
    fn log_is_long(&self) -> bool {
        let envelopes = u64::try_from(self.index.len()).unwrap_or(u64::MAX);
        let wide = self.limits.log_bytes_per_envelope.saturating_mul(envelopes);
        self.log.bytes() > self.limits.log_bytes_max.max(wide)
    }

    fn upkeep_due(&self) -> bool {
        if !self.graves.is_empty() {
            return true;
        }
        if !self.log_is_long() {
            return false;
        }
        let owed_from = self.owed_from();
        let dirty = self.index.oldest_dirty();
        dirty.is_some_and(|oldest| oldest < owed_from)
            || self
                .log
                .can_truncate(owed_from.min(dirty.unwrap_or(u64::MAX)))
    }

    fn upkeep(&mut self) -> rusqlite::Result<()> {
        if let Some(grave) = self.graves.front_mut() {
            let keep = grave.holders.len().saturating_sub(BURIED_HOLDERS_MAX);
            grave.holders.truncate(keep);
            let parts = self.log.delete_parts(grave.born, BURIED_PARTS_MAX)?;
            if keep == 0 && parts == 0 {
                self.graves.pop_front();
            }
        }
        let owed_from = self.owed_from();
        if self.log_is_long() {
            let through = self.log.last_seq();
            snapshot::save_slice(&mut self.index, &self.log, through, owed_from)?;
            let dirty = self.index.oldest_dirty().unwrap_or(u64::MAX);
            self.log.truncate_one(owed_from.min(dirty))?;
        }
        Ok(())
    }

    /// Writes the marks that wait, so that a clean restart offers nothing twice.
    fn end(&mut self) -> rusqlite::Result<()> {
        if !self.marks.is_empty() {
            let seq = self.log.last_seq() + 1;
            let mut row = Row {
                nonce: rand::random(),
                at: self.clock.now(),
                changes: Vec::new(),
                settled: std::mem::take(&mut self.marks),
            };
            row.settled.sort_unstable();
            encode(seq, &row, &mut self.body);
            self.log.begin()?;
            self.log.append(seq, &self.body)?;
            self.log.commit()?;
        }
        self.log.fold()
    }
}
