//! What the operator is told, in words and for programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::domain::envelope::{CloseReason, Terms};
use crate::domain::grab::HeldShare;
use crate::domain::id::{EnvelopeId, PersonId};
use crate::domain::money::{Currencies, Currency, print_amount};
use crate::ledger::BegunAnew;

/// An envelope of the hot store that the books don't know: the money of its sender is not in them.
#[derive(Clone, Debug)]
pub struct Stranger {
    /// Which.
    pub id: EnvelopeId,
    /// The terms under which it was grabbed; `None`: only its debts are left, or it is not whole.
    pub terms: Option<Arc<Terms>>,
    /// The hot store holds it whole, or only owes something of it. One that is not whole stays there.
    pub whole: bool,
    /// Who was told that a share is theirs, by share.
    pub grants: BTreeMap<(u32, PersonId), HeldShare>,
}

impl Stranger {
    pub(super) fn new(id: EnvelopeId) -> Self {
        Self {
            id,
            terms: None,
            whole: true,
            grants: BTreeMap::new(),
        }
    }

    /// How much was told to how many, in minor units.
    pub(super) fn sum(&self) -> String {
        let kept = self.grants.values().filter(|held| !held.declined);
        let minor: i128 = kept.map(|held| i128::from(held.grant.amount_minor)).sum();
        let code = self.terms.as_ref().map_or("", |t| t.currency.code());
        format!("{} grants of {minor} {code}", self.grants.len())
    }
}

/// An envelope of the books that was brought up to what people were told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// Which.
    pub id: EnvelopeId,
    /// Grants that the books had lost and have now.
    pub posted: usize,
    /// It had ended, so its close has begun.
    pub ends: Option<CloseReason>,
}

/// An envelope of the books that could not be mended now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Which.
    pub id: EnvelopeId,
    /// Why.
    pub why: String,
}

/// A share that the books have paid to somebody else than who was told that it is theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    /// Of which envelope.
    pub id: EnvelopeId,
    /// Its currency.
    pub currency: Currency,
    /// Who was told, by the hot store.
    pub told: HeldShare,
    /// Who was paid, by the books.
    pub paid: PersonId,
}

/// Everything that was found and done.
#[derive(Clone, Debug)]
pub struct Report {
    /// Leaves and epochs.
    pub begun: BegunAnew,
    /// Envelopes that the books don't know, by id.
    pub strangers: Vec<Stranger>,
    /// Envelopes that were brought up to what was told.
    pub mended: Vec<Mended>,
    /// Open envelopes that the hot store has forgotten: frozen, or about to be.
    pub missing: Vec<EnvelopeId>,
    /// Envelopes that could not be mended now.
    pub left: Vec<Left>,
    /// Shares of which hot store and books name different people.
    pub disputes: Vec<Dispute>,
}

impl Report {
    pub(super) fn new(begun: BegunAnew) -> Self {
        Self {
            begun,
            strangers: Vec::new(),
            mended: Vec::new(),
            missing: Vec::new(),
            left: Vec::new(),
            disputes: Vec::new(),
        }
    }

    /// For people: whole lines.
    pub fn words(&self, currencies: &Currencies) -> String {
        let mut text = "The books begin anew.\n".to_owned();
        for (tenant, leaf) in &self.begun.first_leaves {
            line(&mut text, 1, &format!("{tenant}: leaves from {leaf} on"));
        }
        let partitions = self.begun.partitions;
        line(&mut text, 1, &format!("epochs advanced: {partitions}"));
        let count = self.strangers.len();
        line(
            &mut text,
            0,
            &format!("Envelopes that the books don't know, from which nobody is paid: {count}"),
        );
        for stranger in &self.strangers {
            stranger_words(&mut text, stranger, currencies);
        }
        let count = self.mended.len();
        line(&mut text, 0, &format!("Envelopes repaired: {count}"));
        for mended in &self.mended {
            let ends = mended.ends.map(|why| format!(", ends: {}", name(why)));
            let (id, posted) = (mended.id, mended.posted);
            let ends = ends.unwrap_or_default();
            line(
                &mut text,
                1,
                &format!("{id}: grants posted: {posted}{ends}"),
            );
        }
        let count = self.missing.len();
        line(
            &mut text,
            0,
            &format!("Envelopes frozen, since the hot store has forgotten them: {count}"),
        );
        for id in &self.missing {
            line(&mut text, 1, &id.to_string());
        }
        let count = self.left.len();
        line(
            &mut text,
            0,
            &format!("Envelopes left as they are: {count}"),
        );
        for left in &self.left {
            line(&mut text, 1, &format!("{}: {}", left.id, left.why));
        }
        let count = self.disputes.len();
        line(
            &mut text,
            0,
            &format!("Shares that were paid to somebody else than who was told: {count}"),
        );
        for dispute in &self.disputes {
            dispute_words(&mut text, dispute, currencies);
        }
        text
    }

