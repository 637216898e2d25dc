//! Who has which share after a repair, and which are left: settled grabs win.
//!
//! # Shape
//! | what is repaired | shares that it may give | who stands in it |
//! |---|---|---|
//! | an envelope in one piece | all | everybody |
//! | a stripe | those dealt to it, until they are gathered | who has one of them |
//! | the same, gathered | none; what it has left is the first one's | of those, who grabs at home there |
//! | the first stripe, gathered | its own, and what is left in all others | everybody else |
//!
//! # Ordering
//! What stands in the books stays, then what the grabs hash says, then what this process acknowledged: each
//! whose share and grabber are free and whose amount is the share's.
//!
//! Of a dealt envelope each share has one place that says who has it. Gathered, that is the home of who has
//! it, if the share was dealt to that stripe and is not among those that it has left; else the first one.
//!
//! # Not here
//! How it is written: `repair`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

use super::layout::{DRY, Meta, grant_of, put_amount, state_code, value_of, width_of};
use crate::domain::envelope::{CloseReason, HotState, Kind, Terms};
use crate::domain::grab::HeldShare;
use crate::domain::id::{Epoch, PersonId};
use crate::domain::stripes::{Stripe, dealt, dealt_to, home};
use crate::hot::{HotError, Repair};

/// The fields of a grabs hash.
pub type Fields = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a plan is made of.
pub struct Asked<'a> {
    /// What the books know.
    pub repair: &'a Repair,
    /// The epoch of its partition, and the sum of those of all its partitions.
    pub under: (Epoch, u64),
    /// What was there.
    pub before: Option<&'a Meta>,
    /// All of it.
    pub fields: &'a Fields,
    /// What this process acknowledged, and the store may have lost.
    pub orphans: &'a [HeldShare],
}

/// What the envelope, or the stripe, will be.
pub struct Plan {
    /// While it is built.
    pub meta: Meta,
    /// Where it stands at the end.
    pub state: HotState,
    /// It grants nothing, and is not over.
    pub dry: bool,
    /// Shares that somebody has in it, ascending.
    pub taken: Vec<u32>,
    /// Fields that are to be put, by name.
    pub puts: Vec<(Vec<u8>, Vec<u8>)>,
    /// Fields that contradict the books.
    pub drops: Vec<Vec<u8>>,
    /// The packed shares that are left.
    pub shares: Vec<u8>,
}

impl Plan {
    /// The number by which the library names where it stands.
    pub fn code(&self) -> u8 {
        match self.dry {
            true => DRY,
            false => state_code(self.state),
        }
    }
}

/// Which shares and grabbers belong into what is repaired.
struct Scope<'a> {
    repair: &'a Repair,
    terms: &'a Terms,
    /// The shares that were dealt to it.
    own: Range<u32>,
    /// In the first one: those that the others have left.
    left: HashSet<u32>,
    /// It is the first one of several, and has what was left in all.
    whole: bool,
    /// What another stripe had left is not known.
    lacks: bool,
}

impl<'a> Scope<'a> {
    fn of(repair: &'a Repair) -> Self {
        let terms = &*repair.terms;
        let is_first = repair.stripe == Stripe::FIRST;
        let left = repair
            .gathered
            .iter()
            .flat_map(|all| all.left.iter().copied());
        Self {
            repair,
            terms,
            own: dealt(repair.stripe, terms.stripes, terms.share_count),
            left: left.filter(|_| is_first).collect(),
            whole: is_first && repair.gathered.is_some(),
            lacks: repair.gathered.as_ref().is_some_and(|all| all.lacks),
        }
    }

    /// Whether this is the place that says who has this share.
    fn tells(&self, held: &HeldShare) -> bool {
        let share = held.grant.share;
        if self.terms.stripes.is_one() || self.repair.gathered.is_none() {
            return self.own.contains(&share);
        }
        let home = home(self.repair.envelope, &held.grabber, self.terms.stripes);
        let at_home = dealt_to(share, self.terms.stripes, self.terms.share_count) == Some(home);
        match self.whole {
            true => home == Stripe::FIRST || !at_home || self.left.contains(&share),
            false => at_home && home == self.repair.stripe,
        }
    }

