//! Publishes envelopes and ends them.
//!
//! # Ordering
//! Shares that were put down never change under their epoch, so `open` may read them back, check
//! them here, and then open: the library itself can't add amounts up.
//!
//! # If it crashes here
//! A Funding envelope is loaded again from the first chunk; an end stands or does not.

use std::sync::Arc;

use redis::{Cmd, Value};

use super::core::{Call, Core, Place};
use super::layout::{Meta, Reader, mark_code, put_amount, state_code, state_of, width_of};
use super::reply::{self, Reply};
use crate::domain::envelope::{
    CloseReason, HotState, Kind, LOAD_CHUNK_SHARES_MAX, Terms, shares_checksum,
};
use crate::domain::grab::{Grant, HeldShare};
use crate::domain::id::{EnvelopeId, Epoch, PersonId, TenantId, UnixMs};
use crate::domain::money::AMOUNT_MINOR_MAX;
use crate::domain::stripes::{Stripe, dealt, dealt_to};
use crate::hot::{CloseReply, DeclineReply, Epochs, HotError, LoadChunk, Mark};

/// Bytes of packed shares that one command reads back.
const READ_BACK_BYTES: usize = 65_536;

/// The same in whole records of a width.
fn step_of(width: usize) -> usize {
    READ_BACK_BYTES / width * width
}

fn mismatch<T>(what: impl Into<String>) -> Result<T, HotError> {
    Err(HotError::Mismatch(what.into()))
}

/// The digest that opens an envelope; empty where it has no lock.
pub(super) fn lock_of(terms: &Terms) -> Vec<u8> {
    let digest = terms
        .passphrase
        .as_ref()
        .map(|lock| lock.digest().to_bytes().to_vec());
    digest.unwrap_or_default()
}

impl Core {
    /// The keys of `load_1`, `close_1` and `rebuild_1`, in their order.
    pub(super) fn with_all_keys(&self, call: Call, at: Place) -> Call {
        let own = self.own(at);
        call.key(own.grabs)
            .key(own.shares)
            .key(own.terms)
            .key(own.list)
            .key(own.phrase)
            .key(self.keys.index(at.partition))
    }

    /// Puts shares down.
    pub async fn load(&self, under: &Epochs, chunk: LoadChunk) -> Result<(), HotError> {
        let shares = packed(&chunk)?;
        let (of, count) = (chunk.terms.stripes, chunk.terms.share_count);
        let (mut from, mut rest) = (chunk.offset, &shares[..]);
        let width = width_of(&chunk.terms);
        // A chunk may reach from one stripe into the next ones. Its parts go out together: the chunk behind it may be on
        // its way already, and must find them.
        let mut calls = Vec::with_capacity(1);
        loop {
            let stripe = dealt_to(from, of, count).unwrap_or(Stripe::FIRST);
            let own = dealt(stripe, of, count);
            let room = usize::try_from(own.end.saturating_sub(from)).unwrap_or(usize::MAX);
            let (here, others) = rest.split_at(rest.len().min(room.saturating_mul(width)));
            let offset = from.saturating_sub(own.start);
            calls.push(self.load_call(under, &chunk, stripe, (offset, here))?);
            if others.is_empty() {
                break;
            }
            (from, rest) = (own.end, others);
        }
        for (code, items) in self.call_all(calls).await? {
            loaded(code, items)?;
        }
        self.terms.insert(chunk.envelope, chunk.terms);
        Ok(())
    }

    fn load_call(
        &self,
        under: &Epochs,
        chunk: &LoadChunk,
        stripe: Stripe,
        (offset, shares): (u32, &[u8]),
    ) -> Result<Call, HotError> {
        let at = self.place(chunk.envelope, stripe, chunk.terms.stripes);
        let epoch = self.stands_in(at.partition, under)?;
        let call = Call::writing(self, "load_1", at.partition);
        let call = self.with_all_keys(call, at).under(epoch);
        Ok(call
            .arg(chunk.envelope.to_bytes())
            .number(offset)
            .arg(shares)
            .arg(Meta::of_stripe(&chunk.terms, epoch, stripe).pack())
            .arg(chunk.terms.to_json())
            .arg(lock_of(&chunk.terms)))
    }

