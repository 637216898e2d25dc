//! A hot store of several partitions, each of which can be lost by itself: what lies there, who stands there,
//! and what a loss takes. Dealt envelopes live here.
//!
//! # Shape
//! | file | holds |
//! |---|---|
//! | `striped_law` | what `library.lua` does in one partition, by the same table |
//! | `striped_door`, `striped_repair` | the door of a process: its calls, step by step |
//! | `striped_watch` | what was granted and told: the promises, at the moment they are broken |
//!
//! Who has which share after a repair, and what stripes say together, is told by the production's own functions
//! (`hot::redis::law`).

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;
use red_envelope::domain::envelope::Terms;
use red_envelope::domain::grab::{HeldShare, OutboxEntry, OutboxRecord};
use red_envelope::domain::id::{EnvelopeId, Epoch, Partition, PartitionCount, PersonId};
use red_envelope::domain::stripes::{Stripe, StripeCount, place};
use red_envelope::hot::redis::law::{Fields, Meta};
use red_envelope::hot::{Epochs, HotError, OUTBOX_RECORDS_PER_CALL_MAX};

use crate::stores::Rule;
use crate::striped_watch::Watch;

/// As many as an envelope may have stripes here.
pub const PARTITIONS: u16 = 4;
/// States of a partition that a replica may be behind.
const OLDER_MAX: usize = 8;

/// How many there are.
pub fn partitions() -> PartitionCount {
    PartitionCount::new(PARTITIONS).expect("a store has a few")
}

/// Every place of an envelope, the first stripe's first.
pub fn places(id: EnvelopeId, of: StripeCount) -> Vec<(Stripe, Partition)> {
    let at = |stripe| (stripe, place(id, stripe, of, partitions()));
    of.all().map(at).collect()
}

/// The sum of the epochs of an envelope's partitions.
pub fn sum_of(under: &Epochs, all: &[(Stripe, Partition)]) -> u64 {
    all.iter()
        .map(|(_, partition)| under.of(*partition).0)
        .sum()
}

/// A stripe, as the keys of one envelope in one partition hold it.
#[derive(Clone)]
pub struct Lies {
    pub terms: Arc<Terms>,
    pub meta: Meta,
    /// By grabber.
    pub fields: Fields,
    /// Packed.
    pub shares: Vec<u8>,
}

impl Lies {
    /// Who has a share here.
    pub fn held(&self) -> impl Iterator<Item = HeldShare> {
        let held = |(name, value): (&Vec<u8>, &Vec<u8>)| {
            self.meta.held(std::str::from_utf8(name).ok()?, value)
        };
        self.fields.iter().filter_map(held)
    }
}

/// All that a partition's keys hold.
#[derive(Clone, Default)]
pub struct Data {
    epoch: Option<Epoch>,
    pub stripes: BTreeMap<EnvelopeId, Lies>,
    last: u64,
    pub entries: Vec<OutboxEntry>,
}

impl Data {
    /// Whether a record of this envelope waits here.
    pub fn owes(&self, id: EnvelopeId) -> bool {
        let mut records = self.entries.iter().flat_map(|entry| &entry.records);
        records.any(|record| record.envelope == id)
    }

    /// Whether it knows of this grant.
    fn has(&self, id: EnvelopeId, held: &HeldShare) -> bool {
        let mut records = self.entries.iter().flat_map(|entry| &entry.records);
        let owed = records.any(|record| {
            let same = (record.envelope, &record.grabber) == (id, &held.grabber);
            same && record.grant == held.grant
        });
        let mut here = self.stripes.get(&id).into_iter().flat_map(Lies::held);
        owed || here.any(|other| other == *held)
    }
}

/// Who serves a partition.
pub struct Server {
    pub data: Data,
    /// In which epoch it may grant: in memory only.
    fence: Option<Epoch>,
    /// Which process it is.
    life: u64,
    /// What a replica of it may have instead.
    older: Vec<Data>,
}

