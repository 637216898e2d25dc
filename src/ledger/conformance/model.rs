//! The books as a page of arithmetic, and lists of operations that both must agree on.
//!
//! The model knows the rules and nothing of rows: accounts are numbers, an envelope is what was
//! put in and who took what. After every operation each balance, each envelope and the audit are
//! compared.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::partitions::advance;
use super::sheet::{Reserve, Sheet};
use super::{World, act, decline, draft, fund, pay, transfer, unders};
use crate::domain::envelope::{BookState, CloseReason, Draft};
use crate::domain::grab::HeldShare;
use crate::domain::id::EnvelopeId;
use crate::domain::stripes::StripeCount;
use crate::ledger::{CloseProgress, LedgerError, SettleItem, Settled};

const PEOPLE: [&str; 4] = ["ann", "ben", "cho", "dan"];

/// Partitions in which envelopes lie beside the first, where all is settled.
const STRIPES: std::ops::Range<u16> = 1..4;

/// One operation. Envelopes are named by their order of funding, modulo how many there are.
#[derive(Clone, Debug)]
pub enum Op {
    /// By (owner, amount, request).
    Deposit(usize, i64, u8),
    /// By (owner, amount, request).
    Withdraw(usize, i64, u8),
    /// By (sender, total, shares, request).
    Fund(usize, i64, u32, u8),
    /// Of one envelope: (share, grabber, amount, declined).
    Settle(usize, Vec<(u32, usize, i64, bool)>),
    /// An operator's mark.
    Freeze(usize, bool),
    /// What waited for the mark to go.
    SettleParked,
    /// How much may be made good from now on: all or nothing, since parked records of several envelopes are
    /// in no order here.
    MakeGoodUpTo(i64),
    /// What is left lies in one stripe from now on.
    Gather(usize),
    /// No more grabs.
    BeginClose(usize),
    /// With how many shares taken beyond those that are claimed, or fewer, under these others of [`STRIPES`], each
    /// in its epoch or so many epochs away from it.
    FinishClose(usize, i32, BTreeMap<u16, i64>),
    /// One of [`STRIPES`] goes to its next epoch.
    Advance(u16),
}

/// Lists of operations that get in each other's way often.
pub fn ops() -> impl Strategy<Value = Vec<Op>> {
    let item = (
        0..5_u32,
        0..PEOPLE.len(),
        1..40_i64,
        prop::bool::weighted(0.2),
    );
    let away = prop_oneof![8 => Just(0_i64), 1 => Just(-1), 1 => Just(1)];
    let under = prop::collection::btree_map(STRIPES, away, 0..3);
    let op = prop_oneof![
        2 => (0..PEOPLE.len(), 1..200_i64, 0..6_u8).prop_map(|(w, m, r)| Op::Deposit(w, m, r)),
        1 => (0..PEOPLE.len(), 1..200_i64, 0..6_u8).prop_map(|(w, m, r)| Op::Withdraw(w, m, r)),
        3 => (0..PEOPLE.len(), 4..100_i64, 1..5_u32, 0..6_u8)
            .prop_map(|(w, m, n, r)| Op::Fund(w, m, n, r)),
        6 => (0..8_usize, prop::collection::vec(item, 1..6)).prop_map(|(e, i)| Op::Settle(e, i)),
        1 => (0..8_usize, any::<bool>()).prop_map(|(e, f)| Op::Freeze(e, f)),
        1 => Just(Op::SettleParked),
        1 => prop_oneof![Just(0_i64), Just(1_000_000)].prop_map(Op::MakeGoodUpTo),
        1 => (0..8_usize).prop_map(Op::Gather),
        2 => (0..8_usize).prop_map(Op::BeginClose),
        3 => (0..8_usize, prop_oneof![4 => Just(0), 1 => Just(1), 1 => Just(-1)], under)
            .prop_map(|(e, n, u)| Op::FinishClose(e, n, u)),
        1 => STRIPES.prop_map(Op::Advance),
    ];
    prop::collection::vec(op, 1..40)
}

