//! The two lanes to the writer: grabs, and everything else.
//!
//! # Bounds
//! Full lanes shed. A turn takes what has arrived, up to [`TURN_GRABS_MAX`] grabs and
//! [`TURN_COST_MAX`] of other work, so that neither lane starves the other.
//!
//! # Ordering
//! First come, first served within a lane. What is taken together is decided, committed and
//! answered together, grabs first.
//!
//! # If it crashes here
//! What waits was not answered; its callers repeat.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::writer::Desk;
use crate::domain::grab::{Grab, GrabReply};
use crate::hot::HotError;

/// Grabs of one turn: a row of 4,096 is 120 KiB and takes about 2 ms to decide and write, which
/// is what one fsync costs on a common disk. The last call may exceed it by less than 1,000.
pub(super) const TURN_GRABS_MAX: usize = 4_096;
/// Elements of other work in one turn (a share loaded, an entry settled, an envelope seen): at
/// 0.1–0.3 µs each they stay below the 5 ms that a slice may take.
pub(super) const TURN_COST_MAX: usize = 16_384;
/// Calls other than grabs that may wait: 4,096 chunks of 1,000 shares hold 32 MiB.
pub(super) const CALLS_WAITING_MAX: usize = 4_096;

/// Grabs that are decided together.
pub(super) struct GrabCall {
    pub grabs: Vec<Grab>,
    pub reply: oneshot::Sender<Result<Vec<GrabReply>, HotError>>,
}

/// Tells the caller, once the batch is durable or never will be.
pub(super) type Answer = Box<dyn FnOnce(Result<(), HotError>) + Send>;

/// Any other call: acts on the index, and answers later.
pub(super) struct Call {
    pub cost: usize,
    pub act: Box<dyn FnOnce(&mut Desk<'_>) -> Answer + Send>,
}

/// What a turn takes.
#[derive(Default)]
pub(super) struct Turn {
    pub grabs: Vec<GrabCall>,
    pub calls: Vec<Call>,
}

pub(super) struct Queue {
    lanes: Mutex<Lanes>,
    arrived: Condvar,
    grabs_max: usize,
}

#[derive(Default)]
struct Lanes {
    grabs: VecDeque<GrabCall>,
    grabs_waiting: usize,
    calls: VecDeque<Call>,
    writer_sleeps: bool,
    closed: Option<HotError>,
}

impl Queue {
    /// At most `grabs_max` grabs may wait.
    pub fn new(grabs_max: usize) -> Self {
        Self {
            lanes: Mutex::default(),
            arrived: Condvar::new(),
            grabs_max,
        }
    }

    /// Grabs that wait.
    pub fn grabs_waiting(&self) -> usize {
        self.lanes.lock().grabs_waiting
    }

    /// Puts grabs into their lane.
    pub fn put_grabs(&self, call: GrabCall) -> Result<(), HotError> {
        let mut lanes = self.lanes.lock();
        if let Some(why) = &lanes.closed {
            return Err(why.clone());
        }
        if lanes.grabs_waiting.saturating_add(call.grabs.len()) > self.grabs_max {
            return Err(HotError::Shed);
        }
        lanes.grabs_waiting += call.grabs.len();
        lanes.grabs.push_back(call);
        self.wake(lanes);
        Ok(())
    }

    /// Puts another call into its lane.
    pub fn put_call(&self, call: Call) -> Result<(), HotError> {
        let mut lanes = self.lanes.lock();
        if let Some(why) = &lanes.closed {
            return Err(why.clone());
        }
        if lanes.calls.len() >= CALLS_WAITING_MAX {
            return Err(HotError::Shed);
        }
        lanes.calls.push_back(call);
        self.wake(lanes);
        Ok(())
    }

    fn wake(&self, mut lanes: parking_lot::MutexGuard<'_, Lanes>) {
        let sleeps = std::mem::take(&mut lanes.writer_sleeps);
        drop(lanes);
        if sleeps {
            self.arrived.notify_one();
        }
    }

    /// Lets nobody in any more, and says why. The first reason stands.
    pub fn close(&self, why: HotError) {
        let mut lanes = self.lanes.lock();
        lanes.closed.get_or_insert(why);
        self.wake(lanes);
    }

    /// Takes what has arrived, waiting for the first if told to. `None`: closed, and empty.
    pub fn take(&self, wait: bool) -> Option<Turn> {
        let mut lanes = self.lanes.lock();
        while lanes.grabs.is_empty() && lanes.calls.is_empty() {
            if lanes.closed.is_some() {
                return None;
            }
            if !wait {
                return Some(Turn::default());
            }
            lanes.writer_sleeps = true;
            self.arrived.wait(&mut lanes);
        }
        Some(lanes.turn())
    }
}

impl Lanes {
    fn turn(&mut self) -> Turn {
        let mut turn = Turn::default();
        let mut grabs = 0;
        while grabs < TURN_GRABS_MAX {
            let Some(call) = self.grabs.pop_front() else {
                break;
            };
            grabs += call.grabs.len();
            turn.grabs.push(call);
        }
        self.grabs_waiting = self.grabs_waiting.saturating_sub(grabs);
        let mut cost = 0;
        while cost < TURN_COST_MAX {
            let Some(call) = self.calls.pop_front() else {
                break;
            };
            cost += call.cost;
            turn.calls.push(call);
        }
        turn
    }
}
