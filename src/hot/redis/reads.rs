//! Looks: how far an envelope is, who holds what, what is there.
//!
//! # Bounds
//! A view reads the shares that were taken since the last one, in looks of
//! `SHARES_PER_LOOK_BYTES`; an envelope of up to [`LISTED_SHARES_MIN`] shares is read whole, a
//! larger one by pages, unless it was rebuilt.
//!
//! # Ordering
//! Reads name the epoch like writes: a server that was restarted shows nothing before it is
//! registered, rather than less than somebody was told. What is not whole counts as missing.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::Value;

use super::core::{Call, Core, Place};
use super::layout::{LISTED_SHARES_MIN, Meta, grant_of};
use super::reply::{self, Reply};
use super::sums::{SHARES_PER_LOOK_BYTES, Sums};
use crate::domain::envelope::{HotState, Terms};
use crate::domain::grab::{Grab, GrabReply, Grant, HeldShare, Outcome, Refusal};
use crate::domain::id::{EnvelopeId, Partition, PersonId};
use crate::domain::stripes::home;
use crate::hot::{GrantWalk, HotError, HotView};

/// Fields that one step of a walk over a grabs hash returns at about.
const SCAN_FIELDS: usize = 1_000;
/// Steps of such a walk: far above what 10,000,000 grabs need, so that a walk ends.
const SCAN_STEPS_MAX: usize = 100_000;
/// Looks of one view: the largest envelope has 80 MB of shares.
const LOOKS_PER_VIEW_MAX: usize = 2_048;

impl Core {
    /// Terms of envelopes, in their order; `None` where they are not here.
    pub async fn terms_of(&self, ids: &[EnvelopeId]) -> Result<Vec<Option<Arc<Terms>>>, HotError> {
        let unseen: Vec<_> = ids
            .iter()
            .filter(|id| self.terms.peek(*id).is_none())
            .collect();
        if !unseen.is_empty() {
            let get = |id: &&EnvelopeId| {
                let mut get = redis::cmd("GET");
                get.arg(self.keys.envelope(self.partition(**id), **id).terms);
                get
            };
            let texts = self.read_all(unseen.iter().map(get).collect()).await?;
            for (id, text) in unseen.into_iter().zip(texts) {
                let Value::BulkString(text) = text else {
                    continue;
                };
                let text = std::str::from_utf8(&text).ok();
                if let Some(Ok(terms)) = text.map(Terms::from_json) {
                    self.terms.insert(*id, Arc::new(terms));
                }
            }
        }
        Ok(ids.iter().map(|id| self.terms.get(id)).collect())
    }

    /// How far envelopes are, in their order.
    pub async fn view(&self, ids: Vec<EnvelopeId>) -> Result<Vec<Option<HotView>>, HotError> {
        let places: Vec<_> = ids.iter().map(|id| self.first(*id)).collect();
        let found = self.looks(&places).await?;
        let terms = self.terms_of(&ids).await?;
        let dealt = found.iter().zip(&terms).zip(&ids);
        let dealt = dealt.filter_map(|((found, terms), id)| {
            found.as_ref()?.0.part.as_ref()?;
            Some((*id, Arc::clone(terms.as_ref()?)))
        });
        let mut others = self.others_of(&dealt.collect::<Vec<_>>()).await?;
        let mut views = Vec::with_capacity(ids.len());
        for ((at, found), terms) in places.into_iter().zip(found).zip(terms) {
            views.push(match (found, terms) {
                (Some((meta, sums)), Some(terms)) if meta.part.is_none() => {
                    Some(self.view_of(at, &meta, sums, terms).await?)
                }
                (Some(first), Some(terms)) => {
                    self.view_of_dealt(at.id, first, &mut others, terms).await?
                }
                _ => None,
            });
        }
        Ok(views)
    }

    /// What lies in these places, in their order, and what its taken shares add up to.
    pub(super) async fn looks(
        &self,
        places: &[Place],
    ) -> Result<Vec<Option<(Meta, Sums)>>, HotError> {
        let mut metas: Vec<Option<(Meta, Sums)>> = vec![None; places.len()];
        let mut asked: Vec<usize> = (0..places.len()).collect();
        for _ in 0..LOOKS_PER_VIEW_MAX {
            if asked.is_empty() {
                break;
            }
            asked = self.look(places, &asked, &mut metas).await?;
        }
        Ok(metas)
    }

