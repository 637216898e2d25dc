//! Domain ↔ contract: one function a message, without a decision of its own.
//!
//! # Not here
//! Who may see what (`sight`), and whether what came in may be served (`admission`, `draft`).

use prost_types::{Duration, Timestamp};
use red_envelope_proto::v1;

use crate::domain::audience::Audience;
use crate::domain::envelope::{CloseReason, HotState, Kind, LeafRef, Reveal};
use crate::domain::grab::{HeldShare, Outcome, Refusal};
use crate::domain::id::UnixMs;
use crate::domain::money::Currency;
use crate::domain::posting::PostingKind;
use crate::domain::split::Split;

const NANOS_PER_MS: i64 = 1_000_000;
const NANOS_PER_S: i32 = 1_000_000_000;
const MS_PER_S: i64 = 1_000;

/// An instant as the contract writes it.
pub fn timestamp(at: UnixMs) -> Timestamp {
    let nanos = at.0.rem_euclid(MS_PER_S) * NANOS_PER_MS;
    Timestamp {
        seconds: at.0.div_euclid(MS_PER_S),
        nanos: i32::try_from(nanos).expect("below a second"),
    }
}

/// An instant as the contract writes it, cut to a millisecond. `None`: no timestamp.
pub fn instant(timestamp: &Timestamp) -> Option<UnixMs> {
    if !(0..NANOS_PER_S).contains(&timestamp.nanos) {
        return None;
    }
    let ms = timestamp.seconds.checked_mul(MS_PER_S)?;
    let rest = i64::from(timestamp.nanos) / NANOS_PER_MS;
    ms.checked_add(rest).map(UnixMs)
}

/// A duration in milliseconds, cut. `None`: negative, beyond 64 bits, or of mixed signs.
pub fn duration_ms(duration: &Duration) -> Option<i64> {
    if duration.seconds < 0 || !(0..NANOS_PER_S).contains(&duration.nanos) {
        return None;
    }
    let ms = duration.seconds.checked_mul(MS_PER_S)?;
    ms.checked_add(i64::from(duration.nanos) / NANOS_PER_MS)
}

/// Milliseconds as the contract writes them.
pub fn duration(ms: i64) -> Duration {
    let nanos = ms.rem_euclid(MS_PER_S) * NANOS_PER_MS;
    Duration {
        seconds: ms.div_euclid(MS_PER_S),
        nanos: i32::try_from(nanos).expect("below a second"),
    }
}

/// An amount.
pub fn money(currency: Currency, minor_units: i64) -> v1::Money {
    v1::Money {
        currency_code: currency.code().to_owned(),
        minor_units,
    }
}

/// The rule of an envelope's cut.
pub fn split(split: &Split) -> v1::Split {
    use v1::split::{BrokenStick, DoubleMean, Even, Rule, Tier, Tiers};
    let rule = match split {
        Split::Even => Rule::Even(Even {}),
        Split::DoubleMean => Rule::DoubleMean(DoubleMean {}),
        Split::BrokenStick => Rule::BrokenStick(BrokenStick {}),
        Split::Tiers { tiers } => Rule::Tiers(Tiers {
            tiers: tiers
                .iter()
                .map(|tier| Tier {
                    amount_minor: tier.amount_minor,
                    share_count: tier.count,
                })
                .collect(),
        }),
    };
    v1::Split { rule: Some(rule) }
}

/// Who may grab. Names are for the sender's eyes only.
pub fn audience(audience: &Audience, with_names: bool) -> v1::Audience {
    use v1::audience::{Anyone, Audience as Said, Group, Named};
    let said = match audience {
        Audience::Anyone => Said::Anyone(Anyone {}),
        Audience::Group(group) => Said::Group(Group {
            group_id: group.as_str().to_owned(),
        }),
        Audience::Named(grabbers) => {
            let shown = grabbers.iter().filter(|_| with_names);
            Said::Named(Named {
                grabbers: shown.map(ToString::to_string).collect(),
            })
        }
    };
    v1::Audience {
        audience: Some(said),
    }
}

/// What an envelope does with its money.
pub fn kind(kind: Kind) -> v1::EnvelopeKind {
    match kind {
        Kind::Lucky => v1::EnvelopeKind::Lucky,
        Kind::Equal => v1::EnvelopeKind::Equal,
        Kind::Exclusive => v1::EnvelopeKind::Exclusive,
    }
}

/// When amounts of others become visible.
pub fn reveal(reveal: Reveal) -> v1::Reveal {
    match reveal {
        Reveal::AfterGrab => v1::Reveal::AfterGrab,
        Reveal::AtEnd => v1::Reveal::AtEnd,
    }
}

/// Why an envelope is over.
pub fn close_reason(reason: CloseReason) -> v1::CloseReason {
    match reason {
        CloseReason::Empty => v1::CloseReason::Empty,
        CloseReason::Expired => v1::CloseReason::Expired,
        CloseReason::Recalled => v1::CloseReason::Recalled,
    }
}

