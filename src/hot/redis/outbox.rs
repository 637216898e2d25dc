//! What is owed to the ledger: read from the head, looked through, deleted by id and nonce.
//!
//! # Bounds
//! A call of `settled` takes [`PAIRS_PER_CALL_MAX`] pairs; a look through outboxes reads pages of
//! 128 KB or 250 entries, one of each partition and [`LOOKS_MAX`] more of all together: with a longer
//! backlog the caller tries again later.
//!
//! # Ordering
//! Entries that were read under an epoch fit the envelopes of that epoch, whenever they were
//! written: an entry and the grants in it were written in one call, and lost together if at all.

use std::collections::HashMap;

use redis::Value;

use super::acked::Head;
use super::core::{Call, Core, Place};
use super::layout::{Meta, entry_of, id_of, number_of};
use super::lifecycle::unexpected;
use super::reply::{self, Reply};
use crate::clock::{StoreClock, timer_now};
use crate::domain::envelope::HotState;
use crate::domain::grab::{OutboxEntry, OutboxRecord};
use crate::domain::id::{EnvelopeId, Epoch, Partition, UnixMs};
use crate::hot::{Epochs, HotError, HotVitals};
use crate::telemetry::Seldom;

/// Pairs of one call of `settled_1`: each reads an entry.
const PAIRS_PER_CALL_MAX: usize = 500;
/// Pages of a look beside the first one of each partition: 5 MB, some 170,000 grabs of a burst, or
/// 10,000 entries. Each takes Redis below a millisecond for one name or id.
const LOOKS_MAX: usize = 40;
/// Entries that were set aside and that are looked at: people look before there are ten.
const POISON_LOOKED_AT_MAX: usize = 1_000;
/// Envelopes that one call removes, and that one look through the outbox looks for.
const REMOVED_PER_CALL_MAX: usize = 100;

/// Pages without a readable entry that one look at an outbox reads on behind.
const UNREADABLE_PAGES_MAX: usize = 100;
/// Lines about keys of others, one a try otherwise.
static UNSAID: Seldom = Seldom::new();

/// What a look through outboxes found.
#[derive(Debug, Default)]
pub struct Found {
    /// In whole entries: those of others, too.
    pub records: Vec<OutboxRecord>,
    /// Entries that hold what was looked for, and that nobody can read.
    unreadable: Vec<Vec<u8>>,
}

impl Found {
    /// Whether something here is, or may be, of this envelope.
    fn names(&self, id: EnvelopeId) -> bool {
        let needle = id.to_bytes();
        self.records.iter().any(|record| record.envelope == id)
            || self.unreadable.iter().any(|entry| holds(entry, &needle))
    }
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

impl Core {
    /// Which of these partitions have an outbox that may hold something.
    pub async fn owing(&self, of: Vec<Partition>) -> Result<Vec<Partition>, HotError> {
        let Some(first) = of.first().copied() else {
            return Ok(of);
        };
        let mut call = Call::reading(self, "owing_1", first);
        for partition in &of {
            if *partition != first {
                call = call.key(self.keys.epoch(*partition));
            }
            call = call.key(self.keys.outbox(*partition));
            call = call
                .number(partition.index())
                .number(self.epoch(*partition).0);
        }
        let (code, items) = self.ask(&call).await?;
        // Who reads the outbox hears which of them stands in another epoch.
        if code != Reply::Ok {
            return Ok(of);
        }
        if items.len() != of.len() {
            return Err(reply::nonsense(&Value::Array(items)));
        }
        let owing = of.iter().zip(&items);
        let owing = owing.filter(|(_, something)| **something != Value::Int(0));
        Ok(owing.map(|(partition, _)| *partition).collect())
    }