    /// Whether a grant that the store may have lost was made here. In the first one, that of a share which
    /// was left at its grabber's home was made there: he may have another one at home by now.
    fn granted(&self, held: &HeldShare) -> bool {
        self.tells(held)
            && !(self.whole && self.left.contains(&held.grant.share) && {
                let (of, count) = (self.terms.stripes, self.terms.share_count);
                let home = home(self.repair.envelope, &held.grabber, of);
                dealt_to(held.grant.share, of, count) == Some(home) && home != Stripe::FIRST
            })
    }

    /// Every share that it may give by turn, ascending.
    fn shares(&self) -> Vec<u32> {
        if self.terms.kind == Kind::Exclusive {
            return Vec::new();
        }
        let mut shares: Vec<u32> = self.own.clone().chain(self.left.iter().copied()).collect();
        shares.sort_unstable();
        shares.dedup();
        shares
    }
}

/// PURE.
pub fn plan(asked: &Asked<'_>) -> Result<Plan, HotError> {
    let repair = asked.repair;
    let scope = Scope::of(repair);
    let mut meta = Meta::of_stripe(&repair.terms, asked.under.0, repair.stripe);
    let width = width_of(&repair.terms);
    let taken = taken(&scope, asked, width);
    // What the hash shall hold beside its meta.
    let mut wanted = Fields::new();
    let mut here = Vec::new();
    for held in taken.values() {
        let name = held.grabber.as_str().as_bytes().to_vec();
        let value = value_of(held, width).ok_or_else(broken)?;
        // What is there is no harm, and may be what somebody was told.
        if scope.tells(held) || asked.fields.get(&name) == Some(&value) {
            here.push(held);
            wanted.insert(name, value);
        }
    }
    let mut left = scope.shares();
    left.retain(|share| !taken.contains_key(share));
    let over = ended(&scope, asked.before);
    let count = u32::try_from(here.len()).map_err(|_| broken())?;
    let mut shares = Vec::new();
    if meta.named {
        meta.next = count;
        for (number, share) in (0_u32..).zip(&repair.terms.exclusive) {
            let name = share.grabber.as_str().as_bytes().to_vec();
            let untaken = record(number, share.amount_minor, width).ok_or_else(broken)?;
            wanted.entry(name).or_insert(untaken);
        }
    } else {
        // Where a stripe does not know what it had left, all that is known of is counted.
        (meta.base, meta.base_minor) = match (scope.whole, over) {
            (true, _) if !scope.lacks => all_but(&scope, &left)?,
            (true, _) => sum_of(taken.values())?,
            (false, _) => sum_of(here.iter().copied())?,
        };
        meta.length = 0;
        // What a stripe has left is told to who gathers it, also when it is over.
        if over.is_none() || meta.part.is_some() {
            meta.length = u32::try_from(left.len()).map_err(|_| broken())?;
            shares = packed(repair, &left, width)?;
        }
    }
    describe(&mut meta, &scope, asked, &here);
    let none_left = match meta.named {
        true => count == meta.count,
        false => left.is_empty(),
    };
    let (state, dry) = stands(&scope, &meta, none_left, over);
    let unknown = |name: &&Vec<u8>| !name.is_empty() && !wanted.contains_key(*name);
    let drops = asked.fields.keys().filter(unknown).cloned().collect();
    wanted.retain(|name, value| asked.fields.get(name) != Some(value));
    Ok(Plan {
        meta,
        state,
        dry,
        taken: here.iter().map(|held| held.grant.share).collect(),
        puts: wanted.into_iter().collect(),
        drops,
        shares,
    })
}

/// What the meta says beside its counts.
fn describe(meta: &mut Meta, scope: &Scope<'_>, asked: &Asked<'_>, here: &[&HeldShare]) {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    meta.compact = true;
    meta.declined = number(here.iter().filter(|held| held.declined).count());
    if let Some(part) = &mut meta.part {
        (part.held, part.whole) = (number(here.len()), scope.whole);
        part.under = if scope.whole { asked.under.1 } else { 0 };
    }
    if let Some(before) = asked.before {
        (meta.frozen, meta.opening_seen) = (before.frozen, before.opening_seen);
    }
}

