//! The ledger, as small as its law: `ledger::conformance::sheet`, to which the real ones are held, and
//! accounts.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;
use red_envelope::domain::envelope::{BookState, CloseReason, LeafRef, Terms};
use red_envelope::domain::fairness::ServerSeed;
use red_envelope::domain::grab::{HeldShare, OutboxRecord};
use red_envelope::domain::id::{EnvelopeId, Epoch, Partition, PersonId, UnixMs};
use red_envelope::ledger::conformance::sheet::{Reserve, Sheet};
use red_envelope::ledger::{
    CloseProgress, Due, EnvelopeRow, Fund, Funded, LedgerError, Portion, SettleItem, Settled, Under,
};

/// An envelope's row.
pub struct Page {
    pub sheet: Sheet,
    pub terms: Arc<Terms>,
    pub state: BookState,
    row: i64,
    closed_at: Option<UnixMs>,
    seed: [u8; 32],
}

pub struct Books {
    pub pages: BTreeMap<EnvelopeId, Page>,
    requests: BTreeMap<PersonId, EnvelopeId>,
    /// Who has how much; a sender's may be below zero: money comes from outside.
    pub accounts: BTreeMap<PersonId, i64>,
    /// Every payment of a share: what the audit reads.
    pub paid: Vec<(EnvelopeId, HeldShare)>,
    /// Pays whatever is owed, and nothing must be: no store loses anything here.
    pub reserve: Reserve,
    leases: BTreeMap<String, i64>,
    /// In which epoch a partition of the hot store stands, and which process of it; others are in the first.
    epochs: BTreeMap<Partition, (Epoch, u64)>,
    rng: StdRng,
}

fn broken<T>(why: &str) -> Result<T, LedgerError> {
    Err(LedgerError::Broken(why.to_owned()))
}

fn count(many: usize) -> u32 {
    u32::try_from(many).expect("histories are small")
}

impl Books {
    pub fn new(rng: StdRng) -> Self {
        Self {
            pages: BTreeMap::new(),
            requests: BTreeMap::new(),
            accounts: BTreeMap::new(),
            paid: Vec::new(),
            reserve: Reserve {
                minor_max: i64::MAX / 2,
                ..Reserve::default()
            },
            leases: BTreeMap::new(),
            epochs: BTreeMap::new(),
            rng,
        }
    }

    fn epoch(&self, partition: Partition) -> (Epoch, u64) {
        let known = self.epochs.get(&partition);
        known.copied().unwrap_or((Epoch::FIRST, 0))
    }

    /// Whether a partition stands in this epoch.
    pub fn stands(&self, under: Under) -> Result<(), LedgerError> {
        match self.epoch(under.partition).0 {
            epoch if epoch == under.epoch => Ok(()),
            epoch => Err(LedgerError::Epoch(epoch)),
        }
    }

    /// A process of the hot store may grant in a partition: in which epoch, and whether that is news. `None`:
    /// one that came after it was accepted before.
    pub fn accept(&mut self, partition: Partition, life: u64) -> Option<(Epoch, bool)> {
        let (epoch, accepted) = self.epoch(partition);
        if life <= accepted {
            return (life == accepted).then_some((epoch, false));
        }
        let next = Epoch(epoch.0 + 1);
        self.epochs.insert(partition, (next, life));
        Some((next, true))
    }

    /// Whether a grant is paid, or waits until its envelope is free.
    pub fn has(&self, id: EnvelopeId, held: &HeldShare) -> bool {
        let Some(page) = self.pages.get(&id) else {
            return false;
        };
        let aside = page.sheet.parked.iter().chain(&page.sheet.letters);
        page.sheet
            .claims
            .values()
            .chain(aside)
            .any(|other| other == held)
    }

    /// Records of an envelope that wait until it is free.
    pub fn parked_count(&self, id: EnvelopeId) -> u32 {
        let page = self.pages.get(&id);
        page.map_or(0, |page| count(page.sheet.parked.len()))
    }

    fn page(&mut self, id: EnvelopeId) -> Result<&mut Page, LedgerError> {
        self.pages.get_mut(&id).ok_or(LedgerError::NotFound)
    }

    pub fn row(&self, id: EnvelopeId) -> Option<EnvelopeRow> {
        let page = self.pages.get(&id)?;
        let sheet = &page.sheet;
        let sum = |declined: bool| {
            let claims = sheet
                .claims
                .values()
                .filter(|held| held.declined == declined);
            let amounts = claims.map(|held| held.grant.amount_minor);
            (count(amounts.clone().count()), amounts.sum::<i64>())
        };
        let ((settled_count, settled_minor), (declined_count, declined_minor)) =
            (sum(false), sum(true));
        Some(EnvelopeRow {
            id,
            row: page.row,
            terms: Arc::clone(&page.terms),
            state: page.state,
            frozen: sheet.frozen,
            gathered: sheet.gathered,
            settled_count,
            settled_minor,
            declined_count,
            refunded_minor: declined_minor + sheet.remainder,
            made_good_minor: sheet.made_good_minor,
            set_aside_count: count(sheet.parked.len() + sheet.letters.len()),
            closed_at: page.closed_at,
        })
    }

