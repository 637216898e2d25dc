//! What `library.lua` does with a stripe in one partition, by the same tables: each function is one step.

use std::sync::Arc;

use red_envelope::domain::envelope::{CloseReason, HotState, Terms};
use red_envelope::domain::grab::{Grab, GrabReply, Grant, HeldShare, OutboxRecord, Outcome};
use red_envelope::domain::id::{EnvelopeId, Epoch, Partition, UnixMs};
use red_envelope::domain::stripes::Stripe;
use red_envelope::hot::redis::law::{Fields, Meta, Plan, Reader, put_amount, value_of};
use red_envelope::hot::{CloseReply, Halted, HotError, Mark};

use crate::stores::Rule;
use crate::striped::{Data, Lies, Striped};

/// A stripe of an envelope, where it lies, under an epoch.
#[derive(Clone, Copy)]
pub struct At {
    pub id: EnvelopeId,
    pub stripe: Stripe,
    pub partition: Partition,
    pub epoch: Epoch,
}

/// What lies under an envelope's keys is not what was expected: `crossed` by somebody else.
pub fn crossed<T>() -> Result<T, HotError> {
    Err(HotError::Unavailable("two repairs crossed".to_owned()))
}

fn is_dry(meta: &Meta) -> bool {
    meta.is_dry()
}

/// Goes to a state; `dry`: it grants nothing, and is not over.
fn go(meta: &mut Meta, state: HotState, dry: bool) {
    meta.state = if dry { HotState::Live } else { state };
    if let Some(part) = &mut meta.part {
        part.dry = dry;
    }
}

/// The number of the first share by turn; 0: of the first stripe.
fn is_whole(meta: &Meta) -> bool {
    meta.part.as_ref().is_none_or(|part| part.whole)
}

fn under_of(meta: &Meta) -> u64 {
    meta.part.as_ref().map_or(0, |part| part.under)
}

/// The share by its turn: number and amount.
fn by_turn(lies: &Lies, turn: u32) -> (u32, i64) {
    let meta = &lies.meta;
    let at = turn as usize * meta.record_bytes();
    let mut reader = Reader(&lies.shares[at..]);
    let share = match meta.compact {
        true => reader.u32().expect("a record has a number"),
        false => meta.first() + turn,
    };
    let amount = reader.amount(meta.width).expect("a record has an amount");
    (share, amount)
}

/// Shares that were not taken.
pub fn left(lies: &Lies) -> Vec<u32> {
    let turns = lies.meta.next..lies.meta.length;
    turns.map(|turn| by_turn(lies, turn).0).collect()
}

/// What the taken shares are worth.
pub fn taken_minor(lies: &Lies) -> i64 {
    let turns = (0..lies.meta.next).filter(|_| !lies.shares.is_empty());
    let taken = turns.map(|turn| by_turn(lies, turn).1);
    lies.meta.base_minor + taken.sum::<i64>()
}

/// Puts shares down at an offset, or finds them there; `false`: others are there, or too few before it.
fn put_shares(shares: &mut Vec<u8>, at: usize, chunk: &[u8]) -> bool {
    if at > shares.len() {
        return false;
    }
    let known = chunk.len().min(shares.len() - at);
    let same = shares[at..at + known] == chunk[..known];
    if same {
        shares.extend_from_slice(&chunk[known..]);
    }
    same
}

fn stands(lies: &Lies, epoch: Epoch) -> bool {
    lies.meta.epoch == epoch && lies.meta.state != HotState::Funding
}

/// Grabbers that are dropped from a hash, and those that are put.
type Changes<'a> = (&'a [Vec<u8>], &'a [(Vec<u8>, Vec<u8>)]);

fn put_fields(lies: &mut Lies, (drops, puts): Changes<'_>) {
    for name in drops {
        lies.fields.remove(name);
    }
    lies.fields.extend(puts.iter().cloned());
}

/// As `begin`: Funding under this epoch; the grabs that are there stay.
fn begin(data: &mut Data, id: EnvelopeId, meta: Meta, terms: Arc<Terms>) {
    let before = data.stripes.remove(&id);
    let fields = before.map_or_else(Fields::new, |lies| lies.fields);
    let shares = Vec::new();
    let lies = Lies {
        terms,
        meta,
        fields,
        shares,
    };
    data.stripes.insert(id, lies);
}