    /// Makes a loaded envelope live.
    pub async fn open(
        &self,
        under: &Epochs,
        id: EnvelopeId,
        checksum: u32,
    ) -> Result<HotState, HotError> {
        let terms = self.terms_of(&[id]).await?.pop().flatten();
        let Some(terms) = terms else {
            return mismatch("nothing is loaded");
        };
        let places = self.places(id, terms.stripes);
        for at in &places {
            self.stands_in(at.partition, under)?;
        }
        // With the state the first shares come back, of a small envelope all: one round trip.
        let looks = places.iter().flat_map(|at| {
            let mut state = redis::cmd("HGET");
            state.arg(self.own(*at).grabs).arg("");
            [state, self.read_back(*at, &terms, 0)]
        });
        let found = self.read_all(looks.collect()).await?;
        let is_funding = |pair: &[Value]| match pair {
            [Value::BulkString(bytes), _] => {
                Meta::unpack(bytes).is_some_and(|meta| meta.state == HotState::Funding)
            }
            _ => false,
        };
        if found.chunks(2).any(is_funding) {
            let firsts = found.chunks(2).filter_map(|pair| pair.get(1));
            let firsts = places.iter().copied().zip(firsts);
            self.compare(&terms, firsts.collect(), checksum).await?;
        }
        // The first one last: where it is open all are.
        for at in places.iter().skip(1) {
            self.open_place(under, *at, &terms).await?;
        }
        self.open_place(under, self.first(id), &terms).await
    }

    async fn open_place(
        &self,
        under: &Epochs,
        at: Place,
        terms: &Terms,
    ) -> Result<HotState, HotError> {
        let (epoch, own) = (self.stands_in(at.partition, under)?, self.own(at));
        let mut call = Call::writing(self, "open_1", at.partition)
            .key(own.grabs)
            .key(own.shares)
            .under(epoch);
        for share in &terms.exclusive {
            call = call.arg(share.grabber.as_str());
        }
        match self.call(call).await? {
            (Reply::Ok, items) => state_in(&items),
            (Reply::Missing, _) => mismatch("nothing is loaded"),
            (Reply::Stale, _) => Err(HotError::Unavailable(
                "the envelope is being repaired: try again".into(),
            )),
            (Reply::Incomplete, _) => mismatch("not every share is loaded"),
            (code, items) => Err(unexpected(code, items)),
        }
    }

    /// Reads shares back, from a byte on.
    fn read_back(&self, at: Place, terms: &Terms, from: usize) -> Cmd {
        let mut read = redis::cmd("GETRANGE");
        let step = step_of(width_of(terms));
        read.arg(self.own(at).shares).arg(from).arg(from + step - 1);
        read
    }

    /// Whether the shares that were put down are the envelope's; with each place come the first of them.
    async fn compare(
        &self,
        terms: &Terms,
        places: Vec<(Place, &Value)>,
        checksum: u32,
    ) -> Result<(), HotError> {
        let width = width_of(terms);
        let count = usize::try_from(terms.share_count).expect("usize holds a u32");
        let mut amounts = Vec::with_capacity(count);
        let mut add = |bytes: &Value| {
            let records = reply::bytes(bytes)?.chunks(width);
            amounts.extend(records.filter_map(|record| Reader(record).amount(width)));
            Ok::<_, HotError>(())
        };
        let step = step_of(width);
        for (stripe, (at, first)) in terms.stripes.all().zip(places) {
            add(first)?;
            let own = dealt(stripe, terms.stripes, terms.share_count);
            let bytes = usize::try_from(own.end - own.start).unwrap_or(usize::MAX) * width;
            for from in (step..bytes).step_by(step) {
                let read = self.read_back(at, terms, from);
                add(&self.run_all(vec![read]).await?.pop().unwrap_or(Value::Nil))?;
            }
        }
        if amounts.len() != count {
            return mismatch(format!("{} of {count} shares are loaded", amounts.len()));
        }
        let sum: i128 = amounts.iter().copied().map(i128::from).sum();
        if sum != i128::from(terms.total_minor) {
            return mismatch("they don't add up to the total");
        }
        let named = terms.exclusive.iter().map(|share| share.amount_minor);
        if terms.kind == Kind::Exclusive && !named.eq(amounts.iter().copied()) {
            return mismatch("they are not those of the named grabbers");
        }
        if shares_checksum(&amounts) != checksum {
            return mismatch("the checksum is another one");
        }
        Ok(())
    }