    /// Who the request funded, if it did.
    pub fn funded(&self, request: &PersonId) -> Option<EnvelopeId> {
        self.requests.get(request).copied()
    }

    pub fn fund(&mut self, fund: Fund, now: UnixMs) -> Funded {
        let replayed = self.requests.contains_key(&fund.request_id);
        if !replayed {
            let random: [u8; 14] = self.rng.random();
            let id = EnvelopeId::from_parts(now.day(), random);
            let draft = fund.draft;
            let sender = self.accounts.entry(draft.sender.clone()).or_default();
            *sender -= draft.total_minor;
            let number = count(self.pages.len());
            let page = Page {
                sheet: Sheet::new(draft.total_minor, draft.share_count),
                state: BookState::Funding,
                row: i64::from(number),
                closed_at: None,
                seed: self.rng.random(),
                terms: Arc::new(Terms {
                    created_at: now,
                    expires_at: now.plus_ms(draft.expires_in_ms),
                    leaf: LeafRef {
                        leaf_number: u64::from(number),
                        leaf_hash: [2; 32],
                        batch_number: 0,
                        batch_root: [3; 32],
                    },
                    draft,
                }),
            };
            self.pages.insert(id, page);
            self.requests.insert(fund.request_id.clone(), id);
        }
        let id = self.requests[&fund.request_id];
        let envelope = self.row(id).expect("it was funded");
        Funded { envelope, replayed }
    }

    pub fn seed(&mut self, terms: &Terms) -> Result<ServerSeed, LedgerError> {
        let leaf_number = terms.leaf.leaf_number;
        let mut pages = self.pages.values();
        let page = pages.find(|page| page.terms.leaf.leaf_number == leaf_number);
        let page = page.ok_or(LedgerError::NotFound)?;
        Ok(ServerSeed::new(page.seed))
    }

    pub fn mark_live(&mut self, id: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
        let page = self.page(id)?;
        if page.state == BookState::Funding {
            page.state = BookState::Live;
        }
        self.row(id).ok_or(LedgerError::NotFound)
    }

    pub fn gather(&mut self, id: EnvelopeId) -> Result<EnvelopeRow, LedgerError> {
        let page = self.page(id)?;
        if page.terms.stripes.is_one() {
            return broken("an envelope of one stripe has nothing to gather");
        }
        page.sheet.gather();
        self.row(id).ok_or(LedgerError::NotFound)
    }

    fn pay(&mut self, id: EnvelopeId, held: &HeldShare) {
        let to = match held.declined {
            true => self.pages[&id].terms.sender.clone(),
            false => held.grabber.clone(),
        };
        *self.accounts.entry(to).or_default() += held.grant.amount_minor;
        self.paid.push((id, held.clone()));
    }

    /// `unique`: the rule is kept.
    pub fn settle(&mut self, items: Vec<SettleItem>, unique: bool) -> Vec<Settled> {
        let verdict = |item| match item {
            SettleItem::Pay(record) => {
                let (id, held) = split(record);
                let Some(page) = self.pages.get_mut(&id) else {
                    return Settled::DeadLetter;
                };
                let mut verdict = page.sheet.verdict(held.clone(), &mut self.reserve);
                let beaten = [Settled::Duplicate, Settled::Superseded, Settled::MadeGood];
                if !unique && beaten.contains(&verdict) {
                    verdict = Settled::Paid;
                }
                if verdict == Settled::Paid {
                    self.pay(id, &held);
                }
                verdict
            }
            SettleItem::SetAside(record, _) => {
                let (id, held) = split(record);
                if let Ok(page) = self.page(id) {
                    page.sheet.letters.push(held);
                }
                Settled::DeadLetter
            }
        };
        items.into_iter().map(verdict).collect()
    }

    pub fn parked(&self, after: i64, limit: usize) -> Vec<(i64, EnvelopeId)> {
        let parked = self.pages.iter();
        let parked = parked.filter(|(_, page)| !page.sheet.frozen && !page.sheet.parked.is_empty());
        page_of(parked.map(|(id, page)| (page.row, *id)), after, limit)
    }

    /// A parked record's row is its place among them.
    pub fn parked_of(&self, row: i64, after: i64, limit: usize) -> Vec<i64> {
        let page = self.pages.values().find(|page| page.row == row);
        let parked = page.map_or(0, |page| i64::from(count(page.sheet.parked.len())));
        (0..parked).filter(|at| *at > after).take(limit).collect()
    }

    /// All that is parked of the envelope.
    pub fn settle_parked(&mut self, row: i64) -> Vec<Settled> {
        let found = self.pages.iter_mut().find(|(_, page)| page.row == row);
        let Some((id, page)) = found else {
            return Vec::new();
        };
        let (id, paid) = (*id, page.sheet.settle_parked(&mut self.reserve));
        for held in &paid {
            self.pay(id, held);
        }
        vec![Settled::Paid; paid.len()]
    }

