//! Grab: the next share for a grabber, or why there is none.
//!
//! # Shape
//! | step | where |
//! |---|---|
//! | 1. shape of the request; is settlement behind? | `Asked::read`, `Api::admit_grab` |
//! | 2. terms, from memory or the stores | `Facts` |
//! | 3. tenant, audience, own envelope, passphrase's digest | `Api::prepare` |
//! | 4. one call of the hot store | `HotStore::grab` |
//! | 5. missing there (or lost, or stale): publish and ask again, or answer from the books | `Api::books_say` |
//!
//! # Bounds
//! [`ASKS_MAX`] calls of the hot store a grab, and those after the first within a budget (`retries`).
//!
//! # Ordering
//! The audience is checked before anything is taken, against terms that never change. An answer
//! with an effect comes from the hot store or, after the close, from the books: the same share.
//!
//! # If it crashes here
//! A grab that was sent stands or does not, once: repeating it answers ALREADY_GRABBED with the
//! share, or takes one.
//!
//! # Not here
//! Many grabs on one stream: `grab_stream`, which shares steps 1–3 and falls back to this path.

use std::sync::Arc;

use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::priority::turned_away;
use super::status::{ApiError, Full};
use super::wire;
use crate::domain::audience::PASSPHRASE_BYTES_MAX;
use crate::domain::envelope::{BookState, CloseReason, Kind, Terms};
use crate::domain::grab::{Grab, GrabReply, HeldShare, Outcome, Refusal};
use crate::domain::id::{EnvelopeId, Partition, PersonId, TENANT_DEFAULT};
use crate::domain::stripes::home_partition;
use crate::hot::HotStore;
use crate::hot::gate::Admitted;
use crate::publish::PublishError;
use crate::telemetry::metrics;

/// Calls of the hot store that one grab makes at the most: the first, one under a new epoch, one
/// after the envelope was published.
pub const ASKS_MAX: usize = 3;

/// Why a grab that was decided is not told at level `ledger`.
pub(super) const UNSETTLED: &str = "the books don't have the grab yet: repeat it";

/// Stripes that one asking goes through at the most: the grabber's, the first one, and the first one again as
/// often as others gather its shares at the same time.
const PASSES_MAX: usize = 4;

/// What the store said to a grab before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// It was not asked.
    Unasked,
    /// Nothing that decides it: it is asked again.
    Asked,
    /// The grabber's stripe is dry.
    Dry,
}

impl Before {
    /// How often it was asked in vain.
    fn asks(self) -> usize {
        usize::from(self == Self::Asked)
    }
}

/// Bytes of a passphrase as it is sent: normalising shrinks text by a factor of 3 at the most, and
/// hashing more would be work for nothing.
const SENT_PASSPHRASE_BYTES_MAX: usize = 3 * PASSPHRASE_BYTES_MAX;

/// A grab whose shape is right.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Which envelope.
    pub envelope: EnvelopeId,
    /// Who.
    pub grabber: PersonId,
    /// The request itself: tenant, group, phrase, and the name for the answer.
    pub request: v1::GrabRequest,
}

impl Asked {
    /// Checks the shape.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(request: v1::GrabRequest) -> Result<Self, ApiError> {
        let mut a = Admission::default();
        if !request.tenant.is_empty() {
            let _ = a.tenant(&request.tenant);
        }
        let envelope = a.envelope("envelope_id", &request.envelope_id);
        let grabber = a.name("grabber", &request.grabber);
        a.group(&request.group_id, &request.group_ticket);
        if request.passphrase.len() > SENT_PASSPHRASE_BYTES_MAX {
            a.offend("passphrase", "is longer than any passphrase");
        }
        let (envelope, grabber) = a.admit(envelope.zip(grabber))?;
        Ok(Self {
            envelope,
            grabber,
            request,
        })
    }

    fn is_of(&self, terms: &Terms) -> bool {
        let tenant = match self.request.tenant.as_str() {
            "" => TENANT_DEFAULT,
            named => named,
        };
        terms.tenant.as_str() == tenant
    }

    fn group(&self) -> Option<&str> {
        let group = self.request.group_id.as_str();
        (!group.is_empty()).then_some(group)
    }
}

/// What admission makes of a grab.
#[derive(Debug)]
pub enum Prepared {
    /// Ask the hot store.
    Ask(Grab),
    /// The sender grabs what the rules don't let a sender grab.
    OwnEnvelope,
}

