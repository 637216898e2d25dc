//! Brings an envelope that the store may have lost into this epoch: settled grabs win.
//!
//! *Shape*
//!
//! | step | function | what |
//! |---|---|---|
//! | 0. terms | GET, SET | they never change, so they are put down under no epoch, over what else lies there |
//! | 1. read | | the whole grabs hash, as far as it is there |
//! | 2. plan | | claims, then grants that contradict none, then what this process acknowledged (`acked`); the rest can be taken |
//! | 3. stamp | `stamp_1` | nothing to mend: it stands in this epoch as it is, or over where the books close it |
//! | 4. begin | `rebuild_1` | Funding under this epoch: nobody is served from it |
//! | 5. put | `rebuild_put_1` | grants, then the shares that are left, with their numbers |
//! | 6. end | `rebuilt_1` | counts agree: Live, or over for the reason it had |
//!
//! *Ordering.* A stale, broken or Funding envelope grants nothing, so what step 1 read stays true
//! until step 6. Two repairs with the same plan help each other; with different ones the counts of
//! step 6 don't agree and both begin anew. Shares of another plan, which a repair that died left
//! behind, are thrown away once.
//!
//! Step 0 is the only write without a fence. A stamped envelope needs terms that can be read; what is
//! begun in step 4 writes them again.
//!
//! *If it crashes here.* Grants that are in the hash stay in it: the next repair reads them again.
//!
//! *Bounds.* [`GRANTS_PER_PUT_MAX`] grants and `LOAD_CHUNK_SHARES_MAX` shares a call. A repaired
//! envelope is held in memory once: 80 bytes a grant.
//!
//! *Not here.* What the books know (`publish`); records that no store has any more.

use std::collections::{BTreeMap, BTreeSet};

use redis::Value;

use super::core::{Call, Core};
use super::layout::{Meta, grant_of, put_amount, state_code, value_of, width_of};
use super::lifecycle::{lock_of, state_in, unexpected};
use super::reply::Reply;
use crate::domain::envelope::{CloseReason, HotState, LOAD_CHUNK_SHARES_MAX, Terms};
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, Epoch, PersonId};
use crate::hot::{Epochs, HotError, Repair};

/// Grants of one call of `rebuild_put_1`: two arguments each.
const GRANTS_PER_PUT_MAX: usize = 500;

type Fields = BTreeMap<Vec<u8>, Vec<u8>>;

/// What the envelope will be.
struct Plan {
    meta: Meta,
    /// Where it stands at the end.
    state: HotState,
    /// Shares that somebody has, ascending.
    taken: Vec<u32>,
    /// Fields that are to be put, by name.
    puts: Vec<(Vec<u8>, Vec<u8>)>,
    /// Fields that contradict the books.
    drops: Vec<Vec<u8>>,
    /// The packed shares that are left.
    shares: Vec<u8>,
}

impl Core {
    /// See [`HotStore::repair`](crate::hot::HotStore::repair).
    pub async fn repair(&self, under: &Epochs, repair: Repair) -> Result<HotState, HotError> {
        let (id, partition) = (repair.envelope, self.partition(repair.envelope));
        let epoch = self.stands_in(partition, under)?;
        // 0. terms. Of an envelope that is over and removed meanwhile they stay behind, 700 bytes that
        // nobody reads.
        self.put_terms(id, &repair.terms).await?;
        // 1. read
        let fields = self.fields(id, repair.terms.share_count).await?;
        let raw = fields.get(&b""[..]).cloned().unwrap_or_default();
        let before = Meta::unpack(&raw);
        // 2. plan
        let orphans = self.acked.orphans_of(id);
        let plan = plan(epoch, &repair, (before.as_ref(), &fields), &orphans)?;
        // 3. stamp
        let is_sound = |meta: &Meta| may_stand(meta, &plan) && in_turn(meta, &plan);
        let sound = before.as_ref().is_some_and(is_sound);
        if sound && plan.puts.is_empty() && plan.drops.is_empty() {
            let own = self.keys.envelope(partition, id);
            let call = Call::writing(self, "stamp_1", partition)
                .key(own.grabs)
                .key(own.shares)
                .key(own.phrase)
                .under(epoch)
                .arg(raw)
                .number(state_code(plan.state));
            match self.call(call).await? {
                (Reply::Ok, items) => {
                    self.acked.adopted(id, &repair.claims);
                    return state_in(&items);
                }
                (Reply::Stale, _) => {}
                (code, items) => return Err(unexpected(code, items)),
            }
        }
        let state = match self.rebuild(epoch, &repair, &plan, false).await? {
            Some(state) => state,
            // What a repair before left behind is not what this one would: away with it.
            None => {
                let anew = self.rebuild(epoch, &repair, &plan, true).await?;
                anew.ok_or_else(crossed)?
            }
        };
        self.sums.remove(&id);
        self.acked.adopted(id, &repair.claims);
        // One that its Create did not come to load has lost nothing.
        let is_new = before.is_none() && plan.taken.is_empty() && repair.over.is_none();
        if !is_new {
            let claims = repair.claims.len();
            tracing::warn!(envelope = %id, claims, "an envelope was rebuilt from the books");
            crate::telemetry::metrics::envelope_repaired();
        }
        Ok(state)
    }