    /// The head of a partition's outbox. What nobody can read is set aside, so that it stops
    /// nobody else.
    pub async fn outbox(
        &self,
        partition: Partition,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, HotError> {
        let mut from = after.map_or_else(|| "-".to_owned(), |after| format!("({}", id_of(after)));
        let mut sets_aside = true;
        for _ in 0..UNREADABLE_PAGES_MAX {
            let (entries, last) = self
                .readable(partition, (from, limit), &mut sets_aside)
                .await?;
            match last {
                // What nobody can read, and nobody can set aside, hides nothing that is behind it.
                Some(last) if entries.is_empty() => from = format!("({last}"),
                _ => return Ok(entries),
            }
        }
        Ok(Vec::new())
    }

    /// A page of the outbox without what nobody can read, and the id of its last entry. `sets_aside`: until the
    /// first that can't be.
    async fn readable(
        &self,
        partition: Partition,
        (from, limit): (String, usize),
        sets_aside: &mut bool,
    ) -> Result<(Vec<OutboxEntry>, Option<String>), HotError> {
        let call = Call::reading(self, "outbox_1", partition)
            .key(self.keys.outbox(partition))
            .under(self.epoch(partition))
            .arg(from)
            .number(limit.max(1));
        let (_, items) = self.call(call).await?;
        let (mut entries, mut last) = (Vec::with_capacity(items.len() / 2), None);
        for pair in items.chunks(2) {
            let [id, bytes] = pair else {
                return Err(reply::nonsense(&Value::Nil));
            };
            let id = std::str::from_utf8(reply::bytes(id)?).unwrap_or_default();
            match entry_of(id, reply::bytes(bytes)?) {
                Some(entry) => entries.push(entry),
                None if *sets_aside => *sets_aside = self.set_aside(partition, id).await?,
                None => {}
            }
            last = Some(id.to_owned());
        }
        Ok((entries, last))
    }

    /// Answers whether it could be.
    async fn set_aside(&self, partition: Partition, id: &str) -> Result<bool, HotError> {
        let call = Call::writing(self, "set_aside_1", partition)
            .key(self.keys.outbox(partition))
            .key(self.keys.poison(partition))
            .under(self.epoch(partition))
            .arg(id);
        let (code, items) = self.call(call).await?;
        let key = self.keys.poison(partition);
        if code == Reply::Damaged {
            if let Some(unsaid) = UNSAID.say(timer_now()) {
                tracing::error!(
                    entry = id,
                    key,
                    unsaid,
                    "an outbox entry that nobody can read can't be set aside, since another program \
                     writes to the key: remove it"
                );
            }
            return Ok(false);
        }
        let so_far = items.first().map_or(Ok(0), reply::number)?;
        tracing::error!(
            entry = id,
            key,
            so_far,
            "an outbox entry that nobody can read was set aside"
        );
        crate::telemetry::metrics::outbox_unreadable();
        Ok(true)
    }

    /// Deletes entries by (id, nonce). Answers the watermark.
    pub async fn settled(
        &self,
        epoch: Epoch,
        partition: Partition,
        entries: &[(u64, u64)],
    ) -> Result<u64, HotError> {
        self.stands(partition, epoch)?;
        let mut watermark = 0;
        // Without a pair the call still tells the watermark.
        let none: &[(u64, u64)] = &[];
        let chunks = entries.chunks(PAIRS_PER_CALL_MAX);
        for pairs in chunks.chain(entries.is_empty().then_some(none)) {
            let mut call = Call::writing(self, "settled_1", partition)
                .key(self.keys.outbox(partition))
                .under(epoch);
            for (id, nonce) in pairs {
                call = call.arg(id_of(*id)).arg(nonce.to_le_bytes());
            }
            let (_, items) = self.call(call).await?;
            let number = |item: Option<&Value>| -> Result<Option<u64>, HotError> {
                let bytes = item.map_or(Ok(&[][..]), reply::bytes)?;
                Ok(std::str::from_utf8(bytes).ok().and_then(number_of))
            };
            self.acked.settled(pairs.iter().map(|(_, nonce)| *nonce));
            watermark = match (number(items.first())?, number(items.get(1))?) {
                (Some(first), _) => first.saturating_sub(1),
                (None, Some(last)) => last,
                (None, None) => 0,
            };
        }
        Ok(watermark)
    }

    /// What the outboxes of these partitions hold with one of these byte strings in it. The caller looks
    /// at each record: another name may hold the string as well.
    pub async fn find(
        &self,
        partitions: impl Iterator<Item = Partition>,
        needles: &[Vec<u8>],
    ) -> Result<Found, HotError> {
        let mut found = Found::default();
        let mut open: Vec<_> = partitions
            .map(|partition| (partition, b"-".to_vec()))
            .collect();
        let mut looks_left = open.len() + LOOKS_MAX;
        while !open.is_empty() {
            looks_left = looks_left.checked_sub(open.len()).ok_or(HotError::Shed)?;
            let calls = open.iter().map(|(partition, from)| {
                let call = Call::reading(self, "find_1", *partition)
                    .key(self.keys.outbox(*partition))
                    .under(self.epoch(*partition))
                    .arg(from.as_slice());
                needles
                    .iter()
                    .fold(call, |call, needle| call.arg(needle.as_slice()))
            });
            let pages = self.call_all(calls.collect()).await?;
            let mut more = Vec::new();
            for ((partition, _), (_, items)) in open.iter().zip(pages) {
                let Some((stopped, entries)) = items.split_first() else {
                    return Err(reply::nonsense(&Value::Nil));
                };
                for bytes in entries {
                    let bytes = reply::bytes(bytes)?;
                    // Only the records matter, so any id will do.
                    match entry_of("0-0", bytes) {
                        Some(entry) => found.records.extend(entry.records),
                        None => found.unreadable.push(bytes.to_vec()),
                    }
                }
                let stopped = reply::bytes(stopped)?;
                if !stopped.is_empty() {
                    more.push((*partition, stopped.to_vec()));
                }
            }
            open = more;
        }
        Ok(found)
    }

    /// Whether a record of this envelope waits, for the ledger or, set aside or about to be, for
    /// people. One that nobody can read counts only where the grant that it owed may be lost here.
    pub async fn owes(&self, id: EnvelopeId) -> Result<bool, HotError> {
        for at in self.lies_in(id).await? {
            if self.owes_in(at).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The same of what lies in one place.
    pub(super) async fn owes_in(&self, at: Place) -> Result<bool, HotError> {
        let (id, needle) = (at.id, at.id.to_bytes());
        let one = std::iter::once(at.partition);
        let found = self.find(one, &[needle.to_vec()]).await?;
        if found.records.iter().any(|record| record.envelope == id) {
            return Ok(true);
        }
        let unread = found.names(id) || self.poisoned(at.partition, &needle).await?;
        Ok(unread && !self.has_its_grants(at).await?)
    }

    /// Whether an entry that was set aside may be of this envelope.
    async fn poisoned(&self, partition: Partition, needle: &[u8]) -> Result<bool, HotError> {
        let mut poison = redis::cmd("LRANGE");
        poison
            .arg(self.keys.poison(partition))
            .arg(0)
            .arg(POISON_LOOKED_AT_MAX - 1);
        let Some(Value::Array(entries)) = self.read_all(vec![poison]).await?.pop() else {
            return Ok(false);
        };
        let names = |entry: &Value| reply::bytes(entry).is_ok_and(|bytes| holds(bytes, needle));
        Ok(entries.len() == POISON_LOOKED_AT_MAX || entries.iter().any(names))
    }

    /// Whether the grabs hash of an envelope is whole in this epoch. Then it has every grant that was
    /// ever made here, since a grant is written in the call that owes it.
    async fn has_its_grants(&self, at: Place) -> Result<bool, HotError> {
        let (epoch, own) = (self.epoch(at.partition), self.own(at));
        let call = Call::reading(self, "view_1", at.partition)
            .key(own.grabs)
            .key(own.shares)
            .key(own.phrase)
            .under(epoch)
            .number(0)
            // The shares are not asked for.
            .number(u32::MAX);
        let (_, items) = self.call(call).await?;
        let meta = items.first().map_or(Ok(&[][..]), reply::bytes)?;
        Ok(Meta::unpack(meta).is_some_and(|meta| {
            // A tombstone has no share and was never rebuilt: it does not know who had one.
            let tombstone = meta.length == 0 && !meta.compact;
            meta.epoch == epoch && meta.state != HotState::Funding && !tombstone
        }))
    }

    /// Forgets what is over and owes nothing.
    pub async fn remove(&self, under: &Epochs, ids: Vec<EnvelopeId>) -> Result<(), HotError> {
        let mut firsts = std::collections::BTreeMap::<Partition, Vec<EnvelopeId>>::new();
        let mut others = firsts.clone();
        // Those that nobody has seen yet, in one look.
        self.terms_of(&ids).await?;
        for id in ids {
            for at in self.lies_in(id).await? {
                let of = match at == self.first(id) {
                    true => &mut firsts,
                    false => &mut others,
                };
                of.entry(at.partition).or_default().push(id);
            }
        }
        // The first one last: by it the others are found.
        for (partition, ids) in others.into_iter().chain(firsts) {
            let epoch = self.stands_in(partition, under)?;
            for some in ids.chunks(REMOVED_PER_CALL_MAX) {
                let needles: Vec<_> = some.iter().map(|id| id.to_bytes().to_vec()).collect();
                let owed = self.find(std::iter::once(partition), &needles).await?;
                let mut call = Call::writing(self, "remove_1", partition)
                    .key(self.keys.index(partition))
                    .under(epoch);
                // What is over gets no new record, so this look is conclusive for it; what is not
                // over stays.
                for id in some.iter().filter(|id| !owed.names(**id)) {
                    let own = self.keys.envelope(partition, *id);
                    self.acked.forgotten(*id);
                    call = call
                        .key(own.grabs)
                        .key(own.shares)
                        .key(own.terms)
                        .key(own.list)
                        .key(own.phrase)
                        .arg(id.to_bytes());
                }
                match self.call(call).await? {
                    (Reply::Ok, _) => {}
                    (code, items) => return Err(unexpected(code, items)),
                }
                for id in some {
                    let id = *id;
                    self.sums.remove(&Place { partition, id });
                }
            }
        }
        Ok(())
    }

    /// By the clock of Redis, as its functions see it.
    async fn now(&self) -> Result<Option<UnixMs>, HotError> {
        let offset_ms = match self.clock.for_store() {
            StoreClock::Own { offset_ms } => offset_ms,
            StoreClock::Standing(at) => return Ok(Some(at)),
        };
        let time = self.run_all(vec![redis::cmd("TIME")]).await?.pop();
        let time = time.unwrap_or(Value::Nil);
        let told: Result<(i64, i64), _> = redis::from_redis_value_ref(&time);
        let (seconds, micros) = told.map_err(|_| reply::nonsense(&time))?;
        Ok(Some(UnixMs(seconds * 1_000 + micros / 1_000 + offset_ms)))
    }

    /// Backlog and size of all partitions.
    pub async fn vitals(&self) -> Result<HotVitals, HotError> {
        let before = self.acked.numbered();
        let mut heads = HashMap::new();
        let calls = self.keys.count().all().map(|partition| {
            Call::reading(self, "vitals_1", partition)
                .key(self.keys.outbox(partition))
                .key(self.keys.index(partition))
                .under(self.epoch(partition))
        });
        let found = self.call_all(calls.collect()).await?;
        let mut vitals = HotVitals {
            now: self.now().await?,
            ..HotVitals::default()
        };
        for (partition, (_, items)) in self.keys.count().all().zip(found) {
            let [records, at, envelopes] = &items[..] else {
                return Err(reply::nonsense(&Value::Array(items)));
            };
            let count = |value| reply::number(value).map(|n| u64::try_from(n).unwrap_or(0));
            vitals.unsettled_records += count(records)?;
            vitals.envelopes += count(envelopes)?;
            let at = UnixMs(reply::number(at)?);
            if at.0 > 0 {
                heads.insert(partition, Head::At(at));
            } else if count(records)? == 0 {
                heads.insert(partition, Head::Empty);
            }
            if at.0 > 0 {
                let oldest = vitals
                    .oldest_unsettled_at
                    .map_or(at, |oldest| oldest.min(at));
                vitals.oldest_unsettled_at = Some(oldest);
            }
        }
        self.acked.passed(before, &heads);
        Ok(vitals)
    }
}
