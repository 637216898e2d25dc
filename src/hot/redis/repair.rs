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
//! | 5. put | `rebuild_put_2` | grants, then the shares that are left, with their numbers |
//! | 6. end | `rebuilt_2` | counts agree: Live, or over for the reason it had |
//!
//! A stripe of a dealt envelope is one such repair. The first one, once its shares are gathered, stands in
//! its epoch and is halted before step 1: it is rebuilt with what is left in all.
//!
//! *Ordering.* A stale, broken or Funding envelope grants nothing, so what step 1 read stays true
//! until step 6. Two repairs with the same plan help each other; of different ones only that which began last
//! goes on, and the other is told that they crossed. Shares of another plan, which a repair that died left
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
//! *Not here.* Who has which share then (`plan`); what the books know (`publish`); records that no store has any more.

use std::collections::HashSet;

use redis::Value;

use super::core::{Call, Core, Place};
use super::layout::{DRY, Meta, grant_of, state_of, width_of};
use super::lifecycle::{lock_of, unexpected};
use super::plan::{Asked, Plan, plan};
use super::reply::{self, Reply};
use crate::domain::envelope::{CloseReason, HotState, LOAD_CHUNK_SHARES_MAX, Terms};
use crate::domain::grab::HeldShare;
use crate::domain::id::Epoch;
use crate::domain::stripes::Stripe;
use crate::hot::{Epochs, HotError, Repair};
use crate::telemetry::metrics;

/// Grants of one call of `rebuild_put_2`: two arguments each.
const GRANTS_PER_PUT_MAX: usize = 500;

impl Core {
    /// See [`HotStore::repair`](crate::hot::HotStore::repair).
    pub async fn repair(&self, under: &Epochs, repair: Repair) -> Result<HotState, HotError> {
        let (id, of) = (repair.envelope, repair.terms.stripes);
        let at = self.place(id, repair.stripe, of);
        let epoch = self.stands_in(at.partition, under)?;
        let places = self.places(id, of).into_iter();
        let sum = places.map(|at| under.of(at.partition).0).sum();
        // 0. terms. Of an envelope that is over and removed meanwhile they stay behind, 700 bytes that
        // nobody reads.
        self.put_terms(at, &repair.terms).await?;
        let gathers = repair.gathered.is_some() && repair.stripe == Stripe::FIRST;
        if gathers {
            if let Some(state) = self.has_gathered(at, (epoch, sum)).await? {
                return Ok(state);
            }
            self.halt(under, id, &repair.terms, repair.stripe).await?;
        }
        // 1. read
        let fields = self.fields(at, repair.terms.share_count).await?;
        let raw = fields.get(&b""[..]).cloned().unwrap_or_default();
        let before = Meta::unpack(&raw);
        if gathers && repair.gathered.as_ref().is_some_and(|all| all.stands) {
            let here = before.as_ref().filter(|meta| meta.epoch == epoch);
            match here.map(|meta| (meta.is_dry(), meta.state)) {
                Some((true, _)) => {}
                // It has ended by itself, and gives nothing that could be gathered.
                Some((false, state @ HotState::Over(_))) => return Ok(state),
                _ => return Err(crossed()),
            }
        }
        // 2. plan
        let orphans = self.not_given_since(under, &repair).await?;
        let plan = plan(&Asked {
            repair: &repair,
            under: (epoch, sum),
            before: before.as_ref(),
            fields: &fields,
            orphans: &orphans,
        })?;
        // 3. stamp
        let is_sound = |meta: &Meta| may_stand(meta, &plan) && in_turn(meta, &plan);
        let sound = !gathers && before.as_ref().is_some_and(is_sound);
        if sound
            && plan.puts.is_empty()
            && plan.drops.is_empty()
            && let Some(state) = self.stamp((epoch, at), raw, &plan).await?
        {
            self.acked.adopted(id, &repair.claims);
            return Ok(state);
        }
        let (state, own) = match self.rebuild((epoch, at), &repair, &plan, false).await? {
            Some(rebuilt) => rebuilt,
            // What a repair before left behind is not what this one would: away with it.
            None => {
                let anew = self.rebuild((epoch, at), &repair, &plan, true).await?;
                anew.ok_or_else(crossed)?
            }
        };
        self.sums.remove(&at);
        // Another gather may have ended a moment before, and by what it knew under older epochs.
        if gathers && state_is_open(state) && self.has_gathered(at, (epoch, sum)).await?.is_none() {
            return Err(crossed());
        }
        self.acked.adopted(id, &repair.claims);
        if own {
            tell(&repair, &plan, before.as_ref());
        }
        Ok(state)
    }

