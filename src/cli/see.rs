//! `show` and `watch`: an envelope as its viewer may see it, once or until it is closed.

use std::io::Write;

use red_envelope_proto::v1;
use serde_json::{Value, json};
use v1::EnvelopeState;

use super::args::See;
use super::call::{Client, TRIES_MAX, WAIT_MAX, failed};
use super::words::{self, Style, Tone};
use super::{Failed, Told, shapes};
use crate::clock::{Clock, SystemClock};
use crate::config::Environment;
use crate::domain::money::Currencies;

/// Shares that `show` lists; a person reads no more, and a program pages through ListGrabs.
const SHOWN_SHARES_MAX: i32 = 100;

pub(super) async fn show(
    args: See,
    environment: &Environment,
    style: Style,
) -> Result<Told, Failed> {
    let client = Client::connect(&args.at, environment).await?;
    let request = v1::GetEnvelopeRequest {
        tenant: client.tenant.clone(),
        envelope_id: args.envelope.clone(),
        viewer: args.viewer.clone(),
        group_id: args.group.clone(),
        group_ticket: Vec::new(),
    };
    let envelopes = client.envelopes();
    let reply = client
        .ask(request, |request| {
            let mut envelopes = envelopes.clone();
            async move { envelopes.get_envelope(request).await }
        })
        .await?;
    let request = v1::ListGrabsRequest {
        tenant: client.tenant.clone(),
        envelope_id: args.envelope,
        viewer: args.viewer.clone(),
        group_id: args.group,
        group_ticket: Vec::new(),
        page_size: SHOWN_SHARES_MAX,
        page_token: String::new(),
    };
    let page = client
        .ask(request, |request| {
            let mut envelopes = envelopes.clone();
            async move { envelopes.list_grabs(request).await }
        })
        .await?;
    let envelope = reply.envelope.unwrap_or_default();
    let codes = envelope.total.iter().map(|m| m.currency_code.as_str());
    let currencies = client.currencies(codes).await?;
    let own = reply.own_share.as_ref();
    let shares = page.shares.iter();
    let json = json!({
        "envelope": shapes::envelope(&currencies, &envelope),
        "own_share": shapes::share(&currencies, own),
        "shares": shares.map(|s| shapes::share(&currencies, Some(s))).collect::<Vec<_>>(),
        "more_shares": !page.next_page_token.is_empty(),
    });
    let seen = Seen {
        currencies: &currencies,
        now_ms: SystemClock.now().0,
        style,
    };
    let mut text = seen.envelope(&envelope, &args.viewer, own);
    text.push_str(&seen.shares(&page.shares));
    if !page.next_page_token.is_empty() {
        text.push_str("  … and more\n");
    }
    Ok(Told::ok(text, json))
}

/// What all the words of one answer have in common.
struct Seen<'a> {
    currencies: &'a Currencies,
    now_ms: i64,
    style: Style,
}

