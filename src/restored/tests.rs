//! Two books in front of one embedded store: what the other ones put there these don't know.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{Order, Report, RestoredError, begin_anew};
use crate::clock::ManualClock;
use crate::domain::envelope::CloseReason;
use crate::domain::fairness::{SealKey, SealKeys};
use crate::domain::grab::{Grab, GrabReply, Outcome};
use crate::domain::id::{EnvelopeId, Epoch, Partition};
use crate::domain::money::Currencies;
use crate::hot::embedded::{EmbeddedStore, Limits};
use crate::hot::{HotError, HotStore};
use crate::ledger::LedgerError;
use crate::ledger::conformance::{NOON_MS, World, act, draft, pay, person, tenant};
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::sqlite::hooks::damage;
use crate::publish::{Amounts, PublishError, Publisher, RegistrarError};
use crate::settle::SettleError;

/// The books refuse every claim of mallory.
const NO_CLAIMS: &str = "-- restored.no_claims
    CREATE TRIGGER claims BEFORE INSERT ON claim WHEN NEW.grabber = 'mallory'
    BEGIN SELECT RAISE(ABORT, 'poison'); END";
/// And can't set it aside.
const NO_LETTERS: &str = "-- restored.no_letters
    CREATE TRIGGER letters BEFORE INSERT ON dead_letter
    BEGIN SELECT RAISE(ABORT, 'no letters'); END";

struct Scene {
    folder: tempfile::TempDir,
    clock: ManualClock,
    hot: Arc<dyn HotStore>,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::at(NOON_MS);
        let path = folder.path().join("hot.sqlite");
        let hot = EmbeddedStore::open(&path, Arc::new(clock.clone()), Limits::default());
        let hot = Arc::new(hot.unwrap());
        Self { folder, clock, hot }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Books whose secrets follow from `seed`.
    fn books(&self, path: &Path, seed: u64) -> World {
        let keys = SealKeys::new(vec![SealKey::new(1, [7; 32])]).unwrap();
        let rng = Box::new(StdRng::seed_from_u64(seed));
        let ledger = SqliteLedger::open(path, Arc::new(self.clock.clone()), keys, rng).unwrap();
        World {
            ledger: Arc::new(ledger),
            clock: self.clock.clone(),
        }
    }

    fn publisher(&self, books: &World) -> Publisher {
        let amounts = Arc::new(Amounts::new(Arc::clone(&books.ledger)));
        Publisher::new(Arc::clone(&self.hot), Arc::clone(&books.ledger), amounts)
    }

    /// An envelope of four shares in these books and in the store.
    async fn sent(&self, books: &World, total_minor: i64) -> EnvelopeId {
        books.deposit("alice", total_minor, "d1").await;
        let id = books.fund(draft("alice", total_minor, 4), "e1").await.id;
        self.publisher(books).publish(id).await.unwrap();
        id
    }

    /// One call of the store: its wins and their debt are one entry.
    async fn grab(&self, grabs: &[(EnvelopeId, &str)]) -> Vec<i64> {
        let grab = |(id, grabber): &(EnvelopeId, &str)| Grab {
            partition: Partition::ZERO,
            epoch: Epoch::FIRST,
            tenant: tenant(),
            envelope: *id,
            grabber: person(grabber),
            phrase: None,
        };
        let replies = self.hot.grab(grabs.iter().map(grab).collect()).await;
        let won = |reply| match reply {
            GrabReply::Outcome(Outcome::Won(grant)) => grant.amount_minor,
            other => panic!("{other:?}"),
        };
        replies.unwrap().into_iter().map(won).collect()
    }

    async fn restored(&self, books: &World, told: bool) -> (Result<usize, RestoredError>, Report) {
        let order = Order {
            operator: person("olga"),
            reason: "a lost disk".to_owned(),
        };
        let said = Mutex::new(None);
        let tell = |report: &Report| {
            *said.lock() = Some(report.clone());
            match told {
                true => Ok(()),
                false => Err(std::io::Error::other("no space left")),
            }
        };
        let (hot, ledger) = (Arc::clone(&self.hot), Arc::clone(&books.ledger));
        let done = begin_anew(hot, ledger, order, tell).await;
        (done, said.into_inner().unwrap())
    }

    async fn owed(&self) -> usize {
        let entries = self.hot.outbox(Partition::ZERO, None, 100).await.unwrap();
        entries.iter().map(|entry| entry.records.len()).sum()
    }