impl Striped {
    pub fn load(
        &mut self,
        at: At,
        terms: &Arc<Terms>,
        (offset, amounts): (usize, &[i64]),
    ) -> Result<(), HotError> {
        let fresh = Meta::of_stripe(terms, at.epoch, at.stripe);
        let mut chunk = Vec::new();
        for amount in amounts {
            put_amount(&mut chunk, *amount, fresh.width).expect("an amount fits");
        }
        let data = self.write(at.partition, at.epoch)?;
        let there = data.stripes.get(&at.id).map(|lies| &lies.meta);
        let early = || HotError::Unavailable("the shares before these are not loaded yet".into());
        match there {
            Some(meta) if meta.state != HotState::Funding => return Ok(()),
            Some(meta) if meta.compact => return crossed(),
            Some(meta) if meta.epoch == at.epoch => {}
            _ if offset > 0 => return Err(early()),
            _ => begin(data, at.id, fresh, Arc::clone(terms)),
        }
        let lies = data.stripes.get_mut(&at.id).expect("it is there");
        let from = offset * lies.meta.record_bytes();
        match put_shares(&mut lies.shares, from, &chunk) {
            true => Ok(()),
            false => Err(early()),
        }
    }

    pub fn open(&mut self, at: At) -> Result<HotState, HotError> {
        let data = self.write(at.partition, at.epoch)?;
        let missing = || HotError::Unavailable("it is not loaded".into());
        let lies = data.stripes.get_mut(&at.id).ok_or_else(missing)?;
        let meta = &mut lies.meta;
        if meta.state != HotState::Funding {
            return Ok(meta.state);
        }
        let bytes = meta.length as usize * meta.record_bytes();
        if meta.compact || meta.epoch != at.epoch || lies.shares.len() != bytes {
            return Err(missing());
        }
        meta.state = HotState::Live;
        Ok(meta.state)
    }

    pub fn grab(&mut self, grab: &Grab, now: UnixMs) -> GrabReply {
        let (id, partition) = (grab.envelope, grab.partition);
        let only_whole = self.keeps(Rule::EmptyIsWhole);
        let data = match self.write(partition, grab.epoch) {
            Ok(data) => data,
            Err(HotError::Epoch(epoch)) => return GrabReply::Epoch(epoch),
            Err(_) => return GrabReply::Missing,
        };
        let Some(lies) = data.stripes.get_mut(&id) else {
            return GrabReply::Missing;
        };
        if lies.meta.frozen.is_some() {
            return GrabReply::Frozen;
        }
        if lies.meta.state == HotState::Funding && !lies.meta.compact {
            return GrabReply::Funding;
        }
        if !stands(lies, grab.epoch) {
            return GrabReply::Missing;
        }
        if let Some(held) = lies.held().find(|held| held.grabber == grab.grabber) {
            return GrabReply::Outcome(Outcome::AlreadyGrabbed(held.grant));
        }
        let first = grab.partition == id.partition(crate::striped::partitions());
        let under = under_of(&lies.meta);
        match lies.meta.state {
            HotState::Over(CloseReason::Empty) if first || !only_whole => {
                let of = (id, lies.meta.count);
                self.watch.empty(of, under);
                return GrabReply::Outcome(Outcome::Empty);
            }
            HotState::Over(reason) if first => return GrabReply::Outcome(outcome(reason)),
            HotState::Over(_) => return GrabReply::Dry,
            _ if is_dry(&lies.meta) => return GrabReply::Dry,
            _ => {}
        }
        if now >= lies.meta.expires_at {
            go(&mut lies.meta, HotState::Over(CloseReason::Expired), false);
            return GrabReply::Outcome(Outcome::Expired);
        }
        let (share, amount_minor) = by_turn(lies, lies.meta.next);
        let at = now;
        let grant = Grant {
            share,
            amount_minor,
            at,
        };
        let held = HeldShare {
            grabber: grab.grabber.clone(),
            grant,
            declined: false,
        };
        let value = value_of(&held, lies.meta.width).expect("an amount fits");
        let name = grab.grabber.as_str().as_bytes().to_vec();
        lies.fields.insert(name, value);
        lies.meta.next += 1;
        if lies.meta.next == lies.meta.length {
            let dry = only_whole && !is_whole(&lies.meta);
            go(&mut lies.meta, HotState::Over(CloseReason::Empty), dry);
        }
        self.watch.grant((id, partition), &held, under);
        let record = OutboxRecord {
            envelope: id,
            grabber: held.grabber,
            grant,
            declined: false,
        };
        self.owe(partition, grab.epoch, record);
        GrabReply::Outcome(Outcome::Won(grant))
    }

