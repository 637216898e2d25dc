//! Answers for programs. `docs/API.md` documents the shapes; fields are added, never renamed.
//!
//! Names are those of the contract. Amounts are objects with the minor units as an integer and the
//! text that people see; instants are RFC 3339 in UTC; enum values are their names in lower case
//! without prefix; bytes are lower-case hexadecimal. What is absent in the contract is `null`.

use data_encoding::HEXLOWER;
use prost_types::Timestamp;
use red_envelope_proto::v1;
use serde_json::{Value, json};

use super::words;
use crate::domain::money::Currencies;

pub(super) fn money(currencies: &Currencies, money: Option<&v1::Money>) -> Value {
    money.map_or(Value::Null, |money| {
        json!({
            "currency_code": money.currency_code,
            "minor_units": money.minor_units,
            "text": words::money(currencies, money),
        })
    })
}

pub(super) fn instant(at: Option<&Timestamp>) -> Value {
    at.and_then(|at| jiff::Timestamp::from_millisecond(words::ms_of(at)).ok())
        .map_or(Value::Null, |at| Value::String(at.to_string()))
}

/// `ENVELOPE_STATE_LIVE` → `live`.
pub(super) fn name(full: &str, prefix: &str) -> String {
    full.strip_prefix(prefix).unwrap_or(full).to_lowercase()
}

pub(super) fn state(envelope: &v1::Envelope) -> String {
    name(envelope.state().as_str_name(), "ENVELOPE_STATE_")
}

pub(super) fn kind(envelope: &v1::Envelope) -> String {
    name(envelope.kind().as_str_name(), "ENVELOPE_KIND_")
}

pub(super) fn outcome(outcome: v1::GrabOutcome) -> String {
    name(outcome.as_str_name(), "GRAB_OUTCOME_")
}

pub(super) fn refusal(reason: v1::RefusalReason) -> Value {
    match reason {
        v1::RefusalReason::Unspecified => Value::Null,
        other => Value::String(name(other.as_str_name(), "REFUSAL_REASON_")),
    }
}

pub(super) fn balance(currencies: &Currencies, balance: &v1::Balance) -> Value {
    json!({
        "available": money(currencies, balance.available.as_ref()),
        "pending": money(currencies, balance.pending.as_ref()),
        "held": money(currencies, balance.held.as_ref()),
    })
}

pub(super) fn share(currencies: &Currencies, share: Option<&v1::Share>) -> Value {
    share.map_or(Value::Null, |share| {
        json!({
            "number": share.number,
            "grabber": share.grabber,
            "amount": money(currencies, share.amount.as_ref()),
            "grab_time": instant(share.grab_time.as_ref()),
            "best_luck": share.best_luck,
            "pending": share.pending,
            "settled": share.settled,
            "declined": share.declined,
        })
    })
}

pub(super) fn envelope(currencies: &Currencies, envelope: &v1::Envelope) -> Value {
    let reason = match envelope.close_reason() {
        v1::CloseReason::Unspecified => Value::Null,
        other => Value::String(name(other.as_str_name(), "CLOSE_REASON_")),
    };
    let progress = envelope.progress.as_ref().map_or(Value::Null, |progress| {
        json!({
            "taken_count": progress.taken_count,
            "remaining_count": progress.remaining_count,
            "taken": money(currencies, progress.taken.as_ref()),
            "settled": money(currencies, progress.settled.as_ref()),
            "refunded": money(currencies, progress.refunded.as_ref()),
        })
    });
    json!({
        "envelope_id": envelope.envelope_id,
        "tenant": envelope.tenant,
        "sender": envelope.sender,
        "kind": kind(envelope),
        "state": state(envelope),
        "close_reason": reason,
        "total": money(currencies, envelope.total.as_ref()),
        "share_count": envelope.share_count,
        "min_share_minor": envelope.min_share_minor,
        "max_share_minor": envelope.max_share_minor,
        "passphrase_required": envelope.passphrase_required,
        "greeting": envelope.greeting,
        "cover_id": envelope.cover_id,
        "reveal": name(envelope.reveal().as_str_name(), "REVEAL_"),
        "labels": envelope.labels,
        "create_time": instant(envelope.create_time.as_ref()),
        "open_time": instant(envelope.open_time.as_ref()),
        "expire_time": instant(envelope.expire_time.as_ref()),
        "close_time": instant(envelope.close_time.as_ref()),
        "progress": progress,
        "best_luck": share(currencies, envelope.best_luck.as_ref()),
        "fairness": fairness(envelope.fairness.as_ref()),
    })
}

pub(super) fn fairness(commitment: Option<&v1::FairnessCommitment>) -> Value {
    commitment.map_or(Value::Null, |commitment| {
        json!({
            "leaf_number": commitment.leaf_number,
            "leaf_hash": HEXLOWER.encode(&commitment.leaf_hash),
            "batch_number": commitment.batch_number,
            "batch_root": HEXLOWER.encode(&commitment.batch_root),
            "client_nonce": HEXLOWER.encode(&commitment.client_nonce),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_its_amount_twice_its_time_in_utc_and_null_where_nothing_is() {
        let given = v1::Share {
            number: 3,
            grabber: "bob".to_owned(),
            amount: Some(v1::Money {
                currency_code: "CNY".to_owned(),
                minor_units: 888,
            }),
            grab_time: Some(Timestamp {
                seconds: 1_771_200_000,
                nanos: 5_000_000,
            }),
            ..v1::Share::default()
        };
        let currencies = Currencies::default();
        assert_eq!(
            share(&currencies, Some(&given)).to_string(),
            r#"{"amount":{"currency_code":"CNY","minor_units":888,"text":"8.88 CNY"},"best_luck":false,"declined":false,"grab_time":"2026-02-16T00:00:00.005Z","grabber":"bob","number":3,"pending":false,"settled":false}"#
        );
        assert_eq!(share(&currencies, None), Value::Null);
        assert_eq!(outcome(v1::GrabOutcome::AlreadyGrabbed), "already_grabbed");
        assert_eq!(refusal(v1::RefusalReason::Unspecified), Value::Null);
    }
}
