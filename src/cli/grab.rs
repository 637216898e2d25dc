//! `grab` and `decline`: what grabbers do. Losing is an answer, not a failure.

use red_envelope_proto::v1;
use serde_json::json;
use v1::{GrabOutcome, RefusalReason};

use super::args::{Act, Grab};
use super::call::Client;
use super::money::new_request_id;
use super::send::passphrase;
use super::words::{self, Style, Tone};
use super::{EXIT_NO_SHARE, EXIT_SOFTWARE, Failed, Told, shapes};
use crate::clock::{Clock, SystemClock};
use crate::config::Environment;
use crate::domain::money::Currencies;

pub(super) async fn grab(
    args: Grab,
    environment: &Environment,
    style: Style,
) -> Result<Told, Failed> {
    let passphrase = passphrase(args.passphrase_file.as_deref(), args.passphrase_prompt)?;
    let client = Client::connect(&args.at, environment).await?;
    let request = v1::GrabRequest {
        tenant: client.tenant.clone(),
        envelope_id: args.envelope,
        grabber: args.grabber.clone(),
        group_id: args.group,
        group_ticket: Vec::new(),
        passphrase,
    };
    let envelopes = client.envelopes();
    let reply = client
        .ask(request, |request| {
            let mut envelopes = envelopes.clone();
            async move { envelopes.grab(request).await }
        })
        .await?;
    let amounts = reply.share.iter().filter_map(|s| s.amount.as_ref());
    let currencies = client
        .currencies(amounts.map(|m| m.currency_code.as_str()))
        .await?;
    Ok(told(
        &currencies,
        &args.grabber,
        &reply,
        SystemClock.now().0,
        style,
    ))
}

fn told(
    currencies: &Currencies,
    grabber: &str,
    reply: &v1::GrabResponse,
    now_ms: i64,
    style: Style,
) -> Told {
    let grabber = words::clean(grabber);
    let share = reply.share.as_ref();
    let amount = words::amount(currencies, share.and_then(|s| s.amount.as_ref()));
    let number = share.map_or(0, |s| s.number);
    let (tone, text, exit) = match reply.outcome() {
        GrabOutcome::Won => (
            Tone::Good,
            format!("{grabber} won {amount} (share {number})."),
            super::EXIT_OK,
        ),
        GrabOutcome::AlreadyGrabbed => {
            let text = format!("{grabber} holds {amount} already (share {number}).");
            (Tone::Good, text, super::EXIT_OK)
        }
        lost => (
            Tone::Quiet,
            lost_words(lost, reply, now_ms),
            lost_exit(lost),
        ),
    };
    let json = json!({
        "outcome": shapes::outcome(reply.outcome()),
        "share": shapes::share(currencies, share),
        "refusal": shapes::refusal(reply.refusal()),
        "open_time": shapes::instant(reply.open_time.as_ref()),
    });
    Told::ok(format!("{}\n", style.tone(tone, &text)), json).ending(exit)
}

fn lost_words(outcome: GrabOutcome, reply: &v1::GrabResponse, now_ms: i64) -> String {
    match outcome {
        GrabOutcome::Empty => "Empty: every share is taken.".to_owned(),
        GrabOutcome::Expired => "Expired: the time to grab is over.".to_owned(),
        GrabOutcome::Recalled => "Recalled: its sender ended it.".to_owned(),
        GrabOutcome::NotOpenYet => {
            let at = reply.open_time.as_ref();
            let when = at.map_or_else(|| "later".to_owned(), |at| words::relative(at, now_ms));
            format!("Not open yet: it opens {when}.")
        }
        GrabOutcome::Refused => match reply.refusal() {
            RefusalReason::WrongPassphrase => {
                "Refused: the passphrase is wrong (--passphrase-file, --passphrase-prompt)."
            }
            RefusalReason::TooManyTries => "Refused: too many wrong passphrases.",
            RefusalReason::OwnEnvelope => "Refused: senders may not grab this envelope.",
            RefusalReason::Declined => "Refused: this share was declined before.",
            RefusalReason::Unspecified => "Refused.",
        }
        .to_owned(),
        GrabOutcome::Won | GrabOutcome::AlreadyGrabbed | GrabOutcome::Unspecified => {
            "The server gave an answer that this program does not know; it may be newer.".to_owned()
        }
    }
}

