//! Who sees what: every state beside every viewer.

use std::collections::BTreeMap;

use super::*;
use crate::domain::audience::Audience;
use crate::domain::envelope::{Draft, Kind, LeafRef};
use crate::domain::grab::Grant;
use crate::domain::id::{EnvelopeId, TenantId, UnixMs};
use crate::domain::money::Currency;
use crate::domain::split::Split;
use crate::domain::stripes::StripeCount;

fn person(name: &str) -> PersonId {
    PersonId::parse(name).unwrap()
}

fn terms(reveal: Reveal) -> Arc<Terms> {
    Arc::new(Terms {
        draft: Draft {
            tenant: TenantId::parse("").unwrap(),
            sender: person("alice"),
            kind: Kind::Lucky,
            currency: Currency::from_code("CNY").unwrap(),
            total_minor: 1_000,
            share_count: 3,
            min_minor: 1,
            max_minor: 1_000,
            split: Some(Split::DoubleMean),
            exclusive: Vec::new(),
            audience: Audience::Named([person("bob"), person("carol")].into()),
            passphrase: None,
            greeting: String::new(),
            cover_id: String::new(),
            reveal,
            labels: BTreeMap::from([("order".into(), "7".into())]),
            opens_at: None,
            expires_in_ms: 1_000,
            client_nonce: Vec::new(),
            stripes: StripeCount::ONE,
        },
        created_at: UnixMs(1),
        expires_at: UnixMs(1_001),
        leaf: LeafRef {
            leaf_number: 0,
            leaf_hash: [0; 32],
            batch_number: 0,
            batch_root: [0; 32],
        },
    })
}

fn held(name: &str, share: u32, amount_minor: i64) -> HeldShare {
    HeldShare {
        grabber: person(name),
        grant: Grant {
            share,
            amount_minor,
            at: UnixMs(5),
        },
        declined: false,
    }
}

fn snapshot(reveal: Reveal, books: BookState, hot: Option<HotState>) -> Snapshot {
    let id = EnvelopeId::from_parts(1, [7; 14]);
    let terms = terms(reveal);
    Snapshot {
        row: EnvelopeRow {
            id,
            row: 1,
            terms: Arc::clone(&terms),
            state: books,
            frozen: false,
            gathered: false,
            settled_count: 1,
            settled_minor: 300,
            declined_count: 0,
            refunded_minor: 0,
            made_good_minor: 0,
            set_aside_count: 0,
            closed_at: None,
        },
        hot: hot.map(|state| HotView {
            envelope: id,
            terms,
            state,
            frozen: None,
            taken_count: 2,
            taken_minor: 800,
            declined_count: 0,
            best: None,
            stale: false,
            gathered: false,
        }),
        best: Some(held("carol", 1, 500)),
        declined_minor: 0,
    }
}

fn viewer(name: &str, own: Option<HeldShare>) -> Viewer {
    Viewer {
        person: person(name),
        own,
    }
}

const LIVE: HotState = HotState::Live;
const EMPTY: HotState = HotState::Over(CloseReason::Empty);
const EXPIRED: HotState = HotState::Over(CloseReason::Expired);

#[test]
fn amounts_of_others_are_shown_by_reveal_and_state() {
    let books = BookState::Live;
    let closed = BookState::Closed(CloseReason::Expired);
    // reveal, books, hot → shown to the sender, a holder, an onlooker
    let table = [
        (Reveal::AfterGrab, books, Some(LIVE), [true, true, false]),
        (Reveal::AtEnd, books, Some(LIVE), [true, false, false]),
        (Reveal::AfterGrab, books, Some(EXPIRED), [true, true, false]),
        (Reveal::AtEnd, books, Some(EXPIRED), [true, false, false]),
        (Reveal::AfterGrab, books, Some(EMPTY), [true, true, true]),
        (Reveal::AtEnd, books, Some(EMPTY), [true, true, true]),
        (Reveal::AtEnd, closed, None, [true, true, true]),
        (Reveal::AfterGrab, closed, Some(EXPIRED), [true, true, true]),
    ];
    for (reveal, books, hot, shown) in table {
        let snapshot = snapshot(reveal, books, hot);
        let viewers = [
            viewer("alice", None),
            viewer("bob", Some(held("bob", 0, 300))),
            viewer("dave", None),
        ];
        for (viewer, shown) in viewers.iter().zip(shown) {
            let others = snapshot.share(&held("carol", 1, 500), viewer);
            let told = snapshot.envelope(viewer);
            let progress = told.progress.unwrap();
            let case = format!("{reveal:?} {books:?} {hot:?} {:?}", viewer.person);
            assert_eq!(others.amount.is_some(), shown, "{case}");
            assert_eq!(progress.taken.is_some(), shown, "{case}");
            assert_eq!(progress.settled.is_some(), shown, "{case}");
            assert_eq!(progress.refunded.is_some(), shown, "{case}");
        }
    }
}

