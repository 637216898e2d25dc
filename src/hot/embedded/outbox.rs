//! What the store owes to the ledger: the committed rows with wins or declines, until settled.
//!
//! # Shape
//! The writer pushes after the commit and marks what is settled; drainers and readers take short
//! looks beside it. An entry's id is its row's number in the log.
//!
//! # Bounds
//! `UNSETTLED_RECORDS_MAX` (in the door) sheds grabs before memory ends.
//!
//! # If it crashes here
//! A settled mark becomes durable with the next row that is written, and at a clean end. Until
//! then a restart offers the entry again, and the ledger finds that it has it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::domain::grab::{OutboxEntry, OutboxRecord};
use crate::domain::id::{Epoch, UnixMs};

#[derive(Default)]
pub(super) struct Outbox {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By id, ascending. `None`: settled, behind one that is not.
    entries: VecDeque<(u64, Option<Arc<OutboxEntry>>)>,
    records: usize,
    /// Every entry up to this one is settled.
    watermark: u64,
}

impl Outbox {
    /// Takes a committed row in. A row without debts moves the watermark if nothing waits.
    pub fn push(&self, id: u64, nonce: u64, records: Vec<OutboxRecord>) {
        let mut inner = self.inner.lock();
        if records.is_empty() {
            inner.advance(id);
            return;
        }
        inner.advance(id.saturating_sub(1));
        inner.records += records.len();
        let entry = OutboxEntry {
            id,
            nonce,
            epoch: Epoch::FIRST,
            records,
        };
        inner.entries.push_back((id, Some(Arc::new(entry))));
    }

    /// Entries above `after`, up to the one that reaches `limit` records.
    pub fn head(&self, after: Option<u64>, limit: usize) -> Vec<Arc<OutboxEntry>> {
        let inner = self.inner.lock();
        let start = after.map_or(0, |after| {
            inner.entries.partition_point(|(id, _)| *id <= after)
        });
        let mut found = Vec::new();
        let mut records = 0_usize;
        let standing = inner.entries.range(start..).filter_map(|(_, e)| e.as_ref());
        for entry in standing {
            if records >= limit {
                break;
            }
            records = records.saturating_add(entry.records.len());
            found.push(Arc::clone(entry));
        }
        found
    }

    /// At most `entries_max` entries above `after`, settled ones left out, and the id from which
    /// to go on; `None` at the end. A reader of everything takes it by windows, so that the writer
    /// never waits for him.
    pub fn window(&self, after: u64, entries_max: usize) -> (Vec<Arc<OutboxEntry>>, Option<u64>) {
        let inner = self.inner.lock();
        let start = inner.entries.partition_point(|(id, _)| *id <= after);
        let window = || inner.entries.range(start..).take(entries_max);
        let next = window().next_back().map(|(id, _)| *id);
        (window().filter_map(|(_, e)| e.clone()).collect(), next)
    }

    /// Deletes entries by (id, nonce). Answers the ids of those that matched and the watermark.
    pub fn settle(&self, pairs: &[(u64, u64)]) -> (Vec<u64>, u64) {
        let mut inner = self.inner.lock();
        let mut settled = Vec::with_capacity(pairs.len());
        for (id, nonce) in pairs {
            let Ok(place) = inner.entries.binary_search_by_key(id, |(id, _)| *id) else {
                continue;
            };
            let (_, slot) = &mut inner.entries[place];
            if slot.as_ref().is_none_or(|entry| entry.nonce != *nonce) {
                continue;
            }
            let count = slot.take().map_or(0, |entry| entry.records.len());
            inner.records = inner.records.saturating_sub(count);
            settled.push(*id);
        }
        inner.drop_settled();
        (settled, inner.watermark)
    }

    /// Every entry up to this one is settled.
    pub fn watermark(&self) -> u64 {
        self.inner.lock().watermark
    }

    /// Records that wait for the ledger.
    pub fn records(&self) -> usize {
        self.inner.lock().records
    }

    /// When the oldest of them was granted.
    pub fn oldest_at(&self) -> Option<UnixMs> {
        let inner = self.inner.lock();
        let mut entries = inner.entries.iter().filter_map(|(_, e)| e.as_ref());
        Some(entries.next()?.records.first()?.grant.at)
    }
}

impl Inner {
    fn advance(&mut self, newest: u64) {
        if self.entries.is_empty() {
            self.watermark = newest;
        }
    }

    fn drop_settled(&mut self) {
        while let Some((id, None)) = self.entries.front() {
            self.watermark = *id;
            self.entries.pop_front();
        }
        if let Some((id, _)) = self.entries.front() {
            // Rows without debts lie between: what is owed begins at the first that waits.
            self.watermark = self.watermark.max(id.saturating_sub(1));
        }
    }
}
