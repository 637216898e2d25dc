//! Envelopes that are played, hurt and repaired, and what must hold of them afterwards.
//!
//! # Not here
//! What hurts them: `repairs`, `interrupted`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Crash, Flavour, OnRedis};
use crate::domain::envelope::{CloseReason, HotState};
use crate::domain::grab::{GRABS_PER_CALL_MAX, Grab, GrabReply, HeldShare, Outcome, Refusal};
use crate::domain::id::Epoch;
use crate::domain::stripes::Stripe;
use crate::hot::conformance::stage::{Cast, epoch, person, phrase, tenant};
use crate::hot::{HotError, HotStore, Repair};

/// Those who have a share before the damage; of a named envelope, the last of them declines.
pub const WINNERS: [&str; 3] = ["zoe", "bob", "yan"];

/// The kinds of envelopes that lie differently in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Lucky,
    Locked,
    Named,
    /// Above the bound where grabbers are listed, and of several chunks.
    Large,
}

pub const KINDS: [Kind; 4] = [Kind::Lucky, Kind::Locked, Kind::Named, Kind::Large];

/// An envelope, and who had what before the damage.
pub struct Mended {
    pub kind: Kind,
    pub cast: Cast,
    pub held: Vec<HeldShare>,
}

pub async fn stage() -> OnRedis {
    OnRedis::new(Flavour::Debian, Crash::Process).await
}

impl Mended {
    /// Publishes one and gives the winners their shares, and the ledger their debts.
    pub async fn play(store: &dyn HotStore, kind: Kind) -> Self {
        let cast = match kind {
            Kind::Lucky => Cast::lucky(&[5, 1, 9, 2, 7, 3]),
            Kind::Locked => Cast::locked(&[5, 1, 9, 2, 7, 3]),
            Kind::Named => Cast::exclusive(&[
                ("zoe", 5),
                ("ann", 1),
                ("bob", 9),
                ("yan", 2),
                ("eve", 7),
                ("dan", 3),
            ]),
            Kind::Large => Cast::lucky(&(1..=2_100).collect::<Vec<i64>>()),
        };
        cast.publish(store).await;
        let mut mended = Self {
            kind,
            cast,
            held: Vec::new(),
        };
        let takes = if kind == Kind::Named { 2 } else { 3 };
        mended.grab(store, &WINNERS[..takes]).await;
        if kind == Kind::Named {
            let (id, yan) = (mended.cast.id, person("yan"));
            let declined = store.decline(epoch(store, id), tenant(), id, yan);
            declined.await.unwrap();
        }
        mended.cast.settle_all(store).await;
        let held = store.grants(mended.cast.id, 0, 100).await.unwrap();
        mended.held = held.unwrap();
        assert_eq!(mended.held.len(), 3);
        mended
    }

    pub async fn grab(&self, store: &dyn HotStore, names: &[&str]) -> Vec<GrabReply> {
        let mut replies = Vec::new();
        for names in names.chunks(GRABS_PER_CALL_MAX) {
            let grabs = names.iter().map(|name| Grab {
                phrase: (self.kind == Kind::Locked).then(|| phrase("open sesame")),
                ..self.cast.grab_in(store, name)
            });
            replies.extend(store.grab(grabs.collect()).await.unwrap());
        }
        replies
    }

    /// What the books would bring: these claims, and the vector that the seed makes.
    pub fn repair(&self, claims: &[HeldShare]) -> Repair {
        Repair {
            envelope: self.cast.id,
            terms: Arc::clone(&self.cast.terms),
            amounts_minor: self.cast.amounts.clone().into(),
            claims: claims.to_vec(),
            over: None,
            stripe: Stripe::FIRST,
            gathered: None,
        }
    }

