//! Senders, grabbers and an operator, who repeat what was not answered, at whatever process.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use red_envelope::domain::envelope::{BookState, CloseReason};
use red_envelope::domain::grab::{Grab, GrabReply, Grant, Outcome};
use red_envelope::domain::id::{EnvelopeId, Partition, PersonId};
use red_envelope::domain::stripes::{StripeCount, home, home_partition};
use red_envelope::hot::CloseReply;
use red_envelope::ledger::conformance::{act, draft, fund, person, tenant};
use red_envelope::ledger::{Fund, LedgerError};
use red_envelope::publish::marks::{self, MarkError};
use red_envelope::publish::must_revive;
use red_envelope_history::{Answer, Handing, Home, Recorder, Share};

use crate::net::Net;
use crate::process::Process;
use crate::stores::Rule;

/// Calls of the hot store that one grab makes at the most, as in `api::grab`.
const ASKS_MAX: usize = 3;
/// How often a grab of a dealt envelope is passed on to its first stripe, as there.
const PASSES_MAX: usize = 4;

/// An envelope that somebody is going to send.
#[derive(Clone, Debug)]
pub struct Sending {
    pub total_minor: i64,
    pub share_count: u32,
    pub expires_in_ms: i64,
    /// 1: it lies in one piece.
    pub stripes: u16,
}

impl Sending {
    /// The request, by its number.
    pub fn fund(&self, envelope: usize) -> Fund {
        let mut draft = draft("sender", self.total_minor, self.share_count);
        draft.expires_in_ms = self.expires_in_ms;
        draft.stripes = self.stripes();
        fund(draft, &format!("request-{envelope}"))
    }

    fn stripes(&self) -> StripeCount {
        StripeCount::new(self.stripes).expect("a good number")
    }

    /// In which order its shares are handed out.
    fn handing(&self, envelope: usize, net: &Net) -> Handing<usize> {
        let (of, net) = (self.stripes(), net.clone());
        if of.is_one() {
            return Handing::ByNumber;
        }
        let home_of = move |who: &usize| {
            let request = person(&format!("request-{envelope}"));
            let id = net.shared().stores.books.funded(&request);
            let id = id.expect("it was funded before anybody asked");
            u32::from(home(id, &grabber(*who), of).index())
        };
        Handing::Dealt {
            stripes: u32::from(of.get()),
            home: Home::new(home_of),
            moved_at: None,
        }
    }
}

/// What somebody was told of a share: number and amount.
pub type Told = (u32, i64);

/// Everybody, and what they remember.
pub struct Town {
    pub net: Net,
    pub processes: Mutex<Vec<Arc<Process>>>,
    pub sendings: Vec<Sending>,
    pub record: Recorder<usize, usize>,
    /// By envelope and grabber.
    pub told: Mutex<BTreeMap<(usize, usize), Told>>,
}

impl Town {
    pub fn new(net: Net, sendings: Vec<Sending>) -> Self {
        let record = Recorder::default();
        for (envelope, sending) in sendings.iter().enumerate() {
            let handing = sending.handing(envelope, &net);
            record.begin(envelope, sending.share_count, handing);
        }
        Self {
            net,
            processes: Mutex::default(),
            sendings,
            record,
            told: Mutex::default(),
        }
    }

    /// The id of an envelope, once the books have it.
    pub fn id(&self, envelope: usize) -> Option<EnvelopeId> {
        let request = person(&format!("request-{envelope}"));
        self.net.shared().stores.books.funded(&request)
    }

    /// A call of a process, which ends with it or with the caller's patience.
    async fn call<T>(&self, call: impl AsyncFnOnce(&Process) -> Option<T>) -> Option<T> {
        let process = {
            let processes = self.processes.lock().expect("a panic ends the history");
            let place = self.net.draw(processes.len() as u64);
            Arc::clone(&processes[usize::try_from(place).expect("processes are few")])
        };
        let impatient = self.net.draw(20) == 0;
        let mut turns = if impatient {
            self.net.draw(8)
        } else {
            u64::MAX
        };
        let mut under_way = Box::pin(call(&process));
        poll_fn(|context| {
            if !process.is_alive() || turns == 0 {
                return Poll::Ready(None);
            }
            turns -= 1;
            under_way.as_mut().poll(context)
        })
        .await
    }

    pub async fn rest(&self, below_ms: u64) {
        let ms = self.net.draw(below_ms);
        let ms = i64::try_from(ms).expect("rests are short");
        self.net.rest(ms).await;
    }