/// What a process that registers a partition finds there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub life: u64,
    pub epoch: Option<Epoch>,
    pub fence: Option<Epoch>,
}

pub struct Striped {
    servers: Vec<Server>,
    nonces: StdRng,
    /// An answer that was heard is never lost: replicas have it.
    pub keeps_told: bool,
    /// Its clock went back at some time.
    pub clock_jumped: bool,
    pub watch: Watch,
    /// Where a repair has read what it will rebuild, how often.
    pub reads: BTreeMap<Partition, u32>,
    /// Which rule is off.
    pub off: Option<Rule>,
}

impl Striped {
    pub fn new(nonces: StdRng, keeps_told: bool, off: Option<Rule>) -> Self {
        let server = |_| Server {
            data: Data {
                epoch: Some(Epoch::FIRST),
                ..Data::default()
            },
            fence: Some(Epoch::FIRST),
            life: 0,
            older: Vec::new(),
        };
        Self {
            servers: partitions().all().map(server).collect(),
            nonces,
            keeps_told,
            clock_jumped: false,
            watch: Watch::default(),
            reads: BTreeMap::new(),
            off,
        }
    }

    pub fn keeps(&self, rule: Rule) -> bool {
        self.off != Some(rule)
    }

    pub fn kept_in(&self, partition: Partition) -> &Data {
        &self.servers[usize::from(partition.index())].data
    }

    pub fn lies(&self, partition: Partition, id: EnvelopeId) -> Option<&Lies> {
        self.kept_in(partition).stripes.get(&id)
    }

    fn server(&mut self, partition: Partition) -> &mut Server {
        &mut self.servers[usize::from(partition.index())]
    }

    /// Whether the caller's epoch is the one that stands, in memory and in the data.
    pub fn stands(&self, partition: Partition, epoch: Epoch) -> Result<(), HotError> {
        let server = &self.servers[usize::from(partition.index())];
        let fence = server
            .fence
            .filter(|fence| server.data.epoch == Some(*fence));
        match fence == Some(epoch) {
            true => Ok(()),
            false => Err(HotError::Epoch(fence.unwrap_or(Epoch(0)))),
        }
    }

    /// To be written to, under an epoch.
    pub fn write(&mut self, partition: Partition, epoch: Epoch) -> Result<&mut Data, HotError> {
        self.stands(partition, epoch)?;
        let server = self.server(partition);
        if server.older.len() >= OLDER_MAX {
            server.older.remove(0);
        }
        server.older.push(server.data.clone());
        Ok(&mut server.data)
    }

    /// An answer to a grab was heard: no replica is behind it any more.
    pub fn told(&mut self, partition: Partition) {
        if self.keeps_told {
            self.server(partition).older.clear();
        }
    }

    /// A partition is lost and comes back empty, or as one of its replicas had it: which one, `among` says.
    pub fn lose(&mut self, partition: Partition, among: impl FnOnce(usize) -> usize) {
        let keeps_told = self.keeps_told;
        let server = self.server(partition);
        let mut candidates = std::mem::take(&mut server.older);
        candidates.push(server.data.clone());
        // What the books have is never lost.
        if !keeps_told || server.data.entries.is_empty() {
            candidates.push(Data::default());
        }
        let which = among(candidates.len());
        server.data = candidates.swap_remove(which);
        server.fence = None;
        server.life += 1;
    }

    /// The same, as it was when so many shares of a stripe were taken there; `None`: empty.
    pub fn lose_as(&mut self, partition: Partition, id: EnvelopeId, taken: Option<u32>) {
        let older = &self.server(partition).older;
        let was = |data: &Data| data.stripes.get(&id).map(|lies| lies.meta.next) == taken;
        let which = match taken {
            Some(_) => older.iter().rposition(was).expect("it was so"),
            None => older.len() + 1,
        };
        self.lose(partition, |_| which);
    }

    /// What a repair reads.
    pub fn read(&mut self, partition: Partition, id: EnvelopeId) -> Option<Lies> {
        *self.reads.entry(partition).or_default() += 1;
        self.lies(partition, id).cloned()
    }