    /// One look at those of `asked`; answers those of which more is to be read.
    async fn look(
        &self,
        places: &[Place],
        asked: &[usize],
        metas: &mut [Option<(Meta, Sums)>],
    ) -> Result<Vec<usize>, HotError> {
        let mut by_partition: BTreeMap<Partition, Vec<usize>> = BTreeMap::new();
        for place in asked {
            let partition = places[*place].partition;
            by_partition.entry(partition).or_default().push(*place);
        }
        let known = |place: usize| match &metas[place] {
            Some((_, sums)) => Some(sums.clone()),
            None => self.sums.get(&places[place]),
        };
        let before: BTreeMap<usize, Option<Sums>> =
            asked.iter().map(|place| (*place, known(*place))).collect();
        let calls = by_partition.iter().map(|(partition, of_it)| {
            let mut call = Call::reading(self, "view_1", *partition)
                .under(self.epoch(*partition))
                .number(SHARES_PER_LOOK_BYTES);
            for place in of_it {
                let own = self.own(places[*place]);
                let known = before[place].as_ref().map_or(0, |sums| sums.known);
                call = call
                    .key(own.grabs)
                    .key(own.shares)
                    .key(own.phrase)
                    .number(known);
            }
            call
        });
        let replies = self.call_all(calls.collect()).await?;
        let mut more = Vec::new();
        for (of_it, (_, items)) in by_partition.values().zip(replies) {
            for (place, pair) in of_it.iter().zip(items.chunks(2)) {
                let [meta, shares] = pair else {
                    return Err(reply::nonsense(&Value::Nil));
                };
                let Some(meta) = Meta::unpack(reply::bytes(meta)?) else {
                    metas[*place] = None;
                    continue;
                };
                let (sums, whole) = added(&meta, before[place].clone(), reply::bytes(shares)?);
                if !whole {
                    more.push(*place);
                }
                metas[*place] = Some((meta, sums));
            }
        }
        Ok(more)
    }

    pub(super) async fn view_of(
        &self,
        at: Place,
        meta: &Meta,
        mut sums: Sums,
        terms: Arc<Terms>,
    ) -> Result<HotView, HotError> {
        let mut taken_minor = meta.base_minor.saturating_add(sums.minor);
        if meta.named {
            let held = self.held_shares(at, meta).await?;
            taken_minor = held.iter().map(|held| held.grant.amount_minor).sum();
            sums.best_held = Some(best(&held));
        } else if matches!(meta.state, HotState::Over(_)) && sums.best_held.is_none() {
            sums.best_held = Some(self.best_held(at, meta, &sums).await?);
        }
        let over = matches!(meta.state, HotState::Over(_));
        let best = sums.best_held.clone().flatten().filter(|_| over);
        if !meta.named {
            self.sums.insert(at, sums);
        }
        Ok(HotView {
            envelope: at.id,
            terms,
            state: meta.state,
            frozen: meta.frozen,
            taken_count: meta.taken_count(),
            taken_minor,
            declined_count: meta.declined,
            best,
            stale: meta.epoch != self.epoch(at.partition) || meta.half_rebuilt(),
            gathered: false,
        })
    }

    /// Who holds the best share of an envelope that is over.
    pub(super) async fn best_held(
        &self,
        at: Place,
        meta: &Meta,
        sums: &Sums,
    ) -> Result<Option<HeldShare>, HotError> {
        if let (true, false, Some((_, share))) = (meta.listed, meta.compact, sums.best) {
            let page = self.listed(at, share - meta.first(), 1).await?;
            if let Listed::Page(page) = page {
                return Ok(page.into_iter().next());
            }
        }
        Ok(best(&self.held_shares(at, meta).await?))
    }

    /// What each person holds of an envelope, in their order.
    pub async fn held(
        &self,
        whose: Vec<(EnvelopeId, PersonId)>,
    ) -> Result<Vec<Option<HeldShare>>, HotError> {
        let ids: Vec<_> = whose.iter().map(|(id, _)| *id).collect();
        let terms = self.terms_of(&ids).await?;
        let mut places: Vec<(usize, Place)> = Vec::with_capacity(whose.len());
        for (index, ((id, grabber), terms)) in whose.iter().zip(terms).enumerate() {
            let first = self.first(*id);
            if let Some(terms) = terms.filter(|terms| !terms.stripes.is_one()) {
                let of = terms.stripes;
                let home = self.place(*id, home(*id, grabber, of), of);
                places.extend((home != first).then_some((index, home)));
            }
            places.push((index, first));
        }
        let calls = places.iter().map(|(index, at)| {
            Call::reading(self, "result_1", at.partition)
                .key(self.own(*at).grabs)
                .under(self.epoch(at.partition))
                .arg(whose[*index].1.as_str())
        });
        let replies = self.call_all(calls.collect()).await?;
        let mut held = vec![None; whose.len()];
        for ((index, _), (_, items)) in places.into_iter().zip(replies) {
            let result = one_result(&items)?.map(|(grant, declined)| HeldShare {
                grabber: whose[index].1.clone(),
                grant,
                declined,
            });
            // What he has at home is what he was told first.
            held[index] = held[index].take().or(result);
        }
        Ok(held)
    }