    /// Repairs until it is done: another repair may cross this one.
    pub async fn mend(&self, store: &dyn HotStore, claims: &[HeldShare]) -> HotState {
        for _ in 0..20 {
            match store.repair(&store.epochs(), self.repair(claims)).await {
                Ok(state) => return state,
                Err(HotError::Unavailable(why)) => println!("again: {why}"),
                Err(other) => panic!("{other}"),
            }
        }
        panic!("the repairs cross for ever");
    }

    /// Who had a share has the same, the others are dealt once, and everything adds up.
    pub async fn holds(&self, store: &dyn HotStore, what: &str) {
        let view = store
            .view(vec![self.cast.id])
            .await
            .unwrap()
            .pop()
            .flatten();
        let view = view.unwrap_or_else(|| panic!("not shown: {what}"));
        assert!(!view.stale, "{what}");
        let worth: i64 = self.held.iter().map(|held| held.grant.amount_minor).sum();
        assert_eq!((view.taken_count, view.taken_minor), (3, worth), "{what}");
        let grants = store.grants(self.cast.id, 0, 1_000).await.unwrap();
        assert_eq!(grants.as_ref(), Some(&self.held), "{what}");
        self.answers_stay(store, what).await;
        match view.state {
            HotState::Live => self.the_rest_is_dealt_once(store, what).await,
            HotState::Over(reason) => {
                let late = self.grab(store, &["late"]).await;
                let expected = match reason {
                    _ if self.kind == Kind::Named => late[0],
                    CloseReason::Recalled => GrabReply::Outcome(Outcome::Recalled),
                    CloseReason::Expired => GrabReply::Outcome(Outcome::Expired),
                    CloseReason::Empty => GrabReply::Outcome(Outcome::Empty),
                };
                assert_eq!(late[0], expected, "{what}");
            }
            HotState::Funding => panic!("half built: {what}"),
        }
    }

    async fn answers_stay(&self, store: &dyn HotStore, what: &str) {
        for held in &self.held {
            let replies = self.grab(store, &[held.grabber.as_str()]).await;
            let expected = match held.declined {
                true => Outcome::Refused(Refusal::Declined),
                false => Outcome::AlreadyGrabbed(held.grant),
            };
            assert_eq!(replies[0], GrabReply::Outcome(expected), "{what}");
        }
    }

    async fn the_rest_is_dealt_once(&self, store: &dyn HotStore, what: &str) {
        let count = self.cast.amounts.len();
        let names: Vec<String> = match self.kind {
            Kind::Named => ["ann", "eve", "dan"].map(String::from).to_vec(),
            _ => (0..count).map(|number| format!("p{number}")).collect(),
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut taken: BTreeSet<u32> = self.held.iter().map(|held| held.grant.share).collect();
        let mut won = 0;
        for reply in self.grab(store, &names).await {
            match reply {
                GrabReply::Outcome(Outcome::Won(grant)) => {
                    assert!(taken.insert(grant.share), "share {}: {what}", grant.share);
                    let worth = self.cast.amounts[grant.share as usize];
                    assert_eq!(grant.amount_minor, worth, "{what}");
                    won += 1;
                }
                GrabReply::Outcome(Outcome::Empty) => {}
                other => panic!("{other:?}: {what}"),
            }
        }
        assert_eq!((taken.len(), won), (count, count - 3), "{what}");
        let debts = self.cast.debts(store).await;
        assert_eq!(debts.len(), won, "{what}");
        self.cast.settle_all(store).await;
        let view = store
            .view(vec![self.cast.id])
            .await
            .unwrap()
            .pop()
            .flatten();
        let view = view.unwrap();
        let all: i64 = self.cast.amounts.iter().sum();
        assert_eq!((view.taken_count as usize, view.taken_minor), (count, all));
        assert_eq!(view.state, HotState::Over(CloseReason::Empty), "{what}");
    }
}

impl OnRedis {
    /// Redis and the processes before it go on in the next epoch.
    pub async fn go_on(&mut self) {
        let next = Epoch(self.epoch.0 + 1);
        self.start_again(next).await;
    }
}
