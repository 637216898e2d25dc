//! What is told of shares while the books are behind a gate: the level `ledger`.

use std::sync::atomic::{AtomicU8, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use red_envelope_proto::v1::GrabOutcome as O;

use super::*;
use crate::domain::grab::{Grab, GrabReply, OutboxRecord, Outcome};
use crate::domain::id::{Epoch, Partition, PersonId, TenantId};
use crate::hot::HotError;

/// Takes everything, nothing, is away, or stands in another epoch.
const TAKES: u8 = 0;
const REFUSES: u8 = 1;
const IS_AWAY: u8 = 2;
const MOVED: u8 = 3;

/// Books of which a test says what they do.
#[derive(Default)]
struct Books {
    mood: AtomicU8,
    posted: Mutex<Vec<OutboxRecord>>,
}

impl Books {
    fn are(&self, mood: u8) {
        self.mood.store(mood, Ordering::SeqCst);
    }

    /// Who was posted since the last look, with the share's number.
    fn posted(&self) -> Vec<(String, u32, bool)> {
        let posted = std::mem::take(&mut *self.posted.lock());
        let named = |r: OutboxRecord| (r.grabber.as_str().to_owned(), r.grant.share, r.declined);
        posted.into_iter().map(named).collect()
    }
}

#[async_trait]
impl Gate for Books {
    async fn post(
        &self,
        partition: Partition,
        epoch: Epoch,
        records: Vec<OutboxRecord>,
    ) -> Result<Vec<bool>, HotError> {
        let mood = self.mood.load(Ordering::SeqCst);
        // What the embedded store decides it decides in these.
        assert_eq!((partition, epoch), (Partition::ZERO, Epoch::FIRST));
        if mood == MOVED {
            return Err(HotError::Epoch(Epoch(7)));
        }
        if mood == IS_AWAY {
            return Err(HotError::Unavailable("the books are away".into()));
        }
        let stands = vec![mood == TAKES; records.len()];
        self.posted.lock().extend(records);
        Ok(stands)
    }
}

async fn world() -> (World, Arc<Books>) {
    world_where(true).await
}

async fn world_where(sender_may_grab: bool) -> (World, Arc<Books>) {
    let books = Arc::new(Books::default());
    let world = World::made(Making {
        sender_may_grab,
        gate: Some(Arc::clone(&books) as _),
    })
    .await;
    world.deposit("alice", 10_000).await;
    (world, books)
}

async fn listed(world: &World, id: &str) -> Result<usize, Status> {
    let request = v1::ListGrabsRequest {
        envelope_id: id.into(),
        viewer: "alice".into(),
        ..Default::default()
    };
    let answer = world.envelopes.clone().list_grabs(request).await?;
    Ok(answer.into_inner().shares.len())
}

#[tokio::test]
async fn a_grab_is_told_after_the_books_have_it_and_posted_once() {
    let (world, books) = world().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    world.wins(&id, "bob").await;
    assert_eq!(books.posted(), [("bob".to_owned(), 0, false)]);
    // What is known to be in the books is not posted again, whoever asks.
    let again = world.grab(&id, "bob").await.unwrap();
    assert_eq!(again.outcome(), O::AlreadyGrabbed);
    assert!(world.get(&id, "bob").await.unwrap().own_share.is_some());
    assert_eq!(listed(&world, &id).await.unwrap(), 1);
    assert_eq!(books.posted(), []);
    // Nothing is pending: all that was told is in the books.
    assert_eq!(world.balance("bob").await.1, 0);
}

#[tokio::test]
async fn what_the_books_do_not_have_is_told_to_nobody_and_stays_the_grabbers() {
    let (world, books) = world().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    for mood in [IS_AWAY, MOVED, REFUSES] {
        books.are(mood);
        let failed = world.grab(&id, "bob").await.unwrap_err();
        assert_eq!(failed.code(), Code::Unavailable);
        if mood != REFUSES {
            // Who looks is told to come back, rather than something that may not come true.
            let looked = world.get(&id, "bob").await.unwrap_err();
            assert_eq!(looked.code(), Code::Unavailable);
            let looked = listed(&world, &id).await.unwrap_err();
            assert_eq!(looked.code(), Code::Unavailable);
        } else {
            assert!(world.get(&id, "bob").await.unwrap().own_share.is_none());
            assert_eq!(listed(&world, &id).await.unwrap(), 0);
        }
        assert_eq!(world.balance("bob").await.1, 0);
    }
    books.are(TAKES);
    // Others come and go; the share that was decided stays bob's.
    world.wins(&id, "carol").await;
    let told = world.grab(&id, "bob").await.unwrap();
    assert_eq!(told.outcome(), O::AlreadyGrabbed);
    assert_eq!(told.share.unwrap().number, 0);
    assert_eq!(listed(&world, &id).await.unwrap(), 2);
}

#[tokio::test]
async fn a_declined_share_passes_the_gate_as_the_senders() {
    let (world, books) = world().await;
    let id = world
        .send(exclusive("r1", &[("bob", 10), ("carol", 20)]))
        .await;
    let request = v1::DeclineEnvelopeRequest {
        envelope_id: id.clone(),
        grabber: "bob".into(),
        request_id: "x".into(),
        ..Default::default()
    };
    books.are(IS_AWAY);
    let decline = async || {
        let mut envelopes = world.envelopes.clone();
        envelopes.decline_envelope(request.clone()).await
    };
    assert_eq!(decline().await.unwrap_err().code(), Code::Unavailable);
    for mood in [REFUSES, MOVED] {
        books.are(mood);
        assert_eq!(decline().await.unwrap_err().code(), Code::Unavailable);
    }
    books.are(TAKES);
    decline().await.unwrap();
    let last = books.posted().pop();
    assert_eq!(last, Some(("bob".to_owned(), 0, true)));
}

#[tokio::test]
async fn the_best_share_is_shown_when_all_are_in_the_books() {
    let (world, books) = world().await;
    let id = world.send(lucky("r1", 1_000, 1)).await;
    books.are(REFUSES);
    world.grab(&id, "bob").await.unwrap_err();
    let shown = world.get(&id, "alice").await.unwrap();
    let shown = shown.envelope.unwrap();
    assert_eq!(shown.state(), v1::EnvelopeState::Empty);
    assert!(shown.best_luck.is_none(), "{shown:?}");
    world.settle().await;
    let shown = world.get(&id, "alice").await.unwrap();
    assert!(shown.envelope.unwrap().best_luck.is_some());
}

#[tokio::test]
async fn a_page_that_the_gate_thins_out_has_another_one_behind_it() {
    let (world, books) = world().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    books.are(REFUSES);
    world.grab(&id, "bob").await.unwrap_err();
    books.are(TAKES);
    for grabber in ["carol", "dave"] {
        world.wins(&id, grabber).await;
    }
    books.are(REFUSES);
    let mut request = v1::ListGrabsRequest {
        envelope_id: id.clone(),
        viewer: "alice".into(),
        page_size: 1,
        ..Default::default()
    };
    let mut shown = 0;
    for _ in 0..4 {
        let page = world.envelopes.clone().list_grabs(request.clone()).await;
        let page = page.unwrap().into_inner();
        shown += page.shares.len();
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(shown, 2);
}

#[tokio::test]
async fn a_senders_own_share_that_the_books_refuse_is_neither_shown_nor_denied() {
    let (world, books) = world_where(false).await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let own_envelope = v1::RefusalReason::OwnEnvelope;
    books.are(REFUSES);
    let nothing = world.grab(&id, "alice").await.unwrap();
    assert_eq!(nothing.refusal(), own_envelope);
    // Decided while senders could grab, and told to nobody.
    let grab = Grab {
        partition: Partition::ZERO,
        epoch: Epoch::FIRST,
        tenant: TenantId::parse("").unwrap(),
        envelope: id.parse().unwrap(),
        grabber: PersonId::parse("alice").unwrap(),
        phrase: None,
    };
    let decided = world.hot.grab(vec![grab]).await.unwrap();
    let is_won = matches!(decided[0], GrabReply::Outcome(Outcome::Won(_)));
    assert!(is_won, "{decided:?}");
    for mood in [REFUSES, IS_AWAY, MOVED] {
        books.are(mood);
        let failed = world.grab(&id, "alice").await.unwrap_err();
        assert_eq!(failed.code(), Code::Unavailable, "{mood}");
    }
    books.are(TAKES);
    let told = world.grab(&id, "alice").await.unwrap();
    assert_eq!(told.outcome(), O::AlreadyGrabbed);
}