    pub fn begin_close(
        &mut self,
        id: EnvelopeId,
        reason: CloseReason,
    ) -> Result<EnvelopeRow, LedgerError> {
        let page = self.page(id)?;
        if !page.sheet.closing {
            if page.sheet.frozen {
                return Err(LedgerError::Frozen);
            }
            page.sheet.closing = true;
            page.state = BookState::Closing(reason);
        }
        self.row(id).ok_or(LedgerError::NotFound)
    }

    pub fn finish_close(
        &mut self,
        id: EnvelopeId,
        (reason, taken_count): (CloseReason, u32),
        (now, replaced): (UnixMs, bool),
    ) -> Result<CloseProgress, LedgerError> {
        let page = self.page(id)?;
        let sheet = &mut page.sheet;
        if !sheet.closing {
            return broken("finish_close of an envelope that is not closing");
        }
        if sheet.frozen && !sheet.closed {
            return Err(LedgerError::Frozen);
        }
        if !sheet.closed {
            let Some(remainder) = sheet.finish(taken_count as usize, replaced) else {
                return Ok(CloseProgress::Waiting {
                    claimed_count: count(sheet.claims.len()),
                    dead_letters: count(sheet.letters.len()),
                });
            };
            page.state = BookState::Closed(reason);
            page.closed_at = Some(now);
            let sender = page.terms.sender.clone();
            *self.accounts.entry(sender).or_default() += remainder;
        }
        let row = self.row(id).ok_or(LedgerError::NotFound)?;
        Ok(CloseProgress::Closed(row))
    }

    pub fn due(&self, patience_ms: i64, after: i64, limit: usize, now: UnixMs) -> Vec<(i64, Due)> {
        let due = |(id, page): (&EnvelopeId, &Page)| {
            if page.sheet.frozen || page.row <= after {
                return None;
            }
            let open = matches!(page.state, BookState::Funding | BookState::Live);
            let all = page.sheet.claims.len() == page.sheet.shares as usize;
            let due = match page.state {
                BookState::Closed(_) => return None,
                BookState::Closing(_) => Due::Closing(*id),
                _ if open && page.terms.expires_at <= now => Due::Expired(*id),
                BookState::Live if all => Due::Empty(*id),
                BookState::Funding if page.terms.created_at.plus_ms(patience_ms) < now => {
                    Due::Unpublished(*id)
                }
                BookState::Funding | BookState::Live => return None,
            };
            Some((page.row, due))
        };
        let mut found: Vec<_> = self.pages.iter().filter_map(due).collect();
        found.sort_by_key(|(row, _)| *row);
        found.truncate(limit);
        found
    }

    pub fn claims(&self, id: EnvelopeId, from: u32, limit: usize) -> Vec<HeldShare> {
        let page = self.pages.get(&id);
        let claims = page
            .into_iter()
            .flat_map(|page| page.sheet.claims.range(from..));
        claims.map(|(_, held)| held.clone()).take(limit).collect()
    }

    pub fn claim_of(&self, who: &PersonId, id: EnvelopeId) -> Option<HeldShare> {
        let mut claims = self.pages.get(&id)?.sheet.claims.values();
        claims.find(|held| held.grabber == *who).cloned()
    }

    pub fn frozen(&self, after: i64, limit: usize) -> Vec<(i64, EnvelopeId)> {
        let frozen = self.pages.iter().filter(|(_, page)| page.sheet.frozen);
        page_of(frozen.map(|(id, page)| (page.row, *id)), after, limit)
    }

    /// Sets or lifts the mark; answers whether it was so before.
    pub fn mark(&mut self, id: EnvelopeId, frozen: bool) -> Result<bool, LedgerError> {
        let page = self.page(id)?;
        if let BookState::Closed(reason) = page.state {
            return Err(LedgerError::AlreadyOver(reason));
        }
        Ok(std::mem::replace(&mut page.sheet.frozen, frozen) == frozen)
    }

    pub fn lease(&mut self, holder: String, for_ms: i64, now: UnixMs) -> Portion {
        self.leases.insert(holder.clone(), now.0 + for_ms);
        self.leases.retain(|_, until| *until > now.0);
        let rank = self.leases.keys().position(|other| *other == holder);
        let narrow = |many: usize| u16::try_from(many).expect("processes are few");
        rank.map_or(Portion::ALONE, |rank| Portion {
            rank: narrow(rank),
            of: narrow(self.leases.len()),
        })
    }
}

/// The first rows above another.
fn page_of(
    rows: impl Iterator<Item = (i64, EnvelopeId)>,
    after: i64,
    limit: usize,
) -> Vec<(i64, EnvelopeId)> {
    let mut rows: Vec<_> = rows.filter(|(row, _)| *row > after).collect();
    rows.sort_unstable();
    rows.truncate(limit);
    rows
}

fn split(record: OutboxRecord) -> (EnvelopeId, HeldShare) {
    let OutboxRecord {
        envelope,
        grabber,
        grant,
        declined,
    } = record;
    let held = HeldShare {
        grabber,
        grant,
        declined,
    };
    (envelope, held)
}