impl Api {
    /// Step 3, in memory.
    ///
    /// # Errors
    /// NOT_FOUND, for whoever is not in the audience.
    pub(super) fn prepare(&self, asked: &Asked, terms: &Terms) -> Result<Prepared, ApiError> {
        if !asked.is_of(terms) || !terms.audience.admits(&asked.grabber, asked.group()) {
            return Err(ApiError::NotFound);
        }
        if asked.grabber == terms.sender && !(terms.kind == Kind::Lucky && self.sender_may_grab) {
            return Ok(Prepared::OwnEnvelope);
        }
        let brought = &asked.request.passphrase;
        let phrase = match &terms.passphrase {
            Some(lock) if !brought.is_empty() => Some(lock.try_phrase(brought, &self.pepper)),
            _ => None,
        };
        let (id, of) = (asked.envelope, terms.stripes);
        let partition = home_partition(id, &asked.grabber, of, self.hot.partitions());
        Ok(Prepared::Ask(Grab {
            partition,
            epoch: self.hot.epoch(partition),
            tenant: terms.tenant.clone(),
            envelope: asked.envelope,
            grabber: asked.grabber.clone(),
            phrase,
        }))
    }

    /// All steps: the answer, and the terms under which it was given.
    pub(super) async fn grab_one(
        &self,
        asked: &Asked,
        before: Before,
    ) -> Result<(Outcome, Arc<Terms>), ApiError> {
        let terms = self.facts.find(asked.envelope).await?;
        let outcome = match self.prepare(asked, &terms)? {
            Prepared::Ask(mut grab) => {
                let home = grab.partition;
                if let Before::Dry = before {
                    self.pass_on(&mut grab).await?;
                }
                self.ask(grab, home, before.asks()).await?
            }
            Prepared::OwnEnvelope => self.own_envelope(asked).await?,
        };
        Ok((outcome, terms))
    }

    /// Steps 4 and 5.
    async fn ask(
        &self,
        mut grab: Grab,
        home: Partition,
        before: usize,
    ) -> Result<Outcome, ApiError> {
        let mut published = false;
        if before == 0 {
            self.retries.first(1);
        }
        for asks in before..ASKS_MAX {
            // Who comes with an asking behind him has paid for this one.
            if asks > before {
                self.may_ask_again()?;
            }
            match self.ask_where_it_lies(&mut grab, asks).await? {
                GrabReply::Outcome(outcome) => return Ok(outcome),
                GrabReply::Dry => return Err(PublishError::gathering().into()),
                GrabReply::Funding => return Err(ApiError::Funding),
                GrabReply::Frozen => return Err(ApiError::Frozen),
                GrabReply::Unsettled => return Err(ApiError::Unavailable(UNSETTLED.into())),
                GrabReply::Epoch(epoch) if grab.partition == home => grab.epoch = epoch,
                // What his own stripe said was of an epoch that has ended: it is asked again, first.
                GrabReply::Epoch(_) => go_home(&mut grab, home, &*self.hot),
                GrabReply::Missing => {
                    if let Some(outcome) = self.books_say(&grab, published).await? {
                        return Ok(outcome);
                    }
                    published = true;
                    go_home(&mut grab, home, &*self.hot);
                }
            }
        }
        let words = "the envelope's partition changes its epoch";
        Err(ApiError::Unavailable(words.into()))
    }

    /// One call; and where the grabber's stripe is dry, one of the first stripe.
    async fn ask_where_it_lies(&self, grab: &mut Grab, asks: usize) -> Result<GrabReply, ApiError> {
        for _ in 0..PASSES_MAX {
            match self.ask_once(grab, asks).await? {
                GrabReply::Dry => self.pass_on(grab).await?,
                reply => return Ok(reply),
            }
        }
        Ok(GrabReply::Dry)
    }

    /// As [`Publisher::pass_on`](crate::publish::Publisher::pass_on). A gather that was begun goes on where its
    /// caller's time runs out.
    async fn pass_on(&self, grab: &mut Grab) -> Result<(), ApiError> {
        if self.publisher.may_pass(grab) {
            return Ok(self.publisher.pass_on(grab).await?);
        }
        let (publisher, mut passed) = (Arc::clone(&self.publisher), grab.clone());
        let gather = tokio::spawn(async move {
            publisher.pass_on(&mut passed).await?;
            Ok::<_, PublishError>(passed)
        });
        let ended = |_| ApiError::Unavailable("the server is shutting down".into());
        *grab = gather.await.map_err(ended)??;
        Ok(())
    }

    /// One call, in turn. Who has asked before may have won then: that he is turned away now says nothing of it.
    async fn ask_once(&self, grab: &Grab, asks: usize) -> Result<GrabReply, ApiError> {
        let turn = match self.gated.admit(grab) {
            Ok(Admitted::Told(reply)) => return Ok(reply),
            Ok(Admitted::In(turn)) => turn,
            Err(_) if asks == 0 => return Err(turned_away(Full::HotStore)),
            Err(_) => {
                let words = "too many wait, so what became of the first asking is not known";
                return Err(ApiError::Unavailable(words.into()));
            }
        };
        let replies = self.gated.grab(vec![grab.clone()]).await;
        turn.answered();
        let reply = replies?.into_iter().next();
        reply.ok_or_else(|| ApiError::Internal("a grab got no reply".into()))
    }

