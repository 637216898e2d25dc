//! Brings an envelope back into a hot store that has lost it, or some of it.
//!
//! *Shape*
//!
//! | hot store | books | what happens |
//! |---|---|---|
//! | holds it in this epoch | | it stands |
//! | not asked, or missing in the epoch from before its hold | Funding, new ([`Look::of_new`]), nothing claimed | load |
//! | missing | Funding or Live | what it still owes is settled first; then load where it was never Live, nobody has a claim and this process has told nobody of a share, else repair |
//! | missing | Closing | what it still owes is settled first; then repair, over as the books say |
//! | stale: it holds it in an older epoch | Funding or Live | repair |
//! | stale | Closing | repair, over as the books say: nobody wins, and who had won is told |
//! | a dealt one, not gathered | gathered | what is left in its stripes goes to the first one (`gather`) |
//! | | Closed | the books tell: it is never made live again |
//!
//! An envelope of which something is set aside that may be owed is not brought back: it was granted, and
//! no claim says to whom. Set aside is either parked, or a dead letter. A letter is owed nothing as it is
//! written where the seed or the terms contradict it (another amount, no such share, another one's share),
//! or where its share or its grabber is paid by another claim, and it stands in nobody's way. Only where a
//! stale store has granted the share to its grabber, with a wrong amount, may the seed's be owed: that is
//! for an operator to say before the store drops the grant.
//!
//! *Bounds.* A claim weighs as much as [`WEIGHT`] amounts; permits count it so. A repair of up to
//! one chunk of shares needs none. Claims are read by pages, [`CLAIM_PAGES_MAX`] at the most, and letters as
//! many as the row counts.
//!
//! *Ordering.* The epoch, then the row and the view, then (of a missing one) what it owes, then what is
//! set aside, then the claims. A batch that was read in an older epoch is not posted after the epoch began, so no claim
//! comes from a predecessor of this store once the epoch was looked up. What this store owes of a
//! stale envelope agrees with what it holds of it; of a missing one it holds nothing, so nothing may
//! be owed. Either way claims and holders together are every share that was ever told to anybody
//! and may still be paid.
//!
//! *If it crashes here.* Nothing was written, or the hot store has the whole repair.
//!
//! *Not here.* When: the first grab, decline or read that meets it, and the sweeper. How the store
//! joins claims with what it holds: `HotStore::repair`.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Published, Publisher, brought};
use crate::domain::envelope::{BookState, CloseReason, HotState};
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, PersonId};
use crate::domain::split::SHARE_COUNT_MAX;
use crate::domain::stripes::Stripe;
use crate::hot::{Epochs, GrantWalk, HotView, Repair};
use crate::ledger::{DeadLetterRow, EnvelopeRow, PAGE_ROWS_MAX};
use crate::publish::PublishError;

/// What a claim weighs beside an amount of 8 bytes: a name of 64 bytes, its counts, the grant.
pub(super) const WEIGHT: u32 = 16;

/// Pages of claims of one envelope, the last one being the empty one behind a full one.
const CLAIM_PAGES_MAX: usize = SHARE_COUNT_MAX as usize / PAGE_ROWS_MAX + 1;

/// What to do with an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// The books tell how it ended.
    Over(CloseReason),
    /// An operator froze it, and it is not as it should be in the hot store.
    Frozen,
    /// The hot store holds it.
    Stands(HotState),
    /// Nobody has a claim, and none can be on its way.
    Load,
    /// The hot store does not hold it, and may have.
    Missing,
    /// The hot store holds what an older incarnation had of it.
    Stale,
    /// It stands, and what is left in its stripes belongs to the first one.
    Gather,
}

/// What both stores say of an envelope, in epochs that were looked up before.
pub(super) struct Look {
    pub under: Epochs,
    pub row: EnvelopeRow,
    pub plan: Plan,
    /// Its shares are gathered, and its first stripe is being rebuilt: by somebody, or by nobody any more.
    pub half: bool,
}