/// An envelope of somebody.
#[derive(Clone, Debug)]
struct Funded {
    id: EnvelopeId,
    sender: usize,
    stripes: StripeCount,
    sheet: Sheet,
}

/// What must be so.
#[derive(Clone, Debug, Default)]
pub struct Model {
    accounts: [i64; 4],
    requests: BTreeMap<(&'static str, usize, u8), (i64, u32)>,
    sheets: Vec<Funded>,
    reserve: Reserve,
    /// Of partitions that are not in the first.
    epochs: BTreeMap<u16, u64>,
}

/// What a request id makes of a call.
enum Key {
    New,
    Replay,
    Reused,
}

impl Model {
    fn key(&self, method: &'static str, who: usize, request: u8, body: (i64, u32)) -> Key {
        match self.requests.get(&(method, who, request)) {
            None => Key::New,
            Some(before) if *before == body => Key::Replay,
            Some(_) => Key::Reused,
        }
    }

    fn pay(&mut self, envelope: usize, held: &HeldShare) {
        let name = held.grabber.as_str();
        let grabber = PEOPLE.iter().position(|person| *person == name);
        let to = match held.declined {
            true => self.sheets[envelope].sender,
            false => grabber.expect("records name people"),
        };
        self.accounts[to] += held.grant.amount_minor;
    }

    /// Does one operation on both, and compares the answers.
    pub async fn step(&mut self, world: &World, op: Op) {
        match op {
            Op::Deposit(who, minor, request) => self.deposit(world, who, minor, request).await,
            Op::Withdraw(who, minor, request) => self.withdraw(world, who, minor, request).await,
            Op::Fund(who, total, shares, request) => {
                self.fund(world, who, (total, shares), request).await;
            }
            Op::SettleParked => self.settle_parked(world).await,
            Op::MakeGoodUpTo(minor) => {
                world.make_good_up_to(minor, 1_000);
                self.reserve.minor_max = minor;
            }
            Op::Advance(index) => self.advance(world, index).await,
            _ if self.sheets.is_empty() => {}
            Op::Settle(which, items) => self.settle(world, self.pick(which), items).await,
            Op::Freeze(which, frozen) => self.freeze(world, self.pick(which), frozen).await,
            Op::Gather(which) => self.gather(world, self.pick(which)).await,
            Op::BeginClose(which) => self.begin_close(world, self.pick(which)).await,
            Op::FinishClose(which, more, others) => {
                self.finish_close(world, self.pick(which), more, others)
                    .await;
            }
        }
        self.compare(world).await;
    }

    fn pick(&self, which: usize) -> usize {
        which % self.sheets.len()
    }

    async fn deposit(&mut self, world: &World, who: usize, minor: i64, request: u8) {
        let asked = transfer(PEOPLE[who], minor, &request.to_string());
        let answer = world.ledger.deposit(asked).await;
        match self.key("deposit", who, request, (minor, 0)) {
            Key::New => {
                assert!(!answer.unwrap().replayed);
                self.accounts[who] += minor;
                self.requests.insert(("deposit", who, request), (minor, 0));
            }
            Key::Replay => assert!(answer.unwrap().replayed),
            Key::Reused => assert!(matches!(answer, Err(LedgerError::RequestIdReused))),
        }
    }

    async fn withdraw(&mut self, world: &World, who: usize, minor: i64, request: u8) {
        let asked = transfer(PEOPLE[who], minor, &request.to_string());
        let answer = world.ledger.withdraw(asked).await;
        match self.key("withdraw", who, request, (minor, 0)) {
            Key::New if self.accounts[who] < minor => {
                super::assert_insufficient(answer, self.accounts[who], minor);
            }
            Key::New => {
                assert!(!answer.unwrap().replayed);
                self.accounts[who] -= minor;
                self.requests.insert(("withdraw", who, request), (minor, 0));
            }
            Key::Replay => assert!(answer.unwrap().replayed),
            Key::Reused => assert!(matches!(answer, Err(LedgerError::RequestIdReused))),
        }
    }