    /// For programs. Amounts are minor units, instants milliseconds since 1970.
    pub fn json(&self) -> Value {
        let leaves = self.begun.first_leaves.iter();
        let leaves =
            leaves.map(|(tenant, leaf)| json!({"tenant": tenant, "first_leaf_number": leaf}));
        let mended = self.mended.iter().map(|mended| {
            json!({
                "envelope_id": mended.id.to_string(),
                "grants_posted": mended.posted,
                "ends": mended.ends.map(name),
            })
        });
        let left = self.left.iter();
        let left = left.map(|left| json!({"envelope_id": left.id.to_string(), "why": left.why}));
        json!({
            "leaves": leaves.collect::<Vec<_>>(),
            "epochs_advanced": self.begun.partitions,
            "unknown": self.strangers.iter().map(stranger_json).collect::<Vec<_>>(),
            "repaired": mended.collect::<Vec<_>>(),
            "frozen": self.missing.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "left": left.collect::<Vec<_>>(),
            "disputed": self.disputes.iter().map(dispute_json).collect::<Vec<_>>(),
        })
    }
}

fn line(text: &mut String, depth: usize, words: &str) {
    let _never_fails = writeln!(text, "{:depth$}{words}", "", depth = 2 * depth);
}

fn name(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::Empty => "empty",
        CloseReason::Expired => "expired",
        CloseReason::Recalled => "recalled",
    }
}

/// Without a currency: minor units.
fn amount(minor: i64, currency: Option<Currency>, currencies: &Currencies) -> String {
    match currency {
        Some(currency) => {
            let printed = print_amount(minor, currencies.decimals(currency));
            format!("{printed} {}", currency.code())
        }
        None => format!("{minor} minor units"),
    }
}

fn stranger_words(text: &mut String, stranger: &Stranger, currencies: &Currencies) {
    let id = stranger.id;
    let currency = stranger.terms.as_ref().map(|terms| terms.currency);
    let what = match (&stranger.terms, stranger.whole) {
        (Some(terms), _) => {
            let total = amount(terms.total_minor, currency, currencies);
            let (tenant, sender, count) = (&terms.tenant, &terms.sender, terms.share_count);
            format!("{id}: {total} of {sender} ({tenant}) in {count} shares")
        }
        (None, true) => format!("{id}: only what is owed of it is left"),
        (None, false) => format!("{id}: not whole, so it stays in the hot store"),
    };
    line(text, 1, &what);
    for held in stranger.grants.values() {
        let said = amount(held.grant.amount_minor, currency, currencies);
        let declined = if held.declined { ", declined" } else { "" };
        let (share, grabber) = (held.grant.share, &held.grabber);
        line(
            text,
            2,
            &format!("share {share}: {said} to {grabber}{declined}"),
        );
    }
}

fn dispute_words(text: &mut String, dispute: &Dispute, currencies: &Currencies) {
    let (id, told, paid) = (dispute.id, &dispute.told, &dispute.paid);
    let said = amount(told.grant.amount_minor, Some(dispute.currency), currencies);
    let declined = if told.declined { ", declined" } else { "" };
    let (share, grabber) = (told.grant.share, &told.grabber);
    line(
        text,
        1,
        &format!("{id}: share {share}: {said} told to {grabber}{declined}, paid to {paid}"),
    );
}

fn dispute_json(dispute: &Dispute) -> Value {
    let told = &dispute.told;
    json!({
        "envelope_id": dispute.id.to_string(),
        "share": told.grant.share,
        "amount_minor": told.grant.amount_minor,
        "currency_code": dispute.currency.code(),
        "granted_at_ms": told.grant.at.0,
        "declined": told.declined,
        "told": told.grabber,
        "paid": dispute.paid,
    })
}

fn stranger_json(stranger: &Stranger) -> Value {
    let terms = stranger.terms.as_deref();
    let grants = stranger.grants.values().map(|held| {
        json!({
            "share": held.grant.share,
            "grabber": held.grabber,
            "amount_minor": held.grant.amount_minor,
            "granted_at_ms": held.grant.at.0,
            "declined": held.declined,
        })
    });
    json!({
        "envelope_id": stranger.id.to_string(),
        "tenant": terms.map(|terms| &terms.tenant),
        "sender": terms.map(|terms| &terms.sender),
        "currency_code": terms.map(|terms| terms.currency.code()),
        "total_minor": terms.map(|terms| terms.total_minor),
        "share_count": terms.map(|terms| terms.share_count),
        "stays": !stranger.whole,
        "grants": grants.collect::<Vec<_>>(),
    })
}