impl Seen<'_> {
    fn envelope(&self, envelope: &v1::Envelope, viewer: &str, own: Option<&v1::Share>) -> String {
        let total = words::amount(self.currencies, envelope.total.as_ref());
        let sender = words::clean(&envelope.sender);
        let greeting = words::clean(&envelope.greeting);
        let title = match greeting.as_str() {
            "" => format!("{total} from {sender}"),
            said => format!("{said} — {total} from {sender}"),
        };
        let relative = |at: &Option<prost_types::Timestamp>| {
            at.as_ref()
                .map_or_else(String::new, |at| words::relative(at, self.now_ms))
        };
        let over = envelope.close_reason() != v1::CloseReason::Unspecified;
        let progress = envelope.progress.clone().unwrap_or_default();
        let refunded = progress.refunded.as_ref().filter(|m| m.minor_units > 0);
        let rows = words::pairs(&[
            ("envelope", envelope.envelope_id.clone()),
            ("state", self.state(envelope)),
            ("shares", self.progress(envelope)),
            (
                "refunded",
                refunded.map_or_else(String::new, |m| words::money(self.currencies, m)),
            ),
            (
                "opens",
                if over {
                    String::new()
                } else {
                    relative(&envelope.open_time)
                },
            ),
            (
                "expires",
                if over {
                    String::new()
                } else {
                    relative(&envelope.expire_time)
                },
            ),
            ("best luck", self.best(envelope)),
            (
                "passphrase",
                if envelope.passphrase_required {
                    "required".into()
                } else {
                    String::new()
                },
            ),
            (
                words::clean(viewer).as_str(),
                own.map_or_else(String::new, |s| self.own(s)),
            ),
        ]);
        format!("{}\n{rows}", self.style.tone(Tone::Strong, &title))
    }

    fn state(&self, envelope: &v1::Envelope) -> String {
        let state = shapes::state(envelope);
        let reason = envelope.close_reason();
        let tone = match envelope.state() {
            EnvelopeState::Live => Tone::Good,
            EnvelopeState::Frozen => Tone::Bad,
            _ => Tone::Quiet,
        };
        let text = if envelope.state() == EnvelopeState::Closed {
            let reason = shapes::name(reason.as_str_name(), "CLOSE_REASON_");
            format!("{state} ({reason}), the books are balanced")
        } else {
            state
        };
        self.style.tone(tone, &text)
    }

    fn progress(&self, envelope: &v1::Envelope) -> String {
        let progress = envelope.progress.clone().unwrap_or_default();
        let taken = progress.taken.as_ref();
        let worth = taken.map_or_else(String::new, |m| {
            format!(", worth {}", words::money(self.currencies, m))
        });
        format!(
            "{} of {} taken{worth}",
            progress.taken_count, envelope.share_count
        )
    }

    fn best(&self, envelope: &v1::Envelope) -> String {
        envelope
            .best_luck
            .as_ref()
            .map_or_else(String::new, |best| {
                let amount = words::amount(self.currencies, best.amount.as_ref());
                format!("{} with {amount}", words::clean(&best.grabber))
            })
    }

    fn own(&self, share: &v1::Share) -> String {
        let amount = words::amount(self.currencies, share.amount.as_ref());
        if share.declined {
            return format!("declined {amount}");
        }
        format!("holds {amount} (share {})", share.number)
    }

    fn shares(&self, shares: &[v1::Share]) -> String {
        if shares.is_empty() {
            return String::new();
        }
        let rows: Vec<Vec<String>> = shares
            .iter()
            .map(|share| {
                let at = share.grab_time.as_ref();
                let mut notes = Vec::new();
                notes.extend(share.best_luck.then_some("best luck"));
                notes.extend(share.declined.then_some("declined"));
                notes.extend(share.pending.then_some("not confirmed yet"));
                notes.extend(share.settled.then_some("paid"));
                vec![
                    share.number.to_string(),
                    words::clean(&share.grabber),
                    words::amount(self.currencies, share.amount.as_ref()),
                    at.map_or_else(String::new, |at| words::relative(at, self.now_ms)),
                    notes.join(", "),
                ]
            })
            .collect();
        format!(
            "\n{}",
            words::table(&[">share", "who", ">amount", "when", ""], &rows)
        )
    }

    /// One moment of an envelope's life.
    fn line(&self, envelope: &v1::Envelope) -> String {
        let mut line = format!("{}  {}", self.state(envelope), self.progress(envelope));
        let best = self.best(envelope);
        if !best.is_empty() {
            line.push_str(&format!("  best luck: {best}"));
        }
        line
    }
}