fn lost_exit(outcome: GrabOutcome) -> u8 {
    match outcome {
        GrabOutcome::Unspecified => EXIT_SOFTWARE,
        _ => EXIT_NO_SHARE,
    }
}

pub(super) async fn decline(args: Act, environment: &Environment) -> Result<Told, Failed> {
    let client = Client::connect(&args.at, environment).await?;
    let request = v1::DeclineEnvelopeRequest {
        tenant: client.tenant.clone(),
        envelope_id: args.envelope,
        grabber: args.person.clone(),
        request_id: new_request_id(),
    };
    let envelopes = client.envelopes();
    let reply = client
        .ask(request, |request| {
            let mut envelopes = envelopes.clone();
            async move { envelopes.decline_envelope(request).await }
        })
        .await?;
    let amounts = reply.share.iter().filter_map(|s| s.amount.as_ref());
    let currencies = client
        .currencies(amounts.map(|m| m.currency_code.as_str()))
        .await?;
    let share = reply.share.as_ref();
    let amount = words::amount(&currencies, share.and_then(|s| s.amount.as_ref()));
    let verb = if reply.replayed {
        "had declined"
    } else {
        "declined"
    };
    let person = words::clean(&args.person);
    let text = format!("{person} {verb} {amount}; it goes back to the sender.\n");
    let json = json!({
        "replayed": reply.replayed,
        "share": shapes::share(&currencies, share),
    });
    Ok(Told::ok(text, json))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(reply: &v1::GrabResponse) -> (String, u8) {
        let told = told(&Currencies::default(), "bob", reply, 0, Style::default());
        (told.words, told.exit)
    }

    #[test]
    fn a_win_tells_the_amount_and_a_repeat_tells_the_same() {
        let mut reply = v1::GrabResponse {
            outcome: GrabOutcome::Won.into(),
            share: Some(v1::Share {
                number: 2,
                amount: Some(v1::Money {
                    currency_code: "CNY".to_owned(),
                    minor_units: 1_234,
                }),
                ..v1::Share::default()
            }),
            ..v1::GrabResponse::default()
        };
        assert_eq!(
            answer(&reply),
            ("bob won 12.34 CNY (share 2).\n".to_owned(), 0)
        );
        reply.outcome = GrabOutcome::AlreadyGrabbed.into();
        assert_eq!(
            answer(&reply),
            ("bob holds 12.34 CNY already (share 2).\n".to_owned(), 0)
        );
    }

    #[test]
    fn losing_is_told_by_its_cause_and_ends_with_3() {
        for (outcome, refusal, says) in [
            (GrabOutcome::Empty, 0, "Empty: every share is taken.\n"),
            (
                GrabOutcome::Expired,
                0,
                "Expired: the time to grab is over.\n",
            ),
            (GrabOutcome::Recalled, 0, "Recalled: its sender ended it.\n"),
            (
                GrabOutcome::NotOpenYet,
                0,
                "Not open yet: it opens in 1 min 5 s.\n",
            ),
            (
                GrabOutcome::Refused,
                3,
                "Refused: senders may not grab this envelope.\n",
            ),
        ] {
            let reply = v1::GrabResponse {
                outcome: outcome.into(),
                refusal,
                open_time: Some(prost_types::Timestamp {
                    seconds: 65,
                    nanos: 0,
                }),
                ..v1::GrabResponse::default()
            };
            assert_eq!(answer(&reply), (says.to_owned(), EXIT_NO_SHARE));
        }
        assert_eq!(answer(&v1::GrabResponse::default()).1, EXIT_SOFTWARE);
    }
}
