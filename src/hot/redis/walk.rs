//! All grants of an envelope, a page behind the other: what can't be paged by number is read once a walk.
//!
//! # Bounds
//! A walk keeps the grants of one envelope: one page without a list needs them all for a moment. What was
//! granted since is read by turn, [`TURNS_PER_READ`] at a time.
//!
//! # Ordering
//! Each page asks the library how far the envelope is, under the epoch. Every grab changes that, so where it
//! is what it was, what was read stands; in a rebuilt envelope the list tells who came since. What the
//! scan saw early comes again by turn, and counts once. A half rebuilt envelope changes under one meta, so
//! nothing of it is kept.
//!
//! # Not here
//! Single pages: `reads`.

use std::ops::Range;

use redis::Value;

use super::core::{Core, Place};
use super::layout::Meta;
use super::reads::Listed;
use super::reply;
use crate::domain::envelope::HotState;
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, Partition};
use crate::hot::{GrantWalk, HotError};

/// Turns of which one command asks.
const TURNS_PER_READ: u32 = 1_000;

impl Core {
    /// See [`HotStore::walk_grants`](crate::hot::HotStore::walk_grants).
    pub async fn walk_grants(
        &self,
        walk: &mut GrantWalk,
        id: EnvelopeId,
        from: u32,
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        let terms = self.terms_of(&[id]).await?.pop().flatten();
        match terms.filter(|terms| !terms.stripes.is_one()) {
            Some(terms) => self.walk_dealt(walk, id, &terms, (from, limit)).await,
            None => {
                self.walk_place(walk, self.first(id), (0, from), limit)
                    .await
            }
        }
    }

    /// The same of what lies in one place; by turn its first share is `base`.
    pub(super) async fn walk_place(
        &self,
        walk: &mut GrantWalk,
        at: Place,
        (base, from): (u32, u32),
        limit: usize,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        let meta = match self.listed(at, from.saturating_sub(base), limit).await? {
            Listed::Missing => {
                *walk = GrantWalk::default();
                return Ok(None);
            }
            Listed::Page(page) => return Ok(Some(page)),
            Listed::Not(meta) => meta,
        };
        if !self.catches_up(walk, at, &meta).await? {
            // What is void goes first: there is room for one.
            walk.held = Vec::new();
            walk.held = self.held_shares(at, &meta).await?;
        }
        // As it was before the hash was read: what came meanwhile comes again.
        let stands = meta.state != HotState::Funding;
        walk.of = stands.then(|| (at.partition, at.id, meta.pack()));
        let first = walk.held.partition_point(|held| held.grant.share < from);
        let page = walk.held[first..].iter().take(limit);
        Ok(Some(page.cloned().collect()))
    }

    /// Adds what was granted since; `false`: the envelope must be read anew.
    async fn catches_up(
        &self,
        walk: &mut GrantWalk,
        at: Place,
        now: &Meta,
    ) -> Result<bool, HotError> {
        let here = |of: &&(Partition, EnvelopeId, Vec<u8>)| (of.0, of.1) == (at.partition, at.id);
        let before = walk.of.as_ref().filter(here);
        let before = before.and_then(|(_, _, meta)| Meta::unpack(meta));
        let Some(turns) = before.and_then(|before| turns_since(&before, now)) else {
            return Ok(false);
        };
        let mut first = turns.start;
        while first < turns.end {
            let end = turns.end.min(first.saturating_add(TURNS_PER_READ));
            let Some(came) = self.by_turn(at, now, first..end).await? else {
                return Ok(false);
            };
            walk.held.extend(came);
            first = end;
        }
        if !turns.is_empty() {
            let place = |held: &HeldShare| (held.grant.share, held.grabber.clone());
            walk.held.sort_by_cached_key(place);
            walk.held.dedup();
        }
        Ok(u32::try_from(walk.held.len()) == Ok(now.held_count()))
    }