    async fn fund(&mut self, world: &World, who: usize, body: (i64, u32), request: u8) {
        // One that a close names alone, or beside one or two of the others.
        let stripes = StripeCount::new(1 + u16::try_from(body.1 % 3).unwrap()).unwrap();
        let draft = Draft {
            stripes,
            ..draft(PEOPLE[who], body.0, body.1)
        };
        let asked = fund(draft, &request.to_string());
        let answer = world.ledger.fund(asked).await;
        match self.key("fund", who, request, body) {
            Key::New if self.accounts[who] < body.0 => {
                super::assert_insufficient(answer, self.accounts[who], body.0);
            }
            Key::New => {
                let funded = answer.unwrap();
                assert!(!funded.replayed);
                self.accounts[who] -= body.0;
                self.requests.insert(("fund", who, request), body);
                self.sheets.push(Funded {
                    id: funded.envelope.id,
                    sender: who,
                    stripes,
                    sheet: Sheet::new(body.0, body.1),
                });
            }
            Key::Replay => assert!(answer.unwrap().replayed),
            Key::Reused => assert!(matches!(answer, Err(LedgerError::RequestIdReused))),
        }
    }

    async fn settle(&mut self, world: &World, which: usize, items: Vec<(u32, usize, i64, bool)>) {
        let id = self.sheets[which].id;
        let batch: Vec<SettleItem> = items
            .iter()
            .map(|(share, who, minor, declined)| {
                let item = if *declined { decline } else { pay };
                item(id, *share, PEOPLE[*who], *minor)
            })
            .collect();
        let verdicts = world.settle(batch.clone()).await;
        for (item, verdict) in batch.into_iter().zip(verdicts) {
            let (SettleItem::Pay(record) | SettleItem::SetAside(record, _)) = item;
            let held = HeldShare {
                grabber: record.grabber,
                grant: record.grant,
                declined: record.declined,
            };
            let sheet = &mut self.sheets[which].sheet;
            let expected = sheet.verdict(held.clone(), &mut self.reserve);
            assert_eq!(verdict, expected, "{held:?} of {which}");
            if expected == Settled::Paid {
                self.pay(which, &held);
            }
        }
        self.move_reserve();
    }

    /// What the reserve paid, and what went back to it.
    fn move_reserve(&mut self) {
        for (who, minor) in std::mem::take(&mut self.reserve.moved) {
            let name = who.as_str();
            let at = PEOPLE.iter().position(|person| *person == name);
            self.accounts[at.expect("records name people")] += minor;
        }
    }

    async fn settle_parked(&mut self, world: &World) {
        let mut paid = 0;
        for which in 0..self.sheets.len() {
            let before = self
                .reserve
                .moved
                .iter()
                .filter(|(_, minor)| *minor > 0)
                .count();
            let sheet = &mut self.sheets[which].sheet;
            for held in sheet.settle_parked(&mut self.reserve) {
                self.pay(which, &held);
                paid += 1;
            }
            let moved = self.reserve.moved.iter().filter(|(_, minor)| *minor > 0);
            paid += moved.count() - before;
        }
        self.move_reserve();
        assert_eq!(world.unparked().await, paid);
    }

    async fn freeze(&mut self, world: &World, which: usize, frozen: bool) {
        let Funded { id, sheet, .. } = &mut self.sheets[which];
        let answer = if frozen {
            world.ledger.freeze(*id, act("freeze", *id)).await
        } else {
            world.ledger.unfreeze(*id, act("unfreeze", *id)).await
        };
        if sheet.closed {
            assert!(matches!(answer, Err(LedgerError::AlreadyOver(_))));
        } else {
            assert_eq!(answer.unwrap(), sheet.frozen == frozen);
            sheet.frozen = frozen;
        }
    }

    async fn gather(&mut self, world: &World, which: usize) {
        let Funded {
            id, stripes, sheet, ..
        } = &mut self.sheets[which];
        let answer = world.ledger.gather(*id).await;
        if stripes.is_one() {
            assert!(matches!(answer, Err(LedgerError::Broken(_))), "{answer:?}");
        } else {
            sheet.gather();
            assert_eq!(answer.unwrap().gathered, sheet.gathered);
        }
    }