    /// What `grab_1` would answer to those of these grabs who have a share or declined one, by functions
    /// that only read; `None` to the others, and wherever it would not answer so.
    pub async fn repeats(&self, grabs: &[Grab]) -> Result<Vec<Option<GrabReply>>, HotError> {
        let metas = grabs.iter().map(|grab| {
            let mut get = redis::cmd("HGET");
            let own = self.keys.envelope(grab.partition, grab.envelope);
            get.arg(own.grabs).arg("");
            get
        });
        let metas = self.read_all(metas.collect()).await?;
        let calls = grabs.iter().map(|grab| {
            Call::reading(self, "result_1", grab.partition)
                .key(self.keys.envelope(grab.partition, grab.envelope).grabs)
                .under(grab.epoch)
                .arg(grab.grabber.as_str())
        });
        let results = self.call_all(calls.collect()).await?;
        let mut replies = Vec::with_capacity(grabs.len());
        for ((grab, meta), (_, items)) in grabs.iter().zip(metas).zip(results) {
            let served = reply::bytes(&meta).ok().and_then(Meta::unpack);
            let served = served.is_some_and(|meta| {
                let stands = meta.epoch == grab.epoch && meta.state != HotState::Funding;
                stands && meta.frozen.is_none() && meta.tenant == grab.tenant
            });
            let held = one_result(&items)?.filter(|_| served);
            replies.push(held.map(|(grant, declined)| {
                GrabReply::Outcome(match declined {
                    true => Outcome::Refused(Refusal::Declined),
                    false => Outcome::AlreadyGrabbed(grant),
                })
            }));
        }
        Ok(replies)
    }

    /// Taken shares with numbers ≥ `from`, by number; `None` where the envelope is missing. Who asks for
    /// one page behind another walks (`walk`): where there is no list, each page reads the whole hash.
    pub async fn grants(
        &self,
        id: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        let mut walk = GrantWalk::default();
        self.walk_grants(&mut walk, id, from, limit).await
    }

    /// The page that begins with a turn, if the library can tell it.
    pub(super) async fn listed(
        &self,
        at: Place,
        turn: u32,
        limit: usize,
    ) -> Result<Listed, HotError> {
        let own = self.own(at);
        let call = Call::reading(self, "grants_1", at.partition)
            .key(own.grabs)
            .key(own.list)
            .under(self.epoch(at.partition))
            .number(turn)
            .number(limit);
        let (code, items) = self.call(call).await?;
        match (code, &items[..]) {
            (Reply::Missing, _) => Ok(Listed::Missing),
            (Reply::Stale, [meta]) => {
                let meta = Meta::unpack(reply::bytes(meta)?);
                meta.map(Listed::Not)
                    .ok_or_else(|| reply::nonsense(&Value::Nil))
            }
            (Reply::Ok, [width, pairs @ ..]) => {
                let width = usize::try_from(reply::number(width)?).unwrap_or(usize::MAX);
                let page = pairs.chunks(2).map(|pair| one_held(pair, width));
                Ok(Listed::Page(page.collect::<Result<Vec<_>, _>>()?))
            }
            _ => Err(reply::nonsense(&Value::Array(items))),
        }
    }

    /// All taken shares by number: the whole hash.
    pub async fn held_shares(&self, at: Place, meta: &Meta) -> Result<Vec<HeldShare>, HotError> {
        self.all_held(at, meta.count).await
    }

    /// The same of an envelope of so many shares.
    pub async fn all_held(&self, at: Place, share_count: u32) -> Result<Vec<HeldShare>, HotError> {
        let fields = self.fields(at, share_count).await?;
        // Flushed a moment after it was seen: nothing is shown, rather than that nobody has any.
        let meta = fields.get(&b""[..]).and_then(|raw| Meta::unpack(raw));
        let meta = meta.ok_or_else(|| {
            HotError::Unavailable("the envelope can't be read any more: try again".into())
        })?;
        let named = fields.iter().filter_map(|(name, value)| {
            let name = std::str::from_utf8(name)
                .ok()
                .filter(|name| !name.is_empty())?;
            meta.held(name, value)
        });
        let mut held: Vec<_> = named.collect();
        held.sort_by_key(|held| held.grant.share);
        Ok(held)
    }