    /// What it owes is paid by books that are lost, it ends, and ten minutes pass.
    async fn forget(&self, books: &World, id: EnvelopeId) {
        let owed = self.hot.outbox(Partition::ZERO, None, 100).await.unwrap();
        let owed = owed.iter().map(|entry| (entry.id, entry.nonce)).collect();
        let paid = self.hot.settled(Epoch::FIRST, Partition::ZERO, owed);
        paid.await.unwrap();
        let terms = books.envelope(id).await.terms;
        let (under, reason) = (self.hot.epochs(), CloseReason::Recalled);
        let closed = self.hot.close(&under, id, terms, reason);
        closed.await.unwrap();
        self.hot.remove(&under, vec![id]).await.unwrap();
        assert!(!self.holds(id).await);
    }

    async fn holds(&self, id: EnvelopeId) -> bool {
        self.hot.view(vec![id]).await.unwrap()[0].is_some()
    }
}

fn grabbers(report: &Report) -> Vec<(EnvelopeId, Vec<String>)> {
    let named = report.strangers.iter().map(|stranger| {
        let held = stranger.grants.values();
        (stranger.id, held.map(|h| h.grabber.to_string()).collect())
    });
    named.collect()
}

#[tokio::test]
async fn an_entry_that_owes_known_and_unknown_grants_pays_the_known_ones() {
    let scene = Scene::new();
    let ours = scene.books(&scene.path("ours.sqlite"), 1);
    let theirs = scene.books(&scene.path("theirs.sqlite"), 2);
    let known = scene.sent(&ours, 100).await;
    let unknown = scene.sent(&theirs, 200).await;
    let won = scene.grab(&[(known, "bob"), (unknown, "gus")]).await;

    let (done, report) = scene.restored(&ours, true).await;
    assert_eq!(done.unwrap(), 1);
    assert_eq!(grabbers(&report), [(unknown, vec!["gus".to_owned()])]);
    assert_eq!(ours.has("bob").await, (won[0], 0));
    assert_eq!(scene.owed().await, 0);
    assert!(scene.holds(known).await && !scene.holds(unknown).await);
    let letters = ours.ledger.dead_letters(None, 0, 10).await.unwrap();
    assert!(letters.is_empty(), "{letters:?}");
    let acts = ours.ledger.acts(Some(unknown), 10).await.unwrap();
    assert_eq!(acts[0].act, "give_up");
    let sum = format!("not in the restored books: 1 grants of {} CNY", won[1]);
    assert_eq!(acts[0].result, sum);
    ours.audit().await;
}

#[tokio::test]
async fn a_grant_of_a_frozen_envelope_beside_an_unknown_one_is_parked() {
    let scene = Scene::new();
    let ours = scene.books(&scene.path("ours.sqlite"), 1);
    let theirs = scene.books(&scene.path("theirs.sqlite"), 2);
    let known = scene.sent(&ours, 100).await;
    let unknown = scene.sent(&theirs, 200).await;
    let won = scene.grab(&[(known, "bob"), (unknown, "gus")]).await;
    ours.ledger
        .freeze(known, act("freeze", known))
        .await
        .unwrap();
    let (done, report) = scene.restored(&ours, true).await;
    assert_eq!(done.unwrap(), 1);
    assert_eq!(report.left.len(), 1, "{:?}", report.left);
    assert_eq!((ours.has("bob").await, scene.owed().await), ((0, 0), 0));
    ours.ledger
        .unfreeze(known, act("unfreeze", known))
        .await
        .unwrap();
    assert_eq!(ours.unparked().await, 1);
    assert_eq!(ours.has("bob").await, (won[0], 0));
    ours.audit().await;
}

#[tokio::test]
async fn what_the_operator_was_not_told_of_stays() {
    let scene = Scene::new();
    let ours = scene.books(&scene.path("ours.sqlite"), 1);
    let theirs = scene.books(&scene.path("theirs.sqlite"), 2);
    let unknown = scene.sent(&theirs, 200).await;
    scene.grab(&[(unknown, "gus"), (unknown, "hana")]).await;
    let (done, report) = scene.restored(&ours, false).await;
    assert!(matches!(done, Err(RestoredError::Untold(_))), "{done:?}");
    assert_eq!((scene.owed().await, scene.holds(unknown).await), (2, true));
    // The same list again, and now it is heard.
    let (done, again) = scene.restored(&ours, true).await;
    assert_eq!(done.unwrap(), 1);
    assert_eq!(grabbers(&again), grabbers(&report));
    assert_eq!((scene.owed().await, scene.holds(unknown).await), (0, false));
}

