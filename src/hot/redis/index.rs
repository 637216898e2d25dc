//! Which envelopes there are, and which stand still: pages of ids over the sorted sets of all partitions.
//!
//! # Bounds
//! A look asks each partition for twice its part of a page.

use redis::Value;

use super::core::Core;
use super::reply;
use crate::domain::id::{EnvelopeId, Epoch, Partition};
use crate::hot::{HotError, Mark};

impl Core {
    /// Ids of envelopes above `after`, ascending, at most `limit`.
    pub async fn envelopes(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<EnvelopeId>, HotError> {
        self.ids(|partition| self.keys.index(partition), after, limit)
            .await
    }

    /// Marked envelopes above `after`, ascending, at most `limit`: a full page, unless it is the last. One that is
    /// listed and not there, or not marked, fills no place.
    pub async fn marked(
        &self,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<(EnvelopeId, Mark)>, HotError> {
        let (mut marked, mut after) = (Vec::new(), after);
        // Each look goes on behind the last id of the one before, so there are as many as pages of ids.
        loop {
            let key = |partition| self.keys.marked(partition);
            let ids = self.ids(key, after, limit).await?;
            let last = ids.len() < limit;
            after = ids.last().copied().or(after);
            let views = self.view(ids).await?.into_iter().flatten();
            marked.extend(views.filter_map(|view| Some((view.envelope, view.frozen?))));
            if last || marked.len() >= limit {
                marked.truncate(limit);
                return Ok(marked);
            }
        }
    }

    /// A page of the ids that the partitions' sorted sets hold: a full one, unless it is the last.
    async fn ids(
        &self,
        key: impl Fn(Partition) -> String,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<Vec<EnvelopeId>, HotError> {
        let mut ids: Vec<EnvelopeId> = Vec::new();
        // One look is enough but where one partition has many more of them than others, or where the same dealt
        // ones are listed in all. Each look that is not the last adds one.
        loop {
            let from = ids.last().copied().or(after);
            let (some, last) = self.some_ids(&key, from, limit - ids.len()).await?;
            ids.extend(some);
            if last || ids.len() >= limit {
                return Ok(ids);
            }
        }
    }

    /// At most so many, and whether there are no others behind them.
    async fn some_ids(
        &self,
        key: impl Fn(Partition) -> String,
        after: Option<EnvelopeId>,
        limit: usize,
    ) -> Result<(Vec<EnvelopeId>, bool), HotError> {
        // A server that nobody knows may hold less than is there.
        if self.keys.count().all().any(|p| self.epoch(p) == Epoch(0)) {
            return Err(HotError::Unavailable("Redis is not registered yet".into()));
        }
        let partitions = usize::from(self.keys.count().get());
        // Ids are random, so partitions have about the same number of each page.
        let each = (2 * limit / partitions + 8).min(limit).max(1);
        let from = after.map_or_else(|| b"-".to_vec(), |id| [b"(", &id.to_bytes()[..]].concat());
        let page = |partition| {
            let mut range = redis::cmd("ZRANGE");
            range
                .arg(key(partition))
                .arg(&from[..])
                .arg("+")
                .arg("BYLEX");
            range.arg("LIMIT").arg(0).arg(each);
            range
        };
        let pages = self
            .run_all(self.keys.count().all().map(page).collect())
            .await?;
        let mut ids = Vec::new();
        // Behind the last id of a full page there may be others of its partition.
        let mut complete_to: Option<EnvelopeId> = None;
        for page in pages {
            let Value::Array(members) = page else {
                return Err(reply::nonsense(&page));
            };
            let mut last = None;
            for member in &members {
                let bytes = <[u8; 16]>::try_from(reply::bytes(member)?);
                last = bytes.ok().map(EnvelopeId::from_bytes);
                ids.extend(last);
            }
            if members.len() == each {
                complete_to = complete_to.into_iter().chain(last).min();
            }
        }
        ids.sort_unstable();
        // One that is dealt is listed wherever a stripe of it lies.
        ids.dedup();
        if let Some(to) = complete_to {
            ids.retain(|id| *id <= to);
        }
        let last = complete_to.is_none() && ids.len() <= limit;
        ids.truncate(limit);
        Ok((ids, last))
    }
}