    /// The fields of a grabs hash, each once; none where there is no hash.
    pub async fn fields(
        &self,
        at: Place,
        share_count: u32,
    ) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, HotError> {
        let mut fields = BTreeMap::new();
        let mut put = |name: &[u8], value: &[u8]| {
            fields.insert(name.to_vec(), value.to_vec());
        };
        let whole = self.each_field(at, share_count, &mut put).await?;
        Ok(if whole { fields } else { BTreeMap::new() })
    }

    /// Each field of a grabs hash and its value, some perhaps twice. Answers whether there is a hash, to its end.
    pub async fn each_field(
        &self,
        at: Place,
        share_count: u32,
        put: &mut (dyn FnMut(&[u8], &[u8]) + Send),
    ) -> Result<bool, HotError> {
        let key = self.own(at).grabs;
        if share_count <= LISTED_SHARES_MIN {
            let mut all = redis::cmd("HGETALL");
            all.arg(&key);
            let values = self.read_all(vec![all]).await?;
            return put_fields(put, values.into_iter().next().unwrap_or(Value::Nil));
        }
        let mut cursor = b"0".to_vec();
        for _ in 0..SCAN_STEPS_MAX {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(&key)
                .arg(cursor.as_slice())
                .arg("COUNT")
                .arg(SCAN_FIELDS);
            let step = match self.read_all(vec![scan]).await?.pop() {
                Some(Value::Array(step)) => step,
                _ => return Ok(false),
            };
            let Ok([next, page]) = <[Value; 2]>::try_from(step) else {
                return Err(reply::nonsense(&Value::Nil));
            };
            cursor = reply::bytes(&next)?.to_vec();
            put_fields(put, page)?;
            if cursor == b"0" {
                return Ok(true);
            }
        }
        Err(HotError::Unavailable(
            "the walk over an envelope's grabs did not end".into(),
        ))
    }
}

/// A page of grants, if the library tells one.
pub(super) enum Listed {
    /// There is no such envelope.
    Missing,
    /// By number.
    Page(Vec<HeldShare>),
    /// It has no list, or none that can be trusted.
    Not(Meta),
}

fn one_held(pair: &[Value], width: usize) -> Result<HeldShare, HotError> {
    let [name, value] = pair else {
        return Err(reply::nonsense(&Value::Nil));
    };
    let name = std::str::from_utf8(reply::bytes(name)?).ok();
    let grabber = name.and_then(|name| PersonId::parse(name).ok());
    let grant = super::layout::grant_of(reply::bytes(value)?, width);
    let (Some(grabber), Some((grant, declined))) = (grabber, grant) else {
        return Err(reply::nonsense(value));
    };
    Ok(HeldShare {
        grabber,
        grant,
        declined,
    })
}

fn put_fields(put: &mut (dyn FnMut(&[u8], &[u8]) + Send), value: Value) -> Result<bool, HotError> {
    let items = match value {
        Value::Array(items) => items,
        Value::Nil => return Ok(false),
        other => return Err(reply::nonsense(&other)),
    };
    for pair in items.chunks(2) {
        let [name, value] = pair else {
            return Err(reply::nonsense(&Value::Nil));
        };
        put(reply::bytes(name)?, reply::bytes(value)?);
    }
    Ok(true)
}

/// The largest that was not declined, ties to the lowest number.
pub(super) fn best(held: &[HeldShare]) -> Option<HeldShare> {
    let kept = held.iter().filter(|held| !held.declined);
    kept.min_by_key(|held| (-held.grant.amount_minor, held.grant.share))
        .cloned()
}

/// The grant of one answer of `result_1`, and whether it was declined.
fn one_result(items: &[Value]) -> Result<Option<(Grant, bool)>, HotError> {
    let [width, value] = items else {
        return Err(reply::nonsense(&Value::Array(items.to_vec())));
    };
    let width = usize::try_from(reply::number(width)?).unwrap_or(usize::MAX);
    Ok(grant_of(reply::bytes(value)?, width))
}

/// The sums after a look, and whether nothing more is to be read.
fn added(meta: &Meta, before: Option<Sums>, shares: &[u8]) -> (Sums, bool) {
    if meta.named {
        return (Sums::new(meta), true);
    }
    match before {
        Some(mut sums) if sums.fits(meta) => {
            let added = sums.add(meta, shares).is_some();
            let whole = added && sums.known == meta.next;
            (sums, whole)
        }
        // The look began behind another envelope's shares: from the start.
        Some(_) => (Sums::new(meta), meta.next == 0),
        None => {
            let mut sums = Sums::new(meta);
            let whole = sums.add(meta, shares).is_some() && sums.known == meta.next;
            (sums, whole)
        }
    }
}