    /// Declines the share that is held for somebody.
    pub async fn decline(
        &self,
        epoch: Epoch,
        tenant: TenantId,
        id: EnvelopeId,
        grabber: PersonId,
    ) -> Result<DeclineReply, HotError> {
        let partition = self.partition(id);
        self.stands(partition, epoch)?;
        self.may_acknowledge()?;
        let terms = self.terms_of(&[id]).await?.pop().flatten();
        let named = terms.is_some_and(|terms| terms.exclusive_share_of(&grabber).is_some());
        if !named {
            return Ok(DeclineReply::Missing);
        }
        let nonce: u64 = rand::random();
        let call = Call::writing(self, "decline_1", partition)
            .key(self.keys.outbox(partition))
            .key(self.keys.envelope(partition, id).grabs)
            .arg(self.clock_arg())
            .under(epoch)
            .arg(nonce.to_le_bytes())
            .arg(id.to_bytes())
            .arg(tenant.as_str())
            .arg(grabber.as_str());
        let (code, items) = self.call(call).await?;
        let over = |reason| Ok(DeclineReply::Over(reason));
        match code {
            Reply::Ok => {
                let grant = grant_in(&items)?;
                let held = HeldShare {
                    grabber,
                    grant,
                    declined: true,
                };
                self.acked.keep((partition, epoch), nonce, vec![(id, held)]);
                let replayed = false;
                Ok(DeclineReply::Declined { grant, replayed })
            }
            Reply::Declined => Ok(DeclineReply::Declined {
                grant: grant_in(&items)?,
                replayed: true,
            }),
            Reply::AlreadyGrabbed => Ok(DeclineReply::AlreadyGrabbed(grant_in(&items)?)),
            Reply::Missing | Reply::Stale => Ok(DeclineReply::Missing),
            Reply::Funding => Ok(DeclineReply::Funding),
            Reply::Frozen => Ok(DeclineReply::Frozen),
            Reply::Empty => over(CloseReason::Empty),
            Reply::Expired => over(CloseReason::Expired),
            Reply::Recalled => over(CloseReason::Recalled),
            code => Err(unexpected(code, items)),
        }
    }

    /// Ends what lies in one place. What is missing, not whole or half rebuilt, and of which nothing is owed,
    /// leaves a tombstone.
    pub(super) async fn close_place(
        &self,
        under: &Epochs,
        (stripe, at): (Stripe, Place),
        terms: &Arc<Terms>,
        reason: CloseReason,
    ) -> Result<CloseReply, HotError> {
        let epoch = self.stands_in(at.partition, under)?;
        let once = |tombstone| self.close_once(epoch, (stripe, at), terms, (reason, tombstone));
        let (mut code, mut items) = once(false).await?;
        if code == Reply::Missing {
            if !terms.stripes.is_one() && self.is_being_rebuilt(at, epoch).await? {
                return Err(HotError::Unavailable(
                    "what is left of the envelope is being gathered: try again".into(),
                ));
            }
            if self.owes_in(at).await? {
                return Err(HotError::Unavailable(
                    "the envelope is not whole in Redis and its grabs are being settled".into(),
                ));
            }
            (code, items) = once(true).await?;
        }
        match code {
            Reply::Ok => self.over(at, terms, &items).await,
            Reply::NotDue => {
                let at = items.first().map_or(Ok(0), reply::number)?;
                Ok(CloseReply::NotDue(UnixMs(at)))
            }
            Reply::Frozen => Ok(CloseReply::Frozen),
            // A full envelope ends by itself, with its last grab.
            Reply::NotEmpty => mismatch("not every share is taken"),
            Reply::Damaged => Err(HotError::Unavailable(
                "the index of envelopes in Redis is not ours: another program writes there".into(),
            )),
            code => Err(unexpected(code, items)),
        }
    }

    async fn close_once(
        &self,
        epoch: Epoch,
        (stripe, at): (Stripe, Place),
        terms: &Arc<Terms>,
        (reason, tombstone): (CloseReason, bool),
    ) -> Result<(Reply, Vec<Value>), HotError> {
        let call = Call::writing(self, "close_1", at.partition);
        let call = self
            .with_all_keys(call, at)
            .arg(self.clock_arg())
            .under(epoch)
            .arg(at.id.to_bytes())
            .number(state_code(HotState::Over(reason)))
            .number(terms.expires_at.0)
            .number(u8::from(tombstone))
            .arg(Meta::of_stripe(terms, epoch, stripe).pack())
            .arg(terms.to_json());
        self.call(call).await
    }