    /// A missing one leaves a tombstone, once nothing of it is owed there.
    pub fn close(
        &mut self,
        at: At,
        terms: &Arc<Terms>,
        (reason, now): (CloseReason, UnixMs),
    ) -> Result<CloseReply, HotError> {
        let data = self.write(at.partition, at.epoch)?;
        let owes = data.owes(at.id);
        let lies = data.stripes.get(&at.id);
        if lies.is_some_and(|lies| lies.meta.frozen.is_some()) {
            return Ok(CloseReply::Frozen);
        }
        if lies.is_some_and(|lies| lies.meta.half_rebuilt()) {
            return Err(HotError::Unavailable("it is being rebuilt".into()));
        }
        let meta = lies.map(|lies| &lies.meta);
        let used_up = |meta: &Meta| meta.is_dry() && (meta.next == meta.length || meta.first() > 0);
        let why = match meta.map(|meta| meta.state) {
            Some(HotState::Over(why)) => why,
            _ if now >= terms.expires_at => CloseReason::Expired,
            _ if reason == CloseReason::Expired => return Ok(CloseReply::NotDue(now)),
            _ if reason == CloseReason::Empty && meta.is_some_and(|meta| !used_up(meta)) => {
                return Err(HotError::Mismatch("not every share is taken".to_owned()));
            }
            _ => reason,
        };
        if meta.is_none() {
            if owes {
                return Err(HotError::Unavailable("its grabs are being settled".into()));
            }
            let mut meta = Meta::of_stripe(terms, at.epoch, at.stripe);
            meta.length = 0;
            data.stripes.remove(&at.id);
            begin(data, at.id, meta, Arc::clone(terms));
        }
        let lies = data.stripes.get_mut(&at.id).expect("it is there");
        go(&mut lies.meta, HotState::Over(why), false);
        Ok(CloseReply::Over {
            reason: why,
            taken_count: lies.meta.taken_count(),
            taken_minor: taken_minor(lies),
        })
    }

    /// Sets or lifts a mark.
    pub fn freeze(
        &mut self,
        at: At,
        mark: impl Fn(Option<Mark>) -> Option<Mark>,
    ) -> Result<(), HotError> {
        let data = self.write(at.partition, at.epoch)?;
        if let Some(lies) = data.stripes.get_mut(&at.id) {
            lies.meta.frozen = mark(lies.meta.frozen);
        }
        Ok(())
    }

    /// Forgets what is over.
    pub fn remove(&mut self, at: At) -> Result<(), HotError> {
        let data = self.write(at.partition, at.epoch)?;
        let over = |meta: &Meta| matches!(meta.state, HotState::Over(_)) && meta.frozen.is_none();
        let gone = data
            .stripes
            .get(&at.id)
            .is_some_and(|lies| over(&lies.meta));
        if gone && !data.owes(at.id) {
            data.stripes.remove(&at.id);
        }
        Ok(())
    }

    /// What it has left then; `None`: it is missing, or stale.
    /// `sum`: of the epochs of all its partitions.
    pub fn halt(&mut self, at: At, sum: u64) -> Result<Option<Halted>, HotError> {
        let halts = self.keeps(Rule::HaltedBefore) || at.stripe == Stripe::FIRST;
        let data = self.write(at.partition, at.epoch)?;
        let Some(lies) = data.stripes.get_mut(&at.id) else {
            return Ok(None);
        };
        if !stands(lies, at.epoch) {
            return Ok(None);
        }
        let empty = lies.meta.state == HotState::Over(CloseReason::Empty) && is_whole(&lies.meta);
        let reopens = empty && sum > under_of(&lies.meta);
        let live = lies.meta.state == HotState::Live;
        if halts && (live || reopens) {
            go(&mut lies.meta, HotState::Live, true);
        }
        let over = match lies.meta.state {
            HotState::Over(reason) => Some(reason),
            HotState::Funding | HotState::Live => None,
        };
        let tombstone = lies.meta.length == 0 && !lies.meta.compact;
        Ok(Some(Halted {
            left: left(lies),
            over,
            tombstone,
        }))
    }

