//! Gathers what is left of a dealt envelope in its first stripe, once one of them is used up; and brings its
//! stripes back, each by itself, where the hot store lost some of them.
//!
//! *Shape*
//!
//! | step | door | why |
//! |---|---|---|
//! | 1. say so | `ledger.gather` | whoever repairs a stripe from now on has it give nothing |
//! | 2. halt every other stripe | `hot.halt` | what it has left stays as it is; who has a share there hears it for ever |
//! | 3. halt the first, and give it all that is left | `hot.repair` | now it alone knows when the envelope is empty |
//!
//! *Ordering.* A grabber asks his home stripe first, always, and the first one only after step 3 was done
//! once. Nobody wins at home after step 2, and nobody who is a stranger there wins in the first one before step 3:
//! so nobody wins twice. Every share is in the first one after step 3, or somebody has it: so what it calls empty
//! is empty. What a partition of another stripe loses later comes back in the same way: the first one is stale by
//! the sum of the epochs.
//!
//! A stripe that is over when it is halted ends the first one: its clock may be ahead of theirs, and who asked there
//! was told so.
//!
//! A stripe that is missing or stale is repaired before it is halted. While the books can't be asked, nothing is
//! gathered: who comes to a stripe that is used up repeats.
//!
//! *Bounds.* [`HALTS_IN_FLIGHT_MAX`] stripes at once. Numbers of shares that are left: as many as the envelope has.
//!
//! *If it crashes here.* Each step finds what the one before did: whoever meets a dry stripe goes on.
//!
//! *Not here.* Who asks where (`api::grab`); what a stripe does with it (`HotStore`).

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};

use super::revive::{Look, Plan};
use super::{PublishError, Published, Publisher, brought, crash};
use crate::domain::envelope::{BookState, CloseReason, HotState};
use crate::domain::grab::{Grab, HeldShare};
use crate::domain::id::{EnvelopeId, PersonId};
use crate::domain::stripes::{Stripe, StripeCount, dealt, dealt_to, home};
use crate::hot::{CloseReply, Epochs, Gathered, Halted, HotError, Repair};
use crate::ledger::EnvelopeRow;
use crate::rules::{self, Rule};

/// Stripes of an envelope that are halted, or repaired, at once.
const HALTS_IN_FLIGHT_MAX: usize = 8;

/// What a share that is left weighs beside an amount of 8 bytes: its number three times, and its record.
pub(super) const WEIGHT: u32 = 4;

/// How long whoever gathers may take to rebuild the first stripe before he is taken for dead: bringing it back by the
/// books reads every claim, so nobody does that beside him.
const REBUILT_WITHIN_MS: i64 = 2_000;

/// Dealt envelopes that are remembered as gathered, 24 bytes each and as much again for the cache. There are few.
pub const GATHERED_KEPT_MAX: usize = 10_000;

impl PublishError {
    /// A dealt envelope says of itself that it has something left, and of nobody where.
    pub fn gathering() -> Self {
        Self::Unavailable("what is left of the envelope is being gathered: repeat it".into())
    }
}

/// What the books know of an envelope whose stripes are brought back.
struct Books {
    amounts_minor: Arc<[i64]>,
    /// By share.
    claims: Vec<HeldShare>,
    /// Who has a claim of a share that was not dealt to his home, by that.
    elsewhere: BTreeMap<Stripe, Vec<PersonId>>,
}

impl Books {
    fn new(look: &Look, amounts_minor: Arc<[i64]>, claims: Vec<HeldShare>) -> Self {
        let (id, of, count) = {
            let terms = &look.row.terms;
            (look.row.id, terms.stripes, terms.share_count)
        };
        let mut elsewhere: BTreeMap<Stripe, Vec<PersonId>> = BTreeMap::new();
        for claim in claims.iter().filter(|_| look.row.gathered) {
            let home = home(id, &claim.grabber, of);
            if dealt_to(claim.grant.share, of, count) != Some(home) {
                elsewhere
                    .entry(home)
                    .or_default()
                    .push(claim.grabber.clone());
            }
        }
        Self {
            amounts_minor,
            claims,
            elsewhere,
        }
    }

    /// The claims of the shares that were dealt to a stripe: who else has one does not matter to it.
    fn of(&self, stripe: Stripe, look: &Look) -> Vec<HeldShare> {
        let terms = &look.row.terms;
        let own = dealt(stripe, terms.stripes, terms.share_count);
        let before = |share: u32| {
            self.claims
                .partition_point(|claim| claim.grant.share < share)
        };
        self.claims[before(own.start)..before(own.end)].to_vec()
    }
}