    /// Who took these turns since the envelope was rebuilt; `None` where the list does not tell.
    async fn by_turn(
        &self,
        at: Place,
        now: &Meta,
        turns: Range<u32>,
    ) -> Result<Option<Vec<HeldShare>>, HotError> {
        let own = self.own(at);
        let mut names = redis::cmd("LRANGE");
        names.arg(&own.list).arg(turns.start).arg(turns.end - 1);
        let Some(Value::Array(names)) = self.read_all(vec![names]).await?.pop() else {
            return Ok(None);
        };
        if u32::try_from(names.len()) != Ok(turns.end - turns.start) {
            return Ok(None);
        }
        let mut values = redis::cmd("HMGET");
        values.arg(&own.grabs);
        for name in &names {
            values.arg(reply::bytes(name)?);
        }
        let Some(Value::Array(values)) = self.read_all(vec![values]).await?.pop() else {
            return Ok(None);
        };
        let pairs = names.iter().zip(&values);
        Ok(pairs.map(|pair| one_of_list(now, pair)).collect())
    }
}

/// A name of the list and the value under it; `None` where it holds nothing.
fn one_of_list(now: &Meta, (name, value): (&Value, &Value)) -> Option<HeldShare> {
    let name = std::str::from_utf8(reply::bytes(name).ok()?).ok()?;
    now.held(name, reply::bytes(value).ok()?)
}

/// PURE: which turns were taken since; `None`: what was read may not stand, or nobody tells who took them.
fn turns_since(before: &Meta, now: &Meta) -> Option<Range<u32>> {
    let built = |meta: &Meta| {
        let shares = (meta.base, meta.base_minor, meta.length, meta.count);
        let what = (meta.named, meta.compact, meta.width, meta.declined);
        let part = meta.part.as_ref().map(|part| (part.held, part.whole));
        (meta.epoch, shares, what, part)
    };
    let same = built(before) == built(now) && before.next <= now.next;
    // The list of one that was never rebuilt is why it can't be paged.
    let told = before.next == now.next || now.compact && now.listed;
    (same && told && now.state != HotState::Funding).then_some(before.next..now.next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::envelope::CloseReason;
    use crate::domain::id::{Epoch, TenantId, UnixMs};

    /// Rebuilt with seven grants, of which three came since.
    fn rebuilt() -> Meta {
        Meta {
            state: HotState::Live,
            frozen: None,
            opening_seen: true,
            named: false,
            locked: false,
            listed: true,
            compact: true,
            width: 2,
            next: 3,
            base: 4,
            length: 96,
            count: 100,
            declined: 0,
            opens_at: UnixMs(0),
            expires_at: UnixMs(1_000),
            epoch: Epoch(2),
            base_minor: 40,
            tenant: TenantId::parse("acme").unwrap(),
            part: None,
        }
    }

    #[test]
    fn the_turns_since_are_those_that_the_list_tells() {
        let before = rebuilt();
        assert_eq!(turns_since(&before, &before), Some(3..3));
        let grabbed = Meta {
            next: 9,
            ..rebuilt()
        };
        assert_eq!(turns_since(&before, &grabbed), Some(3..9));
        let over = Meta {
            state: HotState::Over(CloseReason::Expired),
            frozen: Some(crate::hot::Mark::Books),
            ..rebuilt()
        };
        assert_eq!(turns_since(&before, &over), Some(3..3));
        let unlisted = Meta {
            listed: false,
            ..rebuilt()
        };
        assert_eq!(turns_since(&before, &unlisted), Some(3..3));
        let unlisted = Meta {
            next: 4,
            ..unlisted
        };
        assert_eq!(turns_since(&before, &unlisted), None);
    }

    #[test]
    fn an_envelope_that_was_built_anew_is_read_anew() {
        let before = rebuilt();
        let anew = [
            Meta {
                epoch: Epoch(3),
                ..rebuilt()
            },
            Meta {
                base: 7,
                next: 3,
                ..rebuilt()
            },
            Meta {
                next: 2,
                ..rebuilt()
            },
            Meta {
                length: 93,
                ..rebuilt()
            },
            Meta {
                base_minor: 41,
                ..rebuilt()
            },
            Meta {
                compact: false,
                ..rebuilt()
            },
            Meta {
                declined: 1,
                ..rebuilt()
            },
            Meta {
                state: HotState::Funding,
                ..rebuilt()
            },
        ];
        for now in anew {
            assert_eq!(turns_since(&before, &now), None, "{now:?}");
        }
    }
}