    /// CreateEnvelope, so often at the most. One that dies is completed or refunded by others.
    pub async fn send(self: Arc<Self>, envelope: usize, tries: u64) {
        self.rest(4_000).await;
        for _ in 0..tries {
            let asked = self.sendings[envelope].fund(envelope);
            let sent = self.call(async |process| {
                let before = process.hot.epochs();
                let funded = process.ledger.fund(asked).await.ok()?;
                let id = funded.envelope.id;
                let publisher = &process.publisher;
                let published = match funded.replayed {
                    false => publisher
                        .publish_new(funded.envelope, &before)
                        .await
                        .map(drop),
                    true => publisher.publish(id).await.map(drop),
                };
                published.ok()
            });
            if sent.await.is_some() {
                return;
            }
            self.rest(2_000).await;
        }
    }

    /// Grabs until there is an answer, so often at the most.
    pub async fn grab(&self, envelope: usize, who: usize, tries: u64) {
        for _ in 0..tries {
            if let Some(id) = self.id(envelope)
                && let Some(asked) = self.record.ask(&envelope, who)
                && let Some(answer) = self
                    .call(async |process| self.grab_by(process, (envelope, id), who).await)
                    .await
            {
                self.record.answer(asked, answer);
                if let Some(Share {
                    number,
                    amount_minor,
                }) = answer.share()
                {
                    let mut told = self.told.lock().expect("a panic ends the history");
                    // Another answer later is the judge's to find.
                    told.entry((envelope, who))
                        .or_insert((number, amount_minor));
                }
                return;
            }
            self.rest(2_000).await;
        }
    }

    /// Somebody who grabs every so often, also twice.
    pub async fn live(self: Arc<Self>, who: usize, (grabs, every_ms): (u64, u64)) {
        for _ in 0..grabs {
            self.rest(2 * every_ms).await;
            let envelope = self.net.draw(self.sendings.len() as u64);
            let envelope = usize::try_from(envelope).expect("envelopes are few");
            self.grab(envelope, who, 4).await;
        }
    }

    /// RecallEnvelope.
    pub async fn recall(self: Arc<Self>, envelope: usize) {
        self.rest(25_000).await;
        for _ in 0..6 {
            let Some(id) = self.id(envelope) else {
                return;
            };
            let asked = self.record.close(&envelope);
            let recalled = self.call(async |process| recall(process, id).await).await;
            if let Some(over) = recalled {
                if let Some(asked) = asked.filter(|_| over) {
                    self.record.closed(asked);
                }
                return;
            }
            self.rest(2_000).await;
        }
    }

    /// An operator who freezes an envelope, and lets it go on.
    pub async fn freeze_and_unfreeze(self: Arc<Self>, envelope: usize) {
        self.rest(20_000).await;
        let Some(id) = self.id(envelope) else {
            return;
        };
        let act = act("freeze", id);
        let frozen = self.call(async |process| {
            let done = marks::freeze(&*process.hot, &*process.ledger, id, act).await;
            done.ok()
        });
        let _known_or_not = frozen.await;
        self.rest(20_000).await;
        self.unfreeze(id).await;
    }

    /// Repeats until it is done.
    pub async fn unfreeze(&self, id: EnvelopeId) {
        loop {
            let act = act("unfreeze", id);
            let unfrozen = self.call(async |process| {
                match marks::unfreeze(&*process.hot, &*process.ledger, id, act).await {
                    Ok(_) | Err(MarkError::Ledger(LedgerError::AlreadyOver(_))) => Some(()),
                    Err(_) => None,
                }
            });
            if unfrozen.await.is_some() {
                return;
            }
            self.rest(1_000).await;
        }
    }