    /// How often one has.
    pub fn reads_of(&self, partition: Partition) -> u32 {
        self.reads.get(&partition).copied().unwrap_or(0)
    }

    /// Who stands where.
    pub fn found(&self) -> Vec<Found> {
        let found = |server: &Server| Found {
            life: server.life,
            epoch: server.data.epoch,
            fence: server.fence,
        };
        self.servers.iter().map(found).collect()
    }

    /// As `register_2`: whether it grants under this epoch now.
    pub fn register(&mut self, partition: Partition, (seen, epoch): (Found, Epoch)) -> bool {
        let server = self.server(partition);
        let stored = server.data.epoch;
        let same = stored == seen.epoch || stored == Some(epoch);
        if server.life != seen.life || !same || stored > Some(epoch) {
            return false;
        }
        server.data.epoch = Some(epoch);
        server.fence = Some(epoch);
        true
    }

    /// The books will pay nothing any more that was read before this loss: what neither they nor the partition
    /// have is lost.
    pub fn settle_losses(
        &mut self,
        partition: Partition,
        paid: impl Fn(EnvelopeId, &HeldShare) -> bool,
    ) {
        let data = &self.servers[usize::from(partition.index())].data;
        let survives = |id, held: &HeldShare| data.has(id, held) || paid(id, held);
        self.watch.lose(partition, survives);
    }

    /// A win and its debt.
    pub fn owe(&mut self, partition: Partition, epoch: Epoch, record: OutboxRecord) {
        let nonce = self.nonces.random();
        let data = &mut self.server(partition).data;
        data.last += 1;
        data.entries.push(OutboxEntry {
            id: data.last,
            nonce,
            epoch,
            records: vec![record],
        });
    }

    pub fn outbox(
        &self,
        partition: Partition,
        after: Option<u64>,
        limit: usize,
    ) -> Vec<OutboxEntry> {
        let entries = self.kept_in(partition).entries.iter();
        let above = entries.filter(|entry| Some(entry.id) > after);
        let limit = limit.min(OUTBOX_RECORDS_PER_CALL_MAX);
        above.take(limit).cloned().collect()
    }

    pub fn settled(
        &mut self,
        (partition, epoch): (Partition, Epoch),
        pairs: &[(u64, u64)],
    ) -> Result<u64, HotError> {
        let data = self.write(partition, epoch)?;
        data.entries
            .retain(|entry| !pairs.contains(&(entry.id, entry.nonce)));
        let first = data.entries.first();
        Ok(first.map_or(data.last, |entry| entry.id - 1))
    }

    /// Where each stripe of an envelope stands: for who reads of a broken promise.
    pub fn tell(&self, id: EnvelopeId) -> String {
        let mut words = String::new();
        for server in &self.servers {
            let lies = server.data.stripes.get(&id);
            let meta = lies.map(|lies| (&lies.meta, lies.fields.len()));
            let (epochs, owes) = ((server.fence, server.data.epoch), server.data.owes(id));
            words += &format!("\n  {epochs:?}, owes: {owes}, {meta:?}");
        }
        words
    }

    /// Envelopes of which something is here.
    pub fn envelopes(&self, after: Option<EnvelopeId>, limit: usize) -> Vec<EnvelopeId> {
        let all = self
            .servers
            .iter()
            .flat_map(|server| server.data.stripes.keys());
        let mut above: Vec<_> = all.copied().filter(|id| Some(*id) > after).collect();
        above.sort_unstable();
        above.dedup();
        above.truncate(limit);
        above
    }

    /// What somebody has of an envelope, wherever it stands.
    pub fn held(&self, who: &PersonId, id: EnvelopeId) -> Option<HeldShare> {
        let all = self.servers.iter().filter_map(|s| s.data.stripes.get(&id));
        let mut held = all.flat_map(Lies::held);
        held.find(|held| held.grabber == *who)
    }
}