/// Prints a line (with `--json` a document) whenever the envelope moves; ends with CLOSED.
///
/// A stream that breaks is opened again, at most [`TRIES_MAX`] times in a row without news.
pub(super) async fn watch(
    args: See,
    environment: &Environment,
    style: Style,
) -> Result<Told, Failed> {
    let client = Client::connect(&args.at, environment).await?;
    let mut silent_tries = 0;
    loop {
        let request = v1::WatchEnvelopeRequest {
            tenant: client.tenant.clone(),
            envelope_id: args.envelope.clone(),
            viewer: args.viewer.clone(),
            group_id: args.group.clone(),
            group_ticket: Vec::new(),
        };
        let broken = match client.envelopes().watch_envelope(request).await {
            Err(status) => status,
            Ok(reply) => {
                let mut moments = reply.into_inner();
                loop {
                    match moments.message().await {
                        Ok(Some(moment)) => {
                            silent_tries = 0;
                            let envelope = moment.envelope.unwrap_or_default();
                            let codes = envelope.total.iter().map(|m| m.currency_code.as_str());
                            let currencies = client.currencies(codes).await?;
                            let seen = Seen {
                                currencies: &currencies,
                                now_ms: SystemClock.now().0,
                                style,
                            };
                            if !tell(args.at.json, &seen, &envelope, moment.own_share.as_ref()) {
                                return Ok(nothing_more());
                            }
                        }
                        Ok(None) => return Ok(nothing_more()),
                        Err(status) => break status,
                    }
                }
            }
        };
        silent_tries += 1;
        if broken.code() != tonic::Code::Unavailable || silent_tries >= TRIES_MAX {
            return Err(failed(&broken));
        }
        tokio::time::sleep(WAIT_MAX).await;
    }
}

fn nothing_more() -> Told {
    Told {
        words: String::new(),
        json: Value::Null,
        exit: super::EXIT_OK,
    }
}

/// Answers whether somebody still reads.
fn tell(json: bool, seen: &Seen<'_>, envelope: &v1::Envelope, own: Option<&v1::Share>) -> bool {
    let line = if json {
        json!({
            "envelope": shapes::envelope(seen.currencies, envelope),
            "own_share": shapes::share(seen.currencies, own),
        })
        .to_string()
    } else {
        seen.line(envelope)
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cny(minor_units: i64) -> Option<v1::Money> {
        Some(v1::Money {
            currency_code: "CNY".to_owned(),
            minor_units,
        })
    }

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn closed() -> v1::Envelope {
        v1::Envelope {
            envelope_id: "abc".to_owned(),
            sender: "alice".to_owned(),
            state: EnvelopeState::Closed.into(),
            close_reason: v1::CloseReason::Empty.into(),
            total: cny(1_000),
            share_count: 2,
            greeting: "恭喜发财".to_owned(),
            expire_time: at(90_000),
            progress: Some(v1::Progress {
                taken_count: 2,
                taken: cny(1_000),
                ..v1::Progress::default()
            }),
            best_luck: Some(v1::Share {
                grabber: "bob".to_owned(),
                amount: cny(700),
                ..v1::Share::default()
            }),
            ..v1::Envelope::default()
        }
    }

    #[test]
    fn a_closed_envelope_shows_who_got_what() {
        let currencies = Currencies::default();
        let seen = Seen {
            currencies: &currencies,
            now_ms: 100_000,
            style: Style::default(),
        };
        let bob = v1::Share {
            number: 0,
            grabber: "bob".to_owned(),
            amount: cny(700),
            grab_time: at(95),
            best_luck: true,
            settled: true,
            ..v1::Share::default()
        };
        let carol = v1::Share {
            number: 1,
            grabber: "carol".to_owned(),
            amount: None,
            grab_time: at(99),
            ..v1::Share::default()
        };
        let text = seen.envelope(&closed(), "bob", Some(&bob)) + &seen.shares(&[bob, carol]);
        assert_eq!(
            text,
            "恭喜发财 — 10.00 CNY from alice\n  \
               envelope    abc\n  \
               state       closed (empty), the books are balanced\n  \
               shares      2 of 2 taken, worth 10.00 CNY\n  \
               best luck   bob with 7.00 CNY\n  \
               bob         holds 7.00 CNY (share 0)\n\
             \n  \
               share  who      amount  when\n  \
               \u{20}   0  bob    7.00 CNY  5 s ago  best luck, paid\n  \
               \u{20}   1  carol         -  1 s ago\n"
        );
    }

    #[test]
    fn a_moment_is_one_line() {
        let currencies = Currencies::default();
        let seen = Seen {
            currencies: &currencies,
            now_ms: 0,
            style: Style::default(),
        };
        assert_eq!(
            seen.line(&closed()),
            "closed (empty), the books are balanced  2 of 2 taken, worth 10.00 CNY  best luck: bob with 7.00 CNY"
        );
    }
}