/// Where an envelope stands before its books are closed.
pub fn state(state: HotState) -> v1::EnvelopeState {
    match state {
        HotState::Funding => v1::EnvelopeState::Funding,
        HotState::Live => v1::EnvelopeState::Live,
        HotState::Over(CloseReason::Empty) => v1::EnvelopeState::Empty,
        HotState::Over(CloseReason::Expired) => v1::EnvelopeState::Expired,
        HotState::Over(CloseReason::Recalled) => v1::EnvelopeState::Recalled,
    }
}

/// What was committed to before the first grab.
pub fn fairness(leaf: &LeafRef, client_nonce: &[u8]) -> v1::FairnessCommitment {
    v1::FairnessCommitment {
        leaf_number: leaf.leaf_number,
        leaf_hash: leaf.leaf_hash.to_vec(),
        batch_number: leaf.batch_number,
        batch_root: leaf.batch_root.to_vec(),
        client_nonce: client_nonce.to_vec(),
    }
}

/// A share with its amount. The marks of luck and settlement are the caller's to add.
pub fn share(held: &HeldShare, currency: Currency) -> v1::Share {
    v1::Share {
        number: held.grant.share,
        grabber: held.grabber.as_str().to_owned(),
        amount: Some(money(currency, held.grant.amount_minor)),
        grab_time: Some(timestamp(held.grant.at)),
        best_luck: false,
        pending: false,
        settled: false,
        declined: held.declined,
    }
}

/// The answer to a grab. Takes the grabber's name as the request carried it: a won share names it
/// without another copy.
pub fn grab_response(outcome: &Outcome, currency: Currency, grabber: String) -> v1::GrabResponse {
    let mut response = v1::GrabResponse::default();
    let outcome = match outcome {
        Outcome::Won(grant) | Outcome::AlreadyGrabbed(grant) => {
            response.share = Some(v1::Share {
                number: grant.share,
                grabber,
                amount: Some(money(currency, grant.amount_minor)),
                grab_time: Some(timestamp(grant.at)),
                ..v1::Share::default()
            });
            match outcome {
                Outcome::Won(_) => v1::GrabOutcome::Won,
                _ => v1::GrabOutcome::AlreadyGrabbed,
            }
        }
        Outcome::Empty => v1::GrabOutcome::Empty,
        Outcome::Expired => v1::GrabOutcome::Expired,
        Outcome::Recalled => v1::GrabOutcome::Recalled,
        Outcome::NotOpenYet(at) => {
            response.open_time = Some(timestamp(*at));
            v1::GrabOutcome::NotOpenYet
        }
        Outcome::Refused(reason) => {
            response.set_refusal(refusal(*reason));
            v1::GrabOutcome::Refused
        }
    };
    response.set_outcome(outcome);
    response
}

fn refusal(refusal: Refusal) -> v1::RefusalReason {
    match refusal {
        Refusal::WrongPassphrase => v1::RefusalReason::WrongPassphrase,
        Refusal::TooManyTries => v1::RefusalReason::TooManyTries,
        Refusal::OwnEnvelope => v1::RefusalReason::OwnEnvelope,
        Refusal::Declined => v1::RefusalReason::Declined,
    }
}

/// Why an entry was posted.
pub fn entry_kind(kind: PostingKind) -> v1::EntryKind {
    match kind {
        PostingKind::Deposit => v1::EntryKind::Deposit,
        PostingKind::Withdrawal => v1::EntryKind::Withdrawal,
        PostingKind::Fund => v1::EntryKind::Fund,
        PostingKind::Settle => v1::EntryKind::Settle,
        PostingKind::Refund => v1::EntryKind::Refund,
        PostingKind::MakeGood => v1::EntryKind::MakeGood,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_instant_reads_back_as_it_was_written(ms in -62_135_596_800_000_i64..253_402_300_800_000) {
            prop_assert_eq!(instant(&timestamp(UnixMs(ms))), Some(UnixMs(ms)));
        }

        #[test]
        fn no_timestamp_or_duration_panics(seconds: i64, nanos: i32) {
            let _ = instant(&Timestamp { seconds, nanos });
            let _ = duration_ms(&Duration { seconds, nanos });
        }
    }

    #[test]
    fn a_duration_is_read_in_whole_milliseconds() {
        let ms = |seconds, nanos| duration_ms(&Duration { seconds, nanos });
        assert_eq!(ms(1, 999_999), Some(1_000));
        assert_eq!(ms(0, 500_000_000), Some(500));
        assert_eq!(ms(-1, 0), None);
        assert_eq!(ms(1, -1), None);
        assert_eq!(ms(i64::MAX, 0), None);
        assert_eq!(
            duration(1_500),
            Duration {
                seconds: 1,
                nanos: 500_000_000
            }
        );
    }
}