    /// Brings what was compared into this epoch as it is; `None`: it changed meanwhile.
    pub fn stamp(
        &mut self,
        at: At,
        seen: &Meta,
        plan: &Plan,
    ) -> Result<Option<HotState>, HotError> {
        let data = self.write(at.partition, at.epoch)?;
        let Some(lies) = data.stripes.get_mut(&at.id) else {
            return Ok(None);
        };
        if stands(lies, at.epoch) {
            return Ok(Some(lies.meta.state));
        }
        if lies.meta.state == HotState::Funding || lies.meta != *seen {
            return Ok(None);
        }
        lies.meta.epoch = at.epoch;
        let live = lies.meta.state == HotState::Live && !is_dry(&lies.meta);
        let ends = matches!(plan.state, HotState::Over(_)) && !plan.dry;
        if live || (is_dry(&lies.meta) && ends) {
            go(&mut lies.meta, plan.state, plan.dry);
        }
        Ok(Some(lies.meta.state))
    }

    /// `Some`: it stands, and somebody else has repaired it.
    pub fn rebuild(
        &mut self,
        at: At,
        (meta, terms, becomes): (&Meta, &Arc<Terms>, HotState),
        anew: bool,
    ) -> Result<Option<HotState>, HotError> {
        let halted = self.keeps(Rule::FirstHalted);
        let stays = self.keeps(Rule::OverStaysOver);
        let data = self.write(at.partition, at.epoch)?;
        let lies = data.stripes.get(&at.id);
        if lies.is_some_and(|lies| is_late(&lies.meta, meta)) {
            return crossed();
        }
        let wanted = meta.part.as_ref().is_some_and(|part| part.whole);
        let gathers = |there: &Meta| {
            let may = there.state == HotState::Over(CloseReason::Empty) || there.state == becomes;
            let is_over = matches!(there.state, HotState::Over(_));
            let older = is_whole(there) && under_of(meta) > under_of(there);
            let over = is_over && (!stays || (may && older));
            (there.is_dry() || over || !halted) && there.first() == 0 && wanted
        };
        if let Some(lies) = lies
            && stands(lies, at.epoch)
            && !gathers(&lies.meta)
        {
            return Ok(Some(lies.meta.state));
        }
        if lies.is_none_or(|lies| lies.meta != *meta) || anew {
            begin(data, at.id, meta.clone(), Arc::clone(terms));
        }
        Ok(None)
    }

    /// `false`: other shares are there.
    pub fn put(
        &mut self,
        (at, plan): (At, &Meta),
        shares: &[u8],
        changes: Changes<'_>,
    ) -> Result<bool, HotError> {
        let data = self.write(at.partition, at.epoch)?;
        let lies = data.stripes.get_mut(&at.id);
        let Some(lies) = lies.filter(|l| l.meta.half_rebuilt() && l.meta.epoch == at.epoch) else {
            return crossed();
        };
        if is_others(&lies.meta, plan) {
            return crossed();
        }
        if !put_shares(&mut lies.shares, 0, shares) {
            return Ok(false);
        }
        put_fields(lies, changes);
        Ok(true)
    }

    /// `None`: what is there is not what was to be built.
    pub fn rebuilt(&mut self, at: At, plan: &Plan) -> Result<Option<HotState>, HotError> {
        let counts = self.keeps(Rule::FirstHalted);
        let data = self.write(at.partition, at.epoch)?;
        let Some(lies) = data.stripes.get_mut(&at.id) else {
            return crossed();
        };
        if stands(lies, at.epoch) {
            return Ok(Some(lies.meta.state));
        }
        if !lies.meta.compact || lies.meta.epoch != at.epoch || is_others(&lies.meta, &plan.meta) {
            return crossed();
        }
        let bytes = lies.meta.length as usize * lies.meta.record_bytes();
        let held = lies.fields.len() == lies.meta.held_count() as usize;
        if lies.shares.len() != bytes || (counts && !held) {
            return Ok(None);
        }
        go(&mut lies.meta, plan.state, plan.dry);
        Ok(Some(lies.meta.state))
    }
}

/// Whether a plan is older than what is there.
fn is_late(there: &Meta, plan: &Meta) -> bool {
    is_whole(there) && (!is_whole(plan) || under_of(plan) < under_of(there))
}

/// Whether another plan is under way. A mark that came meanwhile makes no other.
fn is_others(there: &Meta, plan: &Meta) -> bool {
    let frozen = there.frozen;
    let plan = Meta {
        frozen,
        ..plan.clone()
    };
    there.state == HotState::Funding && *there != plan
}

fn outcome(reason: CloseReason) -> Outcome {
    match reason {
        CloseReason::Empty => Outcome::Empty,
        CloseReason::Expired => Outcome::Expired,
        CloseReason::Recalled => Outcome::Recalled,
    }
}