/// Where it stands at the end, and whether it is dry there.
fn stands(
    scope: &Scope<'_>,
    meta: &Meta,
    none_left: bool,
    over: Option<HotState>,
) -> (HotState, bool) {
    if let Some(over) = over {
        return (over, false);
    }
    let halted = scope.repair.gathered.is_some() && !scope.whole;
    let dry = meta.part.is_some() && (halted || (none_left && !scope.whole));
    match none_left && !dry {
        true => (HotState::Over(CloseReason::Empty), false),
        false => (HotState::Live, dry),
    }
}

/// Why it is over, if it is. A first stripe that was empty may be given what was lost elsewhere.
fn ended(scope: &Scope<'_>, before: Option<&Meta>) -> Option<HotState> {
    let state = before.map(|meta| meta.state);
    let gathered = scope.repair.gathered.as_ref();
    let elsewhere = gathered.filter(|_| scope.whole).and_then(|all| all.over);
    let may_reopen = scope.whole && state == Some(HotState::Over(CloseReason::Empty));
    state
        .filter(|state| matches!(state, HotState::Over(_)) && !may_reopen)
        .or(scope.repair.over.map(HotState::Over))
        .or(elsewhere.map(HotState::Over))
}

/// So many of all shares are taken as are not left, and what they are worth.
fn all_but(scope: &Scope<'_>, left: &[u32]) -> Result<(u32, i64), HotError> {
    let worth = |share: &u32| amount_of(scope.repair, *share);
    let left_minor: Option<i64> = left.iter().map(worth).sum();
    let minor = scope.terms.total_minor - left_minor.ok_or_else(broken)?;
    let count = u32::try_from(left.len()).map_err(|_| broken())?;
    Ok((scope.terms.share_count - count, minor))
}

/// How many these are, and what they are worth.
fn sum_of<'a>(held: impl Iterator<Item = &'a HeldShare>) -> Result<(u32, i64), HotError> {
    let (mut count, mut minor) = (0_u32, 0_i64);
    for held in held {
        count += 1;
        let sum = minor.checked_add(held.grant.amount_minor);
        minor = sum.ok_or_else(broken)?;
    }
    Ok((count, minor))
}

fn amount_of(repair: &Repair, share: u32) -> Option<i64> {
    let place = usize::try_from(share).ok()?;
    repair.amounts_minor.get(place).copied()
}

fn broken() -> HotError {
    HotError::Mismatch("a claim is worth more than any share".into())
}

/// These shares with their numbers.
fn packed(repair: &Repair, left: &[u32], width: usize) -> Result<Vec<u8>, HotError> {
    let mut shares = Vec::new();
    for share in left {
        let amount = amount_of(repair, *share).ok_or_else(broken)?;
        shares.extend(record(*share, amount, width).ok_or_else(broken)?);
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
fn taken(scope: &Scope<'_>, asked: &Asked<'_>, width: usize) -> BTreeMap<u32, HeldShare> {
    let repair = scope.repair;
    let mut by_share: BTreeMap<u32, HeldShare> = BTreeMap::new();
    let elsewhere = repair.gathered.iter().flat_map(|all| all.elsewhere.iter());
    let mut people: BTreeSet<PersonId> = elsewhere.cloned().collect();
    for claim in &repair.claims {
        people.insert(claim.grabber.clone());
        by_share.insert(claim.grant.share, claim.clone());
    }
    let stored = asked.fields.iter().filter_map(|(name, value)| {
        let name = std::str::from_utf8(name).ok();
        let grabber = name.and_then(|name| PersonId::parse(name).ok())?;
        let (grant, declined) = grant_of(value, width)?;
        Some(HeldShare {
            grabber,
            grant,
            declined,
        })
    });
    // What was granted here stays here, and a first stripe may have given shares of all.
    let stored = stored.filter(|held| scope.whole || scope.own.contains(&held.grant.share));
    let promised = asked.orphans.iter().filter(|held| scope.granted(held));
    for held in stored.chain(promised.cloned()) {
        let worth = amount_of(repair, held.grant.share);
        let free = !by_share.contains_key(&held.grant.share);
        // Granted by nobody who reads the terms: somebody has written it there.
        let share = held.grant.share;
        let refused = repair.terms.refuses(&held.grabber, share, held.declined);
        let may_stay = free && refused.is_none() && worth == Some(held.grant.amount_minor);
        if may_stay && people.insert(held.grabber.clone()) {
            by_share.insert(held.grant.share, held);
        }
    }
    by_share
}