/// Whether a reader must have an envelope published first, to be shown no less than was told
/// before: the hot store's word is older than this epoch, or it has none of a live envelope.
pub fn must_revive(row: &EnvelopeRow, view: Option<&HotView>) -> bool {
    match view {
        Some(view) => view.stale && !matches!(row.state, BookState::Closed(_)),
        // Who has a claim of it won before the books heard that it was live.
        None => match row.state {
            BookState::Funding => row.settled_count + row.declined_count > 0,
            BookState::Live | BookState::Closing(_) => true,
            BookState::Closed(_) => false,
        },
    }
}

/// PURE.
fn plan(row: &EnvelopeRow, view: Option<&HotView>) -> Plan {
    if let BookState::Closed(reason) = row.state {
        return Plan::Over(reason);
    }
    let held = view.map(|view| (view.stale, view.state));
    match (held, row.state) {
        (Some((false, _)), BookState::Closing(reason)) => Plan::Over(reason),
        (None, BookState::Closing(_)) => Plan::Missing,
        _ if row.frozen => Plan::Frozen,
        (None, _) => Plan::Missing,
        (Some((true, _)), _) => Plan::Stale,
        // It is being loaded in this epoch, which began after all that was claimed.
        (Some((false, HotState::Funding)), _) if untouched(row) => Plan::Load,
        (Some((false, HotState::Funding)), _) => Plan::Stale,
        (Some((false, _)), _) if row.gathered && !view.is_some_and(|view| view.gathered) => {
            Plan::Gather
        }
        (Some((false, state)), _) => Plan::Stands(state),
    }
}

/// Nothing of it is in the books but the money that was held.
fn untouched(row: &EnvelopeRow) -> bool {
    row.settled_count == 0 && row.declined_count == 0 && row.set_aside_count == 0
}

impl Look {
    /// Of an envelope that was funded after these were the epochs: neither store needs to be asked.
    pub(super) fn of_new(under: Epochs, row: EnvelopeRow) -> Option<Self> {
        let first = row.state == BookState::Funding && !row.frozen && untouched(&row);
        let (plan, half) = (Plan::Load, false);
        first.then_some(Self {
            under,
            row,
            plan,
            half,
        })
    }

    /// Where it stands without being published.
    pub(super) fn stands(self, state: HotState) -> Published {
        let row = self.row;
        Published { state, row }
    }
}

/// What is set aside was granted, and no claim says to whom.
fn set_aside() -> PublishError {
    let why = "grabs of it are set aside: an operator must unfreeze or replay them";
    PublishError::Unavailable(why.into())
}

impl Publisher {
    /// `new_in`: the epochs in which it was about to be loaded for the first time.
    pub(super) async fn look(
        &self,
        id: EnvelopeId,
        new_in: Option<&Epochs>,
    ) -> Result<Look, PublishError> {
        // First the epochs: whatever is read after them is at least as new.
        let under = self.hot.epochs();
        let mut row = self.row(id).await?;
        let views = self.hot.view(vec![id]).await?;
        let view = views.into_iter().flatten().next();
        self.hot.learn(id, &row.terms);
        // Books that were restored may have forgotten it: no stripe but the first one may give any more.
        let is_dealt = !row.gathered && !row.terms.stripes.is_one();
        if is_dealt && self.hot.was_gathered(id, Arc::clone(&row.terms)).await? {
            row = self.ledger.gather(id).await?;
            // What is closing stays as the books have it, and can only be brought back as it was gathered.
            row.gathered |= matches!(row.state, BookState::Closing(_));
        }
        let own = |under: &Epochs| self.own(under, id, row.terms.stripes);
        let same = new_in.is_some_and(|before| own(before) == own(&under));
        let first = same && row.state == BookState::Funding && untouched(&row);
        let plan = match plan(&row, view.as_ref()) {
            Plan::Missing if first => Plan::Load,
            plan => plan,
        };
        let half = |view: &HotView| view.stale && view.state == HotState::Funding;
        let half = row.gathered && view.as_ref().is_some_and(half);
        Ok(Look {
            under,
            row,
            plan,
            half,
        })
    }