    /// Looked at first: a full Redis refuses to be told what it knows, and what stands as it is must be
    /// stamped there, so that it ends and gives its memory back.
    async fn put_terms(&self, id: EnvelopeId, terms: &Terms) -> Result<(), HotError> {
        let key = self.keys.envelope(self.partition(id), id).terms;
        let terms = terms.to_json();
        let mut get = redis::cmd("GET");
        get.arg(&key);
        let there = self.read_all(vec![get]).await?.pop();
        if let Some(Value::BulkString(there)) = there
            && there == terms.as_bytes()
        {
            return Ok(());
        }
        let mut set = redis::cmd("SET");
        set.arg(key).arg(terms);
        self.run_all(vec![set]).await.map(drop)
    }

    /// Steps 4 to 6; `None`: what is there does not fit the plan.
    async fn rebuild(
        &self,
        epoch: Epoch,
        repair: &Repair,
        plan: &Plan,
        anew: bool,
    ) -> Result<Option<HotState>, HotError> {
        let (id, partition) = (repair.envelope, self.partition(repair.envelope));
        // 4. begin
        let call = Call::writing(self, "rebuild_1", partition);
        let call = self
            .with_all_keys(call, id)
            .under(epoch)
            .arg(id.to_bytes())
            .arg(plan.meta.pack())
            .arg(repair.terms.to_json())
            .arg(lock_of(&repair.terms))
            .number(u8::from(anew));
        match self.call(call).await? {
            (Reply::Ok, _) => {}
            // Somebody else has repaired it.
            (Reply::Stale, items) => return state_in(&items).map(Some),
            (code, items) => return Err(unexpected(code, items)),
        }
        // 5. put
        let mut fits = true;
        for drops in plan.drops.chunks(GRANTS_PER_PUT_MAX) {
            fits &= self.put(epoch, id, (0, &[]), drops, &[]).await?;
        }
        for puts in plan.puts.chunks(GRANTS_PER_PUT_MAX) {
            fits &= self.put(epoch, id, (0, &[]), &[], puts).await?;
        }
        let bytes = plan.meta.record_bytes();
        for (number, shares) in plan
            .shares
            .chunks(LOAD_CHUNK_SHARES_MAX * bytes)
            .enumerate()
        {
            let offset = number * LOAD_CHUNK_SHARES_MAX;
            fits &= self.put(epoch, id, (offset, shares), &[], &[]).await?;
        }
        if !fits {
            return Ok(None);
        }
        // 6. end
        let own = self.keys.envelope(partition, id);
        let call = Call::writing(self, "rebuilt_1", partition)
            .key(own.grabs)
            .key(own.shares)
            .key(own.phrase)
            .under(epoch)
            .number(state_code(plan.state));
        match self.call(call).await? {
            (Reply::Ok, items) => state_in(&items).map(Some),
            (Reply::Incomplete, _) => Ok(None),
            _ => Err(crossed()),
        }
    }

