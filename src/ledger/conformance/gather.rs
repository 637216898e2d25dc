//! The shares of an envelope that was dealt are gathered in its first stripe: a fact that goes one way.

use super::{World, act, draft, fund, pay, person, tenant, unders};
use crate::domain::envelope::{BookState, CloseReason, Draft};
use crate::domain::id::EnvelopeId;
use crate::domain::stripes::StripeCount;
use crate::ledger::{AuditPage, CloseProgress, EnvelopeRow, LedgerError, Settled};

/// Where an envelope of two stripes was closed.
const BOTH: [(u16, u64); 2] = [(0, 1), (1, 1)];

impl World {
    async fn gather(&self, id: EnvelopeId) -> EnvelopeRow {
        self.ledger.gather(id).await.expect("an answer")
    }

    async fn mark_frozen(&self, id: EnvelopeId, frozen: bool) {
        let marked = match frozen {
            true => self.ledger.freeze(id, act("freeze", id)).await,
            false => self.ledger.unfreeze(id, act("unfreeze", id)).await,
        };
        assert!(!marked.expect("it is marked"), "it was so before");
    }

    /// One that lies in two partitions, and nobody marked it live.
    async fn dealt(&self, request_id: &str) -> EnvelopeRow {
        self.deposit("alice", 100, request_id).await;
        self.fund(in_two(), request_id).await
    }

    async fn begin_closing(&self, id: EnvelopeId) -> EnvelopeRow {
        let begun = self.ledger.begin_close(id, CloseReason::Expired).await;
        begun.expect("it closes")
    }

    async fn close_in_both(&self, id: EnvelopeId, taken_count: u32) -> EnvelopeRow {
        let closed = self
            .ledger
            .finish_close(unders(&BOTH), id, CloseReason::Expired, taken_count)
            .await;
        match closed.expect("an answer") {
            CloseProgress::Closed(row) => row,
            waiting @ CloseProgress::Waiting { .. } => panic!("{waiting:?}"),
        }
    }
}

fn in_two() -> Draft {
    Draft {
        stripes: StripeCount::new(2).expect("as many as there may be"),
        ..draft("alice", 100, 4)
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn what_is_gathered_stays_on_record_for_ever(world: &World) {
    let (id, other) = (world.dealt("e1").await.id, world.dealt("e2").await.id);
    for each in [id, other] {
        let live = world.ledger.mark_live(each).await.expect("it becomes Live");
        assert!(!live.gathered);
    }
    for _ in 0..3 {
        let row = world.gather(id).await;
        assert_eq!(
            (row.id, row.state, row.gathered),
            (id, BookState::Live, true)
        );
        assert!(world.envelope(id).await.gathered);
        assert!(!world.envelope(other).await.gathered, "it is not this one");
    }
    // Whoever reads the row is told.
    let marked = world.ledger.mark_live(id).await.expect("it is Live");
    let again = world.ledger.fund(fund(in_two(), "e1")).await;
    let again = again.expect("it stands there");
    let asked = world.ledger.sent(tenant(), person("alice"), None, 10).await;
    let sent = asked.expect("a list").pop().expect("the oldest one");
    let page = AuditPage::Of(vec![id]);
    let audited = world.ledger.audit_envelopes(None, page).await;
    let audited = audited.expect("an audit").pop().expect("its row");
    let audited = audited.envelope.expect("it can be read");
    for row in [marked, again.envelope, sent, audited] {
        assert_eq!((row.id, row.gathered), (id, true));
    }
    // Whatever is done with it afterwards.
    let paid = world.settle(vec![pay(id, 3, "bob", 40)]).await;
    assert_eq!(paid, [Settled::Paid]);
    for frozen in [true, false] {
        world.mark_frozen(id, frozen).await;
        let row = world.envelope(id).await;
        assert_eq!((row.frozen, row.gathered), (frozen, true));
        assert!(world.gather(id).await.gathered);
    }
    assert!(world.begin_closing(id).await.gathered);
    assert!(world.gather(id).await.gathered);
    assert!(world.close_in_both(id, 1).await.gathered);
    let row = world.gather(id).await;
    assert_eq!(row.state, BookState::Closed(CloseReason::Expired));
    assert!(row.gathered);
    assert_eq!(world.has("alice").await, (60, 100));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn an_envelope_may_be_gathered_before_it_is_marked_live(world: &World) {
    let funded = world.dealt("e1").await;
    assert!(!funded.gathered);
    let row = world.gather(funded.id).await;
    assert_eq!((row.state, row.gathered), (BookState::Funding, true));
    let live = world.ledger.mark_live(funded.id).await;
    let live = live.expect("it becomes Live");
    assert_eq!((live.state, live.gathered), (BookState::Live, true));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn nothing_is_gathered_of_a_frozen_envelope_or_one_that_is_over(world: &World) {
    let id = world.live_in(2, (100, 4), "e1").await;
    world.mark_frozen(id, true).await;
    let row = world.gather(id).await;
    assert_eq!((row.frozen, row.gathered), (true, false));
    world.mark_frozen(id, false).await;
    assert!(!world.envelope(id).await.gathered, "nothing waited");
    assert!(world.gather(id).await.gathered);

    let over = world.live_in(2, (100, 4), "e2").await;
    world.begin_closing(over).await;
    let row = world.gather(over).await;
    let closing = BookState::Closing(CloseReason::Expired);
    assert_eq!((row.state, row.gathered), (closing, false));
    assert!(!world.close_in_both(over, 0).await.gathered);
    let row = world.gather(over).await;
    let closed = BookState::Closed(CloseReason::Expired);
    assert_eq!((row.state, row.gathered), (closed, false));
    assert!(!world.envelope(over).await.gathered);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn an_envelope_of_one_stripe_is_never_gathered_and_an_unknown_one_not_found(
    world: &World,
) {
    let id = world.live(100, 4, "e1").await;
    let refused = async || {
        let refused = world.ledger.gather(id).await;
        assert!(
            matches!(refused, Err(LedgerError::Broken(_))),
            "{refused:?}"
        );
        assert!(!world.envelope(id).await.gathered);
    };
    refused().await;
    world.mark_frozen(id, true).await;
    refused().await;
    world.mark_frozen(id, false).await;
    world.begin_closing(id).await;
    refused().await;
    let unknown = EnvelopeId::from_parts(1, [9; 14]);
    let missing = world.ledger.gather(unknown).await;
    assert!(matches!(missing, Err(LedgerError::NotFound)), "{missing:?}");
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub async fn gathering_and_closing_at_once_both_end_and_answer_what_stands(world: &World) {
    for round in 0..10 {
        let id = world.live_in(2, (100, 4), &format!("e{round}")).await;
        let gathers = futures_util::future::join_all((0..4).map(|_| world.gather(id)));
        let closes = futures_util::future::join_all((0..4).map(|_| world.begin_closing(id)));
        let (gathered, closing) = futures_util::future::join(gathers, closes).await;
        let stands = world.envelope(id).await;
        let over = BookState::Closing(CloseReason::Expired);
        assert_eq!(stands.state, over);
        for row in gathered {
            assert_eq!(row.gathered, stands.gathered);
            assert!(row.gathered || row.state == over, "{row:?}");
        }
        for row in closing {
            assert_eq!((row.state, row.gathered), (over, stands.gathered));
        }
    }
}