    async fn over(
        &self,
        at: Place,
        terms: &Arc<Terms>,
        items: &[Value],
    ) -> Result<CloseReply, HotError> {
        let HotState::Over(reason) = state_in(items)? else {
            return Err(reply::nonsense(&Value::Array(items.to_vec())));
        };
        if let Some((meta, sums)) = self.looks(&[at]).await?.pop().flatten() {
            let view = self.view_of(at, &meta, sums, Arc::clone(terms)).await?;
            return Ok(CloseReply::Over {
                reason,
                taken_count: view.taken_count,
                taken_minor: view.taken_minor,
            });
        }
        // Its shares are lost, and what was taken stands beside the grabbers as well.
        let held = self.all_held(at, terms.share_count).await?;
        let taken_count = items.get(1).map_or(Ok(0), reply::number)?;
        Ok(CloseReply::Over {
            reason,
            taken_count: u32::try_from(taken_count).unwrap_or(u32::MAX),
            taken_minor: held.iter().map(|held| held.grant.amount_minor).sum(),
        })
    }

    /// Sets a mark, or lifts one that is not heavier than `upto`.
    pub async fn mark(
        &self,
        under: &Epochs,
        id: EnvelopeId,
        mark: Option<Mark>,
        upto: Mark,
    ) -> Result<(), HotError> {
        for at in self.lies_in(id).await? {
            let epoch = self.stands_in(at.partition, under)?;
            let call = Call::writing(self, "freeze_1", at.partition)
                .key(self.own(at).grabs)
                .key(self.keys.marked(at.partition))
                .under(epoch)
                .arg(id.to_bytes())
                .number(mark_code(mark))
                .number(mark_code(Some(upto)));
            match self.call(call).await? {
                (Reply::Ok, _) => {}
                (code, items) => return Err(unexpected(code, items)),
            }
        }
        Ok(())
    }
}

/// What a chunk's answer means.
fn loaded(code: Reply, items: Vec<Value>) -> Result<(), HotError> {
    match (code, items) {
        (Reply::Ok, _) => Ok(()),
        // An earlier chunk was shed: repeating the load in order brings it.
        (Reply::OutOfOrder, _) => Err(HotError::Unavailable(
            "the shares before these are not loaded yet".into(),
        )),
        (Reply::OtherTerms, _) => mismatch("the envelope was begun under other terms"),
        (Reply::OtherAmounts, _) => mismatch("a share was loaded before with another amount"),
        (Reply::Damaged, _) => Err(HotError::Unavailable(
            "what Redis holds of the envelope is not whole: it is being repaired".into(),
        )),
        (code, items) => Err(unexpected(code, items)),
    }
}

/// The shares of a chunk as they are stored.
fn packed(chunk: &LoadChunk) -> Result<Vec<u8>, HotError> {
    let count = chunk.amounts_minor.len();
    if count > LOAD_CHUNK_SHARES_MAX {
        return mismatch("a chunk holds too many shares");
    }
    let end = u32::try_from(count)
        .ok()
        .and_then(|n| chunk.offset.checked_add(n));
    if end.is_none_or(|end| end > chunk.terms.share_count) {
        return mismatch("a chunk reaches beyond the last share");
    }
    let width = width_of(&chunk.terms);
    let mut out = Vec::with_capacity(count * width);
    for amount in &chunk.amounts_minor {
        let fits = (1..=AMOUNT_MINOR_MAX).contains(amount);
        if !fits || put_amount(&mut out, *amount, width).is_none() {
            return mismatch("an amount is out of range");
        }
    }
    Ok(out)
}

/// The state in the first place of a reply.
pub(super) fn state_in(items: &[Value]) -> Result<HotState, HotError> {
    let code = items.first().map_or(Ok(-1), reply::number)?;
    let state = u8::try_from(code).ok().and_then(state_of);
    state.ok_or_else(|| reply::nonsense(&Value::Array(items.to_vec())))
}

fn grant_in(items: &[Value]) -> Result<Grant, HotError> {
    let bytes = items.first().map_or(Ok(&[][..]), reply::bytes)?;
    // A grant follows its code.
    let grant = super::batcher::grant(&mut Reader(bytes.get(1..).unwrap_or_default()));
    grant.ok_or_else(|| reply::nonsense(&Value::Array(items.to_vec())))
}

/// An answer that the function does not give.
pub(super) fn unexpected(code: Reply, items: Vec<Value>) -> HotError {
    let mut all = vec![Value::SimpleString(format!("{code:?}"))];
    all.extend(items);
    reply::nonsense(&Value::Array(all))
}