    /// Whether the hot store may be asked once more for one call.
    ///
    /// # Errors
    /// Too many were lately: the caller asks again, later.
    pub(super) fn may_ask_again(&self) -> Result<(), ApiError> {
        match self.retries.again() {
            true => Ok(()),
            false => {
                let words = "more grabs have to be asked again than the budget allows";
                Err(ApiError::Unavailable(words.into()))
            }
        }
    }

    /// What the books say of an envelope that the hot store does not hold in this epoch. `None`: it
    /// was not closed, and now it is published or repaired, so the store is to be asked again. Where
    /// it still holds nothing of a closing envelope, all that was granted is in the books. Whoever
    /// comes after the close costs one read, that of the claim.
    async fn books_say(&self, grab: &Grab, published: bool) -> Result<Option<Outcome>, ApiError> {
        let reason = match self.facts.closed(&grab.envelope) {
            Some(reason) => reason,
            None => match self.ended(grab.envelope, published).await? {
                Some(reason) => reason,
                None => return Ok(None),
            },
        };
        let whose = (grab.envelope, grab.grabber.clone());
        let claim = self.reads.claim_of(whose).await?;
        Ok(Some(claim.map_or_else(|| over(reason), |c| held(&c))))
    }

    /// Why an envelope is over, by its row; `None`: it was not, and was published.
    async fn ended(
        &self,
        id: EnvelopeId,
        published: bool,
    ) -> Result<Option<CloseReason>, ApiError> {
        let rows = self.ledger.envelopes(vec![id]).await?;
        let row = rows.into_iter().flatten().next();
        let row = row.ok_or(ApiError::NotFound)?;
        match row.state {
            BookState::Closed(reason) => {
                self.facts.learn_closed(id, reason);
                Ok(Some(reason))
            }
            BookState::Closing(reason) if published => Ok(Some(reason)),
            BookState::Funding | BookState::Live if published => {
                let words = "the envelope is neither in the hot store nor over";
                Err(ApiError::Unavailable(words.into()))
            }
            BookState::Funding | BookState::Live if row.frozen => Err(ApiError::Frozen),
            BookState::Funding | BookState::Live | BookState::Closing(_) => {
                match row.gathered {
                    // With whoever gathers it now.
                    true => drop(self.publisher.gather(id).await?),
                    false => drop(self.publisher.publish(id).await?),
                }
                Ok(None)
            }
        }
    }

    /// A sender who may not grab may have grabbed while the rule was another one: an answer that
    /// had an effect stays the same. A share that the books don't take yet is shown to nobody, and is
    /// not denied either.
    async fn own_envelope(&self, asked: &Asked) -> Result<Outcome, ApiError> {
        let snapshot = self.snapshot(asked.envelope).await?;
        let viewer = self.viewer(asked.grabber.clone(), &snapshot).await?;
        if let Some(share) = &viewer.own {
            return Ok(held(share));
        }
        let whose = (asked.envelope, asked.grabber.clone());
        let granted = self.hot.held(vec![whose]);
        match granted.await?.into_iter().flatten().next() {
            Some(_) => Err(ApiError::Unavailable(UNSETTLED.into())),
            None => Ok(Outcome::Refused(Refusal::OwnEnvelope)),
        }
    }
}

/// A grab begins anew where the grabber's home stripe lies.
fn go_home(grab: &mut Grab, home: Partition, hot: &dyn HotStore) {
    if grab.partition != home {
        grab.partition = home;
        grab.epoch = hot.epoch(home);
    }
}

fn held(share: &HeldShare) -> Outcome {
    if share.declined {
        return Outcome::Refused(Refusal::Declined);
    }
    Outcome::AlreadyGrabbed(share.grant)
}

fn over(reason: CloseReason) -> Outcome {
    match reason {
        CloseReason::Empty => Outcome::Empty,
        CloseReason::Expired => Outcome::Expired,
        CloseReason::Recalled => Outcome::Recalled,
    }
}

/// The unary RPC.
pub(super) async fn grab(
    api: &Api,
    request: v1::GrabRequest,
) -> Result<v1::GrabResponse, ApiError> {
    let asked = Asked::read(request)?;
    let done = match api.admit_grab() {
        Ok(()) => api.grab_one(&asked, Before::Unasked).await,
        Err(behind) => Err(behind),
    };
    match done {
        Ok((outcome, terms)) => {
            metrics::grabs_answered(&outcome, 1);
            let grabber = asked.request.grabber;
            Ok(wire::grab_response(&outcome, terms.currency, grabber))
        }
        Err(error) => {
            metrics::grabs_failed(super::status::code_name(error.row().code), 1);
            Err(error)
        }
    }
}