    async fn begin_close(&mut self, world: &World, which: usize) {
        let Funded { id, sheet, .. } = &mut self.sheets[which];
        let answer = world.ledger.begin_close(*id, CloseReason::Expired).await;
        if sheet.frozen && !sheet.closing {
            assert!(matches!(answer, Err(LedgerError::Frozen)));
        } else {
            answer.unwrap();
            sheet.closing = true;
        }
    }

    fn epoch(&self, index: u16) -> u64 {
        self.epochs.get(&index).copied().unwrap_or(1)
    }

    async fn advance(&mut self, world: &World, index: u16) {
        let epoch = self.epoch(index);
        advance(world, &[(index, epoch)], "redis a").await;
        self.epochs.insert(index, epoch + 1);
    }

    async fn finish_close(
        &mut self,
        world: &World,
        which: usize,
        more: i32,
        others: BTreeMap<u16, i64>,
    ) {
        let named = |(index, away): (&u16, &i64)| {
            let epoch = self.epoch(*index).saturating_add_signed(*away);
            (*index, epoch)
        };
        let mut under: Vec<(u16, u64)> = others.iter().map(named).collect();
        let stands = under
            .iter()
            .all(|(index, epoch)| self.epoch(*index) == *epoch);
        let replaced = under.iter().any(|(_, epoch)| *epoch > 1);
        under.push((0, 1));
        let Funded {
            id,
            sender,
            stripes,
            sheet,
        } = &mut self.sheets[which];
        let claimed = u32::try_from(sheet.claims.len()).unwrap();
        let taken = claimed.saturating_add_signed(more);
        let answer = world
            .ledger
            .finish_close(unders(&under), *id, CloseReason::Expired, taken)
            .await;
        if !stands {
            assert!(matches!(answer, Err(LedgerError::Epoch(_))), "{answer:?}");
        } else if !sheet.closing {
            assert!(matches!(answer, Err(LedgerError::Broken(_))));
        } else if sheet.frozen {
            assert!(matches!(answer, Err(LedgerError::Frozen)));
        } else if sheet.closed {
            assert!(matches!(answer, Ok(CloseProgress::Closed(_))), "{answer:?}");
        } else if under.len() != usize::from(stripes.get()) {
            assert!(matches!(answer, Err(LedgerError::Broken(_))), "{answer:?}");
        } else if let Some(remainder) = sheet.finish(taken as usize, replaced) {
            assert!(matches!(answer, Ok(CloseProgress::Closed(_))), "{answer:?}");
            self.accounts[*sender] += remainder;
        } else {
            let waiting = matches!(answer, Ok(CloseProgress::Waiting { claimed_count, .. })
                if claimed_count == claimed);
            assert!(waiting, "{answer:?}");
        }
    }

    async fn compare(&self, world: &World) {
        for (who, available) in self.accounts.iter().enumerate() {
            let mine = self.sheets.iter().filter(|s| s.sender == who);
            let open = mine.map(|s| &s.sheet).filter(|sheet| !sheet.closed);
            let held: i64 = open.map(Sheet::left).sum();
            assert_eq!(world.has(PEOPLE[who]).await, (*available, held));
        }
        for Funded { id, sheet, .. } in &self.sheets {
            let envelope = world.envelope(*id).await;
            let out = envelope.settled_minor + envelope.refunded_minor;
            assert_eq!(sheet.total - out, sheet.left());
            assert_eq!(envelope.made_good_minor, sheet.made_good_minor);
            assert_eq!(envelope.frozen, sheet.frozen);
            assert_eq!(envelope.gathered, sheet.gathered);
            let closed = matches!(envelope.state, BookState::Closed(_));
            assert_eq!(closed, sheet.closed);
            let claims = world.ledger.claims(*id, 0, 100).await.unwrap();
            let expected: Vec<_> = sheet.claims.values().cloned().collect();
            assert_eq!(claims, expected);
        }
        world.audit().await;
    }
}