    /// One call of step 5; `false`: other shares are there.
    async fn put(
        &self,
        epoch: Epoch,
        id: EnvelopeId,
        (offset, shares): (usize, &[u8]),
        drops: &[Vec<u8>],
        puts: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<bool, HotError> {
        let partition = self.partition(id);
        let own = self.keys.envelope(partition, id);
        let mut call = Call::writing(self, "rebuild_put_1", partition)
            .key(own.grabs)
            .key(own.shares)
            .under(epoch)
            .number(offset)
            .arg(shares)
            .number(drops.len());
        for name in drops {
            call = call.arg(name.clone());
        }
        for (name, value) in puts {
            call = call.arg(name.clone()).arg(value.clone());
        }
        match self.call(call).await? {
            (Reply::Ok, _) => Ok(true),
            (Reply::OutOfOrder | Reply::OtherAmounts | Reply::Damaged, _) => Ok(false),
            _ => Err(crossed()),
        }
    }
}

/// Whether a stamp takes an envelope to where it is to stand: it may end one that is live.
fn may_stand(meta: &Meta, plan: &Plan) -> bool {
    let ends = meta.state == HotState::Live && matches!(plan.state, HotState::Over(_));
    meta.state == plan.state || ends
}

/// Whether an envelope may stand as it is, as far as its grabs tell: those of one that was never
/// rebuilt are the first of its shares.
fn in_turn(meta: &Meta, plan: &Plan) -> bool {
    let by_turn = meta.named || meta.compact || (0..meta.next).eq(plan.taken.iter().copied());
    meta.state != HotState::Funding && by_turn
}

fn crossed() -> HotError {
    HotError::Unavailable("two repairs of the envelope crossed: try again".into())
}

/// PURE: what stands in the books stays, then what the hash says as far as it contradicts nothing.
fn plan(
    epoch: Epoch,
    repair: &Repair,
    (before, fields): (Option<&Meta>, &Fields),
    orphans: &[HeldShare],
) -> Result<Plan, HotError> {
    let mut meta = Meta::funding(&repair.terms, epoch);
    let width = width_of(&repair.terms);
    let taken = taken(repair, fields, orphans, width);
    // What the hash shall hold beside its meta.
    let mut wanted = Fields::new();
    for held in taken.values() {
        let name = held.grabber.as_str().as_bytes().to_vec();
        wanted.insert(name, value_of(held, width).ok_or_else(broken)?);
    }
    let over = before
        .map(|meta| meta.state)
        .filter(|state| matches!(state, HotState::Over(_)))
        .or(repair.over.map(HotState::Over));
    let count = u32::try_from(taken.len()).map_err(|_| broken())?;
    let left = match count == meta.count {
        true => HotState::Over(CloseReason::Empty),
        false => HotState::Live,
    };
    let mut shares = Vec::new();
    if meta.named {
        meta.next = count;
        for (number, share) in (0_u32..).zip(&repair.terms.exclusive) {
            let name = share.grabber.as_str().as_bytes().to_vec();
            let untaken = record(number, share.amount_minor, width).ok_or_else(broken)?;
            wanted.entry(name).or_insert(untaken);
        }
    } else {
        meta.base = count;
        meta.base_minor = taken.values().map(|held| held.grant.amount_minor).sum();
        meta.length = 0;
        if over.is_none() {
            meta.length = meta.count - count;
            shares = untaken_shares(repair, &taken, width)?;
        }
    }
    meta.compact = true;
    meta.declined = u32::try_from(taken.values().filter(|h| h.declined).count()).unwrap_or(0);
    if let Some(before) = before {
        (meta.frozen, meta.opening_seen) = (before.frozen, before.opening_seen);
    }
    let unknown = |name: &&Vec<u8>| !name.is_empty() && !wanted.contains_key(*name);
    let drops = fields.keys().filter(unknown).cloned().collect();
    wanted.retain(|name, value| fields.get(name) != Some(value));
    Ok(Plan {
        meta,
        state: over.unwrap_or(left),
        taken: taken.into_keys().collect(),
        puts: wanted.into_iter().collect(),
        drops,
        shares,
    })
}

fn broken() -> HotError {
    HotError::Mismatch("a claim is worth more than any share".into())
}

/// The shares that nobody has, with their numbers.
fn untaken_shares(
    repair: &Repair,
    taken: &BTreeMap<u32, HeldShare>,
    width: usize,
) -> Result<Vec<u8>, HotError> {
    let mut shares = Vec::new();
    for (number, amount) in (0_u32..).zip(&*repair.amounts_minor) {
        if !taken.contains_key(&number) {
            shares.extend(record(number, *amount, width).ok_or_else(broken)?);
        }
    }
    Ok(shares)
}

/// Share and amount, as an untaken share of a name or of a rebuilt envelope is kept.
fn record(number: u32, amount_minor: i64, width: usize) -> Option<Vec<u8>> {
    let mut out = number.to_le_bytes().to_vec();
    put_amount(&mut out, amount_minor, width)?;
    Some(out)
}

/// Who has which share: claims first, then grants that the store still has, then those that this
/// process acknowledged: each whose share and grabber are free and whose amount is the share's.
fn taken(
    repair: &Repair,
    fields: &Fields,
    orphans: &[HeldShare],
    width: usize,
) -> BTreeMap<u32, HeldShare> {
    let mut by_share: BTreeMap<u32, HeldShare> = BTreeMap::new();
    let mut people: BTreeSet<PersonId> = BTreeSet::new();
    for claim in &repair.claims {
        people.insert(claim.grabber.clone());
        by_share.insert(claim.grant.share, claim.clone());
    }
    let stored = fields.iter().filter_map(|(name, value)| {
        let name = std::str::from_utf8(name).ok();
        let grabber = name.and_then(|name| PersonId::parse(name).ok())?;
        let (grant, declined) = grant_of(value, width)?;
        Some(HeldShare {
            grabber,
            grant,
            declined,
        })
    });
    for held in stored.chain(orphans.iter().cloned()) {
        let place = usize::try_from(held.grant.share).ok();
        let worth = place.and_then(|place| repair.amounts_minor.get(place));
        let free = !by_share.contains_key(&held.grant.share);
        // Granted by nobody who reads the terms: somebody has written it there.
        let share = held.grant.share;
        let refused = repair.terms.refuses(&held.grabber, share, held.declined);
        let may_stay = free && refused.is_none() && worth == Some(&held.grant.amount_minor);
        if may_stay && people.insert(held.grabber.clone()) {
            by_share.insert(held.grant.share, held);
        }
    }
    by_share
}