    /// Brings a missing or stale envelope into the epoch. `None`: the epoch is another one.
    pub(super) async fn revive(&self, look: &Look) -> Result<Option<HotState>, PublishError> {
        let id = look.row.id;
        let missing = look.plan == Plan::Missing;
        if missing && self.hot.owes(id).await? {
            let why = "its grabs are being settled: repeat";
            return Err(PublishError::Unavailable(why.into()));
        }
        let letters = self.letters(id).await?;
        let claims = self.claims(id).await?;
        let untold = letters.is_empty() && claims.is_empty();
        // A large one is opened before the books say that it is live: somebody may have been told of a share.
        let untold = untold && !self.hot.has_promised(id);
        // Of a dealt one, a stripe that is half rebuilt takes no load: it is repaired like the others.
        let loads = look.row.terms.stripes.is_one() && look.row.state == BookState::Funding;
        if missing && untold && loads {
            return self.load_and_open(look).await;
        }
        let amounts_minor = self.amounts.of(id, &look.row.terms).await?;
        if self
            .any_is_owed(&letters, look, (&amounts_minor, &claims))
            .await?
        {
            return Err(set_aside());
        }
        if !look.row.terms.stripes.is_one() {
            return self.revive_stripes(look, amounts_minor, claims).await;
        }
        let repair = Repair {
            envelope: id,
            terms: look.row.terms.clone(),
            amounts_minor,
            claims,
            over: match look.row.state {
                BookState::Closing(reason) => Some(reason),
                _ => None,
            },
            stripe: Stripe::FIRST,
            gathered: None,
        };
        brought(id, self.hot.repair(&look.under, repair).await)
    }

    /// The open dead letters of an envelope of which nothing is parked.
    async fn letters(&self, id: EnvelopeId) -> Result<Vec<DeadLetterRow>, PublishError> {
        let count = self.row(id).await?.set_aside_count;
        let mut letters: Vec<DeadLetterRow> = Vec::new();
        if count == 0 {
            return Ok(letters);
        }
        let pages = usize::try_from(count).unwrap_or(usize::MAX) / PAGE_ROWS_MAX + 1;
        for _ in 0..pages {
            let after = letters.last().map_or(i64::MIN, |last| last.row);
            let page = self.ledger.set_aside(id, after, PAGE_ROWS_MAX).await?;
            if page.parked_count > 0 {
                return Err(set_aside());
            }
            let full = page.letters.len() >= PAGE_ROWS_MAX;
            letters.extend(page.letters);
            if !full {
                return Ok(letters);
            }
        }
        // More than were counted have come since.
        Err(set_aside())
    }

    /// Whether what one of these open letters says was, or may have been, granted, and is not in the books.
    async fn any_is_owed(
        &self,
        letters: &[DeadLetterRow],
        look: &Look,
        (amounts_minor, claims): (&[i64], &[HeldShare]),
    ) -> Result<bool, PublishError> {
        if letters.is_empty() {
            return Ok(false);
        }
        let (id, terms) = (look.row.id, &*look.row.terms);
        let paid: HashSet<&PersonId> = claims.iter().map(|claim| &claim.grabber).collect();
        let mut walk = GrantWalk::default();
        for letter in letters {
            let (share, grabber) = (letter.record.grant.share, &letter.record.grabber);
            let claimed = claims.binary_search_by_key(&share, |claim| claim.grant.share);
            if claimed.is_ok() || paid.contains(grabber) {
                continue;
            }
            let place = usize::try_from(share).ok();
            let amount_minor = place.and_then(|place| amounts_minor.get(place)).copied();
            if !letter.is_contradicted(terms, amount_minor) {
                return Ok(true);
            }
            if look.plan == Plan::Missing || !letter.is_corrigible(terms, amount_minor) {
                continue;
            }
            let grants = self.hot.walk_grants(&mut walk, id, share, 1).await?;
            if grants.is_some_and(|page| page.iter().any(|held| letter.record.is_of(held))) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Every claim by share, declined shares too.
    async fn claims(&self, id: EnvelopeId) -> Result<Vec<HeldShare>, PublishError> {
        let mut claims: Vec<HeldShare> = Vec::new();
        for _ in 0..CLAIM_PAGES_MAX {
            let from = claims.last().map_or(0, |last| last.grant.share + 1);
            let page = self.ledger.claims(id, from, PAGE_ROWS_MAX).await?;
            let full = page.len() >= PAGE_ROWS_MAX;
            claims.extend(page);
            if !full {
                return Ok(claims);
            }
        }
        let why = format!("envelope {id} has more claims than shares");
        Err(PublishError::Broken(why))
    }
}