#[tokio::test]
async fn an_envelope_under_the_id_of_another_one_is_not_paid_with_its_money() {
    let scene = Scene::new();
    // The same secrets, since the first leaf of a copy is used by both.
    let ours = scene.books(&scene.path("ours.sqlite"), 1);
    let theirs = scene.books(&scene.path("theirs.sqlite"), 1);
    let lost = scene.sent(&theirs, 200).await;
    let won = scene.grab(&[(lost, "gus")]).await;
    ours.deposit("alice", 100, "d1").await;
    let ours_id = ours.fund(draft("alice", 100, 4), "e1").await.id;
    assert_eq!(ours_id, lost, "the leaf was used twice");

    let (done, report) = scene.restored(&ours, true).await;
    assert_eq!(done.unwrap(), 1);
    assert_eq!(grabbers(&report), [(lost, vec!["gus".to_owned()])]);
    assert_eq!(
        report.strangers[0].sum(),
        format!("1 grants of {} CNY", won[0])
    );
    assert_eq!((ours.has("gus").await, scene.owed().await), ((0, 0), 0));
    // Ours is published as if nothing had been there.
    scene.publisher(&ours).publish(ours_id).await.unwrap();
    let view = scene.hot.view(vec![ours_id]).await.unwrap().pop().flatten();
    let view = view.unwrap();
    assert_eq!((view.taken_count, view.terms.total_minor), (0, 100));
}

#[tokio::test]
async fn what_the_embedded_store_forgot_stands_still_once_it_was_told_and_is_told_again() {
    let scene = Scene::new();
    let ours = scene.books(&scene.path("ours.sqlite"), 1);
    let forgotten = scene.sent(&ours, 100).await;
    scene.grab(&[(forgotten, "bob")]).await;
    scene.forget(&ours, forgotten).await;
    let (done, report) = scene.restored(&ours, false).await;
    assert!(matches!(done, Err(RestoredError::Untold(_))), "{done:?}");
    assert_eq!(report.missing, [forgotten]);
    assert!(!ours.envelope(forgotten).await.frozen);
    // However often: a list may be lost.
    for _ in 0..2 {
        let (done, report) = scene.restored(&ours, true).await;
        done.unwrap();
        assert_eq!(report.missing, [forgotten]);
        assert!(ours.envelope(forgotten).await.frozen);
    }
    let acts = ours.ledger.acts(Some(forgotten), 10).await.unwrap();
    assert_eq!(acts.len(), 1, "{acts:?}");
    let published = scene.publisher(&ours).publish(forgotten).await;
    assert!(matches!(published, Err(PublishError::Frozen)));
}

#[tokio::test]
async fn what_the_books_refuse_to_pay_is_told_and_what_they_pay_as_well() {
    let scene = Scene::new();
    let ours = scene.books(&scene.path("ours.sqlite"), 1);
    damage(&scene.path("ours.sqlite"), NO_CLAIMS).unwrap();
    let both = scene.sent(&ours, 100).await;
    let won = scene.grab(&[(both, "bob"), (both, "mallory")]).await;
    let (done, report) = scene.restored(&ours, true).await;
    assert_eq!(done.unwrap(), 0);
    assert_eq!(report.mended.len(), 1);
    assert_eq!((report.mended[0].id, report.mended[0].posted), (both, 1));
    assert_eq!(report.left.len(), 1);
    let left = &report.left[0];
    assert_eq!(left.id, both);
    let why = "grants that were not paid: 1 refused by the books (";
    assert!(left.why.starts_with(why), "{}", left.why);
    assert!(left.why.contains("poison"), "{}", left.why);
    assert_eq!(ours.has("bob").await, (won[0], 0));
}

#[tokio::test]
async fn a_grant_that_the_books_refuse_beside_an_unknown_one_is_set_aside_in_one_run() {
    let scene = Scene::new();
    let ours = scene.books(&scene.path("ours.sqlite"), 1);
    let theirs = scene.books(&scene.path("theirs.sqlite"), 2);
    damage(&scene.path("ours.sqlite"), NO_CLAIMS).unwrap();
    let known = scene.sent(&ours, 100).await;
    let unknown = scene.sent(&theirs, 200).await;
    scene.grab(&[(known, "mallory"), (unknown, "gus")]).await;
    let (done, report) = scene.restored(&ours, true).await;
    assert_eq!(done.unwrap(), 1);
    assert_eq!(report.left.len(), 1, "{:?}", report.left);
    assert_eq!(report.left[0].id, known);
    assert_eq!(report.mended, []);
    assert_eq!((scene.owed().await, scene.holds(unknown).await), (0, false));
    let letters = ours.ledger.dead_letters(None, 0, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].record.grabber, person("mallory"));
    assert_eq!(letters[0].reason, "refused_by_the_books");
    ours.audit().await;
}