    /// Grab, as `api::grab` does it.
    pub async fn grab_by(
        &self,
        process: &Process,
        (envelope, id): (usize, EnvelopeId),
        who: usize,
    ) -> Option<Answer> {
        let grabber = grabber(who);
        let partition = self.asks_first(process, (envelope, id), &grabber);
        let mut grab = Grab {
            partition,
            epoch: process.hot.epoch(partition),
            tenant: tenant(),
            envelope: id,
            grabber,
            phrase: None,
        };
        // What was lost before it was brought back.
        let mut published = None;
        for _ in 0..ASKS_MAX {
            match self.ask_where_it_lies(process, envelope, &mut grab).await? {
                GrabReply::Outcome(outcome) => {
                    if outcome == Outcome::Empty && published == Some(self.losses()) {
                        self.empty_for_sure(envelope, id);
                    }
                    return answer(outcome);
                }
                GrabReply::Funding
                | GrabReply::Frozen
                | GrabReply::Unsettled
                | GrabReply::Dry
                | GrabReply::Epoch(_) => {
                    return None;
                }
                GrabReply::Missing => {}
            }
            let row = process.ledger.envelopes(vec![id]).await.ok()?.pop()??;
            let over = match row.state {
                BookState::Closed(reason) => reason,
                BookState::Closing(reason) if published.is_some() => reason,
                BookState::Funding | BookState::Live if published.is_some() || row.frozen => {
                    return None;
                }
                BookState::Funding | BookState::Live | BookState::Closing(_) => {
                    let losses = self.losses();
                    process.publisher.publish(id).await.ok()?;
                    published = Some(losses);
                    continue;
                }
            };
            let claims = process.ledger.claims_of(vec![(id, grab.grabber.clone())]);
            let claim = claims.await.ok()?.pop()?;
            return Some(match (claim, over) {
                (Some(claim), _) => Answer::Already(share(claim.grant)),
                (None, CloseReason::Empty) => Answer::Empty,
                (None, CloseReason::Expired | CloseReason::Recalled) => Answer::Over,
            });
        }
        None
    }

    /// One call; and where the grabber's stripe is dry, one of the first stripe.
    async fn ask_where_it_lies(
        &self,
        process: &Process,
        envelope: usize,
        grab: &mut Grab,
    ) -> Option<GrabReply> {
        for _ in 0..PASSES_MAX {
            match process.hot.grab(vec![grab.clone()]).await.ok()?.pop()? {
                GrabReply::Dry => {
                    self.record.moved(&envelope);
                    process.publisher.pass_on(grab).await.ok()?;
                }
                reply => return Some(reply),
            }
        }
        Some(GrabReply::Dry)
    }

    fn asks_first(
        &self,
        process: &Process,
        (envelope, id): (usize, EnvelopeId),
        who: &PersonId,
    ) -> Partition {
        let of = self.sendings[envelope].stripes();
        let all = process.hot.partitions();
        let at_home = of.is_one() || self.net.shared().stores.keep(Rule::HomeFirst);
        match at_home || self.net.draw(2) == 0 {
            true => home_partition(id, who, of, all),
            false => id.partition(all),
        }
    }

    fn losses(&self) -> u64 {
        let shared = self.net.shared();
        let striped = shared.stores.striped.as_ref();
        striped.map_or(0, |striped| striped.watch.losses)
    }

    fn empty_for_sure(&self, envelope: usize, id: EnvelopeId) {
        let shares = self.sendings[envelope].share_count;
        if let Some(striped) = &mut self.net.shared().stores.striped {
            striped.watch.empty_for_sure((id, shares));
        }
    }
}

pub fn grabber(who: usize) -> PersonId {
    person(&format!("grabber-{who}"))
}

fn share(grant: Grant) -> Share {
    Share {
        number: grant.share,
        amount_minor: grant.amount_minor,
    }
}

fn answer(outcome: Outcome) -> Option<Answer> {
    Some(match outcome {
        Outcome::Won(grant) => Answer::Won(share(grant)),
        Outcome::AlreadyGrabbed(grant) => Answer::Already(share(grant)),
        Outcome::Empty => Answer::Empty,
        Outcome::Expired | Outcome::Recalled => Answer::Over,
        Outcome::NotOpenYet(_) | Outcome::Refused(_) => return None,
    })
}

/// RecallEnvelope, as `api::recall` does it: whether it is over by now.
async fn recall(process: &Process, id: EnvelopeId) -> Option<bool> {
    let row = process.ledger.envelopes(vec![id]).await.ok()?.pop()??;
    if matches!(row.state, BookState::Closed(_)) {
        return Some(true);
    }
    let (hot, reason) = (&process.hot, CloseReason::Recalled);
    let under = hot.epochs();
    if !row.terms.stripes.is_one() {
        // 1. look
        let view = hot.view(vec![id]).await.ok()?.pop()?;
        if must_revive(&row, view.as_ref()) {
            process.publisher.publish(id).await.ok()?;
            hot.view(vec![id]).await.ok()?.pop()??;
        }
    }
    process.ledger.begin_close(id, reason).await.ok()?;
    let closed = hot.close(&under, id, row.terms, reason).await;
    match closed.ok()? {
        CloseReply::Over { .. } => Some(true),
        CloseReply::Frozen => None,
        CloseReply::NotDue(_) => Some(false),
    }
}
