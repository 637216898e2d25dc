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

use super::core::{Call, Core};
use super::layout::{LISTED_SHARES_MIN, Meta, grant_of};
use super::reply::{self, Reply};
use super::sums::{SHARES_PER_LOOK_BYTES, Sums};
use crate::domain::envelope::{HotState, Terms};
use crate::domain::grab::{Grab, GrabReply, Grant, HeldShare, Outcome, Refusal};
use crate::domain::id::{EnvelopeId, Partition, PersonId};
use crate::hot::{HotError, HotView};

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
        let mut metas: Vec<Option<(Meta, Sums)>> = vec![None; ids.len()];
        let mut asked: Vec<usize> = (0..ids.len()).collect();
        for _ in 0..LOOKS_PER_VIEW_MAX {
            if asked.is_empty() {
                break;
            }
            asked = self.look(&ids, &asked, &mut metas).await?;
        }
        let terms = self.terms_of(&ids).await?;
        let mut views = Vec::with_capacity(ids.len());
        for ((id, found), terms) in ids.into_iter().zip(metas).zip(terms) {
            views.push(match (found, terms) {
                (Some((meta, sums)), Some(terms)) => {
                    Some(self.view_of(id, &meta, sums, terms).await?)
                }
                _ => None,
            });
        }
        Ok(views)
    }

    /// One look at those of `asked`; answers those of which more is to be read.
    async fn look(
        &self,
        ids: &[EnvelopeId],
        asked: &[usize],
        metas: &mut [Option<(Meta, Sums)>],
    ) -> Result<Vec<usize>, HotError> {
        let mut by_partition: BTreeMap<Partition, Vec<usize>> = BTreeMap::new();
        for place in asked {
            let partition = self.partition(ids[*place]);
            by_partition.entry(partition).or_default().push(*place);
        }
        let known = |place: usize| match &metas[place] {
            Some((_, sums)) => Some(sums.clone()),
            None => self.sums.get(&ids[place]),
        };
        let before: BTreeMap<usize, Option<Sums>> =
            asked.iter().map(|place| (*place, known(*place))).collect();
        let calls = by_partition.iter().map(|(partition, places)| {
            let mut call = Call::reading(self, "view_1", *partition)
                .under(self.epoch(*partition))
                .number(SHARES_PER_LOOK_BYTES);
            for place in places {
                let own = self.keys.envelope(*partition, ids[*place]);
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
        for (places, (_, items)) in by_partition.values().zip(replies) {
            for (place, pair) in places.iter().zip(items.chunks(2)) {
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

    async fn view_of(
        &self,
        id: EnvelopeId,
        meta: &Meta,
        mut sums: Sums,
        terms: Arc<Terms>,
    ) -> Result<HotView, HotError> {
        let mut taken_minor = meta.base_minor.saturating_add(sums.minor);
        if meta.named {
            let held = self.held_shares(id, meta).await?;
            taken_minor = held.iter().map(|held| held.grant.amount_minor).sum();
            sums.best_held = Some(best(&held));
        } else if matches!(meta.state, HotState::Over(_)) && sums.best_held.is_none() {
            sums.best_held = Some(self.best_held(id, meta, &sums).await?);
        }
        let over = matches!(meta.state, HotState::Over(_));
        let best = sums.best_held.clone().flatten().filter(|_| over);
        if !meta.named {
            self.sums.insert(id, sums);
        }
        Ok(HotView {
            envelope: id,
            terms,
            state: meta.state,
            frozen: meta.frozen,
            taken_count: meta.taken_count(),
            taken_minor,
            declined_count: meta.declined,
            best,
            stale: meta.epoch != self.epoch(self.partition(id)) || meta.half_rebuilt(),
        })
    }

    /// Who holds the best share of an envelope that is over.
    async fn best_held(
        &self,
        id: EnvelopeId,
        meta: &Meta,
        sums: &Sums,
    ) -> Result<Option<HeldShare>, HotError> {
        if let (true, false, Some((_, share))) = (meta.listed, meta.compact, sums.best) {
            let page = self.listed(id, share, 1).await?;
            if let Listed::Page(page) = page {
                return Ok(page.into_iter().next());
            }
        }
        Ok(best(&self.held_shares(id, meta).await?))
    }

    /// What somebody holds of each envelope, in their order.
    pub async fn held(
        &self,
        grabber: &PersonId,
        ids: Vec<EnvelopeId>,
    ) -> Result<Vec<Option<HeldShare>>, HotError> {
        let calls = ids.iter().map(|id| {
            let partition = self.partition(*id);
            Call::reading(self, "result_1", partition)
                .key(self.keys.envelope(partition, *id).grabs)
                .under(self.epoch(partition))
                .arg(grabber.as_str())
        });
        let replies = self.call_all(calls.collect()).await?;
        let held = replies.into_iter().map(|(_, items)| {
            Ok(one_result(&items)?.map(|(grant, declined)| HeldShare {
                grabber: grabber.clone(),
                grant,
                declined,
            }))
        });
        held.collect()
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
        match self.listed(id, from, limit).await? {
            Listed::Missing => Ok(None),
            Listed::Page(page) => Ok(Some(page)),
            Listed::Not(meta) => {
                let mut held = self.held_shares(id, &meta).await?;
                held.retain(|held| held.grant.share >= from);
                held.truncate(limit);
                Ok(Some(held))
            }
        }
    }

    /// The page, if the library can tell it by number.
    pub(super) async fn listed(
        &self,
        id: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Listed, HotError> {
        let partition = self.partition(id);
        let own = self.keys.envelope(partition, id);
        let call = Call::reading(self, "grants_1", partition)
            .key(own.grabs)
            .key(own.list)
            .under(self.epoch(partition))
            .number(from)
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
    pub async fn held_shares(
        &self,
        id: EnvelopeId,
        meta: &Meta,
    ) -> Result<Vec<HeldShare>, HotError> {
        self.all_held(id, meta.count).await
    }

    /// The same of an envelope of so many shares.
    pub async fn all_held(
        &self,
        id: EnvelopeId,
        share_count: u32,
    ) -> Result<Vec<HeldShare>, HotError> {
        let fields = self.fields(id, share_count).await?;
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
        id: EnvelopeId,
        share_count: u32,
    ) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, HotError> {
        let key = self.keys.envelope(self.partition(id), id).grabs;
        let mut fields = BTreeMap::new();
        if share_count <= LISTED_SHARES_MIN {
            let mut all = redis::cmd("HGETALL");
            all.arg(&key);
            let values = self.read_all(vec![all]).await?;
            put_fields(&mut fields, values.into_iter().next().unwrap_or(Value::Nil))?;
            return Ok(fields);
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
                _ => return Ok(BTreeMap::new()),
            };
            let [next, page] = &step[..] else {
                return Err(reply::nonsense(&Value::Array(step)));
            };
            cursor = reply::bytes(next)?.to_vec();
            put_fields(&mut fields, page.clone())?;
            if cursor == b"0" {
                return Ok(fields);
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

fn put_fields(into: &mut BTreeMap<Vec<u8>, Vec<u8>>, value: Value) -> Result<(), HotError> {
    let items = match value {
        Value::Array(items) => items,
        Value::Nil => return Ok(()),
        other => return Err(reply::nonsense(&other)),
    };
    for pair in items.chunks(2) {
        let [name, value] = pair else {
            return Err(reply::nonsense(&Value::Nil));
        };
        into.insert(reply::bytes(name)?.to_vec(), reply::bytes(value)?.to_vec());
    }
    Ok(())
}

/// The largest that was not declined, ties to the lowest number.
fn best(held: &[HeldShare]) -> Option<HeldShare> {
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