#[test]
fn everybody_sees_what_is_their_own() {
    let snapshot = snapshot(Reveal::AtEnd, BookState::Live, Some(LIVE));
    let bob = viewer("bob", Some(held("bob", 0, 300)));
    let own = snapshot.share(&held("bob", 0, 300), &bob);
    assert_eq!(own.amount.unwrap().minor_units, 300);
}

#[test]
fn names_and_labels_are_for_the_sender_alone() {
    use v1::audience::Audience::Named;
    let snapshot = snapshot(Reveal::AtEnd, BookState::Live, Some(LIVE));
    for (name, seen) in [("alice", 2), ("bob", 0)] {
        let envelope = snapshot.envelope(&viewer(name, None));
        let Some(Named(named)) = envelope.audience.unwrap().audience else {
            panic!("the audience is a list");
        };
        assert_eq!(named.grabbers.len(), seen);
        assert_eq!(envelope.labels.is_empty(), seen == 0);
    }
}

#[test]
fn best_luck_shows_when_empty_or_closed() {
    let closed = BookState::Closed(CloseReason::Recalled);
    for (books, hot, shown) in [
        (BookState::Live, Some(LIVE), false),
        (BookState::Live, Some(EXPIRED), false),
        (BookState::Live, Some(EMPTY), true),
        (closed, None, true),
    ] {
        let snapshot = snapshot(Reveal::AfterGrab, books, hot);
        let alice = viewer("alice", None);
        let best = snapshot.envelope(&alice).best_luck;
        assert_eq!(best.is_some(), shown);
        let luckiest = snapshot.share(&held("carol", 1, 500), &alice);
        assert_eq!(luckiest.best_luck, shown);
        assert!(!snapshot.share(&held("bob", 0, 300), &alice).best_luck);
    }
}

#[test]
fn the_two_stores_make_one_state() {
    use v1::EnvelopeState as S;
    let recalled = CloseReason::Recalled;
    let table = [
        (BookState::Funding, None, S::Funding, 0),
        (BookState::Funding, Some(HotState::Funding), S::Funding, 0),
        (BookState::Funding, Some(LIVE), S::Live, 0),
        (BookState::Live, None, S::Live, 0),
        (BookState::Live, Some(EMPTY), S::Empty, 1),
        (BookState::Closing(recalled), Some(LIVE), S::Live, 0),
        (BookState::Closing(recalled), Some(EMPTY), S::Empty, 1),
        (BookState::Closing(recalled), None, S::Recalled, 3),
        (BookState::Closed(recalled), None, S::Closed, 3),
        (BookState::Closed(recalled), Some(EXPIRED), S::Closed, 3),
    ];
    for (books, hot, state, reason) in table {
        let mut snapshot = snapshot(Reveal::AtEnd, books, hot);
        let told = snapshot.envelope(&viewer("alice", None));
        assert_eq!(told.state(), state, "{books:?} {hot:?}");
        assert_eq!(told.close_reason, reason, "{books:?} {hot:?}");
        snapshot.row.frozen = true;
        let frozen = if state == S::Closed {
            S::Closed
        } else {
            S::Frozen
        };
        assert_eq!(snapshot.state(), frozen, "{books:?} {hot:?}");
    }
}

#[test]
fn what_is_taken_is_the_most_that_either_store_knows() {
    let mut snapshot = snapshot(Reveal::AtEnd, BookState::Live, Some(LIVE));
    let alice = viewer("alice", None);
    let taken = |s: &Snapshot| s.envelope(&alice).progress.unwrap();
    let progress = taken(&snapshot);
    assert_eq!((progress.taken_count, progress.remaining_count), (2, 1));
    assert_eq!(progress.taken.unwrap().minor_units, 800);
    // Settled after the hot store was read.
    snapshot.row.settled_count = 3;
    snapshot.row.settled_minor = 1_000;
    let progress = taken(&snapshot);
    assert_eq!((progress.taken_count, progress.remaining_count), (3, 0));
    assert_eq!(progress.taken.unwrap().minor_units, 1_000);
}