impl Publisher {
    /// Has an envelope of which a stripe is used up give what is left from its first one, and answers where it
    /// stands: as [`Publisher::publish`]. Repeating it changes nothing; who asks meanwhile waits for that.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn gather(&self, id: EnvelopeId) -> Result<Published, PublishError> {
        self.gather_under(id).await.map(|(published, _)| published)
    }

    /// The same, with the epochs from before that began, for whoever joins it too.
    async fn gather_under(&self, id: EnvelopeId) -> Result<(Published, Epochs), PublishError> {
        let gather = async {
            let before = self.hot.epochs();
            // 1. say so
            if !rules::keeps(Rule::SaidFirst) {
                return Ok((self.gather_unsaid(id).await?, before));
            }
            self.ledger.gather(id).await?;
            crash("gather::after_books")?;
            // Not with who publishes it already: he may have looked before.
            Ok((self.publish_alone(id, None).await?, before))
        };
        self.gathers.join(id, gather).await
    }

    /// Without the first rule: the books hear of it when it is done.
    async fn gather_unsaid(&self, id: EnvelopeId) -> Result<Published, PublishError> {
        let look = self.look(id, None).await?;
        if let Plan::Stands(_) = look.plan {
            self.gather_standing(&look).await?;
        }
        self.ledger.gather(id).await?;
        self.publish_alone(id, None).await
    }

    /// Has a grab go on to the first stripe, after his own has said that the grabber has no share there and that
    /// it gives none. The first one knows of all only once the shares are gathered, under the epochs that stand.
    /// Where it says itself that it is dry, whoever gathered them did not come to the end.
    ///
    /// # Errors
    /// As [`Publisher::publish`]: the grab is repeated, from his own stripe on.
    pub async fn pass_on(&self, grab: &mut Grab) -> Result<(), PublishError> {
        let id = grab.envelope;
        let first = id.partition(self.hot.partitions());
        if !self.may_pass(grab) {
            let known = self.passes.join(id, self.gather_or_end(id).boxed()).await?;
            self.gathered.insert(id, known);
        }
        grab.partition = first;
        grab.epoch = self.hot.epoch(first);
        Ok(())
    }

    /// Has a first stripe know of all, or be over. Answers how many there are, and the sum of the epochs under which
    /// that began.
    async fn gather_or_end(&self, id: EnvelopeId) -> Result<(StripeCount, u64), PublishError> {
        let (Published { row, .. }, before) = self.gather_under(id).await?;
        // Nothing is gathered any more of what is closing, though the books may have been told that it is.
        let ends = match row.state {
            BookState::Closing(reason) => reason != CloseReason::Empty,
            BookState::Funding | BookState::Live | BookState::Closed(_) => false,
        };
        if !row.gathered || ends {
            self.end_first(&before, &row).await?;
        }
        let of = row.terms.stripes;
        let own = self.own(&before, id, of);
        Ok((of, own.iter().map(|epoch| epoch.0).sum()))
    }

    /// What is closing is not gathered any more: its first stripe may be asked once it is over as well. Another one
    /// may have seen the end before it did. `under`: the epochs before it was published, so that what was lost since
    /// is brought back first.
    async fn end_first(&self, under: &Epochs, row: &EnvelopeRow) -> Result<(), PublishError> {
        let reason = match row.state {
            BookState::Closed(_) => return Ok(()),
            BookState::Closing(reason) => reason,
            BookState::Funding | BookState::Live => return Err(PublishError::gathering()),
        };
        let close = self
            .hot
            .close(under, row.id, Arc::clone(&row.terms), reason);
        match close.await? {
            CloseReply::Over { .. } => Ok(()),
            CloseReply::Frozen => Err(PublishError::Frozen),
            CloseReply::NotDue(_) => Err(PublishError::gathering()),
        }
    }

    /// Whether it is known that a grab may go on to the first stripe.
    pub fn may_pass(&self, grab: &Grab) -> bool {
        let id = grab.envelope;
        let known = self.gathered.get(&id);
        let stands = known.is_some_and(|(of, sum)| self.sum(id, of) == sum);
        let at_home = grab.partition != id.partition(self.hot.partitions());
        at_home && (stands || !rules::keeps(Rule::GatheredFirst))
    }

    /// Whether a first stripe that is half rebuilt has been so for long: then whoever rebuilt it has died, and it is
    /// brought back by the books. Until then the next who asks finds it whole.
    pub(super) fn is_abandoned(&self, id: EnvelopeId) -> bool {
        let now = self.ledger.now();
        // What was seen by a clock that was set back since is as if it were seen now.
        let since = self.half.get(&id).filter(|since| *since <= now);
        let since = since.unwrap_or_else(|| {
            self.half.insert(id, now);
            now
        });
        now.0.saturating_sub(since.0) >= REBUILT_WITHIN_MS
    }

    /// Of the epochs in which its partitions stand now.
    fn sum(&self, id: EnvelopeId, of: StripeCount) -> u64 {
        let epochs = self.own(&self.hot.epochs(), id, of);
        epochs.iter().map(|epoch| epoch.0).sum()
    }

    /// Steps 2 and 3, of an envelope whose stripes all stand. `None`: one of them does not any more.
    pub(super) async fn gather_standing(
        &self,
        look: &Look,
    ) -> Result<Option<HotState>, PublishError> {
        let amounts_minor = self.amounts.of(look.row.id, &look.row.terms).await?;
        let Some(left) = self.halt_others(look, None).await? else {
            return Ok(None);
        };
        let books = Books::new(look, amounts_minor, Vec::new());
        let stands = true;
        self.give_first(look, books, Gathered { stands, ..left })
            .await
    }

    /// Brings every stripe into the epoch; once its shares are gathered, as steps 2 and 3.
    pub(super) async fn revive_stripes(
        &self,
        look: &Look,
        amounts_minor: Arc<[i64]>,
        claims: Vec<HeldShare>,
    ) -> Result<Option<HotState>, PublishError> {
        let books = Books::new(look, amounts_minor, claims);
        if look.row.gathered && rules::keeps(Rule::DryOnceSaid) {
            let Some(left) = self.halt_others(look, Some(&books)).await? else {
                return Ok(None);
            };
            return self.give_first(look, books, left).await;
        }
        let others = look.row.terms.stripes.all().skip(1);
        let mut steps = stream::iter(others)
            .map(|stripe| self.repair_stripe(look, stripe, (&books, None)).boxed())
            .buffer_unordered(HALTS_IN_FLIGHT_MAX);
        while let Some(step) = steps.next().await {
            if brought(look.row.id, step)?.is_none() {
                return Ok(None);
            }
        }
        // The first one last: where it stands all do.
        let first = self.repair_stripe(look, Stripe::FIRST, (&books, None));
        brought(look.row.id, first.await)
    }

    /// Step 2. Answers what is left in all other stripes; `None`: one does not stand, and there are no `books` to
    /// repair it by, or the epoch is another one.
    async fn halt_others(
        &self,
        look: &Look,
        books: Option<&Books>,
    ) -> Result<Option<Gathered>, PublishError> {
        let others = look.row.terms.stripes.all().skip(1);
        let mut steps = stream::iter(others)
            .map(|stripe| self.halt_one(look, stripe, books).boxed())
            .buffer_unordered(HALTS_IN_FLIGHT_MAX);
        let mut all = Gathered::default();
        while let Some(step) = steps.next().await {
            match step {
                Ok(Some(halted)) => {
                    all.left.extend(halted.left);
                    all.lacks |= halted.tombstone;
                    all.over = all.over.or(halted.over);
                }
                Ok(None) | Err(HotError::Epoch(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        crash("gather::before_first")?;
        Ok(Some(all))
    }

    async fn halt_one(
        &self,
        look: &Look,
        stripe: Stripe,
        books: Option<&Books>,
    ) -> Result<Option<Halted>, HotError> {
        super::crash_hot("gather::between_stripes")?;
        let halt = || {
            let terms = Arc::clone(&look.row.terms);
            self.hot.halt(&look.under, look.row.id, terms, stripe)
        };
        let halted = halt().await?;
        let (None, Some(books)) = (&halted, books) else {
            return Ok(halted);
        };
        let elsewhere = books.elsewhere.get(&stripe).cloned().unwrap_or_default();
        let gathered = Some(Gathered {
            elsewhere,
            ..Gathered::default()
        });
        self.repair_stripe(look, stripe, (books, gathered)).await?;
        halt().await
    }

    async fn repair_stripe(
        &self,
        look: &Look,
        stripe: Stripe,
        (books, gathered): (&Books, Option<Gathered>),
    ) -> Result<HotState, HotError> {
        let claims = books.of(stripe, look);
        self.repair_with(look, stripe, (books, claims, gathered))
            .await
    }

    /// Step 3.
    async fn give_first(
        &self,
        look: &Look,
        mut books: Books,
        gathered: Gathered,
    ) -> Result<Option<HotState>, PublishError> {
        // It may have given shares of every stripe.
        let claims = std::mem::take(&mut books.claims);
        let first = self.repair_with(look, Stripe::FIRST, (&books, claims, Some(gathered)));
        brought(look.row.id, first.await)
    }

    async fn repair_with(
        &self,
        look: &Look,
        stripe: Stripe,
        (books, claims, gathered): (&Books, Vec<HeldShare>, Option<Gathered>),
    ) -> Result<HotState, HotError> {
        let repair = Repair {
            envelope: look.row.id,
            terms: Arc::clone(&look.row.terms),
            amounts_minor: Arc::clone(&books.amounts_minor),
            claims,
            over: match look.row.state {
                BookState::Closing(reason) => Some(reason),
                _ => None,
            },
            stripe,
            gathered,
        };
        self.hot.repair(&look.under, repair).await
    }
}