    /// `None`: it changed meanwhile.
    async fn stamp(
        &self,
        (epoch, at): (Epoch, Place),
        raw: Vec<u8>,
        plan: &Plan,
    ) -> Result<Option<HotState>, HotError> {
        let own = self.own(at);
        let call = Call::writing(self, "stamp_1", at.partition)
            .key(own.grabs)
            .key(own.shares)
            .key(own.phrase)
            .under(epoch)
            .arg(raw)
            .number(plan.code());
        match self.call(call).await? {
            (Reply::Ok, items) => state_told(&items).map(Some),
            (Reply::Stale, _) => Ok(None),
            (code, items) => Err(unexpected(code, items)),
        }
    }

    /// Looked at first: a full Redis refuses to be told what it knows, and what stands as it is must be
    /// stamped there, so that it ends and gives its memory back.
    async fn put_terms(&self, at: Place, terms: &Terms) -> Result<(), HotError> {
        let key = self.own(at).terms;
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

    /// Steps 4 to 6: where it stands, and whether this rebuilt it. `None`: what is there does not fit the plan.
    async fn rebuild(
        &self,
        (epoch, at): (Epoch, Place),
        repair: &Repair,
        plan: &Plan,
        anew: bool,
    ) -> Result<Option<(HotState, bool)>, HotError> {
        // 4. begin
        let raw = plan.meta.pack();
        let call = Call::writing(self, "rebuild_1", at.partition);
        let call = self
            .with_all_keys(call, at)
            .under(epoch)
            .arg(at.id.to_bytes())
            .arg(raw.as_slice())
            .arg(repair.terms.to_json())
            .arg(lock_of(&repair.terms))
            .number(u8::from(anew))
            .number(plan.code());
        match self.call(call).await? {
            (Reply::Ok, _) => {}
            // Somebody else has repaired it.
            (Reply::Stale, items) => return state_told(&items).map(|state| Some((state, false))),
            // And by a plan that is newer than this one.
            (Reply::Incomplete, _) => return Err(crossed()),
            (code, items) => return Err(unexpected(code, items)),
        }
        // 5. put
        let mut fits = true;
        for drops in plan.drops.chunks(GRANTS_PER_PUT_MAX) {
            fits &= self.put((epoch, at, &raw), (0, &[]), drops, &[]).await?;
        }
        for puts in plan.puts.chunks(GRANTS_PER_PUT_MAX) {
            fits &= self.put((epoch, at, &raw), (0, &[]), &[], puts).await?;
        }
        let bytes = plan.meta.record_bytes();
        for (number, shares) in plan
            .shares
            .chunks(LOAD_CHUNK_SHARES_MAX * bytes)
            .enumerate()
        {
            let offset = number * LOAD_CHUNK_SHARES_MAX;
            fits &= self
                .put((epoch, at, &raw), (offset, shares), &[], &[])
                .await?;
        }
        if !fits {
            return Ok(None);
        }
        // 6. end
        let own = self.own(at);
        let call = Call::writing(self, "rebuilt_2", at.partition)
            .key(own.grabs)
            .key(own.shares)
            .key(own.phrase)
            .under(epoch)
            .arg(raw)
            .number(plan.code());
        match self.call(call).await? {
            (Reply::Ok, items) => state_told(&items).map(|state| Some((state, true))),
            (Reply::Incomplete, _) => Ok(None),
            _ => Err(crossed()),
        }
    }

    /// One call of step 5; `false`: other shares are there.
    async fn put(
        &self,
        (epoch, at, meta): (Epoch, Place, &[u8]),
        (offset, shares): (usize, &[u8]),
        drops: &[Vec<u8>],
        puts: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<bool, HotError> {
        let own = self.own(at);
        let mut call = Call::writing(self, "rebuild_put_2", at.partition)
            .key(own.grabs)
            .key(own.shares)
            .under(epoch)
            .arg(meta)
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

    /// What this process acknowledged of an envelope and the store may have lost. Of a stripe whose shares are
    /// gathered: without what the first one, which is halted for that, has given to others since, and without those
    /// who have another share there.
    async fn not_given_since(
        &self,
        under: &Epochs,
        repair: &Repair,
    ) -> Result<Vec<HeldShare>, HotError> {
        let (id, terms) = (repair.envelope, &repair.terms);
        let mut orphans = self.acked.orphans_of(id);
        let of_home = repair.gathered.is_some() && repair.stripe != Stripe::FIRST;
        if orphans.is_empty() || !of_home {
            return Ok(orphans);
        }
        self.halt(under, id, terms, Stripe::FIRST).await?;
        let fields = self.fields(self.first(id), terms.share_count).await?;
        let width = width_of(terms);
        let shares = fields.values().filter_map(|value| grant_of(value, width));
        let given: HashSet<u32> = shares.map(|(grant, _)| grant.share).collect();
        orphans.retain(|held| {
            let there = fields.contains_key(held.grabber.as_str().as_bytes());
            !there && !given.contains(&held.grant.share)
        });
        Ok(orphans)
    }

    /// Where a first stripe stands that has already been given what is left under these epochs, and has lost
    /// nothing of it since.
    async fn has_gathered(
        &self,
        at: Place,
        (epoch, sum): (Epoch, u64),
    ) -> Result<Option<HotState>, HotError> {
        let has = |meta: &Meta| has_gathered(meta, (epoch, sum));
        // Its meta alone does not tell whether its grabs and its shares are there: a look sees no envelope
        // that is not sound.
        let seen = self.looks(&[at]).await?.pop().flatten();
        let meta = seen.map(|(meta, _)| meta).filter(has);
        Ok(meta.map(|meta| meta.state))
    }
}

/// Whether a first stripe has been given what is left, under its epoch and the sum of all.
pub fn has_gathered(meta: &Meta, (epoch, sum): (Epoch, u64)) -> bool {
    let part = meta.part.as_ref();
    let all = part.is_some_and(|part| part.whole && part.under == sum && !part.dry);
    all && meta.epoch == epoch && meta.state != HotState::Funding
}

/// Whether it may still give shares, or say that it has none.
fn state_is_open(state: HotState) -> bool {
    !matches!(
        state,
        HotState::Over(CloseReason::Expired | CloseReason::Recalled)
    )
}

/// Tells people what was rebuilt: of a dealt envelope, each stripe.
fn tell(repair: &Repair, plan: &Plan, before: Option<&Meta>) {
    let id = repair.envelope;
    let first_time = before.is_some_and(|meta| !meta.part.as_ref().is_some_and(|part| part.whole));
    if repair.gathered.as_ref().is_some_and(|all| all.stands) {
        if !first_time {
            return;
        }
        let left = plan.meta.length;
        tracing::info!(envelope = %id, left, "what was left of an envelope was gathered");
        metrics::envelope_gathered();
        return;
    }
    // One that its Create did not come to load has lost nothing.
    let is_new = before.is_none() && plan.taken.is_empty() && repair.over.is_none();
    if !is_new {
        let claims = repair.claims.len();
        tracing::warn!(envelope = %id, claims, "an envelope was rebuilt from the books");
        metrics::envelope_repaired();
    }
}

/// Whether a stamp takes an envelope to where it is to stand: it may end one that is live, or halt it.
pub fn may_stand(meta: &Meta, plan: &Plan) -> bool {
    let ends = meta.state == HotState::Live && matches!(plan.state, HotState::Over(_));
    let dries = !meta.is_dry() && meta.state == HotState::Live && plan.dry;
    (meta.state == plan.state && meta.is_dry() == plan.dry) || ends || dries
}

/// Whether an envelope may stand as it is, as far as its grabs tell: those of one that was never
/// rebuilt are the first of its shares.
pub fn in_turn(meta: &Meta, plan: &Plan) -> bool {
    let turns = meta.first()..meta.first() + meta.next;
    let by_turn = meta.named || meta.compact || turns.eq(plan.taken.iter().copied());
    meta.state != HotState::Funding && by_turn
}

/// The state in the first place of a reply. One that is dry is live.
fn state_told(items: &[Value]) -> Result<HotState, HotError> {
    let code = items.first().map_or(Ok(-1), reply::number)?;
    let code = u8::try_from(code).ok();
    let state = code.and_then(|code| match code {
        DRY => Some(HotState::Live),
        code => state_of(code),
    });
    state.ok_or_else(|| reply::nonsense(&Value::Array(items.to_vec())))
}

fn crossed() -> HotError {
    HotError::Unavailable("two repairs of the envelope crossed: try again".into())
}