#[tokio::test]
async fn an_unknown_envelope_that_has_to_stay_does_not_keep_the_others() {
    let scene = Scene::new();
    let ours = scene.books(&scene.path("ours.sqlite"), 1);
    let theirs = scene.books(&scene.path("theirs.sqlite"), 2);
    damage(&scene.path("ours.sqlite"), NO_CLAIMS).unwrap();
    damage(&scene.path("ours.sqlite"), NO_LETTERS).unwrap();
    let known = scene.sent(&ours, 100).await;
    theirs.deposit("alice", 200, "d2").await;
    let mut unknown = Vec::new();
    for request in ["f1", "f2"] {
        let id = theirs.fund(draft("alice", 100, 4), request).await.id;
        scene.publisher(&theirs).publish(id).await.unwrap();
        unknown.push(id);
    }
    // The embedded store keeps an envelope as long as an earlier entry stays.
    scene.grab(&[(unknown[1], "hana")]).await;
    scene.grab(&[(known, "mallory"), (unknown[0], "gus")]).await;
    let (done, report) = scene.restored(&ours, true).await;
    assert_eq!(report.strangers.len(), 2);
    let Err(RestoredError::Broken(why)) = done else {
        panic!("{done:?}");
    };
    assert!(
        why.contains("taken out of the hot store: 1, but not all: 1 can't"),
        "{why}"
    );
    assert_eq!(scene.owed().await, 2);
    assert!(scene.holds(unknown[0]).await && !scene.holds(unknown[1]).await);
}

#[tokio::test]
async fn a_share_that_the_books_paid_to_somebody_else_is_told_with_both_names() {
    let scene = Scene::new();
    let ours = scene.books(&scene.path("ours.sqlite"), 1);
    let one = scene.sent(&ours, 100).await;
    let won = scene.grab(&[(one, "bob"), (one, "carol")]).await;
    // The books paid bob's share to erin, and carol's to herself.
    let paid = [(0, "erin"), (1, "carol")];
    let paid = paid.map(|(share, who)| pay(one, share, who, won[share as usize]));
    ours.settle(paid.to_vec()).await;
    // As many as the hot store granted: nothing is behind.
    let told = |report: &Report| {
        let told = report.disputes.iter().map(|dispute| {
            let (told, paid) = (&dispute.told, &dispute.paid);
            assert_eq!(dispute.id, one);
            (told.grant.share, told.grabber.to_string(), paid.to_string())
        });
        told.collect::<Vec<_>>()
    };
    let both = [(0, "bob".to_owned(), "erin".to_owned())];
    let (done, report) = scene.restored(&ours, true).await;
    assert_eq!(done.unwrap(), 0);
    assert_eq!(told(&report), both);
    let words = report.words(&Currencies::default());
    let amount = format!("0.{:02} CNY", won[0]);
    let line = format!("{one}: share 0: {amount} told to bob, paid to erin");
    assert!(words.contains(&line), "{words}");
    let json = report.json();
    assert_eq!(json["disputed"][0]["told"], "bob");
    assert_eq!(json["disputed"][0]["paid"], "erin");
    // One that is behind as well, and one of which nothing is paid.
    scene.grab(&[(one, "dave")]).await;
    ours.deposit("alice", 200, "d2").await;
    let other = ours.fund(draft("alice", 100, 4), "e2").await.id;
    scene.publisher(&ours).publish(other).await.unwrap();
    scene.grab(&[(other, "bob")]).await;
    let (done, report) = scene.restored(&ours, true).await;
    assert_eq!(done.unwrap(), 0);
    assert_eq!(report.mended.len(), 2, "{:?}", report.mended);
    assert_eq!(told(&report), both);
    assert_eq!(
        (ours.has("bob").await.0 > 0, ours.has("erin").await.0),
        (true, won[0])
    );
}

#[tokio::test]
async fn what_is_owed_before_it_does_not_keep_an_unknown_envelope() {
    let scene = Scene::new();
    let ours = scene.books(&scene.path("ours.sqlite"), 1);
    let theirs = scene.books(&scene.path("theirs.sqlite"), 2);
    let known = scene.sent(&ours, 100).await;
    let unknown = scene.sent(&theirs, 200).await;
    let won = scene.grab(&[(known, "bob")]).await;
    scene.grab(&[(unknown, "gus")]).await;
    let (done, _) = scene.restored(&ours, true).await;
    assert_eq!(done.unwrap(), 1);
    assert!(scene.holds(known).await && !scene.holds(unknown).await);
    assert_eq!(
        (ours.has("bob").await, scene.owed().await),
        ((won[0], 0), 0)
    );
    let letters = ours.ledger.dead_letters(None, 0, 10).await.unwrap();
    assert!(letters.is_empty(), "{letters:?}");
}

#[test]
fn only_what_repeating_can_help_is_to_be_repeated() {
    let again = |error: RestoredError| error.to_string().contains("until it ends well");
    assert!(again(LedgerError::Unavailable("away".to_owned()).into()));
    assert!(again(HotError::Shed.into()));
    assert!(!again(LedgerError::Broken("damaged".to_owned()).into()));
    assert!(!again(HotError::Mismatch("damaged".to_owned()).into()));
    assert!(!again(SettleError::Broken("damaged".to_owned()).into()));
    let registrar = RegistrarError::Hot(HotError::Mismatch("damaged".to_owned()));
    assert!(!again(registrar.into()));
}
